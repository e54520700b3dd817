"""Strided convolutional networks without normalisation: image to vector by halvings, vector to image by doublings.

What it is: the shape of DCGAN's two networks. A halving is a strided convolution, the first one at the image itself, so
that nearly all work happens at a quarter of the image's size or below, on many channels; a doubling is bilinear, then a
convolution. Where asked, fix-up residual blocks at each size. Rows never mix, and every operation has a correct double
backward.
What it is not: DCGAN's batch normalisation, which couples the rows of a batch (it would depend on micro-batches and on
the number of processes, and give gradient penalties of single rows no meaning), or its transposed convolutions, whose
four pixels of a square have weights of their own and show as a woven pattern; nor a network from image to image.

Sources: Radford et al. 2016 (DCGAN), arXiv:1511.06434; Odena et al. 2016, "Deconvolution and checkerboard artifacts";
Huang et al. 2024 (bilinear resampling, no normalisation), arXiv:2501.05441.
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
from quintet.nets.conv import SLOPE, Context, ConvBlock, pyramid
from quintet.nets.layers import edge

GAIN = (2 / (1 + SLOPE**2)) ** 0.5  # keeps the scale through a leaky ReLU


def _started(layer: nn.Conv2d | nn.Linear, gain: float) -> nn.Conv2d | nn.Linear:
    """Weights of standard deviation gain / sqrt(fan in), biases zero."""
    nn.init.normal_(layer.weight, std=gain * layer.weight[0].numel() ** -0.5)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def _sizes(size: tuple[int, int], smallest: int) -> tuple[tuple[int, int], ...]:
    """The pyramid's sizes, at least two."""
    return pyramid(size, min(smallest, max(1, max(size) - 1)))


class StridedEncoder(nn.Module):
    """Image to vector."""

    def __init__(
        self,
        inputs: tuple[int, ...],
        outputs: tuple[int, ...],
        conditions: Mapping[str, int],
        *,
        time: bool,
        channels: Sequence[int],
        blocks: Sequence[int],
        smallest: int,
    ) -> None:
        super().__init__()
        self.outputs = outputs
        self.sizes = _sizes((inputs[1], inputs[2]), smallest)
        widths = (inputs[0], *_repeated(channels, len(self.sizes) - 1))
        counts = _repeated(blocks, len(self.sizes) - 1)
        self.context = Context(conditions, time)
        self.down = nn.ModuleList(
            # halves are rounded up: an odd side gets a second row of zeros at each end
            _started(nn.Conv2d(a, b, 4, stride=2, padding=(1 + height % 2, 1 + width % 2)), GAIN if i else 1.0)
            for i, ((a, b), (height, width)) in enumerate(zip(pairwise(widths), self.sizes, strict=False))
        )
        edge(self.down[0])
        self.shift = _shifts(widths[1:], self.context.width)
        self.blocks = nn.ModuleList(
            nn.ModuleList(ConvBlock(w, self.context.width, max(1, sum(counts))) for _ in range(count))
            for w, count in zip(widths[1:], counts, strict=True)
        )
        self.leave = edge(_started(nn.Linear(widths[-1] * prod(self.sizes[-1]), prod(outputs)), GAIN))

    def forward(self, x: Tensor, cond: Cond, t: Tensor | None = None) -> Tensor:
        """x (B, C, H, W) -> (B, *outputs)."""
        context = self.context(cond, t, x)
        h = x.contiguous(memory_format=torch.channels_last)
        for i, (down, shift, blocks) in enumerate(zip(self.down, self.shift, self.blocks, strict=True)):
            h = _moved(down(F.leaky_relu(h, SLOPE) if i else h), shift, context)
            for block in blocks:  # type: ignore[attr-defined]
                h = block(h, context)
        # channels stay last: a gradient in another order than h's makes all that comes before several times as slow
        out: Tensor = self.leave(F.leaky_relu(h, SLOPE).movedim(1, -1).flatten(1))
        return out.reshape(len(x), *self.outputs)


