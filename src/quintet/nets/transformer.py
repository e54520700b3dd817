"""A causal Transformer over tokens: tokens in, one row of outputs per position out, with a cached form for sampling.

What it is: a pre-norm decoder with normalised queries and keys, squared-ReLU feed-forward layers and projections that
start at zero. Tokens laid out on a grid (rows and columns of an image, columns of a table) get one learned embedding an
axis, and each position sees, beside attention, the values of its already known grid neighbours as plain numbers: a
local, ordinal look back that attention would have to learn from few examples.
What it is not: a likelihood. It returns numbers; what they mean is the output distribution's business.

Departures: norms are LayerNorm without gain (RMSNorm takes 3.5 times as long on a CPU, forward and backward), of
queries and keys too (Dehghani et al. 2023, section 2, arXiv:2302.05442).

Sources: Vaswani et al. 2017, arXiv:1706.03762; So et al. 2021 (squared ReLU), arXiv:2109.08668; van den Oord et al.
2016 (causal neighbourhoods of pixels), arXiv:1601.06759.

Shapes: B examples, T positions, K neighbours, W width, H heads.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass as plain_dataclass
from math import prod
from typing import cast

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from quintet.core.config import STRICT
from quintet.core.recipe import TokenNetworkConfig
from quintet.core.spec import Cond
from quintet.nets.layers import ConditionEmbedding, attention, edge, zero


def neighbours(grid: tuple[int, ...], reach: int) -> Tensor:
    """Which earlier positions of a grid, read in raster order, lie within `reach` steps along every axis.

    Returns: (T, K) int64, row i holding the positions of i's neighbours, nearest offsets in a fixed order; T where an
        offset leaves the grid.
    """
    length, spans = prod(grid), [min(reach, n - 1) for n in grid]
    offsets = [o for o in itertools.product(*(range(-s, s + 1) for s in spans)) if o < (0,) * len(grid)]
    table = torch.full((length, len(offsets)), length)
    for i, place in enumerate(itertools.product(*map(range, grid))):
        for k, offset in enumerate(offsets):
            there = [p + o for p, o in zip(place, offset, strict=True)]
            if all(0 <= p < n for p, n in zip(there, grid, strict=True)):
                j = 0
                for p, n in zip(there, grid, strict=True):
                    j = j * n + p
                table[i, k] = j
    return table


def level_features(levels: int, waves: int) -> Tensor:
    """Each level as numbers that vary smoothly with it, with a last row for "outside the grid".

    Returns: (levels + 1, 2 + 2 waves): inside flag, value in [-1, 1], cosines and sines of 1/2, 1, 2, ... half turns.
    """
    value = torch.linspace(-1, 1, levels)
    angle = value[:, None] * (math.pi / 2) * 2.0 ** torch.arange(waves)  # (levels, waves)
    inside = torch.cat([torch.ones(levels, 1), value[:, None], angle.cos(), angle.sin()], dim=1)
    return torch.cat([inside, torch.zeros(1, inside.shape[1])])


class Block(nn.Module):
    """h + attention(norm(h)), then h + feed-forward(norm(h)); both projections start at zero."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.merge = zero(nn.Linear(width, width, bias=False))
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = zero(nn.Linear(hidden, width, bias=False))
        self.sharpness = nn.Parameter(torch.zeros(heads))  # log temperature of normalised queries

    def split(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, W) to queries, keys and values, each (B, H, T, W / H)."""
        b, t, w = h.shape
        d = w // self.heads
        q, k, v = self.qkv(F.layer_norm(h, (w,))).view(b, t, 3, self.heads, d).permute(2, 0, 3, 1, 4).unbind(0)
        return F.layer_norm(q, (d,)) * self.sharpness.exp()[:, None, None], F.layer_norm(k, (d,)), v

    def join(self, h: Tensor, mixed: Tensor) -> Tensor:
        """What attention read, (B, H, T, W / H), added to h (B, T, W), and the feed-forward layer after it."""
        h = h + self.drop(self.merge(mixed.transpose(1, 2).flatten(2)))
        u = F.relu(self.up(F.layer_norm(h, h.shape[-1:]))).square()
        return h + self.drop(self.down(u))

    def drop(self, h: Tensor) -> Tensor:
        return F.dropout(h, self.dropout, self.training) if self.dropout else h

    def forward(self, h: Tensor) -> Tensor:
        q, k, v = self.split(h)
        return self.join(h, attention(q, k, v, causal=True))


@plain_dataclass
class Cache:
    """What sampling keeps between positions; it lives outside the module.

    Attributes:
        tokens: (n, T + 1) int64, drawn tokens; "outside" elsewhere.
        keys, values: (layers, n, H, T, W / H), filled up to `at`.
        context: (n, W), the condition's part of every position.
        at: positions done.
    """

    tokens: Tensor
    keys: Tensor
    values: Tensor
    context: Tensor
    at: int = 0

    def reorder(self, rows: Tensor) -> None:
        """Make row i a copy of row rows[i] (particles that survive a resampling)."""
        changed = (rows != torch.arange(len(rows), device=rows.device)).nonzero()[:, 0]
        source = rows[changed]
        for kept in (self.tokens, self.context):
            kept[changed] = kept[source]
        for kept in (self.keys, self.values):
            kept[:, changed, :, : self.at] = kept[:, source, :, : self.at]


class Transformer(nn.Module):
    """See the module's docstring; `outputs` numbers come out at each position, zero before training.

    Raises: ValueError if the grid does not hold `length` positions or heads do not divide the width.
    """

    table: Tensor
    near: Tensor
    places: Tensor

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
        heads: int,
        hidden: int,
        reach: int,
        waves: int,
        nominal: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        grid = tuple(n for n in grid if n > 1) or (1,)
        if prod(grid) != length:
            raise ValueError(f"a grid {grid} does not hold {length} positions")
        if width % heads:
            raise ValueError(f"{heads} heads do not divide a width of {width}")
        self.length, self.levels, self.width, self.heads = length, levels, width, heads
        self.dropout = dropout
        near, table = neighbours(grid, reach), level_features(levels, waves)
        self.register_buffer("near", near, persistent=False)
        self.register_buffer("table", table, persistent=False)
        # the last row stands before the first token
        self.token = edge(nn.Embedding(levels + 1, width)) if nominal else None
        self.look = edge(nn.Linear(near.shape[1] * table.shape[1], width))
        self.axes = nn.ModuleList(edge(nn.Embedding(n, width)) for n in grid)
        self.embed = ConditionEmbedding(conditions, width)
        places = torch.tensor(list(itertools.product(*map(range, grid))))  # (T, axes)
        self.register_buffer("places", places, persistent=False)
        self.blocks = nn.ModuleList(Block(width, heads, hidden, dropout) for _ in range(depth))
        self.leave = edge(zero(nn.Linear(width, outputs)))
        for embedding in (*self.axes, *([] if self.token is None else [self.token])):
            nn.init.normal_(embedding.weight, std=0.5)

    def where(self, places: Tensor) -> Tensor:
        """Grid places (T', axes) to (T', W)."""
        return torch.stack([axis(places[:, a]) for a, axis in enumerate(self.axes)]).sum(0)

    def enter(self, tokens: Tensor, near: Tensor, previous: Tensor) -> Tensor:
        """Embed known tokens.

        Args:
            tokens: (B, S) int64, with "outside" at the last place.
            near: (T', K) places of neighbours in it.
            previous: (B, T') the token just before each position.
        Returns: (B, T', W).
        """
        seen = self.table[tokens[:, near]].flatten(2)  # (B, T', K F)
        h = cast(Tensor, self.look(seen))
        return h if self.token is None else h + self.token(previous)

    def forward(self, tokens: Tensor, cond: Cond) -> Tensor:
        """(B, T) int64 -> (B, T, outputs), where outputs at i depend on tokens before i and the condition alone.

        Raises: ValueError if there are not `length` tokens.
        """
        if tokens.shape[1:] != (self.length,):
            raise ValueError(f"expected (B, {self.length}) tokens, got {tuple(tokens.shape)}")
        outside = tokens.new_full((len(tokens), 1), self.levels)
        h = self.enter(torch.cat([tokens, outside], 1), self.near, torch.cat([outside, tokens[:, :-1]], 1))
        h = h + self.where(self.places)
        c = self.embed(cond, tokens)
        if c is not None:
            h = h + c[:, None]
        if self.dropout:
            h = F.dropout(h, self.dropout, self.training)
        for block in self.blocks:
            h = block(h)
        return cast(Tensor, self.leave(F.layer_norm(h, (self.width,))))  # (B, T, outputs)

    def start(self, n: int, cond: Cond) -> Cache:
        """An empty cache for n sequences."""
        weight = self.look.weight
        tokens = torch.full((n, self.length + 1), self.levels, device=weight.device)
        context = self.embed(cond, tokens)
        if context is None:
            context = weight.new_zeros(n, self.width)
        shape = (len(self.blocks), n, self.heads, self.length, self.width // self.heads)
        return Cache(tokens, weight.new_empty(shape), weight.new_empty(shape), context)

    def next(self, cache: Cache, tokens: Tensor | None) -> Tensor:
        """Outputs at the next position, what `forward` would give there in eval mode.

        Args:
            cache: from `start`; moved on by one position.
            tokens: (n,) int64, the token at the position before; None at the first.
        Returns: (n, outputs).
        """
        i = cache.at
        if (tokens is None) != (i == 0) or i >= self.length:
            raise ValueError(
                f"position {i} of {self.length} cannot follow {'no token' if tokens is None else 'a token'}"
            )
        if tokens is not None:
            cache.tokens[:, i - 1] = tokens
        previous = cache.tokens[:, max(i - 1, 0), None]  # before the first: its own place, still "outside"
        h = self.enter(cache.tokens, self.near[i : i + 1], previous)  # (n, 1, W)
        h = h + self.where(self.places[i : i + 1]) + cache.context[:, None]
        for k, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            q, key, value = block.split(h)
            cache.keys[k, :, :, i], cache.values[k, :, :, i] = key[:, :, 0], value[:, :, 0]
            h = block.join(h, attention(q, cache.keys[k, :, :, : i + 1], cache.values[k, :, :, : i + 1]))
        cache.at += 1
        return cast(Tensor, self.leave(F.layer_norm(h[:, 0], (self.width,))))


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TransformerConfig(TokenNetworkConfig):
    """See Transformer.

    Attributes:
        width: of the residual stream.
        depth: blocks.
        heads: of attention; they divide the width.
        hidden: width of the feed-forward layers.
        reach: grid neighbours within this distance are seen as numbers.
        waves: pairs of cosine and sine by which a level is described, each twice as fast as the one before.
        nominal: the token before also has a learned embedding of its own; without it levels are numbers only.
        dropout: of the embedded input and of each branch.
    """

    kind = "transformer"
    width: int = Field(default=96, ge=1)
    depth: int = Field(default=3, ge=0)
    heads: int = Field(default=4, ge=1)
    hidden: int = Field(default=192, ge=1)
    reach: int = Field(default=3, ge=1)
    waves: int = Field(default=2, ge=0, le=16)
    nominal: bool = True
    dropout: float = Field(default=0.2, ge=0, lt=1)

    def build(
        self, length: int, levels: int, conditions: Mapping[str, int], *, grid: tuple[int, ...], outputs: int
    ) -> Transformer:
        return Transformer(
            length,
            levels,
            outputs,
            conditions,
            grid,
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            hidden=self.hidden,
            reach=self.reach,
            waves=self.waves,
            nominal=self.nominal,
            dropout=self.dropout,
        )
