"""Small residual convolutional networks without normalisation: image to vector, and vector to image.

What it is: a pyramid of residual blocks, channels-last, that starts close to linear because each block's last
convolution starts at zero (fix-up), so that no normalisation is needed, which would mix examples or hide their scale
from a discriminator. Every operation has a correct double backward.
What it is not: a network from image to image (see unet), or a loss.

Sources: He et al. 2016, arXiv:1512.03385; Zhang et al. 2019 (fix-up), arXiv:1901.09321; Huang et al. 2024 (blocks of
this kind in both players of a GAN), arXiv:2501.05441.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import prod

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from quintet.core.config import STRICT
from quintet.core.recipe import NetworkConfig
from quintet.core.spec import Cond
from quintet.nets.layers import ConditionEmbedding, FourierTime, edge

SLOPE = 0.2
CONTEXT = 64


def pyramid(size: tuple[int, int], smallest: int) -> tuple[tuple[int, int], ...]:
    """(H, W) halved, rounding up, until neither side exceeds `smallest`: largest first."""
    sizes = [size]
    while max(sizes[-1]) > smallest:
        height, width = sizes[-1]
        sizes.append((-(-height // 2), -(-width // 2)))
    return tuple(sizes)


def to_patches(x: Tensor, side: int) -> Tensor:
    """x (B, C, H, W) -> (B, C side^2, ceil(H / side), ceil(W / side)), each square as channels; edges padded with 0."""
    if side == 1:
        return x
    height, width = x.shape[2:]
    return F.pixel_unshuffle(F.pad(x, (0, -width % side, 0, -height % side)), side)


def flat_patches(conv: nn.Conv2d, side: int) -> nn.Conv2d:
    """Make all pixels of a square start equal, so that the first pictures have no chequered pattern to unlearn.

    Source: Aitken et al. 2017 (ICNR), arXiv:1707.02937.
    """
    with torch.no_grad():
        conv.weight.copy_(conv.weight[:: side**2].repeat_interleave(side**2, dim=0))
    return conv


def from_patches(x: Tensor, side: int, size: tuple[int, int]) -> Tensor:
    """The inverse of `to_patches`, cut to `size` (H, W)."""
    return x if side == 1 else F.pixel_shuffle(x, side)[:, :, : size[0], : size[1]]


class Context(nn.Module):
    """Conditions and time to one vector (B, CONTEXT), or None where the network has neither."""

    def __init__(self, conditions: Mapping[str, int], time: bool) -> None:
        super().__init__()
        self.embed = ConditionEmbedding(conditions, CONTEXT)
        self.time = nn.Sequential(FourierTime(64), edge(nn.Linear(64, CONTEXT))) if time else None
        self.width = CONTEXT if conditions or time else 0

    def forward(self, cond: Cond, t: Tensor | None, like: Tensor) -> Tensor | None:
        context: Tensor | None = self.embed(cond, like)
        if self.time is not None:
            if t is None:
                raise ValueError("this network was built with time and needs t")
            moment = self.time(t.to(like.dtype))
            context = moment if context is None else context + moment
        return None if context is None else context * CONTEXT**0.5  # entries of unit size


class ConvBlock(nn.Module):
    """h + conv(act(conv(act(h)) + context)), the last convolution zero at the start.

    Args:
        channels: in, between and out.
        context: width of the context vector, 0 for none.
        blocks: number of blocks in the network; the first convolution is scaled by blocks^(-1/2).
    """

    def __init__(self, channels: int, context: int, blocks: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.last = nn.Conv2d(channels, channels, 3, padding=1)
        self.shift = edge(nn.Linear(context, channels)) if context else None
        with torch.no_grad():
            nn.init.kaiming_normal_(self.first.weight, a=SLOPE)
            self.first.weight.mul_(blocks**-0.5)
            nn.init.zeros_(self.last.weight)
            for conv in (self.first, self.last):
                assert conv.bias is not None
                nn.init.zeros_(conv.bias)

    def forward(self, h: Tensor, context: Tensor | None) -> Tensor:
        """h (B, channels, H, W), context (B, context) -> (B, channels, H, W)."""
        u = self.first(F.leaky_relu(h, SLOPE))
        if self.shift is not None and context is not None:
            u = u + self.shift(context)[:, :, None, None]
        out: Tensor = h + self.last(F.leaky_relu(u, SLOPE))
        return out


def _conv(inputs: int, outputs: int, size: int) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, size, padding=size // 2)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="linear")
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv


def _dense(inputs: int, outputs: int) -> nn.Linear:
    dense = nn.Linear(inputs, outputs)
    nn.init.normal_(dense.weight, std=inputs**-0.5)
    nn.init.zeros_(dense.bias)
    return dense


class ConvEncoder(nn.Module):
    """Image to vector: blocks at each size of the pyramid, average pooling between, one linear layer at the end."""

    def __init__(
        self,
        inputs: tuple[int, ...],
        outputs: tuple[int, ...],
        conditions: Mapping[str, int],
        *,
        time: bool,
        channels: Sequence[int],
        blocks: int,
        smallest: int,
        patch: int = 1,
    ) -> None:
        super().__init__()
        self.outputs, self.patch = outputs, patch
        sizes = pyramid((-(-inputs[1] // patch), -(-inputs[2] // patch)), smallest)
        widths = _widths(channels, len(sizes))
        self.context = Context(conditions, time)
        self.enter = edge(_conv(inputs[0] * patch**2, widths[0], 3))
        self.stages = nn.ModuleList(
            nn.ModuleList(ConvBlock(width, self.context.width, blocks * len(sizes)) for _ in range(blocks))
            for width in widths
        )
        self.widen = nn.ModuleList(_conv(a, b, 1) for a, b in pairwise(widths))
        self.leave = edge(_dense(widths[-1] * prod(sizes[-1]), prod(outputs)))

    def forward(self, x: Tensor, cond: Cond, t: Tensor | None = None) -> Tensor:
        """x (B, C, H, W) -> (B, *outputs)."""
        context = self.context(cond, t, x)
        h = self.enter(to_patches(x, self.patch).contiguous(memory_format=torch.channels_last))
        for i, stage in enumerate(self.stages):
            if i:
                # before widening, which it commutes with, there is less to pool
                h = self.widen[i - 1](F.avg_pool2d(h, 2, ceil_mode=True, count_include_pad=False))
            for block in stage:  # type: ignore[attr-defined]
                h = block(h, context)
        out: Tensor = self.leave(F.leaky_relu(h, SLOPE).flatten(1))
        return out.reshape(len(x), *self.outputs)


class ConvDecoder(nn.Module):
    """Vector to image: one linear layer, then blocks at each size of the pyramid, bilinear growth between."""

    def __init__(
        self,
        inputs: tuple[int, ...],
        outputs: tuple[int, ...],
        conditions: Mapping[str, int],
        *,
        time: bool,
        channels: Sequence[int],
        blocks: int,
        smallest: int,
        patch: int = 1,
    ) -> None:
        super().__init__()
        self.size, self.patch = (outputs[1], outputs[2]), patch
        self.sizes = pyramid((-(-outputs[1] // patch), -(-outputs[2] // patch)), smallest)[::-1]
        widths = _widths(channels, len(self.sizes))[::-1]
        self.context = Context(conditions, time)
        self.first = (widths[0], *self.sizes[0])
        self.enter = edge(_dense(prod(inputs) + self.context.width, prod(self.first)))
        self.stages = nn.ModuleList(
            nn.ModuleList(ConvBlock(width, self.context.width, blocks * len(widths)) for _ in range(blocks))
            for width in widths
        )
        self.narrow = nn.ModuleList(_conv(a, b, 1) for a, b in pairwise(widths))
        self.leave = edge(flat_patches(_conv(widths[-1], outputs[0] * patch**2, 3), patch))

    def forward(self, x: Tensor, cond: Cond, t: Tensor | None = None) -> Tensor:
        """x (B, *inputs) -> (B, C, H, W)."""
        context = self.context(cond, t, x)
        v = x.flatten(1) if context is None else torch.cat([x.flatten(1), context], 1)
        h = self.enter(v).unflatten(1, self.first).contiguous(memory_format=torch.channels_last)
        for i, stage in enumerate(self.stages):
            if i:  # narrowing first costs a quarter of narrowing at the larger size, and commutes with the growth
                h = F.interpolate(self.narrow[i - 1](h), size=self.sizes[i], mode="bilinear", align_corners=False)
            for block in stage:  # type: ignore[attr-defined]
                h = block(h, context)
        return from_patches(self.leave(F.leaky_relu(h, SLOPE)), self.patch, self.size)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ConvConfig(NetworkConfig):
    """See ConvEncoder (built where the input is an image) and ConvDecoder (where the output is).

    Attributes:
        channels: at the largest size, the next one, ...; the last repeats.
        blocks: per size.
        smallest: side at which the pyramid ends.
        patch: side of the squares of pixels that enter and leave as channels; 2 saves the largest size of the pyramid.
    """

    kind = "conv"
    channels: tuple[int, ...] = Field(default=(32, 64, 128), min_length=1)
    blocks: int = Field(default=1, ge=1)
    smallest: int = Field(default=4, ge=1)
    patch: int = Field(default=1, ge=1)

    def build(
        self,
        inputs: tuple[int, ...],
        outputs: tuple[int, ...],
        conditions: Mapping[str, int],
        *,
        time: bool = False,
    ) -> nn.Module:
        """Raises: ValueError unless exactly one of inputs and outputs is an image (C, H, W)."""
        images = (len(inputs) == 3, len(outputs) == 3)
        if images == (True, False):
            cls: type[ConvEncoder] | type[ConvDecoder] = ConvEncoder
        elif images == (False, True):
            cls = ConvDecoder
        else:
            raise ValueError(f"a conv network maps an image to a vector or back, got {inputs} to {outputs}")
        network = cls(
            inputs,
            outputs,
            conditions,
            time=time,
            channels=self.channels,
            blocks=self.blocks,
            smallest=self.smallest,
            patch=self.patch,
        )
        return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _widths(channels: Sequence[int], stages: int) -> list[int]:
    return [channels[min(i, len(channels) - 1)] for i in range(stages)]