class StridedDecoder(nn.Module):
    """Vector to image."""

    def __init__(
        self,
        inputs: tuple[int, ...],
        outputs: tuple[int, ...],
        conditions: Mapping[str, int],
        *,
        time: bool,
        channels: Sequence[int],
        blocks: Sequence[int],
        smallest: int,
    ) -> None:
        super().__init__()
        self.sizes = _sizes((outputs[1], outputs[2]), smallest)[::-1]
        widths = (*_repeated(channels, len(self.sizes) - 1)[::-1], outputs[0])
        counts = _repeated(blocks, len(self.sizes) - 1)[::-1]
        self.context = Context(conditions, time)
        self.first = (*self.sizes[0], widths[0])
        given = prod(inputs) + self.context.width
        self.enter = edge(_started(nn.Linear(given, prod(self.first)), 1.0))
        self.shift = _shifts(widths[:-1], self.context.width)
        self.blocks = nn.ModuleList(
            nn.ModuleList(ConvBlock(w, self.context.width, max(1, sum(counts))) for _ in range(count))
            for w, count in zip(widths[:-1], counts, strict=True)
        )
        self.up = nn.ModuleList(_started(nn.Conv2d(a, b, 3, padding=1), GAIN) for a, b in pairwise(widths))
        edge(self.up[-1])

    def forward(self, x: Tensor, cond: Cond, t: Tensor | None = None) -> Tensor:
        """x (B, *inputs) -> (B, C, H, W)."""
        context = self.context(cond, t, x)
        v = x.flatten(1) if context is None else torch.cat([x.flatten(1), context], 1)
        h: Tensor = self.enter(v).unflatten(1, self.first).movedim(-1, 1)  # channels last
        for i, (up, shift, blocks) in enumerate(zip(self.up, self.shift, self.blocks, strict=True)):
            h = _moved(h, shift, context)
            for block in blocks:  # type: ignore[attr-defined]
                h = block(h, context)
            h = F.leaky_relu(h, SLOPE)  # before it grows: a quarter of the work
            h = up(F.interpolate(h, size=self.sizes[i + 1], mode="bilinear", align_corners=False))
        return h


@dataclass(frozen=True, kw_only=True, config=STRICT)
class StridedConfig(NetworkConfig):
    """See StridedEncoder (built where the input is an image) and StridedDecoder (where the output is).

    Attributes:
        channels: after the first halving, the second, ...; the last repeats.
        blocks: residual blocks at each of these sizes; the last repeats.
        smallest: side at which the halvings end; there is at least one.
    """

    kind = "strided-conv"
    channels: tuple[int, ...] = Field(default=(48, 96, 192), min_length=1)
    blocks: tuple[int, ...] = Field(default=(0,), min_length=1)
    smallest: int = Field(default=4, ge=1)

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
        if images not in ((True, False), (False, True)):
            raise ValueError(f"a strided network maps an image to a vector or back, got {inputs} to {outputs}")
        cls: type[StridedEncoder] | type[StridedDecoder] = StridedEncoder if images[0] else StridedDecoder
        network = cls(
            inputs,
            outputs,
            conditions,
            time=time,
            channels=self.channels,
            blocks=self.blocks,
            smallest=self.smallest,
        )
        return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _repeated(values: Sequence[int], count: int) -> tuple[int, ...]:
    return tuple(values[min(i, len(values) - 1)] for i in range(count))


def _shifts(widths: Sequence[int], context: int) -> nn.ModuleList:
    return nn.ModuleList(edge(nn.Linear(context, w)) if context else nn.Identity() for w in widths)


def _moved(h: Tensor, shift: nn.Module, context: Tensor | None) -> Tensor:
    """h plus a shift per channel that depends on the context."""
    return h if context is None else h + shift(context)[:, :, None, None]
