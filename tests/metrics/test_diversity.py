"""The Vendi score: closed forms, its definition, its interval on fresh draws, and what it must see."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.linalg import eigvalsh
from scipy.stats import binomtest, entropy

from quintet.metrics.distances import GaussianKernels, Polynomial, real_kernels
from quintet.metrics.diversity import vendi_ratio, vendi_score

NARROW = GaussianKernels((1e-3,))


def test_groups_of_equal_items_count_as_so_many() -> None:
    """Items of one group are alike, of two groups unrelated: the eigenvalues are the groups' shares."""
    counts = np.array([40, 10, 30, 20])
    x = np.repeat(np.arange(4.0), counts)[:, None]
    assert vendi_score(x, NARROW).entropy == pytest.approx(entropy(counts / 100), abs=1e-9)
    assert vendi_score(np.ones((30, 2)), NARROW).score == pytest.approx(1)
    assert vendi_score(np.arange(50.0)[:, None], NARROW).score == pytest.approx(50)


def test_definition() -> None:
    x, kernel = np.random.default_rng().standard_normal((80, 4)), GaussianKernels((0.5, 2.0))
    values = eigvalsh(kernel(x, x) / 80)
    values = values[values > 0]
    found = vendi_score(x, kernel)
    assert found.entropy == pytest.approx(-(values * np.log(values)).sum(), rel=1e-9)


@pytest.mark.parametrize("dims", [2, 6])
def test_standard_error_is_the_spread_of_fresh_draws(dims: int) -> None:
    g = np.random.default_rng(21)
    kernel = real_kernels(g.standard_normal((200, dims)))
    found = [vendi_score(g.standard_normal((100, dims)), kernel) for _ in range(100)]
    spread = np.std([f.entropy for f in found], ddof=1)
    assert np.sqrt(np.mean([f.se**2 for f in found])) == pytest.approx(spread, rel=0.3)


def test_interval_of_honest_samples_covers_one() -> None:
    g = np.random.default_rng(22)
    kernel = real_kernels(g.standard_normal((300, 3)))
    found = [vendi_ratio(g.standard_normal((120, 3)), g.standard_normal((120, 3)), kernel) for _ in range(100)]
    covered = sum(f.low <= 1 <= f.high for f in found)  # type: ignore[operator]
    assert binomtest(covered, 100, 0.95, alternative="less").pvalue > 1e-3
    assert np.median([f.value for f in found]) == pytest.approx(1, abs=0.03)


def test_collapse_is_below_one_and_noise_above() -> None:
    g = np.random.default_rng(23)
    centres = 6 * g.standard_normal((10, 5))

    def draw(modes: int) -> np.ndarray:
        return centres[g.integers(modes, size=300)] + 0.3 * g.standard_normal((300, 5))

    real, kernel = draw(10), real_kernels(draw(10))
    dropped = vendi_ratio(draw(5), real, kernel)
    assert dropped.high is not None
    assert dropped.high < 0.9
    few = np.repeat(draw(10)[:30], 10, axis=0)
    same = vendi_ratio(few, real, kernel)
    assert same.high is not None
    assert same.high < 0.9
    noise = vendi_ratio(real + 3 * g.standard_normal(real.shape), real, kernel)
    assert noise.low is not None
    assert noise.low > 1.05


def test_what_it_refuses() -> None:
    x = np.random.default_rng(24).standard_normal((20, 2))
    with pytest.raises(ValueError, match="k\\(x, x\\) = 1"):
        vendi_score(x, Polynomial())
    with pytest.raises(ValueError, match="one size"):
        vendi_ratio(x, x[:10], NARROW)
    assert vendi_ratio(x[:3], x[3:6], NARROW).value is None
    assert math.isfinite(vendi_score(x, NARROW).se)
