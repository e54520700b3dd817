"""How many different things a set of samples holds: the Vendi score, always as a ratio to real data.

The score is the exponential of the entropy of the eigenvalues of K / n, K being the items' kernel matrix with ones on
its diagonal: 1 where all items are alike, n where no two are. By itself it rewards noise, and it grows with n. The
ratio to as many real items does not grow, and 1 is ideal: below it samples repeat themselves, above it they are strewn
wider than the data.

The interval comes from a jackknife that leaves out a tenth of the items at a time, with Student's quantile for as many
groups: the entropy's derivative by one item alone is up to a third too small where the score is near n.

Source: Friedman & Dieng 2023, arXiv:2210.02410; Efron & Stein 1981 (jackknife).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quintet.core.results import Estimate
from quintet.metrics.distances import Kernel
from quintet.metrics.sizes import Array, matrix, too_few

MOST = 400
"""Items in a set: the eigenvalues take n^3 operations, and once more for each group of the jackknife."""

GROUPS, QUANTILE = 10, 2.262157
"""Groups of the jackknife; Student's 97.5 % quantile with one degree of freedom less."""


class Vendi(NamedTuple):
    """A Vendi score's logarithm (an entropy in nats) and its standard error."""

    entropy: float
    se: float

    @property
    def score(self) -> float:
        """The effective number of different items."""
        return math.exp(self.entropy)


def vendi_score(items: NDArray[np.generic], kernel: Kernel) -> Vendi:
    """The Vendi score of a set.

    Args:
        items: (N, d), at least twice GROUPS, in an order that means nothing.
        kernel: positive definite with k(x, x) = 1.
    Raises: ValueError if k(x, x) is not 1, or for fewer items.
    Source: Friedman & Dieng 2023, definition 3.1.
    """
    x = matrix(items)
    if len(x) < 2 * GROUPS:
        raise ValueError(f"the Vendi score's jackknife needs {2 * GROUPS} items, got {len(x)}")
    gram = kernel(x, x)
    if not np.allclose(np.diag(gram), 1.0, atol=1e-6):
        raise ValueError(f"the Vendi score needs a kernel with k(x, x) = 1, got {kernel.name}")
    group = np.arange(len(x)) % GROUPS
    without = np.array([_entropy(gram[np.ix_(group != g, group != g)]) for g in range(GROUPS)])
    return Vendi(_entropy(gram), math.sqrt((GROUPS - 1) * float(without.var())))


def vendi_ratio(
    samples: NDArray[np.generic],
    real: NDArray[np.generic],
    kernel: Kernel,
    *,
    space: str = "given features",
    known: Vendi | None = None,
) -> Estimate:
    """The Vendi score of samples over that of as many real items: 1 is ideal, below it samples repeat themselves.

    Args:
        samples, real: (N, d) of one size, at most MOST.
        kernel: see vendi_score.
        known: real's score, where it is known already.
    Raises: ValueError unless both sets have one size.
    """
    if len(samples) != len(real):
        raise ValueError(f"Vendi scores compare at one size only, got {len(samples)} and {len(real)}")
    missing = too_few("vendi", len(samples))
    if missing:
        return missing
    ours, theirs = vendi_score(samples, kernel), known or vendi_score(real, kernel)
    log, half = ours.entropy - theirs.entropy, QUANTILE * math.hypot(ours.se, theirs.se)
    return Estimate(
        value=math.exp(log),
        low=math.exp(log - half),
        high=math.exp(log + half),
        n=len(samples),
        protocol=f"Vendi score {ours.score:.3g} of {len(samples)} samples over {theirs.score:.3g} of as many test "
        f"items in {space}, {kernel.name}; interval by a jackknife of {GROUPS} groups",
    )


def _entropy(gram: Array) -> float:
    values = np.linalg.eigvalsh(gram / len(gram))
    values = values[values > 0]
    return float(-(values * np.log(values)).sum())
