"""Stability: each recipe's score with the parts it was made from, and how often its trainings fail."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from quintet.core.results import RecipeResult, StabilityPart
from quintet.report.table import significant
from quintet.report.view import Section, View
from quintet.report.words import say

PARTS = ("finished", "smooth", "unbroken", "covered", "seeds", "rate")


@dataclass(frozen=True)
class Part:
    """One part as the table shows it: its value in [0, 1], what was measured, or why it was not."""

    value: str
    sort: float | None
    measured: Markup
    reason: Markup | None


@dataclass(frozen=True)
class Row:
    """A recipe's score, its failures and its parts."""

    name: str
    family: str
    score: str
    sort: float | None
    count: int
    failure: Markup
    parts: tuple[Part, ...]


def stability(view: View) -> Section | None:
    """A row for each recipe of which a training has ended."""
    rows = [_row(recipe) for recipe in view.compare.recipes if recipe.steadiness is not None]
    return Section("stability", {"rows": rows, "parts": PARTS}) if rows else None


def _row(recipe: RecipeResult) -> Row:
    assert recipe.steadiness is not None
    score = recipe.steadiness.value
    parts = recipe.steadiness.parts
    return Row(
        recipe.name,
        recipe.family,
        "–" if score is None else f"{score:.2f}",
        score,
        sum(part.value is not None for part in parts.values()),
        _failure(recipe),
        tuple(_part(name, parts[name]) for name in PARTS),
    )


def _failure(recipe: RecipeResult) -> Markup:
    e = recipe.failure
    if e is None or e.value is None or e.n is None:
        return Markup("–")
    return say(
        "steadiness.failures", k=round(e.value * e.n), n=e.n, low=f"{100 * (e.low or 0):.0f}",
        high=f"{100 * (1 if e.high is None else e.high):.0f}",
    )  # fmt: skip


def _part(name: str, part: StabilityPart) -> Part:
    if part.value is None:
        return Part("–", None, Markup(""), say(f"steadiness.no_{part.reason or 'value'}"))
    if part.reason:
        return Part(f"{part.value:.2f}", part.value, say(f"steadiness.no_{part.reason}"), None)
    measured = "–" if part.measured is None else significant(part.measured)
    return Part(f"{part.value:.2f}", part.value, say(f"steadiness.{name}_is", x=measured, n=f"{part.n:,}"), None)
