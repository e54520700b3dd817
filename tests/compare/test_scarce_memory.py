"""Memory that suffices for training in small parts only: previews and evaluation make do with it as well."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import quintet
from quintet.compare.cell import lost_inverse, reconstruction
from quintet.core.batch import Batch
from quintet.core.messages import catalogue
from quintet.core.model import Finding, HasLatent, HasLogProb
from quintet.core.spec import DataSpec
from quintet.families.vae.model import VAE


@pytest.mark.parametrize(("most", "seen"), [(100, 64), (40, 32), (20, None)])
def test_detectors_see_fewer_examples_or_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, seen: int | None
) -> None:
    sizes: list[int] = []

    def watch(self: VAE, train: Batch, held_out: Batch, *, rng: Any) -> Sequence[Finding]:
        if len(train) > most:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory")
        assert len(train) == len(held_out) == len(train.index)
        sizes.append(len(train))
        return [Finding("posterior_collapse", 0.0, 0.01)]

    monkeypatch.setattr(VAE, "watch", watch)
    quintet.train("vae", "toy:ring8", budget="4steps", out=tmp_path / "run", threads=1, set=["train.batch=32"])
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    previews = sum(line["kind"] == "preview" for line in lines)
    told = [line["what"] for line in lines if line["kind"] == "event"]
    assert previews >= 2
    assert set(sizes) == ({seen} if seen else set())
    assert told == ["posterior_collapse" if seen else "not_watched"] * previews
    assert "event.not_watched" in catalogue()


def test_other_errors_of_detectors_are_not_taken_for_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def watch(self: VAE, train: Batch, held_out: Batch, *, rng: Any) -> Sequence[Finding]:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(VAE, "watch", watch)
    with pytest.raises(RuntimeError, match="shapes"):
        quintet.train("vae", "toy:ring8", budget="4steps", out=tmp_path / "run", threads=1, set=["train.batch=32"])


class Narrow(nn.Module, HasLatent, HasLogProb):
    """Doubles on its way to the latent and halves on its way back, with an error in some rows; takes few at once."""

    likelihood = "exact"
    log_prob_protocol = "exact"

    def __init__(self, most: int, wrong: Tensor) -> None:
        super().__init__()
        self.most, self.wrong = most, wrong
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.latent = DataSpec("vector", (3,))

    def encode(self, x: Tensor, cond: Any = None, *, rng: Any = None) -> Tensor:
        if len(x) > self.most:
            raise MemoryError
        assert cond is None or all(len(label) == len(x) for label in cond.values())
        return x * self.scale

    def decode(self, z: Tensor, cond: Any = None) -> Tensor:
        return z / self.scale + self.wrong[(z / self.scale).flatten(1)[:, 0].round().long()][:, None]

    def log_prob(self, x: Tensor, cond: Any = None, *, rng: Any) -> Tensor:
        raise NotImplementedError


class Split:
    """Row i is i everywhere."""

    def __init__(self, n: int) -> None:
        self.x = np.arange(n, dtype=np.float32)[:, None].repeat(3, 1)
        self.labels = {"label": np.arange(n) % 2}

    def __len__(self) -> int:
        return len(self.x)


@pytest.mark.parametrize("row", [0, 63, 64, 199])
def test_the_way_back_is_checked_on_all_examples_in_parts_that_fit(row: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quintet.core.memory.release", lambda: None)  # it takes its time
    wrong = torch.zeros(200)
    wrong[row] = 0.25
    codec: Any = SimpleNamespace(encode=lambda x: x)
    data: Any = SimpleNamespace(test=Split(200))
    for most in (200, 60, 1):
        (event,) = lost_inverse(Narrow(most, wrong), codec, data)  # type: ignore[arg-type]
        assert event["value"] == pytest.approx(0.25, abs=1e-4)
        assert not lost_inverse(Narrow(most, 0 * wrong), codec, data)  # type: ignore[arg-type]


def test_reconstructions_are_made_in_parts_that_fit() -> None:
    codec: Any = SimpleNamespace(
        raw=SimpleNamespace(kind="image", levels=None), encode=lambda x: x, decode=lambda x, rng: x
    )
    reference: Any = SimpleNamespace(shown=Split(150), size=150, reconstruction=lambda made: {"made": made})
    for most in (64, 10):
        model = Narrow(most, torch.zeros(200))
        model.likelihood = "bound"
        made: Any = reconstruction(model, codec, reference)["made"]  # type: ignore[arg-type]
        assert np.allclose(made, Split(150).x)
