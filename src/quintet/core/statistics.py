"""Statistics of few seeds: resampled medians and ranks, exact intervals of shares, agreement of orders, Pareto fronts.

Functions of plain numbers, which know neither recipes nor metrics. The bootstrap has two levels: seeds are drawn with
replacement, and each drawn value gets a new error of its own sampling. Its intervals are percentiles: BCa would need
the jackknife of a median, which takes two values whatever the number of seeds.

Sources: Clopper and Pearson 1934; Kendall 1945 (tau-b); Efron and Tibshirani 1993, ch. 8 and 13 (bootstrap of several
levels, percentiles).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

Array = NDArray[np.float64]
T = TypeVar("T")

DRAWS = 2000
WINDOW = 25  # values before one, that say what was to be expected of it
SPIKE = 8.0  # robust standard deviations above the running median


def exact_interval(k: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Clopper and Pearson's interval of a share of which k of n were seen; (0, 1) where n is 0."""
    if not 0 <= k <= n:
        raise ValueError(f"expected 0 <= k <= n, got k {k}, n {n}")
    tail = (1 - level) / 2
    low = 0.0 if k == 0 else float(betaincinv(k, n - k + 1, tail))
    high = 1.0 if k == n else float(betaincinv(k + 1, n - k, 1 - tail))
    return low, high


def resampled_medians(values: Array, deviations: Array, uniform: Array, normal: Array) -> Array:
    """Medians over seeds of a bootstrap of two levels.

    A seed that is missing counts for nothing where it is drawn; where none of those drawn is there, one that is does.

    Args:
        values, deviations: (S,), each seed's value (NaN if missing), and the standard deviation of its sampling error.
        uniform: (draws, S) in [0, 1); recipes that share it draw the same seeds together, as they are paired.
        normal: (draws, S).
    Returns: (draws,).
    """
    place = uniform * len(values)
    picked = place.astype(np.int64)  # (draws, S)
    have = np.flatnonzero(~np.isnan(values))
    none = ~np.isin(picked, have).any(axis=1)
    picked[none, 0] = have[(place[none, 0] % 1 * len(have)).astype(np.int64)]
    drawn = values[picked] + deviations[picked] * normal
    return np.asarray(np.nanmedian(drawn, axis=1))


def median_interval(
    values: Sequence[float], deviations: Sequence[float], rng: np.random.Generator, level: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of the median over seeds; see `resampled_medians`."""
    shape = (DRAWS, len(values))
    drawn = resampled_medians(np.array(values), np.array(deviations), rng.random(shape), rng.standard_normal(shape))
    low, high = np.quantile(drawn, ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)


def resampled_ranks(
    losses: Sequence[Sequence[float]], deviations: Sequence[Sequence[float]], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Ranks of medians, 1 the smallest, in a bootstrap of seeds and samples.

    Args:
        losses, deviations: (K, S), a row a recipe and a column a seed number; NaN where a recipe lacks the seed.
    Returns: (draws, K).
    """
    uniform = rng.random((DRAWS, len(losses[0])))
    drawn = [
        resampled_medians(np.array(row), np.array(error), uniform, rng.standard_normal(uniform.shape))
        for row, error in zip(losses, deviations, strict=True)
    ]
    order = np.argsort(np.stack(drawn, 1), axis=1, kind="stable")
    return np.argsort(order, axis=1) + 1


def kendall_tau(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Kendall's tau-b of two rows of numbers: 1 the same order, -1 the reverse; None where one is constant."""
    i, j = np.triu_indices(len(a), 1)
    first, second = (np.sign(x[i] - x[j]) for x in (np.asarray(a, np.float64), np.asarray(b, np.float64)))
    untied = np.sqrt(float(np.abs(first).sum()) * float(np.abs(second).sum()))
    return None if untied == 0 else float((first * second).sum() / untied)


def pareto_front(items: Sequence[T], dominates: Callable[[T, T], bool]) -> list[T]:
    """The items that no other one dominates, in their order."""
    return [item for item in items if not any(dominates(other, item) for other in items if other is not item)]


def spikes(values: Sequence[float], window: int = WINDOW, limit: float = SPIKE) -> tuple[int, int]:
    """How often a series jumps up: values more than `limit` robust deviations above the median of those before them.

    The deviation is 1.4826 times the median distance from that median, within the window, and at least a thousandth of
    the median's size, so that a series that stands still has no spikes of rounding.

    Args:
        values: in order of time, finite.
        window: how many values before each.
    Returns: spikes, and how many values could be judged (none before a window is full).
    """
    x = np.asarray(values, np.float64)
    if len(x) <= window:
        return 0, 0
    before = np.lib.stride_tricks.sliding_window_view(x, window)[:-1]  # (n - window, window)
    middle = np.median(before, axis=1)
    deviation = 1.4826 * np.median(np.abs(before - middle[:, None]), axis=1)
    deviation = np.maximum(deviation, 1e-3 * np.abs(middle) + 1e-12)
    return int((x[window:] > middle + limit * deviation).sum()), len(x) - window
