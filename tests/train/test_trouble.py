"""Gradients that are not finite, and memory that does not suffice: what is left out, undone, made smaller, told."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from oracles import TinyDuel, VectorBatches
from quintet.core import checkpoint
from quintet.core.budget import Budget
from quintet.core.errors import DivergedError, Interrupted, ResourceError
from quintet.core.ledger import Ledger
from quintet.core.model import Loss, Turn
from quintet.core.plan import Plan
from quintet.core.recipe import OptimizerConfig, TrainConfig
from quintet.core.rng import Rng, layer_noise
from quintet.train.loop import TrainState, steps
from quintet.train.run import fit

CONFIG = TrainConfig(
    batch=16, optimizers={"critic": OptimizerConfig(lr=1e-2), "generator": OptimizerConfig(method="muon")}, warmup=5
)


class Recorder:
    """Keeps what it is told, asks to stop after a step if it should, and calls a preview hopeless if it should."""

    def __init__(self, stop_after: int | None = None, hopeless: int | None = None) -> None:
        self.lines: list[dict[str, Any]] = []
        self.plans: list[Plan] = []
        self.stop_after, self.hopeless, self.done = stop_after, hopeless, 0

    def log(self, line: Any) -> None:
        self.lines.append(json.loads(json.dumps(line, allow_nan=False)))

    def plan(self, plan: Plan) -> None:
        self.plans.append(plan)

    def step(self, step: int, plan: Plan, seconds: float, share: float) -> None:
        self.done = step

    def preview(self, state: Any, seconds: float) -> str | None:
        return "mode_collapse" if self.hopeless is not None and state.step >= self.hopeless else None

    def stop(self) -> bool:
        return self.stop_after is not None and self.done >= self.stop_after

    def events(self, *names: str) -> list[dict[str, Any]]:
        return [e for e in self.lines if e["kind"] == "event" and (not names or e["what"] in names)]


class Poisoned(TinyDuel):
    """A duel one of whose gradients is infinite in some steps, while the losses stay finite."""

    def __init__(self, bad: Callable[[int], bool]) -> None:
        super().__init__()
        self.bad, self.asked = bad, 0

    def _critic_loss(self, turn: Turn) -> Loss:
        loss = super()._critic_loss(turn)
        if not self.bad(turn.step):
            return loss
        return Loss(loss.total + _Infinite.apply(self.critic[2].bias).sum(), loss.parts)


class _Infinite(torch.autograd.Function):
    """Zero, with an infinite gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.zeros_like(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * float("inf")


class Hungry(TinyDuel):
    """A duel whose critic finds no memory for more than `most` rows from some step on."""

    def __init__(self, most: int, since: int = 0) -> None:
        super().__init__()
        self.most, self.since = most, since
        self.rows: list[int] = []
        for module in self.generator:
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0

    def _critic_loss(self, turn: Turn) -> Loss:
        rows = len(turn.batch)
        if rows > self.most and turn.step >= self.since:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory")
        self.rows.append(rows)
        return super()._critic_loss(turn)


def train(
    build: Callable[[], TinyDuel], folder: Path, recorder: Recorder, *, config: TrainConfig = CONFIG, **options: Any
) -> TinyDuel:
    with layer_noise(Rng(3, "init")):
        model = build()
    batches = options.pop("batches", None) or VectorBatches()
    fit(
        model, batches, config, Budget.parse(options.pop("budget", "30steps")), seed=3, folder=folder,
        ledger=options.pop("ledger", None) or Ledger(), watcher=recorder, **{"checkpoint_steps": 5, **options},
    )  # fmt: skip
    return model


def digest(folder: Path) -> dict[str, str]:
    found = checkpoint.newest(folder / "checkpoints")
    assert found is not None
    files = json.loads((found.path / "manifest.json").read_text())["files"]
    return {name: e["sha256"] for name, e in files.items() if name.endswith(".safetensors")}


def stored(recorder: Recorder) -> Plan:
    """The last plan, through JSON."""
    return Plan.from_json(json.loads(json.dumps(recorder.plans[-1].to_json())))


PLAN = Plan.start(30, 0.4, flops_per_step=1.0, threads=torch.get_num_threads())


# gradients that are not finite


@pytest.mark.parametrize("kind", ["poisoned batch", "one gradient"])
def test_nothing_is_updated_from_a_gradient_that_is_not_finite(kind: str) -> None:
    with layer_noise(Rng(3, "init")):
        model = TinyDuel() if kind == "poisoned batch" else Poisoned(lambda step: step == 13)
    batches = VectorBatches(poison=13 if kind == "poisoned batch" else None)
    state = TrainState.start(model, CONFIG, PLAN)
    before: dict[str, Tensor] = {}
    for step in steps(model, batches, state, CONFIG, 3):
        now = {name: p.detach().clone() for name, p in model.critic.named_parameters()}
        if step.step == 13:
            assert "critic" in step.skipped
            assert all(torch.equal(now[name], before[name]) for name in now)
            if kind == "one gradient":
                assert step.skipped["critic"].parameter == "2.bias"
                assert step.losses["critic"].total.isfinite()
            assert step.skipped["critic"].rows == tuple(range(16))
            break
        assert not step.skipped
        before = now


def test_a_lone_skip_goes_on(tmp_path: Path) -> None:
    recorder = Recorder()
    train(lambda: Poisoned(lambda step: step in (4, 7)), tmp_path, recorder, plan=PLAN)
    assert [(e["what"], e["step"]) for e in recorder.events()] == [("skipped", 4), ("skipped", 7)]
    assert recorder.events()[0]["parameter"] == "2.bias"
    assert recorder.done == 30


def test_three_skips_roll_back_twice_and_then_end_the_run(tmp_path: Path) -> None:
    recorder = Recorder()
    with pytest.raises(DivergedError) as caught:
        train(TinyDuel, tmp_path, recorder, plan=PLAN, batches=VectorBatches(poison=12))
    assert caught.value.exit_code == 5
    assert all(word in str(caught.value) for word in ("step 14", "0, 1, 2", "weight"))
    told = [(e["what"], e["step"]) for e in recorder.events()]
    skips = [("skipped", 12), ("skipped", 13), ("skipped", 14)]
    assert told == [*skips, ("rollback", 14), *skips, ("rollback", 14), *skips]
    assert [e["to"] for e in recorder.events("rollback")] == [10, 10]
    assert [plan.lr_scale(10, 5) for plan in (PLAN, *recorder.plans)] == [1, 0.5, 0.25]
    kept = checkpoint.newest(tmp_path / "checkpoints")
    assert kept is not None
    assert kept.step == 10
    assert all(torch.isfinite(t).all() for t in kept.tensors("model").values())


class Recovers(Poisoned):
    """Infinite gradients at some steps, three times in all."""

    at: tuple[int, ...] = (12, 13, 14)

    def __init__(self) -> None:
        super().__init__(lambda step: False)

    def _critic_loss(self, turn: Turn) -> Loss:
        bad = turn.step in self.at and self.asked < 3
        self.asked += bad
        self.bad = lambda step: bad
        return super()._critic_loss(turn)


@pytest.mark.parametrize("policy", ["skip", "rollback", "stop"])
def test_policies(tmp_path: Path, policy: Any) -> None:
    recorder, config = Recorder(), replace(CONFIG, on_nonfinite=policy)
    ledger = Ledger()
    if policy == "stop":
        with pytest.raises(DivergedError):
            train(lambda: Poisoned(lambda step: step == 12), tmp_path, recorder, plan=PLAN, config=config)
        assert [e["step"] for e in recorder.events("skipped")] == [12]
        return
    if policy == "rollback":
        with pytest.raises(DivergedError):
            train(Recovers, tmp_path, recorder, plan=PLAN, config=config)
        assert [e["step"] for e in recorder.events("rollback")] == [12, 12]
        return
    train(Recovers, tmp_path, recorder, plan=PLAN, config=config, ledger=ledger)
    assert [e["to"] for e in recorder.events("rollback")] == [10]
    assert recorder.plans[-1].lost == 5
    assert ledger.steps == 35
    assert recorder.done == 30


def test_before_the_first_checkpoint_training_goes_back_to_its_start(tmp_path: Path) -> None:
    recorder = Recorder()

    class Early(Recovers):
        at = (1, 2, 3)

    train(Early, tmp_path, recorder, plan=PLAN, checkpoint_steps=100)
    assert [e["to"] for e in recorder.events("rollback")] == [0]
    plan = recorder.plans[-1]
    # the same as a run that began with this plan, without any trouble
    train(TinyDuel, tmp_path / "again", Recorder(), plan=plan)
    assert digest(tmp_path) == digest(tmp_path / "again")


@pytest.mark.parametrize("stop_after", [11, 17])
def test_a_resume_replays_a_rollback(tmp_path: Path, stop_after: int) -> None:
    whole = Recorder()
    train(Recovers, tmp_path / "whole", whole, plan=PLAN)

    class Interrupting(Recorder):
        """Stops after a step of the second try."""

        def stop(self) -> bool:
            return bool(self.events("rollback")) and self.done == stop_after

    first = Interrupting()
    with pytest.raises(Interrupted):
        train(Recovers, tmp_path / "parts", first, plan=PLAN)
    train(TinyDuel, tmp_path / "parts", Recorder(), plan=stored(first))
    assert digest(tmp_path / "parts") == digest(tmp_path / "whole")


def test_skips_before_a_checkpoint_count_after_a_resume(tmp_path: Path) -> None:
    bad = (3, 4, 8)
    whole = Recorder()
    with pytest.raises(DivergedError):
        train(lambda: Poisoned(lambda step: step in bad), tmp_path / "whole", whole, plan=PLAN)
    first, second = Recorder(stop_after=6), Recorder()
    with pytest.raises(Interrupted):
        train(lambda: Poisoned(lambda step: step in bad), tmp_path / "parts", first, plan=PLAN)
    with pytest.raises(DivergedError):
        train(lambda: Poisoned(lambda step: step in bad), tmp_path / "parts", second, plan=PLAN)
    assert second.events("rollback")[0]["step"] == whole.events("rollback")[0]["step"] == 8


# memory


def test_micro_batches_halve_until_they_fit_and_a_resume_starts_with_them(tmp_path: Path) -> None:
    first = Recorder(stop_after=7)
    with pytest.raises(Interrupted):
        train(lambda: Hungry(4), tmp_path / "small", first)
    plan = stored(first)
    assert plan.micro(0) == 4
    assert [e["micro"] for e in first.events("memory")] == [4]
    with layer_noise(Rng(3, "init")):
        model = Hungry(4)
    second = Recorder()
    fit(
        model, VectorBatches(), CONFIG, Budget.parse("30steps"), seed=3, folder=tmp_path / "small", ledger=Ledger(),
        watcher=second, plan=plan, checkpoint_steps=5,
    )  # fmt: skip
    assert set(model.rows) == {4}
    assert not second.events("memory")
    whole = train(lambda: Hungry(16), tmp_path / "whole", Recorder(), plan=PLAN)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, whole.state_dict()[name], rtol=1e-3, atol=1e-4)


