"""Feature spaces: what they know, that they keep, that items do not depend on each other."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

from quintet.core.spec import DataSpec
from quintet.metrics.distances import Polynomial, mmd2
from quintet.metrics.judges import (
    CoordinateSpace,
    Judge,
    PCASpace,
    PixelSpace,
    RandomSpace,
    make,
    make_judge,
    train_exemplars,
    train_judge,
)

SPEC = DataSpec("image", (1, 8, 8), 17, {"label": 10})


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    order = np.random.default_rng(22).permutation(1797)
    return data.images[order][:, None].astype(np.uint8), data.target[order].astype(np.int64)


@pytest.fixture(scope="module")
def judge(digits):
    x, y = digits
    return train_judge(x[:270], y[:270], SPEC, steps=60, networks=2)


def test_a_short_training_learns_most_digits(judge, digits):
    x, y = digits
    assert judge.measure(x[270:770], y[270:770]) > 0.6
    assert judge.to_json()["accuracy"] == judge.accuracy


def test_features_are_standardised_and_by_item(judge, digits):
    x = digits[0]
    found = judge.features(x[:270])
    assert found.dtype == np.float64
    assert np.allclose(found.mean(0), 0, atol=1e-4)
    assert (found.std(0) ** 2).mean() == pytest.approx(1, abs=1e-3)
    cov = np.cov(found.T)
    assert np.abs(cov - np.diag(np.diag(cov))).max() < 1e-3 * cov.max()
    assert np.allclose(judge.features(x[100:101]), found[100:101], atol=1e-4)


def test_same_arguments_same_judge(digits):
    x, y = digits
    one, two = (train_judge(x[:100], y[:100], SPEC, steps=5, networks=1, classes=10) for _ in range(2))
    other = train_judge(x[:100], y[:100], SPEC, steps=5, networks=1, classes=10, seed=1)
    assert np.array_equal(one.features(x[:9]), two.features(x[:9]))
    assert not np.allclose(one.features(x[:9]), other.features(x[:9]))


def test_saved_and_loaded(judge, digits, tmp_path):
    judge.save(tmp_path)
    back = Judge.load(tmp_path)
    assert np.array_equal(back.features(digits[0][:20]), judge.features(digits[0][:20]))
    assert back.to_json() == judge.to_json()
    assert {f.name for f in tmp_path.iterdir()} == set(Judge.FILES)


def test_without_labels_it_still_sees_noise(digits):
    x = digits[0]
    judge = train_exemplars(x[:200], DataSpec("image", (1, 8, 8), 17), steps=80, networks=1)
    noisy = np.clip(x[800:1100] + np.random.default_rng(23).normal(0, 6, (300, 1, 8, 8)), 0, 16).round()
    real = judge.features(x[400:700])
    value, se = mmd2(judge.features(noisy), real, Polynomial())
    assert value > 4 * se
    assert "exemplar" in judge.name


def test_random_features_know_no_data_but_their_scale(digits):
    x = digits[0]
    space, other = RandomSpace(x[:270], SPEC), RandomSpace(x[270:540], SPEC)
    assert all(np.array_equal(a, b) for a, b in zip(space.weights, other.weights, strict=True))
    found = space.features(x[:270])
    assert (found.std(0) ** 2).mean() == pytest.approx(1, abs=1e-3)
    assert np.allclose(space.features(x[9:10]), found[9:10], atol=1e-4)
    real = space.features(x[600:900])
    blurry = np.repeat(np.repeat(x[300:600, :, ::2, ::2], 2, 2), 2, 3)
    value, se = mmd2(space.features(blurry), real, Polynomial())
    assert value > 4 * se
    with pytest.raises(ValueError, match="images"):
        RandomSpace(np.ones((5, 2)), DataSpec("vector", (2,)))


def test_without_labels_the_judge_is_the_self_supervised_one(digits, monkeypatch):
    spec = DataSpec("image", (1, 8, 8), 17)
    short = train_exemplars(digits[0][:20], spec, steps=2, networks=1)
    assert (short.task, short.classes) == ("exemplars", 20)
    monkeypatch.setattr(make, "train_exemplars", lambda raw, spec, *, seed: short)
    assert make_judge(digits[0][:20], None, spec) is short


def test_other_shapes(digits):
    g = np.random.default_rng(24)
    for shape in ((3, 12, 20), (1, 4, 4), (1, 28, 28)):
        spec = DataSpec("image", shape, 256)
        raw = g.integers(0, 256, (30, *shape)).astype(np.uint8)
        judge = train_judge(raw, g.integers(0, 3, 30), spec, steps=2, networks=1, classes=3)
        assert judge.features(raw).shape[1] <= 64
        assert np.isfinite(judge.features(raw)).all()
        assert judge.predict(raw).max() < 3


def test_pca_agrees_with_sklearn(digits):
    rows = digits[0].reshape(1797, -1).astype(float)
    space = PCASpace(rows[:900], components=8, share=1.0)
    theirs = PCA(8, whiten=True).fit(rows[:900]).transform(rows[900:])
    ours = space.features(digits[0][900:])
    assert np.allclose(np.abs(ours), np.abs(theirs), atol=1e-6)
    assert PCASpace(np.ones((5, 3))).features(np.ones((2, 3))).shape == (2, 1)


def test_pixels_are_scaled_by_levels():
    x = np.array([[[[0, 16], [8, 4]]]], np.uint8)
    assert np.allclose(PixelSpace(DataSpec("image", (1, 2, 2), 17)).features(x), [[-1, 1, 0, -0.5]])


def test_coordinates_and_their_classes():
    g = np.random.default_rng(25)
    y = g.integers(0, 3, 300)
    x = g.standard_normal((300, 2)) * [1, 100] + np.array([[0, 0], [9, 0], [0, 900]])[y]
    space = make_judge(x[:200], y[:200], DataSpec("vector", (2,), conditions={"label": 3}))
    assert isinstance(space, CoordinateSpace)
    assert np.allclose(space.features(x[:200]).std(0), 1)
    assert space.measure(x[200:], y[200:]) > 0.98
    with pytest.raises(ValueError, match="labels"):
        CoordinateSpace(x).predict(x)


def test_vectors_have_no_judge_network():
    with pytest.raises(ValueError, match="images"):
        train_judge(np.ones((5, 2)), np.zeros(5, np.int64), DataSpec("vector", (2,)))
