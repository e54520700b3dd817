"""Neighbour metrics against scikit-learn and prdc, on sets with a known answer, and the copy alarm's error rates."""

import contextlib
import io

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import LeaveOneOut, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from quintet.core.rng import Rng
from quintet.metrics.neighbours import (
    c2st,
    copies,
    expected_coverage,
    find_copies,
    manifolds,
    memorisation,
    memorisation_index,
    nearest,
    prdc,
    tell_apart,
)

RNG = Rng(0, "test")


@pytest.fixture(autouse=True)
def fresh():
    """Each test draws from the start of one stream, whichever tests ran before it."""
    global stream
    stream = np.random.default_rng(77)


def draw(*shape):
    return stream.standard_normal(shape)


def test_nearest_agrees_with_sklearn(monkeypatch):
    monkeypatch.setattr("quintet.metrics.neighbours.BLOCK", 64)
    x, y = draw(150, 7) + 3, draw(210, 7)
    theirs = NearestNeighbors(n_neighbors=4).fit(y).kneighbors(x)
    ours = nearest(x, y, 4)
    assert np.allclose(ours.distance, theirs[0], rtol=1e-9)
    assert np.array_equal(ours.item, theirs[1])
    own = nearest(y, y, 3, same=True)
    assert np.allclose(own.distance, NearestNeighbors(n_neighbors=3).fit(y).kneighbors()[0], rtol=1e-9)


def test_prdc_agrees_with_its_authors(monkeypatch):
    monkeypatch.setattr("quintet.metrics.screen.HELD", 2000)
    theirs = pytest.importorskip("prdc")
    real, fake = draw(190, 9), 0.9 * draw(170, 9) + 0.2
    with contextlib.redirect_stdout(io.StringIO()):
        expected = theirs.compute_prdc(real, fake, nearest_k=5)
    found = prdc(fake, real)
    assert {name: found[name].value for name in expected} == pytest.approx(expected, abs=1e-6)


def test_same_distribution_scores_its_expectation():
    found = [manifolds(draw(100, 5), draw(100, 5)) for _ in range(60)]
    covered = np.array([f.coverage.mean() for f in found])
    assert covered.mean() == pytest.approx(expected_coverage(100), abs=4 * covered.std() / 60**0.5)
    density = np.array([f.density.mean() for f in found])
    assert density.mean() == pytest.approx(1, abs=4 * density.std() / 60**0.5 + 0.01)


def test_collapse_keeps_precision_and_loses_recall_and_coverage():
    real = draw(300, 4)
    one = prdc(np.repeat(real[:1], 300, axis=0), real)
    assert one["coverage"].value < 0.1
    assert one["recall"].value < 0.05
    near = prdc(0.1 * draw(300, 4), real)
    assert near["precision"].value > 0.9
    assert near["recall"].value < 0.2
    assert near["coverage"].value < 0.6


def test_swapping_real_and_fake_swaps_precision_and_recall():
    wide, narrow = draw(200, 4), 0.3 * draw(200, 4)
    one, other = prdc(narrow, wide), prdc(wide, narrow)
    assert one["precision"].value == other["recall"].value
    assert one["recall"].value == other["precision"].value
    assert one["precision"].value > one["recall"].value + 0.3
    assert abs(one["density"].value - other["density"].value) > 0.2
    assert abs(one["coverage"].value - other["coverage"].value) > 0.05


def test_c2st_agrees_with_sklearn():
    x, y = draw(80, 3), draw(80, 3) + 0.5
    z, label = np.concatenate([x, y]), np.repeat([0, 1], 80)
    theirs = cross_val_predict(KNeighborsClassifier(1), z, label, cv=LeaveOneOut())
    assert tell_apart(x, y).accuracy == pytest.approx((theirs == label).mean())


def test_c2st_ideal_and_far():
    values = [tell_apart(draw(100, 5), draw(100, 5)).accuracy for _ in range(60)]
    assert np.mean(values) == pytest.approx(0.5, abs=4 * np.std(values) / 60**0.5 + 0.005)
    found = c2st(draw(100, 5) + 50, draw(100, 5))
    assert (found.value, found.n) == (1.0, 200)
    assert c2st(draw(260, 5), draw(100, 5)).low == pytest.approx(c2st(draw(100, 5), draw(100, 5)).low, abs=0.25)
    with pytest.raises(ValueError, match="equal size"):
        tell_apart(draw(5, 2), draw(6, 2))


def test_c2st_ties_do_not_depend_on_order():
    x = np.random.default_rng(9).integers(0, 2, (60, 3)).astype(float)
    y = np.random.default_rng(10).integers(0, 2, (60, 3)).astype(float)
    assert tell_apart(x, y) == tell_apart(x[::-1], np.random.default_rng(11).permutation(y))


def test_memorisation_equals_the_mean_over_subsets():
    g = np.random.default_rng(12)
    samples, train, held = draw(60, 2), draw(45, 2), draw(15, 2)
    found = memorisation_index(samples, train, held, rng=Rng(0, "test"))
    near = nearest(samples, held).distance[:, 0]
    shares = [(nearest(samples, train[g.permutation(45)[:15]]).distance[:, 0] < near).mean() for _ in range(3000)]
    assert found.size == 15
    assert found.share == pytest.approx(np.mean(shares), abs=4 * np.std(shares) / 3000**0.5)


