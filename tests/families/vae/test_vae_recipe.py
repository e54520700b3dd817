"""The recipes of the family: they fit what they say they fit, survive their JSON, and learn through the one loop."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from quintet.core.batch import Batch
from quintet.core.budget import Budget
from quintet.core.config import decode, encode
from quintet.core.plan import Plan
from quintet.core.recipe import Recipe
from quintet.core.rng import Rng, layer_noise
from quintet.core.spec import DataSpec
from quintet.families.vae.ladder import LadderVAE
from quintet.families.vae.model import VAE, VAEConfig
from quintet.recipes import beta_vae, ladder_vae, vae
from quintet.recipes.registry import KINDS
from quintet.train.loop import TrainState, steps

RECIPES = [vae.RECIPE, beta_vae.RECIPE, ladder_vae.RECIPE]
SPECS = [
    DataSpec("image", (1, 8, 8), 17, {"label": 10}),
    DataSpec("image", (1, 28, 28), 256, {"label": 10}),
    DataSpec("image", (3, 32, 32), 256),
    DataSpec("image", (3, 70, 45), 256),
    DataSpec("vector", (2,)),
    DataSpec("vector", (20,), None, {"a": 2, "b": 3}),
    DataSpec("vector", (5,), 40),
]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: r.name)
@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s.kind}{s.shape}{s.levels}")
def test_it_builds_for_all_it_fits(recipe: Recipe, spec: DataSpec) -> None:
    assert recipe.unfit(spec) is None
    (stage,) = recipe.stages(spec, Budget("seconds", 10))
    assert decode(json.loads(json.dumps(encode(stage))), KINDS) == stage
    codec = stage.codec.empty(spec)
    model = stage.model.build(codec.spec)
    with torch.no_grad():
        raw = codec.decode(model.sample(3, rng=Rng(0, "s")))
    assert raw.shape == (3, *spec.shape)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: r.name)
def test_tokens_are_refused(recipe: Recipe) -> None:
    why = recipe.unfit(DataSpec("tokens", (16,), 50))
    assert why
    assert "gpt" in why


class Stripes:
    """Four-level 4x4 images whose rows are all alike: two nats an image where independent pixels need eleven."""

    first = 0

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def __getitem__(self, step: int) -> Batch:
        rows = Rng(0, "stripes", step).integers(0, 2, (64, 4)) * 3
        return Batch(rows.repeat(1, 4).reshape(64, *self.shape), torch.arange(64))


@pytest.mark.parametrize("recipe", [vae.RECIPE, ladder_vae.RECIPE], ids=lambda r: r.name)
def test_it_learns_what_independent_pixels_cannot(recipe: Recipe) -> None:
    spec = DataSpec("image", (1, 4, 4), 4)
    (stage,) = recipe.stages(spec, Budget("steps", 400))
    with layer_noise(Rng(0, "init")):
        model = stage.model.build(stage.codec.empty(spec).spec)
    assert isinstance(model, VAE | LadderVAE)
    state = TrainState.start(model, stage.train, Plan.start(400, 0.4, flops_per_step=1.0, threads=1))
    for _ in steps(model, Stripes(model.spec.shape), state, stage.train, 0):
        pass
    model.eval()
    x = Stripes(model.spec.shape)[10**6].x
    with torch.no_grad():
        bound = float(model.log_prob(x, rng=Rng(0, "b")).mean())
    assert -16 * math.log(2) + 2 < bound  # independent pixels reach -11.1, the truth is -2.8
    assert bound < -4 * math.log(2) + 0.5


def test_beta_is_a_named_field_and_the_prior_is_plain() -> None:
    (stage,) = beta_vae.RECIPE.stages(SPECS[0], Budget("seconds", 10))
    assert isinstance(stage.model, VAEConfig)
    assert stage.model.beta > 1
    assert stage.model.prior.kind == "standard-normal-prior"


def test_beta_buys_shorter_codes_with_longer_errors() -> None:
    """On stripes of four free bits: the rate falls with beta, and the reconstruction term rises."""
    spec = DataSpec("image", (1, 4, 4), 4)
    found = []
    for beta in (0.5, 12.0):
        (stage,) = beta_vae.RECIPE.stages(spec, Budget("steps", 250))
        assert isinstance(stage.model, VAEConfig)
        with layer_noise(Rng(0, "init")):
            model = replace(stage.model, beta=beta).build(stage.codec.empty(spec).spec)
        state = TrainState.start(model, stage.train, Plan.start(250, 0.4, flops_per_step=1.0, threads=1))
        *_, last = steps(model, Stripes(model.spec.shape), state, stage.train, 0)
        found.append(last.losses["model"].parts)
    assert found[0]["kl_nats"] > 1.3 * found[1]["kl_nats"]
    assert found[0]["reconstruction_nats"] < found[1]["reconstruction_nats"]
