"""Invertible maps of a few values whose shape parameters give: what couplings and autoregressive transforms apply.

What it is: the contract, and the affine ones. A bijection has no state, so its config is the bijection itself. All
parameters zero mean the identity, so that a conditioner whose last layer starts at zero starts a flow as the identity.
What it is not: a network or a module. Splines have a file of their own.

Sources: Dinh et al. 2017 (affine), arXiv:1605.08803; Papamakarios et al. 2021, section 3.1 (the general form),
arXiv:1912.02762. The triangular one is a linear-Gaussian autoregression inside a group, as in Kingma et al. 2016,
appendix A, arXiv:1606.04934.

Shapes: x, y (..., D) values; theta (..., D, P) parameters, P = `Bijection.parameters`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from quintet.core.config import STRICT, Config

STEEPEST = 5.0
"""Largest log-scale of an affine map, approached smoothly: exp(5) there and back stays exact enough in float32."""


class Bijection(Config, ABC):
    """An invertible map of the last axis with a triangular Jacobian of positive diagonal."""

    @property
    @abstractmethod
    def parameters(self) -> int:
        """P, the number of parameters of each value."""

    @abstractmethod
    def forward(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Values and the logarithms of the Jacobian's diagonal, both (..., D)."""

    @abstractmethod
    def inverse(self, y: Tensor, theta: Tensor) -> Tensor:
        """The x (..., D) with forward(x, theta) = y."""


def log_scale(raw: Tensor) -> Tensor:
    """A free number to (-STEEPEST, STEEPEST), with slope 1 at 0."""
    return STEEPEST * torch.tanh(raw / STEEPEST)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Affine(Bijection):
    """y = (x - mu) exp(-a), value by value.

    Source: Zhai et al. 2024, eq. 5, arXiv:2412.06329; the bound on a is ours.
    """

    kind = "affine"

    @property
    def parameters(self) -> int:
        return 2

    def forward(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        mu, log_slope = theta[..., 0], -log_scale(theta[..., 1])
        return (x - mu) * log_slope.exp(), log_slope

    def inverse(self, y: Tensor, theta: Tensor) -> Tensor:
        return torch.addcmul(theta[..., 0], y, torch.exp(log_scale(theta[..., 1])))


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Triangular(Bijection):
    """y = exp(-a) (u - L u) with u = x - mu: a full Gaussian of the group, of which L is strictly lower triangular.

    Values of one group get two parameters each from `Affine`, which makes them independent given what the conditioner
    saw. Here each value also leans on those before it in its group. L is the parameters over the root of the group's
    size, so that the inverse of a large random L stays tame.

    Attributes:
        size: D, values in a group.
    """

    kind = "triangular"
    size: int = Field(ge=1)

    @property
    def parameters(self) -> int:
        return self.size + 1

    def forward(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        mu, a, rows = self._parts(theta)
        u = x - mu
        leaned = (rows * u[..., None, :]).sum(-1)
        return (u - leaned) * torch.exp(-a), -a

    def inverse(self, y: Tensor, theta: Tensor) -> Tensor:
        mu, a, rows = self._parts(theta)
        scaled = (y * torch.exp(a))[..., None]
        u: Tensor = torch.linalg.solve_triangular(-rows, scaled, upper=False, unitriangular=True)
        return u[..., 0] + mu

    def _parts(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """mu and a (..., D), L (..., D, D): a stands on the diagonal of the last D columns, L below it."""
        square = theta[..., 1:]
        return theta[..., 0], log_scale(square.diagonal(dim1=-2, dim2=-1)), square.tril(-1) * self.size**-0.5
