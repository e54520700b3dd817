"""Bottlenecks of a first stage: a Gaussian posterior near the normal, or finite scalar quantisation.

What it is: what turns an encoder's output into latents, says what they cost, and draws latents where nothing was
learned about them. What it is not: an encoder, or a learned prior (put a model of the latents on top, families/latent).

Sources: Rombach et al. 2022, appendix G (a KL term of tiny weight), arXiv:2112.10752; Mentzer et al. 2024, "Finite
scalar quantization: VQ-VAE made simple", section 3.1 and appendix A.1, arXiv:2309.15505; Bengio et al. 2013 (gradient
straight through), arXiv:1308.3432.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import prod
from typing import NamedTuple

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from quintet.core.config import STRICT, Config
from quintet.core.numerics import full
from quintet.core.rng import Rng
from quintet.core.spec import DataSpec

Place = tuple[int, int]
"""Rows and columns of the latents."""


class Squeezed(NamedTuple):
    """What a bottleneck let through.

    Attributes:
        z: (B, C, h, w), what the decoder gets.
        cost: (B,) nats that the bottleneck charges, 0 where it charges nothing.
    """

    z: Tensor
    cost: Tensor


class Bottleneck(nn.Module, ABC):
    """`outputs` channels come from the encoder, `channels` go to the decoder."""

    outputs: int
    channels: int

    @abstractmethod
    def squeeze(self, h: Tensor, rng: Rng | None) -> Squeezed:
        """h (B, outputs, *place) through the bottleneck; without rng nothing is drawn."""

    @abstractmethod
    def latent(self, place: Place) -> DataSpec:
        """What `store` returns."""

    @abstractmethod
    def store(self, z: Tensor) -> Tensor:
        """z (B, channels, *place) as a model of the latents sees it."""

    @abstractmethod
    def recall(self, stored: Tensor, place: Place) -> Tensor:
        """The inverse of `store`."""

    @abstractmethod
    def draw(self, n: int, place: Place, rng: Rng) -> Tensor:
        """(n, channels, *place) from what the bottleneck pulls latents towards."""


class GaussianBottleneck(Bottleneck):
    """A diagonal Gaussian of each latent number, charged its divergence from the standard normal.

    Args:
        channels: of the latents.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels, self.outputs = channels, 2 * channels

    def squeeze(self, h: Tensor, rng: Rng | None) -> Squeezed:
        mean, log_variance = full(h).chunk(2, dim=1)
        log_variance = log_variance.clamp(-20.0, 10.0)
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
        z = mean
        if rng is not None:
            z = mean + (0.5 * log_variance).exp() * rng("posterior").normal(tuple(mean.shape)).to(mean)
        return Squeezed(z, kl.flatten(1).sum(1))

    def latent(self, place: Place) -> DataSpec:
        return DataSpec("image", (self.channels, *place))

    def store(self, z: Tensor) -> Tensor:
        return z

    def recall(self, stored: Tensor, place: Place) -> Tensor:
        return stored

    def draw(self, n: int, place: Place, rng: Rng) -> Tensor:
        return rng("prior").normal((n, self.channels, *place))


class FiniteScalars(Bottleneck):
    """Each channel is bounded and rounded to a few levels; the channels' levels together are one code a place.

    There is no codebook that could collapse and no extra loss; gradients pass the rounding straight through.

    Args:
        levels: of each channel.
    """

    steps: Tensor
    radix: Tensor

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        self.levels = levels
        self.channels = self.outputs = len(levels)
        self.register_buffer("steps", torch.tensor(levels), persistent=False)
        self.register_buffer("radix", torch.tensor([prod(levels[:i]) for i in range(len(levels))]), persistent=False)

    def squeeze(self, h: Tensor, rng: Rng | None) -> Squeezed:
        """Source: Mentzer et al. 2024, appendix A.1, with z scaled to [-1, 1], and room outside the outer levels, not
        inside, without which two levels would not work.
        """
        h = full(h)
        steps = self._column(self.steps).to(h.dtype)
        half = (steps - 1) * (1 + 1e-3) / 2
        offset = torch.where(self._column(self.steps) % 2 == 0, 0.5, 0.0).to(h.dtype)
        bounded = (h + torch.atanh(offset / half)).tanh() * half - offset
        rounded = bounded + (bounded.round() - bounded).detach()
        low = -torch.div(steps, 2, rounding_mode="floor")
        z = 2 * (rounded - low) / (steps - 1) - 1
        return Squeezed(z, h.new_zeros(len(h)))

    def latent(self, place: Place) -> DataSpec:
        return DataSpec("tokens", (prod(place),), prod(self.levels))

    def store(self, z: Tensor) -> Tensor:
        """(B, C, h, w) in [-1, 1] to codes (B, h w) int64."""
        digits = ((z + 1) / 2 * (self._column(self.steps) - 1)).round().long()
        return (digits * self._column(self.radix)).sum(1).flatten(1)

    def recall(self, stored: Tensor, place: Place) -> Tensor:
        digits = stored.reshape(len(stored), 1, *place) // self._column(self.radix) % self._column(self.steps)
        return 2 * digits.float() / (self._column(self.steps) - 1) - 1

    def draw(self, n: int, place: Place, rng: Rng) -> Tensor:
        codes = rng("prior").integers(0, prod(self.levels), (n, prod(place))).to(self.radix.device)
        return self.recall(codes, place)

    @staticmethod
    def _column(values: Tensor) -> Tensor:
        return values[:, None, None]


class BottleneckConfig(Config, ABC):
    """Config of a bottleneck."""

    @abstractmethod
    def build(self) -> Bottleneck: ...


@dataclass(frozen=True, kw_only=True, config=STRICT)
class GaussianBottleneckConfig(BottleneckConfig):
    """See GaussianBottleneck.

    Attributes:
        channels: of the latents, at each place of their grid.
    """

    kind = "gaussian-bottleneck"
    channels: int = Field(default=4, ge=1)

    def build(self) -> Bottleneck:
        return GaussianBottleneck(self.channels)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FiniteScalarsConfig(BottleneckConfig):
    """See FiniteScalars.

    Attributes:
        levels: values that each latent number may take; a code has their product, 8 x 6 x 5 = 240 by default (Mentzer
            et al. 2024, table 1).
    """

    kind = "finite-scalars"
    levels: tuple[int, ...] = Field(default=(8, 6, 5), min_length=1)

    def build(self) -> Bottleneck:
        if min(self.levels) < 2:
            raise ValueError(f"every channel needs at least 2 levels, got {self.levels}")
        return FiniteScalars(self.levels)
