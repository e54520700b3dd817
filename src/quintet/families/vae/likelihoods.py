"""Decoder distributions p(x | z): what a decoder must output, and how that output assigns probability to data.

What it is: each distribution is independent over dimensions given z, reads a few raw numbers a dimension from the
decoder, and may own parameters of its own (a scale shared by all examples).
What it is not: a network, a codec. Levels arrive as integers 0..L-1: a probability is a mass and needs no correction.

Legend: P parameters a dimension, L levels, M mixture components, *E the event shape.

Sources: Salimans et al. 2017 (discretised logistic mixtures), arXiv:1701.05517; Rybkin et al. 2021 (sigma-VAE),
arXiv:2006.13202; van den Oord et al. 2016 (a categorical distribution a pixel), arXiv:1601.06759.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from quintet.core.config import STRICT, Config
from quintet.core.rng import Rng
from quintet.core.spec import DataSpec

Sharing = Literal["example", "dimension", "all"]
"""Who has a scale of its own: every dimension of every example (the decoder says it), every dimension, or nobody."""

NARROWEST, WIDEST = -7.0, 7.0
"""Log scales of a logistic, in half ranges: the smallest puts all but e^-100 of the mass into one of 256 cells."""

_GAIN = 10.0
"""A shared scale is stored divided by this, so that Adam's steps move it as fast as a network moves its outputs."""


class Likelihood(nn.Module, ABC):
    """p(x | z) with independent dimensions.

    Attributes:
        spec: of x.
        parameters_each: P, the numbers which the decoder outputs for each dimension.
    """

    parameters_each: int

    def __init__(self, spec: DataSpec) -> None:
        super().__init__()
        self.spec = spec

    @property
    def outputs(self) -> tuple[int, ...]:
        """The decoder's output shape: the event with P times the channels (or entries)."""
        first, *rest = self.spec.shape
        return (self.parameters_each * first, *rest)

    def split(self, y: Tensor) -> Tensor:
        """Decoder output (B, P C, ...) to (B, P, C, ...)."""
        parts: Tensor = y.unflatten(1, (self.parameters_each, -1))
        return parts

    @abstractmethod
    def centred(self, x: Tensor) -> Tensor:
        """x as a network likes to read it: real, about unit scale."""

    @abstractmethod
    def log_prob(self, x: Tensor, y: Tensor) -> Tensor:
        """(B,) nats of x (B, *E) under the decoder's output y (B, *outputs)."""

    @abstractmethod
    def mean(self, y: Tensor) -> Tensor:
        """(B, *E) expectation, real also where x has levels."""

    @abstractmethod
    def sample(self, y: Tensor, rng: Rng, noise: float = 1.0) -> Tensor:
        """(B, *E) in the data's own type; row i of `rng` is item i's noise.

        Args:
            noise: temperature of the draw, 0 to 1. 1 draws from p(x | z); towards 0 the likeliest component is taken
                and the spread about its centre goes to 0, so that nothing is drawn.
        """

    def round(self, mean: Tensor) -> Tensor:
        """A mean as a datum: the nearest level, or itself."""
        if self.spec.levels is None:
            return mean
        return mean.round().clamp(0, self.spec.levels - 1).long()

    @abstractmethod
    def scale(self) -> Tensor | None:
        """Geometric mean of the shared scale in the data's units (levels, or standard deviations), for the log."""


