"""Fréchet distance, KID, precision/recall/density/coverage on 5,000 x 2,048 features, against the usual libraries.

    python benchmarks/metrics.py --rounds 3 --out benchmarks/results/DATE-speed.jsonl

All get the same features in memory; the values must agree, which is printed beside the times. Ours are float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from race import Contender, Races, stand_in
from torch import nn

from quintet.metrics.distances import Polynomial, frechet, mmd2
from quintet.metrics.neighbours import manifolds

COUNT, WIDTH = 5_000, 2_048


def features() -> tuple[np.ndarray, np.ndarray]:
    """Non-negative, with a spectrum that falls off, as Inception's are; fakes are wider in 64 directions."""
    rng = np.random.default_rng(20261121)
    scale = 20 * np.arange(1, WIDTH + 1) ** -0.75
    real = np.abs(rng.standard_normal((COUNT, WIDTH))) * scale
    fake = np.abs(rng.standard_normal((COUNT, WIDTH))) * scale
    fake[:, :64] = fake[:, :64] * 1.15 + 0.05 * scale[:64]
    return real.astype(np.float32), fake.astype(np.float32)


def identity() -> nn.Module:
    module = nn.Identity()
    module.num_features = WIDTH  # type: ignore[assignment]
    return module


def torchmetrics(kind: str, real: np.ndarray, fake: np.ndarray) -> float:
    parts = ("", ".transforms", ".transforms.functional", ".datasets", ".models", ".utils")
    stand_in(*(f"torchvision{part}" for part in parts))
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    if kind == "fd":
        metric: Any = FrechetInceptionDistance(feature=identity(), normalize=True)
    else:
        metric = KernelInceptionDistance(feature=identity(), subsets=1, subset_size=len(real), normalize=True)
    for rows, is_real in ((real, True), (fake, False)):
        for part in torch.from_numpy(rows).split(1000):
            metric.update(part, real=is_real)
    value = metric.compute()
    return float(value if kind == "fd" else value[0])


def prdc(real: np.ndarray, fake: np.ndarray) -> dict[str, float]:
    from prdc import compute_prdc

    return dict(compute_prdc(real, fake, nearest_k=5))


def main() -> None:
    races = Races(__doc__.splitlines()[0])
    real, fake = features()
    calls: dict[str, dict[str, Any]] = {
        f"metric/fd-{COUNT}x{WIDTH}": {
            "torchmetrics": lambda: torchmetrics("fd", real, fake), "quintet": lambda: frechet(fake, real),
        },
        f"metric/kid-{COUNT}x{WIDTH}": {
            "torchmetrics": lambda: torchmetrics("kid", real, fake),
            "quintet": lambda: mmd2(fake, real, Polynomial()).value,
        },
        f"metric/prdc-{COUNT}x{WIDTH}": {
            "prdc": lambda: prdc(real, fake),
            "quintet": lambda: [float(np.mean(part)) for part in manifolds(fake, real)],
        },
    }  # fmt: skip
    for workload, sides in calls.items():
        builders = {name: (lambda call=call: Contender(call, 1, note=str(call()))) for name, call in sides.items()}
        races.race(workload, "calls/s", builders, reference=next(iter(sides)), once=True)


if __name__ == "__main__":
    main()
