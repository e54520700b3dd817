"""Priors p(z | cond) of a latent vector: what sampling starts from and what the bound charges the encoder for leaving.

What it is: densities that can be sampled, learned together with the encoder and decoder.
What it is not: an encoder; nor a model of its own that is fitted to latents afterwards.

A standard normal prior leaves holes: places where it has mass and the encoder never puts an example, from which the
decoder has not learned to decode. A learned mixture, whose components also know the labels, closes most of them.

Sources: Kingma & Welling 2014, appendix B, arXiv:1312.6114; Dilokthanakul et al. 2016 (mixture prior),
arXiv:1611.02648; Tomczak & Welling 2018 (the aggregated posterior is the best prior), arXiv:1705.07120.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from quintet.core.config import STRICT, Config
from quintet.core.rng import Rng
from quintet.core.spec import UNCONDITIONAL, Cond

LOG_2PI = math.log(2 * math.pi)
NODES = 16
"""Points of the quadrature behind a marginal divergence."""


def normal_log_prob(z: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """log N(z; mean, diag std^2), summed over the last axis."""
    each = -0.5 * ((z - mean) * torch.exp(-log_std)).square() - log_std - 0.5 * LOG_2PI
    return each.sum(-1)


def normal_kl_each(mean: Tensor, log_std: Tensor) -> Tensor:
    """KL(N(mean, std^2) || N(0, 1)) in nats, of every number by itself.

    Source: Kingma & Welling 2014, appendix B.
    """
    return 0.5 * (mean.square() + torch.exp(2 * log_std) - 2 * log_std - 1)


def normal_kl(mean: Tensor, log_std: Tensor) -> Tensor:
    """KL(N(mean, diag std^2) || N(0, I)) in nats, summed over the last axis."""
    return normal_kl_each(mean, log_std).sum(-1)


class Prior(nn.Module, ABC):
    """p(z | cond) over vectors of `width` numbers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    @abstractmethod
    def log_prob(self, z: Tensor, cond: Cond) -> Tensor:
        """(B,) nats of z (B, width)."""

    @abstractmethod
    def sample(self, n: int, cond: Cond, rng: Rng, temperature: float = 1.0) -> Tensor:
        """(n, width); row i of `rng` is item i's noise, whose standard deviation is multiplied by `temperature`."""

    def kl(self, mean: Tensor, log_std: Tensor, z: Tensor, cond: Cond) -> Tensor:
        """(B,) nats, KL(q || p) for q = N(mean, diag std^2) and z ~ q: exact if possible, else log q(z) - log p(z)."""
        return normal_log_prob(z, mean, log_std) - self.log_prob(z, cond)

    @abstractmethod
    def marginal_log_prob(self, z: Tensor, cond: Cond) -> Tensor:
        """(B, width) log densities of each number of z (B, width) by itself, the others integrated out."""

    def marginal_kl(self, mean: Tensor, log_std: Tensor, cond: Cond) -> Tensor:
        """(B, width) KL(q || p) of each number by itself, by Gauss-Hermite quadrature (exact for a Gaussian p)."""
        nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
        total = -(log_std + 0.5 * (LOG_2PI + 1))
        for node, weight in zip(nodes, weights / weights.sum(), strict=True):
            total = total - float(weight) * self.marginal_log_prob(mean + float(node) * log_std.exp(), cond)
        return total


class StandardNormal(Prior):
    """N(0, I), whatever the condition."""

    def log_prob(self, z: Tensor, cond: Cond) -> Tensor:
        return self.marginal_log_prob(z, cond).sum(-1)

    def marginal_log_prob(self, z: Tensor, cond: Cond) -> Tensor:
        return -0.5 * (z.square() + LOG_2PI)

    def sample(self, n: int, cond: Cond, rng: Rng, temperature: float = 1.0) -> Tensor:
        return temperature * rng("z").normal((n, self.width))

    def kl(self, mean: Tensor, log_std: Tensor, z: Tensor, cond: Cond) -> Tensor:
        return normal_kl(mean, log_std)


