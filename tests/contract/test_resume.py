"""Every recipe on digits, calibration and codec included: interrupted and resumed training ends with the same bits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from quintet.core import checkpoint
from quintet.core.budget import Budget
from quintet.core.errors import Interrupted
from quintet.core.ledger import Ledger
from quintet.core.plan import Plan
from quintet.core.recipe import Stage
from quintet.core.rng import Rng, layer_noise
from quintet.data.batches import Batches
from quintet.data.dataset import Dataset
from quintet.data.digits import open_digits
from quintet.recipes.registry import RECIPES
from quintet.train.run import fit

STEPS, EVERY = 7, 2


class Recorder:
    """Keeps plans and losses, and asks to stop after a step if it should."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.stop_after, self.done = stop_after, 0
        self.plans: list[Plan] = []
        self.losses: dict[int, str] = {}

    def log(self, line: Any) -> None:
        if line["kind"] == "step":
            self.losses[line["step"]] = json.dumps({k: v for k, v in line.items() if k != "seconds"})

    def plan(self, plan: Plan) -> None:
        self.plans.append(plan)

    def step(self, step: int, plan: Plan, seconds: float, share: float) -> None:
        self.done = step

    def preview(self, state: Any, seconds: float) -> None: ...

    def stop(self) -> bool:
        return self.stop_after is not None and self.done >= self.stop_after


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return open_digits()


def train(stage: Stage, data: Dataset, folder: Path, recorder: Recorder, plan: Plan | None = None) -> None:
    codec = stage.codec.fit(data.spec, torch.from_numpy(data.train.x))
    with layer_noise(Rng(5, "init", stage.name)):
        model = stage.model.build(codec.spec)
    fit(
        model,
        Batches(data.train, codec, stage.train.batch, 5, augment=stage.train.augment),
        stage.train,
        Budget("steps", STEPS),
        seed=5,
        folder=folder,
        ledger=Ledger(),
        watcher=recorder,
        plan=plan,
        parts={"codec": codec},
        checkpoint_steps=EVERY,
    )


def digests(folder: Path) -> dict[str, str]:
    found = checkpoint.newest(folder / "checkpoints")
    assert found is not None
    assert found.step == STEPS
    files = json.loads((found.path / "manifest.json").read_text())["files"]
    return {name: entry["sha256"] for name, entry in files.items() if name.endswith(".safetensors")}


@pytest.mark.parametrize("recipe", RECIPES)
def test_resumed_equals_uninterrupted(recipe: str, digits: Dataset, tmp_path: Path) -> None:
    for i, full in enumerate(RECIPES[recipe].stages(digits.spec, Budget("steps", STEPS))):
        stage = replace(full, train=replace(full.train, batch=32))
        whole = Recorder()
        train(stage, digits, tmp_path / f"{i}-whole", whole)
        wanted = digests(tmp_path / f"{i}-whole")
        assert len(wanted) == 2 + len(stage.train.ema)
        for stop in (1, 5):  # the second between two checkpoints
            first, second = Recorder(stop_after=stop), Recorder()
            with pytest.raises(Interrupted):
                train(stage, digits, tmp_path / f"{i}-{stop}", first)
            train(stage, digits, tmp_path / f"{i}-{stop}", second, first.plans[-1])
            assert digests(tmp_path / f"{i}-{stop}") == wanted
            assert {**first.losses, **second.losses} == whole.losses
