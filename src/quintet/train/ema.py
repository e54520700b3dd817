"""Power-function averages of the parameters: two widths are kept, and the better one is chosen after training.

The average's profile is t^gamma, so its length grows with the run and no half-life has to be guessed beforehand.

Source: Karras et al. 2024, "Analyzing and improving the training dynamics of diffusion models", eqs. 1, 16-18 and
algorithm 2, arXiv:2312.02696.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from quintet.train import shards


def gamma_of_width(width: float) -> float:
    """The exponent gamma whose profile has this standard deviation, as a share of the training length.

    Raises: ValueError unless 0 < width < 0.29, the widest that exists.
    """
    if not 0 < width < 0.29:
        raise ValueError(f"a relative width lies between 0 and 0.29, got {width}")
    inverse = width**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


class Ema:
    """Averages of one list of parameters; of sharded ones, each process has its rows.

    Args:
        named: name -> parameter, in a fixed order.
        widths: relative widths, such as (0.05, 0.10).
    """

    def __init__(self, named: dict[str, nn.Parameter], widths: Sequence[float]) -> None:
        self.names, self.params = list(named), list(named.values())
        self.values = [shards.local(p) for p in self.params]
        self.widths = tuple(widths)
        self.gammas = [gamma_of_width(width) for width in self.widths]
        self.averages = [[p.detach().clone() for p in self.values] for _ in self.widths]
        self.updates = 0

    @torch.no_grad()
    def update(self) -> None:
        """Take in the parameters after one more step."""
        self.updates += 1
        for gamma, average in zip(self.gammas, self.averages, strict=True):
            keep = (1 - 1 / self.updates) ** (gamma + 1)
            torch._foreach_lerp_(average, self.values, 1 - keep)

    @contextmanager
    def applied(self, which: int) -> Iterator[None]:
        """Inside the block the parameters, none of them sharded, hold average `which`; then what they held before."""
        live = [p.data for p in self.params]
        try:
            for p, average in zip(self.params, self.averages[which], strict=True):
                p.data = average
            yield
        finally:
            for p, value in zip(self.params, live, strict=True):
                p.data = value

    @torch.no_grad()
    def keep(self, which: int) -> None:
        """Put average `which` into the parameters for good."""
        torch._foreach_copy_(self.values, self.averages[which])

    def tensors(self, which: int) -> Iterator[tuple[str, Tensor]]:
        """Name and whole average, for a checkpoint. All processes must take all of them."""
        for name, p, average in zip(self.names, self.params, self.averages[which], strict=True):
            yield name, shards.whole(average, p)

    def load(self, which: int, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `tensors` gave."""
        with torch.no_grad():
            for name, p, average in zip(self.names, self.params, self.averages[which], strict=True):
                average.copy_(shards.rows_of(tensors[name], p))
