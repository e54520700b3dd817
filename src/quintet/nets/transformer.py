"""A causal Transformer over tokens: tokens in, one row of outputs per position out, with a cached form for sampling.

What it is: a pre-norm decoder with normalised queries and keys, squared-ReLU feed-forward layers and projections that
start at zero, behind the entry of `entry`.
What it is not: a likelihood. It returns numbers; what they mean is the output distribution's business.

Departures: norms are LayerNorm without gain (RMSNorm takes 3.5 times as long on a CPU, forward and backward), of
queries and keys too (Dehghani et al. 2023, section 2, arXiv:2302.05442).

Sources: Vaswani et al. 2017, arXiv:1706.03762; So et al. 2021 (squared ReLU), arXiv:2109.08668.

Shapes: B examples, T positions, W width, H heads.
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
from quintet.nets.layers import attention, edge, zero


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
        qkv = self.qkv(F.layer_norm(h, (w,))).view(b, t, 3, self.heads, d).permute(2, 0, 3, 1, 4)
        q, k = F.layer_norm(qkv[:2], (d,)).unbind(0)
        return q * self.sharpness.exp()[:, None, None], k, qkv[2]

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


@plain_dataclass(frozen=True)
class Step:
    """A block at one position, in eval mode and without gradient to its weights.

    A product with few rows reads each weight once; where weights lie input by input it takes two thirds of the time.

    Attributes:
        qkv, merge, up, down: the block's weights, (inputs, outputs).
        sharpness: (H, 1), factors of the queries.
    """

    qkv: Tensor
    merge: Tensor
    up: Tensor
    down: Tensor
    sharpness: Tensor

    @classmethod
    def of(cls, block: Block) -> Step:
        qkv, merge, up, down = (
            layer.weight.detach().t().contiguous() for layer in (block.qkv, block.merge, block.up, block.down)
        )
        return cls(qkv, merge, up, down, block.sharpness.detach().exp()[:, None])

    def __call__(self, h: Tensor, keys: Tensor, values: Tensor, i: int) -> Tensor:
        """h (n, W) at position i, whose key and value are put beside those before it, (n, H, T, W / H)."""
        heads, d = len(self.sharpness), keys.shape[-1]
        qkv = (F.layer_norm(h, h.shape[1:]) @ self.qkv).view(len(h), 3, heads, d)
        qk = F.layer_norm(qkv[:, :2], (d,))
        keys[:, :, i], values[:, :, i] = qk[:, 1], qkv[:, 2]
        q = (qk[:, 0] * self.sharpness)[:, :, None]  # (n, H, 1, W / H)
        mixed = attention(q, keys[:, :, : i + 1], values[:, :, : i + 1])
        h = h + mixed.flatten(1) @ self.merge
        return h + F.relu(F.layer_norm(h, h.shape[1:]) @ self.up).square() @ self.down


@plain_dataclass
class Cache:
    """What sampling keeps between positions; it lives outside the module.

    Attributes:
        known: tokens and condition.
        steps: the blocks, laid out for one position.
        keys, values: (layers, n, H, T, W / H), filled up to `known.at`.
    """

    known: Known
    steps: Sequence[Step]
    keys: Tensor
    values: Tensor

    def reorder(self, rows: Tensor) -> None:
        """Make row i a copy of row rows[i] (particles that survive a resampling)."""
        changed = (rows != torch.arange(len(rows), device=rows.device)).nonzero()[:, 0]
        source, done = rows[changed], self.known.at
        self.known.reorder(changed, source)
        for kept in (self.keys, self.values):
            kept[:, changed, :, :done] = kept[:, source, :, :done]


class Transformer(nn.Module):
    """See the module's docstring; `outputs` numbers come out at each position, zero before training.

    Raises: ValueError if the grid does not hold `length` positions or heads do not divide the width.
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
        heads: int,
        hidden: int,
        reach: int,
        waves: int,
        nominal: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"{heads} heads do not divide a width of {width}")
        self.length, self.width, self.heads, self.dropout = length, width, heads, dropout
        self.entry = Entry(length, levels, conditions, grid, width=width, reach=reach, waves=waves, nominal=nominal)
        self.blocks = nn.ModuleList(Block(width, heads, hidden, dropout) for _ in range(depth))
        self.leave = edge(zero(nn.Linear(width, outputs)))

    def forward(self, tokens: Tensor, cond: Cond) -> Tensor:
        """(B, T) int64 -> (B, T, outputs), where outputs at i depend on tokens before i and the condition alone.

        Raises: ValueError if there are not `length` tokens.
        """
        h = self.entry(tokens, cond)
        if self.dropout:
            h = F.dropout(h, self.dropout, self.training)
        for block in self.blocks:
            h = block(h)
        return cast(Tensor, self.leave(F.layer_norm(h, (self.width,))))  # (B, T, outputs)

    def start(self, n: int, cond: Cond) -> Cache:
        """An empty cache for n sequences."""
        weight = self.leave.weight
        shape = (len(self.blocks), n, self.heads, self.length, self.width // self.heads)
        steps = [Step.of(cast(Block, block)) for block in self.blocks]
        return Cache(self.entry.start(n, cond), steps, weight.new_empty(shape), weight.new_empty(shape))

    def next(self, cache: Cache, tokens: Tensor | None) -> Tensor:
        """Outputs at the next position, what `forward` would give there in eval mode.

        Args:
            cache: from `start`; moved on by one position.
            tokens: (n,) int64, the token at the position before; None at the first.
        Returns: (n, outputs).
        """
        i = cache.known.at
        h = self.entry.next(cache.known, tokens)[:, 0]  # (n, W)
        for k, step in enumerate(cache.steps):
            h = step(h, cache.keys[k], cache.values[k], i)
        return cast(Tensor, self.leave(F.layer_norm(h, (self.width,))))


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TransformerConfig(TokenNetworkConfig):
    """See Transformer.

    Attributes:
        width: of the residual stream.
        depth: number of blocks.
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
