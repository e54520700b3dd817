"""The one training loop, for every family: it knows turns, players and a plan, and no model.

It is a generator. What happens between steps (log, previews, checkpoints, a new plan) is the caller's business.

Where memory does not hold a batch it is taken through the model in micro-batches of its rows. Their gradients, each
weighted by its share of the rows, add up to those of the whole batch: noise is drawn by the batch's rows, and losses
are means over rows. What a model computes once a step for all players is then computed for each player and part again.
Several processes share a batch's rows in the same way: each computes on its own and the gradients are averaged. So do
the lanes of one process (lanes.py), which a plan has where they are faster; they keep what players share.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from quintet.core.batch import Batch
from quintet.core.errors import ResourceError
from quintet.core.memory import out_of_memory, release
from quintet.core.model import Loss, Model, Player, Turn
from quintet.core.numerics import autocast
from quintet.core.plan import Plan
from quintet.core.processes import ALONE, Processes
from quintet.core.recipe import TrainConfig
from quintet.core.rng import Rng, layer_noise
from quintet.train import shards
from quintet.train.ema import Ema
from quintet.train.lanes import Lanes, add_gradients
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
        noisy: whether layers have drawn noise of their own (dropout), of which torch has one generator: no lanes then.
    """

    step: int
    plan: Plan
    optimizers: dict[str, Optimizer]
    ema: Ema
    noisy: bool = False

    @staticmethod
    def start(model: Model[Any], config: TrainConfig, plan: Plan, processes: Processes = ALONE) -> TrainState:
        """The state before step 0. Sharded weights must be resharded.

        Raises: ValueError if the config's optimisers are not those of the model's players.
        """
        players = model.players()
        freeze(model)
        names = {player.name for player in players}
        if names != set(config.optimizers):
            raise ValueError(f"optimizers for {sorted(config.optimizers)}, but the players are {sorted(names)}")
        optimizers = {
            player.name: Optimizer(player.module, config.optimizers[player.name], processes) for player in players
        }
        return TrainState(0, plan, optimizers, Ema(averaged_parameters(model), config.ema))


@dataclass(frozen=True)
class Cause:
    """Why a player's update was left out.

    Attributes:
        parameter: whose gradient was the largest, where all that is not finite counts as larger than anything.
        rows: of the training split, in the step's batch.
    """

    parameter: str
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """One finished step.

    Attributes:
        step: its number.
        losses: of the players that took a turn, means over all processes, tensors still on their device.
        grad_norms: before clipping, by player.
        skipped: players whose update was left out because a gradient was not finite, and why.
    """

    step: int
    losses: Mapping[str, Loss]
    grad_norms: Mapping[str, float]
    skipped: Mapping[str, Cause]


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


def steps(
    model: Model[Any],
    batches: BatchSource,
    state: TrainState,
    config: TrainConfig,
    seed: int,
    processes: Processes = ALONE,
) -> Iterator[Step]:
    """Train from `state.step` to the plan's end, yielding after each step.

    Args:
        model: in training mode afterwards.
        batches: the step's batch for this process.
        state: changed in place; the caller may replace `state.plan` at a yield, or set back all of it. Where memory
            runs out the loop itself replaces the plan by one with smaller micro-batches.
        config: warm-up and players' optimisers.
        seed: of all training noise.
        processes: that take part, all in step.
    Raises: ResourceError where a single row does not fit into memory, or sharded weights leave no way to smaller parts.
    """
    loop = _Loop(model, batches, state, config, seed, processes)
    try:
        while not state.plan.over(state.step):
            yield loop.step()
    finally:
        loop.lanes.close()


