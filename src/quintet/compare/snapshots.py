"""Recipes at equal cost: their quality at one wall-clock time, and at one number of FLOPs, from the same runs.

While a cell trains, previews measure its samples against validation data (KID in PCA space); each knows what it had
cost. Between two such points quality is read off a straight line: over the logarithm of the cost, and of the distance
too where both are positive, so that a power law is met exactly. Recipes are compared at the largest cost that all of
them reached.

What it is not: a training of that length. A point before the end was measured before the learning rate fell, on the
average of the weights; a run planned for that cost would end a little better, which recipes that stop late feel most.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median_low
from typing import Literal

import numpy as np

from quintet.core.results import Compare, RecipeResult, SeedResult, Standing

Cost = Literal["wall_s", "flops"]

COSTS: dict[Cost, str] = {"wall_s": "seconds", "flops": "flops"}
"""Cost -> its name in the points of a curve."""

SHORT = 1.05
"""A run that ended at most this factor before the common cost stands with its last point: budgets end within 5 %."""

Curve = list[tuple[float, float]]  # (cost, distance), the cost rising


def at_equal(result: Compare, cost: Cost) -> list[Standing]:
    """Recipes at the largest cost that all reached, the best first, those without a value last.

    A seed that ended early sets no limit for the others, and has a value only as far as it went.
    """
    curves = {
        recipe.name: {seed.seed: found for seed in recipe.seeds if (found := curve(seed, cost))}
        for recipe in result.recipes
    }
    reaches = [reach(recipe, cost) for recipe in result.recipes]
    at = min((end for end in reaches if end is not None), default=None)
    if at is None:
        return []
    standings = [
        _standing(name, at, {seed: value_at(found, at) for seed, found in seeds.items()})
        for name, seeds in curves.items()
        if seeds
    ]
    return sorted(standings, key=lambda s: math.inf if s.value is None else s.value)


def reach(recipe: RecipeResult, cost: Cost) -> float | None:
    """How far a recipe's finished runs went (the lower median over seeds); None where none went to its end."""
    whole = [found[-1][0] for seed in recipe.seeds if not seed.reason and (found := curve(seed, cost))]
    return median_low(whole) if whole else None


def curve(seed: SeedResult, cost: Cost) -> Curve:
    """A finished cell's points that have a cost and a distance."""
    if seed.status != "done":
        return []
    name = COSTS[cost]
    return sorted((p[name], p["kid_pca"]) for p in seed.curve if p.get(name, 0.0) > 0 and "kid_pca" in p)


def value_at(found: Sequence[tuple[float, float]], at: float) -> float | None:
    """A curve's distance at some cost, None before its first point and beyond its end.

    Args:
        found: (cost, distance), the cost positive and rising.
        at: the cost.
    """
    x, y = np.array(found, np.float64).T
    if at < x[0] * (1 - 1e-9) or at > x[-1] * SHORT:
        return None
    right = min(int(np.searchsorted(x, at)), len(x) - 1)
    left = max(right - 1, 0)
    if at >= x[right] or x[right] == x[left]:
        return float(y[right])
    share = float(np.log(max(at, x[left]) / x[left]) / np.log(x[right] / x[left]))
    if min(y[left], y[right]) > 0:
        return float(y[left] ** (1 - share) * y[right] ** share)
    return float((1 - share) * y[left] + share * y[right])


def _standing(recipe: str, at: float, seeds: dict[int, float | None]) -> Standing:
    values = [value for value in seeds.values() if value is not None]
    if not values:
        return Standing(recipe=recipe, at=at, value=None, seeds=seeds)
    return Standing(
        recipe=recipe, at=at, value=float(np.median(values)), low=min(values), high=max(values), seeds=seeds
    )
