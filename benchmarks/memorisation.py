"""How often the copy alarm is wrong: false alarms on honest samples, and which copies it finds.

    python benchmarks/memorisation.py [--splits 1000] [--seed 0]

Each split divides the data anew into training items, held-out items and honest samples. Among the samples some are then
replaced by training items, exact or with Gaussian noise of so many standard deviations of the data's own values; the
share of splits in which the alarm is raised is printed with its exact (Clopper-Pearson) 95 % interval, and the medians
of C_T and of authenticity beside it. Digits: 700 training, 400 held-out, 500 samples; the others 600, 400, 500.
"""

from __future__ import annotations

import argparse

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn.datasets import load_digits

from quintet.core.rng import Rng
from quintet.metrics.memory import Cells, authentic, cell_count, data_copying
from quintet.metrics.neighbours import find_copies, nearest

Array = NDArray[np.float64]

PLANTED = ((0.0, 0.0), (0.05, 0.0), (0.1, 0.0), (0.5, 0.0), (0.05, 0.1), (0.1, 0.1), (0.5, 0.1), (0.1, 0.3), (0.5, 0.3))
"""(share of copies, noise)."""


def ring(n: int, g: np.random.Generator) -> Array:
    angle = g.integers(8, size=n) * np.pi / 4
    return 2 * np.stack([np.cos(angle), np.sin(angle)], 1) + 0.1 * g.standard_normal((n, 2))


def divided(kind: str, seed: int) -> tuple[Array, Array, Array]:
    """Training items, held-out items, honest samples."""
    g = np.random.default_rng(seed)
    if kind == "digits":
        x = load_digits().data[g.permutation(1797)]
        return x[:700], x[700:1100], x[1100:1600]
    draw = ring if kind == "ring8" else lambda n, g: g.standard_normal((n, 12))
    return draw(600, g), draw(400, g), draw(500, g)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--splits", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print("| data | copies | noise | alarms | 95 % | C_T | authenticity |\n|---|---|---|---|---|---|---|")
    for kind in ("digits", "ring8", "gaussian"):
        for share, noise in PLANTED:
            splits = options.splits if share == 0 else max(20, options.splits // 10)
            alarms, statistics, shares = 0, [], []
            for split in range(splits):
                train, held, samples = divided(kind, options.seed + split)
                g = np.random.default_rng((options.seed, split))
                count = int(share * len(samples))
                copied = train[g.permutation(len(train))[:count]]
                samples[:count] = copied + noise * train.std() * g.standard_normal(copied.shape)
                found = find_copies(samples, train, held, rng=Rng(split, "benchmark"))
                alarms += found.alarm
                if split < 50:
                    parts = Cells(train, cell_count(len(held)), rng=Rng(split, "cells"))
                    own = nearest(held, train).distance[:, 0]
                    test = data_copying(found.distance, own, parts.of(samples), parts.of(held))
                    assert test is not None
                    statistics.append(test.value)
                    shares.append(authentic(samples, train, found.distance, found.item).mean())
            interval = binomtest(alarms, splits).proportion_ci()
            print(
                f"| {kind} | {share:.0%} | {noise:g} | {alarms}/{splits} | {interval.low:.1%}–{interval.high:.1%} | "
                f"{np.median(statistics):+.1f} | {np.median(shares):.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
