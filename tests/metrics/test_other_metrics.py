"""Likelihood conversion, sharpness, classification accuracy score, intervals."""

import math

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.stats import binomtest
from sklearn.datasets import load_digits

from quintet.core.rng import Rng
from quintet.metrics.classify import cas
from quintet.metrics.likelihood import bits_per_dim, undefined
from quintet.metrics.sharpness import high_power, sharpness
from quintet.metrics.sizes import proportion

RNG = Rng(0, "test")


def test_uniform_density_has_log2_levels_bits():
    found = bits_per_dim(np.full(50, -64 * math.log(17)), 64, kind="exact", protocol="17 levels")
    assert found.value == pytest.approx(math.log2(17))
    assert found.protocol.startswith("exact")
    assert "17 levels" in found.protocol


def test_interval_over_examples():
    nats = np.random.default_rng(17).standard_normal(400) * 5 - 100
    found = bits_per_dim(nats, 8, kind="bound")
    bits = -nats / 8 / math.log(2)
    assert found.high - found.value == pytest.approx(1.959964 * bits.std(ddof=1) / 20)
    assert found.protocol.startswith("bound")


def test_undefined_and_not_finite_are_null():
    assert undefined().value is None
    assert undefined().protocol.startswith("undefined")
    broken = bits_per_dim(np.array([1.0, -np.inf, 2.0]), 8, kind="exact")
    assert broken.value is None
    assert "1 of 3" in broken.protocol
    assert bits_per_dim(np.ones(1), 8, kind="exact").value is None


def test_high_power_is_parseval():
    x = np.random.default_rng(18).standard_normal((40, 2, 8, 8))
    wave = np.cos(math.pi * np.arange(8))[None, None, None, :].repeat(8, 2)
    assert high_power(wave)[0] == pytest.approx((wave**2).sum())
    slow = np.cos(2 * math.pi * np.arange(8) / 8)[None, None, None, :].repeat(8, 2)
    assert high_power(slow)[0] == pytest.approx(0, abs=1e-20)
    assert (high_power(x) < (x**2).sum((1, 2, 3))).all()


def test_sharpness_orders_blur_real_noise():
    x = load_digits().images[:, None]
    one, other = x[:800], x[800:]
    real = sharpness(one, other, rng=RNG)
    blurred = sharpness(gaussian_filter(one, (0, 0, 0.6, 0.6)), other, rng=RNG)
    noisy = sharpness(one + np.random.default_rng(19).normal(0, 3, one.shape), other, rng=RNG)
    assert blurred.high < 0.9 * real.low
    assert noisy.low > 1.1 * real.high
    assert real.value == pytest.approx(1, abs=0.06)
    assert sharpness(2.0 * one, one, rng=RNG).value == pytest.approx(4)


def test_sharpness_of_vectors_is_null():
    found = sharpness(np.ones((50, 2)), np.ones((50, 2)), rng=RNG)
    assert found.value is None
    assert "only images" in found.protocol


def test_cas_of_real_pairs_and_of_wrong_labels():
    data = load_digits()
    order = np.random.default_rng(20).permutation(1797)
    x, y = data.images[order][:, None], data.target[order]
    real = cas(x[:900], y[:900], x[900:], y[900:])
    assert real.value >= 0.97
    assert real.low < real.value < real.high
    shuffled = cas(x[:900], np.random.default_rng(21).permutation(y[:900]), x[900:], y[900:])
    assert shuffled.value < 0.3
    assert cas(x[:900], np.zeros(900, int), x[900:], y[900:]).value == pytest.approx((y[900:] == 0).mean())
    assert cas(x[:900], y[:900], x[900:], y[900:], n=300).value < real.value + 1e-9
    assert cas(x[:900], y[:900], x[900:], y[900:]) == real


def test_cas_without_labels_is_null():
    x = np.ones((50, 2))
    assert cas(x, None, x, np.zeros(50, int)).value is None
    assert "labels" in cas(x, np.zeros(50, int), x, None).protocol


def test_wilson_agrees_with_scipy():
    for k in (0, 3, 40):
        theirs = binomtest(k, 40).proportion_ci(method="wilson")
        ours = proportion(k / 40, 40, "")
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
