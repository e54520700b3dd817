"""Paths from data to noise: x_t = a(t) x0 + s(t) eps, t in [0, 1], 0 = data, 1 = noise.

What it is: the two coefficients, their derivatives, and the time at which the noise-to-signal ratio s/a has a given
value.
What it is not: a loss or a sampler.

Sources: Lipman et al. 2023 (linear), arXiv:2210.02747; Lu & Song 2024 (cosine), arXiv:2410.11081, close to Nichol &
Dhariwal's cosine schedule, arXiv:2102.09672; Song et al. 2021 (variance preserving), arXiv:2011.13456, eq. 32-33.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

PathName = Literal["linear", "cosine", "vp"]
Scalar = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Path:
    """Coefficients of x_t, each a function of t of any shape.

    Attributes:
        a, s: of the data and of the noise.
        da, ds: their derivatives by t.
        time: t at which s/a = sigma.
        low: smallest t at which the derivatives are used; above 0 where ds is infinite at 0.
    """

    a: Scalar
    s: Scalar
    da: Scalar
    ds: Scalar
    time: Scalar
    low: float = 0.0

    def point(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_t (B, *E) of x0 and eps (B, *E) at t (B,)."""
        t = wide(t, x0)
        return self.a(t) * x0 + self.s(t) * eps


def wide(t: Tensor, x: Tensor) -> Tensor:
    """t (B,) as (B, 1, ...), to multiply x (B, *E)."""
    return t.reshape(-1, *[1] * (x.ndim - 1))


# Variance preserving: a(t) = exp(-B(t) / 2), B(t) = integral of beta = b0 t + (b1 - b0) t^2 / 2, s^2 = 1 - a^2.
_B0, _B1 = 0.1, 20.0


def _vp_integral(t: Tensor) -> Tensor:
    return _B0 * t + (_B1 - _B0) / 2 * t * t


def _vp_beta(t: Tensor) -> Tensor:
    return _B0 + (_B1 - _B0) * t


def _vp_a(t: Tensor) -> Tensor:
    return torch.exp(-_vp_integral(t) / 2)


def _vp_s(t: Tensor) -> Tensor:
    return torch.sqrt(-torch.expm1(-_vp_integral(t)))


def _vp_time(sigma: Tensor) -> Tensor:
    integral = torch.log1p(sigma * sigma)
    slope = _B1 - _B0
    return (torch.sqrt(_B0**2 + 2 * slope * integral) - _B0) / slope


PATHS: Mapping[str, Path] = {
    "linear": Path(
        a=lambda t: 1 - t,
        s=lambda t: t,
        da=lambda t: -torch.ones_like(t),
        ds=torch.ones_like,
        time=lambda sigma: sigma / (1 + sigma),
    ),
    "cosine": Path(
        a=lambda t: torch.cos(math.pi / 2 * t),
        s=lambda t: torch.sin(math.pi / 2 * t),
        da=lambda t: -math.pi / 2 * torch.sin(math.pi / 2 * t),
        ds=lambda t: math.pi / 2 * torch.cos(math.pi / 2 * t),
        time=lambda sigma: torch.atan(sigma) * (2 / math.pi),
    ),
    "vp": Path(
        a=_vp_a,
        s=_vp_s,
        da=lambda t: -_vp_beta(t) / 2 * _vp_a(t),
        ds=lambda t: _vp_beta(t) / 2 * _vp_a(t) ** 2 / _vp_s(t),
        time=_vp_time,
        low=1e-4,
    ),
}
