"""Monotone splines of one variable on a box, the identity outside, with exact inverse and derivative.

What it is: bijections that act on each value alone, with unnormalised parameters.

No boolean indexing and no branch on the data: every value goes through the same arithmetic with its bin gathered and
the outside chosen by `where`, which keeps the memory traffic low and the cost independent of the values.

Sources: Durkan et al. 2019 (rational quadratic), arXiv:1906.04032; Gregory & Delbourgo 1982 (its interpolant);
Müller et al. 2019 (piecewise linear), arXiv:1808.03856.

Shapes: x, y (..., D) values; theta (..., D, P) parameters, P = `Bijection.parameters`; K bins.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from quintet.core.config import STRICT
from quintet.families.flow.bijections import Bijection


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RationalQuadratic(Bijection):
    """K bins with a ratio of two quadratics in each, once continuously differentiable, slope 1 at the ends.

    Args:
        bins: K.
        bound: half the width of the box.
        least: smallest width and height of a bin as a share of the box times K, and smallest slope at a knot.
    Source: Durkan et al. 2019, section 3.1 and appendix A.1, arXiv:1906.04032.
    """

    kind = "rational-quadratic"
    bins: int = Field(default=16, ge=2)
    bound: float = Field(default=4.0, gt=0)
    least: float = Field(default=1e-3, gt=0, lt=0.1)

    @property
    def parameters(self) -> int:
        return 3 * self.bins - 1

    def forward(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        sizes, edges, slopes = self._knots(theta)
        inner = x.clamp(-self.bound, self.bound)
        w, h, left, low, d0, d1 = self._bin(inner, edges[..., 0, :], sizes, edges, slopes)
        xi = ((inner - left) / w).clamp(0, 1)
        s, u = h / w, xi * (1 - xi)
        bottom = s + (d0 + d1 - 2 * s) * u
        y = low + h * (s * xi.square() + d0 * u) / bottom  # eq. 4
        top = d1 * xi.square() + 2 * s * u + d0 * (1 - xi).square()
        log_slope = 2 * (s.log() - bottom.log()) + top.log()  # eq. 5
        inside = x.abs() < self.bound
        return torch.where(inside, y, x), torch.where(inside, log_slope, 0.0)

    def inverse(self, y: Tensor, theta: Tensor) -> Tensor:
        sizes, edges, slopes = self._knots(theta)
        inner = y.clamp(-self.bound, self.bound)
        w, h, left, low, d0, d1 = self._bin(inner, edges[..., 1, :], sizes, edges, slopes)
        s, up = h / w, (inner - low).clamp_min(0)
        bend = up * (d0 + d1 - 2 * s)
        a, b, c = h * (s - d0) + bend, h * d0 - bend, -s * up  # eq. 7
        root = (b.square() - 4 * a * c).clamp_min(0).sqrt()
        xi = (2 * c / (-b - root)).clamp(0, 1)  # the form without cancellation
        return torch.where(y.abs() < self.bound, left + xi * w, y)

    def _knots(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Bin sizes and lower edges (..., 2, K), first widths, then heights; slopes (..., K + 1)."""
        k = self.bins
        shares = theta[..., : 2 * k].reshape(*theta.shape[:-1], 2, k).softmax(-1)
        sizes = (self.least / k + (1 - self.least) * shares) * (2 * self.bound)
        edges = sizes.cumsum(-1) - sizes - self.bound
        at_zero = math.log(math.expm1(1 - self.least))  # softplus of it + least = 1
        slopes = self.least + F.softplus(theta[..., 2 * k :] + at_zero)
        return sizes, edges, F.pad(slopes, (1, 1), value=1.0)

    def _bin(
        self, value: Tensor, grid: Tensor, sizes: Tensor, edges: Tensor, slopes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Width, height, left, low and both slopes of the bin that holds each value, each (..., D)."""
        k = ((value.detach()[..., None] >= grid.detach()).sum(-1, keepdim=True) - 1).clamp_min(0)  # (..., D, 1)
        pair = k[..., None, :].expand(*k.shape[:-1], 2, 1)
        w, h = sizes.gather(-1, pair)[..., 0].unbind(-1)
        left, low = edges.gather(-1, pair)[..., 0].unbind(-1)
        d0, d1 = slopes.gather(-1, torch.cat([k, k + 1], -1)).unbind(-1)
        return w, h, left, low, d0, d1


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PiecewiseLinear(Bijection):
    """K bins of equal width with a constant slope in each: the cumulative distribution of a histogram.

    With one bin a level, a conditional spline on dequantised data is exactly a categorical distribution over the
    levels, which no smooth spline is. Its slope jumps at the knots.

    Args:
        bins: K.
        bound: half the width of the box; 1 for pixels.
        floor: share of the mass spread evenly over the bins, so that no bin's height underflows.
    Source: Müller et al. 2019, section 4.1, arXiv:1808.03856; the floor is ours.
    """

    kind = "piecewise-linear"
    bins: int = Field(default=16, ge=2)
    bound: float = Field(default=1.0, gt=0)
    floor: float = Field(default=1e-3, gt=0, lt=1)

    @property
    def parameters(self) -> int:
        return self.bins

    def forward(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        mass, below = self._masses(theta)
        t = (x.clamp(-self.bound, self.bound) / self.bound + 1) * (self.bins / 2)
        k = t.detach().floor().clamp(0, self.bins - 1).nan_to_num(0.0)  # what is not finite shows in the loss
        index = k.long()[..., None]
        p, start = mass.gather(-1, index)[..., 0], below.gather(-1, index)[..., 0]
        y = (2 * (start + p * (t - k)) - 1) * self.bound
        inside = x.abs() <= self.bound
        return torch.where(inside, y, x), torch.where(inside, (p * self.bins).log(), 0.0)

    def inverse(self, y: Tensor, theta: Tensor) -> Tensor:
        mass, below = self._masses(theta)
        u = (y.clamp(-self.bound, self.bound) / self.bound + 1) / 2
        index = ((u.detach()[..., None] >= below.detach()).sum(-1, keepdim=True) - 1).clamp_min(0)
        p, start = mass.gather(-1, index)[..., 0], below.gather(-1, index)[..., 0]
        t = index[..., 0] + ((u - start) / p).clamp(0, 1)
        return torch.where(y.abs() <= self.bound, (t * (2 / self.bins) - 1) * self.bound, y)

    def _masses(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Each bin's mass and the mass below it, (..., K)."""
        mass = self.floor / self.bins + (1 - self.floor) * theta.softmax(-1)
        return mass, mass.cumsum(-1) - mass
