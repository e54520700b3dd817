"""Ledgers: what each model cost by every count, recipes at equal time and at equal FLOPs, and busy machines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from quintet.core.results import LedgerEntry, RecipeResult, SeedResult, Standing
from quintet.report import charts, table
from quintet.report.view import Section, View
from quintet.report.words import known, say

SHARES = (1 / 8, 1 / 4, 1 / 2, 1.0)

Read = Callable[[LedgerEntry], float | None]

COUNTS: tuple[tuple[str, Read], ...] = (
    ("wall", lambda e: e.wall_s),
    ("processor", lambda e: e.cpu_s),
    ("gpu", lambda e: e.gpu_s),
    ("energy", lambda e: e.energy_j),
    ("flops", lambda e: e.flops),
    ("examples", lambda e: float(e.examples)),
    ("memory", lambda e: float(e.peak_bytes)),
    ("apart", lambda e: e.preview_s + e.checkpoint_s + e.evaluation_s),
    ("trials", lambda e: float(e.tuning_trials)),
)
"""Column -> a cell's number."""


@dataclass(frozen=True)
class Bill:
    """One recipe's counts, (median, range) each, "" where nothing counts them, and its busy cells."""

    name: str
    family: str
    counts: tuple[tuple[str, str], ...]
    others: str
    busy: int
    cells: int


@dataclass(frozen=True)
class Place:
    """A recipe at equal cost: its rank and value, for the cost of each kind, and its snapshots."""

    name: str
    family: str
    ranks: tuple[tuple[str, str, str], ...]  # (rank, value, range) by time and by FLOPs
    snapshots: tuple[str, ...]


def ledgers(view: View) -> Section | None:
    """The bills, the orders at equal cost, and quality against FLOPs."""
    recipes = [recipe for recipe in view.compare.recipes if _entries(recipe)]
    if not recipes:
        return None
    entries = [entry for recipe in recipes for entry in _entries(recipe)]
    shown = [name for name, read in COUNTS if any(read(entry) is not None for entry in entries)]
    bills = [_bill(recipe, shown) for recipe in recipes]
    equal = view.compare.equal
    at = {cost: found[0].at for cost, found in equal.items() if found}
    return Section(
        "ledgers",
        {
            "columns": shown,
            "bills": bills,
            "absent": _absent(entries, shown),
            "energy": next((entry.energy for entry in entries if entry.energy_j is not None), ""),
            "busy": _busy(recipes),
            "unknown": all(seed.busy is None or seed.busy.others is None for r in recipes for seed in table.done(r)),
            "places": [_place(view, recipe) for recipe in recipes] if at else [],
            "at": [
                f"{at['wall_s']:,.3g} s" if "wall_s" in at else "–",
                f"{table.with_prefix(at['flops'])}FLOP" if "flops" in at else "–",
            ],
            "shares": ["1/8", "1/4", "1/2", "1"],
            "chart": charts.quality_against_time(view.compare, "flops"),
        },
    )


def _entries(recipe: RecipeResult) -> list[LedgerEntry]:
    return [seed.ledger for seed in table.done(recipe) if seed.ledger is not None]


def _bill(recipe: RecipeResult, shown: Sequence[str]) -> Bill:
    counts = []
    for name, read in COUNTS:
        if name in shown:
            values = [value for entry in _entries(recipe) if (value := read(entry)) is not None]
            counts.append(_over_seeds(values, lambda value, name=name: _text(name, value)))  # type: ignore[misc]
    seeds = table.done(recipe)
    others = [seed.busy.others for seed in seeds if seed.busy is not None and seed.busy.others is not None]
    share = f"{100 * float(np.median(others)):.0f} %" if others else "–"
    return Bill(recipe.name, recipe.family, tuple(counts), share, sum(_flag(seed) for seed in seeds), len(seeds))


def _over_seeds(values: Sequence[float], text: Callable[[float], str]) -> tuple[str, str]:
    """Median and range as texts."""
    if not values:
        return "", ""
    low, high = text(min(values)), text(max(values))
    return text(float(np.median(values))), "" if low == high else f"[{low}, {high}]"


def _text(name: str, value: float) -> str:
    if name in ("flops", "examples"):
        return table.with_prefix(value)
    if name == "memory":
        return f"{value / 1e6:,.0f} MB"
    if name == "energy":
        return f"{table.with_prefix(value)}J"
    return f"{value:,.0f}" if name == "trials" else table.significant(value)


def _flag(seed: SeedResult) -> bool:
    return seed.busy is not None and seed.busy.flag


def _absent(entries: Sequence[LedgerEntry], shown: Sequence[str]) -> list[Markup]:
    """Why counts are missing."""
    found = []
    if "gpu" not in shown:
        found.append(say("ledgers.no_gpu"))
    if "energy" not in shown:
        found.append(known("ledgers", f"no_energy_{entries[0].energy or 'absent'}"))
    return found


def _busy(recipes: Sequence[RecipeResult]) -> list[Markup]:
    """The flagged cells."""
    found = []
    for recipe in recipes:
        for seed in table.done(recipe):
            if seed.busy is not None and seed.busy.flag:
                others = "–" if seed.busy.others is None else f"{100 * seed.busy.others:.0f} %"
                name = Markup("<code>{}</code>").format(f"{recipe.name}-s{seed.seed}")
                found.append(say("ledgers.busy_cell", cell=name, others=others, own=f"{seed.busy.own:.2f}"))
    return found


def _place(view: View, recipe: RecipeResult) -> Place:
    orders = (view.compare.equal.get("wall_s", []), view.compare.equal.get("flops", []))
    return Place(recipe.name, recipe.family, tuple(_rank(order, recipe.name) for order in orders), _snapshots(recipe))


def _rank(order: Sequence[Standing], name: str) -> tuple[str, str, str]:
    for rank, standing in enumerate(order, 1):
        if standing.recipe == name and standing.value is not None:
            values = [value for value in standing.seeds.values() if value is not None]
            return str(rank), *_over_seeds(values, _distance)
    return "", "", ""


def _snapshots(recipe: RecipeResult) -> tuple[str, ...]:
    """Median distance at each share of the budget: the first point of each seed from there on, if soon after."""
    texts = []
    for share in SHARES:
        found = []
        for seed in table.done(recipe):
            points = [p for p in seed.curve if "kid_pca" in p and p.get("share", 0.0) >= 0.95 * share]
            if points and (points[0]["share"] <= 1.1 * share):
                found.append(points[0]["kid_pca"])
        texts.append(_distance(float(np.median(found))) if found else "–")
    return tuple(texts)


def _distance(value: float) -> str:
    return table.significant(value, 2) if abs(value) >= 5e-5 else "0"
