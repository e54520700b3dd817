"""Spikes at every step: chunks and restarts play no part, and a jump between two log lines is seen."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from oracles import TinyDuel, VectorBatches
from quintet.core import checkpoint
from quintet.core.budget import Budget
from quintet.core.errors import Interrupted
from quintet.core.ledger import Ledger
from quintet.core.model import Loss, Turn
from quintet.core.plan import Plan
from quintet.core.recipe import OptimizerConfig, TrainConfig
from quintet.core.rng import Rng, layer_noise
from quintet.core.statistics import spikes
from quintet.train.loop import Step
from quintet.train.run import fit
from quintet.train.spikes import SpikeWatch

CONFIG = TrainConfig(
    batch=16, optimizers={"critic": OptimizerConfig(lr=1e-2), "generator": OptimizerConfig(lr=1e-2)}, warmup=5
)


def step(number: int, **players: tuple[float, float]) -> Step:
    losses = {name: Loss(torch.tensor(loss, dtype=torch.float64), {}) for name, (loss, _) in players.items()}
    return Step(number, losses, {name: norm for name, (_, norm) in players.items()}, {})


def test_chunks_and_restarts_play_no_part() -> None:
    g = np.random.default_rng()
    n = 400
    loss, norm, other = g.normal(size=n), g.lognormal(size=n), g.standard_t(2, size=n)
    loss[g.integers(50, n, 3)] += 100.0
    norm[g.integers(0, n, 5)] = math.inf  # left out, the loss of such a step too where it is not finite
    loss[g.integers(0, n, 5)] = math.nan
    watch = SpikeWatch()
    for i in range(n):
        players = {"a": (loss[i], norm[i])} | ({"b": (other[i], other[-i - 1])} if i % 2 == 0 else {})
        watch.note(step(i, **players))
        if g.random() < 0.05:
            watch.read()
            watch = SpikeWatch(json.loads(json.dumps(watch.to_json())))
    watch.read()
    series = [loss, norm, other[::2], other[::-1][::2]]
    whole = [spikes([v for v in one if math.isfinite(v)]) for one in series]
    assert (watch.found, watch.judged) == (sum(f for f, _ in whole), sum(j for _, j in whole))
    assert watch.found >= 3


class Jumping(TinyDuel):
    """A duel whose critic is punished a thousand times as much for its size in one step."""

    def __init__(self, at: int | None) -> None:
        super().__init__()
        self.at = at

    def _critic_loss(self, turn: Turn) -> Loss:
        loss = super()._critic_loss(turn)
        if turn.step != self.at:
            return loss
        return Loss(loss.total + 100 * sum(p.square().sum() for p in self.critic.parameters()), loss.parts)


class Recorder:
    """Keeps what it is told, and asks to stop after a step if it should."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.lines: list[dict[str, Any]] = []
        self.plans: list[Plan] = []
        self.stop_after, self.done = stop_after, 0

    def log(self, line: Any) -> None:
        self.lines.append(json.loads(json.dumps(line, allow_nan=False)))

    def plan(self, plan: Plan) -> None:
        self.plans.append(plan)

    def step(self, step: int, plan: Plan, seconds: float, share: float) -> None:
        self.done = step

    def preview(self, state: Any, seconds: float) -> str | None:
        return None

    def stop(self) -> bool:
        return self.stop_after is not None and self.done >= self.stop_after

    @property
    def last(self) -> tuple[int, int]:
        line = [line for line in self.lines if line["kind"] == "spikes"][-1]
        return line["found"], line["judged"]


def train(build: Callable[[], TinyDuel], folder: Path, recorder: Recorder, **options: Any) -> None:
    with layer_noise(Rng(3, "init")):
        model = build()
    fit(
        model, VectorBatches(), CONFIG, Budget.parse("620steps"), seed=3, folder=folder, ledger=Ledger(),
        watcher=recorder, checkpoint_steps=90, **options,
    )  # fmt: skip


def test_a_jump_between_two_log_lines_is_counted(tmp_path: Path) -> None:
    at, found = 401, {}
    for planted in (None, at):
        recorder = Recorder()
        train(lambda planted=planted: Jumping(planted), tmp_path / str(planted), recorder)  # type: ignore[misc]
        found[planted] = recorder.last
        logged = [line["step"] for line in recorder.lines if line["kind"] == "step"]
        assert at not in logged
        assert at - 1 in logged
        lines = [line for line in recorder.lines if line["kind"] == "step" and line["step"] % 2 == 0]
        seen = spikes([line["critic"]["total"] for line in lines if 300 < line["step"] < 500])
        assert seen[0] == 0, "the log's lines do not know"
    assert found[at][0] >= found[None][0] + 2  # the loss and the gradient's norm
    assert found[at][1] == found[None][1] == 2 * (620 - 25) + 2 * (310 - 25)


@pytest.mark.parametrize("stop_after", [7, 250])
def test_a_resumed_training_counts_as_one_that_was_not_interrupted(tmp_path: Path, stop_after: int) -> None:
    whole, first, second = Recorder(), Recorder(stop_after), Recorder()
    train(lambda: Jumping(401), tmp_path / "whole", whole)
    with pytest.raises(Interrupted):
        train(lambda: Jumping(401), tmp_path / "parts", first)
    plan = Plan.from_json(json.loads(json.dumps(first.plans[-1].to_json())))
    train(lambda: Jumping(401), tmp_path / "parts", second, plan=plan)
    assert second.last == whole.last
    states = [checkpoint.newest(tmp_path / name / "checkpoints") for name in ("whole", "parts")]
    assert all(state is not None for state in states)
    assert len({json.dumps(state.state["spikes"]) for state in states if state is not None}) == 1


class Breaking(TinyDuel):
    """A duel whose critic has infinite gradients in three steps, the first time that they are taken."""

    def __init__(self) -> None:
        super().__init__()
        self.left = {200, 201, 202}

    def _critic_loss(self, turn: Turn) -> Loss:
        loss = super()._critic_loss(turn)
        if turn.step not in self.left:
            return loss
        self.left.remove(turn.step)
        return Loss(loss.total + 1e30 * self.critic[2].bias.square().sum().sqrt() * torch.tensor(1e30), loss.parts)


def test_steps_that_were_undone_take_their_spikes_with_them(tmp_path: Path) -> None:
    recorder = Recorder()
    train(Breaking, tmp_path, recorder)
    told = [line for line in recorder.lines if line["kind"] == "event"]
    assert [event["what"] for event in told if event["what"] != "resumed_otherwise"] == 3 * ["skipped"] + ["rollback"]
    assert recorder.last[1] == 2 * (620 - 25) + 2 * (310 - 25)
