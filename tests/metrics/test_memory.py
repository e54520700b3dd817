"""C_T against scipy and under its null, authenticity against brute force, repeats, and the copy alarm's error rates."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest, f, kstest, mannwhitneyu, norm
from sklearn.datasets import load_digits

from quintet.core.rng import Rng
from quintet.metrics.memory import (
    Cells,
    CellTest,
    authentic,
    authenticity,
    c_t,
    cell_count,
    data_copying,
    mann_whitney,
    repeats,
)
from quintet.metrics.neighbours import AROUND, approach, find_copies, nearest

RNG = Rng(0, "test")


def ring(g: np.random.Generator, n: int) -> np.ndarray:
    angle = g.integers(8, size=n) * np.pi / 4
    return 2 * np.stack([np.cos(angle), np.sin(angle)], 1) + 0.1 * g.standard_normal((n, 2))


@pytest.mark.parametrize("levels", [None, 6])
def test_rank_test_agrees_with_scipy(levels: int | None) -> None:
    g = np.random.default_rng()
    q, p = g.random(40) * 1.2, g.random(55)
    if levels is not None:  # many ties
        q, p = np.floor(q * levels), np.floor(p * levels)
    theirs = mannwhitneyu(q, p, use_continuity=False, method="asymptotic", alternative="less").pvalue
    assert norm.cdf(mann_whitney(q, p)) == pytest.approx(theirs, rel=1e-9)
    assert mann_whitney(q, p) == pytest.approx(-mann_whitney(p, q))
    assert mann_whitney(np.ones(9), np.ones(8)) == 0


def test_c_t_is_the_weighted_mean_of_its_cells() -> None:
    g = np.random.default_rng(3)
    s, h = g.random(300), g.random(200)
    where_s, where_h = g.integers(3, size=300), np.repeat([0, 1, 2], [150, 45, 5])
    found = data_copying(s, h, where_s, where_h)
    assert found is not None
    z = [mann_whitney(s[where_s == c], h[where_h == c]) for c in (0, 1)]  # five held-out items are too few
    assert found.value == pytest.approx((150 * z[0] + 45 * z[1]) / 195)
    assert found.sd == pytest.approx(((150 / 195) ** 2 + (45 / 195) ** 2) ** 0.5)
    assert found.left_out == pytest.approx(5 / 200)
    assert [test.held_out for test in found.cells] == [150, 45]
    assert isinstance(found.cells[0], CellTest)
    assert data_copying(s, h, where_s, where_h + 9) is None


def test_c_t_of_honest_samples_is_zero_and_its_interval_covers() -> None:
    g = np.random.default_rng(4)
    covered, values, parts = 0, [], Cells(ring(g, 150), 4, rng=RNG)
    for _ in range(300):
        train, held, samples = ring(g, 150), ring(g, 200), ring(g, 150)
        near, own = (nearest(x, train).distance[:, 0] for x in (samples, held))
        found = c_t(near, own, parts.of(samples), parts.of(held))
        assert found.value is not None
        assert found.low is not None
        assert found.high is not None
        values.append(found.value)
        covered += found.low <= 0 <= found.high
    assert binomtest(covered, 300, 0.95).pvalue > 1e-3
    assert np.mean(values) == pytest.approx(0, abs=4 * np.std(values) / 300**0.5)


def test_c_t_tells_copies_from_noise_and_finds_the_region() -> None:
    g = np.random.default_rng(5)
    train, held, honest = ring(g, 800), ring(g, 400), ring(g, 800)
    parts = Cells(train, cell_count(400), rng=RNG)
    own = nearest(held, train).distance[:, 0]

    def judged(samples: np.ndarray):  # type: ignore[no-untyped-def]
        found = data_copying(nearest(samples, train).distance[:, 0], own, parts.of(samples), parts.of(held))
        assert found is not None
        return found

    copies = train + 0.001 * g.standard_normal(train.shape)
    assert judged(copies).value < -5
    assert judged(honest + 0.3 * g.standard_normal(honest.shape)).value > 5
    right = honest[:, 0] > 1.5  # copies of three modes of eight only
    local = np.concatenate([honest[~right], copies[copies[:, 0] > 1.5][: int(right.sum())]])
    found = judged(local)
    assert min(found.cells).z < -5
    assert sum(test.z > -3 for test in found.cells) >= 4


def test_authentic_agrees_with_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    g = np.random.default_rng()
    train, samples = g.integers(0, 6, (90, 3)).astype(float), g.integers(0, 6, (70, 3)) + 0.5 * g.random((70, 1))
    found = nearest(samples, train)
    distance, item = found.distance[:, 0], found.item[:, 0]
    between = np.linalg.norm(train[:, None] - train[None], axis=2)
    np.fill_diagonal(between, np.inf)
    expected = between[item].min(axis=1) < distance * (1 - 1e-9)
    assert (authentic(samples, train, distance, item) == expected).all()
    monkeypatch.setattr("quintet.metrics.memory.WIDE", 17)
    monkeypatch.setattr("quintet.metrics.memory.BLOCK", 11)
    assert (authentic(samples, train, distance, item) == expected).all()
    assert 0 < expected.mean() < 1


def test_authenticity_of_copies_noise_and_honest_draws() -> None:
    g = np.random.default_rng(6)
    train = g.standard_normal((400, 5))

    def share(x: np.ndarray) -> float:
        found = nearest(x, train)
        value = authenticity(x, train, found.distance[:, 0], found.item[:, 0]).value
        assert value is not None
        return value

    assert share(np.concatenate([train, train[:50]])) == 0
    twice = np.concatenate([train, train])
    found = nearest(train, twice)
    assert authenticity(train, twice, found.distance[:, 0], found.item[:, 0]).value == 0
    assert share(train + 1e-3) < 0.02
    assert share(20 * g.standard_normal((300, 5))) > 0.95
    honest = [share(g.standard_normal((300, 5))) for _ in range(2)]
    assert honest[0] == pytest.approx(honest[1], abs=0.15)
    assert 0.4 < honest[0] < 0.9


def test_repeats() -> None:
    g = np.random.default_rng(7)
    x = g.permutation(40)[:, None].astype(np.uint8)
    assert repeats(x[:30], x[30:]) == {"train": 0, "across": 0}
    assert repeats(np.concatenate([x[:30], x[:4], x[:4]]), np.concatenate([x[30:], x[2:4]])) == {
        "train": 8, "across": 2,
    }  # fmt: skip


def test_too_few_says_why() -> None:
    one = np.zeros(1)
    for found in (
        c_t(one, np.zeros(50), np.zeros(1, int), np.zeros(50, int)),
        authenticity(np.zeros((1, 2)), np.zeros((50, 2)), one, np.zeros(1, int)),
        c_t(np.zeros(50), np.zeros(50), np.zeros(50, int), np.ones(50, int)),
    ):
        assert found.value is None
        assert found.protocol.startswith("not available")


# -- how near items come to training items


@pytest.mark.parametrize("dims", [1, 3, 40])
def test_chance_is_uniform_where_items_are_spread_evenly(dims: int) -> None:
    """Points in balls of any dimension and size: the first spacing over the others' mean has an F distribution."""
    g = np.random.default_rng()
    chances = []
    for _ in range(300):
        direction = g.standard_normal((60, dims))
        radius = g.random((60, 1)) ** (1 / dims) * g.lognormal()
        ball = direction / np.linalg.norm(direction, axis=1, keepdims=True) * radius
        chances.append(approach(np.zeros((1, dims)), ball).chance[0])
        d = np.sort(radius[:, 0])[:AROUND]
        spacing = [(j + 1) * np.log(d[j + 1] / d[j]) for j in range(AROUND - 1)]
        theirs = f.sf(spacing[0] / np.mean(spacing[1:]), 2, 2 * (AROUND - 2))
        assert chances[-1] == pytest.approx(theirs, rel=1e-6)
    assert kstest(chances, "uniform").pvalue > 1e-3


