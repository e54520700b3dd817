"""The gan recipe: it builds for every kind of data it claims, learns, and survives its config's round trip."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from quintet.core import config
from quintet.core.budget import Budget
from quintet.core.plan import Plan
from quintet.core.rng import Rng, layer_noise
from quintet.core.spec import DataSpec
from quintet.data.batches import Batches
from quintet.data.dataset import Split
from quintet.families.gan.losses import LOSSES
from quintet.recipes import dcgan
from quintet.recipes.gan import RECIPE
from quintet.recipes.registry import KINDS
from quintet.train.loop import TrainState, steps

BUDGET = Budget.parse("10s")

SPECS = [
    DataSpec("image", (1, 8, 8), levels=17, conditions={"label": 10}),
    DataSpec("image", (3, 20, 18), levels=256),
    DataSpec("vector", (3,)),
    DataSpec("vector", (6,), conditions={"label": 2}),
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_stage_builds_samples_and_returns_from_json(spec):
    (stage,) = RECIPE.stages(spec, BUDGET)
    assert config.decode(config.encode(stage), KINDS, "stage") == stage
    raw = torch.randint(0, spec.levels, (32, *spec.shape)) if spec.levels else torch.randn(32, *spec.shape)
    codec = stage.codec.fit(spec, raw)
    model = stage.model.build(codec.spec)
    assert {player.name for player in model.players()} == set(stage.train.optimizers)
    cond = {name: torch.arange(4) % n for name, n in spec.conditions.items()}
    x = codec.decode(model.sample(4, cond, rng=Rng(0, "sample")))
    assert x.shape == (4, *spec.shape)
    assert RECIPE.unfit(spec) is None


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 64, 64), (3, 20, 50), (1, 8, 8)], ids=str)
def test_dcgan_has_the_networks_of_gan_and_takes_any_loss(shape):
    spec = DataSpec("image", shape, levels=256, conditions={"label": 3})
    (stage,) = dcgan.RECIPE.stages(spec, BUDGET)
    assert config.decode(config.encode(stage), KINDS, "stage") == stage
    for kind in LOSSES:
        other = config.override(stage, "model.loss", f'{{"kind": "{kind}"}}', kinds=KINDS)
        assert other.model.loss == LOSSES[kind]()
    if max(shape) > 16:
        (modern,) = RECIPE.stages(spec, BUDGET)
        assert (stage.model.generator, stage.model.discriminator) == (
            modern.model.generator,
            modern.model.discriminator,
        )
    model = stage.model.build(stage.codec.fit(spec, torch.randint(0, 256, (4, *shape))).spec)
    assert model.sample(2, {"label": torch.tensor([0, 2])}, rng=Rng(0, "sample")).shape == (2, *shape)


def test_dcgan_is_for_images():
    assert dcgan.RECIPE.unfit(DataSpec("vector", (3,)))
    assert dcgan.RECIPE.unfit(DataSpec("image", (1, 28, 28), levels=256)) is None


def test_gamma_grows_with_the_number_of_pixels():
    gammas = []
    for side in (28, 56):
        (stage,) = RECIPE.stages(DataSpec("image", (1, side, side), levels=256), BUDGET)
        gammas.append(stage.model.gamma)
    assert gammas[1] == pytest.approx(4 * gammas[0])


def test_tokens_are_refused():
    assert RECIPE.unfit(DataSpec("tokens", (8,), levels=4))


def test_it_learns_where_the_data_lie():
    """600 steps on two far Gaussians: the mode's mean is right and nearly nothing lies between. Weights take longer."""
    spec = DataSpec("vector", (2,))
    sign = np.where(np.arange(2000) % 4 == 0, -1.0, 1.0)[:, None]  # a quarter and three quarters
    x = (np.array([[3.0, 1.0]]) * sign + 0.3 * Rng(0, "data").numpy().standard_normal((2000, 2))).astype(np.float32)
    (stage,) = RECIPE.stages(spec, BUDGET)
    codec = stage.codec.fit(spec, torch.from_numpy(x))
    with layer_noise(Rng(1, "init")):
        model = stage.model.build(codec.spec)
    state = TrainState.start(model, stage.train, Plan.start(600, 0.0, flops_per_step=1.0, threads=1))
    for _ in steps(model, Batches(Split(x), codec, 128, 1), state, stage.train, 1):
        pass
    with state.ema.applied(0):
        drawn = codec.decode(model.eval().sample(2000, rng=Rng(2, "sample"))).numpy()
    side = drawn @ np.array([3.0, 1.0]) / 10  # 1 at one mode, -1 at the other
    assert (abs(side) < 0.5).mean() < 0.1
    assert abs(drawn[side > 0].mean(0) - [3.0, 1.0]).max() < 0.2
