"""Each family's detector finds its own failure in a model that has it, and nothing in one that has not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import quintet
from quintet.core.batch import Batch
from quintet.core.budget import Budget
from quintet.core.messages import LANGUAGES, say
from quintet.core.model import Finding, HasWatch, Model
from quintet.core.rng import Rng, layer_noise
from quintet.core.spec import DataSpec
from quintet.recipes.registry import RECIPES
from quintet.report.artefacts import STABILITY
from quintet.testing import subject

SPEC = DataSpec("image", (1, 4, 4), levels=4, conditions={"label": 2})


def make(recipe: str) -> tuple[Model[Any], Batch]:
    """A model with noise on its weights, so that nothing stands at zero, and data."""
    (stage,) = RECIPES[recipe].stages(SPEC, Budget.parse("1s"))
    case = subject(stage, SPEC)
    with layer_noise(Rng(1, "init")):
        model = case.build().eval()
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.05 * torch.randn_like(p))
    return model, case.batches[0]


@torch.no_grad()
def watch(model: Model[Any], batch: Batch) -> list[str]:
    assert isinstance(model, HasWatch)
    found = model.watch(batch, batch, rng=Rng(0, "watch"))
    assert all(isinstance(finding, Finding) for finding in found)
    return [finding.what for finding in found]


def test_every_finding_has_its_texts_and_its_place_in_the_report() -> None:
    families = Path(quintet.__file__).parent / "families"
    named = {name for file in families.rglob("*.py") for name in re.findall(r'Finding\(\s*"(\w+)"', file.read_text())}
    assert {"posterior_collapse", "above_uniform", "not_invertible"} <= named
    for name in named:
        for lang in LANGUAGES:
            assert say(f"event.{name}", lang, step=1, value=0.5, limit=0.1)
        assert name in STABILITY, name


@torch.no_grad()
def test_posterior_collapse() -> None:
    model: Any
    model, batch = make("vae")
    assert watch(model, batch) == []
    for p in list(model.encoder.parameters())[-2:]:
        p.zero_()  # the same posterior for every example
    assert watch(model, batch) == ["posterior_collapse"]


@torch.no_grad()
def test_flow() -> None:
    model: Any
    model, batch = make("nsf")
    assert watch(model, batch) == []
    decode, model.decode = model.decode, lambda z, cond=None: decode(z, cond) + 0.1
    assert watch(model, batch) == ["not_invertible"]
    model.decode = decode
    outside = Batch(batch.x.clone(), batch.index, batch.cond)
    outside.x[0] = float("nan")
    assert "log_det_not_finite" in watch(model, outside)


@torch.no_grad()
@pytest.mark.parametrize("broken", [30.0, float("nan")])
def test_worse_than_guessing(broken: float) -> None:
    model: Any
    model, batch = make("gpt")
    for p in model.parameters():
        p.mul_(0.01)  # about the uniform distribution
    logits = model.output.logits

    class Sure:
        """Very sure of levels that do not occur."""

        def logits(self, raw: torch.Tensor, levels: int) -> torch.Tensor:
            return logits(raw, levels) + broken * torch.eye(levels)[levels - 1]

    rare = Batch(torch.zeros_like(batch.x), batch.index, batch.cond)
    calm = watch(model, rare)
    model.output = Sure()
    assert watch(model, rare) == ["above_uniform"]
    assert calm in ([], ["above_uniform"])
