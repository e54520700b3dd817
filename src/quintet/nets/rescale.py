"""Networks from an image to a smaller image of more channels, and back: the two halves of a first stage.

What it is: fix-up residual blocks at each size of a pyramid, without normalisation, channels-last; where `patch` is
above 1 squares of that many pixels enter and leave as channels, which saves the work at full size.
What it is not: from image to vector (see conv), or with skips (see unet).

Sources: Esser et al. 2021 (the shape of a first stage), arXiv:2012.09841; Zhang et al. 2019 (fix-up), arXiv:1901.09321.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from quintet.core.config import STRICT
from quintet.core.recipe import NetworkConfig
from quintet.core.spec import Cond
from quintet.nets.conv import SLOPE, Context, ConvBlock, _conv, from_patches, to_patches
from quintet.nets.layers import edge

Size = tuple[int, int]


def steps_between(large: Size, small: Size, patch: int) -> tuple[Size, ...]:
    """Sizes from `large` in patches down to `small`, each half of the one before, rounded up.

    Raises: ValueError if halving does not lead to `small`.
    """
    sizes = [(-(-large[0] // patch), -(-large[1] // patch))]
    while sizes[-1] != small:
        height, width = sizes[-1]
        if height < small[0] or width < small[1] or max(height, width) == 1:
            raise ValueError(f"{large} pixels in patches of {patch} are not halved to {small}")
        sizes.append((-(-height // 2), -(-width // 2)))
    return tuple(sizes)


class Shrink(nn.Module):
    """Image to a smaller image: blocks at each size, average pooling between."""

    def __init__(
        self, inputs: tuple[int, ...], outputs: tuple[int, ...], conditions: Mapping[str, int], *, time: bool,
        channels: Sequence[int], blocks: int, patch: int,
    ) -> None:  # fmt: skip
        super().__init__()
        sizes = steps_between((inputs[1], inputs[2]), (outputs[1], outputs[2]), patch)
        widths = [channels[min(i, len(channels) - 1)] for i in range(len(sizes))]
        self.patch, self.context = patch, Context(conditions, time)
        self.enter = edge(_conv(inputs[0] * patch**2, widths[0], 3))
        self.stages = _stages(widths, self.context.width, blocks)
        self.widen = nn.ModuleList(_conv(a, b, 1) for a, b in pairwise(widths))
        self.leave = edge(_conv(widths[-1], outputs[0], 3))

    def forward(self, x: Tensor, cond: Cond, t: Tensor | None = None) -> Tensor:
        """x (B, C, H, W) -> (B, *outputs)."""
        context = self.context(cond, t, x)
        h = self.enter(to_patches(x, self.patch).contiguous(memory_format=torch.channels_last))
        for i, stage in enumerate(self.stages):
            if i:
                h = F.avg_pool2d(self.widen[i - 1](h), 2, ceil_mode=True, count_include_pad=False)
            for block in stage:  # type: ignore[attr-defined]
                h = block(h, context)
        out: Tensor = self.leave(F.leaky_relu(h, SLOPE))
        return out


class Grow(nn.Module):
    """Image to a larger image: blocks at each size, nearest-neighbour growth between."""

    def __init__(
        self, inputs: tuple[int, ...], outputs: tuple[int, ...], conditions: Mapping[str, int], *, time: bool,
        channels: Sequence[int], blocks: int, patch: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.size: Size = (outputs[1], outputs[2])
        self.sizes = steps_between(self.size, (inputs[1], inputs[2]), patch)[::-1]
        widths = [channels[min(i, len(channels) - 1)] for i in range(len(self.sizes))][::-1]
        self.patch, self.context = patch, Context(conditions, time)
        self.enter = edge(_conv(inputs[0], widths[0], 3))
        self.stages = _stages(widths, self.context.width, blocks)
        self.narrow = nn.ModuleList(_conv(a, b, 1) for a, b in pairwise(widths))
        self.leave = edge(_conv(widths[-1], outputs[0] * patch**2, 3))

    def forward(self, x: Tensor, cond: Cond, t: Tensor | None = None) -> Tensor:
        """x (B, *inputs) -> (B, C, H, W)."""
        context = self.context(cond, t, x)
        h = self.enter(x.contiguous(memory_format=torch.channels_last))
        for i, stage in enumerate(self.stages):
            if i:  # narrowing first costs a quarter of narrowing at the larger size, and commutes with the growth
                height, width = self.sizes[i]
                h = F.interpolate(self.narrow[i - 1](h), scale_factor=2, mode="nearest")[:, :, :height, :width]
            for block in stage:  # type: ignore[attr-defined]
                h = block(h, context)
        return from_patches(self.leave(F.leaky_relu(h, SLOPE)), self.patch, self.size)


def _stages(widths: Sequence[int], context: int, blocks: int) -> nn.ModuleList:
    return nn.ModuleList(
        nn.ModuleList(ConvBlock(width, context, blocks * len(widths)) for _ in range(blocks)) for width in widths
    )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RescaleConfig(NetworkConfig):
    """See Shrink (built where the output is smaller than the input) and Grow.

    Attributes:
        channels: at the largest size, the next one, ...; the last repeats.
        blocks: per size.
        patch: rows and columns of pixels that enter and leave as channels.
    """

    kind = "rescale"
    channels: tuple[int, ...] = Field(default=(64, 128), min_length=1)
    blocks: int = Field(default=1, ge=1)
    patch: int = Field(default=2, ge=1)

    def build(
        self,
        inputs: tuple[int, ...],
        outputs: tuple[int, ...],
        conditions: Mapping[str, int],
        *,
        time: bool = False,
    ) -> nn.Module:
        """Raises: ValueError unless both are images and halving leads from the larger one to the smaller one."""
        if len(inputs) != 3 or len(outputs) != 3:
            raise ValueError(f"a rescaling network maps images to images, got {inputs} to {outputs}")
        cls = Shrink if inputs[1:] > outputs[1:] else Grow
        network = cls(
            inputs, outputs, conditions, time=time, channels=self.channels, blocks=self.blocks, patch=self.patch
        )
        return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
