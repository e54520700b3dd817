"""Memory that runs out in the turn of a step's second player: what a resume repeats."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_trouble import PLAN, Recorder, digest, stored, train

from oracles import TinyDuel
from quintet.core.errors import Interrupted
from quintet.core.model import Loss, Turn


class HungrySecond(TinyDuel):
    """A duel whose generator finds no memory for more than 8 rows from step 7 on, when it has moved in turns of two."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, str, int]] = []
        for module in self.generator:
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0

    def _critic_loss(self, turn: Turn) -> Loss:
        self.seen.append((turn.step, "critic", len(turn.batch)))
        return super()._critic_loss(turn)

    def _generator_loss(self, turn: Turn) -> Loss:
        if len(turn.batch) > 8 and turn.step >= 7:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory")
        self.seen.append((turn.step, "generator", len(turn.batch)))
        return super()._generator_loss(turn)


def test_a_resume_repeats_what_each_player_did(tmp_path: Path) -> None:
    whole = train(HungrySecond, tmp_path / "whole", recorder := Recorder(), plan=PLAN)
    assert [turn for turn in whole.seen if turn[0] in (8, 9)] == [
        (8, "critic", 16), (8, "generator", 8), (8, "generator", 8), (9, "critic", 8), (9, "critic", 8)
    ]  # fmt: skip
    assert [plan.micro(8) for plan in recorder.plans] == [0]
    first = Recorder(stop_after=9)
    with pytest.raises(Interrupted):
        train(HungrySecond, tmp_path / "parts", first, plan=PLAN, checkpoint_steps=100)
    plan = stored(first)
    again = train(HungrySecond, tmp_path / "again", Recorder(), plan=plan)  # from the start, with the plan's event
    assert again.seen == whole.seen
    assert digest(tmp_path / "again") == digest(tmp_path / "whole")
