"""Where recipes stand beside each other: verdicts on pairs, firmness of ranks, agreement of spaces, Pareto fronts.

No single winner: a recipe leaves a front only where another one is surely better in both of its quantities.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np

from quintet.core.results import Agreement, Compare, PairVerdict, RankShare, RecipeResult
from quintet.core.rng import Rng
from quintet.core.statistics import kendall_tau, pareto_front, resampled_ranks
from quintet.core.verdicts import (
    PAIRS_FOR_A_GUESS,
    SURE,
    Z95,
    floor_sd,
    middle,
    ranked,
    scores,
    spaces,
    standings,
    used,
)

COMPARED = ("kid", "coverage", "bits_per_dim", "seconds_per_1000", "peak_bytes")


def standing(result: Compare) -> dict[str, Any]:
    """The fields `verdicts`, `ranks`, `agreement` and `fronts` of a comparison whose recipes are summarised."""
    verdicts = {metric: pairs for metric in COMPARED if (pairs := standings(result, metric))}
    ranks = {metric: shares for metric in COMPARED if (shares := rank_shares(result, metric))}
    return {"verdicts": verdicts, "ranks": ranks, "agreement": agreement(result), "fronts": fronts(result, verdicts)}


def rank_shares(result: Compare, metric: str) -> list[RankShare]:
    """How firm each rank by the median is, best first; seeds are drawn together, as they are paired."""
    names = spaces(result, metric, [r for r in _done(result) if scores(r, metric)])
    if not names:
        return []
    order = ranked(_done(result), names[0])
    if len(order) < 2:
        return []
    found = [{s.seed: s for s in scores(recipe, names[0])} for recipe in order]
    seeds = sorted({seed for row in found for seed in row})
    drawn = resampled_ranks(
        [[row[seed].value if seed in row else math.nan for seed in seeds] for row in found],
        [[(row[seed].high - row[seed].low) / (2 * Z95) if seed in row else 0.0 for seed in seeds] for row in found],
        Rng(0, "ranks", metric).numpy(),
    )
    low, high = np.quantile(drawn, (0.025, 0.975), axis=0, method="inverted_cdf")
    return [
        RankShare(
            recipe=recipe.name, rank=i + 1, kept=float((drawn[:, i] == i + 1).mean()),
            expected=float(drawn[:, i].mean()), low=int(low[i]), high=int(high[i]),
        )
        for i, recipe in enumerate(order)
    ]  # fmt: skip


def agreement(result: Compare) -> Agreement | None:
    """The order of the recipes by their distance in each space, and how far every two orders agree; None below two."""
    recipes = [r for r in _done(result) if scores(r, "kid")]
    names = spaces(result, "kid", recipes) if len(recipes) > 1 else []
    if len(names) < 2:
        return None
    medians = {name: [middle(recipe, name) or 0.0 for recipe in recipes] for name in names}
    return Agreement(
        spaces=names,
        orders={name: [recipe.name for recipe in ranked(recipes, name)] for name in names},
        tau=[[kendall_tau(medians[a], medians[b]) for b in names] for a in names],
    )


def fronts(result: Compare, verdicts: Mapping[str, Sequence[PairVerdict]]) -> dict[str, list[str]]:
    """Recipes that nothing surely beats in quality and a second quantity; a front of recipes that have both."""
    found = {}
    quality = _sure(verdicts.get("kid", ()))
    have = _named(verdicts.get("kid", ()))
    for front, metric in (("sampling", "seconds_per_1000"), ("likelihood", "bits_per_dim")):
        other = _sure(verdicts.get(metric, ()))
        both = [name for name in have if name in _named(verdicts.get(metric, ()))]
        if len(both) > 1:
            found[front] = pareto_front(both, lambda a, b, other=other: (a, b) in quality and (a, b) in other)  # type: ignore[misc]
    learners = _learners(result)
    if learners:
        found["training"] = learners
    return found


def _done(result: Compare) -> list[RecipeResult]:
    return [recipe for recipe in result.recipes if recipe.status == "done"]


def _named(verdicts: Sequence[PairVerdict]) -> list[str]:
    """The recipes of some verdicts, in their order."""
    return list(dict.fromkeys(name for v in verdicts for name in (v.better, v.worse)))


def _sure(verdicts: Sequence[PairVerdict]) -> set[tuple[str, str]]:
    """(better, worse) of the pairs whose difference is at least likely."""
    return {(v.better, v.worse) for v in verdicts if v.word in SURE}


def _learners(result: Compare) -> list[str]:
    """Recipes that at some moment of training none surely beats, by the distance in PCA space of each seed's previews.

    Surely: at least two seeds, each of one below each of the other, and the medians apart by more than the floor's
    standard deviation.
    """
    if not used(result, "kid_pca"):
        return []
    curves = {r.name: found for r in _done(result) if len(found := _curves(r)) >= PAIRS_FOR_A_GUESS}
    if len(curves) < 2:
        return []
    spread = floor_sd(result.floor.get("kid_pca"))
    kept: set[str] = set()
    for moment in sorted({seconds for found in curves.values() for curve in found for seconds, _ in curve}):
        now = {name: values for name, found in curves.items() if (values := _at(found, moment))}
        if len(now) == len(curves):  # before, some have nothing to show yet
            kept |= set(pareto_front(list(now), _beats(now, spread)))
    return [name for name in curves if name in kept]


def _beats(now: Mapping[str, Sequence[float]], spread: float) -> Callable[[str, str], bool]:
    def beats(a: str, b: str) -> bool:
        return max(now[a]) < min(now[b]) and median(now[b]) - median(now[a]) > spread

    return beats


def _curves(recipe: RecipeResult) -> list[list[tuple[float, float]]]:
    """(seconds, distance) of each finished seed's previews, in order of time."""
    curves = [
        sorted((p["seconds"], p["kid_pca"]) for p in seed.curve if "kid_pca" in p and "seconds" in p)
        for seed in recipe.seeds
        if seed.status == "done"
    ]
    return [curve for curve in curves if curve]


def _at(curves: Sequence[Sequence[tuple[float, float]]], moment: float) -> list[float]:
    """Each seed's newest value at a moment; nothing before all have one."""
    values = [[value for seconds, value in curve if seconds <= moment] for curve in curves]
    return [found[-1] for found in values] if all(values) else []
