"""Calibration: what the distances mean on this data, by corruptions of known size, and which metrics it rules out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from quintet.core.ladders import Ladder, described, placed
from quintet.core.results import SPACES, Compare, Estimate
from quintet.core.verdicts import floor_sd
from quintet.report import table
from quintet.report.view import Section, View
from quintet.report.words import LANGUAGES, pair, say

DISTANCES = (*SPACES, "fd", "fd_self", "fd_random", "fd_pca")
"""The metrics whose values are placed on their ladders."""


@dataclass(frozen=True)
class Spot:
    """A value on its metric's ladder.

    Attributes:
        value: as the table writes it.
        words: "as far as blur 0.4".
        excess: how far above the floor, in floors or in the floor's standard deviations.
    """

    value: str = ""
    words: Markup | str = ""
    excess: Markup | str = ""


@dataclass(frozen=True)
class Placed:
    """One model's values on the ladders."""

    name: Markup | str
    family: str
    spots: tuple[Spot, ...]


@dataclass(frozen=True)
class Checked:
    """What a metric sees.

    Attributes:
        seen: for each corruption of the table: "yes", "no", "missed" (it must see it, and does not) or "" (unmeasured).
        steps: for each corruption its rungs in words, with their values.
    """

    metric: str
    used: bool
    seen: tuple[str, ...]
    steps: tuple[Markup | str, ...]


def calibration(view: View) -> Section | None:
    """Models placed on the ladders, then the ladders themselves; nothing without them."""
    ladders = view.compare.ladders
    if not ladders:
        return None
    metrics = [metric for metric in DISTANCES if metric in ladders and ladders[metric].used]
    found = [r for r in view.compare.recipes if table.done(r)]
    rows = [
        _placed(view, r.name, r.family, metrics, {m: e for m in metrics if (e := table.estimate(r, m))}) for r in found
    ]
    for baseline in view.compare.baselines:
        if any(metric in baseline.metrics for metric in metrics):
            name = say(f"baseline.{baseline.name}")
            rows.append(_placed(view, name, "baseline", metrics, baseline.metrics))
    corruptions = tuple(dict.fromkeys(rung.corruption for ladder in ladders.values() for rung in ladder.rungs))
    order = [m for m in table.metrics_of(view.compare) if m in ladders]
    order = [m for m in DISTANCES if m in ladders] + [m for m in order if m not in DISTANCES]
    return Section(
        "calibration",
        {
            "metrics": metrics,
            "rows": rows,
            "corruptions": corruptions,
            "checked": [_checked(view, metric, ladders[metric], corruptions) for metric in order],
            "unused": [(metric, why) for metric in order if (why := unused(view.compare, metric))],
        },
    )


def unused(compare: Compare, metric: str) -> Markup | None:
    """Why a metric is not used on this data, None where it is."""
    ladder = compare.ladders.get(metric)
    if ladder is None or ladder.used:
        return None
    missed = [name for name in ladder.must if not ladder.ordered.get(name, False)]
    return _listed([say(f"calibration.{name}") for name in missed])


def _placed(
    view: View, name: Markup | str, family: str, metrics: Sequence[str], found: Mapping[str, Estimate]
) -> Placed:
    return Placed(name, family, tuple(_spot(view, metric, found.get(metric)) for metric in metrics))


def _spot(view: View, metric: str, e: Estimate | None) -> Spot:
    if e is None or e.value is None:
        return Spot()
    words = placed(view.compare.ladders[metric], e.value)
    return Spot(view.forms[metric].text(e.value), pair(words["en"], words["zh"]), _excess(view, metric, e.value))


def _excess(view: View, metric: str, value: float) -> Markup | str:
    """(value - floor) / floor of a biased distance; an unbiased one's floor is zero, so its spread is the unit."""
    floor = view.compare.floor.get(metric)
    if floor is None or floor.value is None:
        return ""
    sd = floor_sd(floor)
    if metric.startswith("fd") and floor.value > 0:
        return say("calibration.floors", x=table.significant((value - floor.value) / floor.value, 2))
    return say("calibration.sds", x=table.significant((value - floor.value) / sd, 2)) if sd > 0 else ""


def _checked(view: View, metric: str, ladder: Ladder, corruptions: Sequence[str]) -> Checked:
    def word(name: str) -> str:
        if name not in ladder.ordered:
            return ""
        if ladder.ordered[name]:
            return "yes"
        return "missed" if name in ladder.must else "no"

    form = view.forms.get(metric)

    def steps(name: str) -> Markup | str:
        shown = [
            pair(*(f"{described(name, rung.strength, code)}: {_text(form, rung.value)}" for code in LANGUAGES))
            for rung in ladder.of(name)[1:]
        ]
        return Markup("<br>").join(shown)

    return Checked(metric, ladder.used, tuple(word(c) for c in corruptions), tuple(steps(c) for c in corruptions))


def _text(form: table.Column | None, value: float | None) -> str:
    if value is None:
        return "–"
    return table.significant(value) if form is None else form.text(value)


def _listed(names: Sequence[Markup]) -> Markup:
    """Words with the commas of each language between them."""
    result = names[0] if names else Markup("")
    for name in names[1:]:
        result = say("calibration.and", a=result, b=name)
    return result
