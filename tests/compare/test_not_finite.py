"""Samples that are not finite: previews go on, evaluation says that the model has diverged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import quintet
from quintet.compare import cell, drawing
from quintet.compare.reference import make_reference, nearest_pairs
from quintet.data.sources import open_dataset


def test_such_a_model_is_a_row_that_diverged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = cell.generate

    def lost(*given: Any, **named: Any) -> Any:
        made = whole(*given, **named)
        return replace(made, x=np.where(np.arange(len(made.x))[:, None] == 3, np.nan, made.x))

    for module in (cell, drawing):
        monkeypatch.setattr(module, "generate", lost)
    found = quintet.compare("toy:ring8", recipes=["gan"], budget="30steps", seeds=1, out=tmp_path, device="cpu")
    (row,) = found.result.recipes
    assert (row.status, row.seeds[0].status) == ("diverged", "diverged")
    assert "1 of 1000 samples are not finite" in row.reason
    log = (tmp_path / "cells" / "gan-s0" / "log.jsonl").read_text()
    assert '"preview"' in log
    assert "kid_pca" not in log


def test_they_have_no_neighbours(tmp_path: Path) -> None:
    dataset = open_dataset("toy:ring8")
    reference = make_reference(tmp_path, dataset)
    x = dataset.test.x[:40].copy()
    x[7, 1] = np.inf
    pairs = nearest_pairs(reference, x)
    assert len(pairs["sample"]) > 0
    assert np.isfinite(pairs["sample"]).all()
    assert np.isfinite(pairs["distance"]).all()