class DiscretisedLogistic(Likelihood):
    """A mixture of logistics, integrated over the cell of each level; the outer cells reach to infinity.

    P(k) = sum_m w_m [sigma((k + 1/2 - mu_m) / s_m) - sigma((k - 1/2 - mu_m) / s_m)], all in units of the levels' half
    range (L - 1) / 2, so that levels lie in [-1, 1].

    Args:
        spec: with levels.
        mixtures: M, the number of logistic distributions of a value.
        sharing: who has scales of its own.

    Source: Salimans et al. 2017, eq. 2. The difference of two sigmoids is taken in logarithms by the identity
    sigma(b) - sigma(a) = sigma(b) sigma(-a) (1 - e^(a - b)), exact also in the tails, where they approximate.
    """

    start: Tensor

    def __init__(self, spec: DataSpec, *, mixtures: int, sharing: Sharing) -> None:
        super().__init__(spec)
        self.levels = _levels(spec)
        self.mixtures, self.sharing = mixtures, sharing
        self.half_range = (self.levels - 1) / 2
        own = 1 if sharing == "example" else 0
        self.parameters_each = mixtures * (1 + own) + (mixtures if mixtures > 1 else 0)
        shape = {"example": (), "dimension": (mixtures, *spec.shape), "all": (mixtures,)}[sharing]
        if sharing != "example":
            self.log_scale = nn.Parameter(torch.full(shape, -1.0 / _GAIN))
        # Components start spread over the range; equal ones would get equal gradients and stay equal.
        start = torch.linspace(-0.5, 0.5, mixtures) if mixtures > 1 else torch.zeros(1)
        self.register_buffer("start", start.view(-1, *[1] * len(spec.shape)), persistent=False)

    def centred(self, x: Tensor) -> Tensor:
        return x.to(self.start.dtype) / self.half_range - 1

    def _parts(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log w, mu and log s, each (B, M, *E) or broadcastable to it."""
        y, m = self.split(y), self.mixtures
        mean = y[:, :m] + self.start
        if self.sharing == "example":
            log_scale = y[:, m : 2 * m] - 1.0
        elif self.sharing == "dimension":
            log_scale = _GAIN * self.log_scale[None]
        else:
            log_scale = _GAIN * self.log_scale.view(1, -1, *[1] * len(self.spec.shape))
        log_weight = torch.log_softmax(y[:, -m:], dim=1) if m > 1 else torch.zeros_like(mean)
        return log_weight, mean, log_scale.clamp(NARROWEST, WIDEST)

    def log_prob(self, x: Tensor, y: Tensor) -> Tensor:
        log_weight, mean, log_scale = self._parts(y)
        log_mass = _log_mass(x.to(y.dtype)[:, None], mean, log_scale, self.levels)
        return torch.logsumexp(log_weight + log_mass, dim=1).flatten(1).sum(1)

    def mean(self, y: Tensor) -> Tensor:
        log_weight, mean, log_scale = self._parts(y)
        return (log_weight.exp() * _expected_level(mean, log_scale, self.levels)).sum(1)

    def sample(self, y: Tensor, rng: Rng, noise: float = 1.0) -> Tensor:
        log_weight, mean, log_scale = self._parts(y)
        which = _pick(log_weight, rng("component"), noise)
        value = mean.gather(1, which)[:, 0]
        if noise:
            s = log_scale.expand_as(mean).gather(1, which)[:, 0].exp()
            value = value + noise * s * _logistic(rng("place"), (len(y), *self.spec.shape)).to(y)
        return self.round((value + 1) * self.half_range)

    def scale(self) -> Tensor | None:
        if self.sharing == "example":
            return None
        return (_GAIN * self.log_scale).mean().exp() * self.half_range


class ColourLogistic(Likelihood):
    """A mixture of logistics for each pixel, whose components cover all channels and give each the ones before it.

    Given component m, channel c has a discretised logistic about mu_c + sum_{j < c} a_cj x_j, x_j in [-1, 1]: red
    first, green knows red, blue knows both. Independent channels would make coloured noise.

    Args:
        spec: an image with levels.
        mixtures: M, the number of logistic distributions of a value.

    Source: Salimans et al. 2017, section 2.2 and eq. 3; without their tanh on the coefficients.
    """

    start: Tensor

    def __init__(self, spec: DataSpec, *, mixtures: int) -> None:
        super().__init__(spec)
        if spec.kind != "image":
            raise ValueError(f"a colour likelihood is for images, got a {spec.kind} of shape {spec.shape}")
        self.levels, self.mixtures, self.channels = _levels(spec), mixtures, spec.shape[0]
        self.half_range = (self.levels - 1) / 2
        self.coefficients = self.channels * (self.channels - 1) // 2
        self.each = 2 * self.channels + self.coefficients + (1 if mixtures > 1 else 0)
        start = torch.linspace(-0.5, 0.5, mixtures) if mixtures > 1 else torch.zeros(1)
        self.register_buffer("start", start.view(-1, 1, 1, 1), persistent=False)

    @property
    def outputs(self) -> tuple[int, ...]:
        return (self.mixtures * self.each, *self.spec.shape[1:])

    def centred(self, x: Tensor) -> Tensor:
        return x.to(self.start.dtype) / self.half_range - 1

    def _parts(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """log w (B, M, 1, H, W), mu and log s (B, M, C, H, W), a (B, M, C (C - 1) / 2, H, W)."""
        y, c = y.unflatten(1, (self.mixtures, self.each)), self.channels
        mean, log_scale, rest = y[:, :, :c] + self.start, y[:, :, c : 2 * c] - 1.0, y[:, :, 2 * c :]
        log_weight = (
            torch.log_softmax(rest[:, :, -1:], dim=1) if self.mixtures > 1 else torch.zeros_like(mean[:, :, :1])
        )
        return log_weight, mean, log_scale.clamp(NARROWEST, WIDEST), rest[:, :, : self.coefficients]

    def _shift(self, a: Tensor, c: int, before: list[Tensor]) -> Tensor | float:
        """sum_{j < c} a_cj x_j, for a (B, ..., C (C - 1) / 2, H, W) and x_j (B, ..., H, W)."""
        first = c * (c - 1) // 2
        return sum((a[..., first + j, :, :] * before[j] for j in range(c)), start=0.0)

    def log_prob(self, x: Tensor, y: Tensor) -> Tensor:
        log_weight, mean, log_scale, a = self._parts(y)
        seen = [value[:, None] for value in self.centred(x).to(y.dtype).unbind(1)]  # C of (B, 1, H, W)
        centre = torch.stack([mean[:, :, c] + self._shift(a, c, seen) for c in range(self.channels)], dim=2)
        log_mass = _log_mass(x.to(y.dtype)[:, None], centre, log_scale, self.levels)  # (B, M, C, H, W)
        return torch.logsumexp(log_weight[:, :, 0] + log_mass.sum(2), dim=1).flatten(1).sum(1)

    def mean(self, y: Tensor) -> Tensor:
        """Each component's channels at their expectations given those before them, averaged over components."""
        log_weight, mean, log_scale, a = self._parts(y)
        levels: list[Tensor] = []
        for c in range(self.channels):
            centre = mean[:, :, c] + self._shift(a, c, [k / self.half_range - 1 for k in levels])
            levels.append(_expected_level(centre, log_scale[:, :, c], self.levels))
        return (log_weight.exp() * torch.stack(levels, dim=2)).sum(1)

    def sample(self, y: Tensor, rng: Rng, noise: float = 1.0) -> Tensor:
        log_weight, mean, log_scale, a = self._parts(y)
        which = _pick(log_weight, rng("component"), noise)  # (B, 1, 1, H, W)
        mean, log_scale, a = (v.gather(1, which.expand(-1, -1, v.shape[2], -1, -1))[:, 0] for v in (mean, log_scale, a))
        spread = noise * log_scale.exp() * _logistic(rng("place"), (len(y), *self.spec.shape)).to(y) if noise else None
        drawn: list[Tensor] = []
        for c in range(self.channels):
            value = mean[:, c] + self._shift(a, c, [self.centred(k) for k in drawn])
            if spread is not None:
                value = value + spread[:, c]
            drawn.append(self.round((value + 1) * self.half_range))
        return torch.stack(drawn, dim=1)

    def scale(self) -> Tensor | None:
        return None


class Categorical(Likelihood):
    """Free probabilities for each level of each dimension: the most flexible, and blind to the levels' order."""

    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec)
        self.parameters_each = self.levels = _levels(spec)
        # Marginal frequencies belong here, so that the decoder need only say how an example departs from them.
        self.bias = nn.Parameter(torch.zeros(self.levels, *spec.shape))

    def centred(self, x: Tensor) -> Tensor:
        return x.to(self.bias.dtype) * (2 / (self.levels - 1)) - 1

    def _log_probs(self, y: Tensor) -> Tensor:
        return torch.log_softmax(self.split(y) + _GAIN * self.bias, dim=1)  # (B, L, *E)

    def log_prob(self, x: Tensor, y: Tensor) -> Tensor:
        return self._log_probs(y).gather(1, x.long()[:, None]).flatten(1).sum(1)

    def mean(self, y: Tensor) -> Tensor:
        k = torch.arange(self.levels, dtype=y.dtype, device=y.device).view(-1, *[1] * len(self.spec.shape))
        return (self._log_probs(y).exp() * k).sum(1)

    def sample(self, y: Tensor, rng: Rng, noise: float = 1.0) -> Tensor:
        return _pick(self._log_probs(y), rng("place"), noise)[:, 0]

    def scale(self) -> Tensor | None:
        return None


