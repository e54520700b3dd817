"""Which times are trained, and how much each counts.

Times come from a density, and inside a batch they are spread evenly: row i takes the i-th point of a Kronecker sequence
with one random shift a step. Each is exactly uniform over the shift, a batch covers [0, 1] with a gap of at most about
2.6 / B, and row i does not depend on the batch size, so two processes draw what one would.

Sources: Kingma et al. 2021, appendix I.1 (even times lower the variance) and eq. 17 (likelihood), arXiv:2107.00630;
Esser et al. 2024, section 3.1 (logit-normal), arXiv:2403.03206; Karras et al. 2022, table 1 (log-normal),
arXiv:2206.00364.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from quintet.core.config import STRICT, Config
from quintet.core.rng import Rng
from quintet.families.diffusion.paths import Path
from quintet.families.diffusion.targets import TargetName, factors, noise_span, span

_GOLDEN = (5**0.5 - 1) / 2


class Weighting(Config, ABC):
    """The density of training times, and the factor on the squared error of the network's target."""

    @abstractmethod
    def times(self, n: int, rng: Rng, target: TargetName, path: Path) -> Tensor:
        """(n,) float32 training times of the path, for rows rng.first .. rng.first + n - 1."""

    @abstractmethod
    def weight(self, target: TargetName, path: Path, t: Tensor) -> Tensor:
        """(B,) factor on the squared error of the network's target at t (B,)."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class WeightingConfig(Weighting):
    """Times from a density, and the error measured in a space of choice.

    Attributes:
        density: "uniform"; "logit-normal": logit(t) ~ N(mean, std^2); "log-normal": ln(s/a) ~ N(mean, std^2).
        mean, std: of the normal.
        uniform_share: share of times that stay uniform, so that no time is left untrained.
        space: the squared error is that of this target; None means the network's own target.
    """

    kind = "diffusion-weighting"
    density: Literal["uniform", "logit-normal", "log-normal"] = "logit-normal"
    mean: float = 0.0
    std: float = Field(default=1.0, gt=0)
    uniform_share: float = Field(default=0.0, ge=0, le=1)
    space: TargetName | None = None

    def times(self, n: int, rng: Rng, target: TargetName, path: Path) -> Tensor:
        u = even(n, rng)
        if self.density != "uniform":
            # The same even points first choose the part of the mixture, then the place within it.
            rest = 1 - self.uniform_share
            inner = ((u - self.uniform_share) / max(rest, 1e-12)).clamp(1e-6, 1 - 1e-6)
            z = self.mean + self.std * torch.special.ndtri(inner)
            normal = torch.sigmoid(z) if self.density == "logit-normal" else path.time(torch.exp(z))
            u = torch.where(u < self.uniform_share, u / max(self.uniform_share, 1e-12), normal)
        return path.snap(u.clamp(1e-5, 1 - 1e-5)).to(device=rng.device, dtype=torch.float32)

    def weight(self, target: TargetName, path: Path, t: Tensor) -> Tensor:
        space = target if self.space is None else self.space
        if space == target:
            return torch.ones_like(t)
        low, high = span(target, path)
        return factors(target, space, path, t.clamp(low, high))[1].square()


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ElboConfig(Weighting):
    """The diffusion term of the likelihood bound, in nats per dimension.

    Half the squared error of the noise, integrated over gamma = -log SNR; gamma is drawn uniformly between its ends.

    Source: Kingma et al. 2021, eq. 17.
    """

    kind = "elbo-weighting"

    def times(self, n: int, rng: Rng, target: TargetName, path: Path) -> Tensor:
        low, high = (math.log(sigma) for sigma in noise_span(target, path))
        t = path.time(torch.exp(low + (high - low) * even(n, rng)))
        return path.snap(t).to(device=rng.device, dtype=torch.float32)

    def weight(self, target: TargetName, path: Path, t: Tensor) -> Tensor:
        low, high = (2 * math.log(sigma) for sigma in noise_span(target, path))
        return (high - low) / 2 * factors(target, "eps", path, t)[1].square()


def even(n: int, rng: Rng) -> Tensor:
    """(n,) float64 in [0, 1), each uniform, evenly spread over the rows of a step."""
    shift = rng("shift").numpy().random()
    row = np.arange(rng.first, rng.first + n)
    return torch.from_numpy((shift + row * _GOLDEN) % 1.0)
