"""Log-likelihood of raw examples under a trained model, in nats, through the codec."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from quintet.core.codec import Codec
from quintet.core.memory import halving
from quintet.core.model import HasLogProb
from quintet.core.rng import CHUNK, Rng

BATCH = 2 * CHUNK


def nats(
    model: HasLogProb,
    codec: Codec,
    x: NDArray[Any],
    labels: Mapping[str, NDArray[np.int64]],
    *,
    rng: Rng,
    batch: int = BATCH,
    limit_s: float | None = None,
) -> NDArray[np.float64]:
    """log p(raw | labels) of up to all examples.

    Args:
        model: with a likelihood; `model.likelihood` says of which kind.
        codec: its codec.
        x: (N, *raw.shape).
        labels: condition name -> (N,).
        rng: for dequantisation, bounds and trace estimates; row i serves example i.
        batch: examples at once; halved as often as memory does not suffice.
        limit_s: stop after the batch in which this many seconds have passed.
    Returns: (m,) nats of the first m <= N examples.
    """
    assert isinstance(model, torch.nn.Module)
    model.eval()
    device = next(model.parameters()).device
    values: list[NDArray[np.float64]] = []
    begin = time.perf_counter()
    done = 0
    while done < len(x) and (limit_s is None or not done or time.perf_counter() - begin <= limit_s):

        def measure(size: int, start: int = done) -> NDArray[np.float64]:
            part = slice(start, start + size)
            here = rng.at(start).on(device)
            cond = {name: torch.from_numpy(value[part]).to(device) for name, value in labels.items()}
            with torch.no_grad():
                encoded = codec.encode(torch.from_numpy(x[part]).to(device), here("encode"))
                value = model.log_prob(encoded, cond, rng=here("log_prob")) + codec.log_det(encoded)
            return value.double().cpu().numpy()

        part, batch = halving(measure, batch)
        values.append(part)
        done += len(part)
    return np.concatenate(values) if values else np.empty(0)  # nothing held out
