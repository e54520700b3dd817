"""Answer: the page's first screen, which recipe for which need, which one comes next, and how sure that order is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from quintet.core.results import Advice, compared_by
from quintet.report import table
from quintet.report.sections.verdicts import COLUMNS
from quintet.report.view import Section, View
from quintet.report.words import catalogue, known, say

ESTABLISHING = 6
"""Paired seeds that can establish a difference (compare/standing)."""


@dataclass(frozen=True)
class Place:
    """Recipes whose values are the same as written, most often a single one.

    Attributes:
        recipes: (name, family) of each.
        value, interval: as the table writes them.
    """

    recipes: tuple[tuple[str, str], ...]
    value: str
    interval: str = ""


@dataclass(frozen=True)
class Row:
    """One need.

    Attributes:
        measure: by what it is judged, and which way is better.
        first, second: the best recipes so far, and those after them, None where there are none.
        verdict: on the order of the two.
    """

    need: str
    measure: Markup
    first: Place
    second: Place | None
    verdict: str


def answer(view: View) -> Section | None:
    """A row for each need that was measured; nothing without advice, and nothing where nothing was trained."""
    rows = [row for advice in view.compare.advice if (row := _row(view, advice)) is not None]
    if view.judged or not rows:
        return None
    done = [table.done(recipe) for recipe in view.compare.recipes]
    seeds = min((len(found) for found in done if found), default=0)
    flags = [seed.busy is not None and seed.busy.flag for found in done for seed in found]
    sure = "one" if seeds < 2 else "few" if seeds < ESTABLISHING else "many"
    return Section(
        "answer",
        {
            "rows": rows,
            "sure": say(f"answer.{sure}", n=seeds, wanted=ESTABLISHING),
            "busy": say("answer.busy", n=sum(flags), all=len(flags)) if any(flags) else None,
        },
    )


def _row(view: View, advice: Advice) -> Row | None:
    places = _places(view, advice.evidence)
    if not places or advice.verdict == "no evidence":
        return None
    metric = str(advice.evidence[0].get("metric", ""))
    form = _form(view, metric)
    named = f"answer.by_{metric or 'score'}"
    measure = say(named) if named in catalogue() else known("metric", form.key)
    if form.scale != 1.0:
        measure += " " + say("table.thousandth")
    return Row(advice.need, measure, places[0], places[1] if len(places) > 1 else None, advice.verdict)


def _places(view: View, evidence: list[dict[str, Any]]) -> list[Place]:
    """The evidence of a need, best first, with equal values together."""
    families = {recipe.name: recipe.family for recipe in view.compare.recipes}
    found: list[Place] = []
    for entry in evidence:
        name, value = str(entry.get("recipe", "")), _text(view, entry)
        if name not in families or not value:
            continue
        recipe = (name, families[name])
        if found and found[-1].value == value:
            found[-1] = Place((*found[-1].recipes, recipe), value)
        else:
            found.append(Place((recipe,), value, _interval(view, entry)))
    return found


def _text(view: View, entry: Mapping[str, Any]) -> str:
    value = entry.get("value", entry.get("score"))
    if not isinstance(value, int | float):
        return ""
    return f"{value:.2f}" if "metric" not in entry else _form(view, str(entry["metric"])).text(value)


def _interval(view: View, entry: Mapping[str, Any]) -> str:
    """The interval of a metric, as verdicts take it; a cost has none."""
    recipe = next(recipe for recipe in view.compare.recipes if recipe.name == entry["recipe"])
    metric = str(entry.get("metric", ""))
    e = table.estimate(recipe, compared_by(metric, recipe.summary))
    return "" if e is None else _form(view, metric).interval(e.low, e.high)


def _form(view: View, metric: str) -> table.Column:
    key = COLUMNS.get(metric, metric)
    return view.forms.get(key, table.Column(key, None))
