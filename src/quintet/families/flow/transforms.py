"""Invertible transforms of flattened examples and their composition; forward goes from data to noise.

What it is: the parts of a flow, each with an exact log-determinant and an exact inverse. Conditioner networks arrive as
configs; what a conditioner's numbers do to a value is a `Bijection`. What it is not: a density; `model.Flow` joins a
transform with a base. Transforms that need the axes of an image are in `images`.

A coupling changes some dimensions given the others. `sweep` is one coupling a group, each given the groups drawn before
it. `autoregressive` lets one causal network compute the parameters of all groups at once: a masked perceptron over
columns is MAF or an autoregressive spline flow, a Transformer over patches is a block of TarFlow.

Sources: Dinh et al. 2017 (coupling), arXiv:1605.08803; Papamakarios et al. 2017 (MAF), arXiv:1705.07057; Durkan et al.
2019 (splines in both, LU layers), arXiv:1906.04032; Zhai et al. 2024 (TarFlow), arXiv:2412.06329; Kingma & Dhariwal
2018, section 3.2 (LU), arXiv:1807.03039; Reed et al. 2017 (coarse-to-fine order of pixels), arXiv:1703.03664; Chen &
Gopinath 2000 (marginals made Gaussian first), "Gaussianization".

Shapes: x, y (B, D); log_det (B,); tokens (B, T, P).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from quintet.core.config import STRICT, Config
from quintet.core.numerics import full_precision
from quintet.core.recipe import CausalNetworkConfig, NetworkConfig
from quintet.core.rng import Rng
from quintet.core.spec import UNCONDITIONAL, Cond, DataSpec
from quintet.families.flow.bijections import Bijection
from quintet.samplers.guidance import guided

States = Callable[[], Iterator[tuple[Tensor, Cond]]]
"""Walks through the training split in blocks: x (B, D) as a transform gets it, and the conditions."""


class Transform(nn.Module, ABC):
    """An invertible map of (B, D), given a condition."""

    @abstractmethod
    def forward(self, x: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        """y (B, D) and log |det dy/dx| (B,)."""

    @abstractmethod
    def inverse(self, y: Tensor, cond: Cond, guidance: float = 1.0) -> Tensor:
        """x (B, D). With guidance other than 1 a conditioner's parameters theta become those of no condition plus
        guidance times the difference that the condition makes; then it inverts `forward` no longer.
        """

    def prepare(self, states: States) -> None:
        """Initialise from the training data; most have nothing to do."""

    @property
    def evaluations(self) -> int:
        """Network evaluations that wait for each other in `inverse`."""
        return 0


class TransformConfig(Config, ABC):
    """Config of one place in a flow's stack."""

    @abstractmethod
    def build(self, spec: DataSpec, place: int) -> Transform:
        """A transform of flattened examples of `spec`; `place` counts from 0 and alternates masks."""


