"""A causal Transformer over real vectors on a grid (patches of an image): one row of outputs per place, cached form.

What it is: the decoder blocks of `transformer` behind another entry. A place does not see itself: its input is the four
neighbours that come before it in raster order (left, upper left, upper, upper right) as plain numbers, its own learned
place and the label; attention brings the rest. What it is not: a flow or a likelihood.

Departure from Zhai et al. 2024, arXiv:2412.06329: the paper shifts its outputs by one place, so that a place sees
its predecessor alone as numbers. Neighbours spare attention the work of finding the row above.

Shapes: B examples, T places of P values, W width, H heads, R x C grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from typing import cast

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from quintet.core.config import STRICT
from quintet.core.recipe import CausalNetworkConfig
from quintet.core.spec import Cond
from quintet.nets.layers import ConditionEmbedding, edge, zero
from quintet.nets.transformer import Block, Step

NEIGHBOURS = ((0, -1), (-1, -1), (-1, 0), (-1, 1))


@plain_dataclass
class CausalCache:
    """What sampling keeps between places; it lives outside the module.

    Attributes:
        x: (n, R + 1, C + 2, P), known places with a border of zeros.
        steps: the blocks, laid out for one place.
        keys, values: (layers, n, H, T, W / H), filled up to `at`.
        context: (n, W) or None, the label's part of every place.
        at: places done.
    """

    x: Tensor
    steps: Sequence[Step]
    keys: Tensor
    values: Tensor
    context: Tensor | None
    at: int = 0


class CausalTransformer(nn.Module):
    """See the module's docstring.

    Raises: ValueError if the grid does not hold `length` places or heads do not divide the width.
    """

    def __init__(
        self,
        length: int,
        size: int,
        outputs: int,
        conditions: Mapping[str, int],
        grid: tuple[int, int],
        *,
        width: int,
        depth: int,
        heads: int,
        hidden: int,
    ) -> None:
        super().__init__()
        if grid[0] * grid[1] != length:
            raise ValueError(f"a grid {grid} does not hold {length} places")
        if width % heads:
            raise ValueError(f"{heads} heads do not divide a width of {width}")
        self.length, self.size, self.grid, self.width, self.heads = length, size, grid, width, heads
        self.enter = edge(nn.Linear(len(NEIGHBOURS) * size, width))
        self.place = nn.Parameter(0.5 * torch.randn(length, width))
        self.embed = ConditionEmbedding(conditions, width)
        self.blocks = nn.ModuleList(Block(width, heads, hidden, 0.0) for _ in range(depth))
        self.leave = edge(zero(nn.Linear(width, outputs)))

    def forward(self, x: Tensor, cond: Cond) -> Tensor:
        """(B, T, P) -> (B, T, outputs), where outputs at i depend on places before i and the condition alone."""
        rows, columns = self.grid
        bordered = F.pad(x.unflatten(1, self.grid), (0, 0, 1, 1, 1, 0))
        near = [bordered[:, 1 + i : 1 + i + rows, 1 + j : 1 + j + columns] for i, j in NEIGHBOURS]
        h = self.enter(torch.cat(near, -1).flatten(1, 2)) + self.place
        c = self.embed(cond, x)
        if c is not None:
            h = h + c[:, None]
        for block in self.blocks:
            h = block(h)
        return cast(Tensor, self.leave(F.layer_norm(h, (self.width,))))

    def start(self, n: int, cond: Cond) -> CausalCache:
        """An empty cache for n examples."""
        weight = self.enter.weight
        x = weight.new_zeros(n, self.grid[0] + 1, self.grid[1] + 2, self.size)
        shape = (len(self.blocks), n, self.heads, self.length, self.width // self.heads)
        steps = [Step.of(cast(Block, block)) for block in self.blocks]
        return CausalCache(x, steps, weight.new_empty(shape), weight.new_empty(shape), self.embed(cond, x))

    def next(self, cache: CausalCache, token: Tensor | None) -> Tensor:
        """Outputs at the next place, what `forward` gives there.

        Args:
            cache: from `start`; moved on by one place.
            token: (n, P), the values of the place before; None at the first.
        Returns: (n, outputs).
        """
        i = cache.at
        if token is not None:
            row, column = divmod(i - 1, self.grid[1])
            cache.x[:, row + 1, column + 1] = token
        row, column = divmod(i, self.grid[1])
        near = [cache.x[:, row + 1 + a, column + 1 + b] for a, b in NEIGHBOURS]
        h = self.enter(torch.cat(near, -1)) + self.place[i]  # (n, W)
        if cache.context is not None:
            h = h + cache.context
        for k, step in enumerate(cache.steps):
            h = step(h, cache.keys[k], cache.values[k], i)
        cache.at += 1
        return cast(Tensor, self.leave(F.layer_norm(h, (self.width,))))


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CausalTransformerConfig(CausalNetworkConfig):
    """See CausalTransformer.

    Attributes:
        width: of a token's vector.
        depth: number of blocks.
        heads: of attention; they divide the width.
        hidden: width of each block's feed-forward layer.
    """

    kind = "causal-transformer"
    width: int = Field(default=128, ge=1)
    depth: int = Field(default=2, ge=1)
    heads: int = Field(default=4, ge=1)
    hidden: int = Field(default=256, ge=1)

    def build(
        self, length: int, size: int, conditions: Mapping[str, int], *, grid: tuple[int, int], outputs: int
    ) -> nn.Module:
        return CausalTransformer(
            length, size, outputs, conditions, grid,
            width=self.width, depth=self.depth, heads=self.heads, hidden=self.hidden,
        )  # fmt: skip
