"""One pass over all metrics: names, ideals, alarms, and what must not matter."""

import math
from itertools import pairwise

import numpy as np
import pytest
from sklearn.datasets import load_digits

from quintet.core.results import METRICS, SPACES
from quintet.core.rng import Rng
from quintet.core.spec import DataSpec
from quintet.metrics.baselines import baselines
from quintet.metrics.coverage import kl_floor
from quintet.metrics.evaluate import Modes, Part, Reference
from quintet.metrics.judges import RandomSpace, make_judge, train_exemplars, train_judge
from quintet.metrics.ladders import ladders

SPEC = DataSpec("image", (1, 8, 8), 17, {"label": 10})


@pytest.fixture(scope="module")
def parts():
    data = load_digits()
    order = np.random.default_rng(31).permutation(1797)
    x, y = data.images[order][:, None].astype(np.uint8), data.target[order].astype(np.int64)
    edges = (0, 927, 1027, 1297, 1797)
    return [Part(x[a:b], y[a:b]) for a, b in pairwise(edges)]


@pytest.fixture(scope="module")
def reference(parts):
    train, validation, judge, test = parts
    space = train_judge(*judge, SPEC, steps=80, networks=1)
    own = train_exemplars(judge.x, SPEC, steps=40, networks=1)
    spare = np.concatenate([validation.x, judge.x])
    random = RandomSpace(judge.x, SPEC)
    return Reference(SPEC, train=train, test=test, judge=space, own=own, random=random, spare=spare)


@pytest.fixture(scope="module")
def rows(reference, parts):
    found = {m.name: m.sample(1000, rng=Rng(0, "test")) for m in baselines(SPEC, *parts[0])}
    one = Part(np.repeat(parts[0].x[:1], 1000, axis=0), np.repeat(parts[0].labels[:1], 1000))
    return {name: reference.evaluate(*drawn) for name, drawn in {**found, "collapsed": one}.items()}


def test_names(rows, reference):
    for found in rows.values():
        assert set(found) == set(reference.names)
        assert set(METRICS) - {"bits_per_dim"} <= set(found)
        for name, estimate in found.items():
            assert estimate.value is not None, name
            assert math.isfinite(estimate.value)
            assert estimate.low <= estimate.value <= estimate.high, name
            assert estimate.protocol


def test_every_space_has_its_distances(rows, reference):
    assert {f"kid{suffix}" for suffix in reference.spaces} == set(SPACES)
    for metric in (*SPACES, "fd_self", "fd_random"):
        assert rows["bootstrap"][metric].value < rows["histograms"][metric].value < rows["collapsed"][metric].value
    assert "exemplar" in rows["bootstrap"]["kid_self"].protocol
    assert "random" in rows["bootstrap"]["kid_random"].protocol


def test_some_rows_of_views_are_those_of_the_whole(reference, parts):
    whole = reference.views(parts[0].x[:40])
    some = np.array([3, 30, 4])
    for suffix, space in reference.spaces.items():
        assert np.array_equal(whole.rows(some)[suffix], whole[suffix][some])
        assert np.allclose(whole.rows(some)[suffix], space.features(parts[0].x[some]), atol=1e-4)


def test_floor_is_where_real_data_are(reference):
    floor = reference.floor()
    assert {name for name in floor if not name.endswith("_reconstruction")} == set(reference.names)
    assert abs(floor["kid"].value) < 0.02
    assert floor["c2st"].value == pytest.approx(0.5, abs=0.08)
    assert floor["c2st_judge"].value == pytest.approx(0.5, abs=0.08)
    assert floor["precision"].value > 0.9
    assert floor["recall"].value > 0.9
    assert floor["coverage"].value > 0.9
    assert floor["density"].value == pytest.approx(1, abs=0.15)
    assert floor["memorisation"].low < 0.5 < floor["memorisation"].high + 0.02
    assert floor["copies"].protocol.find("no alarm") >= 0
    assert floor["cas"].value > 0.95
    assert floor["modes"].value == 10
    assert floor["sharpness"].value == pytest.approx(1, abs=0.08)