class _Loop:
    """What all steps share; see `steps`."""

    def __init__(
        self,
        model: Model[Any],
        batches: BatchSource,
        state: TrainState,
        config: TrainConfig,
        seed: int,
        processes: Processes,
    ) -> None:
        self.model, self.batches, self.state, self.config = model, batches, state, config
        self.seed, self.processes = seed, processes
        self.players = tuple(model.players())
        self.opponents = {player.name: _opponents(player, self.players) for player in self.players}
        self.device = next(model.parameters()).device
        self.shares, self.units = type(model).shared is not Model.shared, shards.units(model)
        self.lanes = Lanes()

    def step(self) -> Step:
        """Every player's turn on one batch."""
        model, state, processes = self.model, self.state, self.processes
        step, plan = state.step, state.plan
        self.lanes = self.lanes.changed(1 if self.units else plan.lanes, plan.threads_each)
        model.train()
        progress, scale = plan.progress(step), plan.lr_scale(step, self.config.warmup)
        rng = Rng(self.seed, "train", step, first=self.batches.first, device=self.device)
        turns = _Turns(Turn(step, progress, self.batches[step], rng), plan.micro(step), self.lanes.count)
        losses: dict[str, Loss] = {}
        norms: dict[str, float] = {}
        skipped: dict[str, Cause] = {}
        for player in self.players:
            if step % player.every:
                continue
            optimizer = state.optimizers[player.name]
            while True:
                full = False
                try:
                    losses[player.name] = self._backward(player, turns)
                except Exception as error:  # its traceback holds the tensors, so the next try is outside
                    if not out_of_memory(error):
                        raise
                    if self.units:  # the others wait inside this network for the weights' rows, not for a word
                        half = max(1, self.config.batch // 2)
                        raise ResourceError(
                            "processes.memory", rank=processes.rank, rows=turns.rows, batch=half
                        ) from error
                    full = True
                if not processes.either(full)[0]:
                    break
                turns = self._smaller(turns, optimizer, first=not norms)
            shards.reshard(self.units)
            reduce_gradients(optimizer.params, processes)
            norm = optimizer.step_and_clear(scale, progress, plan.precision)
            norms[player.name] = norm
            if not math.isfinite(norm):
                skipped[player.name] = _cause(player, turns.whole.batch, processes)
                optimizer.clear()
        losses = _means(losses, processes)
        model.after_step(losses)
        if not skipped:
            state.ema.update()
        state.step += 1
        return Step(step, losses, norms, skipped)

    def _smaller(self, turns: _Turns, optimizer: Optimizer, first: bool) -> _Turns:
        """The same turns in smaller parts, after memory ran out. Raises: ResourceError where there are none.

        Where a player before had its turn whole, the plan has smaller parts from the next step on: replayed, this step
        runs out of memory at the same place.

        Args:
            first: whether this is the first player of the step.
        """
        state, whole = self.state, turns.whole
        rows = turns.micro or len(whole.batch)
        turns.parts = []  # and with them what players share
        optimizer.clear()
        release()
        if rows == 1:
            raise ResourceError("train.memory", needed=f"{_state_bytes(state) / 1e6:,.0f} MB")
        micro = -(-rows // 2)
        state.plan = state.plan.with_micro(state.step + (not first), micro)
        return _Turns(whole, micro, 1)

    def _backward(self, player: Player, turns: _Turns) -> Loss:
        """Add the gradients of a player's loss over all parts of the batch; the loss is the mean over rows."""
        if self.shares and not turns.micro and turns.parts[0].shared is None:  # once a step, by the first player
            with self._noise("shared", turns.whole):
                turns.parts = self.lanes.map(self._with_shared, turns.parts)
        with frozen(self.opponents[player.name]):
            if len(turns.parts) == 1:
                part = turns.parts[0]
                with self._noise(player.name, part):
                    loss = self._loss(player, part)
                loss.total.backward()
                return loss
            if turns.micro:
                return self._in_turn(player, turns)
            return self._side_by_side(player, turns)

    def _in_turn(self, player: Player, turns: _Turns) -> Loss:
        losses = []
        for alone in turns.parts:
            part = alone
            if self.shares:  # nothing of it is kept, since memory does not hold all parts
                with self._noise("shared", alone):
                    part = self._with_shared(alone)
            with self._noise(player.name, part):
                loss = self._loss(player, part)
            (loss.total * turns.share(part)).backward()
            losses.append(loss)
        return turns.mean(losses)

    def _side_by_side(self, player: Player, turns: _Turns) -> Loss:
        parameters = self.state.optimizers[player.name].params

        def work(part: Turn) -> tuple[Loss, tuple[Tensor | None, ...]]:
            loss = self._loss(player, part)
            return loss, torch.autograd.grad(loss.total * turns.share(part), parameters, allow_unused=True)

        with self._noise(player.name, turns.whole):
            found = self.lanes.map(work, turns.parts)
        add_gradients(parameters, [gradients for _, gradients in found])
        return turns.mean([loss for loss, _ in found])

    def _loss(self, player: Player, turn: Turn) -> Loss:
        with autocast(self.device, self.state.plan.precision):
            return player.loss(turn)

    def _with_shared(self, turn: Turn) -> Turn:
        with autocast(self.device, self.state.plan.precision):
            return replace(turn, shared=self.model.shared(turn))

    @contextmanager
    def _noise(self, purpose: str, turn: Turn) -> Iterator[None]:
        """Layers' own noise is a function of the seed, the step and the rows."""
        layers = Rng(self.seed, "layers", turn.step, device=self.device)
        with layer_noise(layers(purpose, turn.rng.first)) as drawn:
            yield
            self.state.noisy |= drawn()


class _Turns:
    """A step's turn as parts of the batch's rows, as if other processes had the others.

    Args:
        whole: of all rows.
        micro: rows that memory holds; 0 for all.
        lanes: parts otherwise.
    """

    def __init__(self, whole: Turn, micro: int, lanes: int) -> None:
        count = len(whole.batch)
        self.whole, self.micro = whole, micro if micro < count else 0
        self.rows = self.micro or -(-count // lanes)
        starts = range(0, count, self.rows)
        self.parts = [whole] if len(starts) == 1 else [_rows(whole, start, start + self.rows) for start in starts]

    def share(self, part: Turn) -> float:
        """Of the batch's rows."""
        return len(part.batch) / len(self.whole.batch)

    def mean(self, losses: Sequence[Loss]) -> Loss:
        """The loss and its parts over all rows."""
        total: Any = 0.0
        parts = defaultdict[str, Any](float)
        for part, loss in zip(self.parts, losses, strict=True):
            share = self.share(part)
            total = total + loss.total.detach() * share
            for name, value in loss.parts.items():
                parts[name] = parts[name] + value.detach() * share
        return Loss(total, parts)


def _rows(turn: Turn, start: int, stop: int) -> Turn:
    """The turn of some rows of a batch, as if another process had the others."""
    batch = turn.batch
    part = Batch(batch.x[start:stop], batch.index[start:stop], {k: v[start:stop] for k, v in batch.cond.items()})
    return replace(turn, batch=part, rng=turn.rng.at(start), shared=None)


def _means(losses: Mapping[str, Loss], processes: Processes) -> dict[str, Loss]:
    """Losses and their parts averaged over processes, each of which has as many rows."""
    if processes.count == 1:
        return dict(losses)
    means = iter(processes.mean([v for loss in losses.values() for v in (loss.total, *loss.parts.values())]))
    return {name: Loss(next(means), {part: next(means) for part in loss.parts}) for name, loss in losses.items()}


def _cause(player: Player, batch: Batch, processes: Processes) -> Cause:
    sizes = {
        name: float(rows.abs().nan_to_num(math.inf, math.inf).max())
        for name, p in player.module.named_parameters()
        if p.grad is not None and (rows := shards.local(p.grad)).numel()
    }
    found = processes.gather([sizes, batch.index.tolist()])
    largest = {name: max(own.get(name, 0.0) for own, _ in found) for own, _ in found for name in own}
    return Cause(max(largest, key=lambda name: largest[name]), tuple(row for _, rows in found for row in rows))


def _state_bytes(state: TrainState) -> int:
    """Of weights, gradients, the optimisers' two moments, and averages."""
    trained = sum(4 * p.numel() * p.element_size() for o in state.optimizers.values() for p in o.rows)
    return trained + sum(p.numel() * p.element_size() for average in state.ema.averages for p in average)


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


def reduce_gradients(parameters: Sequence[nn.Parameter], processes: Processes) -> None:
    """Average gradients over processes. Those of sharded parameters were reduced in the backward pass."""
    if processes.count == 1:
        return
    grads = [p.grad for p in parameters if p.grad is not None and not shards.sharded(p)]
    if not grads:
        return
    flat = torch.cat([g.flatten() for g in grads])
    dist.all_reduce(flat, op=dist.ReduceOp.SUM)
    flat /= processes.count
    for g, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
        g.copy_(part.view_as(g))


def _opponents(player: Player, players: Sequence[Player]) -> list[nn.Parameter]:
    own = {id(p) for p in player.module.parameters()}
    return [p for other in players for p in other.module.parameters() if id(p) not in own and p.requires_grad]
