"""Several ways to one likelihood: the same examples, the same dequantisation, known answers, time that is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from quintet.core.model import HasLogProb, Model, Player, Way
from quintet.core.rng import Rng
from quintet.core.spec import Cond, DataSpec
from quintet.data.codecs import DequantizedPixelCodec, LevelCodec
from quintet.tasks import density
from quintet.tasks.density import LEAST, Found, further, likelihood_of_raw, nats

D, LEVELS = 3, 4
RAW = DataSpec("vector", (D,), LEVELS)


class Triangle(Model[None], HasLogProb):
    """Independent values on [-1, 1] with density (1 + x) / 2, whose cells' masses are known."""

    likelihood = "exact"
    log_prob_protocol = "exact"

    def __init__(self, seconds: float = 0.0) -> None:
        super().__init__(DataSpec("vector", (D,)), None)
        self.zero = nn.Parameter(torch.zeros(()))
        self.seconds, self.now = seconds, 0.0

    def perf_counter(self) -> float:
        """A clock that only the ways advance."""
        return self.now

    def players(self) -> Sequence[Player]:
        return ()

    def sample(self, n: int, cond: Cond | None = None, *, rng: Rng, sampling: None = None) -> Tensor:
        return rng.uniform((n, D)).sqrt() * 2 - 1

    def sequential_steps(self, sampling: Any = None) -> int:
        return 1

    def log_prob(self, x: Tensor, cond: Cond | None = None, *, rng: Rng) -> Tensor:
        return torch.log((1 + x) / 2).sum(1) + self.zero


class Two(Triangle):
    """With two ways whose values give their noise and effort away; the second takes `seconds` for LEAST examples."""

    def ways(self, effort: float = 1.0) -> Mapping[str, Way]:
        def slow(x: Tensor, cond: Cond, rng: Rng) -> Tensor:
            self.now += self.seconds * effort * len(x) / LEAST
            return torch.full((len(x),), effort) + x.sum(1)

        quick = Way("estimate", "quick", lambda x, cond, rng: rng("n").normal((len(x),)) + x.sum(1))
        return {"elbo": quick, "ais": Way("bound", f"slow at {effort:g}", slow)}


def raw(n: int) -> np.ndarray[Any, Any]:
    return Rng(0, "raw").integers(0, LEVELS, (n, D)).numpy().astype(np.uint8)


def test_importance_weighted_dequantisation_finds_the_cells_mass() -> None:
    model, codec, x = Triangle(), DequantizedPixelCodec(RAW, False), raw(60)
    mass = (2 * np.arange(LEVELS) + 1) / LEVELS**2
    truth = np.log(mass[x]).sum(1)
    assert likelihood_of_raw(model, codec) == "bound"
    plain = np.mean([nats(model, codec, x, {}, rng=Rng(i, "n")).mean() for i in range(40)])
    found = further(model, codec, x, {}, rng=Rng(0, "n"), limit_s=60.0)
    assert list(found) == ["iw"]
    iw = found["iw"]
    assert iw.nats is not None
    assert iw.likelihood == "bound"
    assert "64 draws" in iw.protocol
    assert len(iw.nats) == 60
    # of one value: the mean over u of log(2 (k + u) / L^2) against the logarithm of its mean
    u = (np.arange(10_000) + 0.5) / 10_000
    loss = np.array([np.log((2 * k + 1) / 2) - np.log(k + u).mean() for k in range(LEVELS)])[x].sum(1).mean()
    assert truth.mean() - plain == pytest.approx(loss, abs=0.03)
    assert loss > 0.1
    assert truth.mean() - iw.nats.mean() == pytest.approx(0, abs=0.02)


def test_exact_levels_need_no_dequantisation() -> None:
    model, codec = Triangle(), LevelCodec(RAW)
    assert likelihood_of_raw(model, codec) == "exact"
    assert further(model, codec, raw(20), {}, rng=Rng(0, "n"), limit_s=5.0) == {}


def test_ways_share_examples_and_noise() -> None:
    model, codec, x = Two(), DequantizedPixelCodec(RAW, False), raw(50)
    found = further(model, codec, x, {}, rng=Rng(3, "n"), limit_s=60.0)
    assert list(found) == ["elbo", "ais", "iw"]
    spread = codec.encode(torch.from_numpy(x), Rng(3, "n")("encode"))
    known = (spread.sum(1) + codec.log_det(spread)).double().numpy()
    quick, slow = found["elbo"].nats, found["ais"].nats
    assert quick is not None
    assert slow is not None
    np.testing.assert_allclose(slow, known + 1, rtol=1e-5)
    noise = Rng(3, "n")("log_prob")("n").normal((50,)).double().numpy()  # row i serves example i, whatever the batch
    np.testing.assert_allclose(quick, known + noise, rtol=1e-4, atol=1e-5)
    assert (found["elbo"].likelihood, found["ais"].likelihood) == ("estimate", "bound")


def test_effort_gives_way_to_time_and_then_examples_do(monkeypatch: pytest.MonkeyPatch) -> None:
    codec, x = DequantizedPixelCodec(RAW, False), raw(400)

    def timed(seconds: float, limit_s: float) -> tuple[Two, dict[str, Found]]:
        model = Two(seconds)
        monkeypatch.setattr(density, "time", model)
        return model, further(model, codec, x, {}, rng=Rng(0, "n"), limit_s=limit_s)

    for seconds, effort, count in ((0.5, 1, 48), (0.9, 0.5, 53), (1.9, 0.25, 50), (3.9, 0.125, 49)):
        trials = seconds / 64 * 17 / 16
        model, found = timed(seconds, 1.5 + trials)  # a third of it for each way
        ais, quick = found["ais"], found["elbo"]
        assert ais.protocol == f"slow at {effort:g}"
        assert ais.nats is not None
        assert quick.nats is not None
        assert len(ais.nats) == len(quick.nats) == pytest.approx(count, abs=2)
        assert model.now <= 1.5 + trials + 1e-9
    _, found = timed(1e-6, 1.5)
    assert found["ais"].nats is not None
    assert len(found["ais"].nats) == 400
    _, found = timed(60.0, 1.5)
    assert found["ais"].nats is None
    assert found["ais"].protocol.startswith("not measured")
    assert found["elbo"].nats is not None
    assert len(found["elbo"].nats) == 400
