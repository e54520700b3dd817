"""A causal Transformer over the pixels of an image by local two-dimensional context and attention along the axes.

What it is: pre-norm residual blocks as in `transformer`, with two changes that a large image asks for. Feed-forward
layers begin with a causal convolution, a small window of earlier pixels, and attention, in some of the blocks, goes
along the pixel's column and row (see `axial`) instead of to all earlier pixels: an image of N pixels costs N windows
and N^(3/2) pairs instead of N^2, and the products are large ones. All values of one pixel (red, green, blue) share one
pass: a head adds the values of that pixel that came before. The cached form keeps a few rows of every layer, and keys
and values.
What it is not: a likelihood. It returns numbers; what they mean is the output distribution's business.

Source of the windows: van den Oord et al. 2016, arXiv:1601.06759. Departures: one stack of convolutions whose windows
are wider than high, so that only a thin wedge to the upper right stays unseen, in place of two; channels of a pixel by
a head instead of masks inside the layers; blocks of `transformer` (normalised input, squared ReLU, output from zero)
instead of gates; attention between them.

Shapes: B examples, grid R x C x V: rows, columns, values a pixel; W width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass as plain_dataclass
from typing import cast

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from quintet.core.config import STRICT
from quintet.core.recipe import TokenNetworkConfig
from quintet.core.spec import Cond
from quintet.nets.axial import AxialAttention, Sight
from quintet.nets.entry import level_features
from quintet.nets.layers import ConditionEmbedding, edge, zero


class CausalConv(nn.Linear):
    """A convolution over the pixels above, within a window, those to the left, and the pixel itself or not.

    Its weight is a matrix (outputs, pixels seen x inputs), the pixels in raster order, for optimisers of matrices.

    Args:
        inputs, outputs: channels.
        rows: of the window, the last one being the pixel's own.
        columns: of the window, odd; the pixel stands in the middle.
        itself: whether the pixel is seen.
    """

    def __init__(self, inputs: int, outputs: int, rows: int, columns: int, *, itself: bool) -> None:
        self.rows, self.columns = rows, columns
        self.seen = (rows - 1) * columns + columns // 2 + itself
        super().__init__(self.seen * inputs, outputs, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        """(B, R, C, inputs) -> (B, R, C, outputs)."""
        hidden = self.rows * self.columns - self.seen
        kernel = F.pad(self.weight.unflatten(1, (self.seen, -1)), (0, 0, 0, hidden))
        kernel = kernel.unflatten(1, (self.rows, self.columns)).permute(0, 3, 1, 2)
        side = self.columns // 2
        padded = F.pad(h.permute(0, 3, 1, 2), (side, side, self.rows - 1, 0))  # channels last in memory
        return F.conv2d(padded, kernel).permute(0, 2, 3, 1)

    def at(self, window: Tensor) -> Tensor:
        """One pixel's (n, rows, columns, inputs) -> (n, outputs); what is not to be seen is not read."""
        return F.linear(window.flatten(1)[:, : self.in_features], self.weight)


