"""Comparisons of distances between wide rows: found in float32, decided in float64 where float32 does not tell.

What it is: which pairs of two sets are nearer than a limit, and the distance of every item to its k-th neighbour, with
the outcome of exact distances at less than half their cost. What it is not: an approximate search.

A squared distance |u|^2 + |v|^2 - 2 u.v of rows about a common centre errs in float32 by at most slack (|u|^2 + |v|^2):
the product of d numbers by a few times sqrt(d) 2^-24 |u| |v|, the rest by a few roundings.

Source: Higham & Mary 2019, theorem 2.4 (with lambda = 8, which one product in 10^13 exceeds), SIAM J. Sci. Comput. 41.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quintet.metrics.distances import Centred, squared_distances
from quintet.metrics.sizes import Array, Features, matrix, one_width

Indices = NDArray[np.int64]

HELD = 2**21
"""Distances of a block: 8 MB."""

PAIRS = 512
"""Pairs whose exact distances are computed at once."""

LARGEST = 1e15
"""Rows with entries above it, or all below its inverse, are scaled: their squares would leave float32's range."""


class Pairs(NamedTuple):
    """Items of the two sets, pair by pair."""

    first: Indices
    second: Indices


class Screen:
    """One of the sets that are compared.

    Args:
        x: (N, d).
        centre: (d,), near which rows lie.
        scale: of the rows; both are the same for all that are compared.
    """

    def __init__(self, x: Features, centre: Array, scale: float) -> None:
        self.x, self.scale = x, scale
        self.rows = Centred(x * scale if scale != 1 else x, centre * scale).rows
        self.square = np.concatenate([_squares(self.rows[i : i + PAIRS]) for i in range(0, len(x), PAIRS)])
        self.slack = (8 * math.sqrt(x.shape[1]) + 8) * 2**-24

    def blocks(self, other: Screen) -> Iterator[Block]:
        """All pairs, some rows of this set after the other."""
        step = max(1, HELD // len(other.x))
        for start in range(0, len(self.x), step):
            least = self.rows[start : start + step] @ other.rows.T
            least *= -2
            least += ((1 - self.slack) * self.square[start : start + step, None]).astype(np.float32)
            least += ((1 - self.slack) * other.square).astype(np.float32)
            yield Block(self, other, start, least)

    def radii(self, k: int) -> Array:
        """Squared distances (N,) to the k-th of the other items."""
        return np.concatenate([block.radii(k) for block in self.blocks(self)])


@dataclass(frozen=True)
class Block:
    """Lower bounds of squared distances between rows of one set, from `start`, and all of another."""

    one: Screen
    other: Screen
    start: int
    least: NDArray[np.float32]

    def below(self, limit: Array) -> Pairs:
        """Pairs whose squared distance is below `limit`, (N, 1) a row or (1, M) a column, in the sets' own units."""
        bound = limit * self.one.scale**2
        i, j = np.nonzero(self.least < (bound * (1 + 2**-22)).astype(np.float32))
        limits, bounds = (np.broadcast_to(v, self.least.shape)[i, j] for v in (limit, bound))
        found = self._most(i, j) < bounds
        doubtful = np.flatnonzero(~found)
        found[doubtful] = self._exact(i[doubtful], j[doubtful]) < limits[doubtful]
        return Pairs(i[found] + self.start, j[found])

    def radii(self, k: int) -> Array:
        """Squared distances of the block's rows to their k-th neighbours, an item being no neighbour of itself."""
        n = len(self.least)
        self.least[np.arange(n), self.start + np.arange(n)] = np.inf
        low = np.partition(self.least, k - 1, axis=1)[:, k - 1].astype(np.float64)  # the k-th distance is no less
        mine = self.one.square[self.start : self.start + n]
        high = low + 2 * self.one.slack * (mine + self.other.square.max())  # and no more
        i, j = np.nonzero(self.least <= (high * (1 + 2**-22))[:, None].astype(np.float32))
        nearer = self._most(i, j) < low[i]
        rank = k - 1 - np.bincount(i[nearer], minlength=n)
        i, j = i[~nearer], j[~nearer]
        squared = self._exact(i, j)
        order = np.lexsort((squared, i))
        radii: Array = squared[order][np.searchsorted(i, np.arange(n)) + rank]
        return radii

    def _most(self, i: Indices, j: Indices) -> Array:
        """Upper bounds of squared distances."""
        width = 2 * self.one.slack * (self.one.square[self.start + i] + self.other.square[j])
        most: Array = self.least[i, j] + width
        return most

    def _exact(self, i: Indices, j: Indices) -> Array:
        """Squared distances in the sets' own units."""
        x, y = self.one.x[self.start : self.start + len(self.least)], self.other.x
        if len(i) > self.least.size / 16:  # hardly any tells: duplicates, or values of very different sizes
            all_of_them: Array = squared_distances(matrix(x), matrix(y))[i, j]
            return all_of_them
        parts = [
            _squares(np.subtract(x[i[p : p + PAIRS]], y[j[p : p + PAIRS]], dtype=np.float64))
            for p in range(0, len(i), PAIRS)
        ]
        return np.concatenate(parts) if parts else np.zeros(0)


def screens(x: Features, y: Features) -> tuple[Screen, Screen]:
    """Two sets of rows made ready to be compared.

    Args:
        x: (N, d), at least one. y: (M, d), whose mean is the centre.
    Raises: ValueError for different widths.
    """
    one_width(x, y)
    centre = y.mean(axis=0, dtype=np.float64)
    largest = max(float(np.abs([v.min(), v.max()]).max()) for v in (x, y))
    scale = 1.0 if 1 / LARGEST < largest < LARGEST else 1 / (largest or 1.0)
    return Screen(x, centre, scale), Screen(y, centre, scale)


def _squares(x: NDArray[np.floating]) -> Array:
    """Sums of squares along rows, float64."""
    wide: Array = x.astype(np.float64, copy=False)
    total: Array = np.einsum("nd,nd->n", wide, wide)
    return total
