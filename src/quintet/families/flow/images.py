"""Transforms of images with axes (C, H, W), and the multi-scale pyramid that is Glow.

What it is: actnorm, invertible 1x1 convolutions, couplings of channels with a convolutional conditioner, and `Pyramid`,
which squeezes space into channels, runs steps of those three, and lets half of the channels leave at each level. What
leaves goes through one more coupling, given what stays: that is the paper's learned prior of a level, written as a
transform, so that the base stays one standard normal. What it is not: for odd sizes; recipes refuse them.

Sources: Kingma & Dhariwal 2018, "Glow", table 1 and section 3, arXiv:1807.03039; Dinh et al. 2017 (squeeze and
multi-scale), arXiv:1605.08803, sections 3.6-3.7; Salimans & Kingma 2016 (data-dependent initialisation),
arXiv:1602.07868.
Departures: the log-scale of couplings is bounded by a tanh instead of a sigmoid of scale + 2, and a 1x1 convolution
starts as a permutation, a rotation with an exact LU form.

Shapes: x, y (B, C, H, W); log_det (B,). `Pyramid` takes and gives flattened examples (B, D).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from quintet.core.config import STRICT
from quintet.core.numerics import full_precision
from quintet.core.recipe import NetworkConfig
from quintet.core.rng import Rng
from quintet.core.spec import Cond, DataSpec
from quintet.families.flow.bijections import Bijection
from quintet.families.flow.transforms import Composite, States, Transform, TransformConfig
from quintet.samplers.guidance import guided


class ActNorm(Transform):
    """y = (x + shift) exp(log_scale) by channel; after `prepare` the training data have mean 0 and deviation 1.

    Source: Kingma & Dhariwal 2018, section 3.1.
    """

    LEAST = 1e-3
    """Smallest standard deviation that is believed."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(channels, 1, 1))
        self.log_scale = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        log_det = self.log_scale.sum() * (x.shape[2] * x.shape[3])
        return (x + self.shift) * self.log_scale.exp(), log_det.expand(len(x))

    def inverse(self, y: Tensor, cond: Cond, guidance: float = 1.0) -> Tensor:
        return y * (-self.log_scale).exp() - self.shift

    def prepare(self, states: States) -> None:
        x, _ = next(iter(states()))
        std, mean = torch.std_mean(x, (0, 2, 3), correction=0, keepdim=True)
        with torch.no_grad():
            self.shift.copy_(-mean[0])
            self.log_scale.copy_(-std[0].clamp_min(self.LEAST).log())


class InvertibleConv(Transform):
    """A 1x1 convolution with the matrix P L (U + diag s): P a fixed permutation, L unit lower, U strictly upper.

    Source: Kingma & Dhariwal 2018, section 3.2 and eq. 10-11.

    Args:
        channels: C.
        place: names the permutation.
    """

    order: Tensor

    def __init__(self, channels: int, place: int) -> None:
        super().__init__()
        order = torch.from_numpy(Rng(0, "channels", place).permutation(channels))
        self.register_buffer("order", order, persistent=False)
        self.lower = nn.Parameter(torch.zeros(channels, channels))
        self.upper = nn.Parameter(torch.zeros(channels, channels))
        self.log_diagonal = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        lower, upper = self._factors()
        with full_precision():  # its inverse is solved in full precision too
            y = F.conv2d(x, (lower @ upper)[self.order, :, None, None])
        return y, (self.log_diagonal.sum() * (x.shape[2] * x.shape[3])).expand(len(x))

    def inverse(self, y: Tensor, cond: Cond, guidance: float = 1.0) -> Tensor:
        lower, upper = self._factors()
        flat = y[:, self.order.argsort()].flatten(2)  # (B, C, H W)
        flat = torch.linalg.solve_triangular(lower, flat, upper=False, unitriangular=True)
        x: Tensor = torch.linalg.solve_triangular(upper, flat, upper=True).view_as(y)
        return x

    def _factors(self) -> tuple[Tensor, Tensor]:
        diagonal = self.log_diagonal.exp().diag()
        eye = torch.eye(len(diagonal), dtype=diagonal.dtype, device=diagonal.device)
        return self.lower.tril(-1) + eye, self.upper.triu(1) + diagonal


