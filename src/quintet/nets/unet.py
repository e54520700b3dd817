"""A U-Net: image to image, residual blocks at each size of a pyramid, going down and up again, joined by skips.

What it is: an hourglass of modulated residual blocks in channels-last layout. Time and conditions enter each block as a
scale and a shift of its normalised input, all of them from one linear layer; each place has a learned vector of its
own, of which the average picture is made that pure noise asks for. A branch ends in a zero convolution, and the output
starts at zero. Input and output are joined by linear layers alone: a velocity contains the input itself, and a norm on
the way would have to be undone. A patch above 1 moves that many rows and columns of pixels into channels first, which
is the cheapest way to afford wide layers on a CPU.
What it is not: a loss or a sampler.

Sources: Ronneberger et al. 2015, arXiv:1505.04597; Ho et al. 2020, appendix B, arXiv:2006.11239; Peebles & Xie 2023,
section 3.2 (scale and shift from one vector), arXiv:2212.09748; Hoogeboom et al. 2023 (patches before the pyramid,
skips that are added), arXiv:2301.11093; Liu et al. 2022 (normalisation over a pixel's channels), arXiv:2201.03545.
Departures: layer norm over the channels of each pixel instead of group norm, whose bf16 kernel on a CPU takes nearly as
long as the convolution (layer norm: a sixth of it); hard swish instead of SiLU, at less than half its time; no norm
before the last convolution; one skip a size, added, not one a block, concatenated.
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
from quintet.nets.layers import ContextVector, attention, edge, zero


class UNetBlock(nn.Module):
    """h + conv(act(conv(act(norm(h) (1 + scale) + shift)))), the last convolution zero at the start."""

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.first = _conv(channels, channels, 3)
        self.last = zero(_conv(channels, channels, 3))
        self.channels, self.dropout = channels, dropout

    def forward(self, h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """h (B, channels, H, W); scale, shift (B, channels)."""
        u = torch.addcmul(shift[:, :, None, None], pixel_norm(h), 1 + scale[:, :, None, None])
        u = F.hardswish(self.first(F.hardswish(u)))
        if self.dropout:
            u = F.dropout(u, self.dropout, self.training)
        out: Tensor = h + self.last(u)
        return out


class PixelAttention(nn.Module):
    """h + attention among all pixels of norm(h), the last layer zero at the start."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"{heads} heads do not divide {channels} channels")
        self.heads = heads
        self.split = nn.Linear(channels, 3 * channels)
        self.merge = zero(nn.Linear(channels, channels))

    def forward(self, h: Tensor) -> Tensor:
        """h (B, channels, H, W)."""
        height, width = h.shape[2:]
        u = pixel_norm(h).permute(0, 2, 3, 1).flatten(1, 2)  # (B, T, channels)
        q, k, v = self.split(u).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, T, D)
        mixed: Tensor = self.merge(attention(q, k, v).transpose(1, 2).flatten(2))  # (B, T, channels)
        out: Tensor = h + mixed.unflatten(1, (height, width)).permute(0, 3, 1, 2)
        return out


