"""First stages: bottlenecks by their formulas, the autoencoder by what it reconstructs."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from quintet.core.batch import Batch
from quintet.core.model import Turn, round_trip_error
from quintet.core.plan import Plan
from quintet.core.recipe import OptimizerConfig, TrainConfig
from quintet.core.rng import Rng, layer_noise
from quintet.core.spec import DataSpec
from quintet.families.vae.autoencoder import AutoencoderConfig
from quintet.families.vae.quantize import (
    FiniteScalars,
    FiniteScalarsConfig,
    GaussianBottleneck,
    GaussianBottleneckConfig,
)
from quintet.nets.rescale import RescaleConfig, steps_between
from quintet.train.loop import TrainState, steps


def test_a_gaussian_bottleneck_charges_the_closed_form_divergence() -> None:
    h = torch.randn(3, 8, 2, 5, dtype=torch.float64)
    found = GaussianBottleneck(4).squeeze(h, None)
    mean, log_variance = h.chunk(2, 1)
    exact = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0)).flatten(1).sum(1)
    assert torch.allclose(found.cost, exact, atol=1e-10)
    assert torch.equal(found.z, mean)


def test_a_gaussian_bottleneck_draws_from_its_posterior() -> None:
    h = torch.tensor([0.5, -1.0, math.log(0.25), math.log(4.0)], dtype=torch.float64).reshape(1, 4, 1, 1)
    z = GaussianBottleneck(2).squeeze(h.expand(40_000, 4, 1, 1), Rng(1, "q")).z[:, :, 0, 0]
    assert (z.mean(0) - torch.tensor([0.5, -1.0])).abs().max() < 0.05
    assert (z.std(0) - torch.tensor([0.5, 2.0])).abs().max() < 0.05


@pytest.mark.parametrize("levels", [(2,), (3, 4), (8, 6, 5), (8, 5, 5, 5)])
def test_every_code_is_reached_recalled_and_stored_again(levels: tuple[int, ...]) -> None:
    bottleneck = FiniteScalars(levels)
    count = math.prod(levels)
    codes = torch.arange(count)[:, None]
    z = bottleneck.recall(codes, (1, 1))
    assert z.abs().max() <= 1
    assert torch.equal(bottleneck.store(z), codes)
    assert len(torch.unique(z.flatten(1), dim=0)) == count
    far = 20 * torch.randn(20_000, len(levels), 1, 1)
    seen = bottleneck.store(bottleneck.squeeze(far, None).z)
    assert {int(seen.min()), int(seen.max())} <= set(range(count))
    near = bottleneck.squeeze(2 * torch.randn(60_000, len(levels), 1, 1), None).z
    for channel, steps_ in enumerate(levels):
        assert len(near[:, channel].unique()) == steps_


def test_gradients_pass_the_rounding_straight_through() -> None:
    h = torch.randn(50, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    bottleneck = FiniteScalars((8, 6, 5))
    weight = torch.randn_like(h)
    (found,) = torch.autograd.grad((bottleneck.squeeze(h, None).z * weight).sum(), h)
    steps_ = torch.tensor([8.0, 6.0, 5.0], dtype=torch.float64)[:, None, None]
    half = (steps_ - 1) * (1 + 1e-3) / 2
    shift = torch.atanh(torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64)[:, None, None] / half)
    smooth = half * (1 - (h + shift).tanh().square()) * 2 / (steps_ - 1)
    assert torch.allclose(found, weight * smooth, atol=1e-9)


@pytest.mark.parametrize("bottleneck", [GaussianBottleneckConfig(channels=4), FiniteScalarsConfig(levels=(8, 8, 8, 8))])
def test_it_learns_to_reconstruct(bottleneck: GaussianBottleneckConfig | FiniteScalarsConfig) -> None:
    """Images that are two numbers each: a bar's row and its brightness."""
    spec = DataSpec("image", (1, 8, 8))

    class Bars:
        first = 0

        def __getitem__(self, step: int) -> Batch:
            rng = Rng(0, "bars", step)
            row, bright = rng("row").integers(0, 8, (32,)), rng("bright").uniform((32,))
            x = torch.full((32, 1, 8, 8), -1.0)
            x[torch.arange(32), 0, row] += (0.5 + 1.5 * bright)[:, None]
            return Batch(x, torch.arange(32))

    network = RescaleConfig(channels=(32, 32), patch=1)
    with layer_noise(Rng(0, "init")):
        model = AutoencoderConfig(encoder=network, decoder=network, bottleneck=bottleneck, factor=2).build(spec)
    config = TrainConfig(batch=32, optimizers={"model": OptimizerConfig(lr=4e-3)}, ema=())
    state = TrainState.start(model, config, Plan.start(150, 0.4, flops_per_step=1.0, threads=1))
    for _ in steps(model, Bars(), state, config, 0):
        pass
    model.eval()
    x = Bars()[10**6].x
    with torch.no_grad():
        again = model.decode(model.encode(x))
        assert (again - x).square().mean() < 0.1 * (x - x.mean(0)).square().mean()
        assert torch.isfinite(round_trip_error(model, x)).all()
        assert model.sample(3, rng=Rng(0, "s")).shape == (3, 1, 8, 8)


def test_the_loss_is_absolute_errors_of_pixels_and_differences() -> None:
    spec = DataSpec("image", (2, 4, 4))
    network = RescaleConfig(channels=(8,), patch=1)
    model = AutoencoderConfig(encoder=network, decoder=network, factor=2, cost=0.0, edges=0.7).build(spec)
    x = torch.randn(5, 2, 4, 4)
    turn = Turn(0, 0.0, Batch(x, torch.arange(5)), Rng(0, "t"))
    loss = model.loss(turn)
    z = model.bottleneck.squeeze(model.encoder(x, {}), turn.rng("squeeze")).z
    error = model.decoder(z, {}) - x
    across, down = error[..., 1:] - error[..., :-1], error[..., 1:, :] - error[..., :-1, :]
    edges = across.abs().mean() + down.abs().mean()
    assert loss.total.item() == pytest.approx((error.abs().mean() + 0.7 * edges).item())


def test_sizes_that_halving_does_not_reach_are_refused() -> None:
    assert steps_between((28, 28), (7, 7), 2) == ((14, 14), (7, 7))
    assert steps_between((21, 34), (6, 9), 2) == ((11, 17), (6, 9))
    with pytest.raises(ValueError, match="not halved"):
        steps_between((28, 28), (5, 5), 1)
