"""Drawing tokens one after another from a callable that gives logits.

What it is: temperature, top-k and top-p as functions of logits; a draw by inverting the cumulative distribution at one
uniform number per item and position, so that item i depends on its own numbers alone; and the loop over positions.
What it is not: a model or a cache. The callable keeps what it needs.

Sources: Fan et al. 2018 (top-k), arXiv:1805.04833; Holtzman et al. 2020 (top-p), arXiv:1904.09751.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Next = Callable[[Tensor | None], Tensor]
"""The tokens (n,) of the position before, None at the first -> logits (n, levels) of the next position."""


def restrict(logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0) -> Tensor:
    """Logits of the distribution that is drawn from, -inf where a level is excluded.

    Args:
        logits: (..., levels), any normalisation.
        temperature: divides the logits; 0 leaves the likeliest level alone.
        top_k: how many of the likeliest levels stay; the lower level wins a tie.
        top_p: of what top_k left, the smallest set of likeliest levels whose probability reaches it stays.
    Raises: ValueError outside temperature >= 0, top_k >= 1, 0 < top_p <= 1.
    """
    if not 0 <= temperature < float("inf") or (top_k is not None and top_k < 1) or not 0 < top_p <= 1:
        raise ValueError(f"expected temperature >= 0, top_k >= 1, 0 < top_p <= 1, got {temperature}, {top_k}, {top_p}")
    if temperature == 0:
        top_k = 1
    elif temperature != 1:
        logits = logits / temperature
    if (top_k is None or top_k >= logits.shape[-1]) and top_p == 1:
        return logits
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    keep = torch.ones_like(ordered, dtype=torch.bool)
    if top_k is not None:
        keep[..., top_k:] = False
    if top_p < 1:
        p = ordered.masked_fill(~keep, -torch.inf).softmax(-1)
        keep &= p.cumsum(-1) - p < top_p  # what comes before a level has not reached top_p yet
        keep[..., 0] = True
    return logits.masked_fill(~torch.zeros_like(keep).scatter(-1, order, keep), -torch.inf)


def draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """Invert the cumulative distribution: the first level at which it exceeds `uniform`.

    Args:
        logits: (n, levels).
        uniform: (n,) in [0, 1).
    Returns: (n,) int64, never a level of probability zero.
    """
    mass = logits.double().softmax(-1).cumsum(-1)
    return (mass <= uniform.double()[:, None] * mass[:, -1:]).sum(-1)


def generate(following: Next, uniform: Tensor, adjust: Callable[[Tensor], Tensor] = lambda logits: logits) -> Tensor:
    """Draw sequences.

    Args:
        following: gives the next position's logits; called once a position, in order.
        uniform: (n, T) in [0, 1), all the randomness there is.
        adjust: logits (n, levels) to the logits drawn from, such as `restrict`.
    Returns: (n, T) int64.
    """
    tokens: list[Tensor] = []
    for i in range(uniform.shape[1]):
        tokens.append(draw(adjust(following(tokens[-1] if tokens else None)), uniform[:, i]))
    return torch.stack(tokens, 1)