def test_memory_that_runs_out_later_makes_a_plan_event(tmp_path: Path) -> None:
    recorder = Recorder()
    train(lambda: Hungry(8, since=9), tmp_path / "a", recorder, plan=PLAN)
    (event,) = recorder.events()
    assert (event["what"], event["step"], event["micro"]) == ("memory", 9, 8)
    plan = recorder.plans[-1]
    assert [plan.micro(step) for step in (8, 9, 29)] == [0, 8, 8]
    assert [plan.lr_scale(step, 5) for step in range(30)] == [PLAN.lr_scale(step, 5) for step in range(30)]
    assert [plan.progress(s) for s in range(30)] == pytest.approx([PLAN.progress(s) for s in range(30)])
    train(lambda: Hungry(16), tmp_path / "b", Recorder(), plan=plan)  # the same plan without the trouble: the same bits
    assert digest(tmp_path / "a") == digest(tmp_path / "b")


def test_not_even_one_example_fits(tmp_path: Path) -> None:
    with pytest.raises(ResourceError) as caught:
        train(lambda: Hungry(0), tmp_path, Recorder())
    assert caught.value.exit_code == 4
    assert "MB" in str(caught.value)


def test_other_errors_are_not_taken_for_memory(tmp_path: Path) -> None:
    class Broken(TinyDuel):
        def _critic_loss(self, turn: Turn) -> Loss:
            raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        train(Broken, tmp_path, Recorder())


# hopeless runs


def test_a_hopeless_run_ends_early_and_says_so(tmp_path: Path) -> None:
    recorder = Recorder(hopeless=15)
    train(TinyDuel, tmp_path, recorder, plan=PLAN)
    (event,) = recorder.events()
    assert (event["what"], event["why"]) == ("hopeless", "mode_collapse")
    found = checkpoint.newest(tmp_path / "checkpoints")
    assert found is not None
    assert found.step == recorder.plans[-1].steps < 30
    train(TinyDuel, tmp_path, Recorder(), plan=recorder.plans[-1])  # a resume has nothing left to do
    again = checkpoint.newest(tmp_path / "checkpoints")
    assert again is not None
    assert again.step == found.step
