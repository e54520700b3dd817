"""Invertible transforms of vectors and their composition; forward goes from data to noise.

What it is: the parts of a flow, each with an exact log-determinant and an exact inverse. Conditioner networks arrive as
`NetworkConfig`. What it is not: a density; `model.Flow` joins a transform with a base.

`sweep` splits the dimensions into groups and builds one coupling a group, each given the groups drawn before it: a
block-autoregressive factorisation out of plain couplings, so that sampling takes one network evaluation a group.

Sources: Dinh et al. 2017 (coupling), arXiv:1605.08803; Durkan et al. 2019 (spline coupling, LU layers),
arXiv:1906.04032; Kingma & Dhariwal 2018, section 3.2 (LU), arXiv:1807.03039; Reed et al. 2017 (coarse-to-fine order
of pixels), arXiv:1703.03664.

Shapes: x, y (B, D); log_det (B,).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from quintet.core.config import STRICT, Config
from quintet.core.recipe import NetworkConfig
from quintet.core.rng import Rng
from quintet.core.spec import Cond, DataSpec
from quintet.families.flow.splines import Spline


class Transform(nn.Module, ABC):
    """An invertible map of (B, D), given a condition."""

    @abstractmethod
    def forward(self, x: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        """y (B, D) and log |det dy/dx| (B,)."""

    @abstractmethod
    def inverse(self, y: Tensor, cond: Cond) -> Tensor:
        """x (B, D)."""


class TransformConfig(Config, ABC):
    """Config of one place in a flow's stack."""

    @abstractmethod
    def build(self, spec: DataSpec, place: int) -> Transform:
        """A transform of flattened examples of `spec`; `place` counts from 0 and alternates masks."""


