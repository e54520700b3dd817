"""How sure a difference between two recipes is.

In one space: "established" needs six paired seeds or more, an exact sign-flip test on their differences at 5 %,
Holm-corrected over what is compared. "Likely" needs two pairs, every seed of A better than every seed of B, disjoint
sample-level 95 % intervals, and a gap of the medians above the floor's standard deviation. Anything else is "too close
to call". A distance is taken in several spaces: a difference that is sure in one of them counts only if it is so in the
main one and no other reverses the order, else it is "mixed". A metric that failed its ladder takes no part.

`compare` is one comparison in one space, `settled` one in all spaces; both are for a pair that was named before
anything was measured. `leader` and `standings` look at all recipes and correct for it; `surpassed` is for one recipe
named before and the best of its rivals.

Sources: Fisher 1935 (randomisation test), Holm 1979, Westfall and Young 1993 (the largest of several statistics).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations, product
from statistics import median
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quintet.core.results import (
    BETTER,
    SPACES,
    Compare,
    Estimate,
    PairVerdict,
    RecipeResult,
    SeedResult,
    compared_by,
)
from quintet.core.rng import Rng

Word = Literal["established", "likely", "mixed", "too close to call"]
Sure = Literal["established", "likely", "too close to call"]
Way = float | Literal["low", "high"]
SURE = ("established", "likely")
PAIRS_FOR_A_TEST = 6
PAIRS_FOR_A_GUESS = 2  # one seed says nothing of how much seeds differ
MOST_ENUMERATED = 14
LEVEL = 0.05
COSTS = ("seconds_per_1000", "latency_s", "peak_bytes", "sequential_steps")  # lower is better
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


@dataclass(frozen=True)
class Contest:
    """Two recipes in one space, before the correction for several comparisons.

    Attributes:
        gap: difference of the medians, as a loss; positive where the first is better.
        mean: of the paired differences, likewise.
        pairs: seeds that both have.
        p: of the sign-flip test; None with fewer than six pairs.
        apart: whether every seed of the better one beats every seed of the other, and so on ("likely").
    """

    gap: float
    mean: float
    pairs: int
    p: float | None
    apart: bool

    def word(self, p: float | None) -> Sure:
        """How sure it is that the one with the better median is better; p: after the correction."""
        if p is not None and p < LEVEL and self.gap * self.mean > 0:
            return "established"
        return "likely" if self.apart else "too close to call"


def contest(
    a: RecipeResult, b: RecipeResult, metric: str, floor: Estimate | None = None, better: Way | None = None
) -> Contest:
    """Hold two recipes against each other in one metric and one space."""
    ours, theirs = scores(a, metric, better), scores(b, metric, better)
    if not ours or not theirs:
        return Contest(0.0, 0.0, 0, None, False)
    gap = median(s.value for s in theirs) - median(s.value for s in ours)
    differences = list(_differences(a, b, metric, better).values())
    p = sign_flip(differences) if len(differences) >= PAIRS_FOR_A_TEST else None
    first, second = (ours, theirs) if gap > 0 else (theirs, ours)
    apart = (
        len(differences) >= PAIRS_FOR_A_GUESS
        and max(s.value for s in first) < min(s.value for s in second)
        and max(s.high for s in first) < min(s.low for s in second)
        and abs(gap) > floor_sd(floor)
    )
    return Contest(gap, float(np.mean(differences)) if differences else 0.0, len(differences), p, apart)


def compare(
    a: RecipeResult, b: RecipeResult, metric: str, floor: Estimate | None = None, better: Way | None = None
) -> Verdict:
    """Whether A is better than B in one metric and one space, without correction for several comparisons."""
    found = contest(a, b, metric, floor, better)
    return Verdict(found.word(found.p) if found.gap > 0 else "too close to call", found.gap, found.pairs, found.p)


def used(result: Compare, metric: str) -> bool:
    """Whether a metric orders the known corruptions of these data; one without a ladder is trusted."""
    ladder = result.ladders.get(metric)
    return ladder is None or ladder.used


def spaces(result: Compare, metric: str, recipes: Sequence[RecipeResult], better: Way | None = None) -> list[str]:
    """The spaces of a distance that are used and that all recipes have, the main one first; another metric itself."""
    known = [space.replace("kid", metric) for space in SPACES] if metric in ("kid", "fd") else [metric]
    known = [name for name in known if name == metric or name in BETTER]
    return [name for name in known if used(result, name) and all(scores(r, name, better) for r in recipes)]


def settled(result: Compare, a: RecipeResult, b: RecipeResult, metric: str, better: Way | None = None) -> Verdict:
    """Whether A is better than B by all spaces; for a pair that was named before anything was measured."""
    names = spaces(result, metric, (a, b), better)
    found = [contest(a, b, name, result.floor.get(name), better) for name in names]
    if not found:
        return Verdict("too close to call", 0.0, 0, None)
    main = found[0]
    return Verdict(_agreed(found, [c.p for c in found]), main.gap, main.pairs, main.p)


class Leader(NamedTuple):
    """The recipe that ranks first.

    Attributes:
        word: how sure it is that it beats all its rivals.
        rival: the one that is least surely beaten, of several the best; None without others.
        alone: recipes that nothing can be said of, since they and the first have too few seeds in common.
    """

    recipe: RecipeResult
    word: Word
    rival: RecipeResult | None = None
    alone: tuple[RecipeResult, ...] = ()


def leader(
    result: Compare, metric: str, among: Sequence[RecipeResult] | None = None, better: Way | None = None
) -> Leader | None:
    """The recipe that ranks first and how sure it is that it beats all others in all spaces.

    A recipe of one scored seed neither leads nor takes part where others have more.

    Args:
        among: recipes to choose from, by default all that finished.
    Returns: None where no recipe has the metric, or where it is not used.
    """
    have = [r for r in (result.recipes if among is None else among) if r.status == "done" and scores(r, metric, better)]
    several = [r for r in have if len(scores(r, metric, better)) >= PAIRS_FOR_A_GUESS] or have
    names = spaces(result, metric, several, better) if several else []
    if not names:
        return None
    first, *others = ranked(several, names[0], better)
    rivals = [r for r in others if _shared(first, r, names[0], better) >= PAIRS_FOR_A_GUESS] or others
    named = {r.name for r in (first, *rivals)}
    alone = tuple(r for r in have if r.name not in named)
    if not rivals:
        return Leader(first, "too close to call", alone=alone)
    table = [[contest(first, rival, name, result.floor.get(name), better) for name in names] for rival in rivals]
    corrected = [_holm([row[k].p for row in table]) for k in range(len(names))]
    words = [_agreed(row, [p[i] for p in corrected]) for i, row in enumerate(table)]
    order: tuple[Word, ...] = ("too close to call", "mixed", "likely", "established")
    least = min(words, key=order.index)
    return Leader(first, least, rivals[words.index(least)], alone)


def surpassed(
    result: Compare, recipe: RecipeResult, rivals: Sequence[RecipeResult], metric: str, better: Way | None = None
) -> bool:
    """Whether some rival is surely better than a recipe that was named before anything was measured.

    It must be so by `settled`, and with six pairs or more also by sign flips of all rivals together, at 5 %: else the
    more rivals, the more often one would seem better by chance.
    """
    found = {}
    for rival in rivals:
        names = spaces(result, metric, (recipe, rival), better)
        found[rival.name] = _differences(rival, recipe, names[0], better) if names else {}
    tested = {name: column for name, column in found.items() if len(column) >= PAIRS_FOR_A_TEST}
    joint = dict(zip(tested, joint_sign_flip(list(tested.values())), strict=True))
    return any(
        settled(result, rival, recipe, metric, better).word in SURE and joint.get(rival.name, 0.0) < LEVEL
        for rival in rivals
    )


def standings(result: Compare, metric: str, better: Way | None = None) -> list[PairVerdict]:
    """All pairs of recipes that have a metric or cost, the better one by the main space first, Holm over all pairs."""
    have = [r for r in result.recipes if r.status == "done" and scores(r, metric, better)]
    names = spaces(result, metric, have, better) if have else []
    if not names:
        return []
    pairs = list(combinations(ranked(have, names[0], better), 2))
    table = [[contest(a, b, name, result.floor.get(name), better) for name in names] for a, b in pairs]
    corrected = [_holm([row[k].p for row in table]) for k in range(len(names))]
    found = []
    for i, ((a, b), row) in enumerate(zip(pairs, table, strict=True)):
        p = [column[i] for column in corrected]
        words = {n: "behind" if c.gap < 0 else c.word(q) for n, c, q in zip(names, row, p, strict=True)}
        found.append(
            PairVerdict(
                better=a.name, worse=b.name, word=_agreed(row, p), gap=row[0].gap, pairs=row[0].pairs, p=row[0].p,
                adjusted=p[0], spaces=words,
            )
        )  # fmt: skip
    return found


def _differences(a: RecipeResult, b: RecipeResult, metric: str, better: Way | None) -> dict[int, float]:
    """How much less A's loss is, on every seed that both have."""
    theirs = {s.seed: s.value for s in scores(b, metric, better)}
    return {s.seed: theirs[s.seed] - s.value for s in scores(a, metric, better) if s.seed in theirs}


