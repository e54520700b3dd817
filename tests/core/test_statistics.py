"""Statistics of few seeds against closed forms, enumeration and other implementations."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from quintet.core.statistics import (
    SPIKE,
    WINDOW,
    exact_interval,
    kendall_tau,
    median_interval,
    pareto_front,
    resampled_medians,
    resampled_ranks,
    spikes,
)


@pytest.mark.parametrize(("k", "n"), [(0, 1), (0, 6), (3, 6), (6, 6), (1, 40), (17, 23)])
def test_exact_interval_against_scipy(k: int, n: int) -> None:
    theirs = stats.binomtest(k, n).proportion_ci(0.95, method="exact")
    assert exact_interval(k, n) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_exact_interval_at_its_ends() -> None:
    assert exact_interval(0, 0) == (0.0, 1.0)
    assert exact_interval(0, 10)[1] == pytest.approx(1 - 0.025**0.1)  # (1 - p)^10 = 0.025
    assert exact_interval(10, 10)[0] == pytest.approx(0.025**0.1)
    with pytest.raises(ValueError, match="k 3, n 2"):
        exact_interval(3, 2)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.8])
def test_exact_interval_covers(share: float) -> None:
    """For every n the coverage is at least 95 %, by summing over all outcomes."""
    for n in (2, 5, 12, 40):
        covered = sum(
            stats.binom.pmf(k, n, share)
            for k in range(n + 1)
            if exact_interval(k, n)[0] <= share <= exact_interval(k, n)[1]
        )
        assert covered >= 0.95


def test_kendall_tau_against_scipy() -> None:
    rng = np.random.default_rng()
    for _ in range(50):
        a, b = rng.integers(0, 5, 7), rng.integers(0, 5, 7)  # ties occur
        theirs = stats.kendalltau(a, b).statistic
        ours = kendall_tau(a.tolist(), b.tolist())
        assert ours is None if np.isnan(theirs) else ours == pytest.approx(theirs)
    assert kendall_tau([1, 2, 3], [1, 2, 3]) == 1
    assert kendall_tau([1, 2, 3], [3, 2, 1]) == -1
    assert kendall_tau([1], [1]) is None


def test_medians_are_those_of_all_resamples() -> None:
    """With no errors of sampling the draws follow the distribution over all S^S resamples."""
    rng = np.random.default_rng()
    values = rng.normal(size=4)
    shape = (40_000, 4)
    drawn = resampled_medians(values, np.zeros(4), rng.random(shape), rng.standard_normal(shape))
    every = np.array([np.median(pick) for pick in itertools.product(values, repeat=4)])
    for cut in np.quantile(every, (0.1, 0.5, 0.9)):
        share = (every <= cut + 1e-9).mean()
        assert abs((drawn <= cut + 1e-9).mean() - share) < 5 * np.sqrt(0.25 / len(drawn))


def test_errors_of_sampling_add_their_variance() -> None:
    rng = np.random.default_rng()
    shape = (40_000, 1)
    drawn = resampled_medians(np.array([2.0]), np.array([0.3]), rng.random(shape), rng.standard_normal(shape))
    assert drawn.mean() == pytest.approx(2.0, abs=0.01)
    assert drawn.std() == pytest.approx(0.3, rel=0.03)


def test_two_seeds_span_their_range_and_the_errors_widen_it() -> None:
    narrow = median_interval([1.0, 2.0], [0.0, 0.0], np.random.default_rng())
    assert narrow == (1.0, 2.0)
    wide = median_interval([1.0, 2.0], [0.1, 0.1], np.random.default_rng())
    assert wide[0] < 1.0
    assert wide[1] > 2.0


def test_the_interval_covers_the_median_of_many_seeds() -> None:
    """Twelve seeds with errors of sampling: about 95 % of the intervals hold the true median."""
    rng = np.random.default_rng(4)
    held = 0
    for _ in range(200):
        low, high = median_interval(rng.normal(0, np.hypot(1, 0.3), 12).tolist(), [0.3] * 12, rng)
        held += low <= 0 <= high
    assert held >= stats.binom.ppf(0.001, 200, 0.93)


def test_ranks() -> None:
    rng = np.random.default_rng()
    drawn = resampled_ranks([[3.0, 3.1], [1.0, 1.1], [2.0, 2.1]], [[0.0] * 2] * 3, rng)
    assert (drawn == [3, 1, 2]).all()
    same = resampled_ranks([[0.0] * 6, [0.0] * 6], [[1.0] * 6] * 2, rng)
    assert 0.4 < (same[:, 0] == 1).mean() < 0.6
    assert set(same.sum(1)) == {3}


def test_paired_seeds_are_drawn_together() -> None:
    """A is better by a little on every seed; seeds differ by much more, but alike: the rank is sure."""
    seeds = np.random.default_rng().normal(0, 10, 7)
    drawn = resampled_ranks([seeds.tolist(), (seeds + 0.01).tolist()], [[0.0] * 7] * 2, np.random.default_rng())
    assert (drawn[:, 0] == 1).all()


def test_a_seed_that_one_lacks_leaves_the_others_paired() -> None:
    """B is A plus a little, without A's best seed: it is behind on whatever seeds are drawn."""
    a = [-10.0, 50.0, 40.0, 30.0, 20.0, 10.0]
    b = [np.nan, *(value + 0.01 for value in a[1:])]
    drawn = resampled_ranks([a, b], [[0.0] * 6] * 2, np.random.default_rng())
    assert (drawn == [1, 2]).all()


def test_medians_where_a_seed_is_missing() -> None:
    """One of two seeds: it counts wherever it is drawn, and where it is not."""
    rng = np.random.default_rng()
    shape = (500, 2)
    drawn = resampled_medians(np.array([np.nan, 2.0]), np.zeros(2), rng.random(shape), rng.standard_normal(shape))
    assert (drawn == 2.0).all()
    three = resampled_medians(np.array([np.nan, 1.0, 2.0]), np.zeros(3), rng.random((20_000, 3)), np.zeros((20_000, 3)))
    assert np.mean(three) == pytest.approx(1.5, abs=0.02), "the two that are there count alike"


def test_front() -> None:
    points = [(1, 5), (2, 2), (5, 1), (3, 3), (2, 6)]
    found = pareto_front(points, lambda a, b: a[0] < b[0] and a[1] < b[1])
    assert found == [(1, 5), (2, 2), (5, 1)]
    assert pareto_front(points, lambda a, b: False) == points


def test_spikes_are_jumps_and_nothing_else() -> None:
    rng = np.random.default_rng(1)
    noise = rng.normal(1.0, 0.1, 400)
    assert spikes(noise.tolist()) == (0, 400 - WINDOW)
    falling = 5 * np.exp(-np.arange(400) / 60) + 0.02 * rng.normal(size=400)
    assert spikes(falling.tolist())[0] == 0
    jumps = noise.copy()
    jumps[[100, 250, 251]] += 0.1 * 4 * SPIKE
    assert spikes(jumps.tolist())[0] == 3
    assert spikes((-jumps).tolist())[0] == 0  # a fall is no trouble
    assert spikes([1.0] * 100 + [1.0005]) == (0, 101 - WINDOW)  # a series that stands still
    assert spikes([1.0] * WINDOW) == (0, 0)
