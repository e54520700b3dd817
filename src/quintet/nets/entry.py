"""How known tokens enter a causal network: as numbers, by place and with the condition, one vector a position.

What it is: tokens laid out on a grid (rows and columns of an image, columns of a table). Each position sees the values
of its already known grid neighbours as plain numbers, a local, ordinal look back that attention or a recurrence would
have to learn from few examples; one learned embedding an axis says where it stands.
What it is not: a network. What lies further back is for the layers behind it.

Source: van den Oord et al. 2016 (causal neighbourhoods of pixels), arXiv:1601.06759.

Shapes: B examples, T positions, K neighbours, F features of a level, W width.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quintet.core.spec import Cond
from quintet.nets.layers import ConditionEmbedding, edge


def neighbours(grid: tuple[int, ...], reach: int) -> Tensor:
    """Which earlier positions of a grid, read in raster order, lie within `reach` steps along every axis.

    Returns: (T, K) int64, row i holding the positions of i's neighbours, nearest offsets in a fixed order; T where an
        offset leaves the grid.
    """
    spans = [min(reach, n - 1) for n in grid]
    offsets = [o for o in itertools.product(*(range(-s, s + 1) for s in spans)) if o < (0,) * len(grid)]
    places = torch.tensor(list(itertools.product(*map(range, grid))))  # (T, axes)
    there = places[:, None] + torch.tensor(offsets, dtype=torch.int64).view(-1, len(grid))  # (T, K, axes)
    inside = ((there >= 0) & (there < torch.tensor(grid))).all(-1)
    steps = torch.tensor([prod(grid[axis + 1 :]) for axis in range(len(grid))])
    return torch.where(inside, (there * steps).sum(-1), prod(grid))


def level_features(levels: int, waves: int) -> Tensor:
    """Each level as numbers that vary smoothly with it, with a last row for "outside the grid".

    Returns: (levels + 1, 2 + 2 waves): inside flag, value in [-1, 1], cosines and sines of 1/2, 1, 2, ... half turns.
    """
    value = torch.linspace(-1, 1, levels)
    angle = value[:, None] * (math.pi / 2) * 2.0 ** torch.arange(waves)  # (levels, waves)
    inside = torch.cat([torch.ones(levels, 1), value[:, None], angle.cos(), angle.sin()], dim=1)
    return torch.cat([inside, torch.zeros(1, inside.shape[1])])


@dataclass
class Known:
    """What sampling knows so far.

    Attributes:
        tokens: (n, T + 1) int64, drawn tokens; "outside" elsewhere.
        context: (n, W), the condition's part of every position.
        where: (T, W), what each position's place adds.
        at: positions done.
    """

    tokens: Tensor
    context: Tensor
    where: Tensor
    at: int = 0

    def reorder(self, rows: Tensor, source: Tensor) -> None:
        """Make the given rows copies of others."""
        for kept in (self.tokens, self.context):
            kept[rows] = kept[source]


class Entry(nn.Module):
    """See the module's docstring.

    Args:
        length, levels, conditions, grid: of the tokens.
        width: W.
        reach: grid neighbours within this distance are seen as numbers.
        waves: pairs of cosine and sine by which a level is described.
        nominal: the token before also has a learned embedding of its own.
    Raises: ValueError if the grid does not hold `length` positions.
    """

    table: Tensor
    near: Tensor
    places: Tensor

    def __init__(
        self,
        length: int,
        levels: int,
        conditions: Mapping[str, int],
        grid: tuple[int, ...],
        *,
        width: int,
        reach: int,
        waves: int,
        nominal: bool,
    ) -> None:
        super().__init__()
        grid = tuple(n for n in grid if n > 1) or (1,)
        if prod(grid) != length:
            raise ValueError(f"a grid {grid} does not hold {length} positions")
        self.length, self.levels, self.width = length, levels, width
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
        for embedding in (*self.axes, *([] if self.token is None else [self.token])):
            nn.init.normal_(embedding.weight, std=0.5)

    def forward(self, tokens: Tensor, cond: Cond) -> Tensor:
        """(B, T) int64 -> (B, T, W), of which position i depends on tokens before i and the condition alone.

        Raises: ValueError if there are not `length` tokens.
        """
        if tokens.shape[1:] != (self.length,):
            raise ValueError(f"expected (B, {self.length}) tokens, got {tuple(tokens.shape)}")
        outside = tokens.new_full((len(tokens), 1), self.levels)
        h = self._values(torch.cat([tokens, outside], 1), self.near, torch.cat([outside, tokens[:, :-1]], 1))
        h = h + self._where(self.places)
        c = self.embed(cond, tokens)
        return h if c is None else h + c[:, None]

    def start(self, n: int, cond: Cond) -> Known:
        """Nothing known of n sequences."""
        weight = self.look.weight
        tokens = torch.full((n, self.length + 1), self.levels, device=weight.device)
        context = self.embed(cond, tokens)
        context = weight.new_zeros(n, self.width) if context is None else context
        return Known(tokens, context, self._where(self.places))

    def next(self, known: Known, tokens: Tensor | None) -> Tensor:
        """(n, 1, W), what `forward` gives at the next position.

        Args:
            known: moved on by one position.
            tokens: (n,) int64, the token at the position before; None at the first.
        Raises: ValueError if there is no next position, or a token where there should be none.
        """
        i = known.at
        if (tokens is None) != (i == 0) or i >= self.length:
            before = "no token" if tokens is None else "a token"
            raise ValueError(f"position {i} of {self.length} cannot follow {before}")
        if tokens is not None:
            known.tokens[:, i - 1] = tokens
        previous = known.tokens[:, max(i - 1, 0), None]  # before the first: its own place, still "outside"
        h = self._values(known.tokens, self.near[i : i + 1], previous)
        known.at += 1
        return h + (known.where[i] + known.context)[:, None]

    def _where(self, places: Tensor) -> Tensor:
        """Grid places (T', axes) to (T', W)."""
        return torch.stack([axis(places[:, a]) for a, axis in enumerate(self.axes)]).sum(0)

    def _values(self, tokens: Tensor, near: Tensor, previous: Tensor) -> Tensor:
        """Embed known tokens.

        Args:
            tokens: (B, S) int64, with "outside" at the last place.
            near: (T', K) places of neighbours in it.
            previous: (B, T') the token just before each position.
        Returns: (B, T', W).
        """
        seen = F.embedding(tokens[:, near], self.table).flatten(2)  # (B, T', K F)
        h = cast(Tensor, self.look(seen))
        return h if self.token is None else h + self.token(previous)
