"""A cell's likelihood on one scale: the model's own number, its other ways to it, and what a coder makes of it.

Everything is in bits per value of a raw test example; the kind opens every protocol. The further ways and the coder
take the same first test examples, as many as time allows, on which the model's own number is given again.

Slow models have time for few examples, and all seeds for the same first ones. What tells models apart is therefore
their bits on the examples that all had time for: `share`.
"""

from __future__ import annotations

import io
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quintet.compare.stored import read_stored
from quintet.core.checkpoint import write_atomically
from quintet.core.errors import QuintetError
from quintet.core.model import HasCode, HasLogProb
from quintet.core.results import SHARED_BITS, Estimate, SeedResult, likelihood_kind
from quintet.core.rng import Rng
from quintet.data.dataset import Dataset
from quintet.metrics.codecs import MOST
from quintet.metrics.likelihood import bits_per_dim, undefined
from quintet.metrics.sizes import unavailable
from quintet.recipes.load import RESULT, Trained
from quintet.tasks.compress import compress, decompress, fingerprint, versions
from quintet.tasks.density import further, likelihood_of_raw, nats

OWN_SHARE = 0.5
"""Of the time for likelihoods, at most, for the model's own number where there is more to do."""

FEWEST_CODED = 8

NATS = "likelihood.npy"
"""In a cell's folder: the nats of the first test examples, as many as it had time for."""

FEWEST_SHARED = 64
"""Test examples; a model that had time for fewer is compared with none, so that it does not take them from all."""


def likelihoods(
    trained: Trained,
    dataset: Dataset,
    seed: int,
    limit_s: float,
    draw_s: float | None = None,
    keep: Path | None = None,
) -> dict[str, Estimate]:
    """What is known of a model's likelihood on the test split.

    Args:
        trained: on the data set's training split.
        seed: of dequantisation, bounds and estimates.
        limit_s: seconds in all, about.
        draw_s: what drawing 64 samples side by side takes; None leaves the further ways and the coder out.
        keep: where the nats of the examples go.
    Returns: "bits_per_dim", and where there are any "bits_per_dim_first" with "bits_per_dim_<way>" on the same
        examples, "coded_bits_per_dim" and "file_bits_per_dim".
    """
    begin = time.perf_counter()
    model, codec, test, dims = trained.model, trained.codec, dataset.test, dataset.spec.dims
    if not isinstance(model, HasLogProb):
        return {"bits_per_dim": undefined("this family defines no density")}
    rng = Rng(seed, "likelihood")
    alone = draw_s is None or not (model.ways() or codec.dequantises or isinstance(model, HasCode))
    values = nats(model, codec, test.x, test.labels, rng=rng, limit_s=limit_s if alone else OWN_SHARE * limit_s)
    if keep is not None:
        stored = io.BytesIO()
        np.save(stored, values, allow_pickle=False)
        write_atomically(keep, stored.getvalue())
    kind = likelihood_of_raw(model, codec)
    given = "given the label" if dataset.spec.conditions else ""
    own = model.log_prob_protocol + ("" if kind == model.likelihood else " for values spread over their cells")

    def protocol(how: str) -> str:
        return "; ".join(part for part in (how, codec.protocol, given) if part)

    found = {"bits_per_dim": bits_per_dim(values, dims, kind=kind, protocol=protocol(own))}
    if draw_s is None:
        return found
    first = {name: labels[:MOST] for name, labels in test.labels.items()}
    left = min(limit_s - (time.perf_counter() - begin), (1 - OWN_SHARE) * limit_s)
    counts = set()
    for name, way in further(model, codec, test.x[: min(MOST, len(values))], first, rng=rng, limit_s=left).items():
        if way.nats is None:
            found[f"bits_per_dim_{name}"] = unavailable(way.protocol)
        else:
            counts.add(len(way.nats))
            how = protocol(way.protocol)
            found[f"bits_per_dim_{name}"] = bits_per_dim(way.nats, dims, kind=way.likelihood, protocol=how)
    if isinstance(model, HasCode) and dataset.spec.levels is not None:
        coded, count = _coded(trained, test.x[: len(values)], first, limit_s - (time.perf_counter() - begin), draw_s)
        counts.add(count)
        found |= coded
    if counts - {0}:
        found["bits_per_dim_first"] = bits_per_dim(values[: max(counts)], dims, kind=kind, protocol=protocol(own))
    return found


def share(folders: Sequence[Path], dims: int, examples: int) -> None:
    """Write into the results of cells their bits on the first test examples that all had time for.

    Args:
        folders: of finished cells.
        dims: values in a raw example.
        examples: in the test split.
    """
    held = {folder: np.load(folder / NATS) for folder in folders if (folder / NATS).exists()}
    fewest = min(FEWEST_SHARED, examples)
    common = min((len(values) for values in held.values() if len(values) >= fewest), default=0)
    for folder, values in held.items():
        result = read_stored(folder / RESULT, SeedResult)
        own = result.metrics["bits_per_dim"]
        if len(values) < fewest:
            found = unavailable(f"not compared: {len(values)} test examples within the time, {fewest} are needed")
        else:
            kind, _, how = own.protocol.partition("; ")
            found = bits_per_dim(values[:common], dims, kind=likelihood_kind(kind), protocol=f"for comparisons; {how}")
        if result.metrics.get(SHARED_BITS) != found:
            result = result.model_copy(update={"metrics": {**result.metrics, SHARED_BITS: found}})
            write_atomically(folder / RESULT, result.model_dump_json(indent=1).encode())


def _coded(
    trained: Trained, x: NDArray[Any], labels: Mapping[str, NDArray[np.int64]], left_s: float, draw_s: float
) -> tuple[dict[str, Estimate], int]:
    """Both sizes and how many examples were coded: there and back, each about as long as drawing as many."""
    n = min(MOST, len(x), int(MOST * left_s / max(2 * draw_s, 1e-9)))
    if n < min(FEWEST_CODED, len(x)):
        return _uncoded(f"not measured: to code {FEWEST_CODED} examples and back takes longer than {left_s:.0f} s"), 0
    x, labels = x[:n], {name: values[:n] for name, values in labels.items()}
    model, codec, identity = trained.model, trained.codec, identify(trained)
    try:
        made = compress(model, codec, x, labels, identity=identity)
        decompress(made.data, model, codec, identity=identity)  # raises unless all comes back
    except QuintetError as error:
        return _uncoded(f"not measured: {error.text('en')}"), 0
    head, how = made.head, f"arithmetic coding, {versions()}, decoded again bit for bit"
    label_words = f", labels {head.label_bytes}" if head.labelled else ""
    sizes = f"values {head.value_bytes} bytes{label_words}, whole file {len(made.data)}"
    return {
        "coded_bits_per_dim": Estimate(value=made.values_per_dim, n=n, protocol=f"values alone; {how}; {sizes}"),
        "file_bits_per_dim": Estimate(value=made.bits_per_dim, n=n, protocol=f"with labels and head; {how}; {sizes}"),
    }, n


def identify(trained: Trained) -> bytes:
    """The hash of a trained model that its compressed files hold."""
    return fingerprint(trained.model, trained.codec, trained.config["stages"][-1])


def _uncoded(why: str) -> dict[str, Estimate]:
    return dict.fromkeys(("coded_bits_per_dim", "file_bits_per_dim"), unavailable(why))