def test_baselines_in_their_places(rows, reference):
    floor = reference.floor()
    assert rows["bootstrap"]["copies"].protocol.startswith("alarm")
    assert rows["bootstrap"]["memorisation"].low > 0.6
    for name in ("histograms", "mixture"):
        assert rows[name]["copies"].protocol.startswith("no alarm")
        assert rows["bootstrap"]["fd_pca"].value < rows[name]["fd_pca"].value
        assert floor["fd_pca"].high < rows[name]["fd_pca"].value
    assert rows["bootstrap"]["kid"].high < rows["histograms"]["kid"].low
    assert rows["histograms"]["cas"].value < floor["cas"].value


def test_a_collapsed_model_scores_low(rows):
    found = rows["collapsed"]
    assert found["recall"].value < 0.05
    assert found["coverage"].value < 0.1
    assert found["modes"].value == 1
    assert found["modes_kl"].value > 1.5
    assert found["copies"].protocol.startswith("alarm")
    assert found["kid"].low > rows["bootstrap"]["kid"].high


def test_order_of_samples_plays_no_part(reference, parts):
    x, y = parts[1].x, parts[1].labels
    one, other = reference.evaluate(x, y), reference.evaluate(x[::-1].copy(), y[::-1].copy())
    for name in one:
        assert one[name].value == pytest.approx(other[name].value, abs=1e-9), name


def test_too_few_and_broken_samples_are_null(reference, parts):
    for found in reference.evaluate(parts[3].x[:1], parts[3].labels[:1]).values():
        assert found.value is None
        assert "not available" in found.protocol or "undefined" in found.protocol
    broken = parts[3].x[:50].astype(np.float32)
    broken[3, 0, 2, 2] = np.nan
    found = reference.evaluate(broken)
    assert set(found) == set(reference.names)
    assert all(e.value is None and "1 not finite" in e.protocol for e in found.values())
    assert all(e.value is None for e in reference.evaluate(parts[3].x[:0]).values())
    with pytest.raises(ValueError, match="shape"):
        reference.evaluate(np.ones((5, 2)))


def test_small_data_are_null_not_errors(parts):
    x = parts[0].x
    space = train_exemplars(x[:5], SPEC, steps=2, networks=1)
    for n in (1, 3):
        tiny = Reference(SPEC, train=Part(x[:n]), test=Part(x[n : 2 * n]), judge=space)
        for found in (tiny.evaluate(x[:50]), tiny.floor()):
            assert set(found) >= {"kid", "fd", "cas", "memorisation"}
            assert all(e.value is None or math.isfinite(e.value) for e in found.values())
            assert found["coverage"].value is None


def test_nearest_training_items_and_choices(reference, parts):
    train, validation, _, _ = parts
    assert np.array_equal(train.x[reference.nearest_train(train.x[40:50])[:, 0]], train.x[40:50])
    good = reference.pca.distance(train.x[:200], reference.pca.features(validation.x))
    bad = reference.pca.distance(np.full_like(train.x[:200], 8), reference.pca.features(validation.x))
    assert good.high < bad.low
    assert reference.find_copies(train.x[:100]).alarm


def ring(n, g, scale=0.1, modes=8):
    angle = np.arange(8) * math.pi / 4
    centres = 2 * np.stack([np.cos(angle), np.sin(angle)], 1)
    return (centres[g.integers(0, modes, n)] + scale * g.standard_normal((n, 2))).astype(np.float32), centres


