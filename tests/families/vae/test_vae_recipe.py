"""The vae recipe: fits what it says it fits, survives its JSON, and learns through the one loop."""

from __future__ import annotations

import json
import math

import pytest
import torch

from quintet.core.batch import Batch
from quintet.core.budget import Budget
from quintet.core.config import decode, encode
from quintet.core.plan import Plan
from quintet.core.rng import Rng, layer_noise
from quintet.core.spec import DataSpec
from quintet.families.vae.model import VAE
from quintet.recipes.registry import KINDS
from quintet.recipes.vae import RECIPE
from quintet.train.loop import TrainState, steps

SPECS = [
    DataSpec("image", (1, 8, 8), 17, {"label": 10}),
    DataSpec("image", (3, 32, 32), 256),
    DataSpec("vector", (2,)),
    DataSpec("vector", (20,), None, {"a": 2, "b": 3}),
    DataSpec("vector", (5,), 40),
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s.kind}{s.shape}{s.levels}")
def test_it_builds_for_all_it_fits(spec: DataSpec) -> None:
    assert RECIPE.unfit(spec) is None
    (stage,) = RECIPE.stages(spec, Budget("seconds", 10))
    assert decode(json.loads(json.dumps(encode(stage))), KINDS) == stage
    codec = stage.codec.empty(spec)
    model = stage.model.build(codec.spec)
    with torch.no_grad():
        raw = codec.decode(model.sample(3, rng=Rng(0, "s")))
    assert raw.shape == (3, *spec.shape)


def test_tokens_are_refused() -> None:
    why = RECIPE.unfit(DataSpec("tokens", (16,), 50))
    assert why
    assert "gpt" in why


class Stripes:
    """Four-level 4x4 images whose rows are all alike: two nats an image where independent pixels need eleven."""

    first = 0

    def __getitem__(self, step: int) -> Batch:
        rows = Rng(0, "stripes", step).integers(0, 2, (64, 4)) * 3
        return Batch(rows.repeat(1, 4), torch.arange(64))


def test_it_learns_what_independent_pixels_cannot() -> None:
    spec = DataSpec("image", (1, 4, 4), 4)
    (stage,) = RECIPE.stages(spec, Budget("steps", 400))
    with layer_noise(Rng(0, "init")):
        model = stage.model.build(stage.codec.empty(spec).spec)
    assert isinstance(model, VAE)
    state = TrainState.start(model, stage.train, Plan.start(400, 0.4, flops_per_step=1.0, threads=1))
    for _ in steps(model, Stripes(), state, stage.train, 0):
        pass
    model.eval()
    x = Stripes()[10**6].x
    with torch.no_grad():
        bound = float(model.log_prob(x, rng=Rng(0, "b")).mean())
    assert -16 * math.log(2) + 2 < bound  # independent pixels reach -11.1, the truth is -2.8
    assert bound < -4 * math.log(2) + 0.5
