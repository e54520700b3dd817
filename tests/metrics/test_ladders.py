"""Ladders: corruptions of known size, and metrics that do or do not order them."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from sklearn.datasets import load_digits

from quintet.core.results import Estimate
from quintet.core.rng import Rng
from quintet.core.spec import DataSpec
from quintet.metrics.evaluate import Modes, Part, Reference
from quintet.metrics.judges import RandomSpace, make_judge, train_judge
from quintet.metrics.ladders import (
    FEWEST,
    LADDER_ITEMS,
    blurred,
    duplicated,
    judged,
    ladders,
    noisy,
    orders,
    published,
    quantised,
    shrunk,
)

SPEC = DataSpec("image", (1, 8, 8), 17, {"label": 10})


def test_blur_keeps_flat_images_and_spreads_a_point_as_the_normal_integral_says() -> None:
    flat = np.full((2, 1, 6, 7), 3.0)
    assert np.allclose(blurred(flat, 0.7), flat)
    point = np.zeros((1, 1, 11, 11))
    point[0, 0, 5, 5] = 1.0
    for sigma in (0.25, 0.6, 1.2):
        found = blurred(point, sigma)[0, 0]
        assert found.sum() == pytest.approx(1, abs=1e-9)
        inside = math.erf(0.5 / (sigma * math.sqrt(2)))
        assert found[5, 5] == pytest.approx(inside**2, rel=0.01)
        assert np.allclose(found, found.T)
    assert np.array_equal(blurred(point, 0.0), point)


def test_other_corruptions_do_what_they_say() -> None:
    g = np.random.default_rng(3)
    x = g.normal(size=(5000, 3)) * [1, 5, 0]
    assert np.allclose(shrunk(x, 0.5).std(0), x.std(0) / 2)
    assert np.allclose(shrunk(x, 0.5).mean(0), x.mean(0))
    moved = noisy(x, 0.3, Rng(0, "test")) - x
    assert moved.std() == pytest.approx(0.3, rel=0.05)
    assert np.allclose(noisy(x, 0.6, Rng(0, "test")) - x, 2 * moved)  # the same noise, stronger
    levels = quantised(np.arange(256), 4, 0, 255)
    assert sorted(set(levels)) == [0, 85, 170, 255]
    assert np.abs(levels - np.arange(256)).max() <= 43
    assert np.isfinite(quantised(x, 8, x.min(0), x.max(0))).all()  # a constant column has no steps
    for share, distinct in ((0.5, 50), (0.9, 10), (1.0, 1)):
        assert len(set(duplicated(100, share))) == distinct
        assert len(duplicated(100, share)) == 100


def test_what_counts_as_order() -> None:
    assert orders([0, 1, 2], 0.1)
    assert orders([0, 1, 0.9, 2], 0.1)
    assert not orders([0, 1, 0.5, 2], 0.1)  # a rung surely better than a weaker one
    assert not orders([0, 0.05, 0.1], 0.1)  # the strongest one is not surely worse than clean data
    assert not orders([0, 0, 0], 0.0)


def test_a_metric_that_misses_what_it_must_see_is_not_used() -> None:
    floor = Estimate(value=1.0, low=0.8, high=1.2)
    rows = [("noise", 0.0, 2.0), ("noise", 0.1, 3.0), ("classes", 0.0, 2.0), ("classes", 0.5, 2.0)]
    found = judged("kid", rows, floor)
    assert found.ordered == {"noise": True, "classes": False}
    assert not found.used
    assert "classes" in found.reason
    assert [rung.value for rung in found.rungs] == [1.0, 2.0, 1.0, 1.0]  # moved to the floor
    assert judged("sharpness", rows, floor).used  # it need see neither
    assert not judged("kid", [*rows[:2], ("classes", 0.0, 2.0), ("classes", 0.5, 1.0)], floor).used
    assert judged("c2st", [("noise", 0.0, 0.5), ("noise", 0.1, 0.3)], Estimate(value=0.5, low=0.49, high=0.51)).used
    assert judged("kid", [("noise", 0.0, 2.0), ("noise", 0.1, None)], floor).ordered == {}


@pytest.fixture(scope="module")
def found():
    data = load_digits()
    order = np.random.default_rng(41).permutation(1797)
    x, y = data.images[order][:, None].astype(np.uint8), data.target[order].astype(np.int64)
    train, judge, test = (Part(x[a:b], y[a:b]) for a, b in pairwise((0, 927, 1297, 1797)))
    space = train_judge(*judge, SPEC, steps=100, networks=1)
    reference = Reference(
        SPEC, train=train, test=test, judge=space, random=RandomSpace(judge.x, SPEC), spare=judge.x, most=500
    )
    return ladders(reference, reference.floor(4))


def test_images_in_every_space(found) -> None:
    for name in ("kid", "kid_random", "kid_pca", "kid_pixels", "fd", "fd_random", "fd_pca", "c2st"):
        assert found[name].used, (name, found[name].reason)
        assert found[name].ordered["blur"], name
        assert found[name].must, name
    assert set(found["kid"].ordered) == {"blur", "noise", "levels", "classes", "duplicates"}
    assert set(found["copies"].ordered) == {"copies"}
    assert found["copies"].used
    assert found["sharpness"].ordered["blur"]
    assert not found["modes"].ordered["noise"]  # noisy digits are digits
    assert found["modes"].ordered["classes"]
    assert found["cas"].ordered["classes"]
    assert [rung.strength for rung in found["kid"].of("classes")] == [0.0, 0.1, 0.3, 0.5]
    assert [rung.strength for rung in found["kid"].of("levels")] == [17.0, 16.0, 8.0, 4.0]


def test_vectors_and_a_distance_that_cannot_see_noise() -> None:
    g = np.random.default_rng(42)
    angle = np.arange(8) * math.pi / 4
    centres = 2 * np.stack([np.cos(angle), np.sin(angle)], 1)
    sets = [(centres[g.integers(0, 8, n)] + 0.1 * g.standard_normal((n, 2))).astype(np.float32) for n in (2000, 400)]
    spec = DataSpec("vector", (2,))
    reference = Reference(
        spec, train=Part(sets[0][:1500]), test=Part(sets[0][1500:]), judge=make_judge(sets[1], None, spec),
        spare=sets[1], modes=Modes(centres, 0.1),
    )  # fmt: skip
    rows = ladders(reference, reference.floor(4))
    assert rows["kid"].used
    assert set(rows["kid"].ordered) == {"shrink", "noise", "levels", "classes", "duplicates"}
    assert [rung.strength for rung in rows["kid"].of("classes")] == [0.0, 0.125, 0.25, 0.5]
    assert not rows["fd"].used  # two moments hardly change
    assert "noise" in rows["fd"].reason
    assert "sharpness" not in rows
    assert ladders(Reference(spec, train=Part(sets[0][:9]), test=Part(sets[0][9:20]), judge=reference.judge), {}) == {}


class Given:
    """A space of somebody's weights: a fixed projection of images, or of nothing but their noise."""

    def __init__(self, metric: str, blind: bool) -> None:
        self.metric, self.blind, self.name = metric, blind, metric
        self.weights, self.seen = np.random.default_rng(9).normal(size=(64, 200)) / 8, 0

    def features(self, raw: np.ndarray) -> np.ndarray:
        self.seen += len(raw)
        if self.blind:
            return np.stack([np.random.default_rng(int(item.sum())).normal(size=200) for item in raw])
        return np.tanh(raw.reshape(len(raw), -1) / 8 @ self.weights)