def _shared(a: RecipeResult, b: RecipeResult, metric: str, better: Way | None) -> int:
    return len(_differences(a, b, metric, better))


def pairs_needed(comparisons: int) -> int:
    """The smallest number of paired seeds with which so many comparisons can all be established after Holm."""
    return next(n for n in range(PAIRS_FOR_A_TEST, 64) if comparisons * 2.0 ** (1 - n) < LEVEL)


def _agreed(found: Sequence[Contest], p: Sequence[float | None]) -> Word:
    """The word on the first recipe being better, from all spaces, the main one first."""
    words = [c.word(q) for c, q in zip(found, p, strict=True)]
    wins = [c.gap > 0 and word != "too close to call" for c, word in zip(found, words, strict=True)]
    if wins[0] and all(c.gap >= 0 for c in found):
        return words[0]
    losses = [c.gap < 0 and word != "too close to call" for c, word in zip(found, words, strict=True)]
    if losses[0] and all(c.gap <= 0 for c in found):  # the other one's win
        return "too close to call"
    return "mixed" if any(wins) or any(losses) else "too close to call"


def _holm(p: Sequence[float | None]) -> list[float | None]:
    """Holm over the tests that were made."""
    adjusted = iter(holm([value for value in p if value is not None]))
    return [None if value is None else next(adjusted) for value in p]