class Composite(Transform):
    """Transforms one after the other."""

    def __init__(self, parts: Sequence[Transform]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(len(x))
        for part in self.parts:
            x, log_det = part(x, cond)
            total = total + log_det
        return x, total

    def inverse(self, y: Tensor, cond: Cond) -> Tensor:
        for part in reversed(list(self.leaves())):
            y = part.inverse(y, cond)
        return y

    def leaves(self) -> Iterator[Transform]:
        """The transforms in forward order, those inside other composites too."""
        for part in self.parts:
            if isinstance(part, Composite):
                yield from part.leaves()
            elif isinstance(part, Transform):
                yield part


class SplineCoupling(Transform):
    """Some dimensions go through splines whose parameters a network computes from others, which stay as they are.

    Args:
        change: indices of the dimensions to transform.
        given: indices of the dimensions the network sees, none of them in `change`; where there are none it sees a
            constant (the label alone then decides).
    """

    change: Tensor
    given: Tensor

    def __init__(
        self, spec: DataSpec, change: Sequence[int], given: Sequence[int], spline: Spline, network: NetworkConfig
    ) -> None:
        super().__init__()
        if not change or set(change) & set(given):
            raise ValueError(f"a coupling changes at least one dimension and none it sees, got {change} and {given}")
        self.spline = spline
        self.register_buffer("change", torch.tensor(list(change)), persistent=False)
        self.register_buffer("given", torch.tensor(list(given), dtype=torch.int64), persistent=False)
        outputs = (len(change), spline.parameters)
        self.conditioner = network.build((max(1, len(given)),), outputs, spec.conditions)

    def forward(self, x: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        y, log_slope = self.spline.forward(x.index_select(1, self.change), self._theta(x, cond))
        return x.index_copy(1, self.change, y), log_slope.sum(1)

    def inverse(self, y: Tensor, cond: Cond) -> Tensor:
        return y.index_copy(1, self.change, self.spline.inverse(y.index_select(1, self.change), self._theta(y, cond)))

    def _theta(self, x: Tensor, cond: Cond) -> Tensor:
        seen = x.index_select(1, self.given) if len(self.given) else x.new_ones(len(x), 1)
        theta: Tensor = self.conditioner(seen, cond)  # (B, change, P)
        return theta


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SplineCouplingConfig(TransformConfig):
    """A SplineCoupling that changes half of the dimensions given the other half.

    Attributes:
        spline: the map of each dimension.
        network: the conditioner.
        mask: "alternate" changes every other dimension, from the first or the second by turns; "random" changes a
            random half that is fixed by the place in the stack.
    """

    kind = "spline-coupling"
    spline: Spline
    network: NetworkConfig
    mask: Literal["alternate", "random"] = "alternate"

    def build(self, spec: DataSpec, place: int) -> Transform:
        order = list(range(spec.dims))
        if self.mask == "random":  # consecutive places share an order, so that two of them change everything
            order = [int(i) for i in Rng(0, "coupling", place // 2).permutation(spec.dims)]
        first, second = order[0::2], order[1::2]
        change, given = (first, second) if place % 2 == 0 or not second else (second, first)
        return SplineCoupling(spec, change, given, self.spline, self.network)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SweepConfig(TransformConfig):
    """A Composite of couplings that together change every dimension once, each group given the groups drawn before it.

    Attributes:
        spline: the map of each dimension.
        network: each coupling's conditioner.
        groups: number of groups, at most one a dimension.
    """

    kind = "sweep"
    spline: Spline
    network: NetworkConfig
    groups: int = 16

    def build(self, spec: DataSpec, place: int) -> Transform:
        groups = partition(spec, self.groups)
        drawn = [[i for group in groups[:n] for i in group] for n in range(len(groups))]
        parts = [SplineCoupling(spec, g, d, self.spline, self.network) for g, d in zip(groups, drawn, strict=True)]
        return Composite(parts[::-1])  # forward undoes the drawing, last group first


def partition(spec: DataSpec, groups: int) -> list[list[int]]:
    """All dimensions of an example in `groups` groups, in the order in which they are drawn.

    Pixels go from coarse to fine, so that those of one group lie far apart and each new group fills gaps; channels of
    a pixel are neighbours in the order. Vectors keep their order.

    Raises: ValueError unless 1 <= groups <= spec.dims.
    """
    if not 1 <= groups <= spec.dims:
        raise ValueError(f"groups must lie in 1..{spec.dims}, got {groups}")
    order = list(range(spec.dims))
    if spec.kind == "image":
        channels, height, width = spec.shape
        side = 1 << (max(height, width) - 1).bit_length()
        pixels = [(i, j) for i, j in _coarse_to_fine(side) if i < height and j < width]
        order = [(c * height + i) * width + j for i, j in pixels for c in range(channels)]
    cuts = [round(n * spec.dims / groups) for n in range(groups + 1)]
    return [order[a:b] for a, b in pairwise(cuts)]


def _coarse_to_fine(side: int) -> list[tuple[int, int]]:
    """All cells of a square of `side` (a power of 2): corners of quarters first, then their gaps."""
    if side == 1:
        return [(0, 0)]
    coarse = [(2 * i, 2 * j) for i, j in _coarse_to_fine(side // 2)]
    return [(i + a, j + b) for a, b in ((0, 0), (1, 1), (0, 1), (1, 0)) for i, j in coarse]


class LULinear(Transform):
    """y = L U x + b with unit lower triangular L and positive diagonal of U, the identity at the start.

    Source: Durkan et al. 2019, section 3.2 (linear transforms), arXiv:1906.04032; without its permutation, whose
    place the masks take.
    """

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.lower = nn.Parameter(torch.zeros(dims, dims))
        self.upper = nn.Parameter(torch.zeros(dims, dims))
        self.log_diagonal = nn.Parameter(torch.zeros(dims))
        self.shift = nn.Parameter(torch.zeros(dims))

    def forward(self, x: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        lower, upper = self._factors()
        y = F.linear(F.linear(x, upper), lower, self.shift)
        return y, self.log_diagonal.sum().expand(len(x))

    def inverse(self, y: Tensor, cond: Cond) -> Tensor:
        lower, upper = self._factors()
        u = torch.linalg.solve_triangular(lower, (y - self.shift).T, upper=False, unitriangular=True)
        x: Tensor = torch.linalg.solve_triangular(upper, u, upper=True).T
        return x

    def _factors(self) -> tuple[Tensor, Tensor]:
        eye = torch.eye(len(self.shift), dtype=self.shift.dtype, device=self.shift.device)
        return self.lower.tril(-1) + eye, self.upper.triu(1) + self.log_diagonal.exp().diag()


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LULinearConfig(TransformConfig):
    """See LULinear."""

    kind = "lu-linear"

    def build(self, spec: DataSpec, place: int) -> Transform:
        return LULinear(spec.dims)


class Probit(Transform):
    """The box [-1, 1]^D to all of R^D: uniform numbers become standard normal ones.

    Outside the box there is no density: the log-determinant is minus infinity there. At the faces the argument stays
    `MARGIN` inside, where the normal quantile is still finite in float32.
    """

    MARGIN = 2.0**-22

    def forward(self, x: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        z = math.sqrt(2) * torch.erfinv(x.clamp(self.MARGIN - 1, 1 - self.MARGIN))
        log_slope = z.square() / 2 + 0.5 * math.log(math.pi / 2)
        inside = (x.abs() <= 1).all(1)
        return z, torch.where(inside, log_slope.sum(1), -math.inf)

    def inverse(self, y: Tensor, cond: Cond) -> Tensor:
        return torch.erf(y / math.sqrt(2))


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ProbitConfig(TransformConfig):
    """See Probit."""

    kind = "probit"

    def build(self, spec: DataSpec, place: int) -> Transform:
        return Probit()