def test_spaces_of_given_weights_have_ladders_too() -> None:
    data = load_digits()
    x, y = data.images[:, None].astype(np.uint8), data.target.astype(np.int64)
    judge = make_judge(x[:300].reshape(300, 64), None, DataSpec("vector", (64,)))
    spaces = {"good": Given("fid", blind=False), "blind": Given("fd_dinov2", blind=True)}
    reference = Reference(SPEC, train=Part(x[300:1200], y[300:1200]), test=Part(x[1200:]), judge=judge)
    reference.pretrained = spaces  # type: ignore[assignment]
    order = np.random.default_rng(5).permutation(len(reference.shown.x))
    floor = {"fid": Estimate(value=1.0, low=0.9, high=1.1)}
    rows = published(reference, order, floor, Rng(0, "ladder"))
    assert rows["fid"].used, rows["fid"].reason
    assert rows["fid"].ordered == {"blur": True, "noise": True, "classes": True}
    assert rows["fid"].of("blur")[0].value == 1.0  # moved to the floor
    assert spaces["good"].seen == LADDER_ITEMS  # what the forecast reckons with
    assert not rows["fd_dinov2"].used
    assert "blur" in rows["fd_dinov2"].reason
    assert published(reference, order[: 2 * FEWEST - 1], floor, Rng(0, "ladder")) == {}
