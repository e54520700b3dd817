"""Dataset: decoded examples in memory, split once, with what is known about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from quintet.core.spec import DataSpec


@dataclass(frozen=True)
class Split:
    """Examples and labels of one part.

    Attributes:
        x: (N, *E); integers 0..levels-1 in the smallest unsigned type for discrete data, float32 for continuous.
        labels: condition name -> (N,) int64.
    """

    x: NDArray[np.generic]
    labels: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.x)


class Density(Protocol):
    """A distribution that is known exactly (the toy densities)."""

    modes: NDArray[np.float64]  # (K, D) centres, K = 0 where the density has no discrete modes
    scale: float  # standard deviation of a mode

    def sample(self, n: int, seed: int) -> NDArray[np.float64]: ...

    def log_prob(self, x: NDArray[np.float64]) -> NDArray[np.float64]: ...

    def entropy(self) -> float: ...


@dataclass(frozen=True)
class Dataset:
    """A data set, split.

    Attributes:
        name: what the user typed, shortened for display.
        spec: the raw data's shape, levels and conditions.
        train, validation, judge, test: the splits; models see train (and validation for choices), the judge network
            its own, nobody test before the last evaluation.
        names: condition name -> the classes' names.
        truth: the exact density where it is known.
        notes: sentences (language -> text) about what was inferred: levels, moved duplicates.
        fingerprint: SHA-256 over splits and labels.
    """

    name: str
    spec: DataSpec
    train: Split
    validation: Split
    judge: Split
    test: Split
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    truth: Density | None = None
    notes: tuple[Mapping[str, str], ...] = ()
    fingerprint: str = ""
