"""Modes, class histograms and their floor."""

import math

import numpy as np
import pytest
from scipy.stats import entropy

from quintet.core.rng import Rng
from quintet.metrics.coverage import class_metrics, kl, kl_floor, known_modes, mode_metrics

RNG = Rng(0, "test")


def ring(n, modes, scale=0.05):
    g = np.random.default_rng(14)
    angle = np.arange(8) * math.pi / 4
    centres = 2 * np.stack([np.cos(angle), np.sin(angle)], 1)
    return centres[g.choice(modes, n)] + scale * g.standard_normal((n, 2)), centres


def test_all_modes_and_the_share_within_three_sigma():
    x, centres = ring(2000, range(8))
    found = mode_metrics(x, centres, 0.05, rng=RNG)
    assert found["modes"].value == 8
    assert found["modes"].protocol.startswith("8 of 8")
    inside = 1 - math.exp(-4.5)  # radius of a plane Gaussian
    assert found["in_3_sigma"].value == pytest.approx(inside, abs=4 * (inside * (1 - inside) / 2000) ** 0.5)
    assert found["in_3_sigma"].low < found["in_3_sigma"].value < found["in_3_sigma"].high


def test_collapsed_and_strewn_samples():
    x, centres = ring(800, [2])
    assert mode_metrics(x, centres, 0.05, rng=RNG)["modes"].value == 1
    strewn = np.concatenate([ring(790, [0, 1])[0], np.repeat(centres[4:6], 5, axis=0)])  # 5 of 100 fair ones
    found = mode_metrics(strewn, centres, 0.05, rng=RNG)["modes"]
    assert found.value == 2
    assert "4 have a sample" in found.protocol
    far = mode_metrics(np.full((100, 2), 9.0), centres, 0.05, rng=RNG)
    assert far["modes"].value == 0
    assert far["in_3_sigma"].value == 0
    assert far["modes_kl"].value is None
    assert "undefined" in far["modes_kl"].protocol


def test_counts_go_to_the_nearest_mode():
    x, centres = ring(600, [1, 6])
    found, good = known_modes(x, centres, 0.05)
    assert found.counts[[0, 2, 3, 4, 5, 7]].sum() == 0
    assert found.counts.sum() == good


def test_kl_agrees_with_scipy_and_perfect_samples_score_the_floor():
    g = np.random.default_rng(15)
    fair = g.dirichlet(np.full(10, 20.0))
    counts = g.multinomial(500, fair)
    assert kl(counts, fair) == pytest.approx(entropy(counts / 500, fair))
    draws = np.array([kl(g.multinomial(500, fair), fair) for _ in range(2000)])
    assert draws.mean() == pytest.approx(kl_floor(10, 500), rel=0.15)


def test_the_floor_is_that_of_the_set_size_whatever_the_number_of_samples():
    """1,000 perfect samples judged in sets of 250 score as 250 do, the real shares being counted on 400 items."""
    g = np.random.default_rng(17)
    shares = g.dirichlet(np.full(8, 20.0))
    values, whole = [], []
    for i in range(300):
        fair = g.multinomial(400, shares) / 400
        drawn = g.choice(8, 1000, p=shares)
        found = class_metrics(drawn, fair, "a judge", rng=Rng(i, "test"), size=250, real=400)["modes_kl"]
        values.append(found.value)
        whole.append(class_metrics(drawn, fair, "a judge", rng=Rng(i, "test"))["modes_kl"].value)
    assert f"in sets of 250; perfect samples: {kl_floor(8, 250, 400):.4f}" in found.protocol
    assert np.mean(values) == pytest.approx(kl_floor(8, 250, 400), rel=0.12)
    assert np.mean(whole) == pytest.approx(kl_floor(8, 1000, 400), rel=0.12)


def test_dropped_classes():
    g = np.random.default_rng(16)
    fair = np.full(10, 0.1)
    found = class_metrics(g.integers(0, 8, 1000), fair, "a judge", rng=RNG)
    assert found["modes"].value == 8
    assert found["modes_kl"].value == pytest.approx(math.log(10 / 8), abs=0.02)
    assert found["modes_kl"].low > kl_floor(10, 1000)
    whole = class_metrics(g.integers(0, 10, 1000), fair, "a judge", rng=RNG)
    assert (whole["modes"].low, whole["modes"].value, whole["modes"].high) == (10, 10, 10)


def test_a_class_without_real_items_does_not_break_it():
    fair = np.array([0.5, 0.5, 0.0])
    found = class_metrics(np.array([0] * 40 + [1] * 40 + [2] * 20), fair, "a judge", rng=RNG)
    assert found["modes"].value == 2
    assert found["modes_kl"].value > 0.2


def test_too_few():
    assert class_metrics(np.zeros(1, int), np.full(10, 0.1), "a judge", rng=RNG)["modes"].value is None
