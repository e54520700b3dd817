"""Every recipe: bfloat16 follows float32, and micro-batches and lanes give the whole batch's gradients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from quintet.core.budget import Budget
from quintet.core.model import Model
from quintet.core.plan import Plan
from quintet.core.rng import Rng, layer_noise
from quintet.core.spec import DataSpec
from quintet.data.batches import Batches
from quintet.recipes.registry import RECIPES
from quintet.testing import raw_split
from quintet.train.loop import TrainState, steps

BATCH, STEPS = 16, 20
SPEC = DataSpec("image", (1, 8, 8), levels=4, conditions={"label": 2})


def cases() -> Iterator[Any]:
    for name, recipe in RECIPES.items():
        if recipe.unfit(SPEC) is None:
            for stage in recipe.stages(SPEC, Budget.parse("20s")):
                yield pytest.param(stage, id=f"{name}-{stage.name}")


def without_dropout(model: Model[Any]) -> Model[Any]:
    """Dropout is drawn layer by layer, not row by row, so micro-batches draw another."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0  # type: ignore[assignment]
    return model


class Case:
    """A stage on made-up images."""

    def __init__(self, stage: Any, opened: bool = False) -> None:
        self.config = replace(stage.train, batch=BATCH)
        split = raw_split(SPEC)
        codec = stage.codec.fit(SPEC, torch.from_numpy(split.x))
        with layer_noise(Rng(0, "init")):
            self.model = without_dropout(stage.model.build(codec.spec))
            if opened:  # nothing stays at the zero where it starts and hides what depends on it
                with torch.no_grad():
                    for p in self.model.parameters():
                        p.add_(0.05 * torch.randn_like(p))
        self.batches = Batches(split, codec, BATCH, 0)

    def run(self, count: int, **plan: Any) -> list[dict[str, float]]:
        micro = plan.pop("micro", 0)
        schedule = Plan.start(count, 0.3, flops_per_step=1.0, threads=plan.get("lanes", 1), micro=micro, **plan)
        state = TrainState.start(self.model, self.config, schedule)
        told = []
        for step in steps(self.model, self.batches, state, self.config, 0):
            assert not step.skipped
            told.append({name: float(loss.total.detach()) for name, loss in step.losses.items()})
        return told


@pytest.mark.parametrize("stage", list(cases()))
def test_bfloat16_follows_float32(stage: Any) -> None:
    plain = Case(stage).run(STEPS)
    half = Case(stage).run(STEPS, precision="bfloat16")
    assert plain != half or not any(isinstance(m, torch.nn.Linear) for m in Case(stage).model.modules())
    for player in plain[0]:
        pairs = [(a[player], b[player]) for a, b in zip(plain, half, strict=True) if player in a]
        scale = max(abs(a) for a, _ in pairs)
        assert max(abs(a - b) for a, b in pairs) < 0.02 * scale, (player, pairs)


@pytest.mark.parametrize("stage", list(cases()))
@pytest.mark.parametrize("parts", [{"micro": 8}, {"micro": 5}, {"micro": BATCH}, {"lanes": 2}, {"lanes": 3}], ids=str)
def test_parts_add_up_to_the_batch(stage: Any, parts: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    grads: list[torch.Tensor] = []

    def note(self: Any, *args: Any) -> float:
        grads.append(torch.cat([p.grad.double().flatten() for p in self.params if p.grad is not None]))
        self.clear()
        return 1.0

    monkeypatch.setattr("quintet.train.optim.Optimizer.step_and_clear", note)
    told = Case(stage, opened=True).run(1)[0], Case(stage, opened=True).run(1, **parts)[0]
    players = len(grads) // 2
    for a, b in zip(grads[:players], grads[players:], strict=True):
        assert float((a - b).norm() / a.norm()) < 5e-6  # float32's rounding in sums of another order
    assert told[1] == pytest.approx(told[0], rel=1e-5)
