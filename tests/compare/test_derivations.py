"""The computed sentences: each computation against a second way to its numbers, and shown to be able to fail."""

from __future__ import annotations

import math

import numpy as np
import pytest

from quintet.compare import derivations as d
from quintet.compare.claims import CLAIMS
from quintet.compare.derivations import Derived
from quintet.compare.findings import Finding

WORDS = {
    "diffusion-parallel": "contradicted", "gan-vanishing": "confirmed", "gan-game": "confirmed",
    "others-not-invertible": "contradicted", "vae-bound": "confirmed", "ar-chain": "confirmed",
    "diffusion-likelihood": "contradicted", "diffusion-noising": "confirmed", "diffusion-end": "confirmed",
    "diffusion-mean": "confirmed", "diffusion-loss": "contradicted", "straight-paths": "contradicted",
}  # fmt: skip


def computed() -> dict[str, Finding]:
    return {key: check.compute() for key, _, check in CLAIMS if isinstance(check, Derived)}


def test_what_mathematics_says() -> None:
    assert {key: found.word for key, found in computed().items()} == WORDS


def gentle(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chain of so little noise that x_T is nearly x_0."""
    monkeypatch.setattr(d, "BETA", np.full(d.T, 1e-7))
    monkeypatch.setattr(d, "ALPHA", 1 - d.BETA)
    monkeypatch.setattr(d, "ABAR", np.cumprod(d.ALPHA))


def test_the_sentences_could_come_out_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    gentle(monkeypatch)
    assert d.ends_in_noise().word == "contradicted"
    assert d.wrong_index().word == "confirmed"  # x_T then tells x_0
    assert d.closed_form_noising().word == d.posterior_mean().word == "confirmed"  # these hold for any schedule


def test_formulas_of_a_chain_need_the_product_of_the_alphas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(d, "ABAR", d.ABAR * 0.9)
    assert d.closed_form_noising().word == "contradicted"
    monkeypatch.setattr(d, "ABAR", np.roll(d.ABAR, 1))
    assert d.posterior_mean().word == "contradicted"


def test_paths_to_one_point_are_straight(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a single Gaussian for data, noise and data scaled alike, every path is a straight line at constant speed."""
    monkeypatch.setattr(d, "CENTRES", np.array([0.5, 0.5]))
    x, spread = np.random.default_rng().normal(size=50), 0.05
    one_step = x - d._velocity(x, 1.0, spread)
    assert np.abs(one_step - 0.5).max() < 1e-9  # the mean is where the data are
    monkeypatch.setattr(d, "CENTRES", np.array([-1.0, 1.0]))
    assert np.abs(np.abs(x - d._velocity(x, 1.0, spread)) - 1).min() > 0.4  # and here it is not


def test_a_reverse_kernel_against_the_joint_covariance() -> None:
    """p(x_{t-1} | x_t) from the 2 x 2 covariance of the pair, built from x_0 and independent noises."""
    rng = np.random.default_rng()
    for t in rng.integers(1, d.T, 5):
        mean, variance = rng.normal(), rng.uniform(0.1, 2)
        before = np.array([math.sqrt(d.ABAR[t - 1]), math.sqrt(1 - d.ABAR[t - 1]), 0.0])  # of x_0, noise, fresh noise
        after = np.append(math.sqrt(d.ALPHA[t]) * before[:2], math.sqrt(d.BETA[t]))
        scale = np.diag([variance, 1.0, 1.0])
        joint = np.stack([before, after]) @ scale @ np.stack([before, after]).T
        slope, intercept, noise = d._reverse_kernel(int(t), mean, variance)
        assert slope == pytest.approx(joint[0, 1] / joint[1, 1])
        assert noise == pytest.approx(joint[0, 0] - joint[0, 1] ** 2 / joint[1, 1])
        assert intercept == pytest.approx(before[0] * mean - slope * after[0] * mean)


def test_the_best_error_against_simulation() -> None:
    """E(x_0 - E[x_0 | x_t])^2 by drawing pairs; the best prediction of +-1 is tanh of half the log-odds."""
    rng, abar, n = np.random.default_rng(), 0.5, 400_000
    x0 = np.where(rng.random(n) < 0.25, -1.0, 1.0)
    x = math.sqrt(abar) * x0 + math.sqrt(1 - abar) * rng.normal(size=n)
    best = np.tanh(math.log(3) / 2 + x * math.sqrt(abar) / (1 - abar))
    assert d._best_error(abar) == pytest.approx(np.mean((x0 - best) ** 2), abs=0.01)


def test_the_flow_carries_noise_to_the_data() -> None:
    """Order is kept on a line, so that the quarter of the noise that lies lowest ends at -1."""
    from scipy.stats import norm

    start = norm.ppf(np.array([0.01, 0.1, 0.24, 0.26, 0.5, 0.9, 0.99]))
    end = d._rk4(start, np.linspace(1.0, 0.0, 801), 0.05)
    assert np.abs(end[:3] + 1).max() < 0.2
    assert np.abs(end[3:] - 1).max() < 0.2
    assert (np.diff(end) > 0).all()
