"""Layers that several networks share. Tensors in, tensors out; conditions enter through `ConditionEmbedding` alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from quintet.core.spec import UNCONDITIONAL, Cond

L = TypeVar("L", bound=nn.Module)


def edge(layer: L) -> L:
    """Mark a layer at the network's edge (input, output, modulation), whose matrix Muon leaves to AdamW."""
    layer.edge = True  # type: ignore[assignment]
    return layer


def zero(layer: nn.Linear) -> nn.Linear:
    """Initialise a linear layer to zero, so that a residual branch or an output starts at nothing."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


@contextmanager
def higher_order() -> Iterator[None]:
    """Run attention by its elementary operations, which have double backward and forward mode; flash kernels do not."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


def attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """Scaled dot-product attention, the project's only one.

    Args:
        q: (B, H, T, D). k, v: (B, H, S, D).
        causal: position i sees positions 0..i (needs T == S).
    Returns: (B, H, T, D).
    Source: Vaswani et al. 2017, eq. 1, arXiv:1706.03762.
    """
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal)


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