def sign_flip(differences: Sequence[float]) -> float:
    """Two-sided p of "the differences are symmetric about zero": exact up to 14 pairs, then by 2^14 random flips."""
    d = np.asarray(differences, dtype=np.float64)
    return _share(np.abs(_signs(len(d)) @ d) >= abs(d.sum()) * (1 - 1e-12), len(d))


def joint_sign_flip(columns: Sequence[Mapping[int, float]]) -> list[float]:
    """One-sided p of every column's sum being above zero, where all columns are looked at (Westfall and Young 1993).

    The signs of a seed are flipped in all columns at once. A column's sum is divided by the root of its sum of squares,
    which no flip changes; p is the share of flips in which the largest of all columns reaches it. Of differences that
    are symmetric about zero together some p is below 5 % in at most 5 % of cases.

    Args:
        columns: differences by seed.
    """
    seeds = sorted({seed for column in columns for seed in column})
    d = np.array([[column.get(seed, 0.0) for column in columns] for seed in seeds]).reshape(len(seeds), len(columns))
    norms = np.sqrt((d**2).sum(0))
    d = d / np.where(norms > 0, norms, 1.0)
    if not columns:
        return []
    largest = (_signs(len(seeds)) @ d).max(axis=1)
    return [_share(largest >= total - 1e-12, len(seeds)) for total in d.sum(0)]


@cache
def _signs(n: int) -> NDArray[np.float64]:
    """Ways to give n numbers a sign: all (2^n, n) up to 14 numbers, then 2^14 random ones."""
    if n <= MOST_ENUMERATED:
        return np.array(list(product((-1.0, 1.0), repeat=n)))
    return Rng(0, "sign-flip").numpy().choice((-1.0, 1.0), size=(2**MOST_ENUMERATED, n))


def _share(reached: NDArray[np.bool_], n: int) -> float:
    """Share of the ways of `_signs` that reach what was seen, which counts as one more where they are random."""
    return float(reached.mean()) if n <= MOST_ENUMERATED else float((reached.sum() + 1) / (len(reached) + 1))


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
        "latency_s": seed.sampling.latency_s if seed.sampling else None,
        "sequential_steps": seed.sampling.sequential_steps if seed.sampling else None,
        "peak_bytes": seed.ledger.peak_bytes if seed.ledger else None,
    }
    if metric in costs:
        value = costs[metric]
        return None if value is None else Estimate(value=float(value), low=float(value), high=float(value))
    return seed.metrics.get(compared_by(metric, seed.metrics))


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