def test_approach_agrees_with_brute_force_and_knows_no_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    g = np.random.default_rng()
    train, x = g.standard_normal((150, 4)) + 1e3, g.standard_normal((60, 4)) + 1e3  # far off: exact all the same
    x[:5] = train[40:45]
    between = np.linalg.norm(x[:, None] - train[None], axis=2)
    found = approach(x, train)
    assert (found.item == between.argmin(axis=1)).all()
    assert found.distance == pytest.approx(between.min(axis=1), rel=1e-12)
    assert (np.flatnonzero(found.distance == 0) == np.arange(5)).all()
    assert (np.flatnonzero(found.chance == 0) == np.arange(5)).all()
    monkeypatch.setattr("quintet.metrics.neighbours.WIDE", 23)
    monkeypatch.setattr("quintet.metrics.neighbours.BLOCK", 17)
    for again in (approach(x, train), approach(x, np.concatenate([train, *[train[:60]] * 30]))):
        assert (again.item == found.item).all()
        assert again.distance == pytest.approx(found.distance)
        assert again.chance == pytest.approx(found.chance)


def test_chance_of_a_copy_of_ties_and_of_hardly_any_items() -> None:
    grid = np.stack(np.meshgrid(np.arange(9.0), np.arange(9.0)), -1).reshape(-1, 2)
    x = np.array([[4.0, 4.0], [4.0, 4.001], [3.5, 4.0]])  # a copy, nearly one, half way between two
    chance = approach(x, grid).chance
    assert chance[0] == 0
    assert 0 < chance[1] < 1e-5  # about 1000^-2
    assert chance[2] == 1
    for distinct in (1, 2):  # nothing to tell the spacing by
        few = np.repeat(grid[:distinct], 30, axis=0)
        assert (approach(np.array([[0.0, 0.0], [0.1, 0.0]]), few).chance == [0, 1]).all()
        assert not find_copies(grid, few, grid, rng=RNG).alarm
    corners = approach(np.array([[0.1, 0.1]]), np.array([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0], [0.0, 5.0]])).chance
    assert 0 < corners[0] < 1  # the next two are as far as each other


