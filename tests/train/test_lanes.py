"""Lanes: rows computed side by side train as the whole batch, the same bits each time, and leave nothing behind."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from oracles import TinyDuel, VectorBatches
from quintet.core.budget import Budget
from quintet.core.ledger import Ledger
from quintet.core.model import Loss, Turn
from quintet.core.numerics import higher_order
from quintet.core.plan import Plan
from quintet.core.recipe import OptimizerConfig, TrainConfig
from quintet.core.rng import Rng, layer_noise
from quintet.train import calibrate
from quintet.train.lanes import Lanes, add_gradients
from quintet.train.loop import TrainState, steps
from quintet.train.run import fit

CONFIG = TrainConfig(batch=16, optimizers={"critic": OptimizerConfig(), "generator": OptimizerConfig(method="muon")})


class Quiet(TinyDuel):
    """Without dropout. Remembers which threads computed a critic's loss, on how many rows."""

    def __init__(self) -> None:
        super().__init__()
        self.generator[1].p = 0.0
        self.seen: list[tuple[str, int]] = []
        self.shared_calls = 0

    def shared(self, turn: Turn) -> Tensor:
        self.shared_calls += 1
        return super().shared(turn)

    def _critic_loss(self, turn: Turn) -> Loss:
        self.seen.append((threading.current_thread().name, len(turn.batch)))
        return super()._critic_loss(turn)


def trained(lanes: int, count: int = 12, batch: int = 16) -> Quiet:
    with layer_noise(Rng(3, "init")):
        model = Quiet()
    plan = Plan.start(count, 0.3, flops_per_step=1.0, threads=lanes, lanes=lanes)
    list(steps(model, VectorBatches(batch=batch), TrainState.start(model, CONFIG, plan), CONFIG, 3))
    return model


@pytest.mark.parametrize("lanes", [2, 3])
def test_lanes_train_as_the_whole_batch_and_always_alike(lanes: int) -> None:
    whole, parts, again = trained(1), trained(lanes), trained(lanes)
    for (name, a), b, c in zip(
        whole.state_dict().items(), parts.state_dict().values(), again.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=name)
        assert torch.equal(b, c), name
    assert 1 < len({name for name, _ in parts.seen}) <= lanes  # a thread that is done early takes another's part
    assert len(parts.seen) == 12 * lanes
    assert {rows for _, rows in parts.seen} == ({8} if lanes == 2 else {6, 4})
    assert parts.shared_calls == 12 * lanes  # once a step and lane, for both players


def test_fewer_rows_than_lanes_are_one_row_each() -> None:
    assert {rows for _, rows in trained(5, count=2, batch=3).seen} == {1}


def test_threads_end_with_the_training_and_noise_is_put_back() -> None:
    before, state = threading.active_count(), torch.default_generator.get_state()
    trained(4, count=2)
    assert threading.active_count() == before
    assert torch.equal(torch.default_generator.get_state(), state)


def test_an_error_in_any_lane_is_raised_after_all_have_ended() -> None:
    lanes, ended = Lanes(3, 1), []

    def work(lane: int) -> None:
        if lane == bad:
            raise ZeroDivisionError(lane)
        time.sleep(0.02)
        ended.append(lane)

    for bad in range(3):
        ended.clear()
        with pytest.raises(ZeroDivisionError):
            lanes.map(work, range(3))
        assert sorted(ended) == [lane for lane in range(3) if lane != bad]
    lanes.close()


def test_gradients_are_added_in_the_parameters_order_in_memory() -> None:
    a, b, unused = (torch.nn.Parameter(torch.zeros(2, 3, 4, 4)) for _ in range(3))
    a.data = a.data.to(memory_format=torch.channels_last)
    one, two = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    flat = torch.randn(1).expand(2, 3, 4, 4)  # as a sum's derivative comes: one number for all
    add_gradients([a, b, unused], [(one, flat, None), (two, None, None)])
    assert a.grad is not None
    assert b.grad is not None
    assert unused.grad is None
    torch.testing.assert_close(a.grad, one + two)
    assert a.grad.stride() == a.stride()
    assert b.grad.stride() == b.stride()
    b.grad.mul_(2)  # numbers of its own
    assert torch.equal(b.grad, 2 * flat)


def test_a_choice_for_the_whole_process_outlasts_the_first_to_leave() -> None:
    def math_alone() -> bool:
        backends = torch.nn.attention._cur_sdpa_kernel_backends()
        return backends == [SDPBackend.MATH]

    inside, leave, found = threading.Barrier(2, timeout=10), threading.Event(), []

    def other() -> None:
        with higher_order():
            inside.wait()
            leave.wait(10)
            found.append(math_alone())

    assert not math_alone()
    thread = threading.Thread(target=other)
    with higher_order():
        thread.start()
        inside.wait()
    leave.set()
    thread.join()
    assert found == [True]
    assert not math_alone()


class Slow(Quiet):
    """Takes a time for each row, as if its operations gained nothing from more threads."""

    def _critic_loss(self, turn: Turn) -> Loss:
        time.sleep(0.002 * len(turn.batch))
        return super()._critic_loss(turn)


class Recorder:
    def __init__(self) -> None:
        self.plans: list[Plan] = []

    def log(self, line: Any) -> None:
        json.dumps(line)

    def plan(self, plan: Plan) -> None:
        self.plans.append(plan)

    def step(self, step: int, plan: Plan, seconds: float, share: float) -> None: ...

    def preview(self, state: Any, seconds: float) -> None: ...

    def stop(self) -> bool:
        return False


def planned(model: TinyDuel, folder: Path, monkeypatch: pytest.MonkeyPatch, **config: Any) -> Plan:
    monkeypatch.setattr(calibrate, "has_bfloat16", lambda device: False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    recorder = Recorder()
    fit(
        model, VectorBatches(), CONFIG, Budget.parse("2s"), seed=3, folder=folder, ledger=Ledger(), watcher=recorder,
        **config,
    )  # fmt: skip
    return recorder.plans[-1]


def test_lanes_are_chosen_where_they_are_faster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Slow()
    plan = planned(model, tmp_path, monkeypatch)
    assert (plan.threads, plan.lanes, plan.threads_each) == (2, 2, 1)
    assert {rows for _, rows in model.seen[-10:]} == {8}
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_layers_that_draw_noise_of_their_own_are_not_divided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Slow()
    model.generator[1].p = 0.1
    assert planned(model, tmp_path, monkeypatch).lanes == 1