class Mixture(Prior):
    """A mixture of Gaussians with diagonal covariances, its weights given the labels.

    Each class may have components of its own; an unconditional row sees all of them. Components start as draws from
    N(0, I), as wide as the distance between neighbours, K^(-1 / width): wider ones would share all examples, get equal
    gradients and stay where they are.

    Args:
        width: of z.
        conditions: field -> number of classes.
        components: K, in all.
        speed: places and sizes are stored divided by it, so that Adam moves them so much faster than it would. Fast
            components find narrow clusters; they also follow an encoder that has nothing to say yet into collapse.
    """

    def __init__(self, width: int, conditions: Mapping[str, int], components: int, speed: float = 1.0) -> None:
        super().__init__(width)
        self.components, self.speed = components, speed
        self.place = nn.Parameter(torch.randn(components, width) / speed)
        self.size = nn.Parameter(torch.full((components, width), -math.log(components) / width / speed))
        self.logits = nn.Parameter(torch.zeros(components))
        self.tables = nn.ModuleDict({name: nn.Embedding(n + 1, components) for name, n in sorted(conditions.items())})
        for table in self.tables.values():
            nn.init.zeros_(table.weight)  # type: ignore[arg-type]

    @property
    def mean(self) -> Tensor:
        """(K, width)."""
        return self.speed * self.place

    @property
    def log_std(self) -> Tensor:
        """(K, width)."""
        return self.speed * self.size

    def _log_weight(self, cond: Cond, n: int) -> Tensor:
        logits = self.logits.expand(n, -1)
        for name, table in self.tables.items():
            assert isinstance(table, nn.Embedding)
            null = table.num_embeddings - 1
            index = cond.get(name)
            if index is None:
                index = torch.full((n,), null, device=logits.device)
            logits = logits + table(torch.where(index == UNCONDITIONAL, null, index))
        return torch.log_softmax(logits, dim=1)  # (n, K)

    def log_prob(self, z: Tensor, cond: Cond) -> Tensor:
        each = normal_log_prob(z[:, None], self.mean, self.log_std)  # (B, K)
        return torch.logsumexp(self._log_weight(cond, len(z)) + each, dim=1)

    def marginal_log_prob(self, z: Tensor, cond: Cond) -> Tensor:
        off = (z[:, None] - self.mean) * torch.exp(-self.log_std)  # (B, K, width)
        each = -0.5 * off.square() - self.log_std - 0.5 * LOG_2PI
        return torch.logsumexp(self._log_weight(cond, len(z))[:, :, None] + each, dim=1)

    def sample(self, n: int, cond: Cond, rng: Rng, temperature: float = 1.0) -> Tensor:
        weight = self._log_weight(cond, n).exp()
        u = rng("component").uniform((n, 1)).to(weight)
        which = (weight.cumsum(1) <= u).sum(1).clamp(max=self.components - 1)
        std = temperature * self.log_std[which].exp()
        return self.mean[which] + std * rng("z").normal((n, self.width)).to(weight)


class PriorConfig(Config, ABC):
    """Config of a prior."""

    @abstractmethod
    def build(self, width: int, conditions: Mapping[str, int]) -> Prior: ...


@dataclass(frozen=True, kw_only=True, config=STRICT)
class StandardNormalConfig(PriorConfig):
    """See StandardNormal."""

    kind = "standard-normal-prior"

    def build(self, width: int, conditions: Mapping[str, int]) -> StandardNormal:
        return StandardNormal(width)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MixtureConfig(PriorConfig):
    """See Mixture."""

    kind = "mixture-prior"
    components: int = Field(default=50, ge=1)
    speed: float = Field(default=1.0, gt=0)

    def build(self, width: int, conditions: Mapping[str, int]) -> Mixture:
        return Mixture(width, conditions, self.components, self.speed)
