"""Toy densities are densities, their samplers draw from them, and their entropies are right."""

from __future__ import annotations

from math import e, exp, log, pi

import numpy as np
import pytest

from quintet.core.errors import DataError
from quintet.data.sources import open_dataset
from quintet.data.toy import TOYS, GaussianMixture, Pinwheel, density

NAMES = sorted(TOYS)


def reach(name):
    """Half width of a box that holds all but 1e-6 of the mass."""
    return {"grid25": 4.4, "ring8": 2.7, "moons": 2.7, "spirals": 3.8, "pinwheel": 5.2, "checkerboard": 4.0}[name]


@pytest.mark.parametrize("name", NAMES)
def test_density_integrates_to_one(name):
    truth = density(name)
    h = 0.04 if name == "spirals" else 0.02  # divides the checkerboard's squares
    axis = np.arange(-reach(name) + h / 2, reach(name), h)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    total = np.exp(truth.log_prob(grid)).sum() * h * h
    assert total == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_entropy_is_the_mean_of_minus_log_prob(name):
    truth = density(name)
    seed = int(np.random.default_rng().integers(2**31))
    values = -truth.log_prob(truth.sample(40_000, seed))
    error = values.std() / np.sqrt(len(values))
    # 4.9 standard errors: one false alarm in a million fresh seeds; the uniform density has none
    assert abs(values.mean() - truth.entropy()) <= 4.9 * error + 1e-9, f"seed {seed}"


@pytest.mark.parametrize("name", NAMES)
def test_samples_follow_log_prob(name):
    """Counts in cells against the integral of the density over each: a chi-square test."""
    from scipy.stats import chi2

    truth = density(name)
    side, fine = 24, 8
    edge = reach(name)
    h = 2 * edge / (side * fine)
    axis = -edge + h * (np.arange(side * fine) + 0.5)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    mass = (np.exp(truth.log_prob(grid)) * h * h).reshape(side, fine, side, fine).sum((1, 3)).ravel()
    x = truth.sample(20_000, seed=int(np.random.default_rng().integers(2**31)))
    counts = np.histogram2d(*x.T, bins=side, range=[[-edge, edge]] * 2)[0].ravel()
    big = mass * len(x) > 10
    expected = np.append(mass[big], 1 - mass[big].sum()) * len(x)
    found = np.append(counts[big], len(x) - counts[big].sum())
    expected[-1] = max(expected[-1], 1.0)
    statistic = ((found - expected) ** 2 / expected).sum()
    assert statistic < chi2.isf(1e-6, len(found) - 1)


@pytest.mark.parametrize(("name", "count", "gap"), [("ring8", 8, 4 * np.sin(pi / 8)), ("grid25", 25, 2.0)])
def test_separate_modes(name, count, gap):
    truth = density(name)
    assert truth.modes.shape == (count, 2)
    distance = np.linalg.norm(truth.modes[:, None] - truth.modes[None], axis=2) + 99 * np.eye(count)
    assert distance.min(1) == pytest.approx(np.full(count, gap))
    x = truth.sample(20_000, seed=5)
    away = np.linalg.norm(x[:, None] - truth.modes, axis=2)
    share = np.bincount(away.argmin(1), minlength=count) / len(x)
    assert abs(share - 1 / count).max() < 6 / np.sqrt(len(x) * count)
    assert np.mean(away.min(1) < 3 * truth.scale) == pytest.approx(1 - exp(-4.5), abs=0.004)
    assert truth.entropy() == pytest.approx(log(count) + log(2 * pi * e * truth.scale**2), abs=1e-6)


def test_grid_is_the_one_of_the_literature():
    truth = density("grid25")
    assert truth.scale == 0.05
    assert set(truth.modes.ravel()) == {-4.0, -2.0, 0.0, 2.0, 4.0}


def test_entropy_of_overlapping_gaussians_against_finer_quadrature():
    mixture = GaussianMixture(np.array([[0.0, 0.0], [0.3, 0.1], [-0.2, 0.4]]), 0.25, separate=False)
    axis = np.arange(-3, 3, 0.01)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    logs = mixture.log_prob(grid)
    assert mixture.entropy() == pytest.approx(-(np.exp(logs) * logs).sum() * 1e-4, abs=1e-8)


def test_pinwheel_twist_keeps_areas():
    pinwheel = Pinwheel()
    point, h = np.random.default_rng(6).normal(size=(50, 2)) * 2, 1e-6

    def untwist(x):
        return pinwheel._rotate(x, -pinwheel._angle(x))

    jacobian = np.stack([(untwist(point + step) - untwist(point - step)) / (2 * h) for step in np.eye(2) * h], 2)
    assert np.linalg.det(jacobian) == pytest.approx(np.ones(50), abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_opened_toy(name):
    dataset = open_dataset(f"toy:{name}")
    sizes = [len(s) for s in (dataset.train, dataset.validation, dataset.judge, dataset.test)]
    assert sizes == [10_000, 1_000, 2_000, 5_000]
    assert dataset.spec.shape == (2,)
    assert dataset.spec.levels is None
    assert not dataset.spec.conditions
    assert dataset.train.x.dtype == np.float32
    every = np.concatenate([s.x for s in (dataset.train, dataset.validation, dataset.judge, dataset.test)])
    assert len(np.unique(every, axis=0)) == 18_000
    assert dataset.fingerprint == open_dataset(f"toy:{name}").fingerprint


def test_checkerboard_is_empty_on_light_squares():
    board = density("checkerboard")
    assert board.log_prob(np.array([[-3.0, -1.0], [5.0, 0.0], [1.0, -5.0]])).tolist() == [-np.inf] * 3
    assert np.isfinite(board.log_prob(board.sample(1000, 7))).all()


def test_unknown_toy_names_the_nearest():
    with pytest.raises(DataError) as caught:
        open_dataset("toy:pinwheels")
    assert caught.value.exit_code == 3
    assert "toy:pinwheel?" in caught.value.text("en")
    assert "toy:pinwheel？" in caught.value.text("zh")
