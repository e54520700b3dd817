"""What cells are held against: CAS of real data and baselines at the number of samples that models are judged on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

from quintet.compare.reference import (
    NOTHING,
    SAMPLES,
    check_judges,
    level_reference,
    samples_for,
    write_known,
    write_reference,
)
from quintet.core.errors import UsageError
from quintet.data.sources import open_dataset
from quintet.metrics.judges.dinov2 import VisionTransformer
from quintet.metrics.judges.weights import load_judges


def images(n: int) -> dict[str, np.ndarray]:
    """Two noisy classes: a bright left or a bright right half."""
    rng = np.random.default_rng(n)
    y = rng.integers(0, 2, n)
    x = rng.integers(0, 90, (n, 6, 6))
    x[y == 0, :, :3] += 40
    x[y == 1, :, 3:] += 40
    return {"x": x.astype(np.uint8), "y": y}


def test_more_samples_where_as_many_labelled_examples_make_a_fair_cas() -> None:
    assert samples_for(open_dataset("digits")) == SAMPLES
    assert samples_for(open_dataset(images(4000))) == 2 * SAMPLES
    assert samples_for(open_dataset({"x": images(4000)["x"]})) == SAMPLES


def test_the_floor_follows_the_number_of_samples(tmp_path: Path) -> None:
    dataset = open_dataset(images(900))
    write_reference(tmp_path, dataset, 300, 1, "cpu", lambda event: None)
    path = tmp_path / "reference" / "reference.json"
    before = json.loads(path.read_text())
    assert f"trained on {before['spaces']['cas_size']} labelled samples" in before["floor"]["cas"]["protocol"]
    level_reference(tmp_path, dataset, before["spaces"]["cas_size"] + 1)
    assert json.loads(path.read_text()) == before
    level_reference(tmp_path, dataset, 40)
    after = json.loads(path.read_text())
    assert "trained on 40 labelled samples" in after["floor"]["cas"]["protocol"]
    bootstrap = next(row for row in after["baselines"] if row["name"] == "bootstrap")
    assert "trained on 40 labelled samples" in bootstrap["metrics"]["cas"]["protocol"]
    assert after["spaces"]["cas_size"] == after["spaces"]["set_size"] == 40
    assert after["floor"]["fd_pca"]["n"] == 40
    assert after["floor"]["fd_pca"]["value"] > 1.5 * before["floor"]["fd_pca"]["value"]  # fewer samples look farther
    rows = {row["name"]: row["metrics"] for row in after["baselines"]}
    old = {row["name"]: row["metrics"] for row in before["baselines"]}
    assert rows["histograms"]["fd_pca"]["n"] == 40
    assert rows["histograms"]["bits_per_dim"] == old["histograms"]["bits_per_dim"]
    gap = after["floor"]["fd_pca"]["value"] - before["floor"]["fd_pca"]["value"]
    steps = [[r["value"] for r in found["ladders"]["fd_pca"]["rungs"]] for found in (before, after)]
    assert np.allclose(np.array(steps[1]) - np.array(steps[0]), gap)  # the ladders move with the floor
    level_reference(tmp_path, dataset, before["spaces"]["cas_size"])
    back = json.loads(path.read_text())  # and back, where cells were judged on more again
    assert {**back, "ladders": None} == {**before, "ladders": None}
    again = [[r["value"] for r in found["ladders"]["fd_pca"]["rungs"]] for found in (before, back)]
    assert np.allclose(*again, rtol=0, atol=1e-9)


def test_a_comparison_keeps_to_the_judges_it_was_begun_with(tmp_path: Path) -> None:
    weights = tmp_path / "dinov2.safetensors"
    network = VisionTransformer(64, 1, 1 + 16 * 16)
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, weights)
    dataset, judges = open_dataset(images(60)), {"dinov2": weights}
    check_judges(tmp_path, dataset, judges)  # nothing was begun
    (tmp_path / "reference").mkdir()
    held = load_judges(judges, dataset.spec)["dinov2"].to_json()
    write_known(tmp_path, NOTHING.model_copy(update={"spaces": {"pretrained": {"dinov2": held}}}))
    check_judges(tmp_path, dataset, judges)
    with pytest.raises(UsageError, match="other judge weights"):
        check_judges(tmp_path, dataset, {})
    write_known(tmp_path, NOTHING)
    with pytest.raises(UsageError, match="dinov2"):
        check_judges(tmp_path, dataset, judges)
