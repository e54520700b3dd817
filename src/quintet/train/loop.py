"""The one training loop, for every family: it knows turns, players and a plan, and no model.

It is a generator. What happens between steps (log, previews, checkpoints, a new plan) is the caller's business.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import nn

from quintet.core.batch import Batch
from quintet.core.model import Loss, Model, Player, Turn
from quintet.core.plan import Plan
from quintet.core.recipe import TrainConfig
from quintet.core.rng import Rng, layer_noise
from quintet.train.ema import Ema
from quintet.train.optim import Optimizer


class BatchSource(Protocol):
    """`batches[step]` is the step's batch, a function of the step alone; `first` is its first row's global number."""

    first: int

    def __getitem__(self, step: int) -> Batch: ...


@dataclass
class TrainState:
    """All that changes while training, beside the model itself.

    Attributes:
        step: the next step.
        plan: may be replaced between steps.
        optimizers: by player name.
        ema: averages of the players that have them.
    """

    step: int
    plan: Plan
    optimizers: dict[str, Optimizer]
    ema: Ema

    @staticmethod
    def start(model: Model[Any], config: TrainConfig, plan: Plan) -> TrainState:
        """The state before step 0.

        Raises: ValueError if the config's optimisers are not those of the model's players.
        """
        players = model.players()
        freeze(model)
        names = {player.name for player in players}
        if names != set(config.optimizers):
            raise ValueError(f"optimizers for {sorted(config.optimizers)}, but the players are {sorted(names)}")
        optimizers = {player.name: Optimizer(player.module, config.optimizers[player.name]) for player in players}
        return TrainState(0, plan, optimizers, Ema(averaged_parameters(model), config.ema))


@dataclass(frozen=True)
class Step:
    """One finished step.

    Attributes:
        step: its number.
        losses: of the players that took a turn, tensors still on their device.
        grad_norms: before clipping, by player.
        skipped: players whose update was left out because a gradient was not finite.
    """

    step: int
    losses: Mapping[str, Loss]
    grad_norms: Mapping[str, float]
    skipped: tuple[str, ...]


def frozen_parameters(model: Model[Any]) -> dict[str, nn.Parameter]:
    """Name -> parameter of the frozen parts: what belongs to no player (a teacher, a first stage)."""
    trained = {id(p) for player in model.players() for p in player.module.parameters()}
    return {name: p for name, p in model.named_parameters() if id(p) not in trained}


def freeze(model: Model[Any]) -> None:
    """Frozen parts get no gradient; they have no average and no optimiser either."""
    for p in frozen_parameters(model).values():
        p.requires_grad_(False)


def averaged_parameters(model: Model[Any]) -> dict[str, nn.Parameter]:
    """Name -> parameter, of every player that is sampled from an average."""
    wanted = {id(p) for player in model.players() if player.ema for p in player.module.parameters()}
    return {name: p for name, p in model.named_parameters() if id(p) in wanted and p.requires_grad}


def steps(model: Model[Any], batches: BatchSource, state: TrainState, config: TrainConfig, seed: int) -> Iterator[Step]:
    """Train from `state.step` to the plan's end, yielding after each step.

    Args:
        model: in training mode afterwards.
        batches: the step's batch for this process.
        state: changed in place; the caller may replace `state.plan` at a yield.
        config: warm-up and players' optimisers.
        seed: of all training noise.
    """
    players = tuple(model.players())
    opponents = {player.name: _opponents(player, players) for player in players}
    device = next(model.parameters()).device
    while not state.plan.over(state.step):
        step, plan = state.step, state.plan
        model.train()
        progress, scale = plan.progress(step), plan.lr_scale(step, config.warmup)
        rng = Rng(seed, "train", step, first=batches.first, device=device)
        turn = Turn(step, progress, batches[step], rng)
        losses: dict[str, Loss] = {}
        norms: dict[str, float] = {}
        skipped: list[str] = []
        with layer_noise(Rng(seed, "layers", step, batches.first, device=device)):
            turn = replace(turn, shared=model.shared(turn))
            for player in players:
                if step % player.every:
                    continue
                with frozen(opponents[player.name]):
                    loss = player.loss(turn)
                    loss.total.backward()
                losses[player.name] = loss
                optimizer = state.optimizers[player.name]
                reduce_gradients(optimizer.params)
                norm = optimizer.step_and_clear(scale, progress)
                norms[player.name] = norm
                if not math.isfinite(norm):
                    skipped.append(player.name)
        model.after_step(losses)
        if not skipped:
            state.ema.update()
        state.step += 1
        yield Step(step, losses, norms, tuple(skipped))


@contextmanager
def frozen(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """No gradient flows to these parameters inside the block."""
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in parameters:
            p.requires_grad_(True)


def reduce_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Average gradients over processes. Sharded parameters (FSDP2) are reduced by their own hooks."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return
    grads = [p.grad for p in parameters if p.grad is not None and not hasattr(p.grad, "full_tensor")]
    if not grads:
        return
    flat = torch.cat([g.flatten() for g in grads])
    dist.all_reduce(flat, op=dist.ReduceOp.SUM)
    flat /= dist.get_world_size()
    for g, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
        g.copy_(part.view_as(g))


def _opponents(player: Player, players: Sequence[Player]) -> list[nn.Parameter]:
    own = {id(p) for p in player.module.parameters()}
    return [p for other in players for p in other.module.parameters() if id(p) not in own and p.requires_grad]
