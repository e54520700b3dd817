"""Budgets, plan events, resume and divergence of the one training run, on a tiny two-player model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from oracles import TinyDuel, VectorBatches
from quintet.core import checkpoint
from quintet.core.budget import Budget
from quintet.core.errors import Interrupted, ResourceError
from quintet.core.ledger import Ledger
from quintet.core.plan import Plan
from quintet.core.recipe import OptimizerConfig, TrainConfig
from quintet.core.rng import Rng, layer_noise
from quintet.train.run import fit, restore

CONFIG = TrainConfig(
    batch=16,
    optimizers={"critic": OptimizerConfig(lr=1e-2, beta2_end=0.999), "generator": OptimizerConfig(method="muon")},
    warmup=5,
    decay=0.4,
)


class Recorder:
    """Keeps what it is told, and asks to stop after a step if it should."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.lines: list[dict[str, Any]] = []
        self.plans: list[Plan] = []
        self.stop_after, self.done = stop_after, 0
        self.previews: list[int] = []

    def log(self, line: Any) -> None:
        self.lines.append(json.loads(json.dumps(line, allow_nan=False)))

    def plan(self, plan: Plan) -> None:
        self.plans.append(plan)

    def step(self, step: int, plan: Plan, seconds: float, share: float) -> None:
        self.done = step

    def preview(self, state: Any, seconds: float) -> None:
        self.previews.append(state.step)

    def stop(self) -> bool:
        return self.stop_after is not None and self.done >= self.stop_after


def run(folder: Path, budget: str, recorder: Recorder, *, plan: Plan | None = None, **options: Any) -> Any:
    with layer_noise(Rng(3, "init")):
        model = TinyDuel()
    ledger = Ledger()
    batches = options.pop("batches", None) or VectorBatches()
    fitted = fit(
        model,
        batches,
        CONFIG,
        Budget.parse(budget),
        seed=3,
        folder=folder,
        ledger=ledger,
        watcher=recorder,
        plan=plan,
        **options,
    )
    return model, fitted, ledger


def digest(folder: Path) -> dict[str, str]:
    """SHA-256 of every tensor file of every checkpoint."""
    return {
        f"{path.parent.name}/{path.name}": json.loads((path.parent / "manifest.json").read_text())["files"][path.name][
            "sha256"
        ]
        for path in sorted(folder.rglob("*.safetensors"))
    }


def test_budgets_in_steps_examples_and_flops(tmp_path: Path) -> None:
    _, fitted, ledger = run(tmp_path / "a", "30steps", Recorder())
    assert (fitted.state.step, ledger.steps, ledger.examples) == (30, 30, 480)
    _, fitted, ledger = run(tmp_path / "b", "100examples", Recorder())
    assert fitted.state.step == 7  # the batch that crosses the end is trained
    flops = ledger.flops / ledger.steps
    _, fitted, ledger = run(tmp_path / "c", f"{flops * 12.5:.0f}flop", Recorder())
    assert fitted.state.step == 12
    assert flops * 12.5 * 0.9 < ledger.flops <= flops * 12.5


class Ticking:
    """A clock on which every look takes a millisecond, whatever else the machine does."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += 1e-3
        return self.now

    process_time = perf_counter


def test_a_budget_in_seconds_ends_in_time_with_a_decay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    ticking = Ticking()
    for module in ("clock", "calibrate"):
        monkeypatch.setattr(f"quintet.train.{module}.time", ticking)
    _, fitted, ledger = run(tmp_path, "1.5s", recorder)
    assert ledger.wall_s <= 1.5 * 1.1
    assert [plan.events[-1].reason for plan in recorder.plans][:2] == ["calibration", "decay"]
    scales = [fitted.state.plan.lr_scale(step, 5) for step in range(fitted.state.step)]
    assert scales[-1] < 0.02 * max(scales)
    progress = [fitted.state.plan.progress(step) for step in range(fitted.state.step)]
    assert progress == sorted(progress)
    assert 2 <= len(recorder.previews) <= 6
    assert recorder.previews[-1] == fitted.state.step


@pytest.mark.parametrize("stop_after", [1, 7, 19])
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path: Path, stop_after: int) -> None:
    whole = Recorder()
    run(tmp_path / "whole", "30steps", whole, checkpoint_steps=10)
    first = Recorder(stop_after=stop_after)
    with pytest.raises(Interrupted):
        run(tmp_path / "parts", "30steps", first, checkpoint_steps=10)
    second = Recorder()
    run(tmp_path / "parts", "30steps", second, plan=first.plans[-1], checkpoint_steps=10)
    last = "00000030"
    wanted = {k: v for k, v in digest(tmp_path / "whole").items() if k.startswith(last)}
    got = {k: v for k, v in digest(tmp_path / "parts").items() if k.startswith(last)}
    assert len(wanted) == 4
    assert got == wanted
    losses = {line["step"]: line["critic"] for line in whole.lines if line["kind"] == "step"}
    again = {line["step"]: line["critic"] for r in (first, second) for line in r.lines if line["kind"] == "step"}
    assert losses == again


def test_every_later_checkpoint_is_equal_after_restarting_from_each(tmp_path: Path) -> None:
    recorder = Recorder()
    run(tmp_path / "whole", "30steps", recorder, checkpoint_steps=10)
    wanted = digest(tmp_path / "whole")
    for start in (10, 20):
        part = tmp_path / f"from-{start}"
        source = tmp_path / "whole" / "checkpoints" / f"{start:08d}"
        target = part / "checkpoints" / f"{start:08d}"
        target.mkdir(parents=True)
        for file in source.iterdir():
            (target / file.name).write_bytes(file.read_bytes())
        run(part, "30steps", Recorder(), plan=recorder.plans[-1], checkpoint_steps=10)
        got = digest(part)
        assert got == {k: v for k, v in wanted.items() if k in got}
        assert f"{30:08d}/model.safetensors" in got


def test_another_seed_gives_other_weights(tmp_path: Path) -> None:
    run(tmp_path / "a", "5steps", Recorder())
    run(tmp_path / "b", "5steps", Recorder(), batches=VectorBatches(seed=1))
    assert digest(tmp_path / "a") != digest(tmp_path / "b")


def test_calibration_and_previews_leave_no_trace_in_the_weights(tmp_path: Path) -> None:
    recorder = Recorder()
    run(tmp_path / "a", "20steps", recorder)
    run(tmp_path / "b", "20steps", Recorder(), plan=recorder.plans[0], resume=False)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")


class WithTeacher(TinyDuel):
    """A duel with a frozen part: a module outside every player, used by the generator's loss."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = torch.nn.Linear(3, 3)

    def shared(self, turn: Any) -> torch.Tensor:
        return super().shared(turn) + self.teacher(turn.batch.x)


