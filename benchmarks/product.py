"""Our side of the speed benchmarks: one step of the product's own loop, as a run takes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from race import Contender, flops_of, parameters
from torch import Tensor

from quintet.core.batch import Batch
from quintet.core.model import Model
from quintet.core.numerics import Precision
from quintet.core.plan import Plan
from quintet.core.recipe import ModelConfig, OptimizerConfig, TrainConfig
from quintet.core.rng import Rng, layer_noise
from quintet.core.spec import DataSpec
from quintet.core.threads import using_threads
from quintet.train.loop import TrainState, steps


class SameBatch:
    """One batch for every step: peers are timed on data in memory too."""

    first = 0

    def __init__(self, x: Tensor, cond: Mapping[str, Tensor] | None = None) -> None:
        self.batch = Batch(x, torch.arange(len(x), device=x.device), cond or {})

    def __getitem__(self, step: int) -> Batch:
        return self.batch


def build(config: ModelConfig, spec: DataSpec, device: str = "cpu") -> Model[Any]:
    """An initialised model."""
    with layer_noise(Rng(0, "init")):
        return config.build(spec).to(device)


def training(
    model: Model[Any],
    x: Tensor,
    cond: Mapping[str, Tensor] | None = None,
    *,
    precision: Precision = "float32",
    compile: bool = False,
    lanes: bool = False,
    optimizer: OptimizerConfig | None = None,
    ema: tuple[float, ...] = (),
    items: float | None = None,
    note: str = "",
) -> Contender:
    """Steps of the product's loop: turns, losses, backward passes, checks, fused optimiser; averages only if asked for.

    Args:
        model: of any family.
        x, cond: the batch.
        precision, compile: as a plan would have them.
        lanes: whether each thread takes rows of its own through the model.
        optimizer: of every player; AdamW by default.
        ema: widths of averages (peers keep none).
        items: units of work in a step, by default examples.
        note: for the table.
    """
    each = optimizer or OptimizerConfig(lr=1e-4, clip=None)
    config = TrainConfig(
        batch=len(x), optimizers={player.name: each for player in model.players()}, ema=ema, decay=0.0, warmup=0
    )
    plan = Plan.start(
        10**9, 0.0, flops_per_step=0.0, threads=torch.get_num_threads(), precision=precision, compile=compile
    )
    if compile:
        for network in model.networks():
            network.compile()
    state = TrainState.start(model, config, plan)
    run = steps(model, SameBatch(x, cond), state, config, 0)
    flops = None if compile else flops_of(lambda: next(run))
    if lanes:  # counted before, since a count does not see other threads
        state.plan = replace(state.plan, lanes=state.plan.threads)

    def step() -> None:
        with using_threads(state.plan.threads_each):
            next(run)

    return Contender(step, items=len(x) if items is None else items, flops=flops, params=parameters(model), note=note)