class Gaussian(Likelihood):
    """N(mu, sigma^2) with a learned sigma, whose optimum for given means is the root mean squared error.

    Args:
        spec: without levels.
        sharing: who has a sigma of its own.

    Source: Rybkin et al. 2021, section 3: one sigma for all ("all") balances the two terms of the bound by itself.
    """

    def __init__(self, spec: DataSpec, *, sharing: Sharing) -> None:
        super().__init__(spec)
        if spec.levels is not None:
            raise ValueError(f"a Gaussian likelihood is for continuous values, got {spec.levels} levels")
        self.sharing = sharing
        self.parameters_each = 2 if sharing == "example" else 1
        if sharing != "example":
            self.log_sigma = nn.Parameter(torch.zeros(spec.shape if sharing == "dimension" else ()))

    def centred(self, x: Tensor) -> Tensor:
        return x

    def _parts(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """mu (B, *E) and log sigma, (B, *E) or (*E) or one number for all."""
        y = self.split(y)
        log_sigma = y[:, 1] if self.sharing == "example" else _GAIN * self.log_sigma
        return y[:, 0], log_sigma.clamp(min=-7.0)  # below a thousandth of the data's scale lies only overfitting

    def log_prob(self, x: Tensor, y: Tensor) -> Tensor:
        mu, log_sigma = self._parts(y)
        squares = ((x - mu) * torch.exp(-log_sigma)).square().flatten(1).sum(1)
        if self.sharing == "example":
            volume = log_sigma.flatten(1).sum(1)
        else:  # a shared number stands for as many dimensions as there are
            volume = log_sigma.sum() * (self.spec.dims / log_sigma.numel())
        return -0.5 * squares - volume - self.spec.dims * 0.5 * math.log(2 * math.pi)

    def mean(self, y: Tensor) -> Tensor:
        return self._parts(y)[0]

    def sample(self, y: Tensor, rng: Rng, noise: float = 1.0) -> Tensor:
        mu, log_sigma = self._parts(y)
        if not noise:
            return mu
        return torch.addcmul(mu, noise * log_sigma.exp(), rng("place").normal((len(y), *self.spec.shape)).to(y))

    def scale(self) -> Tensor | None:
        if self.sharing == "example":
            return None
        return (_GAIN * self.log_sigma).mean().exp()


def _log_mass(k: Tensor, mean: Tensor, log_scale: Tensor, levels: int) -> Tensor:
    """log of what a logistic about `mean` puts into the cell of level k, all broadcastable; outer cells are open."""
    half_range = (levels - 1) / 2
    precision = torch.exp(-log_scale)
    low = (((k - 0.5) / half_range - 1) - mean) * precision
    high = low + precision / half_range
    first, last = (k == 0).to(k.dtype), (k == levels - 1).to(k.dtype)  # factors: `where` takes twice the time in all
    # sigma(high) sigma(-low) (1 - exp(low - high)); at an edge the open side's factors are 1
    below, above = F.logsigmoid(high) * (1 - last), F.logsigmoid(-low) * (1 - first)
    inside = torch.log(-torch.expm1(-precision / half_range))
    return below + above + inside * (1 - first - last)


def _expected_level(mean: Tensor, log_scale: Tensor, levels: int) -> Tensor:
    """E[k] = sum over j = 1..L-1 of P(k >= j), of each component."""
    precision, half_range = torch.exp(-log_scale), (levels - 1) / 2
    total = torch.zeros_like(mean)
    for j in range(1, levels):
        total = total + torch.sigmoid((mean + 1 - (j - 0.5) / half_range) * precision)
    return total


def _logistic(rng: Rng, shape: tuple[int, ...]) -> Tensor:
    """Standard logistic numbers."""
    return torch.logit(rng.uniform(shape).clamp(1e-7, 1 - 1e-7))


def _pick(log_weight: Tensor, rng: Rng, noise: float) -> Tensor:
    """(B, 1, *E) int64, a choice among log_weight (B, M, *E) with probabilities sharpened to the power 1 / noise."""
    choices = log_weight.shape[1]
    if choices == 1 or not noise:
        return log_weight.argmax(1, keepdim=True)
    weight = torch.softmax(log_weight / noise, dim=1)
    u = rng.uniform((len(weight), 1, *weight.shape[2:])).to(weight)
    # the number of cumulative weights below u is the choice; rounding must not lead beyond the last
    return (weight.cumsum(1) <= u).sum(1, keepdim=True).clamp(max=choices - 1)


def _levels(spec: DataSpec) -> int:
    if spec.levels is None:
        raise ValueError("this likelihood is for data with levels; take a Gaussian for continuous values")
    return spec.levels


class LikelihoodConfig(Config, ABC):
    """Config of a decoder distribution."""

    @abstractmethod
    def build(self, spec: DataSpec) -> Likelihood: ...


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DiscretisedLogisticConfig(LikelihoodConfig):
    """See DiscretisedLogistic."""

    kind = "discretised-logistic-likelihood"
    mixtures: int = Field(default=1, ge=1)
    sharing: Sharing = "example"

    def build(self, spec: DataSpec) -> DiscretisedLogistic:
        return DiscretisedLogistic(spec, mixtures=self.mixtures, sharing=self.sharing)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ColourLogisticConfig(LikelihoodConfig):
    """See ColourLogistic."""

    kind = "colour-logistic-likelihood"
    mixtures: int = Field(default=1, ge=1)

    def build(self, spec: DataSpec) -> ColourLogistic:
        return ColourLogistic(spec, mixtures=self.mixtures)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CategoricalConfig(LikelihoodConfig):
    """See Categorical."""

    kind = "categorical-likelihood"

    def build(self, spec: DataSpec) -> Categorical:
        return Categorical(spec)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class GaussianConfig(LikelihoodConfig):
    """See Gaussian."""

    kind = "gaussian-likelihood"
    sharing: Sharing = "all"

    def build(self, spec: DataSpec) -> Gaussian:
        return Gaussian(spec, sharing=self.sharing)
