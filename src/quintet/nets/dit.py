"""A diffusion transformer: patches of an image as tokens, attention among them, modulated by time and conditions.

What it is: blocks of attention and a feed-forward layer on RMS-normalised tokens. One linear layer makes the shifts,
scales and gates of all blocks from the vector of time and conditions, and each block adds offsets of its own (a third
of the parameters of one layer a block); gates start at zero, so that each block starts as the identity. Positions enter
twice: as a learned vector of each place, and as rotations of queries and keys by row and column, so that attention sees
where one patch lies from another. Queries and keys are normalised, which bounds the scores.
What it is not: convolutional, or for token sequences (see transformer).

Sources: Peebles & Xie 2023, section 3.2 (adaLN-zero), arXiv:2212.09748; Chen et al. 2023, section 2.3 (one modulation
with offsets a block), arXiv:2310.00426; Su et al. 2021 (rotations), arXiv:2104.09864, by row and column as in Heo et
al. 2024, arXiv:2403.13298; Zhang & Sennrich 2019 (RMS norm), arXiv:1910.07467; Henry et al. 2020 (normalised queries
and keys), arXiv:2010.04245; So et al. 2021 (squared ReLU), arXiv:2109.08668.
Departures: no gains in the norms (the modulation has them), no biases in the blocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from quintet.core.config import STRICT
from quintet.core.recipe import NetworkConfig
from quintet.core.spec import Cond
from quintet.nets.layers import ContextVector, attention, edge, rms_norm, zero

PARTS = 6
"""Of a block's modulation: shift, scale and gate of attention, and of the feed-forward layer."""


def rotation(rows: int, columns: int, width: int, base: float = 100.0) -> tuple[Tensor, Tensor]:
    """Cosines and sines by which places of a grid turn a head's pairs: half of them by row, half by column.

    Args:
        rows, columns: of the grid, read line by line.
        width: of a head, divisible by 4; pair i is entries i and width / 2 + i.
        base: ratio of the fastest frequency, one radian a step, to the slowest.
    Returns: two of (rows columns, 1, width / 2).
    Raises: ValueError for a width that 4 does not divide.
    """
    if width % 4:
        raise ValueError(f"a head's width must be divisible by 4 for rotations by row and column, got {width}")
    speeds = base ** -torch.linspace(0, 1, width // 4)
    row = torch.arange(rows).repeat_interleave(columns)
    column = torch.arange(columns).repeat(rows)
    angle = torch.cat([row[:, None] * speeds, column[:, None] * speeds], 1)[:, None]
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair of x (B, T, H, D) by its place's angle.

    Source: Su et al. 2021, eq. 34.
    """
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class DiTBlock(nn.Module):
    """h + gate * attention(norm(h) scale + shift), then h + gate * feed-forward(norm(h) scale + shift)."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.split = nn.Linear(width, 3 * width, bias=False)
        self.merge = nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, hidden, bias=False), nn.Linear(hidden, width, bias=False)
        self.width, self.heads, self.dropout = width, heads, dropout

    def forward(self, h: Tensor, modulation: Sequence[Tensor], cos: Tensor, sin: Tensor) -> Tensor:
        """h (B, T, width); modulation: PARTS of (B, 1, width); cos, sin: see `rotation`."""
        shift, scale, gate, shift2, scale2, gate2 = modulation
        qk, v = self.split(torch.addcmul(shift, rms_norm(h), scale)).split([2 * self.width, self.width], dim=2)
        qk = rotate(rms_norm(qk.unflatten(2, (2 * self.heads, -1))), cos, sin)  # (B, T, 2 heads, D)
        q, k = qk.transpose(1, 2).chunk(2, dim=1)  # (B, heads, T, D)
        v = v.unflatten(2, (self.heads, -1)).transpose(1, 2)
        h = torch.addcmul(h, gate, self.merge(attention(q, k, v).transpose(1, 2).flatten(2)))
        u = F.relu(self.up(torch.addcmul(shift2, rms_norm(h), scale2))).square()
        if self.dropout:
            u = F.dropout(u, self.dropout, self.training)
        return torch.addcmul(h, gate2, self.down(u))