class Composite(Transform):
    """Transforms one after the other. Columns stay in a coupling's order until the next part needs another."""

    def __init__(self, parts: Sequence[Transform]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        orders = [part.order if isinstance(part, Coupling) else None for part in parts]
        self.moves = nn.ModuleList(_Move(a, b) for a, b in pairwise([None, *orders, None]))

    def forward(self, x: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(len(x))
        blocks: tuple[Tensor, ...] = (x,)
        for move, part in self._steps():
            x = move(blocks)
            if isinstance(part, Coupling):
                changed, log_det = part.changed_forward(x, cond)
                blocks = (changed, x[:, part.changed :])
            else:
                x, log_det = part(x, cond)
                blocks = (x,)
            total = total + log_det
        return self._last(blocks), total

    def inverse(self, y: Tensor, cond: Cond, guidance: float = 1.0) -> Tensor:
        y = self._last.inverse((y,))
        for move, part in reversed(self._steps()):
            if isinstance(part, Coupling):
                blocks = (part.changed_inverse(y, cond, guidance), y[:, part.changed :])
                y = move.inverse(blocks)
            else:
                y = move.inverse((part.inverse(y, cond, guidance),))
        return y

    @property
    def _last(self) -> _Move:
        """Back to the data's own order."""
        last = self.moves[-1]
        assert isinstance(last, _Move)
        return last

    def _steps(self) -> list[tuple[_Move, Transform]]:
        """Each part, after the move to its order."""
        pairs = zip(self.moves, self.parts, strict=False)
        return [(move, part) for move, part in pairs if isinstance(move, _Move) and isinstance(part, Transform)]

    def prepare(self, states: States) -> None:
        """Each part in turn, on what the parts before it, prepared by then, make of the data."""
        for n, part in enumerate(self.parts):
            before = Composite([p for p in self.parts[:n] if isinstance(p, Transform)])
            assert isinstance(part, Transform)
            part.prepare(lambda before=before: ((before(x, cond)[0], cond) for x, cond in states()))  # type: ignore[misc]

    @property
    def evaluations(self) -> int:
        return sum(part.evaluations for part in self.leaves())

    def leaves(self) -> Iterator[Transform]:
        """The transforms in forward order, those inside other composites too."""
        for part in self.parts:
            if isinstance(part, Composite):
                yield from part.leaves()
            elif isinstance(part, Transform):
                yield part


class Coupling(Transform):
    """Some dimensions go through bijections whose parameters a network computes from others, which stay as they are.

    Args:
        change: indices of the dimensions to transform.
        given: indices of the dimensions the network sees, none of them in `change`; where there are none it sees a
            constant (the label alone then decides).
    """

    order: Tensor
    back: Tensor

    def __init__(
        self, spec: DataSpec, change: Sequence[int], given: Sequence[int], bijection: Bijection, network: NetworkConfig
    ) -> None:
        super().__init__()
        if not change or set(change) & set(given):
            raise ValueError(f"a coupling changes at least one dimension and none it sees, got {change} and {given}")
        self.bijection, self.changed, self.seen = bijection, len(change), len(given)
        rest = sorted(set(range(spec.dims)) - {*change, *given})
        order = torch.tensor([*change, *given, *rest])
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("back", order.argsort(), persistent=False)
        outputs = (bijection.parameters, len(change))  # in this order splines are cheapest
        self.conditioner = network.build((max(1, len(given)),), outputs, spec.conditions)

    def forward(self, x: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        x = reordered(x, self.order, self.back)
        changed, log_det = self.changed_forward(x, cond)
        return self._joined(changed, x), log_det

    def inverse(self, y: Tensor, cond: Cond, guidance: float = 1.0) -> Tensor:
        y = reordered(y, self.order, self.back)
        return self._joined(self.changed_inverse(y, cond, guidance), y)

    def changed_forward(self, x: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        """The changed dimensions (B, changed) of x (B, D), whose columns are in `order`; and the log-determinant."""
        y, log_slope = self.bijection.forward(x[:, : self.changed], self._theta(x, cond))
        return y, log_slope.sum(1)

    def changed_inverse(self, y: Tensor, cond: Cond, guidance: float = 1.0) -> Tensor:
        """The dimensions (B, changed) that `changed_forward` made those of y (B, D) of, its columns in `order`."""
        theta = guided(lambda x, _, given: self._theta(x, given), cond, guidance)(y, None)
        return self.bijection.inverse(y[:, : self.changed], theta)

    @property
    def change(self) -> Tensor:
        """Indices of the dimensions to transform."""
        return self.order[: self.changed]

    @property
    def given(self) -> Tensor:
        """Indices of the dimensions the network sees."""
        return self.order[self.changed : self.changed + self.seen]

    @property
    def evaluations(self) -> int:
        return 1

    def _joined(self, changed: Tensor, x: Tensor) -> Tensor:
        """The changed dimensions beside the others of the reordered x, all in their own places."""
        return reordered(torch.cat([changed, x[:, self.changed :]], 1), self.back, self.order)

    def _theta(self, x: Tensor, cond: Cond) -> Tensor:
        seen = x[:, self.changed : self.changed + self.seen] if self.seen else x.new_ones(len(x), 1)
        theta: Tensor = self.conditioner(seen, cond)  # (B, P, change)
        return theta.to(x.dtype).mT


class _Move(nn.Module):
    """Columns from one order to another; a swap of two blocks is their concatenation, which copies whole rows.

    Args:
        before, after: orders (D,) as those of a Coupling, None for the data's own.
    """

    order: Tensor
    back: Tensor

    def __init__(self, before: Tensor | None, after: Tensor | None) -> None:
        super().__init__()
        known = before if before is not None else after
        self.ahead = self.behind = 0  # columns of the block that goes to the end, there and back
        self.still = known is None
        if known is None:
            return
        natural = torch.arange(len(known))
        order = (natural if before is None else before.argsort())[natural if after is None else after]
        self.still = bool((order == natural).all())
        first = int(order[0])
        if first and torch.equal(order, natural.roll(-first)):
            self.ahead, self.behind = first, len(order) - first
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("back", order.argsort(), persistent=False)

    def forward(self, blocks: tuple[Tensor, ...]) -> Tensor:
        """Blocks of columns (B, d), which lie one after the other in the order before, to (B, D) in that after."""
        if len(blocks) == 2 and blocks[0].shape[1] == self.ahead:
            return torch.cat(blocks[::-1], 1)
        x = torch.cat(blocks, 1) if len(blocks) > 1 else blocks[0]
        return x if self.still else reordered(x, self.order, self.back)

    def inverse(self, blocks: tuple[Tensor, ...]) -> Tensor:
        """The way back: blocks in the order after to (B, D) in that before."""
        if len(blocks) == 2 and blocks[0].shape[1] == self.behind:
            return torch.cat(blocks[::-1], 1)
        y = torch.cat(blocks, 1) if len(blocks) > 1 else blocks[0]
        return y if self.still else reordered(y, self.back, self.order)


class _Reordered(torch.autograd.Function):
    """Columns in another order. Their gradients are gathered by the inverse order; torch's own scatters them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(order, back)
        return x.index_select(1, order)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        order, back = ctx.saved_tensors
        return reordered(grads[0], back, order), None, None


def reordered(x: Tensor, order: Tensor, back: Tensor) -> Tensor:
    """x (B, D) with its columns in `order` (D,), a permutation whose inverse is `back`."""
    y: Tensor = _Reordered.apply(x, order, back)  # type: ignore[no-untyped-call]
    return y


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CouplingConfig(TransformConfig):
    """A Coupling that changes half of the dimensions given the other half.

    Attributes:
        bijection: the map of each dimension.
        network: the conditioner.
        mask: "alternate" changes every other dimension, from the first or the second by turns; "random" changes a
            random half that is fixed by the place in the stack.
    """

    kind = "coupling"
    bijection: Bijection
    network: NetworkConfig
    mask: Literal["alternate", "random"] = "alternate"

    def build(self, spec: DataSpec, place: int) -> Transform:
        order = list(range(spec.dims))
        if self.mask == "random":  # consecutive places share an order, so that two of them change everything
            order = [int(i) for i in Rng(0, "coupling", place // 2).permutation(spec.dims)]
        first, second = order[0::2], order[1::2]
        change, given = (first, second) if place % 2 == 0 or not second else (second, first)
        return Coupling(spec, change, given, self.bijection, self.network)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SweepConfig(TransformConfig):
    """A Composite of couplings that together change every dimension once, each group given the groups drawn before it.

    Attributes:
        bijection: the map of each dimension.
        network: each coupling's conditioner.
        groups: number of groups, at most one a dimension.
    """

    kind = "sweep"
    bijection: Bijection
    network: NetworkConfig
    groups: int = 16

    def build(self, spec: DataSpec, place: int) -> Transform:
        groups = partition(spec, self.groups)
        drawn = [[i for group in groups[:n] for i in group] for n in range(len(groups))]
        parts = [Coupling(spec, g, d, self.bijection, self.network) for g, d in zip(groups, drawn, strict=True)]
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


class Autoregressive(Transform):
    """Groups of dimensions in an order; each goes through a bijection whose parameters depend on the groups before it.

    One evaluation of the network gives the density; the inverse takes one step a group, each of which the network's
    cache makes as cheap as it can.

    Args:
        spec: of the data.
        groups: (T, P) indices of dimensions, `spec.dims` for none, every dimension once.
        grid: rows and columns in which the groups lie.
        bijection: of a group.
        network: of all groups.
    """

    take: Tensor
    back: Tensor
    inside: Tensor

    def __init__(
        self, spec: DataSpec, groups: Tensor, grid: tuple[int, int], bijection: Bijection, network: CausalNetworkConfig
    ) -> None:
        super().__init__()
        flat = groups.flatten()
        if flat[flat < spec.dims].sort().values.tolist() != list(range(spec.dims)):
            raise ValueError(f"groups must hold each of {spec.dims} dimensions once")
        self.bijection, self.length, self.size = bijection, *groups.shape
        self.ragged = len(flat) > spec.dims
        self.register_buffer("take", flat, persistent=False)
        self.register_buffer("back", flat.argsort()[: spec.dims], persistent=False)
        self.register_buffer("inside", (groups < spec.dims)[..., None], persistent=False)
        outputs = self.size * bijection.parameters
        self.network: Any = network.build(self.length, self.size, spec.conditions, grid=grid, outputs=outputs)

    def forward(self, x: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        tokens = self._tokens(x)
        theta = self._shaped(self.network(tokens, cond), x, slice(None))
        y, log_slope = self.bijection.forward(tokens, theta)
        return self._values(y), log_slope.flatten(1).sum(1)

    def inverse(self, y: Tensor, cond: Cond, guidance: float = 1.0) -> Tensor:
        tokens, n = self._tokens(y), len(y)
        cond = {} if guidance == 0 else cond
        twice = bool(cond) and guidance != 1  # rows without the condition, then the same with it, as one batch
        if twice:
            cond = {name: torch.cat([torch.full_like(value, UNCONDITIONAL), value]) for name, value in cond.items()}
        cache = self.network.start(n * (1 + twice), cond)
        drawn: list[Tensor] = []
        for i in range(self.length):
            last = drawn[-1] if drawn else None
            theta = self.network.next(cache, torch.cat([last, last]) if twice and last is not None else last)
            if twice:
                without, given = theta.chunk(2)
                theta = without + guidance * (given - without)
            drawn.append(self.bijection.inverse(tokens[:, i], self._shaped(theta, y, i)))
        return self._values(torch.stack(drawn, 1))

    @property
    def evaluations(self) -> int:
        return self.length

    def _tokens(self, x: Tensor) -> Tensor:
        if self.ragged:
            x = torch.cat([x, x.new_zeros(len(x), 1)], 1)
            x = x.index_select(1, self.take)
        else:
            x = reordered(x, self.take, self.back)
        return x.view(len(x), self.length, self.size)

    def _values(self, tokens: Tensor) -> Tensor:
        flat = tokens.flatten(1)
        return flat.index_select(1, self.back) if self.ragged else reordered(flat, self.back, self.take)

    def _shaped(self, theta: Tensor, like: Tensor, groups: int | slice) -> Tensor:
        """(..., P, parameters), zero (the identity) for what is not there."""
        theta = theta.to(like.dtype).unflatten(-1, (self.size, self.bijection.parameters))
        return theta * self.inside[groups] if self.ragged else theta


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AutoregressiveConfig(TransformConfig):
    """See Autoregressive; the order is reversed from place to place.

    Attributes:
        bijection: of a group.
        network: a causal one over groups.
        patch: side of the square patches of an image (all its channels) that are the groups, read line by line; a
            vector's groups are its columns.
    """

    kind = "autoregressive-transform"
    bijection: Bijection
    network: CausalNetworkConfig
    patch: int = Field(default=1, ge=1)

    def build(self, spec: DataSpec, place: int) -> Transform:
        groups, grid = patches(spec, self.patch)
        return Autoregressive(spec, groups.flip(0) if place % 2 else groups, grid, self.bijection, self.network)


def patches(spec: DataSpec, side: int) -> tuple[Tensor, tuple[int, int]]:
    """Indices of each patch's dimensions (T, P), `spec.dims` where a patch hangs over the edge, and the grid (R, C)."""
    channels, height, width = spec.shape if spec.kind == "image" else (1, 1, spec.dims)
    high, wide = min(side, height), min(side, width)
    rows, columns = -(-height // high), -(-width // wide)
    index = torch.full((channels, rows * high, columns * wide), spec.dims)
    index[:, :height, :width] = torch.arange(spec.dims).view(channels, height, width)
    index = index.view(channels, rows, high, columns, wide).permute(1, 3, 0, 2, 4)
    return index.reshape(rows * columns, -1), (rows, columns)


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
        with full_precision():  # its inverse is solved in full precision too
            y = F.linear(F.linear(x, upper), lower, self.shift)
        return y, self.log_diagonal.sum().expand(len(x))

    def inverse(self, y: Tensor, cond: Cond, guidance: float = 1.0) -> Tensor:
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

    def inverse(self, y: Tensor, cond: Cond, guidance: float = 1.0) -> Tensor:
        return torch.erf(y / math.sqrt(2))


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ProbitConfig(TransformConfig):
    """See Probit."""

    kind = "probit"

    def build(self, spec: DataSpec, place: int) -> Transform:
        return Probit()


class Marginals(Transform):
    """The box [-1, 1]^D to itself through each dimension's own distribution function, counted on the training data.

    A histogram with one bin a level: afterwards each dimension alone is uniform, black background included, which takes
    half of the box instead of one cell in 256. With `Probit` behind it a flow starts as the product of histograms, and
    what is left to learn is dependence. Each histogram leans on that of its channel by `pool` made-up examples.

    With `bell` the numbers within the first and within the last bin follow a Gaussian instead, which ends `REACH` of
    its standard deviations inside the bin's inner edge. Where a pixel is known to be black an affine map behind
    `Probit` can only fit a Gaussian: to the flat bin, which is then the cut-off half of one, it fits one that spills a
    few per cent of its samples over the edge, white specks on black; to the bell it fits exactly. The bell's standard
    deviation, half the root of the bin's mass, lets a standard normal give the bin about the mass it has.

    Args:
        dims: D.
        channels: whose histograms are pooled; they divide D.
        bins: K, one a level.
        pool: number of examples that a channel's histogram counts for in each of its dimensions.
        floor: share of the mass spread evenly over the bins, so that float32 inverts every bin.
        bell: whether the first and the last bin hold a Gaussian instead of a flat density.
    """

    REACH = 4.0
    edges: Tensor

    def __init__(self, dims: int, channels: int, bins: int, *, pool: float, floor: float, bell: bool = False) -> None:
        super().__init__()
        self.channels, self.bins, self.pool, self.floor, self.bell = channels, bins, pool, floor, bell
        edges = torch.linspace(0, 1, bins + 1).expand(dims, bins + 1).clone()
        self.register_buffer("edges", edges)  # (D, K + 1), distribution functions at the bins' edges

    def forward(self, x: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        t = (x.clamp(-1, 1) + 1) * (self.bins / 2)
        k = t.detach().floor().clamp(0, self.bins - 1)
        low, high = self._around(k.long())
        u, log_slope = low + (high - low) * (t - k), (high - low).log()
        if self.bell:
            for end, mirrored in ((k == 0, False), (k == self.bins - 1, True)):
                bent, log_bent = self._bend(k + 1 - t if mirrored else t - k, mirrored)
                u = torch.where(end, 1 - bent if mirrored else bent, u)
                log_slope = torch.where(end, log_bent, log_slope)
        inside = (x.abs() <= 1).all(1)
        return 2 * u - 1, torch.where(inside, log_slope.sum(1) + x.shape[1] * math.log(self.bins), -math.inf)

    def inverse(self, y: Tensor, cond: Cond, guidance: float = 1.0) -> Tensor:
        u = ((y.clamp(-1, 1) + 1) / 2).T.contiguous()  # (D, B)
        k = (torch.searchsorted(self.edges, u, right=True) - 1).clamp(0, self.bins - 1).T
        low, high = self._around(k)
        share = (u.T - low) / (high - low)
        if self.bell:
            share = torch.where(k == 0, self._unbend(u.T, False), share)
            share = torch.where(k == self.bins - 1, 1 - self._unbend(1 - u.T, True), share)
        return (k + share.clamp(0, 1)) * (2 / self.bins) - 1

    def prepare(self, states: States) -> None:
        dims, seen = len(self.edges), 0
        counts = torch.zeros(dims, self.bins, dtype=torch.float64)
        rows = torch.arange(dims) * self.bins
        for x, _ in states():
            k = ((x.cpu() + 1) * (self.bins / 2)).floor().clamp(0, self.bins - 1).long()
            counts += torch.bincount((k + rows).flatten(), minlength=dims * self.bins).view(dims, self.bins)
            seen += len(x)
        whole = counts.view(self.channels, -1, self.bins).sum(1) + 1  # (C, K)
        whole = (whole / whole.sum(1, keepdim=True)).repeat_interleave(dims // self.channels, 0)
        mass = (counts + self.pool * whole) / (seen + self.pool)
        mass = self.floor / self.bins + (1 - self.floor) * mass
        self.edges[:, 1:] = mass.cumsum(1).to(self.edges)
        self.edges[:, -1] = 1.0

    def _bells(self, mirrored: bool) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (D,) of the first bin's bell, on the axis of normal quantiles.

        Mirrored: those of the last bin's, with the axis turned round.
        """
        mass = 1 - self.edges[:, -2] if mirrored else self.edges[:, 1]
        std = mass.sqrt() / 2
        return torch.special.ndtri(mass) - self.REACH * std, std

    def _bend(self, share: Tensor, mirrored: bool) -> tuple[Tensor, Tensor]:
        """A share (B, D) of an end's bin, from its outer edge, to the distribution function; and the log slope."""
        mean, std = self._bells(mirrored)
        whole = 0.5 * (1 + math.erf(self.REACH / math.sqrt(2)))  # of the bell's mass below the inner edge
        w = torch.special.ndtri(share.clamp(Probit.MARGIN, 1) * whole)
        z = mean + std * w
        return torch.special.ndtr(z), (w.square() - z.square()) / 2 + (std * whole).log()

    def _unbend(self, u: Tensor, mirrored: bool) -> Tensor:
        """The inverse of `_bend`: the share (B, D), beyond 1 outside of the bin."""
        mean, std = self._bells(mirrored)
        whole = 0.5 * (1 + math.erf(self.REACH / math.sqrt(2)))
        least = torch.finfo(u.dtype).tiny
        share: Tensor = torch.special.ndtr((torch.special.ndtri(u.clamp(least, 1)) - mean) / std) / whole
        return share

    def _around(self, k: Tensor) -> tuple[Tensor, Tensor]:
        """Both edges of the bins k (B, D)."""
        place = k + torch.arange(len(self.edges), device=k.device) * (self.bins + 1)
        flat = self.edges.flatten()
        return flat[place], flat[place + 1]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MarginalsConfig(TransformConfig):
    """See Marginals.

    Attributes:
        bins: of each dimension's histogram, one a level.
        pool: number of examples that a channel's histogram counts for in each of its dimensions.
        floor: share of the mass spread evenly over the bins, so that float32 inverts every bin.
        bell: whether the first and the last bin hold a Gaussian instead of a flat density.
    """

    kind = "marginals"
    bins: int = Field(default=256, ge=2)
    pool: float = Field(default=4096.0, gt=0)
    floor: float = Field(default=0.01, gt=0, lt=1)
    bell: bool = False

    def build(self, spec: DataSpec, place: int) -> Transform:
        return Marginals(
            spec.dims, spec.shape[0] if spec.kind == "image" else 1, self.bins,
            pool=self.pool, floor=self.floor, bell=self.bell,
        )  # fmt: skip