class UNet(nn.Module):
    """See the module. Sizes that two does not divide are halved rounding up, and cut on the way back.

    Raises: ValueError unless inputs and outputs are images of one size and heads divide the channels.
    """

    def __init__(
        self,
        inputs: tuple[int, ...],
        outputs: tuple[int, ...],
        conditions: Mapping[str, int],
        *,
        time: bool,
        patch: int,
        channels: Sequence[int],
        blocks: int,
        attention: int,
        heads: int,
        context: int,
        dropout: float,
    ) -> None:
        super().__init__()
        if len(inputs) != 3 or len(outputs) != 3 or inputs[1:] != outputs[1:]:
            raise ValueError(f"a U-Net maps images to images of one size, got {inputs} to {outputs}")
        self.patch, self.outputs = patch, outputs
        self.padding = [-size % patch for size in inputs[1:]]
        self.sizes = [tuple(-(-size // patch) for size in inputs[1:])]
        for _ in channels[1:]:
            self.sizes.append(tuple(-(-size // 2) for size in self.sizes[-1]))
        self.enter = edge(_conv(inputs[0] * patch**2, channels[0], 3))
        self.place = nn.Parameter(0.1 * torch.randn(channels[0], *self.sizes[0]))
        self.down = nn.ModuleList(_conv(a, b, 1) for a, b in pairwise(channels))
        self.up = nn.ModuleList(_conv(b, a, 1) for a, b in pairwise(channels))
        self.falling, self.rising = (
            nn.ModuleList(nn.ModuleList(UNetBlock(width, dropout) for _ in range(blocks)) for width in channels)
            for _ in range(2)
        )  # largest size first
        self.attentions = nn.ModuleList(
            PixelAttention(width, heads) if max(size) <= attention else nn.Identity()
            for width, size in zip(channels, self.sizes, strict=True)
        )
        self.context = ContextVector(conditions, context, time=time)
        self.widths = [2 * width for side in (channels, channels[::-1]) for width in side for _ in range(blocks)]
        self.modulate = edge(zero(nn.Linear(context, sum(self.widths))))
        self.leave = edge(zero(_conv(channels[0], outputs[0] * patch**2, 3)))

    def forward(self, x: Tensor, cond: Cond, t: Tensor | None = None) -> Tensor:
        """x (B, C, H, W), t (B,) -> (B, *outputs)."""
        parts = iter(self.modulate(self.context(cond, t, x)).split(self.widths, dim=1))
        bottom, right = self.padding
        x = F.pixel_unshuffle(F.pad(x, (0, right, 0, bottom)), self.patch)
        h = self.enter(x.contiguous(memory_format=torch.channels_last))
        h = h + self.place.to(h.dtype)
        skips: list[Tensor] = []
        for level, stage in enumerate(self.falling):
            if level:
                skips.append(h)
                h = self.down[level - 1](F.avg_pool2d(h, 2, ceil_mode=True, count_include_pad=False))
            for block in stage:  # type: ignore[attr-defined]
                h = block(h, *next(parts).chunk(2, dim=1))
            h = self.attentions[level](h)
        for level in reversed(range(len(self.rising))):
            if level < len(self.rising) - 1:
                grown = F.interpolate(self.up[level](h), scale_factor=2, mode="nearest")
                height, width = self.sizes[level]
                h = skips.pop() + grown[:, :, :height, :width]
            for block in self.rising[level]:  # type: ignore[attr-defined]
                h = block(h, *next(parts).chunk(2, dim=1))
        h = F.pixel_shuffle(self.leave(h), self.patch)
        return h[:, :, : self.outputs[1], : self.outputs[2]]


def pixel_norm(h: Tensor) -> Tensor:
    """Layer norm over the channels of each pixel, h (B, C, H, W); its sums are float32 whatever the dtype."""
    return F.layer_norm(h.permute(0, 2, 3, 1), h.shape[1:2]).permute(0, 3, 1, 2).to(h.dtype)


def _conv(inputs: int, outputs: int, size: int) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, size, padding=size // 2)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="linear")
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv


@dataclass(frozen=True, kw_only=True, config=STRICT)
class UNetConfig(NetworkConfig):
    """See UNet.

    Attributes:
        patch: rows and columns of pixels that become channels at the entry.
        channels: at the largest size, the next one, ...; each is half the size before, rounded up.
        blocks: per size, on the way down and again on the way up.
        attention: sizes whose longer side is at most this have a layer of attention on the way down; 0 for none.
        heads: of attention.
        context: width of the vector of time and conditions.
        dropout: in each block's branch.
    """

    kind = "unet"
    patch: int = Field(default=1, ge=1)
    channels: tuple[int, ...] = Field(default=(32, 64, 128), min_length=1)
    blocks: int = Field(default=1, ge=1)
    attention: int = Field(default=8, ge=0)
    heads: int = Field(default=4, ge=1)
    context: int = Field(default=128, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)

    def build(
        self,
        inputs: tuple[int, ...],
        outputs: tuple[int, ...],
        conditions: Mapping[str, int],
        *,
        time: bool = False,
    ) -> nn.Module:
        network = UNet(
            inputs,
            outputs,
            conditions,
            time=time,
            patch=self.patch,
            channels=self.channels,
            blocks=self.blocks,
            attention=self.attention,
            heads=self.heads,
            context=self.context,
            dropout=self.dropout,
        )
        return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
