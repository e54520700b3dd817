"""What cells are held against: CAS of real data and baselines at the number of samples that models are judged on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from quintet.compare.reference import SAMPLES, level_reference, samples_for, write_reference
from quintet.data.sources import open_dataset


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


def test_the_floor_s_cas_follows_the_number_of_samples(tmp_path: Path) -> None:
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
    assert after["floor"]["kid"] == before["floor"]["kid"]
    assert after["spaces"]["cas_size"] == 40