def test_memorisation_of_honest_samples_is_half_and_its_interval_covers():
    found = [memorisation_index(draw(100, 3), draw(120, 3), draw(60, 3), rng=Rng(i, "test")) for i in range(100)]
    shares = np.array([f.share for f in found])
    assert shares.mean() == pytest.approx(0.5, abs=4 * shares.std() / 10)
    assert np.mean([abs(f.share - 0.5) <= 1.96 * f.sd for f in found]) > 0.85


def test_an_item_in_both_sets_is_a_tie():
    x = draw(40, 3)
    assert memorisation_index(x, x, x, rng=Rng(0, "test")).share == pytest.approx(0.5)


def test_memoriser_is_caught_and_honest_draws_are_not():
    x = load_digits().data
    alarms, honest_index = 0, []
    for seed in range(20):
        order = np.random.default_rng(seed).permutation(len(x))
        train, held, honest = x[order[:700]], x[order[700:1100]], x[order[1100:1700]]
        rng = Rng(seed, "test")
        alarms += find_copies(honest, train, held, rng=RNG).alarm
        honest_index.append(memorisation_index(honest, train, held, rng=rng).share)
        rows = np.random.default_rng(seed).integers(0, 700, 600)
        copied = find_copies(train[rows], train, held, rng=RNG)
        assert copied.alarm
        assert copied.share == 1.0
        assert np.array_equal(train[copied.item], train[rows])
        some = np.concatenate([train[rows[:60]], honest[:540]])  # one copy in ten
        assert find_copies(some, train, held, rng=RNG).alarm
    assert alarms == 0  # each seed's level is below 1 %
    assert np.mean(honest_index) == pytest.approx(0.5, abs=0.02)


def test_a_dull_model_is_no_memoriser():
    """Samples near everything (the mean of many items) are close to training items and to held-out ones alike."""
    g = np.random.default_rng(13)
    train, held = draw(500, 6), draw(300, 6)
    for _ in range(20):
        dull = 0.2 * g.standard_normal((400, 6))
        assert not find_copies(dull, train, held, rng=RNG).alarm


def test_close_test_is_exact():
    """Its p-values are uniform at most: P(p < a) <= a for exchangeable samples and held-out items."""
    p = [find_copies(draw(60, 2), draw(200, 2), draw(200, 2), rng=RNG).p_close for _ in range(300)]
    assert np.mean(np.array(p) < 0.05) < 0.05 + 4 * (0.05 * 0.95 / 300) ** 0.5
    assert np.mean(p) > 0.4


def test_duplicates_across_the_split_hide_no_copier():
    train = draw(300, 4)
    held = np.concatenate([train[:20], draw(280, 4)])
    assert find_copies(train[:200], train, held, rng=RNG).alarm
    assert not find_copies(draw(200, 4), train, held, rng=RNG).alarm


def test_protocol_says_alarm():
    train = draw(200, 4)
    assert copies(train, train, draw(200, 4), rng=RNG).protocol.startswith("alarm")
    assert copies(draw(200, 4), train, draw(200, 4), rng=RNG).protocol.startswith("no alarm")


def test_too_few_is_null_with_reason():
    rng = Rng(0, "test")
    one, many = draw(1, 3), draw(50, 3)
    tested = (c2st(one, many), memorisation(one, many, many, rng=rng), copies(many, many, one, rng=RNG))
    for found in (*prdc(one, many).values(), *tested):
        assert found.value is None
        assert "not available (n=1" in found.protocol
    with pytest.raises(ValueError, match="neighbours"):
        nearest(many, one, 2)


def test_noise_around_real_items_does_not_pass_for_real() -> None:
    rng = np.random.default_rng(12)
    real = rng.normal(size=(200, 400)) * 0.1 + rng.integers(0, 2, (200, 1))
    noise = real + rng.normal(size=real.shape)
    told = tell_apart(noise, real)
    assert told.fake < 0.1
    assert told.real > 0.9
    assert c2st(noise, real).value == pytest.approx(0.5 + (1 - told.fake + told.real - 1) / 2)


def test_blocks_of_a_wide_set_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(13)
    x, y = rng.integers(0, 4, (40, 3)), rng.integers(0, 4, (90, 3))
    whole, own = nearest(x, y, 4), nearest(y, y, 2, same=True)
    monkeypatch.setattr("quintet.metrics.neighbours.WIDE", 17)
    monkeypatch.setattr("quintet.metrics.neighbours.BLOCK", 11)
    for before, after in ((whole, nearest(x, y, 4)), (own, nearest(y, y, 2, same=True))):
        assert (before.distance == after.distance).all()
    brute = np.sort(((x[:, None] - y[None]) ** 2).sum(2), axis=1)[:, :4] ** 0.5
    assert whole.distance == pytest.approx(brute)


@pytest.mark.parametrize("k", [1, 3])
def test_nearest_among_some(monkeypatch: pytest.MonkeyPatch, k: int) -> None:
    g = np.random.default_rng()
    x, y, some = g.random((50, 3)), g.random((120, 3)), g.random(120) < 0.3
    some[:30] = False  # a block that offers nothing
    theirs = NearestNeighbors(n_neighbors=k).fit(y[some]).kneighbors(x)
    for width in (4096, 20):
        monkeypatch.setattr("quintet.metrics.neighbours.WIDE", width)
        found = nearest(x, y, k, among=some)
        assert found.distance == pytest.approx(theirs[0])
        assert (found.item == np.flatnonzero(some)[theirs[1]]).all()
    with pytest.raises(ValueError, match="neighbours among 2 items"):
        nearest(x, y, 3, among=np.arange(120) < 2)
