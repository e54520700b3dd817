"""Points that previews leave: costs and shares of all stages, samples and intervals; the count of tuning trials."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from quintet.compare import cell
from quintet.compare.cell import PREVIEW_SAMPLES, SNAPSHOT_SAMPLES, SNAPSHOTS, CellJob, train_cell
from quintet.core.budget import Budget
from quintet.data.sources import open_dataset
from quintet.recipes.registry import find


def trained(folder: Path, recipe: str, data: str, budget: str) -> dict[str, Any]:
    tuned = replace(find(recipe), tuning_trials=4)
    job = CellJob(folder, tuned, open_dataset(data), Budget.parse(budget), seed=0)
    train_cell(job, lambda event: None, lambda: False)
    return dict(json.loads((folder / "training.json").read_text(encoding="utf-8")))


def test_points_cost_what_all_stages_have_cost(tmp_path: Path) -> None:
    found = trained(tmp_path / "cell", "latent-diffusion", "digits", "6steps")
    ledger, curve = found["ledger"], found["curve"]
    first, *_, last = curve
    plans = json.loads((tmp_path / "cell" / "plan.json").read_text(encoding="utf-8"))["stages"]
    before = next(iter(plans.values()))
    steps = before["events"][-1]["steps"]
    assert first["flops"] > steps * before["flops_per_step"]
    assert first["share"] > steps / 6 * 0.9
    for a, b in pairwise(curve):
        assert all(a[name] < b[name] for name in ("share", "seconds", "flops", "examples", "step"))
    assert last["share"] == pytest.approx(1)
    assert last["flops"] == pytest.approx(ledger["flops"])
    assert last["examples"] == ledger["examples"]
    assert last["seconds"] <= ledger["wall_s"]
    assert {point["n"] for point in curve} == {PREVIEW_SAMPLES}  # a budget without a clock draws no more
    assert all(point["low"] <= point["kid_pca"] <= point["high"] for point in curve)
    assert ledger["tuning_trials"] == 4


def test_a_budget_in_seconds_draws_more_at_the_snapshots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cell, "SNAPSHOT_SHARE", 100.0)  # as if samples cost nothing
    found = trained(tmp_path / "cell", "vae", "toy:ring8", "1s")
    shares = [0.0, *(point["share"] for point in found["curve"])]
    for k, point in enumerate(found["curve"], 1):
        snapshot = k == len(shares) - 1 or any(shares[k - 1] < share <= shares[k] for share in SNAPSHOTS)
        assert point["n"] == (SNAPSHOT_SAMPLES if snapshot else PREVIEW_SAMPLES)
    assert (found["ledger"]["energy_j"] is None) == (found["ledger"]["energy"] in ("absent", "forbidden"))
