"""Log-likelihood of raw examples under a trained model, in nats, through the codec, by one way or several."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quintet.core.codec import Codec
from quintet.core.memory import halving
from quintet.core.model import HasLogProb, LikelihoodKind, Way
from quintet.core.rng import CHUNK, Rng
from quintet.core.spec import Cond

BATCH = 2 * CHUNK
LEAST = 16
"""Examples of the first batch where time is limited, and on which every further way is measured at least."""

TRIAL, EFFORTS = 1 / 64, (1.0, 1 / 2, 1 / 4, 1 / 8)
"""Shares of a way's full draws or steps: of the trial that times it, and of what may be measured."""

DRAWS = 64
"""Of the importance-weighted dequantisation, at full effort."""


@dataclass(frozen=True)
class Found:
    """What one way gave.

    Attributes:
        likelihood, protocol: of the way, on raw data; a protocol without nats says why.
        nats: (m,) of the first m examples, or None.
    """

    likelihood: LikelihoodKind
    protocol: str
    nats: NDArray[np.float64] | None


def likelihood_of_raw(model: HasLogProb, codec: Codec) -> LikelihoodKind:
    """What the nats of raw examples are: an exact density of levels spread over cells bounds their probability."""
    return "bound" if codec.dequantises and model.likelihood == "exact" else model.likelihood


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
        model: with a likelihood; `likelihood_of_raw` says of which kind.
        codec: its codec.
        x: (N, *raw.shape).
        labels: condition name -> (N,).
        rng: for dequantisation, bounds and trace estimates; row i serves example i.
        batch: examples at once; halved as often as memory does not suffice.
        limit_s: stop after the batch in which this many seconds have passed; batches then begin small.
    Returns: (m,) nats of the first m <= N examples.
    """
    own = _through(codec, Way(model.likelihood, "", lambda x, cond, rng: model.log_prob(x, cond, rng=rng)))
    values = [part for (part,) in _batches([own], model, x, labels, rng, batch, limit_s)]
    return np.concatenate(values) if values else np.empty(0)  # nothing held out


def further(
    model: HasLogProb,
    codec: Codec,
    x: NDArray[Any],
    labels: Mapping[str, NDArray[np.int64]],
    *,
    rng: Rng,
    limit_s: float,
) -> dict[str, Found]:
    """The model's other ways to log p(raw | labels), all on the same first examples, so that they compare.

    Each way has an equal share of the time, and of EFFORTS the most that allows LEAST examples, judged by a trial. Then
    more examples follow while time is left. The noise of dequantisation is that of `nats` with the same rng.

    Args:
        model, codec, x, labels, rng: as for `nats`; x are the examples wanted at most.
        limit_s: seconds in all, about.
    """
    begin = time.perf_counter()
    trials = _ways(model, codec, TRIAL)
    share = limit_s / max(1, len(trials))
    chosen: dict[str, Way] = {}
    found: dict[str, Found] = {}
    for name, trial in trials.items():
        seconds = _seconds(trial, model, x[:1], labels, rng)  # warms up, and tells a hopeless way from the others
        if seconds * EFFORTS[-1] / TRIAL <= share:
            seconds = _seconds(trial, model, x[:LEAST], labels, rng)
        effort = next((e for e in EFFORTS if seconds * e / TRIAL <= share), None)
        if effort is None:
            needed = seconds * EFFORTS[-1] / TRIAL
            why = f"not measured: {LEAST} examples would take about {needed:.0f} s of {share:.0f} s"
            found[name] = Found(trial.likelihood, why, None)
        else:
            chosen[name] = _ways(model, codec, effort)[name]
    if not chosen or not len(x):
        return found
    left = limit_s - (time.perf_counter() - begin)
    parts = zip(*_batches(list(chosen.values()), model, x, labels, rng, BATCH, left), strict=True)
    for (name, way), values in zip(chosen.items(), parts, strict=True):
        found[name] = Found(way.likelihood, way.protocol, np.concatenate(values))
    return {name: found[name] for name in trials}


def _ways(model: HasLogProb, codec: Codec, effort: float) -> dict[str, Way]:
    """The model's ways as functions of raw examples, and the one that the codec adds."""
    found = {name: _through(codec, way) for name, way in model.ways(effort).items()}
    if likelihood_of_raw(model, codec) != model.likelihood:
        found["iw"] = _spread_often(model, codec, max(1, round(DRAWS * effort)))
    return found


def _through(codec: Codec, way: Way) -> Way:
    def log_prob(raw: Tensor, cond: Cond, rng: Rng) -> Tensor:
        x = codec.encode(raw, rng("encode"))
        return way.log_prob(x, cond, rng("log_prob")) + codec.log_det(x)

    return replace(way, log_prob=log_prob)


def _spread_often(model: HasLogProb, codec: Codec, draws: int) -> Way:
    """The mean of the density over several points of each cell, before the logarithm: a tighter bound.

    Source: Ho et al. 2019, section 3.1 with importance samples as in Burda et al. 2016; Hoogeboom et al. 2020,
    arXiv:2001.11235.
    """

    def log_prob(raw: Tensor, cond: Cond, rng: Rng) -> Tensor:
        logs = []
        for k in range(draws):
            x = codec.encode(raw, rng("encode", k))
            logs.append((model.log_prob(x, cond, rng=rng("log_prob", k)) + codec.log_det(x)).double())
        return torch.logsumexp(torch.stack(logs), 0) - math.log(draws)

    return Way("bound", f"exact density, importance-weighted dequantisation, {draws} draws", log_prob)


def _batches(
    ways: list[Way],
    model: HasLogProb,
    x: NDArray[Any],
    labels: Mapping[str, NDArray[np.int64]],
    rng: Rng,
    batch: int,
    limit_s: float | None,
) -> Iterator[tuple[NDArray[np.float64], ...]]:
    """Of batch after batch each way's nats, until all examples are done or the time is over.

    With a limit the first batch has at most LEAST examples, and the following ones as many as the time left allows; it
    ends where that is less than LEAST.
    """
    begin, done, size = time.perf_counter(), 0, batch if limit_s is None else min(LEAST, batch)
    while done < len(x):

        def measure(size: int, start: int = done) -> tuple[NDArray[np.float64], ...]:
            return tuple(_nats(way, model, x, labels, rng, slice(start, start + size)) for way in ways)

        values, fitted = halving(measure, size)
        if fitted < size:
            batch = fitted
        done += len(values[0])
        yield values
        if limit_s is not None:
            spent = time.perf_counter() - begin
            size = int((limit_s - spent) * done / max(spent, 1e-9))
            if size < min(LEAST, batch):
                return
        size = batch if limit_s is None else min(size, batch)


def _nats(
    way: Way,
    model: HasLogProb,
    x: NDArray[Any],
    labels: Mapping[str, NDArray[np.int64]],
    rng: Rng,
    part: slice,
) -> NDArray[np.float64]:
    assert isinstance(model, torch.nn.Module)
    model.eval()
    device = next(model.parameters()).device
    cond = {name: torch.from_numpy(value[part]).to(device) for name, value in labels.items()}
    with torch.no_grad():
        value = way.log_prob(torch.from_numpy(x[part]).to(device), cond, rng.at(part.start).on(device))
    return value.double().cpu().numpy()


def _seconds(way: Way, model: HasLogProb, x: NDArray[Any], labels: Mapping[str, NDArray[np.int64]], rng: Rng) -> float:
    begin = time.perf_counter()
    _nats(way, model, x, labels, rng, slice(0, len(x)))
    return time.perf_counter() - begin
