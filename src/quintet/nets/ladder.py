"""Encoder and decoder that share a ladder of latents: bottom-up features, top-down state, one group of latents a rung.

What it is: the top group is a vector, every further group lies on a size of the pyramid (images) or is a vector again
(vectors, tokens). Blocks are those of `conv`, without normalisation.
What it is not: a model; which noise a group gets, and what it costs, is decided by the caller's `draw`.

Legend: u standard normal noise of a group, z the latent it becomes, h the decoder's state.

Sources: Sonderby et al. 2016, arXiv:1602.02282; Vahdat & Kautz 2020 (posterior relative to the prior),
arXiv:2007.03898; Child 2021 (one top-down path for both), arXiv:2011.10650.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from math import prod

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from quintet.core.config import STRICT
from quintet.core.recipe import Draw, LadderNetwork, LadderNetworkConfig
from quintet.core.spec import Cond
from quintet.nets.conv import (
    SLOPE,
    Context,
    ConvBlock,
    _conv,
    _dense,
    _widths,
    flat_patches,
    from_patches,
    pyramid,
    to_patches,
)
from quintet.nets.layers import edge, zero

LOG_STD = 4.0
"""Largest size of a prior's log standard deviation."""


class DenseBlock(nn.Module):
    """ConvBlock for vectors: h + linear(act(linear(act(norm(h))) + context)), the last layer zero at the start."""

    def __init__(self, channels: int, context: int, blocks: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.first = nn.Linear(channels, channels)
        self.last = zero(nn.Linear(channels, channels))
        self.shift = edge(nn.Linear(context, channels)) if context else None

    def forward(self, h: Tensor, context: Tensor | None) -> Tensor:
        """h (B, channels), context (B, context) -> (B, channels)."""
        u = self.first(F.leaky_relu(self.norm(h), SLOPE))
        if self.shift is not None and context is not None:
            u = u + self.shift(context)
        out: Tensor = h + self.last(F.leaky_relu(u, SLOPE))
        return out


Layer = Callable[[int, int], nn.Conv2d | nn.Linear]
Block = Callable[[int, int, int], nn.Module]


def _latent(mean_log_std: Tensor, u: Tensor) -> Tensor:
    """z = mean + std u, for (B, 2 C, ...) and (B, C, ...)."""
    mean, log_std = mean_log_std.chunk(2, dim=1)
    return torch.addcmul(mean, torch.exp(LOG_STD * torch.tanh(log_std / LOG_STD)), u.to(mean.dtype))


def _prior(layer: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear:
    """Zero at the start: mean 0 and standard deviation 1 for every state."""
    nn.init.zeros_(layer.weight)
    return edge(layer)


def _posterior(layer: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear:
    """At the start means of about unit size, which differ from example to example, and standard deviation 1/e.

    One that starts equal to its prior is noise, which the decoder learns to overhear before it carries anything.
    """
    half = len(layer.weight) // 2
    with torch.no_grad():
        layer.weight[half:] = 0
        assert layer.bias is not None
        layer.bias[half:] = -1
    return edge(layer)


class Top(nn.Module):
    """The first group: a vector whose prior knows the condition alone, and which makes the first state.

    Args:
        context: width of the context vector, 0 for none.
        width: of the latent.
        state: shape of the state and of the features.
    """

    def __init__(self, context: int, width: int, state: tuple[int, ...]) -> None:
        super().__init__()
        self.state = state
        self.prior = _prior(_dense(context, 2 * width)) if context else None
        self.posterior = _posterior(_dense(prod(state), 2 * width))
        self.enter = edge(_dense(width + context, prod(state)))

    def forward(self, feature: Tensor | None, context: Tensor | None, draw: Draw) -> Tensor:
        """The state (B, *state)."""
        q = None if feature is None else self.posterior(F.leaky_relu(feature, SLOPE).flatten(1)).unflatten(1, (2, -1))
        z = draw(0, q)
        if self.prior is not None and context is not None:
            z = torch.cat([_latent(self.prior(context), z), context], dim=1)
        out: Tensor = self.enter(z).unflatten(1, self.state)
        return out


class Rung(nn.Module):
    """A further group: prior and posterior from the state, and the latent's way into it."""

    def __init__(self, layer: Layer, channels: int, latent: int) -> None:
        super().__init__()
        # few channels a place, which the blocks before have prepared: they need not see the neighbours again
        self.prior = _prior(_point(layer, channels, 2 * latent))
        self.posterior = _posterior(_point(layer, channels, 2 * latent))
        self.enter = _point(layer, latent, channels)

    def forward(self, group: int, h: Tensor, feature: Tensor | None, draw: Draw) -> Tensor:
        """State and features (B, channels, ...) -> state."""
        q = None if feature is None else self.posterior(F.leaky_relu(h + feature, SLOPE)).unflatten(1, (2, -1))
        out: Tensor = h + self.enter(_latent(self.prior(F.leaky_relu(h, SLOPE)), draw(group, q)))
        return out


class LadderEncoder(nn.Module):
    """Bottom-up: blocks at each size, whose result is the features of all groups there; the top sees the smallest.

    It is told the conditions, so that latents need not say again what a label says already.
    """

    def __init__(
        self,
        inputs: int,
        conditions: Mapping[str, int],
        layer: Layer,
        block: Block,
        widths: Sequence[int],
        rungs: Sequence[int],
        blocks: Sequence[int],
        patch: int,
        pool: bool,
    ) -> None:
        """Args: widths, rungs, blocks: from the largest size to the smallest."""
        super().__init__()
        self.patch, self.pool, self.rungs = patch, pool, rungs
        self.context = Context(conditions, time=False)
        self.enter = edge(layer(inputs, widths[0]))
        self.stages = nn.ModuleList(
            nn.ModuleList(block(width, self.context.width, sum(blocks)) for _ in range(count))
            for width, count in zip(widths, blocks, strict=True)
        )
        self.widen = nn.ModuleList(_point(layer, a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor, cond: Cond) -> list[Tensor]:
        """x (B, *inputs) -> features, top first."""
        context = self.context(cond, None, x)
        if self.pool:
            x = to_patches(x, self.patch).contiguous(memory_format=torch.channels_last)
        h = self.enter(x)
        features: list[Tensor] = []
        for i, stage in enumerate(self.stages):
            if i:
                if self.pool:  # before widening, which it commutes with, there is less to pool
                    h = F.avg_pool2d(h, 2, ceil_mode=True, count_include_pad=False)
                h = self.widen[i - 1](h)
            for block in stage:  # type: ignore[attr-defined]
                h = block(h, context)
            features += [h] * self.rungs[i]
        return [h, *features[::-1]]


class LadderDecoder(nn.Module):
    """Top-down: the vector makes the smallest state; at each size blocks, a rung, blocks, a rung, ..., then growth.

    Blocks come before a rung, so that the prior of a group is a deep function of the groups above it, and at the end.
    Conditions enter in every block: the state alone does not carry them up well.
    """

    def __init__(
        self,
        outputs: tuple[int, ...],
        conditions: Mapping[str, int],
        layer: Layer,
        block: Block,
        sizes: Sequence[tuple[int, ...]],
        widths: Sequence[int],
        rungs: Sequence[int],
        width: int,
        latents: Sequence[int],
        blocks: Sequence[int],
        patch: int,
    ) -> None:
        """Args: sizes, widths, rungs, latents, blocks: from the smallest size to the largest."""
        super().__init__()
        self.outputs, self.sizes, self.patch = outputs, sizes, patch
        self.context = Context(conditions, time=False)
        context = self.context.width
        self.top = Top(context, width, (widths[0], *sizes[0]))
        deep = sum(max(rung, 1) * count for rung, count in zip(rungs, blocks, strict=True)) + blocks[-1]
        self.stages = nn.ModuleList()
        for c, latent, rung, count in zip(widths, latents, rungs, blocks, strict=True):
            stage = nn.ModuleList()
            for place in range(max(rung, 1)):
                stage.extend(block(c, context, deep) for _ in range(count))
                if place < rung:
                    stage.append(Rung(layer, c, latent))
            self.stages.append(stage)
        self.last = nn.ModuleList(block(widths[-1], context, deep) for _ in range(blocks[-1]))
        self.narrow = nn.ModuleList(_point(layer, a, b) for a, b in pairwise(widths))
        self.leave = edge(layer(widths[-1], outputs[0] * patch**2))
        if isinstance(self.leave, nn.Conv2d):
            flat_patches(self.leave, patch)

    def forward(self, features: Sequence[Tensor] | None, cond: Cond, draw: Draw, n: int) -> Tensor:
        """(n, *outputs)."""
        context = self.context(cond, None, self.leave.weight.new_zeros(n, 1))
        h = self.top(None if features is None else features[0], context, draw)
        group = 1
        for i, stage in enumerate(self.stages):
            if i:
                h = self.narrow[i - 1](h)
                if self.sizes[i]:
                    h = F.interpolate(h, size=self.sizes[i], mode="bilinear", align_corners=False)
            for part in stage:  # type: ignore[attr-defined]
                if isinstance(part, Rung):
                    h = part(group, h, None if features is None else features[group], draw)
                    group += 1
                else:
                    h = part(h, context)
        for part in self.last:
            h = part(h, context)
        out: Tensor = self.leave(F.leaky_relu(h, SLOPE))
        return from_patches(out, self.patch, self.outputs[1:]) if self.sizes[0] else out  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LadderConfig(LadderNetworkConfig):
    """See LadderEncoder and LadderDecoder.

    Attributes:
        width: of the top group's vector.
        latents: channels of a group at the largest size, the next one, ...; the last repeats. For vectors: the widths
            of the groups below the top, the last of them nearest to it.
        channels: of the state and the features at the largest size, the next one, ...; the last repeats.
        rungs: groups at the largest size, the next one, ...; the last repeats; 0 for none at that size.
        blocks: of the encoder at the largest size, the next one, ...; the last repeats. The decoder has so many before
            each group of that size, and at the end.
        smallest: side at which the pyramid ends.
        patch: side of the squares of pixels that enter and leave as channels.
    """

    kind = "ladder"
    width: int = Field(default=32, ge=1)
    latents: tuple[int, ...] = Field(default=(4, 8), min_length=1)
    channels: tuple[int, ...] = Field(default=(64,), min_length=1)
    rungs: tuple[int, ...] = Field(default=(1,), min_length=1)
    blocks: tuple[int, ...] = Field(default=(1,), min_length=1)
    smallest: int = Field(default=4, ge=1)
    patch: int = Field(default=1, ge=1)

    def build(self, inputs: tuple[int, ...], outputs: tuple[int, ...], conditions: Mapping[str, int]) -> LadderNetwork:
        """Raises: ValueError unless inputs and outputs are both images (C, H, W) of one size, or both vectors."""
        if len(inputs) != len(outputs) or inputs[1:] != outputs[1:]:
            raise ValueError(f"a ladder goes from images to images or vectors to vectors, got {inputs} to {outputs}")
        image = len(inputs) == 3
        patch = self.patch if image else 1
        sizes: list[tuple[int, ...]]
        if image:
            sizes = list(pyramid((-(-inputs[1] // patch), -(-inputs[2] // patch)), self.smallest))
        else:
            sizes = [()] * len(self.latents)
        layer: Layer = _conv3 if image else _dense
        block: Block = ConvBlock if image else DenseBlock
        widths, rungs, latents, blocks = (
            _widths(each, len(sizes)) for each in (self.channels, self.rungs, self.latents, self.blocks)
        )
        encoder = LadderEncoder(
            inputs[0] * patch**2, conditions, layer, block, widths, rungs, blocks, patch=patch, pool=image
        )
        decoder = LadderDecoder(
            outputs,
            conditions,
            layer,
            block,
            sizes[::-1],
            widths[::-1],
            rungs[::-1],
            self.width,
            latents[::-1],
            blocks[::-1],
            patch,
        )
        below = zip(latents[::-1], sizes[::-1], rungs[::-1], strict=True)
        groups = ((self.width,), *((c, *size) for c, size, count in below for _ in range(count)))
        return LadderNetwork(encoder, decoder, groups).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _conv3(inputs: int, outputs: int) -> nn.Conv2d:
    return _conv(inputs, outputs, 3)


def _point(layer: Layer, inputs: int, outputs: int) -> nn.Conv2d | nn.Linear:
    """A layer that sees one place: 1x1 for images."""
    return _dense(inputs, outputs) if layer is _dense else _conv(inputs, outputs, 1)
