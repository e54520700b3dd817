"""Causal self-attention over the pixels of a grid along its axes: up the column and back along the row.

What it is: one layer of attention, half of whose heads compare a pixel with those above it in its column, the other
half with those to its left in its row; it sees itself too. N pixels on a square cost N^(3/2) comparisons, not N^2. Two
such layers bring every earlier pixel within reach that lies above or to the left; what lies above to the right comes
with the convolutions between them (see `local`).
What it is not: a block. Normalisation before it and the sum after it are the caller's.

Source: Ho et al. 2019, arXiv:1912.12180. Departure: both axes in one layer, side by side, so that queries, keys and
values of both are one product; rows above are not summed up beforehand in a stack of their own.

Shapes: B examples, grid R x C, W width, H heads of D = W / H numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quintet.nets.layers import attention, zero

MULTIPLE = 16
"""Lengths are padded to its multiples."""


@dataclass
class Sight:
    """Keys and values of the pixels so far, of n sequences.

    Attributes:
        up: (n, 2, C, H / 2, R, D), by column.
        left: (n, 2, H / 2, C, D), of the present row; what stands there of the row before is not read.
    """

    up: Tensor
    left: Tensor


class AxialAttention(nn.Module):
    """See the module; its last product starts at zero.

    Raises: ValueError unless heads are even in number and divide the width.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if heads < 2 or heads % 2 or width % heads:
            raise ValueError(f"expected an even number of heads that divides a width of {width}, got {heads}")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.merge = zero(nn.Linear(width, width, bias=False))
        self.sharpness = nn.Parameter(torch.zeros(heads))  # log temperature of normalised queries

    def split(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(..., W) to queries, keys and values, each (..., H, D)."""
        qkv = self.qkv(h).unflatten(-1, (3, self.heads, -1))
        q, k = F.layer_norm(qkv[..., :2, :, :], qkv.shape[-1:]).unbind(-3)
        return q * self.sharpness.exp()[:, None], k, qkv[..., 2, :, :]

    def forward(self, h: Tensor) -> Tensor:
        """(B, R, C, W) -> (B, R, C, W), where a pixel depends on those of its column and row up to itself."""
        columns, rows = zip(*(part.chunk(2, dim=3) for part in self.split(h)), strict=True)
        up = _along(columns, (0, 2, 3, 1, 4)).permute(0, 3, 1, 2, 4)
        left = _along(rows, (0, 1, 3, 2, 4)).permute(0, 1, 3, 2, 4)
        mixed: Tensor = self.merge(torch.cat([up, left], dim=3).flatten(3))
        return mixed

    def start(self, n: int, rows: int, columns: int) -> Sight:
        """Nothing seen yet."""
        weight, half = self.merge.weight, self.heads // 2
        size = len(weight) // self.heads
        up = weight.new_zeros(n, 2, columns, half, rows, size)
        return Sight(up, weight.new_zeros(n, 2, half, columns, size))

    def at(self, h: Tensor, sight: Sight, row: int, column: int) -> Tensor:
        """(n, W) of one pixel to what `forward` gives there; `sight` remembers the pixel."""
        q, k, v = (part.chunk(2, dim=1) for part in self.split(h))  # each twice (n, H / 2, D)
        for side, (key, value) in enumerate(zip(k, v, strict=True)):
            kept, place = (sight.left, column) if side else (sight.up[:, :, column], row)
            kept[:, 0, :, place], kept[:, 1, :, place] = key, value
        up = sight.up[:, :, column, :, : row + 1]
        left = sight.left[:, :, :, : column + 1]
        mixed = [
            attention(query[:, :, None], seen[:, 0], seen[:, 1]) for query, seen in zip(q, (up, left), strict=True)
        ]
        out: Tensor = self.merge(torch.cat(mixed, dim=1).flatten(1))
        return out


def _along(parts: tuple[Tensor, ...], order: tuple[int, ...]) -> Tensor:
    """Causal attention along the fourth axis of what each (B, R, C, H / 2, D) is when put in `order`."""
    outer, length = [parts[0].shape[axis] for axis in order[:2]], parts[0].shape[order[3]]
    # a CPU's softmax over 28 numbers in bf16 takes six times as long as over 32; nothing sees what is added at the end
    padding = (0, 0, 0, -length % MULTIPLE)
    q, k, v = (F.pad(part.permute(order).flatten(0, 1), padding) for part in parts)
    mixed: Tensor = attention(q, k, v, causal=True)[:, :, :length].unflatten(0, outer)
    return mixed
