"""flow-matching and dit: they fit what they say, their size follows the budget and not the image, and they learn."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from quintet.core.batch import Batch
from quintet.core.budget import Budget
from quintet.core.config import decode, encode
from quintet.core.ledger import FlopCounter
from quintet.core.plan import Plan
from quintet.core.recipe import Recipe
from quintet.core.rng import Rng, layer_noise
from quintet.core.spec import DataSpec
from quintet.families.diffusion.model import Diffusion, DiffusionConfig
from quintet.nets.dit import DiTConfig
from quintet.nets.mixer import MixerConfig
from quintet.nets.unet import UNetConfig
from quintet.recipes import dit, flow_matching
from quintet.recipes.registry import KINDS
from quintet.train.loop import TrainState, steps

IMAGES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 64, 64), (4, 97, 130), (1, 20, 300)]
RECIPES = [flow_matching.RECIPE, dit.RECIPE]


def network(recipe: Recipe, shape: tuple[int, ...], budget: str) -> object:
    (stage,) = recipe.stages(DataSpec("image", shape, 256), Budget.parse(budget))
    assert isinstance(stage.model, DiffusionConfig)
    return stage.model.network


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: r.name)
@pytest.mark.parametrize("shape", IMAGES, ids=str)
def test_it_builds_for_every_size_at_bounded_cost(recipe: Recipe, shape: tuple[int, ...]) -> None:
    spec = DataSpec("image", shape, 256, {"label": 3})
    assert recipe.unfit(spec) is None
    (stage,) = recipe.stages(spec, Budget.parse("60s"))
    assert decode(json.loads(json.dumps(encode(stage))), KINDS) == stage
    model = stage.model.build(stage.codec.empty(spec).spec)
    assert isinstance(model, Diffusion)
    x = Rng(1, "x").normal((2, *shape))
    with FlopCounter() as counter, torch.no_grad():
        y = model.network(x, {"label": torch.tensor([0, -1])}, torch.tensor([0.1, 0.9]))
    assert y.shape == x.shape
    assert counter.total / 2 < 3e8  # 60 s on a CPU must see tens of thousands of images of any size


def test_the_size_follows_the_training_flop() -> None:
    assert flow_matching.training_flop(Budget.parse("2m")) == 2 * flow_matching.training_flop(Budget.parse("60s"))
    assert flow_matching.training_flop(Budget.parse("3e16flop")) == 3e16
    assert flow_matching.training_flop(Budget.parse("100000steps")) == 0
    sizes = []
    for recipe in RECIPES:
        for budget in ("500steps", "3m", "5e16flop"):
            config = network(recipe, (3, 32, 32), budget)
            assert isinstance(config, UNetConfig | DiTConfig)
            sizes.append(sum(p.numel() for p in config.build((3, 32, 32), (3, 32, 32), {}).parameters()))
    for small, minutes, large in (sizes[:3], sizes[3:]):
        assert small == minutes < large / 5


def test_small_images_keep_the_mixer_and_a_patch_covers_the_image() -> None:
    assert isinstance(network(flow_matching.RECIPE, (1, 8, 8), "60s"), MixerConfig)
    for shape in IMAGES:
        patch = flow_matching.patch_for(DataSpec("image", shape, 256), 64)
        assert -(-shape[1] // patch) * -(-shape[2] // patch) <= 64
        assert patch == 1 or -(-shape[1] * 2 // patch) * -(-shape[2] * 2 // patch) > 64


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: r.name)
def test_wide_patches_say_the_clean_data(recipe: Recipe) -> None:
    for shape in IMAGES:
        (stage,) = recipe.stages(DataSpec("image", shape, 256), Budget.parse("60s"))
        model = stage.model
        assert isinstance(model, DiffusionConfig)
        values = shape[0] * getattr(model.network, "patch") ** 2  # noqa: B009
        assert model.target == ("x0" if values > 64 else "velocity")


def test_dit_is_for_images_of_levels() -> None:
    for spec in (DataSpec("vector", (3,)), DataSpec("tokens", (9,), 5), DataSpec("image", (1, 4, 4))):
        assert "flow-matching" in str(dit.RECIPE.unfit(spec))


class Halves:
    """Black images whose left half (label 0) or right half (label 1) is white."""

    first = 0

    def __getitem__(self, step: int) -> Batch:
        label = torch.arange(16) % 2
        x = -torch.ones(16, 1, 18, 18)
        x[label == 0, :, :, :9], x[label == 1, :, :, 9:] = 1.0, 1.0
        return Batch(x, torch.arange(16), {"label": label})


@pytest.mark.parametrize(("recipe", "length"), [(flow_matching.RECIPE, 60), (dit.RECIPE, 35)], ids=["unet", "dit"])
def test_it_learns_two_pictures_and_their_labels(recipe: Recipe, length: int) -> None:
    spec = DataSpec("image", (1, 18, 18), None, {"label": 2})
    (stage,) = recipe.stages(DataSpec("image", (1, 18, 18), 256, {"label": 2}), Budget.parse("60s"))
    train = replace(stage.train, warmup=5)
    with layer_noise(Rng(0, "init")):
        model = stage.model.build(spec)
    state = TrainState.start(model, train, Plan.start(length, 0.4, flops_per_step=1.0, threads=1))
    for _ in steps(model, Halves(), state, train, 0):
        pass
    label = torch.tensor([0, 1] * 4)
    model.eval()
    with torch.no_grad():
        x = model.sample(8, {"label": label}, rng=Rng(3, "sample"))
    wanted = Halves()[0].x[:8]
    assert (x * wanted).mean() > 0.6  # noise: 0; the other picture: -1
