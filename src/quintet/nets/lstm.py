"""A recurrent network over tokens: long short-term memory, one row of outputs per position, with a cached form.

What it is: the entry of `entry` (so that in an image it sees the row above as numbers), then torch's LSTM. Its memory
of what lies further back is a vector of fixed size, so a position costs the same however many came before.
What it is not: a likelihood. It returns numbers; what they mean is the output distribution's business.

Sources: Hochreiter & Schmidhuber 1997; Gers, Schmidhuber & Cummins 2000 (forget gates, whose biases start at 1).

Shapes: B examples, T positions, W width.
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
from quintet.nets.entry import Entry, Known
from quintet.nets.layers import edge, zero


@plain_dataclass
class Cache:
    """What sampling keeps between positions; it lives outside the module.

    Attributes:
        known: tokens and condition.
        hidden, cell: (layers, n, W), the layers' outputs and memories.
    """

    known: Known
    hidden: Tensor
    cell: Tensor

    def reorder(self, rows: Tensor) -> None:
        """Make row i a copy of row rows[i] (particles that survive a resampling)."""
        changed = (rows != torch.arange(len(rows), device=rows.device)).nonzero()[:, 0]
        self.known.reorder(changed, rows[changed])
        self.hidden, self.cell = self.hidden[:, rows], self.cell[:, rows]


class Lstm(nn.Module):
    """See the module's docstring; `outputs` numbers come out at each position, zero before training.

    Raises: ValueError if the grid does not hold `length` positions.
    """

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
        reach: int,
        waves: int,
        nominal: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        self.width, self.dropout = width, dropout
        self.entry = Entry(length, levels, conditions, grid, width=width, reach=reach, waves=waves, nominal=nominal)
        self.layers = nn.LSTM(width, width, depth, batch_first=True, dropout=dropout if depth > 1 else 0.0)
        self.leave = edge(zero(nn.Linear(width, outputs)))
        for name, bias in self.layers.named_parameters():
            if name.startswith("bias_ih"):
                nn.init.ones_(bias.data[width : 2 * width])  # torch's order: input, forget, cell, output

    def forward(self, tokens: Tensor, cond: Cond) -> Tensor:
        """(B, T) int64 -> (B, T, outputs), where outputs at i depend on tokens before i and the condition alone.

        Raises: ValueError if there are not `length` tokens.
        """
        h, _ = self.layers(self._drop(self.entry(tokens, cond)))
        return self._leave(h)

    def start(self, n: int, cond: Cond) -> Cache:
        """An empty cache for n sequences."""
        zeros = self.leave.weight.new_zeros(self.layers.num_layers, n, self.width)
        return Cache(self.entry.start(n, cond), zeros, zeros)

    def next(self, cache: Cache, tokens: Tensor | None) -> Tensor:
        """Outputs at the next position, what `forward` would give there in eval mode.

        Args:
            cache: from `start`; moved on by one position.
            tokens: (n,) int64, the token at the position before; None at the first.
        Returns: (n, outputs).
        """
        x = self.entry.next(cache.known, tokens)  # (n, 1, W)
        h, (cache.hidden, cache.cell) = self.layers(x, (cache.hidden, cache.cell))
        return self._leave(h[:, 0])

    def _drop(self, h: Tensor) -> Tensor:
        return F.dropout(h, self.dropout, self.training) if self.dropout else h

    def _leave(self, h: Tensor) -> Tensor:
        return cast(Tensor, self.leave(self._drop(F.layer_norm(h, (self.width,)))))


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LstmConfig(TokenNetworkConfig):
    """See Lstm.

    Attributes:
        width: of the entry and of each layer's memory.
        depth: number of layers.
        reach: grid neighbours within this distance are seen as numbers.
        waves: pairs of cosine and sine by which a level is described, each twice as fast as the one before.
        nominal: the token before also has a learned embedding of its own; without it levels are numbers only.
        dropout: of the embedded input, between layers and before the outputs.
    """

    kind = "lstm"
    width: int = Field(default=128, ge=1)
    depth: int = Field(default=2, ge=1)
    reach: int = Field(default=2, ge=1)
    waves: int = Field(default=2, ge=0, le=16)
    nominal: bool = True
    dropout: float = Field(default=0.1, ge=0, lt=1)

    def build(
        self, length: int, levels: int, conditions: Mapping[str, int], *, grid: tuple[int, ...], outputs: int
    ) -> Lstm:
        return Lstm(
            length,
            levels,
            outputs,
            conditions,
            grid,
            width=self.width,
            depth=self.depth,
            reach=self.reach,
            waves=self.waves,
            nominal=self.nominal,
            dropout=self.dropout,
        )