def test_frozen_parts_do_not_change_and_are_stored_once(tmp_path: Path) -> None:
    def start() -> WithTeacher:
        with layer_noise(Rng(3, "init")):
            return WithTeacher()

    model, recorder = start(), Recorder()
    before = {k: v.clone() for k, v in model.teacher.state_dict().items()}
    options = {"seed": 3, "folder": tmp_path, "ledger": Ledger(), "watcher": recorder, "checkpoint_steps": 5}
    fit(model, VectorBatches(), CONFIG, Budget.parse("20steps"), **options)
    assert all(torch.equal(v, before[k]) for k, v in model.teacher.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in model.teacher.parameters())
    assert len(list(tmp_path.glob("frozen-*.safetensors"))) == 1
    kept = checkpoint.newest(tmp_path / "checkpoints")
    assert kept is not None
    assert not any("teacher" in k for name in ("model", "ema-0", "optim") for k in kept.tensors(name))
    with layer_noise(Rng(4, "init")):
        other = WithTeacher()  # another initialisation, teacher included
    restore(tmp_path, other, {}, None, 20)
    assert all(torch.equal(v, before[k]) for k, v in other.teacher.state_dict().items())
    with pytest.raises(ResourceError):
        restore(tmp_path, other, {}, None, 21)
    whole = next(tmp_path.glob("frozen-*.safetensors"))
    whole.write_bytes(whole.read_bytes()[:-1] + b"x")
    with layer_noise(Rng(4, "init")), pytest.raises(ResourceError) as caught:
        restore(tmp_path, WithTeacher(), {}, None, 20)
    assert whole.name in str(caught.value)


@pytest.mark.parametrize("damaged", [True, False])
def test_a_resume_takes_lost_frozen_parts_from_the_model_as_it_was_built(tmp_path: Path, damaged: bool) -> None:
    def go(folder: Path, recorder: Recorder, seed: int = 3, plan: Plan | None = None) -> WithTeacher:
        with layer_noise(Rng(seed, "init")):
            model = WithTeacher()
        fit(
            model, VectorBatches(), CONFIG, Budget.parse("12steps"), seed=3, folder=folder, ledger=Ledger(),
            watcher=recorder, plan=plan, checkpoint_steps=5,
        )  # fmt: skip
        return model

    go(tmp_path / "whole", Recorder())
    first = Recorder(stop_after=7)
    with pytest.raises(Interrupted):
        go(tmp_path / "parts", first)
    (frozen,) = (tmp_path / "parts").glob("frozen-*.safetensors")
    kept = frozen.read_bytes()
    frozen.write_bytes(kept[:-1]) if damaged else frozen.unlink()
    with pytest.raises(ResourceError) as caught:  # built by another earlier stage
        go(tmp_path / "parts", Recorder(), seed=4, plan=first.plans[-1])
    assert caught.value.exit_code == 4
    go(tmp_path / "parts", Recorder(), plan=first.plans[-1])
    assert frozen.read_bytes() == kept
    last = "00000012"
    wanted, got = (digest(tmp_path / name / "checkpoints" / last) for name in ("whole", "parts"))
    assert got == wanted
    assert got
