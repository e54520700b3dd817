"""Which recipes surely train less steadily than another: seeds are the units, as everywhere.

A seed's own score is the geometric mean of those parts of the stability score that one training has: whether it
finished, whether its model is free of alarms, how smooth and how unbroken it was. Two recipes are told apart by

* "established": six paired seeds or more, mean scores at least MARGIN apart, and exact tests at 5 %, Holm-corrected
  over all pairs of recipes. They are Fisher's of how many trainings had trouble and sign flips of the scores, each of
  which counts only where it points the way of the mean scores; of the two the smaller p is doubled (Bonferroni);
* "likely": mean scores at least MARGIN apart, three pairs or more, and every seed of the one above every seed of the
  other; with fewer than five pairs, which chance alone separates too often, by at least MARGIN.

Sources: Fisher 1935 (both tests), Holm 1979. How often these words are wrong: `benchmarks/stability_verdicts.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import combinations
from statistics import fmean

from scipy.stats import fisher_exact

from quintet.compare.stability import LEAST, hopeless, severe, smoothness, steadiness
from quintet.core.results import RecipeResult, SeedResult
from quintet.core.verdicts import LEVEL, PAIRS_FOR_A_TEST, Sure, holm, sign_flip

MARGIN = 0.1  # of mean scores; a smaller difference is of no use to anybody
PAIRS_FOR_A_GUESS, ENOUGH_PAIRS = 3, 5


def own_score(seed: SeedResult) -> float:
    """One training's steadiness in [LEAST, 1]."""
    finished = seed.status == "done" and not hopeless(seed)
    back = sum(event.get("what") == "rollback" for event in seed.stability.events)
    parts = [float(finished), steadiness(seed.stability.skipped_steps + 10 * back)]
    if seed.stability.watched:
        parts.append(smoothness(seed.stability.spikes, seed.stability.watched))
    if seed.status == "done":
        parts.append(float(not (seed.stability.collapsed or severe(seed))))
    return math.exp(fmean(math.log(max(LEAST, part)) for part in parts))


def troubled(seed: SeedResult) -> bool:
    """Whether a training failed, diverged, was given up, or left a model with an alarm."""
    return seed.status != "done" or hopeless(seed) or seed.stability.collapsed or severe(seed)


def behind(first: str, recipes: Sequence[RecipeResult]) -> dict[str, Sure]:
    """Recipes that surely train less steadily than the one named `first`, and how surely.

    Args:
        recipes: all that were compared, `first` among them.
    """
    ended = {r.name: {s.seed: s for s in r.seeds if s.status != "skipped"} for r in recipes}
    names = [name for name, seeds in ended.items() if seeds]
    pairs = list(combinations(names, 2))
    tested = [(pair, p) for pair in pairs if (p := _p(*(ended[name] for name in pair))) is not None]
    adjusted = dict(zip([pair for pair, _ in tested], holm([p for _, p in tested]), strict=True))
    found: dict[str, Sure] = {}
    for pair in pairs:
        if first not in pair:
            continue
        other = pair[0] if pair[1] == first else pair[1]
        ours, theirs = ([own_score(seed) for seed in ended[name].values()] for name in (first, other))
        if fmean(ours) - fmean(theirs) < MARGIN:
            continue
        if adjusted.get(pair, 1.0) < LEVEL:
            found[other] = "established"
        elif _apart(len(ended[first].keys() & ended[other].keys()), ours, theirs):
            found[other] = "likely"
    return found


def _apart(pairs: int, ours: Sequence[float], theirs: Sequence[float]) -> bool:
    """Whether every one of ours is above every one of theirs, and by how much where the pairs are few."""
    least = 0.0 if pairs >= ENOUGH_PAIRS else MARGIN
    return pairs >= PAIRS_FOR_A_GUESS and min(ours) - max(theirs) > least


def _p(a: dict[int, SeedResult], b: dict[int, SeedResult]) -> float | None:
    """Of "both train alike"; None with too few pairs. A test that points the other way than the means counts as 1."""
    both = sorted(a.keys() & b.keys())
    if len(both) < PAIRS_FOR_A_TEST:
        return None
    ahead = fmean(map(own_score, a.values())) - fmean(map(own_score, b.values()))
    (bad, calm), (bad_b, calm_b) = counts = [_counts(x.values()) for x in (a, b)]
    fewer = bad_b / (bad_b + calm_b) - bad / (bad + calm)
    differences = [own_score(a[seed]) - own_score(b[seed]) for seed in both]
    found = [
        float(fisher_exact(counts).pvalue) if fewer * ahead > 0 else 1.0,
        sign_flip(differences) if fmean(differences) * ahead > 0 else 1.0,
    ]
    return min(1.0, 2 * min(found))


def _counts(seeds: Iterable[SeedResult]) -> tuple[int, int]:
    """Trainings with trouble and without."""
    found = list(map(troubled, seeds))
    return sum(found), len(found) - sum(found)
