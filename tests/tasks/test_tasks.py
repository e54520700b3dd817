"""Sampling and likelihood through a codec: nothing depends on the batch, labels keep their shares, limits are kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from quintet.core.codec import Codec
from quintet.core.model import HasLogProb, Model, Player
from quintet.core.rng import Rng
from quintet.core.spec import Cond, DataSpec
from quintet.tasks.density import LEAST, nats
from quintet.tasks.generate import generate, proportional_labels
from quintet.tasks.pictures import picture, to_uint8

SPEC = DataSpec("vector", (3,), conditions={"label": 4})


class Doubled(Codec):
    """x = 2 raw + noise: log_det is D ln 2."""

    protocol = "doubled"

    def __init__(self) -> None:
        super().__init__(SPEC, SPEC)

    def encode(self, raw: Tensor, rng: Rng | None = None) -> Tensor:
        return 2 * raw + (0 if rng is None else 0.1 * rng.normal(tuple(raw.shape)))

    def decode(self, x: Tensor, rng: Rng | None = None) -> Tensor:
        return x / 2

    def log_det(self, x: Tensor) -> Tensor:
        return torch.full((len(x),), 3 * math.log(2))


class Normal(Model[None], HasLogProb):
    """Standard normal around the label's number; its likelihood is a noisy estimate."""

    likelihood = "estimate"
    log_prob_protocol = "closed form"

    def __init__(self) -> None:
        super().__init__(SPEC, None)
        self.zero = nn.Parameter(torch.zeros(()))

    def players(self) -> Sequence[Player]:
        return ()

    def sample(self, n: int, cond: Cond | None = None, *, rng: Rng, sampling: None = None) -> Tensor:
        centre = (cond or {}).get("label", torch.zeros(n))
        return centre[:, None] + rng("z").normal((n, 3)) + self.zero

    def sequential_steps(self, sampling: Any = None) -> int:
        return 1

    def log_prob(self, x: Tensor, cond: Cond | None = None, *, rng: Rng) -> Tensor:
        noise = 0.1 * rng.normal((len(x),))
        return -0.5 * (x**2).sum(1) - 1.5 * math.log(2 * math.pi) + noise


def test_nats_go_through_the_codec_and_not_through_the_batch() -> None:
    raw = np.random.default_rng().standard_normal((130, 3)).astype(np.float32)
    labels = {"label": np.zeros(130, dtype=np.int64)}
    rng = Rng(0, "test")
    found = nats(Normal(), Doubled(), raw, labels, rng=rng, batch=1000)
    again = nats(Normal(), Doubled(), raw, labels, rng=rng, batch=7)
    np.testing.assert_allclose(found, again, rtol=1e-5)
    exact = -0.5 * ((2 * raw) ** 2).sum(1) - 1.5 * math.log(2 * math.pi) + 3 * math.log(2)
    assert abs(float((found - exact).mean())) < 5 * float((found - exact).std()) / math.sqrt(130)
    assert len(nats(Normal(), Doubled(), raw, labels, rng=rng, batch=64, limit_s=0)) == LEAST


def test_samples_do_not_depend_on_the_batch_and_stop_in_time() -> None:
    labels = {"label": np.arange(150, dtype=np.int64) % 4}
    whole = generate(Normal(), Doubled(), 150, labels, rng=Rng(0, "s"))
    parts = generate(Normal(), Doubled(), 150, labels, rng=Rng(0, "s"), batch=33)
    np.testing.assert_array_equal(whole.x, parts.x)
    assert whole.x.dtype == np.float32
    few = generate(Normal(), Doubled(), 150, labels, rng=Rng(0, "s"), batch=64, limit_s=0)
    assert len(few) == 64
    np.testing.assert_array_equal(few.x, whole.first(64).x)
    assert len(few.labels["label"]) == 64


def test_where_memory_does_not_suffice_smaller_pieces_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = np.random.default_rng().standard_normal((130, 3)).astype(np.float32)
    labels = {"label": np.arange(130, dtype=np.int64) % 4}
    samples = generate(Normal(), Doubled(), 130, labels, rng=Rng(0, "s")).x
    density = nats(Normal(), Doubled(), raw, labels, rng=Rng(0, "d"))
    rows: list[int] = []

    def hungry(work: Callable[..., Any], error: Exception) -> Callable[..., Any]:
        def checked(self: Any, what: Any, *args: Any, **kwargs: Any) -> Any:
            n = what if isinstance(what, int) else len(what)
            if n > 20:
                raise error
            rows.append(n)
            return work(self, what, *args, **kwargs)

        return checked

    monkeypatch.setattr(Normal, "sample", hungry(Normal.sample, torch.OutOfMemoryError("CUDA out of memory")))
    monkeypatch.setattr(Normal, "log_prob", hungry(Normal.log_prob, MemoryError()))
    np.testing.assert_array_equal(generate(Normal(), Doubled(), 130, labels, rng=Rng(0, "s")).x, samples)
    np.testing.assert_allclose(nats(Normal(), Doubled(), raw, labels, rng=Rng(0, "d")), density, rtol=1e-6)
    assert set(rows) <= {16, 130 % 16}
    monkeypatch.setattr(Normal, "sample", hungry(Normal.sample, ValueError("something else")))
    with pytest.raises(ValueError, match="something else"):
        generate(Normal(), Doubled(), 130, labels, rng=Rng(0, "s"))


def test_labels_keep_their_shares_in_every_pass() -> None:
    real = {"label": np.repeat([0, 1], [30, 10])}
    drawn = proportional_labels(real, 100, seed=0)["label"]
    assert np.bincount(drawn[:40]).tolist() == [30, 10]
    assert np.bincount(drawn[:80]).tolist() == [60, 20]
    assert len(drawn) == 100
    np.testing.assert_array_equal(proportional_labels(real, 50, seed=0)["label"], drawn[:50])
    assert proportional_labels({}, 5, seed=0) == {}


def test_pictures() -> None:
    grey = DataSpec("image", (1, 8, 8), levels=17)
    x = np.random.default_rng().integers(0, 17, (10, 1, 8, 8)).astype(np.uint8)
    assert to_uint8(x, grey).shape == (10, 8, 8, 1)
    assert to_uint8(np.full((1, 1, 8, 8), 16, np.uint8), grey).max() == 255
    assert picture(x, grey).mode == "L"
    colour = DataSpec("image", (3, 8, 6), levels=256)
    assert picture(np.zeros((4, 3, 8, 6), np.uint8), colour).mode == "RGB"
    points = picture(np.random.default_rng().standard_normal((500, 2)).astype(np.float32), DataSpec("vector", (2,)))
    assert points.size == (512, 512)
    assert len(points.getcolors() or []) > 1
