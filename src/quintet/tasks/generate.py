"""Draw raw examples from a trained model, in batches, timed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from quintet.core.codec import Codec
from quintet.core.ledger import Stopwatch
from quintet.core.memory import halving
from quintet.core.model import Model
from quintet.core.rng import CHUNK, Rng

BATCH = 4 * CHUNK


@dataclass(frozen=True)
class Generated:
    """Raw samples.

    Attributes:
        x: (n, *raw.shape) in the data's own type.
        labels: condition name -> (n,) int64, those that were asked for.
        seconds: spent in sampling and decoding.
    """

    x: NDArray[Any]
    labels: Mapping[str, NDArray[np.int64]]
    seconds: float

    def __len__(self) -> int:
        return len(self.x)

    def first(self, n: int) -> Generated:
        """The first n items; they are the same as if only n had been drawn."""
        return Generated(self.x[:n], {name: value[:n] for name, value in self.labels.items()}, self.seconds)


def generate(
    model: Model[Any],
    codec: Codec,
    n: int,
    labels: Mapping[str, NDArray[np.int64]] | None = None,
    *,
    rng: Rng,
    sampling: Any = None,
    batch: int = BATCH,
    limit_s: float | None = None,
) -> Generated:
    """Draw up to n raw examples.

    Args:
        model, codec: trained, on one device; put into evaluation mode.
        n: how many.
        labels: conditions of each item, each (n,); absent means unconditional. Those the model was not built with are
            left out, of what comes back too.
        rng: item i's stream is its row i, whatever the batch.
        sampling: overrides the model's own choices.
        batch: items at once, a multiple of 64 keeps the draws cheap; halved as often as memory does not suffice.
        limit_s: stop after the batch in which this many seconds have passed; fewer than n items then come back.
    """
    labels = {name: value for name, value in (labels or {}).items() if name in model.spec.conditions}
    model.eval()
    device = next(model.parameters()).device
    parts: list[NDArray[Any]] = []
    done, begin = 0, time.perf_counter()
    with torch.inference_mode(), Stopwatch() as watch:
        while done < n and (limit_s is None or not done or time.perf_counter() - begin < limit_s):

            def draw(most: int, start: int = done) -> NDArray[Any]:
                size = min(most, n - start)
                rows = slice(start, start + size)
                cond = {name: torch.from_numpy(value[rows]).to(device) for name, value in labels.items()}
                here = rng.at(start).on(device)
                return to_raw(codec, model.sample(size, cond, rng=here("sample"), sampling=sampling), here("decode"))

            part, batch = halving(draw, batch)
            parts.append(part)
            done += len(part)
    return Generated(np.concatenate(parts), {k: v[:done] for k, v in labels.items()}, watch.wall)


def to_raw(codec: Codec, x: torch.Tensor, rng: Rng | None = None) -> NDArray[Any]:
    """Decode model-space values to raw numpy in the data's own type."""
    raw = codec.decode(x, rng).cpu().numpy()
    if codec.raw.levels is None:
        return np.ascontiguousarray(raw, dtype=np.float32)
    return np.ascontiguousarray(raw, dtype=np.uint8 if codec.raw.levels <= 256 else np.uint16)


def proportional_labels(real: Mapping[str, NDArray[np.int64]], n: int, seed: int) -> dict[str, NDArray[np.int64]]:
    """n label combinations drawn from the real ones: whole shuffled passes over them, so that shares stay equal.

    Any prefix is itself a fair draw, so an evaluation on fewer samples uses the first of them.
    """
    if not real:
        return {}
    size = len(next(iter(real.values())))
    passes = [Rng(seed, "labels", k).permutation(size) for k in range(-(-n // size))]
    index = np.concatenate(passes)[:n]
    return {name: value[index] for name, value in real.items()}
