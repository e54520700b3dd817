"""Layers that several networks share. Tensors in, tensors out; conditions enter through `ConditionEmbedding` alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quintet.core.spec import UNCONDITIONAL, Cond

L = TypeVar("L", bound=nn.Module)


def edge(layer: L) -> L:
    """Mark a layer at the network's edge (input, output, modulation), whose matrix Muon leaves to AdamW."""
    layer.edge = True  # type: ignore[assignment]
    return layer


W = TypeVar("W", nn.Linear, nn.Conv2d)


def zero(layer: W) -> W:
    """Initialise a linear layer or convolution to zero, so that a residual branch or an output starts at nothing."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """Scaled dot-product attention, the project's only one; `core.numerics` says how it is computed in bfloat16.

    Args:
        q: (B, H, T, D). k, v: (B, H, S, D).
        causal: position i sees positions 0..i (needs T == S).
    Returns: (B, H, T, D).
    Source: Vaswani et al. 2017, eq. 1, arXiv:1706.03762.
    """
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal)


def rms_norm(x: Tensor) -> Tensor:
    """x (..., D) divided by the root mean square of its last axis, whose sum is float32 whatever the dtype.

    Written out, because the backward pass of torch's own takes up to four times as long on a CPU.
    Source: Zhang & Sennrich 2019, eq. 4, arXiv:1910.07467, without gain.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True, dtype=wide) + 1e-6).to(x.dtype)


class ConditionEmbedding(nn.Module):
    """Labels to a vector: the sum of one embedding a field, each with an extra row for "unconditional".

    Args:
        conditions: field -> number of classes.
        width: of the vector.
    """

    def __init__(self, conditions: Mapping[str, int], width: int) -> None:
        super().__init__()
        self.tables = nn.ModuleDict({name: nn.Embedding(n + 1, width) for name, n in sorted(conditions.items())})
        for table in self.tables.values():
            nn.init.normal_(table.weight, std=width**-0.5)  # type: ignore[arg-type]

    def forward(self, cond: Cond, like: Tensor) -> Tensor | None:
        """(B, width), or None where there are no fields. `like` gives the batch size and device.

        Raises: ValueError for a field this network was not built with, or a class out of range.
        """
        unknown = set(cond) - set(self.tables)
        if unknown:
            raise ValueError(f"unknown conditions {sorted(unknown)}; this model has {sorted(self.tables)}")
        total: Tensor | None = None
        for name, table in self.tables.items():
            assert isinstance(table, nn.Embedding)
            null = table.num_embeddings - 1
            index = cond.get(name)
            if index is None:
                index = torch.full((len(like),), null, device=like.device)
            index = torch.where(index == UNCONDITIONAL, null, index)
            part = table(index)
            total = part if total is None else total + part
        return total


class FourierTime(nn.Module):
    """A scalar per example to `width` sines and cosines with geometrically spaced frequencies from 1/4 to `top` turns.

    Source: Vaswani et al. 2017, section 3.5, for real t in [0, 1].
    """

    frequencies: Tensor

    def __init__(self, width: int, top: float = 64.0) -> None:
        super().__init__()
        if width % 2:
            raise ValueError(f"width must be even, got {width}")
        turns = torch.exp(torch.linspace(math.log(0.25), math.log(top), width // 2))
        self.register_buffer("frequencies", 2 * math.pi * turns, persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        """(B,) to (B, width)."""
        angle = t[:, None] * self.frequencies.to(t.dtype)
        return torch.cat([angle.cos(), angle.sin()], dim=1) * 2**0.5


class ContextVector(nn.Module):
    """Time and conditions to one vector, from which a network makes its modulation.

    Args:
        conditions: field -> number of classes.
        width: of the vector.
        time: whether there is a time.
    """

    def __init__(self, conditions: Mapping[str, int], width: int, *, time: bool) -> None:
        super().__init__()
        self.embed = ConditionEmbedding(conditions, width)
        self.time = nn.Sequential(FourierTime(64), edge(nn.Linear(64, width))) if time else None
        self.bias = nn.Parameter(torch.zeros(width))
        self.mix = nn.Linear(width, width)

    def forward(self, cond: Cond, t: Tensor | None, like: Tensor) -> Tensor:
        """t (B,) and the conditions of the batch of `like` (B, ...) to (B, width).

        Raises: ValueError if built with time and t is None, or for a condition it was not built with.
        """
        c = self.bias.expand(len(like), -1)
        if self.time is not None:
            if t is None:
                raise ValueError("this network was built with time and needs t")
            c = c + self.time(t.to(like.dtype))
        labels = self.embed(cond, like)
        if labels is not None:
            c = c + labels * labels.shape[1] ** 0.5  # entries of unit size, as those of the time
        return F.silu(self.mix(F.silu(c)))
