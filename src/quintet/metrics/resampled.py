"""Fréchet distances of bootstrap resamples where features are many and items few, all from one set of inner products.

A resample takes item i with a multiplicity c_i, so that its mean and its centred items are combinations of items whose
inner products are known. With Kxx, Kxy, Kyy those of both sets,

    |mu_x - mu_y|^2 = c'Kxx c / n^2 + e'Kyy e / m^2 - 2 c'Kxy e / (n m),
    tr A = (c . diag Kxx - c'Kxx c / n) / (n - 1),

and tr (A B)^1/2 is the sum of the singular values of C^1/2 Kxy* E^1/2 / ((n - 1) (m - 1))^1/2, Kxy* being centred by
the resamples' means and C = diag(c), E = diag(e). Rows and columns of items that were not drawn are zero and left out:
63 % stay. Nothing is approximated, and the width of the features is paid for once.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from quintet.metrics.sizes import Array

FEW = 1.5
"""Items for each feature up to which this is faster than covariances of the resamples."""


class Gram:
    """Inner products of two sets of items.

    Args:
        x: (N, d).
        y: (M, d).
    """

    def __init__(self, x: Array, y: Array) -> None:
        centre = np.concatenate([x, y]).mean(axis=0)  # keeps cancellation small
        a, b = x - centre, y - centre
        self.xx, self.xy, self.yy = a @ a.T, a @ b.T, b @ b.T

    def frechet(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> float:
        """The Fréchet distance of the items `rows` of x and `columns` of y, (n,) and (m,), each as often as named."""
        i, c = np.unique(rows, return_counts=True)
        j, e = np.unique(columns, return_counts=True)
        n, m = len(rows), len(columns)
        xx, xy, yy = self.xx[np.ix_(i, i)], self.xy[np.ix_(i, j)], self.yy[np.ix_(j, j)]
        own_x, own_y = float(c @ xx @ c), float(e @ yy @ e)
        along_x, along_y = xy @ e / m, c @ xy / n  # each item's product with the other set's mean
        both = float(c @ along_x) / n
        centred = xy - along_x[:, None] - along_y + both
        centred *= np.sqrt(c)[:, None]
        centred *= np.sqrt(e)
        middle = float(np.linalg.svd(centred, compute_uv=False).sum()) / math.sqrt((n - 1) * (m - 1))
        apart = own_x / n**2 + own_y / m**2 - 2 * both
        spread_x = (float(c @ np.diag(xx)) - own_x / n) / (n - 1)
        spread_y = (float(e @ np.diag(yy)) - own_y / m) / (m - 1)
        return max(apart + spread_x + spread_y - 2 * middle, 0.0)


def few(x: Array, y: Array) -> bool:
    """Whether there are so few items that resamples are best had from inner products."""
    return bool(max(len(x), len(y)) <= FEW * x.shape[1])
