"""Latent: any model inside the latent space of a fixed first stage. Latent diffusion is this, and token models too.

What it is: a wrapper. Training examples are encoded by the first stage, which belongs to no player and so stays as it
is; the model inside is trained on the latents and samples them; the first stage decodes what it draws. Real latents are
brought to zero mean and unit variance of each channel, which the paths of diffusion models expect.
What it is not: a family, or a first stage (see vae/autoencoder).

Sources: Rombach et al. 2022, "High-resolution image synthesis with latent diffusion models", arXiv:2112.10752, whose
section D.1 scales latents by one number; van den Oord et al. 2017 (a prior over codes), arXiv:1711.00937.
Departure: the mean of the first stage's posterior is learned, not draws from it, so that latents can be computed once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from quintet.core.batch import Batch, Examples
from quintet.core.config import STRICT
from quintet.core.memory import halving
from quintet.core.model import HasLatent, HasTrace, Loss, Model, Player, Trace, Turn
from quintet.core.recipe import ModelConfig
from quintet.core.rng import Rng
from quintet.core.spec import Cond, DataSpec

CHUNK = 256
FITTED = 4096
"""Examples at most whose latents give the means and deviations."""
KEPT_BYTES = 2**30
"""Largest set of latents that is computed once and kept."""


class Latent(Model[Any], HasLatent):
    """See the module. A HasLatent model whose `encode` is the first stage's.

    Args:
        spec: of the data, which is the first stage's.
        first: the first stage; its parameters are never changed here.
        inner: a model of `first.latent`.
    Raises: ValueError if `first` has no latents or `inner` models something else.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, spec: DataSpec, first: Model[Any], inner: Model[Any]) -> None:
        super().__init__(spec, inner.sampling)
        if not isinstance(first, HasLatent):
            raise ValueError(f"a first stage needs latents, {type(first).__name__} has none")
        if inner.spec.shape != first.latent.shape or inner.spec.levels != first.latent.levels:
            raise ValueError(f"the inner model is of {inner.spec.shape}, the latents are {first.latent.shape}")
        self.first, self.inner = first, inner
        self.latent = first.latent
        self.precisions = inner.precisions  # type: ignore[misc]
        sizes = (first.latent.shape[0], *[1] * (len(first.latent.shape) - 1))  # a number a channel
        self.register_buffer("mean", torch.zeros(sizes))
        self.register_buffer("deviation", torch.ones(sizes))
        self._kept: Tensor | None = None

    # training

    def prepare(self, examples: Examples) -> None:
        """Fit mean and deviation, and compute all latents once where they fit and examples are always the same."""
        whole = not examples.augmented and self.latent.dims * 4 * examples.examples <= KEPT_BYTES
        count = examples.examples if whole else min(FITTED, examples.examples)
        parts, done, size = list[Tensor](), 0, CHUNK

        def encoded(most: int) -> Tensor:
            return self._raw(examples.take(done, min(done + most, count)))

        with torch.no_grad():
            while done < count:
                part, size = halving(encoded, size)
                parts.append(part)
                done += len(part)
            z = torch.cat(parts)
            if self.latent.levels is None:
                axes = [0, *range(2, z.ndim)]
                fitted = z[:FITTED]
                self.mean.copy_(fitted.mean(axes).reshape(self.mean.shape))
                self.deviation.copy_(fitted.std(axes).clamp_min(1e-6).reshape(self.deviation.shape))
        self._kept = z if whole else None

    def players(self) -> Sequence[Player]:
        return tuple(replace(player, loss=self._over_latents(player)) for player in self.inner.players())

    def shared(self, turn: Turn) -> Any:
        return self.inner.shared(self._encoded(turn))

    def after_step(self, losses: Mapping[str, Loss]) -> None:
        self.inner.after_step(losses)

    def networks(self) -> Sequence[nn.Module]:
        return self.inner.networks()

    def _over_latents(self, player: Player) -> Any:
        return lambda turn: player.loss(self._encoded(turn))

    def _encoded(self, turn: Turn) -> Turn:
        batch = turn.batch
        with torch.no_grad():
            z = self._raw(batch) if self._kept is None else self._kept[batch.index]
            return replace(turn, batch=replace(batch, x=self._scaled(z)))

    def _raw(self, batch: Batch) -> Tensor:
        """The first stage's latents (B, *latent.shape); in evaluation mode, whatever mode training is in."""
        before = self.first.training
        self.first.eval()
        try:
            z: Tensor = self.first.encode(batch.x, batch.cond)
        finally:
            self.first.train(before)
        return z

    def _scaled(self, z: Tensor) -> Tensor:
        return z if self.latent.levels is not None else (z - self.mean) / self.deviation

    # sampling

    def sample(self, n: int, cond: Cond | None = None, *, rng: Rng, sampling: Any = None) -> Tensor:
        return self.from_scaled(self.inner.sample(n, cond, rng=rng, sampling=sampling), cond)

    def sequential_steps(self, sampling: Any = None) -> int:
        return self.inner.sequential_steps(sampling) + 1

    def from_scaled(self, z: Tensor, cond: Cond | None = None) -> Tensor:
        """What the inner model drew, (B, *latent.shape), to data (B, *spec.shape)."""
        return self.decode(z if self.latent.levels is not None else z * self.deviation + self.mean, cond)

    def encode(self, x: Tensor, cond: Cond | None = None, *, rng: Rng | None = None) -> Tensor:
        assert isinstance(self.first, HasLatent)
        return self.first.encode(x, cond, rng=rng)

    def decode(self, z: Tensor, cond: Cond | None = None) -> Tensor:
        assert isinstance(self.first, HasLatent)
        return self.first.decode(z, cond)


class TracedLatent(Latent, HasTrace):
    """A Latent whose inner model shows how it generates; each moment is shown decoded."""

    def trace(self, n: int, frames: int, cond: Cond | None = None, *, rng: Rng) -> Trace:
        assert isinstance(self.inner, HasTrace)
        found = self.inner.trace(n, frames, cond, rng=rng)
        return replace(found, frames=torch.stack([self.from_scaled(frame, cond) for frame in found.frames]))


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LatentConfig(ModelConfig):
    """See Latent.

    Attributes:
        first: the first stage, whose weights come from an earlier stage: `needs={"first": ...}` in the recipe's stage.
        inner: the model of its latents.
    """

    kind = "latent"
    first: ModelConfig
    inner: ModelConfig

    def build(self, spec: DataSpec) -> Latent:
        first = self.first.build(spec)
        if not isinstance(first, HasLatent):
            raise ValueError(f"a first stage needs latents, {type(first).__name__} has none")
        inner = self.inner.build(first.latent)
        return (TracedLatent if isinstance(inner, HasTrace) else Latent)(spec, first, inner)
