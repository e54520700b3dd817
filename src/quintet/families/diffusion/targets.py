"""What a diffusion network predicts, and the exact way from one prediction to another.

Every target is linear in clean data and noise, y = c0(t) x0 + c1(t) eps, and so is the input, x = a x0 + s eps. Two
equations, two unknowns: x0 = (c1 x - s y) / d and eps = (a y - c0 x) / d with d = a c1 - s c0. All conversions follow.

    x0        the clean data            (1, 0)
    eps       the noise                 (0, 1)
    v         a eps - s x0              (-s, a)      Salimans & Ho 2022, arXiv:2202.00512
    velocity  dx/dt = a' x0 + s' eps    (a', s')     Lipman et al. 2023, arXiv:2210.02747
    score     -eps / s                  (0, -1/s)    Song et al. 2021, arXiv:2011.13456
    edm       (x0 - c_skip x / a) / c_out            Karras et al. 2022, table 1, arXiv:2206.00364

"edm" is their preconditioning, D = c_skip x / a + c_out F, for noise sigma = s / a and data deviation d:
c_skip = d^2 / (sigma^2 + d^2), c_out = sigma d / sqrt(sigma^2 + d^2), written so that it is finite where a or s is 0,

    F = (s x0 / d - a d eps) / sqrt(s^2 + a^2 d^2),

which has unit variance at every time. With it the network also sees x times c_in = 1 / sqrt(s^2 + a^2 d^2), and
c_noise = ln(sigma) / 4 for the time. A squared error of F is their loss weighted by lambda = 1 / c_out^2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from quintet.families.diffusion.paths import Path, wide

TargetName = Literal["x0", "eps", "v", "velocity", "score", "edm"]


def _spread(path: Path, t: Tensor) -> Tensor:
    return torch.sqrt(path.s(t).square() + (path.std * path.a(t)).square())


_TABLE: Mapping[str, Callable[[Path, Tensor], tuple[Tensor, Tensor]]] = {
    "x0": lambda path, t: (torch.ones_like(t), torch.zeros_like(t)),
    "eps": lambda path, t: (torch.zeros_like(t), torch.ones_like(t)),
    "v": lambda path, t: (-path.s(t), path.a(t)),
    "velocity": lambda path, t: (path.da(t), path.ds(t)),
    "score": lambda path, t: (torch.zeros_like(t), -1 / path.s(t)),
    "edm": lambda path, t: (
        path.s(t) / (path.std * _spread(path, t)),
        -path.std * path.a(t) / _spread(path, t),
    ),
}

LIMITS: Mapping[str, tuple[float, float]] = {
    "x0": (1e-3, math.inf),
    "eps": (0.0, 160.0),
    "v": (0.0, math.inf),
    "velocity": (0.0, math.inf),
    "score": (1e-3, 160.0),
    "edm": (0.0, math.inf),
}
"""s/a between which a prediction of the target is used: clean data tell little of their noise, noise of the data in it
(an error of eps is one of x0 times s/a; 160 is about where DDPM's own chain ends)."""


@lru_cache
def span(target: TargetName, path: Path) -> tuple[float, float]:
    """The times between which predictions of the target are used on the path."""
    first, last = LIMITS[target]
    low, high = path.low, 1.0
    if path.level(low).sigma < first:
        low = path.level_of(first).t
    if path.level(high).sigma > last:
        high = path.level_of(last).t
        if path.steps is not None:
            high = math.floor(high * path.steps) / path.steps
    return low, high


@lru_cache
def noise_span(target: TargetName, path: Path) -> tuple[float, float]:
    """(smallest, largest) s/a within `span`; an end that is clean data or pure noise is left by 1e-3."""
    low, high = (path.level(t) for t in span(target, path))
    low = low if low.s > 0 else path.level(1e-3)
    high = high if high.a > 0 else path.level(1 - 1e-3)
    return low.sigma, high.sigma


def presented(target: TargetName, path: Path, t: Tensor) -> tuple[Tensor, Tensor] | None:
    """(c_in, c_noise), shaped as t, where the target has them: the network sees c_in x, and c_noise for the time."""
    if target != "edm":
        return None
    return 1 / _spread(path, t), torch.log((path.s(t) / path.a(t)).clamp(1e-4, 1e4)) / 4


def combine(name: TargetName, path: Path, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """The target (B, *E) of x0 and eps (B, *E) at t (B,)."""
    c0, c1 = _TABLE[name](path, wide(t, x0))
    return c0 * x0 + c1 * eps


def factors(source: TargetName, target: TargetName, path: Path, t: Tensor) -> tuple[Tensor, Tensor]:
    """(p, q), shaped as t, such that target = p x + q source for every x0 and eps.

    q is also how an error in `source` shows in `target`, hence the weight of a loss measured there.
    """
    a, s = path.a(t), path.s(t)
    c0, c1 = _TABLE[source](path, t)
    if source == target:
        return torch.zeros_like(t), torch.ones_like(t)
    d0, d1 = _TABLE[target](path, t)
    d = a * c1 - s * c0
    return (d0 * c1 - d1 * c0) / d, (d1 * a - d0 * s) / d


def convert(source: TargetName, target: TargetName, path: Path, y: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """A prediction y (B, *E) of `source` at x (B, *E), t (B,), as a prediction of `target`."""
    if source == target:
        return y
    p, q = factors(source, target, path, wide(t, x))
    return p * x + q * y
