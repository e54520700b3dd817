"""What calibration chooses and the plan then holds: the faster precision, and compiled networks where asked for."""

from __future__ import annotations

import copy
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from oracles import TinyDuel, VectorBatches
from quintet.core.budget import Budget
from quintet.core.errors import UsageError
from quintet.core.ledger import Ledger
from quintet.core.model import Loss, Turn
from quintet.core.plan import Plan
from quintet.core.recipe import OptimizerConfig, TrainConfig
from quintet.core.rng import Rng, layer_noise
from quintet.train import calibrate
from quintet.train.calibrate import has_compiler
from quintet.train.run import fit

CONFIG = TrainConfig(batch=16, optimizers={"critic": OptimizerConfig(), "generator": OptimizerConfig(method="muon")})


class Sluggish(TinyDuel):
    """Takes its time in one of the two precisions, and remembers in which it was asked."""

    def __init__(self, slow: str | None) -> None:
        super().__init__()
        self.slow, self.asked = slow, list[str]()

    def _critic_loss(self, turn: Turn) -> Loss:
        precision = "bfloat16" if torch.is_autocast_enabled("cpu") else "float32"
        self.asked.append(precision)
        if precision == self.slow:
            time.sleep(0.02)
        return super()._critic_loss(turn)


class Recorder:
    """Keeps lines and plans."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self.plans: list[Plan] = []
        self.previewed: list[bool] = []
        self.model: TinyDuel | None = None

    def log(self, line: Any) -> None:
        self.lines.append(json.loads(json.dumps(line)))

    def plan(self, plan: Plan) -> None:
        self.plans.append(plan)

    def step(self, step: int, plan: Plan, seconds: float, share: float) -> None: ...

    def preview(self, state: Any, seconds: float) -> None:
        if self.model is not None:
            self.model.critic(torch.zeros(2, 3))
            self.previewed.append(self.model.critic._compiled_call_impl is not None)

    def stop(self) -> bool:
        return False


def train(model: TinyDuel, folder: Path, config: TrainConfig, budget: str, plan: Plan | None = None) -> Recorder:
    recorder = Recorder()
    recorder.model = model
    fit(
        model, VectorBatches(), config, Budget.parse(budget), seed=3, folder=folder, ledger=Ledger(), watcher=recorder,
        plan=plan,
    )  # fmt: skip
    return recorder


@pytest.mark.parametrize(("slow", "chosen"), [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_the_faster_precision_is_chosen_and_kept(
    tmp_path: Path, slow: str, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "has_bfloat16", lambda device: True)
    model = Sluggish(slow)
    recorder = train(model, tmp_path, CONFIG, "1s")
    assert set(model.asked) == {"float32", "bfloat16"}
    assert {plan.precision for plan in recorder.plans} == {chosen}
    assert model.asked[-1] == chosen
    (line,) = [line for line in recorder.lines if line["kind"] == "plan"]
    assert (line["precision"], line["compile"], line["micro"]) == (chosen, False, 0)
    plan = Plan.from_json(json.loads(json.dumps(recorder.plans[-1].to_json())))
    again = Sluggish(None)
    train(again, tmp_path / "again", CONFIG, "1s", plan)
    assert set(again.asked) == {chosen}  # replayed, not measured


def test_a_budget_without_a_clock_keeps_float32_on_a_cpu(tmp_path: Path) -> None:
    model = Sluggish("float32")
    assert train(model, tmp_path, CONFIG, "6steps").plans[-1].precision == "float32"
    assert set(model.asked) == {"float32"}


def test_what_is_asked_for_is_done_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = replace(CONFIG, precision="bfloat16")
    model = Sluggish(None)
    monkeypatch.setattr(calibrate, "has_bfloat16", lambda device: True)
    assert train(model, tmp_path / "a", wanted, "6steps").plans[-1].precision == "bfloat16"
    assert set(model.asked) == {"bfloat16"}
    monkeypatch.setattr(calibrate, "has_bfloat16", lambda device: False)
    with pytest.raises(UsageError) as caught:
        train(Sluggish(None), tmp_path / "b", wanted, "6steps")
    assert caught.value.exit_code == 2

    class Exact(Sluggish):
        precisions = ("float32",)

    monkeypatch.setattr(calibrate, "has_bfloat16", lambda device: True)
    with pytest.raises(UsageError):
        train(Exact(None), tmp_path / "c", wanted, "6steps")
    exact = Exact("float32")
    train(exact, tmp_path / "d", CONFIG, "1s")
    assert set(exact.asked) == {"float32"}


def test_without_a_compiler_networks_run_uncompiled_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "has_compiler", lambda device: False)
    recorder = train(TinyDuel(), tmp_path, replace(CONFIG, compile="on"), "6steps")
    assert not recorder.plans[-1].compile
    assert [line["what"] for line in recorder.lines if line["kind"] == "event"] == ["no_compiler"]


def test_a_network_that_does_not_compile_runs_uncompiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "has_compiler", lambda device: True)

    def refuse(self: torch.nn.Module, **kwargs: Any) -> None:
        self._compiled_call_impl = lambda *args: 1 / 0

    monkeypatch.setattr(torch.nn.Module, "compile", refuse)
    recorder = train(TinyDuel(), tmp_path, replace(CONFIG, compile="on"), "6steps")
    assert not recorder.plans[-1].compile
    assert [line["what"] for line in recorder.lines if line["kind"] == "event"] == ["not_compiled"]


def test_a_compilation_that_breaks_off_in_a_backward_pass_leaves_no_gradients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "has_compiler", lambda device: True)

    def breaks_off(self: torch.nn.Module, **kwargs: Any) -> None:
        def call(x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self._call_impl(x)
            (first, *_) = self.parameters()
            y.register_hook(lambda gradient: setattr(first, "grad", torch.full_like(first, 1e3)) or 1 / 0)
            return y

        self._compiled_call_impl = call

    plain = TinyDuel()
    broken = copy.deepcopy(plain)
    train(plain, tmp_path / "plain", replace(CONFIG, compile="off"), "6steps")
    monkeypatch.setattr(torch.nn.Module, "compile", breaks_off)
    train(broken, tmp_path / "broken", replace(CONFIG, compile="on"), "6steps")
    for name, value in plain.state_dict().items():
        assert torch.equal(broken.state_dict()[name], value)


def test_compiled_networks_train_as_uncompiled_ones(tmp_path: Path) -> None:
    if not has_compiler(torch.device("cpu")):
        pytest.skip("no C++ compiler on this machine")
    models = []
    for choice in ("on", "off"):
        with layer_noise(Rng(3, "init")):
            model = TinyDuel()
        model.generator[1].p = 0.0  # a compiled network draws its dropout in another order
        recorder = train(model, tmp_path / choice, replace(CONFIG, compile=choice), "8steps")  # type: ignore[arg-type]
        assert recorder.plans[-1].compile == (choice == "on")
        assert recorder.previewed[-1] == (choice == "on")
        assert model.critic._compiled_call_impl is None  # afterwards it is as it was
        models.append(model)
    for (name, a), b in zip(models[0].state_dict().items(), models[1].state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, msg=name)
