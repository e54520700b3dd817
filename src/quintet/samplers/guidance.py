"""Guidance: stronger conditions at sampling time, with one meaning of the scale for every family.

Sources: Ho & Salimans 2022, "Classifier-free diffusion guidance", arXiv:2207.12598, eq. 6; their w is our scale - 1;
Kynkaanniemi et al. 2024 (guidance in an interval alone), arXiv:2404.07724.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import torch
from torch import Tensor

from quintet.core.spec import Cond

At = TypeVar("At")
"""Where on its way a sampler is: times (B,), or the number of a table's row."""

Predictor = Callable[[Tensor, At, Cond], Tensor]


def guided(
    predict: Predictor[At],
    cond: Cond | None,
    scale: float,
    within: Callable[[At], Tensor | bool] | None = None,
) -> Callable[[Tensor, At], Tensor]:
    """Bind a condition to a predictor: unconditional + scale * (conditional - unconditional).

    Args:
        predict: (x (B, *E), at, cond) -> (B, *E), linear in what guidance should extrapolate (velocity, noise, clean
            data, score, logits); an empty cond is unconditional.
        cond: name -> (B,); None or empty means unconditional, whatever the scale.
        scale: 1 = plain conditional (one evaluation), 0 = unconditional (one), anything else costs two.
        within: where the scale applies, a bool or (B,) bool; elsewhere it is 1. None: everywhere.
    Returns: (x, at) -> (B, *E).
    """
    if not cond or (scale == 0 and within is None):
        return lambda x, at: predict(x, at, {})
    if scale == 1:
        return lambda x, at: predict(x, at, cond)
    # -1 in a row is unconditional: both halves go through the network as one batch.
    both = {name: torch.cat([torch.full_like(value, -1), value]) for name, value in cond.items()}

    def combine(x: Tensor, at: At) -> Tensor:
        here = True if within is None else within(at)
        if here is False:
            return predict(x, at, cond)
        twice = cast(At, torch.cat([at, at])) if isinstance(at, Tensor) else at
        without, given = predict(torch.cat([x, x]), twice, both).chunk(2)
        if here is True:
            return without + scale * (given - without)
        assert isinstance(here, Tensor)
        each = torch.where(here, scale, 1.0).to(x.dtype)
        return without + each.reshape(-1, *[1] * (x.ndim - 1)) * (given - without)

    return combine
