"""What a diffusion network predicts, and the exact way from one prediction to another.

Every target is linear in clean data and noise, y = c0(t) x0 + c1(t) eps, and so is the input, x = a x0 + s eps. Two
equations, two unknowns: x0 = (c1 x - s y) / d and eps = (a y - c0 x) / d with d = a c1 - s c0. All conversions follow.

    x0        the clean data            (1, 0)
    eps       the noise                 (0, 1)
    v         a eps - s x0              (-s, a)      Salimans & Ho 2022, arXiv:2202.00512
    velocity  dx/dt = a' x0 + s' eps    (a', s')     Lipman et al. 2023, arXiv:2210.02747
    score     -eps / s                  (0, -1/s)    Song et al. 2021, arXiv:2011.13456
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from quintet.families.diffusion.paths import Path, wide

TargetName = Literal["x0", "eps", "v", "velocity", "score"]

_TABLE: Mapping[str, Callable[[Path, Tensor], tuple[Tensor, Tensor]]] = {
    "x0": lambda path, t: (torch.ones_like(t), torch.zeros_like(t)),
    "eps": lambda path, t: (torch.zeros_like(t), torch.ones_like(t)),
    "v": lambda path, t: (-path.s(t), path.a(t)),
    "velocity": lambda path, t: (path.da(t), path.ds(t)),
    "score": lambda path, t: (torch.zeros_like(t), -1 / path.s(t)),
}

DEFINED: Mapping[str, tuple[float, float]] = {
    "x0": (1e-3, 1.0),
    "eps": (0.0, 1 - 1e-3),
    "v": (0.0, 1.0),
    "velocity": (0.0, 1.0),
    "score": (1e-3, 1 - 1e-3),
}
"""Times within which a prediction of the target determines the velocity: at t = 0 clean data says nothing of the noise,
at t = 1 the noise says nothing of the data. A sampler stays within and goes the rest in one Euler step."""


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
