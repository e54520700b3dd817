"""Models with a known answer, small enough for tests of the loop, checkpoints and the conformance suite."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quintet.core.batch import Batch
from quintet.core.model import Loss, Model, Player, Turn
from quintet.core.rng import Rng
from quintet.core.spec import Cond, DataSpec


@dataclass(frozen=True)
class NoSampling:
    """A model without choices at sampling."""


class TinyDuel(Model[NoSampling]):
    """Two players on D-dimensional vectors: a generator shifts and scales noise, a critic compares means of features.

    Small, with dropout (so that layer noise matters), a shared fake batch and a buffer that `after_step` changes.
    """

    def __init__(self, dims: int = 3) -> None:
        super().__init__(DataSpec("vector", (dims,)), NoSampling())
        self.generator = nn.Sequential(nn.Linear(dims, 8), nn.Dropout(0.1), nn.Tanh(), nn.Linear(8, dims))
        self.critic = nn.Sequential(nn.Linear(dims, 8), nn.Tanh(), nn.Linear(8, 1))
        self.register_buffer("turns", torch.zeros((), dtype=torch.int64))

    def players(self) -> Sequence[Player]:
        return (
            Player("critic", self.critic, self._critic_loss, ema=False),
            Player("generator", self.generator, self._generator_loss, every=2),
        )

    def shared(self, turn: Turn) -> Tensor:
        return self.generator(turn.rng("z").normal(turn.batch.x.shape))

    def after_step(self, losses: Any) -> None:
        self.turns += 1

    def _critic_loss(self, turn: Turn) -> Loss:
        gap = self.critic(turn.shared.detach()).mean() - self.critic(turn.batch.x).mean()
        size = sum(p.square().sum() for p in self.critic.parameters())
        return Loss(gap + 0.1 * size, {"gap": gap.detach()})

    def _generator_loss(self, turn: Turn) -> Loss:
        return Loss(-self.critic(turn.shared).mean())

    def sample(self, n: int, cond: Cond | None = None, *, rng: Rng, sampling: NoSampling | None = None) -> Tensor:
        with torch.no_grad():
            return self.generator(rng("z").normal((n, *self.spec.shape)))

    def sequential_steps(self, sampling: NoSampling | None = None) -> int:
        return 1


class VectorBatches:
    """Fresh normal vectors as batches, a function of (seed, step)."""

    def __init__(
        self, dims: int = 3, batch: int = 16, seed: int = 0, first: int = 0, poison: int | None = None
    ) -> None:
        self.dims, self.batch, self.seed, self.first, self.poison = dims, batch, seed, first, poison

    def __getitem__(self, step: int) -> Batch:
        x = Rng(self.seed, "batches", step, first=self.first).normal((self.batch, self.dims)) + 2
        if self.poison is not None and step >= self.poison:
            x = x * float("nan")
        return Batch(x, torch.arange(self.first, self.first + self.batch))
