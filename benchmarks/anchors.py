"""Anchors of the digits split: what real data and models without a network score under Quintet's metrics.

Command: python benchmarks/anchors.py [--seeds 3] [--samples 1000]

Prints the real-versus-real floor, the three baseline rows, and a full-covariance Gaussian and mixtures of 10, 30 and 60
components (fitted without labels, and so without a classification accuracy score), each the mean over seeds with the
standard deviation between them. A seed moves the fit, the samples and the resamples; data and judge stay.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from quintet.core.results import Estimate
from quintet.core.rng import Rng
from quintet.data.digits import open_digits
from quintet.metrics.baselines import BaselineModel, Mixture, baselines
from quintet.metrics.evaluate import Part, Reference

COLUMNS = (
    "bits_per_dim", "kid", "kid_pca", "fd", "fd_pca", "c2st", "c2st_judge", "cas", "precision", "recall", "density",
    "coverage", "modes", "modes_kl", "sharpness", "memorisation", "copies",
)  # fmt: skip


def cell(found: Sequence[Estimate]) -> str:
    values = [f.value for f in found if f.value is not None]
    if not values:
        return "-"
    spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    data = open_digits()
    train, validation, judge, test = (
        Part(split.x, split.labels["label"]) for split in (data.train, data.validation, data.judge, data.test)
    )
    start = time.perf_counter()
    reference = Reference.build(data.spec, train=train, validation=validation, judge=judge, test=test)
    built = time.perf_counter() - start
    floor = reference.floor()
    rows: dict[str, list[Mapping[str, Estimate]]] = {}
    alarms: dict[str, int] = {}
    spent = []
    for seed in range(args.seeds):
        models: dict[str, BaselineModel] = {model.name: model for model in baselines(data.spec, *train, seed=seed)}
        for k in (1, 10, 30, 60):
            models[f"mixture of {k}"] = Mixture(data.spec, train.x, components=k, seed=seed)
        for name, model in models.items():
            drawn = model.sample(args.samples, rng=Rng(seed, "anchors"))
            if drawn is None:  # drawing takes too long
                continue
            start = time.perf_counter()
            found = reference.evaluate(*drawn)
            spent.append(time.perf_counter() - start)
            bits = model.bits(test.x, test.labels, rng=Rng(seed, "anchors", "bits"))
            rows.setdefault(name, []).append({**found, "bits_per_dim": bits})
            alarms[name] = alarms.get(name, 0) + found["copies"].protocol.startswith("alarm")

    print(f"{len(train.x)} training and {len(test.x)} test images; seeds {args.seeds}, {args.samples} samples a row")
    print(
        f"judge accuracy {reference.judge.accuracy:.3f}, built in {built:.1f} s; a row takes {np.median(spent):.2f} s"
    )
    print("\n| metric | floor | " + " | ".join(rows) + " |")
    print("|---" * (len(rows) + 2) + "|")
    for name in COLUMNS:
        real = floor.get(name)
        text = "-" if real is None or real.value is None else f"{real.value:.3f} [{real.low:.3f}, {real.high:.3f}]"
        print(f"| {name} | {text} | " + " | ".join(cell([r[name] for r in found]) for found in rows.values()) + " |")
    print("| copy alarms | - | " + " | ".join(f"{n} of {args.seeds}" for n in alarms.values()) + " |")


if __name__ == "__main__":
    main()
