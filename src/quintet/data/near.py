"""Near duplicates: pictures that are one picture encoded, resized or mirrored again.

Two pictures count as near duplicates if their pixels differ by at most 0.03 of the range (root mean square) and
correlate by at least 0.98, one of them possibly mirrored left to right. Candidates come from the leading principal
components of a picture's averages on a 16x16 grid, where near duplicates are near.
What it is not: a search for other photographs of one scene, for crops, or for turned or recoloured pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

GRID = 16
DIFFERENCE, CORRELATION = 0.03, 0.98
COMPONENTS = 12
MOST = 200_000
"""Pictures that are searched at most; more would take minutes."""
MOST_PAIRS = 5_000_000
COMMON = 0.1
"""Share of the pictures above which a group of near duplicates is how the data look, and separates nothing."""
CHUNK, BLOCK = 2048, 512

Read = Callable[[NDArray[np.int64]], NDArray[np.generic]]


@dataclass(frozen=True)
class Near:
    """What was found.

    Attributes:
        group: (N,) int64, pictures with one number are near duplicates of one another.
        examples: pictures that have a near duplicate.
        skipped: "", or why the groups say nothing: "many" pictures, or all look "alike".
    """

    group: NDArray[np.int64]
    examples: int = 0
    skipped: str = ""


def find_near(read: Read, n: int, white: int) -> Near:
    """Near duplicates among n pictures that are no exact copies of one another.

    Args:
        read: rows -> (B, C, H, W) levels.
        n: number of pictures.
        white: the highest level.
    """
    alone = np.arange(n, dtype=np.int64)
    if n < 2:
        return Near(alone)
    if n > MOST:
        return Near(alone, skipped="many")
    plain, mirrored = _averages(read, n, white)
    centre = plain.mean(0)
    some = plain[:: max(1, n // 5000)] - centre
    axes = np.linalg.svd(some, full_matrices=False)[2][:COMPONENTS].T
    here = (plain - centre) @ axes
    pairs = []
    for turned in (False, True):
        there = (mirrored - centre) @ axes if turned else here
        close = _close(here, there)
        if close is None:
            return Near(alone, skipped="alike")
        for k in range(0, len(close), CHUNK):
            i, j = close[k : k + CHUNK].T
            a, b = read(i), read(j)
            pairs.append(close[k : k + CHUNK][_same(a, b[..., ::-1] if turned else b, white)])
    found = np.unique(np.concatenate(pairs), axis=0) if pairs else np.empty((0, 2), np.int64)
    if not len(found):
        return Near(alone)
    links = coo_matrix((np.ones(len(found)), (found[:, 0], found[:, 1])), shape=(n, n))
    group = connected_components(links, directed=False)[1].astype(np.int64)
    alike = int(np.bincount(group).max()) > max(COMMON * n, 5)
    return Near(alone if alike else group, len(np.unique(found)), "alike" if alike else "")


def _close(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.int64] | None:
    """Pairs i < j with a[i] and b[j] within DIFFERENCE; None if there are too many to say anything.

    Both are ordered along the first axis, so that a block is held against a window of the others only.
    """
    first, second = np.argsort(a[:, 0]), np.argsort(b[:, 0])
    line = b[second, 0]
    # |a - b|^2 as one product: (a, |a|^2, 1) (-2 b, 1, |b|^2)
    left = np.concatenate([a, (a * a).sum(1, keepdims=True), np.ones_like(a[:, :1])], 1)[first]
    right = np.concatenate([-2 * b, np.ones_like(b[:, :1]), (b * b).sum(1, keepdims=True)], 1)[second]
    found, count = [], 0
    for start in range(0, len(a), BLOCK):
        rows = slice(start, start + BLOCK)
        low = np.searchsorted(line, left[rows][0, 0] - DIFFERENCE)
        high = np.searchsorted(line, left[rows][-1, 0] + DIFFERENCE, "right")
        squares = left[rows] @ right[low:high].T
        at = np.flatnonzero(squares <= DIFFERENCE**2 + 1e-6)
        i, j = first[start + at // (high - low)] if len(at) else at, second[low + at % max(1, high - low)]
        upper = i < j
        found.append(np.stack([i[upper], j[upper]], 1))
        count += len(found[-1])
        if count > MOST_PAIRS:
            return None
    return np.concatenate(found)


def _averages(read: Read, n: int, white: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(N, D) averages over the grid, and the same of the mirrored pictures; distances are root mean squares."""
    plain, mirrored = [], []
    for start in range(0, n, CHUNK):
        x = torch.from_numpy(read(np.arange(start, min(start + CHUNK, n))).astype(np.float32)) / white
        small = F.adaptive_avg_pool2d(x, (min(GRID, x.shape[2]), min(GRID, x.shape[3])))
        small = small / small[0].numel() ** 0.5
        plain.append(small.flatten(1).numpy())
        mirrored.append(small.flip(3).flatten(1).numpy())
    return np.concatenate(plain), np.concatenate(mirrored)


def _same(a: NDArray[np.generic], b: NDArray[np.generic], white: int) -> NDArray[np.bool_]:
    """(B,) whether two stacks of pictures are near duplicates, pair by pair; flat pictures never are."""
    x = a.reshape(len(a), -1).astype(np.float32) / white
    y = b.reshape(len(b), -1).astype(np.float32) / white
    near = ((x - y) ** 2).mean(1) <= DIFFERENCE**2
    x -= x.mean(1, keepdims=True)
    y -= y.mean(1, keepdims=True)
    scale = np.sqrt((x * x).sum(1) * (y * y).sum(1))
    same: NDArray[np.bool_] = near & ((x * y).sum(1) >= CORRELATION * scale) & (scale > 1e-6 * x.shape[1])
    return same