class ChannelCoupling(Transform):
    """The last channels go through bijections whose parameters a network computes from the first ones, which stay.

    Args:
        shape: (C, H, W), C at least 2.
        change: how many channels at the end are changed.
        conditions: name -> number of classes.
        bijection: of each value.
        network: from an image of the first channels to one of parameters.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        change: int,
        conditions: dict[str, int],
        bijection: Bijection,
        network: NetworkConfig,
    ) -> None:
        super().__init__()
        channels, height, width = shape
        self.bijection, self.given, self.change = bijection, channels - change, change
        inputs, outputs = (self.given, height, width), (change * bijection.parameters, height, width)
        self.conditioner = network.build(inputs, outputs, conditions)

    def forward(self, x: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        given, changed = x.split([self.given, self.change], 1)
        y, log_slope = self.bijection.forward(changed, self._theta(given, cond))
        return torch.cat([given, y], 1), log_slope.flatten(1).sum(1)

    def inverse(self, y: Tensor, cond: Cond, guidance: float = 1.0) -> Tensor:
        given, changed = y.split([self.given, self.change], 1)
        theta = guided(lambda x, _, label: self._theta(x, label), cond, guidance)(given, None)
        return torch.cat([given, self.bijection.inverse(changed, theta)], 1)

    @property
    def evaluations(self) -> int:
        return 1

    def _theta(self, given: Tensor, cond: Cond) -> Tensor:
        """(B, change, H, W, P)."""
        theta: Tensor = self.conditioner(given, cond).to(given.dtype)
        shaped: Tensor = theta.unflatten(1, (self.change, -1)).movedim(2, -1)
        return shaped


class Pyramid(Transform):
    """Levels of squeeze, steps and split; the parts that leave come first in the flattened result.

    Args:
        shape: (C, H, W), H and W even.
        levels: one squeeze each, fewer where a side becomes odd.
        steps: of actnorm, 1x1 convolution and coupling, per level.
        conditions: name -> number of classes.
        bijection, network: of the couplings.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        levels: int,
        steps: int,
        conditions: dict[str, int],
        bijection: Bijection,
        network: NetworkConfig,
    ) -> None:
        super().__init__()
        channels, height, width = self.shape = shape
        if height % 2 or width % 2:
            raise ValueError(f"a pyramid halves both sides, got {height} x {width}")
        self.stacks, self.priors = nn.ModuleList(), nn.ModuleList()
        self.leaving: list[tuple[int, int, int]] = []
        for level in range(levels):
            channels, height, width = 4 * channels, height // 2, width // 2
            parts: list[Transform] = []
            for step in range(steps):
                place = level * steps + step
                here = (channels, height, width)
                parts += [
                    ActNorm(channels),
                    InvertibleConv(channels, place),
                    ChannelCoupling(here, channels // 2, conditions, bijection, network),
                ]
            self.stacks.append(Composite(parts))
            if level == levels - 1 or height % 2 or width % 2:
                break
            self.priors.append(
                ChannelCoupling((channels, height, width), channels // 2, conditions, bijection, network)
            )
            self.leaving.append((channels // 2, height, width))
            channels //= 2
        self.last = (channels, height, width)

    def forward(self, x: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        h, total, left = x.view(-1, *self.shape), x.new_zeros(len(x)), []
        for level, stack in enumerate(self.stacks):
            h, log_det = stack(F.pixel_unshuffle(h, 2), cond)
            total = total + log_det
            if level < len(self.priors):
                h, log_det = self.priors[level](h, cond)
                h, leaving = h.chunk(2, 1)
                left.append(leaving.flatten(1))
                total = total + log_det
        return torch.cat([*left, h.flatten(1)], 1), total

    def inverse(self, y: Tensor, cond: Cond, guidance: float = 1.0) -> Tensor:
        sizes = [c * h * w for c, h, w in (*self.leaving, self.last)]
        *left, flat = y.split(sizes, 1)
        h = flat.view(-1, *self.last)
        for level in reversed(range(len(self.stacks))):
            if level < len(self.priors):
                h = torch.cat([h, left[level].view(-1, *self.leaving[level])], 1)
                h = self._part(self.priors[level]).inverse(h, cond, guidance)
            h = F.pixel_shuffle(self._part(self.stacks[level]).inverse(h, cond, guidance), 2)
        x: Tensor = h.flatten(1)
        return x

    def prepare(self, states: States) -> None:
        """On the first block of examples alone, as a batch of them tells the channels' moments well enough."""
        x, cond = next(iter(states()))
        h = x.view(-1, *self.shape)
        for level, stack in enumerate(self.stacks):
            h = F.pixel_unshuffle(h, 2)
            self._part(stack).prepare(lambda h=h: iter([(h, cond)]))  # type: ignore[misc]
            h = stack(h, cond)[0]
            if level < len(self.priors):
                h = h.chunk(2, 1)[0]

    @property
    def evaluations(self) -> int:
        return len(self.priors) + sum(self._part(stack).evaluations for stack in self.stacks)

    @staticmethod
    def _part(module: nn.Module) -> Transform:
        assert isinstance(module, Transform)
        return module


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PyramidConfig(TransformConfig):
    """See Pyramid.

    Attributes:
        bijection: of the couplings, value by value.
        network: of the couplings, which says the bijections' parameters.
        levels: one squeeze each, fewer where a side becomes odd.
        steps: of actnorm, 1x1 convolution and coupling, per level.
    """

    kind = "pyramid"
    bijection: Bijection
    network: NetworkConfig
    levels: int = Field(default=3, ge=1)
    steps: int = Field(default=4, ge=1)

    def build(self, spec: DataSpec, place: int) -> Transform:
        """Raises: ValueError for data other than images of even height and width."""
        if spec.kind != "image":
            raise ValueError(f"a pyramid is for images, got a {spec.kind}")
        channels, height, width = spec.shape
        conditions = dict(spec.conditions)
        return Pyramid((channels, height, width), self.levels, self.steps, conditions, self.bijection, self.network)
