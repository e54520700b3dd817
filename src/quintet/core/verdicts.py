"""How sure a difference between two recipes is.

With two to five paired seeds a difference is at most "likely", and only if every seed of A beats every seed of B,
the sample-level 95 % intervals are disjoint, and the gap exceeds the floor's standard deviation. "Established" needs
six pairs or more: an exact sign-flip test on the paired differences, Holm-corrected over the families compared.
Anything else is "too close to call".

Sources: Fisher 1935 (randomisation test), Holm 1979.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import median
from typing import Literal

import numpy as np

from quintet.core.results import BETTER, Estimate, RecipeResult, SeedResult

Word = Literal["established", "likely", "too close to call"]
Way = float | Literal["low", "high"]
PAIRS_FOR_A_TEST = 6
PAIRS_FOR_A_GUESS = 2  # one seed says nothing of how much seeds differ
MOST_ENUMERATED = 14
LEVEL = 0.05
COSTS = ("seconds_per_1000", "peak_bytes", "sequential_steps")  # lower is better
Z95 = 1.959964


@dataclass(frozen=True)
class Score:
    """A seed's value of a metric as a loss: lower is better, with its sample-level interval."""

    seed: int
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Verdict:
    """A held against B.

    Attributes:
        word: how sure it is that A is better.
        gap: difference of the medians, as a loss (positive: A is better).
        pairs: seeds that both have.
        p: of the sign-flip test, before Holm; None with fewer than six pairs.
    """

    word: Word
    gap: float
    pairs: int
    p: float | None


def scores(recipe: RecipeResult, metric: str, better: Way | None = None) -> list[Score]:
    """A recipe's finished seeds as losses in one metric or cost; `better` overrides the metric's known direction."""
    way = better if better is not None else "low" if metric in COSTS else BETTER[metric]
    found = []
    for seed in recipe.seeds:
        estimate = _estimate(seed, metric)
        if seed.status == "done" and estimate is not None and estimate.value is not None:
            found.append(_loss(seed.seed, way, estimate))
    return found


def middle(recipe: RecipeResult, metric: str) -> float | None:
    """Median over seeds of a metric or cost, in its own unit."""
    values = [
        e.value for s in recipe.seeds if s.status == "done" and (e := _estimate(s, metric)) and e.value is not None
    ]
    return median(values) if values else None


def ranked(recipes: Sequence[RecipeResult], metric: str, better: Way | None = None) -> list[RecipeResult]:
    """Recipes that have the metric, best median first."""
    have = [(median(s.value for s in found), recipe) for recipe in recipes if (found := scores(recipe, metric, better))]
    return [recipe for _, recipe in sorted(have, key=lambda pair: pair[0])]


def compare(
    a: RecipeResult, b: RecipeResult, metric: str, floor: Estimate | None = None, better: Way | None = None
) -> Verdict:
    """Whether A is better than B in one metric, without correction for several comparisons."""
    ours, theirs = scores(a, metric, better), scores(b, metric, better)
    if not ours or not theirs:
        return Verdict("too close to call", 0.0, 0, None)
    gap = median(s.value for s in theirs) - median(s.value for s in ours)
    paired = [(x.value, y.value) for x in ours for y in theirs if x.seed == y.seed]
    if len(paired) >= PAIRS_FOR_A_TEST:
        p = sign_flip([y - x for x, y in paired])
        sure = p < LEVEL and gap > 0
        return Verdict("established" if sure else "too close to call", gap, len(paired), p)
    apart = max(s.value for s in ours) < min(s.value for s in theirs)
    disjoint = max(s.high for s in ours) < min(s.low for s in theirs)
    likely = len(paired) >= PAIRS_FOR_A_GUESS and apart and disjoint and gap > floor_sd(floor)
    return Verdict("likely" if likely else "too close to call", gap, len(paired), None)


def best(
    recipes: Sequence[RecipeResult], metric: str, floor: Estimate | None = None, better: Way | None = None
) -> tuple[RecipeResult, Word] | None:
    """The recipe that ranks first and how sure it is that it beats all others; None if none has the metric."""
    order = ranked(recipes, metric, better)
    if not order:
        return None
    first, others = order[0], order[1:]
    if not others:
        return first, "too close to call"
    verdicts = [compare(first, other, metric, floor, better) for other in others]
    tests = [v.p for v in verdicts if v.p is not None]
    if len(tests) == len(verdicts):
        sure = max(holm(tests)) < LEVEL and all(v.gap > 0 for v in verdicts)
        return first, "established" if sure else "too close to call"
    sure = all(v.word in ("likely", "established") for v in verdicts)
    return first, "likely" if sure else "too close to call"


def sign_flip(differences: Sequence[float]) -> float:
    """Two-sided p of "the differences are symmetric about zero": exact up to 14 pairs, then by 2^14 random flips."""
    d = np.asarray(differences, dtype=np.float64)
    if len(d) <= MOST_ENUMERATED:
        signs = np.array(list(product((-1.0, 1.0), repeat=len(d))))
        exact = True
    else:
        signs = np.random.default_rng(0).choice((-1.0, 1.0), size=(2**MOST_ENUMERATED, len(d)))
        exact = False
    reached = np.abs(signs @ d) >= abs(d.sum()) * (1 - 1e-12)
    return float(reached.mean()) if exact else float((reached.sum() + 1) / (len(signs) + 1))


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p-values, in the order given (Holm 1979)."""
    order = np.argsort(p)
    adjusted, running = np.zeros(len(p)), 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = running
    return [float(value) for value in adjusted]


def floor_sd(floor: Estimate | None) -> float:
    """Standard deviation of the real-versus-real value, 0 where there is none."""
    if floor is None or floor.low is None or floor.high is None:
        return 0.0
    return (floor.high - floor.low) / (2 * Z95)


def _estimate(seed: SeedResult, metric: str) -> Estimate | None:
    costs: Mapping[str, float | None] = {
        "seconds_per_1000": seed.sampling.seconds_per_1000 if seed.sampling else None,
        "sequential_steps": seed.sampling.sequential_steps if seed.sampling else None,
        "peak_bytes": seed.ledger.peak_bytes if seed.ledger else None,
    }
    if metric in costs:
        value = costs[metric]
        return None if value is None else Estimate(value=float(value), low=float(value), high=float(value))
    return seed.metrics.get(metric)


def _loss(seed: int, way: Way, estimate: Estimate) -> Score:
    """Lower is better: the value, its negative, or its distance to the ideal."""
    assert estimate.value is not None
    value = estimate.value
    low = value if estimate.low is None else estimate.low
    high = value if estimate.high is None else estimate.high
    if way == "low":
        return Score(seed, value, low, high)
    if way == "high":
        return Score(seed, -value, -high, -low)
    ideal = float(way)
    ends = (abs(low - ideal), abs(high - ideal))
    return Score(seed, abs(value - ideal), 0.0 if low <= ideal <= high else min(ends), max(ends))
