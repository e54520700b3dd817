"""The clock and the meters beside it: what counts, what is paused, and what a resumed run carries on."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from oracles import TinyDuel, VectorBatches
from quintet.core import checkpoint
from quintet.core.budget import Budget
from quintet.core.errors import Interrupted
from quintet.core.ledger import Ledger
from quintet.core.meters import Meters
from quintet.core.plan import Plan
from quintet.core.recipe import OptimizerConfig, TrainConfig
from quintet.core.rng import Rng, layer_noise
from quintet.train import run as module
from quintet.train.clock import Clock
from quintet.train.run import fit

CONFIG = TrainConfig(batch=16, optimizers={"critic": OptimizerConfig(lr=1e-2), "generator": OptimizerConfig(lr=1e-2)})


class Spent:
    """A meter that the test turns."""

    def __init__(self) -> None:
        self.total = 0.0

    def __call__(self) -> float:
        return self.total


class Watcher:
    """Turns the meter: by 1 with every step, by 100 in a preview, which does not count."""

    def __init__(self, spent: Spent, stop_after: int | None = None) -> None:
        self.spent, self.stop_after, self.done, self.plans = spent, stop_after, 0, list[Plan]()

    def log(self, line: Any) -> None: ...

    def plan(self, plan: Plan) -> None:
        self.plans.append(plan)

    def step(self, step: int, plan: Plan, seconds: float, share: float) -> None:
        self.done = step
        self.spent.total += 1

    def preview(self, state: Any, seconds: float) -> None:
        self.spent.total += 100

    def stop(self) -> bool:
        return self.stop_after is not None and self.done >= self.stop_after


def test_a_pause_does_not_count_and_a_second_start_loses_nothing() -> None:
    spent = Spent()
    clock = Clock(meters=Meters({"energy_j": spent}))
    clock.start()
    begin = time.perf_counter()
    time.sleep(0.03)
    clock.start()  # goes already
    spent.total += 2
    with clock.paused() as length:
        worked = time.perf_counter() - begin
        time.sleep(0.03)
        spent.total += 50
    spent.total += 3
    clock.stop()
    assert length[0] >= 0.03
    assert 0.03 <= clock.wall < worked + 0.03
    assert clock.meters.totals == {"energy_j": 5.0}


def test_meters_count_the_training_alone_and_a_resumed_run_carries_them_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watchers: list[Watcher] = []

    def trained(folder: Path, stop_after: int | None = None, plan: Plan | None = None) -> Ledger:
        spent, ledger = Spent(), Ledger()
        monkeypatch.setattr(module, "meters", lambda device, processes: Meters({"energy_j": spent}, energy="processor"))
        with layer_noise(Rng(3, "init")):
            model = TinyDuel()
        watchers.append(Watcher(spent, stop_after))
        fit(
            model, VectorBatches(), CONFIG, Budget.parse("30steps"), seed=3, folder=folder, ledger=ledger,
            watcher=watchers[-1], plan=plan, checkpoint_steps=10,
        )  # fmt: skip
        return ledger

    whole = trained(tmp_path / "whole")
    assert (whole.energy_j, whole.energy) == (30.0, "processor")
    with pytest.raises(Interrupted):
        trained(tmp_path / "cut", stop_after=17)
    kept = checkpoint.newest(tmp_path / "cut" / "checkpoints")
    assert kept is not None
    assert kept.state["meters"] == {"energy_j": float(kept.step)}
    again = trained(tmp_path / "cut", plan=watchers[-1].plans[-1])
    assert again.energy_j == 30.0