# -- the copy alarm's errors: how often honest samples raise it, how often planted copies do


def splits(x: np.ndarray, seed: int, train: int, held: int, samples: int) -> list[np.ndarray]:
    order = np.random.default_rng(seed).permutation(len(x))
    ends = np.cumsum([train, held, samples])
    return [x[order[a:b]] for a, b in zip([0, *ends[:2]], ends, strict=True)]


def sure_below(alarms: int, runs: int, rate: float) -> bool:
    """Whether so few alarms rule out a rate of false alarms of `rate` at the 0.1 % level (exact binomial)."""
    return bool(binomtest(alarms, runs, rate, alternative="less").pvalue < 1e-3)


def test_a_rate_that_is_too_high_would_be_noticed() -> None:
    assert sure_below(2, 250, 0.05)
    assert not sure_below(6, 250, 0.05)


def test_false_alarms_on_real_digits_stay_below_five_per_cent() -> None:
    x = load_digits().data
    alarms = 0
    for seed in range(250):
        train, held, samples = splits(x, seed, 700, 400, 500)
        alarms += find_copies(samples, train, held, rng=RNG).alarm
    assert sure_below(alarms, 250, 0.05)


@pytest.mark.parametrize("kind", ["ring", "gaussian", "grid"])
def test_false_alarms_on_synthetic_data_stay_below_five_per_cent(kind: str) -> None:
    g = np.random.default_rng(8)

    def draw(n: int) -> np.ndarray:
        if kind == "ring":
            return ring(g, n)
        if kind == "gaussian":
            return g.standard_normal((n, 12))
        return g.integers(0, 12, (n, 2)).astype(float)  # repeats on all sides

    alarms = sum(find_copies(draw(200), draw(300), draw(200), rng=RNG).alarm for i in range(250))
    assert sure_below(alarms, 250, 0.05)