class DiT(nn.Module):
    """See the module. Images that the patch does not divide are padded inside and cut again.

    Raises: ValueError unless inputs and outputs are images of one size, heads divide the width, and 4 each head.
    """

    cos: Tensor
    sin: Tensor

    def __init__(
        self,
        inputs: tuple[int, ...],
        outputs: tuple[int, ...],
        conditions: Mapping[str, int],
        *,
        time: bool,
        patch: int,
        width: int,
        depth: int,
        heads: int,
        hidden: int,
        context: int,
        dropout: float,
    ) -> None:
        super().__init__()
        if len(inputs) != 3 or len(outputs) != 3 or inputs[1:] != outputs[1:]:
            raise ValueError(f"a DiT maps images to images of one size, got {inputs} to {outputs}")
        if width % heads:
            raise ValueError(f"{heads} heads do not divide a width of {width}")
        self.inputs, self.outputs, self.patch = inputs, outputs, patch
        self.rows, self.columns = (-(-size // patch) for size in inputs[1:])
        cos, sin = rotation(self.rows, self.columns, width // heads)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.enter = edge(nn.Linear(inputs[0] * patch**2, width))
        self.place = nn.Parameter(0.1 * torch.randn(self.rows * self.columns, width))
        self.context = ContextVector(conditions, context, time=time)
        self.modulate = edge(zero(nn.Linear(context, PARTS * width)))
        # shifts and gates start at 0, scales at 1
        self.offsets = nn.Parameter(torch.tensor([0.0, 1.0, 0.0] * 2)[None, :, None].repeat(depth, 1, width))
        self.blocks = nn.ModuleList(DiTBlock(width, heads, hidden, dropout) for _ in range(depth))
        self.leave = edge(zero(nn.Linear(width, outputs[0] * patch**2)))

    def forward(self, x: Tensor, cond: Cond, t: Tensor | None = None) -> Tensor:
        """x (B, *inputs), t (B,) -> (B, *outputs)."""
        n, (channels, height, width), p = len(x), self.outputs, self.patch
        rows, columns = self.rows, self.columns
        tokens = F.pad(x, (0, columns * p - width, 0, rows * p - height))
        tokens = tokens.reshape(n, self.inputs[0], rows, p, columns, p).permute(0, 2, 4, 1, 3, 5)
        h: Tensor = self.enter(tokens.reshape(n, rows * columns, -1))  # (B, T, width)
        h = h + self.place.to(h.dtype)
        shared = self.modulate(self.context(cond, t, x)).unflatten(1, (1, PARTS, -1))
        parts = (shared + self.offsets).to(h.dtype)[:, :, :, None]  # (B, depth, PARTS, 1, width)
        cos, sin = self.cos.to(h.dtype), self.sin.to(h.dtype)
        for block, modulation in zip(self.blocks, parts.unbind(1), strict=True):
            h = block(h, modulation.unbind(1), cos, sin)
        y: Tensor = self.leave(rms_norm(h)).reshape(n, rows, columns, channels, p, p).permute(0, 3, 1, 4, 2, 5)
        return y.reshape(n, channels, rows * p, columns * p)[:, :, :height, :width]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DiTConfig(NetworkConfig):
    """See DiT.

    Attributes:
        patch: rows and columns of pixels of a token.
        width: of the residual stream.
        depth: number of blocks.
        heads: of attention; they divide the width, and 4 divides what each gets.
        hidden: width of the feed-forward layers.
        context: width of the vector of time and conditions.
        dropout: in the feed-forward layers.
    """

    kind = "dit"
    patch: int = Field(default=4, ge=1)
    width: int = Field(default=128, ge=4)
    depth: int = Field(default=6, ge=1)
    heads: int = Field(default=4, ge=1)
    hidden: int = Field(default=512, ge=1)
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
        return DiT(
            inputs,
            outputs,
            conditions,
            time=time,
            patch=self.patch,
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            hidden=self.hidden,
            context=self.context,
            dropout=self.dropout,
        )
