"""The GAN's detectors: each sees its failure within 200 steps, and none speaks up in a healthy run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from quintet.core.batch import Batch
from quintet.core.budget import Budget
from quintet.core.plan import Plan
from quintet.core.rng import Rng, layer_noise
from quintet.core.spec import DataSpec
from quintet.data.batches import Batches
from quintet.data.dataset import Split
from quintet.families.gan.model import diversity_ratio, duplicates, overfit, wins
from quintet.recipes.gan import RECIPE
from quintet.train.loop import TrainState, steps

SPEC = DataSpec("vector", (2,), conditions={"label": 2})


def data(n, seed=0):
    label = np.arange(n) % 2
    x = Rng(seed, "data").numpy().standard_normal((n, 2)) * 0.4 + np.where(label, 1.0, -1.0)[:, None]
    return x.astype(np.float32), label.astype(np.int64)


def duel(count=2000):
    """The recipe's model for vectors, and its batches."""
    x, label = data(count)
    (stage,) = RECIPE.stages(SPEC, Budget.parse("10s"))
    codec = stage.codec.fit(SPEC, torch.from_numpy(x))
    with layer_noise(Rng(1, "init")):
        model = stage.model.build(codec.spec)
    return model, stage.train, codec, Batches(Split(x, {"label": label}), codec, 128, 1)


def train(model, config, batches, count):
    state = TrainState.start(model, config, Plan.start(count, 0.0, flops_per_step=1.0, threads=1))
    for _ in steps(model, batches, state, config, 1):
        pass
    model.eval()


def found(model, codec, batches):
    x, label = data(256, seed=5)
    held_out = Batch(codec.encode(torch.from_numpy(x)), torch.arange(256), {"label": torch.from_numpy(label)})
    with torch.no_grad():
        return {f.what: f for f in model.watch(batches.take(0, 256), held_out, rng=Rng(3, "watch"))}


class Stuck(nn.Module):
    """A generator that stays where it is: far from the data, or at one point of each class."""

    def __init__(self, inner: nn.Module, constant: bool) -> None:
        super().__init__()
        self.inner, self.constant = inner, constant
        self.idle = nn.Parameter(torch.zeros(()))

    def forward(self, z, cond):
        if not self.constant:
            return (self.inner(z, cond) * 0.1 + 6 + self.idle * 0).detach() + self.idle * 0
        return torch.ones(len(z), 2) * (2 * cond["label"][:, None] - 1) + self.idle * 0


def test_a_discriminator_that_wins_at_once_is_seen():
    model, config, codec, batches = duel()
    model.generator = Stuck(model.generator, constant=False)
    train(model, config, batches, 200)
    seen = found(model, codec, batches)
    assert seen["discriminator_won"].value > 0.999


def test_a_constant_generator_is_seen():
    model, config, codec, batches = duel()
    model.generator = Stuck(model.generator, constant=True)
    train(model, config, batches, 200)
    seen = found(model, codec, batches)
    assert seen["mode_collapse"].severe
    assert seen["mode_collapse"].value == pytest.approx(0, abs=1e-6)
    assert seen["duplicates"].value == 1


def test_where_no_two_rows_share_a_label_diversity_is_not_called_lost():
    x, label = torch.randn(6, 2), {"label": torch.arange(6)}
    assert diversity_ratio(x, torch.zeros(6, 2), label) == 1
    assert diversity_ratio(x, torch.zeros(6, 2), {"label": torch.arange(6) // 2}) == 0


def test_a_healthy_run_raises_nothing():
    model, config, codec, batches = duel()
    train(model, config, batches, 400)
    assert not found(model, codec, batches)


def test_a_discriminator_that_knows_its_data_by_heart_is_seen():
    """A logit of 1 on the training rows and 0 elsewhere: held-out rows count as generated."""
    model, _, codec, batches = duel()
    known = batches.take(0, 256).x

    class Memory(nn.Module):
        def forward(self, x, cond):
            return (torch.cdist(x, known).amin(1) < 1e-4).float(), {}

    assert "discriminator_overfit" not in found(model, codec, batches)
    model.discriminator = Memory()
    assert found(model, codec, batches)["discriminator_overfit"].value == 1


def test_overfit_is_the_share_of_the_way_and_ignores_noise():
    generator = torch.Generator().manual_seed(0)
    train, held_out, fake = torch.randn(3, 4000, generator=generator)
    assert overfit(train + 4, held_out + 3, fake).item() == pytest.approx(0.25, abs=0.05)
    assert overfit(train + 4, held_out + 4, fake).item() == 0
    assert overfit(train, held_out - 1, fake + 2).item() == 0  # the discriminator is wrong, not over-fit
    assert overfit(train[:256] + 4, held_out[:256] + 3.9, fake[:256]).item() == 0


def test_duplicates_counts_near_twins():
    real = torch.randn(200, 1, 4, 4)
    fake = torch.randn(200, 1, 4, 4)
    assert duplicates(real, fake).item() < 0.05
    fake[:60] = fake[60:120] + 1e-3 * torch.randn(60, 1, 4, 4)
    assert duplicates(real, fake).item() == pytest.approx(0.6, abs=0.05)
    assert duplicates(real[:1], fake[:1]).item() == 0


def test_wins_compare_within_a_label():
    real, fake = torch.tensor([1.0, 5.0]), torch.tensor([0.0, 4.0, 2.0])
    every = torch.ones(2, 3, dtype=torch.bool)
    assert wins(real, fake, every).item() == pytest.approx(4 / 6)
    same = torch.tensor([[True, False, False], [False, True, True]])
    assert wins(real, fake, same).item() == 1