def test_vectors_with_known_modes():
    g = np.random.default_rng(32)
    spec = DataSpec("vector", (2,))
    (train, centres), (judge, _), (test, _) = (ring(n, g) for n in (1500, 300, 600))
    reference = Reference(
        spec, train=Part(train), test=Part(test), judge=make_judge(judge, None, spec), spare=judge,
        modes=Modes(centres, 0.1),
    )  # fmt: skip
    good, half = (reference.evaluate(ring(1000, g, modes=m)[0]) for m in (8, 4))
    blob = reference.evaluate(g.multivariate_normal(test.mean(0), np.cov(test.T), 1000).astype(np.float32))
    assert (good["modes"].value, half["modes"].value) == (8, 4)
    assert good["in_3_sigma"].value > 0.97
    assert blob["in_3_sigma"].value < 0.3
    assert half["coverage"].value < 0.65 < good["coverage"].value
    assert half["kid"].low > good["kid"].high
    assert blob["kid"].low > good["kid"].high  # three moments alone would not see it
    assert good["copies"].protocol.startswith("no alarm")
    for name in ("cas", "sharpness"):
        assert good[name].value is None
    assert set(reference.floor()) == set(good)


def test_the_reconstruction_floor_is_that_of_real_items_for_a_lossless_code_and_worse_for_blur() -> None:
    rng = np.random.default_rng(31)
    spec = DataSpec("image", (1, 8, 8), 256)
    waves = np.cumsum(rng.normal(size=(700, 1, 8, 8)), axis=3)
    x = np.clip(128 + 20 * waves, 0, 255).astype(np.uint8)
    judge = Part(x[:150])
    found = Reference.build(spec, train=Part(x[150:450]), validation=Part(x[:20]), judge=judge, test=Part(x[450:]))
    shown = found.shown.x[: found.size]
    again, floor = found.reconstruction(shown), found.floor(2)
    assert set(again) == {"kid_reconstruction", "fd_reconstruction", "sharpness_reconstruction"}
    assert again["sharpness_reconstruction"].value == pytest.approx(floor["sharpness_reconstruction"].value, rel=0.2)
    blurred = found.reconstruction(np.repeat(shown[..., ::2], 2, axis=3)[..., ::-1])
    assert blurred["fd_reconstruction"].value > 2 * again["fd_reconstruction"].value


def test_clusters_stand_for_modes_that_nobody_named() -> None:
    """Six clusters of equal weight without labels: of those that are left the divergence is -ln of their real share."""
    g = np.random.default_rng(17)
    centres = 10 * np.stack([np.cos(np.arange(6) * np.pi / 3), np.sin(np.arange(6) * np.pi / 3)], 1)

    def drawn(n: int, kept: int = 6) -> np.ndarray:
        return (centres[g.integers(0, kept, n)] + g.normal(size=(n, 2))).astype(np.float32)

    spec, judge, test = DataSpec("vector", (2,)), drawn(400), drawn(1000)
    reference = Reference(
        spec, train=Part(drawn(2000)), test=Part(test), judge=make_judge(judge, None, spec), spare=judge
    )
    blob = ((test[:, None] - centres) ** 2).sum(2).argmin(1)
    assert reference.clusters is not None
    count = len(reference.clusters.centres)
    assert count == 20
    ideal = kl_floor(count, reference.size, 1000)
    floor = reference.floor(3)["modes_kl"]
    assert floor.value == pytest.approx(ideal, rel=0.5)
    for kept in (6, 5, 3):
        found, lost = reference.evaluate(drawn(1000, kept)), -np.log((blob < kept).mean())
        assert lost == pytest.approx(np.log(6 / kept), abs=0.1)
        assert found["modes_kl"].value == pytest.approx(lost + ideal, abs=0.02)
        assert "k-means" in found["modes_kl"].protocol
        assert found["modes"].value is None
    assert reference.known_modes is None
    rows = ladders(reference, {"modes_kl": floor})
    assert rows["modes_kl"].used
    small = Reference(spec, train=Part(drawn(60)), test=Part(drawn(29)), judge=reference.judge, spare=drawn(29))
    assert small.evaluate(drawn(60))["modes_kl"].value is None
