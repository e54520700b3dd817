"""How often the copy alarm is wrong: false alarms on samples that copy nothing, and which copies it finds.

    python benchmarks/memorisation.py [--data digits ...] [--splits 1000] [--seed 0] [--honest]

Each split draws training items, held-out items and fresh ones anew, from generators seeded with seed + split. Samples
that copy nothing are made from fresh items: those themselves (honest), those of one class only, shrunk to the mean
(dull), blurred (images), or ten dull ones made again and again (collapsed). Copies are training items among honest
samples, exact or with Gaussian noise of so many standard deviations of the data's own values. The share of splits in
which the alarm is raised is printed with its exact (Clopper-Pearson) 95 % interval, and for small sets the medians of
C_T and of authenticity in the first 50 splits beside it.

Copies are planted in a tenth of the splits, and large sets take a fifth of either. Fashion-MNIST is read from
$QUINTET_DATA.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.stats import binomtest
from sklearn.datasets import load_digits

from quintet.core.rng import Rng
from quintet.data.sources import open_dataset
from quintet.metrics.memory import Cells, authentic, cell_count, data_copying
from quintet.metrics.neighbours import Approach, Copies, approach, find_copies

Array = NDArray[np.float64]
Indices = NDArray[np.int64]


class Sizes(NamedTuple):
    train: int
    held_out: int
    samples: int


class Split(NamedTuple):
    train: Array
    held_out: Array
    fresh: Array
    label: Indices  # of fresh items


SIZES = {
    "digits": Sizes(700, 400, 500), "ring8": Sizes(600, 400, 500), "gaussian": Sizes(600, 400, 500),
    "planes": Sizes(600, 400, 500), "tiny": Sizes(27, 20, 200), "gaussian20k": Sizes(20_000, 1000, 1000),
    "gaussian50k": Sizes(50_000, 1000, 1000), "planes20k": Sizes(20_000, 1000, 1000),
    "fashion": Sizes(10_000, 1000, 1000),
}  # fmt: skip
LARGE = tuple(name for name, sizes in SIZES.items() if sizes.train >= 10_000)
ONLY = {"digits": 1, "fashion": 1, "planes": 1, "planes20k": 1}
"""The class that a model makes alone: ones and trousers are the narrowest, the plane the flattest; else the first."""

PLANTED = ((0.01, 0.0), (0.05, 0.0), (0.2, 0.0), (0.01, 0.001), (0.05, 0.001), (0.2, 0.001), (0.05, 0.1), (0.2, 0.1),
           (0.5, 0.1), (0.2, 0.3), (0.5, 0.3))  # fmt: skip
"""(share of copies, noise)."""


@cache
def images(kind: str) -> tuple[NDArray[np.generic], Indices]:
    if kind == "digits":
        found = load_digits()
        return found.data, found.target
    train = open_dataset("fashion_mnist").train
    return train.x, next(iter(train.labels.values()))


def drawn(kind: str, n: int, g: np.random.Generator) -> tuple[Array, Indices]:
    """Items of a synthetic distribution and the modes they belong to."""
    if kind == "ring8":
        mode = g.integers(8, size=n)
        angle = mode * np.pi / 4
        return 2 * np.stack([np.cos(angle), np.sin(angle)], 1) + 0.1 * g.standard_normal((n, 2)), mode
    x = g.standard_normal((n, 12))
    if kind.startswith("planes"):  # half of the items lie on a plane
        flat = g.integers(2, size=n)
        x[flat == 1, 2:] = 0
        x[flat == 1, 0] += 20
        return x, flat
    return x, np.asarray(x[:, 0] < 1, np.int64)


def divided(kind: str, seed: int) -> Split:
    g, (train, held, samples) = np.random.default_rng(seed), SIZES[kind]
    count = train + held + 4 * samples
    if kind in ("digits", "fashion"):
        x, label = images(kind)
        rows = g.permutation(len(x))[:count]
        data, label = x[rows].reshape(len(rows), -1).astype(np.float64), label[rows]
    else:
        data, label = drawn(kind, count, g)
    ends = train, train + held
    return Split(data[: ends[0]], data[ends[0] : ends[1]], data[ends[1] :], label[ends[1] :])


def harmless(kind: str, split: Split, g: np.random.Generator) -> Iterator[tuple[str, Array]]:
    """Samples of models that copy nothing, by name."""
    fresh, size = split.fresh, SIZES[kind].samples
    yield "honest", fresh[:size]
    yield "one class", fresh[split.label == ONLY.get(kind, 0)][:size]
    mean = split.train.mean(axis=0)
    dull = mean + 0.2 * (fresh - mean)
    yield "dull", dull[:size]
    if kind in ("digits", "fashion"):
        side = round(fresh.shape[1] ** 0.5)
        yield "blurred", gaussian_filter(fresh[:size].reshape(-1, side, side), (0, 0.7, 0.7)).reshape(-1, side * side)
    again = dull[g.integers(10, size=size)]
    yield "collapsed", again + 0.01 * split.train.std() * g.standard_normal(again.shape)


def planted(split: Split, size: int, share: float, noise: float, g: np.random.Generator) -> Array:
    """Honest samples of which some are copies."""
    count = round(share * size)
    copied = split.train[g.integers(len(split.train), size=count)]
    copied = copied + noise * split.train.std() * g.standard_normal(copied.shape)
    return np.concatenate([copied, split.fresh[: size - count]])


class Row:
    """What one kind of samples gave, split by split."""

    def __init__(self) -> None:
        self.alarms: list[bool] = []
        self.c_t: list[float] = []
        self.authentic: list[float] = []

    def add(self, samples: Array, found: Copies, split: Split, own: Approach, cells: Cells | None) -> None:
        self.alarms.append(found.alarm)
        if cells is None:
            return
        test = data_copying(found.distance, own.distance, cells.of(samples), cells.of(split.held_out))
        if test is not None:
            self.c_t.append(test.value)
        self.authentic.append(authentic(samples, split.train, found.distance, found.item).mean())

    def cells(self) -> str:
        interval = binomtest(sum(self.alarms), len(self.alarms)).proportion_ci()
        medians = [f"{np.median(v):{form}}" if v else "" for v, form in ((self.c_t, "+.1f"), (self.authentic, ".2f"))]
        rate = f"{sum(self.alarms)}/{len(self.alarms)} | {interval.low:.1%}–{interval.high:.1%}"
        return " | ".join([rate, *medians])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="*", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--splits", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--honest", action="store_true", help="honest samples only")
    options = parser.parse_args()
    print("| data | samples | alarms | 95 % | C_T | authenticity |\n|---|---|---|---|---|---|")
    for kind in options.data:
        rows: dict[str, Row] = {}
        splits = max(1, options.splits // (5 if kind in LARGE else 1))
        for number in range(splits):
            split, g = divided(kind, options.seed + number), np.random.default_rng((1, options.seed + number))
            own = approach(split.held_out, split.train)
            shown = number < 50 and kind not in LARGE
            cells = Cells(split.train, cell_count(len(split.held_out)), rng=Rng(number, "cells")) if shown else None
            made = list(harmless(kind, split, g))[: 1 if options.honest else None]
            if (options.seed + number) % 10 == 0 and not options.honest:
                made += [
                    (f"{share:.0%} copies, noise {noise:g}", planted(split, SIZES[kind].samples, share, noise, g))
                    for share, noise in PLANTED
                ]
            for name, samples in made:
                found = find_copies(
                    samples, split.train, split.held_out, rng=Rng(options.seed + number, "copies"), own=own
                )
                rows.setdefault(name, Row()).add(samples, found, split, own, cells)
        for name, row in rows.items():
            print(f"| {kind} | {name} | {row.cells()} |", flush=True)


if __name__ == "__main__":
    main()
