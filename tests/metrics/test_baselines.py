"""The baseline rows: samples and exact likelihoods."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import multivariate_normal
from sklearn.datasets import load_digits

from quintet.core.rng import Rng
from quintet.core.spec import DataSpec
from quintet.metrics.baselines import Bootstrap, Histograms, Local, Mixture, baselines

SPEC = DataSpec("image", (1, 8, 8), 17, {"label": 10})
RNG = Rng(5, "test")


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    order = np.random.default_rng(26).permutation(1797)
    return data.images[order][:, None].astype(np.uint8), data.target[order].astype(np.int64)


def test_all_give_raw_samples_with_labels(digits):
    x, y = digits
    for model in baselines(SPEC, x[:300], y[:300]):
        found = model.sample(150, rng=RNG)
        assert found.x.shape == (150, 1, 8, 8)
        assert found.x.dtype == np.uint8
        assert found.x.max() <= 16
        assert set(found.labels) <= set(range(10))
        first = model.sample(70, rng=RNG)
        assert np.array_equal(first.x, found.x[:70])
        assert np.array_equal(first.labels, found.labels[:70])


def test_bootstrap_is_made_of_training_pairs(digits):
    x, y = digits
    found = Bootstrap(SPEC, x[:50], y[:50]).sample(200, rng=RNG)
    pairs = {(a.tobytes(), int(b)) for a, b in zip(x[:50], y[:50], strict=True)}
    assert {(a.tobytes(), int(b)) for a, b in zip(found.x, found.labels, strict=True)} <= pairs
    assert Bootstrap(SPEC, x, y).bits(x, rng=RNG).value is None


def test_histogram_bits_by_hand():
    spec = DataSpec("image", (1, 1, 2), 3)
    train = np.array([[0, 2], [0, 2], [1, 2]]).reshape(3, 1, 1, 2)
    test = np.array([[0, 2], [2, 0]]).reshape(2, 1, 1, 2)
    p = [[3 / 6, 2 / 6, 1 / 6], [1 / 6, 1 / 6, 4 / 6]]
    nats = [math.log(p[0][0] * p[1][2]), math.log(p[0][2] * p[1][0])]
    found = Histograms(spec, train).bits(test, rng=RNG)
    assert found.value == pytest.approx(-np.mean(nats) / 2 / math.log(2))
    assert found.protocol.startswith("exact")


def test_histogram_samples_follow_the_smoothed_counts_of_their_class(digits):
    x, y = digits
    model = Histograms(SPEC, x, y)
    found = model.sample(4000, rng=RNG)
    three = found.x[found.labels == 3].reshape(-1, 64)
    real = x[y == 3].reshape(-1, 64)
    for pixel in (18, 27, 43):
        counts = np.bincount(three[:, pixel], minlength=17)
        expected = (np.bincount(real[:, pixel], minlength=17) + 1) / (len(real) + 17) * len(three)
        chi2 = ((counts - expected) ** 2 / expected)[expected > 0].sum()
        assert chi2 < 16 + 6 * math.sqrt(32)


def test_histogram_density_integrates_to_one():
    x = np.random.default_rng(27).standard_normal((400, 1)).astype(np.float32)
    model = Histograms(DataSpec("vector", (1,)), x)
    reach = float(x.max() - x.min())
    grid = np.linspace(x.min() - reach, x.max() + reach, 200_001)[:, None]
    density = model.table[0, model._codes(grid)[:, 0]] / np.diff(model.edges[0])[model._codes(grid)[:, 0]]
    assert density.mean() * 3 * reach == pytest.approx(1, abs=1e-3)
    found = model.bits(x, rng=RNG)
    assert found.value == pytest.approx(0.5 * math.log2(2 * math.pi * math.e), abs=0.25)
    assert model.bits(np.full((3, 1), 1e6), rng=RNG).value is None
    assert model.sample(500, rng=RNG).x.std() == pytest.approx(1, abs=0.3)


def test_one_component_is_the_gaussian():
    g = np.random.default_rng(28)
    x = g.standard_normal((3000, 3)) @ g.standard_normal((3, 3)) + [1, 2, 3]
    model = Mixture(DataSpec("vector", (3,)), x, components=1, regularisation=1e-9)
    truth = -multivariate_normal(x.mean(0), np.cov(x.T)).logpdf(x).mean() / 3 / math.log(2)
    assert model.bits(x, rng=RNG).value == pytest.approx(truth, abs=1e-3)
    found = model.sample(20000, rng=RNG).x
    assert np.allclose(np.cov(found.T), np.cov(x.T), atol=0.08 * np.cov(x.T).max())
    assert found.mean(0) == pytest.approx([1, 2, 3], abs=0.2)


def test_mixture_bits_are_a_bound_above_the_entropy():
    """Two equally likely values: 1 bit a dimension is the least that any model can reach."""
    x = np.random.default_rng(29).integers(0, 2, (500, 4)).astype(np.uint8)
    found = Mixture(DataSpec("image", (1, 2, 2), 2), x.reshape(-1, 1, 2, 2), components=16).bits(
        x.reshape(-1, 1, 2, 2), rng=RNG
    )
    assert found.protocol.startswith("bound")
    assert found.value > 1 - 0.05


def test_wide_data_take_diagonal_covariances():
    x = np.random.default_rng(30).integers(0, 256, (60, 3, 16, 16)).astype(np.uint8)
    model = Mixture(DataSpec("image", (3, 16, 16), 256), x, components=2)
    assert "diag" in model.protocol
    assert model.sample(10, rng=RNG).x.shape == (10, 3, 16, 16)


def test_wide_images_are_affordable():
    """64x64 in colour with many classes: no table a class, and a mixture of a part of the items."""
    g = np.random.default_rng(31)
    x, y = g.integers(0, 256, (2800, 3, 64, 64), dtype=np.uint8), np.arange(2800) % 100
    spec = DataSpec("image", (3, 64, 64), 256, {"label": 100})
    model = Histograms(spec, x[:200], y[:200])
    assert model.sample(5, rng=RNG).x.shape == (5, 3, 64, 64)
    assert 7 < model.bits(x[:10], rng=RNG).value < 9
    mixture = Mixture(spec, x, components=1)
    assert f"fitted on {2**25 // 12288} items" in mixture.protocol


def test_local_network_is_an_exact_distribution():
    """Over every image of two pixels by two with three levels the probabilities sum to one."""
    spec = DataSpec("image", (1, 2, 2), 3, {"label": 2})
    every = np.array(list(itertools.product(range(3), repeat=4)), np.uint8).reshape(81, 1, 2, 2)
    train = every[np.random.default_rng(32).permutation(81)[:40]].repeat(20, axis=0)
    model = Local(spec, train, np.arange(800) % 2)
    nats = []
    for item in every:  # two items at least
        found = model.bits(np.stack([item, item]), np.zeros(2, np.int64), rng=RNG)
        nats.append(-found.value * 4 * math.log(2))
    p = np.exp(nats)
    assert p.sum() == pytest.approx(1, abs=1e-4)
    n = 20_000
    drawn = model.sample(n, rng=RNG)
    rows = drawn.x[drawn.labels == 0].reshape(-1, 4) @ 3 ** np.arange(3, -1, -1)
    counts = np.bincount(rows, minlength=81)
    chi2 = ((counts - p * len(rows)) ** 2 / (p * len(rows)))[p * len(rows) > 5].sum()
    assert chi2 < 80 + 6 * math.sqrt(160)


def test_local_network_beats_what_knows_no_neighbours_and_is_the_same_twice(digits):
    x, y = digits
    a, b = (Local(SPEC, x[:400], y[:400]).bits(x[900:1100], y[900:1100], rng=RNG) for _ in range(2))
    assert a.value == b.value
    assert a.protocol.startswith("exact")
    assert a.value < Histograms(SPEC, x[:400], y[:400]).bits(x[900:1100], rng=RNG).value - 0.1
    assert "local" not in [
        row.name for row in baselines(DataSpec("vector", (3,)), x.reshape(len(x), -1)[:, 20:23] * 1.0)
    ]


def test_local_network_of_large_images_has_a_likelihood_alone():
    x = np.random.default_rng(33).integers(0, 256, (8, 3, 20, 24), dtype=np.uint8)
    model = Local(DataSpec("image", (3, 20, 24), 256), x)
    assert model.sample(4, rng=RNG) is None
    assert model.bits(x, rng=RNG).value > 0
