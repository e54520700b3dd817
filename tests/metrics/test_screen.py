"""Distances screened in float32: decisions are those of exact distances, also where float32 alone would err."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from quintet.metrics.neighbours import manifolds
from quintet.metrics.screen import Screen, screens


def by_hand(fake, real, k):
    """Naeem et al. 2020, eq. 1-4, from whole matrices of float64."""
    own_f, own_r, cross = (cdist(a.astype(float), b.astype(float), "sqeuclidean")
                           for a, b in ((fake, fake), (real, real), (fake, real)))  # fmt: skip
    radius_f, radius_r = np.sort(own_f, axis=1)[:, k], np.sort(own_r, axis=1)[:, k]
    inside = cross < radius_r
    return inside.any(axis=1), (cross < radius_f[:, None]).any(axis=0), inside.sum(axis=1) / k, inside.any(axis=0)


def check(fake, real, k=5):
    for found, expected in zip(manifolds(fake, real, k), by_hand(fake, real, k), strict=True):
        assert np.array_equal(found, expected)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr("quintet.metrics.screen.HELD", 3000)


@pytest.mark.parametrize(
    ("width", "scale", "offset"), [(2, 1.0, 0.0), (300, 1.0, 1e4), (40, 1e20, 0.0), (40, 1e-20, 0.0)]
)
def test_manifolds_are_those_of_exact_distances(width, scale, offset):
    g = np.random.default_rng()
    fake, real = (scale * (g.standard_normal((n, width)) * s + offset) for n, s in ((140, 1.0), (170, 1.1)))
    check(fake, real)
    check(real.astype(np.float32), fake.astype(np.float32), k=3)


def test_what_float32_cannot_tell_is_decided_exactly():
    """Fakes on the borders of real balls, in by one part in 10^9 or out by as much: float32 sees neither."""
    g = np.random.default_rng()
    real = g.standard_normal((60, 300)) + 5
    distance = np.sqrt(cdist(real, real, "sqeuclidean"))
    radius = np.sort(distance, axis=1)[:, 5]
    way = g.standard_normal((60, 300))
    way *= radius[:, None] / np.linalg.norm(way, axis=1, keepdims=True)
    side = np.where(np.arange(60) % 2, 1 + 1e-9, 1 - 1e-9)
    _, screen = screens(real, real)
    other = Screen(real + side[:, None] * way, real.mean(axis=0), 1.0)
    radii = screen.radii(5)
    assert radii == pytest.approx(radius**2, rel=1e-12)
    found = set()
    wrong = 0
    for block in screen.blocks(other):
        here = slice(block.start, block.start + len(block.least))
        pairs = block.below(radii[here, None])
        found |= set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))
        own = block.least[np.arange(len(block.least)), np.arange(here.start, here.start + len(block.least))]
        wrong += int(((own < radii[here]) != (side[here] < 1)).sum())
    assert [(i, i) in found for i in range(60)] == [i % 2 == 0 for i in range(60)]
    assert wrong > 0  # the bounds alone would have misjudged some


def test_ties_duplicates_and_outliers():
    g = np.random.default_rng()
    pixels = g.integers(0, 4, (120, 30)).astype(np.float64)
    check(pixels[:70], pixels[50:])  # many equal distances, some items in both sets
    same = np.ones((40, 5))
    check(same, same)
    far = g.standard_normal((90, 20))
    far[0] *= 1e7
    check(far[:50], far[40:])


def test_widths_must_agree():
    with pytest.raises(ValueError, match="one width"):
        screens(np.ones((4, 3)), np.ones((4, 2)))
