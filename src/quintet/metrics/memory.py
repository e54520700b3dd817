"""What a model keeps of its training set: the data-copying statistic C_T, authenticity, repeated examples.

What it is: two questions put to the distances that the search of copies has found already. C_T asks, region by region,
whether samples lie nearer to the training set than held-out items do; authenticity asks of each sample whether it is
further from its nearest training item than that item is from any other. What it is not: the copy alarm (`neighbours`),
which decides; these two measure.

Sources: Meehan, Chaudhuri & Dasgupta 2020, arXiv:2004.05675 (C_T); Alaa et al. 2022, arXiv:2102.08921, section 4.3
(authenticity); Mann & Whitney 1947 (the rank test, with the usual correction for ties).
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from quintet.core.results import Estimate
from quintet.core.rng import Rng
from quintet.metrics.distances import BLOCK, squared_distances
from quintet.metrics.neighbours import WIDE, Indices, nearest
from quintet.metrics.sizes import Array, matrix, normal, proportion, too_few, unavailable

CELL = 50
"""Held-out items for each region of C_T, on average."""

MOST_CELLS = 20

LEAST = 10
"""Samples and held-out items that a region needs: fewer say nothing by ranks."""


class Cells:
    """A partition of feature space into the Voronoi cells of k-means centres.

    Args:
        features: (N, d) of training items.
        count: cells.
        rng: starts k-means.
    """

    def __init__(self, features: NDArray[np.generic], count: int, *, rng: Rng) -> None:
        from sklearn.cluster import KMeans

        rows = matrix(features)
        if count < 2 or len(rows) <= count:
            self.centres: Array = rows.mean(axis=0, keepdims=True)
        else:
            start = rng.integer() % 2**32
            self.centres = KMeans(count, n_init=1, max_iter=50, random_state=start).fit(rows).cluster_centers_

    def of(self, features: NDArray[np.generic]) -> Indices:
        """(N,) the cell of each item."""
        return nearest(features, self.centres).item[:, 0]


def cell_count(held_out: int) -> int:
    """How many cells so many held-out items allow."""
    return max(1, min(MOST_CELLS, held_out // CELL))


class CellTest(NamedTuple):
    """The rank test of one cell: its z, and the held-out items and samples in it."""

    z: float
    held_out: int
    samples: int


@dataclass(frozen=True)
class DataCopying:
    """The statistic C_T.

    Attributes:
        value: the mean z of the cells, weighted by their held-out items; far below 0 where samples are copies, far
            above 0 where they keep away from the data.
        sd: of the value if samples and held-out items had one distribution: the square root of the summed squares of
            the weights.
        cells: that have enough of both.
        left_out: share of the held-out items in other cells.
    """

    value: float
    sd: float
    cells: tuple[CellTest, ...]
    left_out: float


def data_copying(samples: Array, held_out: Array, sample_cells: Indices, held_out_cells: Indices) -> DataCopying | None:
    """C_T from distances to the nearest training item; None where no cell has enough samples and held-out items.

    Args:
        samples: (N,) distances. held_out: (M,) distances.
        sample_cells: (N,). held_out_cells: (M,).
    Source: Meehan et al. 2020, eq. 2 and 3. Departure: none; the null's spread is ours, exact given the cells' counts.
    """
    tests = []
    for cell in np.unique(held_out_cells):
        q, p = samples[sample_cells == cell], held_out[held_out_cells == cell]
        if min(len(q), len(p)) >= LEAST:
            tests.append(CellTest(mann_whitney(q, p), len(p), len(q)))
    if not tests:
        return None
    judged = sum(test.held_out for test in tests)
    weights = [test.held_out / judged for test in tests]
    value = sum(w * test.z for w, test in zip(weights, tests, strict=True))
    return DataCopying(value, math.hypot(*weights), tuple(tests), 1 - judged / len(held_out))


def mann_whitney(q: Array, p: Array) -> float:
    """z of "values of q are as large as those of p": below 0 where q's are smaller; ties count half."""
    n, m = len(q), len(p)
    ranks = rankdata(np.concatenate([q, p]))
    u = float(ranks[:n].sum()) - n * (n + 1) / 2
    _, ties = np.unique(ranks, return_counts=True)
    total = n + m
    variance = n * m / 12 * (total + 1 - float((ties**3 - ties).sum()) / (total * (total - 1)))
    return (u - n * m / 2) / math.sqrt(variance) if variance > 0 else 0.0


