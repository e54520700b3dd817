"""Which times are trained, and how much each counts.

Times come from a density, and inside a batch they are spread evenly: row i takes the i-th point of a Kronecker sequence
with one random shift a step. Each is exactly uniform over the shift, a batch covers [0, 1] with a gap of at most about
2.6 / B, and row i does not depend on the batch size, so two processes draw what one would.

Sources: Kingma et al. 2021, appendix I.1 (even times lower the variance), arXiv:2107.00630; Esser et al. 2024, section
3.1 (logit-normal), arXiv:2403.03206.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from quintet.core.config import STRICT, Config
from quintet.core.rng import Rng
from quintet.families.diffusion.paths import Path
from quintet.families.diffusion.targets import DEFINED, TargetName, factors

_GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True, kw_only=True, config=STRICT)
class WeightingConfig(Config):
    """The density of training times and the space in which the error is measured.

    Attributes:
        density: "uniform", or "logit-normal": logit(t) ~ N(mean, std^2).
        mean, std: of the logit-normal.
        uniform_share: share of times that stay uniform, so that no time is left untrained.
        space: the squared error is that of this target; None means the network's own target.
    """

    kind = "diffusion-weighting"
    density: Literal["uniform", "logit-normal"] = "logit-normal"
    mean: float = 0.0
    std: float = Field(default=1.0, gt=0)
    uniform_share: float = Field(default=0.0, ge=0, le=1)
    space: TargetName | None = None

    def times(self, n: int, rng: Rng) -> Tensor:
        """(n,) float32 times within (0, 1) for rows rng.first .. rng.first + n - 1."""
        shift = rng("shift").numpy().random()
        row = np.arange(rng.first, rng.first + n)
        u = torch.from_numpy((shift + row * _GOLDEN) % 1.0)
        if self.density == "logit-normal":
            # The same even points first choose the part of the mixture, then the place within it.
            rest = 1 - self.uniform_share
            inner = ((u - self.uniform_share) / max(rest, 1e-12)).clamp(1e-6, 1 - 1e-6)
            normal = torch.sigmoid(self.mean + self.std * torch.special.ndtri(inner))
            u = torch.where(u < self.uniform_share, u / max(self.uniform_share, 1e-12), normal)
        return u.clamp(1e-5, 1 - 1e-5).to(device=rng.device, dtype=torch.float32)

    def weight(self, target: TargetName, path: Path, t: Tensor) -> Tensor:
        """(B,) factor on the squared error of the network's target at t (B,)."""
        space = target if self.space is None else self.space
        if space == target:
            return torch.ones_like(t)
        low, high = DEFINED[target]
        return factors(target, space, path, t.clamp(max(low, path.low), high))[1].square()
