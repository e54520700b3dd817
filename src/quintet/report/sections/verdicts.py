"""Verdicts: which recipe beats which, how firm the ranks are, how far the spaces agree, and the Pareto fronts."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from quintet.core.results import PairVerdict, RankShare
from quintet.core.verdicts import pairs_needed
from quintet.report.view import Section, View
from quintet.report.words import known, say

FRONTS = ("sampling", "training", "likelihood")
_SHORT = {"too close to call": "close"}
COLUMNS = {"seconds_per_1000": "sampling", "peak_bytes": "memory"}
"""Metrics for which the table has names of its own."""


@dataclass(frozen=True)
class Meeting:
    """A recipe (the row) against another one (the column).

    Attributes:
        word: the verdict on the better one, "" where the two are the same.
        won: whether the row's recipe is the better one.
        lines: what stands behind the verdict.
    """

    word: str = ""
    won: bool = False
    lines: tuple[Markup, ...] = ()


@dataclass(frozen=True)
class Field:
    """All pairs of one metric: the recipes from the best to the last, a row of meetings for each, and their ranks."""

    metric: str
    names: tuple[str, ...]
    rows: tuple[tuple[Meeting, ...], ...]
    ranks: tuple[RankShare, ...]
    pairs: int
    needed: int


def verdicts(view: View) -> Section | None:
    """The matrix of each metric, quality first; nothing with fewer than two recipes."""
    fields = [_field(view, metric, found) for metric, found in view.compare.verdicts.items() if found]
    if not fields:
        return None
    agreement = view.compare.agreement
    fronts = [(name, view.compare.fronts[name]) for name in FRONTS if name in view.compare.fronts]
    families = {recipe.name: recipe.family for recipe in view.compare.recipes}
    return Section(
        "verdicts",
        {
            "fields": fields,
            "families": families,
            "agreement": agreement,
            "lowest": None if agreement is None else _lowest(agreement.tau),
            "fronts": fronts,
        },
    )


def _field(view: View, metric: str, found: list[PairVerdict]) -> Field:
    names = tuple(dict.fromkeys(name for v in found for name in (v.better, v.worse)))
    by_pair = {(v.better, v.worse): v for v in found}

    def meeting(row: str, column: str) -> Meeting:
        v = by_pair.get((row, column)) or by_pair.get((column, row))
        return Meeting() if v is None else Meeting(v.word, v.better == row, _lines(view, metric, v))

    rows = tuple(tuple(meeting(row, column) for column in names) for row in names)
    pairs = min(v.pairs for v in found)
    return Field(
        COLUMNS.get(metric, metric),
        names,
        rows,
        tuple(view.compare.ranks.get(metric, ())),
        pairs,
        pairs_needed(len(found)),
    )


def _lines(view: View, metric: str, v: PairVerdict) -> tuple[Markup, ...]:
    """What a verdict rests on, for the tip."""
    form = view.forms.get(COLUMNS.get(metric, metric))
    gap = f"{v.gap:.3g}" if form is None else form.text(v.gap)
    lines = [say("verdicts.gap", better=v.better, worse=v.worse, gap=gap, pairs=v.pairs)]
    if v.p is not None and v.adjusted is not None:
        lines.append(say("verdicts.p", p=f"{v.p:.3g}", adjusted=f"{v.adjusted:.3g}"))
    if len(v.spaces) > 1:
        for space, word in v.spaces.items():
            lines.append(
                say("verdicts.space", space=known("metric", space), word=say(f"verdict.{_SHORT.get(word, word)}"))
            )
    return tuple(lines)


def _lowest(tau: list[list[float | None]]) -> float | None:
    """The least agreement of any two spaces."""
    found = [value for i, row in enumerate(tau) for value in row[:i] if value is not None]
    return min(found) if found else None
