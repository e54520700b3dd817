"""Samples of a trained run as every evaluation draws them, and what drawing them costs: the same for all families."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quintet.core.codec import Codec
from quintet.core.model import Model
from quintet.core.results import SamplingCost
from quintet.core.rng import CHUNK, Rng
from quintet.core.threads import using_threads
from quintet.tasks.generate import BATCH, Generated, generate

LATENCY_DRAWS = 5

TRIED_SHARE = 0.05
"""Of the time for samples: where the first chunk takes longer, the number of threads is not tried out."""


@dataclass(frozen=True)
class Drawn:
    """Samples with their cost.

    Attributes:
        made: the samples.
        cost: of drawing them.
        chunk_s: seconds of the first chunk, which warms up.
    """

    made: Generated
    cost: SamplingCost
    chunk_s: float


def draw(
    model: Model[Any],
    codec: Codec,
    n: int,
    labels: Mapping[str, NDArray[np.int64]],
    *,
    seed: int,
    threads: int,
    limit_s: float,
    latency_limit_s: float,
) -> Drawn:
    """Draw up to n samples after a warm start, and single ones for the latency.

    Args:
        labels: of each item.
        seed: of the run; item i is the same for any n.
        threads: torch may use; small networks are sampled faster by one, so both are tried.
        limit_s: no further batch begins after so many seconds.
        latency_limit_s: likewise of single samples.
    """

    def chunk_s(count: int) -> float:
        with using_threads(count):
            few = {k: v[:CHUNK] for k, v in labels.items()}
            return generate(model, codec, CHUNK, few, rng=Rng(seed, "warm")).seconds

    warm_s = chunk_s(threads)
    best = threads
    if threads > 1 and next(model.parameters()).device.type == "cpu" and warm_s < TRIED_SHARE * limit_s:
        best = min((threads, 1), key=chunk_s)
    batch = BATCH if warm_s * (BATCH // CHUNK) < limit_s else CHUNK  # a slow sampler stops nearer to its limit
    with using_threads(best):
        made = generate(model, codec, n, labels, rng=Rng(seed, "evaluate"), batch=batch, limit_s=limit_s)
        latency_s = latency(model, codec, {k: v[:1] for k, v in labels.items()}, seed, latency_limit_s)
    steps = model.sequential_steps()
    guided = getattr(model.sampling, "guidance", 1.0) not in (0.0, 1.0)  # two evaluations instead of one
    cost = SamplingCost(
        seconds_per_1000=1000 * made.seconds / len(made),
        nfe=float(steps * (1 + guided)),
        sequential_steps=steps,
        latency_s=latency_s,
    )
    return Drawn(made, cost, warm_s)


def latency(
    model: Model[Any], codec: Codec, labels: Mapping[str, NDArray[np.int64]], seed: int, limit_s: float
) -> float:
    """Seconds that one sample takes by itself: the median of up to five draws after the first, which warms up.

    Args:
        labels: of one item.
        limit_s: no further draw begins after so many seconds; a single draw then speaks for itself.
    """
    taken: list[float] = []
    while len(taken) < LATENCY_DRAWS + 1 and (not taken or sum(taken) < limit_s):
        taken.append(generate(model, codec, 1, labels, rng=Rng(seed, "latency", len(taken)), batch=1).seconds)
    return float(np.median(taken[1:] or taken))
