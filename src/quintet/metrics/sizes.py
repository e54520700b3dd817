"""How many samples a metric needs, and the intervals that several metrics share.

A metric that has too few samples is null with its reason, never 0 or NaN.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import adaptive_avg_pool2d

from quintet.core.results import Estimate

Array = NDArray[np.float64]
Features = NDArray[np.floating[Any]]

Z95 = 1.959963984540054
"""Half-width of a 95 % normal interval in standard errors."""

SMALL = 32
"""Pixels along the longer side of an image in pixel space."""

NEEDED = {
    "kid": 4, "fd": 10, "c2st": 10, "cas": 20, "precision": 10, "recall": 10, "density": 10, "coverage": 10,
    "modes": 10, "memorisation": 20, "copies": 20, "bits_per_dim": 2, "sharpness": 4,
    "c_t": 20, "authenticity": 10, "vendi": 20,
}  # fmt: skip
"""Smallest number of items on each side with which a metric says anything, by the metric's name before any suffix."""


def unavailable(reason: str, n: int | None = None) -> Estimate:
    """A null result with its reason."""
    return Estimate(value=None, n=n, protocol=reason)


def too_few(metric: str, *counts: int) -> Estimate | None:
    """The null result "not available (n=...)" where any count is below what `metric` needs, else None."""
    n, needed = min(counts), NEEDED[metric]
    return unavailable(f"not available (n={n}, needs {needed})", n) if n < needed else None


def normal(
    value: float,
    se: float,
    n: int,
    protocol: str,
    floor: float = -math.inf,
    ceiling: float = math.inf,
) -> Estimate:
    """An estimate with a 95 % normal interval, cut at the quantity's range."""
    return Estimate(
        value=float(value),
        low=float(min(max(value - Z95 * se, floor), value)),
        high=float(max(min(value + Z95 * se, ceiling), value)),
        n=int(n),
        protocol=protocol,
    )


def proportion(share: float, n: int, protocol: str) -> Estimate:
    """A share of n independent items with Wilson's 95 % interval.

    Source: Wilson 1927, J. Am. Stat. Assoc. 22, p. 209.
    """
    z2 = Z95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return Estimate(
        value=float(share),
        low=float(min(max(centre - half, 0.0), share)),
        high=float(max(min(centre + half, 1.0), share)),
        n=int(n),
        protocol=protocol,
    )


def rows(x: NDArray[np.generic]) -> Features:
    """Items as rows (N, d), of float32 if that is what they are, else of float64.

    Raises: ValueError for non-finite values.
    """
    kind = np.float32 if np.asarray(x).dtype == np.float32 else np.float64
    flat = np.ascontiguousarray(np.asarray(x, dtype=kind).reshape(len(x), math.prod(np.shape(x)[1:])))
    if not np.isfinite(flat).all():
        raise ValueError("features hold NaN or infinite values")
    return flat


def matrix(x: NDArray[np.generic]) -> Array:
    """Items as float64 rows (N, d).

    Raises: ValueError for non-finite values.
    """
    return rows(x).astype(np.float64, copy=False)


def one_width(a: Features, b: Features) -> None:
    """Raises: ValueError for sets of rows of different widths."""
    if len(a) and len(b) and a.shape[1] != b.shape[1]:
        raise ValueError(f"two sets of features have one width, got {a.shape[1]} and {b.shape[1]}")


def pair(x: NDArray[np.generic], y: NDArray[np.generic]) -> tuple[Array, Array]:
    """Two sets of items as float64 rows of one width.

    Raises: ValueError for different widths or non-finite values.
    """
    a, b = matrix(x), matrix(y)
    one_width(a, b)
    return a, b


def small(x: NDArray[np.generic]) -> NDArray[np.generic]:
    """Images with a side above SMALL averaged over areas so that their longer side is SMALL; all else as it is.

    Distances between raw values need no more: what is finer is noise to them, and a copy stays a copy. The judge's
    network and sharpness see images at full size.

    Args:
        x: (N, C, H, W), or items of another shape.
    """
    if x.ndim != 4 or max(x.shape[-2:]) <= SMALL:
        return x
    scale = SMALL / max(x.shape[-2:])
    size = (max(1, round(x.shape[-2] * scale)), max(1, round(x.shape[-1] * scale)))
    parts = [
        adaptive_avg_pool2d(torch.from_numpy(np.asarray(x[i : i + 256], np.float32)), size).numpy()
        for i in range(0, len(x), 256)
    ]
    return np.concatenate(parts)