@pytest.mark.parametrize(("share", "noise"), [(0.05, 0.0), (0.05, 0.5), (0.1, 0.0), (0.1, 0.5), (0.5, 0.0), (0.5, 1.0)])
def test_planted_copies_raise_the_alarm(share: float, noise: float) -> None:
    """Copies among honest held-out digits, exact or with Gaussian noise of so many grey levels of 16."""
    x, g = load_digits().data, np.random.default_rng(9)
    caught = 0
    for seed in range(20):
        train, held, samples = splits(x, seed, 700, 400, 500)
        count = int(share * len(samples))
        copied = train[g.permutation(len(train))[:count]]
        samples[:count] = np.clip(copied + noise * g.standard_normal(copied.shape), 0, 16)
        caught += find_copies(samples, train, held, rng=RNG).alarm
    assert caught >= (18 if (share, noise) == (0.05, 0.5) else 20)


@pytest.mark.parametrize("model", ["dull", "collapsed", "plane"])
def test_models_that_copy_nothing_raise_no_alarm_by_lying_near_everything(model: str) -> None:
    """Samples near the mean, ten such points again and again, and only the flat half of the data."""
    g = np.random.default_rng(10)

    def draw(n: int) -> np.ndarray:
        x = g.standard_normal((n, 12))
        if model == "plane":
            flat = g.random(n) < 0.5
            x[flat, 2:] = 0
            x[flat, 0] += 20
        return x

    def samples() -> np.ndarray:
        if model == "plane":
            x = draw(1300)
            return x[x[:, 0] > 10][:500]
        dull = 0.2 * draw(400)
        return dull if model == "dull" else dull[g.integers(10, size=400)] + 0.002 * draw(400)

    found = [find_copies(samples(), draw(300), draw(200), rng=RNG) for _ in range(250)]
    assert sure_below(sum(x.alarm for x in found), 250, 0.05)
    if model != "plane":
        assert np.mean([x.p_close < 0.01 for x in found]) > 0.5  # nearness alone would raise it


@pytest.mark.parametrize("count", [20_000, 50_000])
def test_copies_with_a_little_noise_are_found_in_large_training_sets(count: int) -> None:
    g = np.random.default_rng(11)
    train, held, honest = (g.standard_normal((n, 12)) for n in (count, 600, 600))
    own = approach(held, train)
    copied = train[g.permutation(count)[:600]] + 0.001 * g.standard_normal((600, 12))
    for share in (0.05, 0.2, 1.0):
        part = round(share * 600)
        assert find_copies(np.concatenate([copied[:part], honest[part:]]), train, held, own=own, rng=RNG).alarm
    for harmless in (honest, 0.3 * honest):
        assert not find_copies(harmless, train, held, own=own, rng=RNG).alarm


def test_repeats_in_the_training_set_hide_no_copies() -> None:
    g = np.random.default_rng(12)
    for _ in range(10):
        train, held, honest = (g.standard_normal((n, 6)) for n in (400, 300, 400))
        repeated = np.concatenate([train] * 3 + [train[:1]] * 200)
        some = honest.copy()
        some[:40] = train[:40] + 0.01 * g.standard_normal((40, 6))
        assert find_copies(some, repeated, held, rng=RNG).alarm
        assert not find_copies(honest, repeated, held, rng=RNG).alarm


def test_tiny_sets() -> None:
    """27 training items: a model that returns them is found, honest samples raise no alarm."""
    g = np.random.default_rng(13)
    alarms = 0
    for _ in range(250):
        train, held, honest = (g.standard_normal((n, 12)) for n in (27, 20, 200))
        alarms += find_copies(honest, train, held, rng=RNG).alarm
        copied = train[g.integers(27, size=200)] + 0.05 * g.standard_normal((200, 12))
        assert find_copies(copied, train, held, rng=RNG).alarm
    assert sure_below(alarms, 250, 0.05)


def test_what_stands_in_held_out_data_too_is_no_copy() -> None:
    g = np.random.default_rng(14)
    train, held = g.standard_normal((400, 6)), g.standard_normal((300, 6))
    held[0] = train[0]
    blank = np.repeat(train[:1], 200, axis=0)
    assert not find_copies(blank, train, held, rng=RNG).alarm
    assert find_copies(np.repeat(train[1:2], 200, axis=0), train, held, rng=RNG).alarm
