"""What a model's own detectors find, from the preview to the row: events, an early end, the best earlier weights."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import quintet
from quintet.core import checkpoint
from quintet.core.batch import Batch
from quintet.core.model import Finding
from quintet.families.vae.model import VAE
from quintet.metrics.judges.spaces import PCASpace

BUDGET = "96steps"  # previews after 3, 6, 12, 24, 48 and 96


def train(out: Path, **options: Any) -> tuple[Any, list[dict[str, Any]], dict[str, Any]]:
    trained = quintet.train("vae", "toy:ring8", budget=BUDGET, out=out, threads=1, set=["train.batch=32"], **options)
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return trained, lines, json.loads((out / "result.json").read_text())


def whats(lines: Sequence[dict[str, Any]]) -> Iterator[tuple[str, int]]:
    return ((line["what"], line["step"]) for line in lines if line["kind"] == "event")


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[Finding]:
    """What the VAE's detector finds at every preview, to be filled by the test; it checks what it is given."""
    findings: list[Finding] = []

    def watch(self: VAE, train: Batch, held_out: Batch, *, rng: Any) -> Sequence[Finding]:
        assert not self.training
        assert not torch.is_grad_enabled()
        assert len(train) == len(held_out) == 256
        return findings

    monkeypatch.setattr(VAE, "watch", watch)
    return findings


def test_a_finding_is_an_event(tmp_path: Path, found: list[Finding]) -> None:
    found.append(Finding("posterior_collapse", float("nan"), 0.01))
    _, lines, result = train(tmp_path / "run")
    steps = [step for what, step in whats(lines) if what == "posterior_collapse"]
    assert steps == [2, 5, 11, 23, 47, 95]
    assert result["reason"] == ""
    assert result["choice"]["best"] is None
    assert [event["what"] for event in result["stability"]["events"]].count("posterior_collapse") == 6


def test_a_hopeless_run_ends_at_half_of_its_budget_with_its_best_weights(tmp_path: Path, found: list[Finding]) -> None:
    found.append(Finding("posterior_collapse", 0.0, 0.01, severe=True))
    out = tmp_path / "run"
    trained, lines, result = train(out)
    last = [line["step"] for line in lines if line["kind"] == "preview"][-1]
    assert last == 48
    assert ("hopeless", 47) in list(whats(lines))
    assert "48" in result["reason"] or "47" in result["reason"]
    assert set(result["choice"]["kid_pca"]) == {"0.05", "0.1", "best"}
    best = checkpoint.newest(next(out.glob("stages/*/best")))
    assert best is not None
    curve = {line["step"]: line["kid_pca"] for line in lines if line["kind"] == "preview"}
    assert best.step == min(curve, key=lambda step: curve[step])
    if result["choice"]["best"] is not None:
        assert ("best_kept", 48) in list(whats(lines))
        weights = best.tensors("model")
        assert all(torch.equal(trained.model.state_dict()[name], value) for name, value in weights.items())


def test_earlier_weights_are_taken_where_they_are_better(
    tmp_path: Path, found: list[Finding], monkeypatch: pytest.MonkeyPatch
) -> None:
    found.append(Finding("posterior_collapse", 0.0, 0.01, severe=True))
    asked = iter(range(100))
    distances = [0.5, 0.1, 0.9, 0.9, 0.9, 0.8, 0.7, 0.2]  # five previews, two averages, the best preview
    estimate = PCASpace.distance

    def distance(*args: Any) -> Any:
        return estimate(*args).model_copy(update={"value": distances[next(asked)]})

    monkeypatch.setattr(PCASpace, "distance", distance)
    trained, lines, result = train(tmp_path / "run")
    assert result["choice"]["best"] == 6
    assert [line["of"] for line in lines if line.get("what") == "best_kept"] == [6]
    best = checkpoint.newest(next((tmp_path / "run").glob("stages/*/best")))
    assert best is not None
    state = trained.model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in best.tensors("model").items())
    again = quintet.load(tmp_path / "run")
    assert all(torch.equal(state[name], value) for name, value in again.model.state_dict().items())
