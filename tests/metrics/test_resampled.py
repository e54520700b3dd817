"""Fréchet distances of resamples from inner products: the same as those of the resampled items themselves."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import sqrtm

from quintet.core.rng import Rng
from quintet.metrics.distances import fd, frechet
from quintet.metrics.resampled import Gram, few


@pytest.mark.parametrize(("n", "m", "d"), [(30, 40, 60), (50, 20, 12), (3, 5, 40), (60, 60, 40)])
def test_the_same_as_of_the_items_drawn(n: int, m: int, d: int) -> None:
    g = np.random.default_rng()
    x, y = 100 + g.normal(size=(n, d)) * g.uniform(0.1, 3, d), 101 + g.normal(size=(m, d))
    gram = Gram(x, y)
    for _ in range(3):
        i, j = g.integers(0, n, n), g.integers(0, m, m)
        assert gram.frechet(i, j) == pytest.approx(frechet(x[i], y[j]), rel=1e-9, abs=1e-9)
    everything = gram.frechet(np.arange(n), np.arange(m))
    assert everything == pytest.approx(frechet(x, y), rel=1e-9)
    if min(n, m) > d:  # the formula as it is written, by somebody else's square root
        a, b = np.cov(x.T), np.cov(y.T)
        direct = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a + b - 2 * sqrtm(a @ b).real)
        assert everything == pytest.approx(direct, rel=1e-7)


def test_an_interval_does_not_depend_on_the_way() -> None:
    """Constant features change no distance, but make items few for their features."""
    g = np.random.default_rng(4)
    x, y = g.normal(size=(80, 10)), g.normal(size=(70, 10)) * 1.5
    wide = [np.concatenate([s, np.ones((len(s), 90))], axis=1) for s in (x, y)]
    assert few(*wide)
    assert not few(x, y)
    narrow, same = fd(x, y, rng=Rng(0, "a")), fd(*wide, rng=Rng(0, "a"))
    assert (same.value, same.low, same.high) == pytest.approx((narrow.value, narrow.low, narrow.high), rel=1e-8)