def c_t(
    samples: Array, held_out: Array, sample_cells: Indices, held_out_cells: Indices, *, space: str = "given features"
) -> Estimate:
    """C_T as an estimate: 0 is ideal; the interval is that of honest samples around the value.

    Args: see data_copying.
    """
    missing = too_few("c_t", len(samples), len(held_out))
    if missing:
        return missing
    found = data_copying(samples, held_out, sample_cells, held_out_cells)
    if found is None:
        return unavailable(f"not available: no region holds {LEAST} samples and {LEAST} held-out items", len(samples))
    lowest = min(found.cells)
    protocol = (
        f"mean z over {len(found.cells)} k-means regions of the rank test between {len(samples)} samples' and "
        f"{len(held_out)} held-out items' distances to the nearest training item in {space}, weighted by held-out "
        f"items; below 0 nearer than held-out; lowest region {lowest.z:.1f} ({lowest.held_out / len(held_out):.0%} of "
        f"held-out items), {found.left_out:.0%} of held-out items in regions with too few samples; interval: standard "
        f"deviation {found.sd:.2f} of honest samples"
    )
    return normal(found.value, found.sd, len(samples), protocol)


def authentic(
    samples: NDArray[np.generic], train: NDArray[np.generic], distance: Array, item: Indices
) -> NDArray[np.bool_]:
    """(N,) whether some other training item is nearer to a sample's nearest training item than the sample is.

    A sample is compared block by block, only until the answer is known. One at no distance is a copy, not authentic,
    even where the training set holds its original twice.

    Args:
        samples: (N, d), for their number only. train: (M, d).
        distance: (N,) to the nearest training item. item: (N,) which that is.
    Source: Alaa et al. 2022, section 4.3.
    """
    found = np.zeros(len(samples), bool)
    left = np.flatnonzero(distance > 0)
    offset = np.rint(matrix(train[:WIDE]).mean(axis=0))
    for j in range(0, len(train), WIDE):
        columns, still = matrix(train[j : j + WIDE]), []
        for i in range(0, len(left), BLOCK):
            rows = left[i : i + BLOCK]
            squared = squared_distances(matrix(train[item[rows]]), columns, offset)
            own = (item[rows] >= j) & (item[rows] < j + len(columns))
            squared[np.flatnonzero(own), item[rows][own] - j] = np.inf
            # the same rounding on both sides, so that a tie is no win
            beaten = squared.min(axis=1) < distance[rows] ** 2 * (1 - 1e-9)
            found[rows[beaten]] = True
            still.append(rows[~beaten])
        left = np.concatenate(still) if still else left
    return found


def authenticity(
    samples: NDArray[np.generic],
    train: NDArray[np.generic],
    distance: Array,
    item: Indices,
    *,
    space: str = "given features",
) -> Estimate:
    """Share of authentic samples; what real data score is the floor's, about a half, and copies score 0.

    Args: see authentic.
    """
    missing = too_few("authenticity", len(samples), len(train))
    if missing:
        return missing
    share = float(authentic(samples, train, distance, item).mean())
    protocol = (
        f"share of {len(samples)} samples further from their nearest training item than that item is from any other "
        f"of {len(train)} in {space}; copies 0, real data as the floor says, noise 1"
    )
    return proportion(share, len(samples), protocol)


def repeats(train: NDArray[np.generic], test: NDArray[np.generic]) -> dict[str, int]:
    """Exact repetitions in the data, which models learn by heart first.

    Returns: "train", training examples that equal an earlier one; "across", test examples that equal a training one.
    Source: Carlini et al. 2023, arXiv:2301.13188 (repeated examples are extracted most).
    """
    seen = [_digest(row) for row in train]
    known = set(seen)
    return {"train": len(seen) - len(known), "across": sum(_digest(row) in known for row in test)}


def _digest(row: NDArray[np.generic]) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(row).tobytes(), digest_size=16).digest()
