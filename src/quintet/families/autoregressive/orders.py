"""The order in which the values of an example are drawn: the chain rule holds in any, but some are easier to learn.

What it is: readings of a grid line by line, each a permutation of positions that is again a raster of a grid, so that a
network can use neighbourhoods.
What it is not: a random order or an order that depends on the data.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
from torch import Tensor

OrderName = Literal["rows", "columns", "pixels"]


@dataclass(frozen=True)
class Order:
    """A grid read with its axes permuted, the last one fastest.

    Attributes:
        shape: of the grid as it lies in the data.
        axes: which axis of it is read first (slowest), second, ...
    """

    shape: tuple[int, ...]
    axes: tuple[int, ...]

    def __post_init__(self) -> None:
        if sorted(self.axes) != list(range(len(self.shape))):
            raise ValueError(f"axes {self.axes} do not permute those of a grid {self.shape}")

    @property
    def grid(self) -> tuple[int, ...]:
        """The grid as it is read."""
        return tuple(self.shape[a] for a in self.axes)

    @property
    def positions(self) -> Tensor:
        """(T,) int64: the k-th value read is that at flat place positions[k] of the data."""
        return torch.arange(prod(self.shape)).view(self.shape).permute(self.axes).flatten()


def order(name: OrderName, shape: tuple[int, ...]) -> Order:
    """How a grid is read: "rows" as it lies, "columns" with the last two axes swapped, "pixels" with the first last.

    An image (channels, rows, columns) read by "pixels" gives all channels of a pixel one after another. Of one axis
    there is nothing to move.
    """
    axes = list(range(len(shape)))
    if name == "columns" and len(axes) > 1:
        axes[-2:] = axes[:-3:-1]
    elif name == "pixels":
        axes = [*axes[1:], 0]
    return Order(tuple(shape), tuple(axes))
