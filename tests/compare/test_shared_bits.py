"""Likelihoods are compared on the test examples that all models had time for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from quintet.compare.likelihood import NATS, share
from quintet.core.results import SHARED_BITS, RecipeResult, SeedResult
from quintet.core.verdicts import middle, scores
from quintet.metrics.likelihood import bits_per_dim
from quintet.recipes.load import RESULT

DIMS = 5


def cell(folder: Path, nats: np.ndarray, kind: str, seed: int = 0) -> Path:
    folder.mkdir()
    own = bits_per_dim(nats, DIMS, kind=kind, protocol="levels")
    made = SeedResult(seed=seed, status="done", metrics={"bits_per_dim": own})
    (folder / RESULT).write_text(made.model_dump_json())
    np.save(folder / NATS, nats)
    return folder


def stored(folder: Path) -> SeedResult:
    return SeedResult.model_validate_json((folder / RESULT).read_text())


def test_values_are_those_of_the_same_examples(tmp_path: Path) -> None:
    rng = np.random.default_rng()
    hard = rng.normal(0, 3, 500)  # of each example, whatever the model
    slow = cell(tmp_path / "a", -9.0 - hard[:100], "estimate")
    fast = cell(tmp_path / "b", -10.0 - hard, "exact")
    other = cell(tmp_path / "c", -10.0 - hard[:300], "bound")
    few = cell(tmp_path / "d", -1.0 - hard[:20], "estimate")
    silent = tmp_path / "e"  # no likelihood
    silent.mkdir()
    share([slow, fast, other, few, silent], DIMS, 500)
    found = {folder.name: stored(folder).metrics[SHARED_BITS] for folder in (slow, fast, other, few)}
    assert {name: e.n for name, e in found.items()} == {"a": 100, "b": 100, "c": 100, "d": None}
    unit = DIMS * np.log(2)
    for name, level in (("a", 9.0), ("b", 10.0), ("c", 10.0)):
        assert found[name].value == pytest.approx((level + hard[:100].mean()) / unit)
    assert "20 test examples" in found["d"].protocol
    assert [found[name].protocol.partition(";")[0] for name in "abc"] == ["estimate", "exact", "bound: at most"]
    assert stored(fast).metrics["bits_per_dim"].n == 500  # the model's own number stays


def test_a_small_test_split_is_shared_whole(tmp_path: Path) -> None:
    folder = cell(tmp_path / "a", np.linspace(-3, -1, 10), "exact")
    share([folder], DIMS, 10)
    assert stored(folder).metrics[SHARED_BITS].n == 10


def test_verdicts_go_by_what_is_shared() -> None:
    own, shared = (bits_per_dim(np.full(20, -n) + np.arange(20), DIMS, kind="exact") for n in (30.0, 40.0))
    with_both = SeedResult(seed=0, status="done", metrics={"bits_per_dim": own, SHARED_BITS: shared})
    without = SeedResult(seed=0, status="done", metrics={"bits_per_dim": own})
    for made, expected in ((with_both, shared), (without, own)):
        row = RecipeResult(name="a", family="vae", status="done", seeds=[made])
        assert middle(row, "bits_per_dim") == expected.value
        (score,) = scores(row, "bits_per_dim")
        assert (score.value, score.low) == (expected.value, expected.low)