class Block(nn.Module):
    """h + attention(norm(h)) where there are heads, then h + feed-forward(norm(h)); both start at zero.

    The feed-forward's first layer is a causal convolution.
    """

    def __init__(self, width: int, hidden: int, rows: int, columns: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.attention = AxialAttention(width, heads) if heads else None
        self.up = CausalConv(width, hidden, rows, columns, itself=True)
        self.down = zero(nn.Linear(hidden, width, bias=False))

    def forward(self, h: Tensor) -> Tensor:
        if self.attention is not None:
            h = h + self.drop(self.attention(F.layer_norm(h, h.shape[-1:])))
        return self.join(h, self.up(F.layer_norm(h, h.shape[-1:])))

    def join(self, h: Tensor, u: Tensor) -> Tensor:
        """What the convolution gave, added to h."""
        return h + self.drop(self.down(F.relu(u).square()))

    def drop(self, h: Tensor) -> Tensor:
        return F.dropout(h, self.dropout, self.training) if self.dropout else h


class Rows:
    """The last rows of a layer's input, with margins of zeros: all that a causal convolution reads again.

    Attributes:
        kept: (n, rows, columns + margins, inputs).
    """

    def __init__(self, n: int, columns: int, conv: CausalConv) -> None:
        weight = conv.weight
        size = (n, conv.rows, columns + conv.columns - 1, conv.in_features // conv.seen)
        self.kept, self.side, self.span = weight.new_zeros(size), conv.columns // 2, conv.columns

    def turn(self) -> None:
        """Begin the next row."""
        self.kept[:, :-1] = self.kept[:, 1:].clone()
        self.kept[:, -1] = 0

    def window(self, column: int) -> Tensor:
        """(n, rows, columns of the window, inputs) around a pixel of the present row."""
        return self.kept[:, :, column : column + self.span]

    def put(self, column: int, value: Tensor) -> None:
        """Remember a pixel's (n, inputs)."""
        self.kept[:, -1, column + self.side] = value


@plain_dataclass
class Cache:
    """What sampling keeps between values; it lives outside the module.

    Attributes:
        context: (n, W), the condition's part of every pixel.
        entry: rows of level features.
        layers: rows of each block's normalised input.
        sights: keys and values of each block, None where it has no attention.
        pixel: (n, V F), features of the present pixel's values drawn so far; the others 0.
        state: (n, W), the present pixel's trunk.
        at: values done.
    """

    context: Tensor
    entry: Rows
    layers: list[Rows]
    sights: list[Sight | None]
    pixel: Tensor
    state: Tensor
    at: int = 0

    def reorder(self, rows: Tensor) -> None:
        """Make row i a copy of row rows[i] (particles that survive a resampling)."""
        changed = (rows != torch.arange(len(rows), device=rows.device)).nonzero()[:, 0]
        source = rows[changed]
        layers = (layer.kept for layer in (self.entry, *self.layers))
        sights = (kept for sight in self.sights if sight is not None for kept in (sight.up, sight.left))
        for kept in (self.context, self.pixel, self.state, *layers, *sights):
            kept[changed] = kept[source]


class LocalNetwork(nn.Module):
    """See the module's docstring; `outputs` numbers come out at each value, zero before training.

    Raises: ValueError if the grid has not three axes or does not hold `length` values.
    """

    table: Tensor

    def __init__(
        self,
        length: int,
        levels: int,
        outputs: int,
        conditions: Mapping[str, int],
        grid: tuple[int, ...],
        *,
        width: int,
        depth: int,
        hidden: int,
        head: int,
        window: tuple[int, int],
        first: tuple[int, int],
        heads: int,
        every: int,
        waves: int,
        dropout: float,
    ) -> None:
        super().__init__()
        if len(grid) != 3 or grid[0] * grid[1] * grid[2] != length:
            raise ValueError(f"expected a grid of rows, columns and values a pixel that holds {length}, got {grid}")
        self.grid, self.length, self.width, self.outputs = grid, length, width, outputs
        height, wide, values = grid
        self.register_buffer("table", level_features(levels, waves)[:-1].contiguous(), persistent=False)
        features = self.table.shape[1]
        self.look = edge(CausalConv(values * features, width, *first, itself=False))
        self.row, self.column = edge(nn.Embedding(height, width)), edge(nn.Embedding(wide, width))
        for axis in (self.row, self.column):
            nn.init.normal_(axis.weight, std=0.3)
        self.embed = ConditionEmbedding(conditions, width)
        self.blocks = nn.ModuleList(
            Block(width, hidden, *window, heads if every and i % every == 0 else 0, dropout)
            for i in range(1, depth + 1)
        )
        self.heads = nn.ModuleList(nn.Linear(width, head, bias=False) for _ in range(values))
        # the value k of a pixel also sees those before it
        self.given = nn.ModuleList(edge(nn.Linear(k * features, head, bias=False)) for k in range(1, values))
        self.leave = nn.ModuleList(edge(zero(nn.Linear(head, outputs))) for _ in range(values))

    def read(self, state: Tensor, pixel: Tensor, k: int) -> Tensor:
        """A pixel's trunk (..., W), normalised, and the features (..., V F) of its values to the outputs of value k."""
        u = self.heads[k](state)
        if k:
            u = u + self.given[k - 1](pixel[..., : k * self.table.shape[1]])
        return cast(Tensor, self.leave[k](F.relu(u).square()))

    def forward(self, tokens: Tensor, cond: Cond) -> Tensor:
        """(B, T) int64 -> (B, T, outputs), where outputs at i depend on tokens before i and the condition alone.

        Raises: ValueError if there are not `length` tokens.
        """
        if tokens.shape[1:] != (self.length,):
            raise ValueError(f"expected (B, {self.length}) tokens, got {tuple(tokens.shape)}")
        pixels = self.table[tokens.view(-1, *self.grid)].flatten(3)  # (B, R, C, V F)
        h = self.look(pixels) + (self.row.weight[:, None] + self.column.weight)
        c = self.embed(cond, tokens)
        if c is not None:
            h = h + c[:, None, None]
        for block in self.blocks:
            h = block(h)
        h = F.layer_norm(h, (self.width,))
        out = [self.read(h, pixels, k) for k in range(self.grid[2])]  # each (B, R, C, outputs)
        stacked = out[0] if len(out) == 1 else torch.stack(out, 3)
        return stacked.reshape(len(tokens), self.length, self.outputs)

    def start(self, n: int, cond: Cond) -> Cache:
        """An empty cache for n sequences."""
        weight, (high, wide, values) = self.look.weight, self.grid
        context = self.embed(cond, weight.new_empty(n, 0))
        if context is None:
            context = weight.new_zeros(n, self.width)
        blocks = [cast(Block, block) for block in self.blocks]
        return Cache(
            context,
            Rows(n, wide, self.look),
            [Rows(n, wide, block.up) for block in blocks],
            [None if block.attention is None else block.attention.start(n, high, wide) for block in blocks],
            weight.new_zeros(n, values * self.table.shape[1]),
            weight.new_zeros(n, self.width),
        )

    def next(self, cache: Cache, tokens: Tensor | None) -> Tensor:
        """Outputs at the next value, what `forward` would give there in eval mode.

        Args:
            cache: from `start`; moved on by one value.
            tokens: (n,) int64, the token before; None at the first.
        Returns: (n, outputs).
        """
        i = cache.at
        if (tokens is None) != (i == 0) or i >= self.length:
            raise ValueError(f"value {i} of {self.length} cannot follow {'no token' if tokens is None else 'a token'}")
        features, values = self.table.shape[1], self.grid[2]
        pixel, k = divmod(i, values)
        row, column = divmod(pixel, self.grid[1])
        if tokens is not None:
            before = (k - 1) % values
            cache.pixel[:, before * features : (before + 1) * features] = self.table[tokens]
        if k == 0:
            if i:
                cache.entry.put(column - 1 if column else self.grid[1] - 1, cache.pixel)
            if column == 0 and row:
                for rows in (cache.entry, *cache.layers):
                    rows.turn()
            cache.state = self._pixel(cache, row, column)
        cache.at += 1
        return self.read(cache.state, cache.pixel, k)

    def _pixel(self, cache: Cache, row: int, column: int) -> Tensor:
        """(n, W), the normalised trunk of a pixel."""
        h = self.look.at(cache.entry.window(column)) + (self.row.weight[row] + self.column.weight[column])
        h = h + cache.context
        for block, rows, sight in zip(self.blocks, cache.layers, cache.sights, strict=True):
            assert isinstance(block, Block)
            if block.attention is not None and sight is not None:
                h = h + block.attention.at(F.layer_norm(h, (self.width,)), sight, row, column)
            rows.put(column, F.layer_norm(h, (self.width,)))
            h = block.join(h, block.up.at(rows.window(column)))
        return F.layer_norm(h, (self.width,))


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LocalConfig(TokenNetworkConfig):
    """See LocalNetwork.

    Attributes:
        width: of the residual stream.
        depth: number of blocks.
        hidden: channels inside a block.
        head: width of the layer before the outputs.
        window: rows and columns that a block's convolution sees, the last row being the pixel's own.
        first: rows and columns of the first convolution, which sees the levels.
        heads: of attention, half of them along the column and half along the row; together they divide the width.
        every: so many blocks there is one with attention, the first at this place; 0 for none at all.
        waves: pairs of cosine and sine by which a level is described, each twice as fast as the one before.
        dropout: of each branch.
    """

    kind = "local"
    width: int = Field(default=64, ge=1)
    depth: int = Field(default=6, ge=0)
    hidden: int = Field(default=64, ge=1)
    head: int = Field(default=128, ge=1)
    window: tuple[int, int] = (3, 5)
    first: tuple[int, int] = (4, 7)
    heads: int = Field(default=2, ge=2)
    every: int = Field(default=4, ge=0)
    waves: int = Field(default=4, ge=0, le=16)
    dropout: float = Field(default=0.0, ge=0, lt=1)

    def __post_init__(self) -> None:
        for rows, columns in (self.window, self.first):
            if rows < 1 or columns < 3 or columns % 2 == 0:
                raise ValueError(f"expected a window of rows and an odd number of columns >= 3, got {rows}, {columns}")

    def build(
        self, length: int, levels: int, conditions: Mapping[str, int], *, grid: tuple[int, ...], outputs: int
    ) -> LocalNetwork:
        return LocalNetwork(
            length,
            levels,
            outputs,
            conditions,
            grid,
            width=self.width,
            depth=self.depth,
            hidden=self.hidden,
            head=self.head,
            window=self.window,
            first=self.first,
            heads=self.heads,
            every=self.every,
            waves=self.waves,
            dropout=self.dropout,
        )
