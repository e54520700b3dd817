"""Lossless compression: all comes back, at the model's own price, and what does not fit is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from quintet.core.budget import Budget
from quintet.core.codec import Codec
from quintet.core.errors import DataError, UsageError
from quintet.core.model import Model
from quintet.core.rng import Rng, layer_noise
from quintet.core.spec import DataSpec
from quintet.data.codecs import BinsCodec
from quintet.data.sources import open_dataset
from quintet.recipes.registry import find
from quintet.tasks.compress import HASH, Compressed, compress, decompress, fingerprint, read_head
from quintet.tasks.density import nats

WHO = b"m" * HASH


def random_model(recipe: str, spec: DataSpec, seed: int = 0) -> tuple[Model[Any], Codec]:
    """A recipe's model with random weights in its outputs too, so that its predictions are far from even."""
    (stage,) = find(recipe).stages(spec, Budget("seconds", 10))
    codec = stage.codec.empty(spec)
    with layer_noise(Rng(seed, "init")):
        model = stage.model.build(codec.spec)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.startswith("network.leave"):
                p.copy_(0.3 * Rng(seed, name).normal((*p.shape, 1))[..., 0])
    return model.eval(), codec


@pytest.mark.parametrize("recipe", ["gpt", "lstm"])
def test_coded_digits_cost_what_the_model_says_and_come_back(recipe: str) -> None:
    """The claim of the report: bytes and bits per dimension differ by less than 0.01."""
    data = open_dataset("digits")
    model, codec = random_model(recipe, data.spec)
    x, labels = data.test.x[:64], {name: values[:64].copy() for name, values in data.test.labels.items()}
    labels["label"][[3, 40]] = -1  # without a label
    made = compress(model, codec, x, labels, identity=WHO)
    bits = -nats(model, codec, x, labels, rng=Rng(0, "n")).sum() / math.log(2)
    assert abs(8 * made.head.value_bytes - bits) / x.size < 0.01
    assert made.model_bits == pytest.approx(bits, rel=1e-4)
    assert bits / x.size > 2  # a random model is no good
    expected = 64 * math.log2(11) / 8  # ten digits and none
    assert made.head.label_bytes == pytest.approx(expected, abs=8)
    assert made.bits_per_dim == 8 * len(made.data) / x.size
    back, back_labels = decompress(made.data, model, codec, identity=WHO)
    assert back.dtype == x.dtype
    assert np.array_equal(back, x)
    assert np.array_equal(back_labels["label"], labels["label"])


def small(n: int = 37, levels: int = 5, **more: int) -> tuple[Model[Any], Codec, np.ndarray[Any, Any]]:
    spec = DataSpec("image", (1, 3, 4), levels, more)
    model, codec = random_model("gpt", spec, seed=1)
    dtype = np.uint8 if levels <= 256 else np.uint16
    return model, codec, Rng(2, "x").integers(0, levels, (n, 1, 3, 4)).numpy().astype(dtype)


@pytest.mark.parametrize("levels", [2, 5, 700])
@pytest.mark.parametrize("batch", [1, 16, 64])
def test_any_batch_and_number_of_levels(levels: int, batch: int) -> None:
    model, codec, x = small(19, levels)
    made = compress(model, codec, x, {}, identity=WHO, batch=batch, parts=(1, 3, 5, 10), run="runs/x:gpt")
    head, _ = read_head(made.data)
    assert (head.parts, head.run, head.labelled, head.count) == ((1, 3, 5, 10), "runs/x:gpt", False, 19)
    back, labels = decompress(made.data, model, codec, identity=WHO)
    assert np.array_equal(back, x)
    assert back.dtype == x.dtype
    assert labels == {}


def test_a_damaged_file_never_passes() -> None:
    model, codec, x = small(a=3)
    labels = {"a": Rng(3, "a").integers(0, 3, (37,)).numpy()}
    made = compress(model, codec, x, labels, identity=WHO)
    _, begin = read_head(made.data)
    refused = 0
    for place in range(begin, len(made.data), 7):
        bad = bytearray(made.data)
        bad[place] ^= 0x10
        try:
            back, back_labels = decompress(bytes(bad), model, codec, identity=WHO)
        except (DataError, AssertionError):
            refused += 1
        else:  # bits behind the last value may carry nothing
            assert np.array_equal(back, x)
            assert np.array_equal(back_labels["a"], labels["a"])
    assert refused > 5
    for bad in (made.data[:-4], made.data + b"more", made.data[:20], b"", b"QTZ2" + made.data[4:]):
        with pytest.raises(DataError):
            decompress(bytes(bad), model, codec, identity=WHO)


def test_what_cannot_be_done_is_said() -> None:
    model, codec, x = small(a=3)
    with pytest.raises(UsageError, match="another model"):
        decompress(compress(model, codec, x, {}, identity=WHO).data, model, codec, identity=b"o" * HASH)
    with pytest.raises(UsageError, match="labels"):
        compress(model, codec, x, {"b": np.zeros(37, np.int64)}, identity=WHO)
    with pytest.raises(UsageError, match="nothing"):
        compress(model, codec, x[:0], {}, identity=WHO)
    bins = BinsCodec(DataSpec("vector", (12,)), 5, "uniform")
    bins.edges.copy_(torch.linspace(0, 1, 6).expand(12, -1))
    with pytest.raises(UsageError, match="bins"):
        compress(model, bins, np.random.default_rng(0).random((5, 12), np.float32), {}, identity=WHO)
    with torch.no_grad():
        next(model.parameters()).fill_(math.nan)
    with pytest.raises(UsageError, match="finite"):
        compress(model, codec, x, {}, identity=WHO)
    vae, codec = random_model("vae", DataSpec("image", (1, 3, 4), 5))
    with pytest.raises(UsageError, match="gpt or lstm"):
        compress(vae, codec, x, {}, identity=WHO)


def test_the_hash_knows_every_weight_and_choice() -> None:
    model, codec, _ = small()
    first = fingerprint(model, codec, {"width": 1})
    assert len(first) == HASH
    assert fingerprint(model, codec, {"width": 1}) == first
    assert fingerprint(model, codec, {"width": 2}) != first
    with torch.no_grad():
        next(model.parameters()).flatten()[0].add_(1e-3)
    assert fingerprint(model, codec, {"width": 1}) != first


def test_sizes_are_those_of_the_file() -> None:
    model, codec, x = small()
    made = compress(model, codec, x, {}, identity=WHO)
    assert isinstance(made, Compressed)
    assert len(made.data) == read_head(made.data)[1] + made.head.label_bytes + made.head.value_bytes
    assert made.values_per_dim < made.bits_per_dim
    assert len(made.data) - made.head.value_bytes < 100  # a small head
