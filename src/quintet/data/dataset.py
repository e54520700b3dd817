"""Dataset: decoded examples in memory, split once, with what is known about them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quintet.core.messages import LANGUAGES, say
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

    @property
    def mapped(self) -> bool:
        """Whether x lies in a file and is read page by page."""
        return isinstance(self.x, np.memmap)

    def tensor(self) -> Tensor:
        """x as a torch tensor sharing its memory: uint8, float32, or int16 with the bits of uint16 (see `gather`)."""
        x = np.ascontiguousarray(self.x)
        return torch.from_numpy(x.view(np.int16) if x.dtype == np.uint16 else x)


def gather(x: Tensor, index: Tensor) -> Tensor:
    """Rows of what `Split.tensor` returned: uint8, float32, or int32 where more than 256 levels need it."""
    rows = x.index_select(0, index)
    return rows.to(torch.int32).bitwise_and_(0xFFFF) if rows.dtype == torch.int16 else rows


def note(key: str, **fields: Any) -> Mapping[str, str]:
    """A sentence of the catalogue in every language."""
    return {lang: say(key, lang, **fields) for lang in LANGUAGES}


ROWS = 1024
"""Rows that are read at a time where a whole part may not fit into memory."""


def fingerprint(splits: Iterable[Split]) -> str:
    """SHA-256 over the examples and labels of the splits, in order."""
    digest = hashlib.sha256()
    for split in splits:
        for name, values in (("x", split.x), *sorted(split.labels.items())):
            digest.update(f"{name} {values.dtype.str} {values.shape}\n".encode())
            for start in range(0, len(values), ROWS):
                digest.update(np.ascontiguousarray(values[start : start + ROWS]).data)
    return digest.hexdigest()


class Density(Protocol):
    """A distribution that is known exactly (the toy densities)."""

    @property
    def modes(self) -> NDArray[np.float64]:
        """(K, D) centres, K = 0 where the density has no separate modes."""

    @property
    def scale(self) -> float:
        """Standard deviation of a mode, or across a curve."""

    def sample(self, n: int, seed: int) -> NDArray[np.float64]:
        """(n, D) independent draws."""

    def log_prob(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n, D) -> (n,) nats."""

    def entropy(self) -> float:
        """Nats."""


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
        origin, step: level k of discrete data stands for origin + step * k in the source's own units.
        notes: sentences (language -> text) about what was inferred: levels, moved duplicates.
        columns: names of a table's columns.
        found: what a scan of files found, JSON-ready (see `report`).
        fingerprint: SHA-256 over splits and labels.
        source: what the cache calls the place and the options it was read with; empty where no copy is kept.
    """

    name: str
    spec: DataSpec
    train: Split
    validation: Split
    judge: Split
    test: Split
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    truth: Density | None = None
    origin: float = 0.0
    step: float = 1.0
    notes: tuple[Mapping[str, str], ...] = ()
    columns: tuple[str, ...] = ()
    found: Mapping[str, Any] = field(default_factory=dict)
    fingerprint: str = ""
    source: str = ""
