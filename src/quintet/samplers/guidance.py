"""Guidance: stronger conditions at sampling time, with one meaning of the scale for every family.

Source: Ho & Salimans 2022, "Classifier-free diffusion guidance", arXiv:2207.12598, eq. 6; their w is our scale - 1.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from quintet.core.spec import Cond

Predictor = Callable[[Tensor, Tensor, Cond], Tensor]


def guided(predict: Predictor, cond: Cond | None, scale: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Bind a condition to a predictor: unconditional + scale * (conditional - unconditional).

    Args:
        predict: (x (B, *E), t (B,), cond) -> (B, *E), linear in what guidance should extrapolate (velocity, noise,
            clean data, score, logits); an empty cond is unconditional.
        cond: name -> (B,); None or empty means unconditional, whatever the scale.
        scale: 1 = plain conditional (one evaluation), 0 = unconditional (one), anything else costs two.
    Returns: (x, t) -> (B, *E).
    """
    if not cond or scale == 0:
        return lambda x, t: predict(x, t, {})
    if scale == 1:
        return lambda x, t: predict(x, t, cond)
    # -1 in a row is unconditional: both halves go through the network as one batch.
    both = {name: torch.cat([torch.full_like(value, -1), value]) for name, value in cond.items()}

    def combine(x: Tensor, t: Tensor) -> Tensor:
        without, given = predict(torch.cat([x, x]), torch.cat([t, t]), both).chunk(2)
        return without + scale * (given - without)

    return combine
