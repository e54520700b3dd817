"""A recurrent network over tokens: long short-term memory, one row of outputs per position, with a cached form.

What it is: the entry of `entry` (so that in an image it sees the row above as numbers), then torch's LSTM. Its memory
of what lies further back is a vector of fixed size, so a position costs the same however many came before.
What it is not: a likelihood. It returns numbers; what they mean is the output distribution's business.

Sources: Hochreiter & Schmidhuber 1997; Gers, Schmidhuber & Cummins 2000 (forget gates, whose biases start at 1).

Shapes: B examples, T positions, W width.
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
from quintet.core.recipe import TokenNetworkConfig
from quintet.core.spec import Cond
from quintet.nets.entry import Entry, Known
from quintet.nets.layers import edge, zero


@plain_dataclass(frozen=True)
class Step:
    """One layer at one position, by one product; torch's own lays its weights out anew in every call.

    Attributes:
        weight: (2 W, 4 W), of the input and of the layer's last output; columns are input, forget, cell and output.
        bias: (4 W,).
    """

    weight: Tensor
    bias: Tensor

    @classmethod
    def of(cls, layers: nn.LSTM, k: int) -> Step:
        """The k-th of torch's layers."""
        of_input, of_hidden, first, second = (p.detach() for p in layers.all_weights[k])
        return cls(torch.cat([of_input, of_hidden], 1).t().contiguous(), first + second)

    def __call__(self, x: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """The next output and memory; all (n, W)."""
        gates = torch.addmm(self.bias, torch.cat([x, hidden], 1), self.weight)
        enter, forget, new, leave = gates.chunk(4, 1)
        cell = forget.sigmoid() * cell + enter.sigmoid() * new.tanh()
        return leave.sigmoid() * cell.tanh(), cell


@plain_dataclass
class Cache:
    """What sampling keeps between positions; it lives outside the module.

    Attributes:
        known: tokens and condition.
        steps: the layers, laid out for one position.
        hidden, cell: each layer's outputs and memories, (n, W).
    """

    known: Known
    steps: Sequence[Step]
    hidden: list[Tensor]
    cell: list[Tensor]

    def reorder(self, rows: Tensor) -> None:
        """Make row i a copy of row rows[i] (particles that survive a resampling)."""
        changed = (rows != torch.arange(len(rows), device=rows.device)).nonzero()[:, 0]
        self.known.reorder(changed, rows[changed])
        self.hidden, self.cell = ([kept[rows] for kept in each] for each in (self.hidden, self.cell))


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
        steps = [Step.of(self.layers, k) for k in range(self.layers.num_layers)]
        zeros = [self.leave.weight.new_zeros(n, self.width)] * len(steps)
        return Cache(self.entry.start(n, cond), steps, zeros, list(zeros))

    def next(self, cache: Cache, tokens: Tensor | None) -> Tensor:
        """Outputs at the next position, what `forward` would give there in eval mode.

        Args:
            cache: from `start`; moved on by one position.
            tokens: (n,) int64, the token at the position before; None at the first.
        Returns: (n, outputs).
        """
        h = self.entry.next(cache.known, tokens)[:, 0]  # (n, W)
        for k, step in enumerate(cache.steps):
            h, cache.cell[k] = step(h, cache.hidden[k], cache.cell[k])
            cache.hidden[k] = h
        return self._leave(h)

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
