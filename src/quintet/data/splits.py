"""Splits by content: which part an example belongs to depends on its decoded values, never on its place in a file.

Examples are ordered by the SHA-256 of their bytes and cut in that order. Exact copies of one example have one hash and
stay in one part, so that no test example was seen in training. What it is not: the search for near duplicates (`near`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quintet.core.errors import DataError

FEWEST = 20
"""Fewest distinct examples that can be split."""


@dataclass(frozen=True)
class Sizes:
    """Numbers of examples wanted in the held-out parts; the rest is for training."""

    validation: int
    judge: int
    test: int


@dataclass(frozen=True)
class Parts:
    """Row numbers of each part, in the order of the hash.

    Attributes:
        train, validation, judge, test: row numbers.
        copies: examples with an exact earlier copy, kept in its part.
    """

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    judge: NDArray[np.int64]
    test: NDArray[np.int64]
    copies: int


def default_sizes(n: int, official_test: bool = False) -> Sizes:
    """Test 20 % (at most 10,000); of the rest, validation 5 % (at most 2,000) and judge 10 % (at most 10,000).

    Args:
        n: number of examples to cut.
        official_test: the source brings its own test split, so that none is cut.
    """
    test = 0 if official_test else max(1, min(10_000, round(0.2 * n)))
    rest = n - test
    return Sizes(
        validation=max(1, min(2_000, round(0.05 * rest))), judge=max(1, min(10_000, round(0.1 * rest))), test=test
    )


def hashes(x: NDArray[np.generic]) -> list[bytes]:
    """SHA-256 of the bytes of each example (N, *E); equal values have equal hashes (-0.0 counts as 0.0)."""
    if np.issubdtype(x.dtype, np.floating):
        x = np.add(x, 0)  # -0.0 + 0 = 0.0
    flat = np.ascontiguousarray(x).reshape(len(x), -1)
    return [hashlib.sha256(row.data).digest() for row in flat]


def by_hash(digests: Sequence[bytes], rows: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    """Rows, by default all, in the order of their hashes.

    A source's own order often goes class by class; where time is short the first examples stand for all.
    """
    chosen = range(len(digests)) if rows is None else rows.tolist()
    return np.array(sorted(chosen, key=digests.__getitem__), np.int64)


def split(x: NDArray[np.generic], labels: Mapping[str, NDArray[np.int64]], sizes: Sizes) -> Parts:
    """Cut examples into parts.

    Args:
        x: (N, *E), decoded.
        labels: they order exact copies of one example, so that the file's order plays no role.
        sizes: wanted; met exactly unless copies that must stay together do not fit.
    Raises: DataError with fewer than 20 distinct examples.
    """
    return cut(hashes(x), labels, sizes)


def cut(
    digests: Sequence[bytes],
    labels: Mapping[str, NDArray[np.int64]],
    sizes: Sizes,
    near: NDArray[np.int64] | None = None,
) -> Parts:
    """Cut examples into parts by their hashes.

    Args:
        digests: one an example, equal for exact copies.
        labels, sizes: see `split`.
        near: (N,) examples with one number are near duplicates, which stay together like copies.
    Raises: DataError with fewer than 20 groups of distinct examples.
    """
    n = len(digests)
    ties = list(zip(*(labels[name].tolist() for name in sorted(labels)), strict=True)) or [()] * n
    leads = list(digests)
    if near is not None:
        first: dict[int, bytes] = {}
        for number, digest in zip(near.tolist(), digests, strict=True):
            first[number] = min(first.get(number, digest), digest)
        leads = [first[number] for number in near.tolist()]
    order = sorted(range(n), key=lambda i: (leads[i], digests[i], ties[i]))
    groups: list[list[int]] = []
    for i in order:
        if groups and leads[groups[-1][0]] == leads[i]:
            groups[-1].append(i)
        else:
            groups.append([i])
    if len(groups) < FEWEST:
        raise DataError("data.few_distinct", count=len(groups), examples=n, fewest=FEWEST)
    copies = n - len(set(digests))
    wanted = {"test": sizes.test, "judge": sizes.judge, "validation": sizes.validation}
    wanted = {name: size for name, size in wanted.items() if size}
    parts: dict[str, list[int]] = {"test": [], "judge": [], "validation": []}
    for after, (name, size) in zip(reversed(range(len(wanted))), wanted.items(), strict=True):
        parts[name], groups = _take(groups, size, keep=after + 1)
    rows = {name: np.array(part, dtype=np.int64) for name, part in parts.items()}
    return Parts(train=np.array([i for group in groups for i in group], dtype=np.int64), copies=copies, **rows)


def _take(groups: list[list[int]], size: int, keep: int) -> tuple[list[int], list[list[int]]]:
    """The first groups that fit into `size` rows, at least one, leaving at least `keep` groups; and the others."""
    taken: list[int] = []
    left: list[list[int]] = []
    for number, group in enumerate(groups):
        if len(groups) - number + len(left) <= keep or len(taken) == size:
            left.extend(groups[number:])
            break
        if len(taken) + len(group) <= size:
            taken.extend(group)
        else:
            left.append(group)
    if not taken:
        smallest = min(range(len(left)), key=lambda i: len(left[i]))
        taken = left.pop(smallest)
    return taken, left
