"""Decoder distributions against closed forms: normalisation, moments, sampling frequencies, the optimal sigma."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from quintet.core.rng import Rng
from quintet.core.spec import DataSpec
from quintet.families.vae.likelihoods import Categorical, ColourLogistic, DiscretisedLogistic, Gaussian, Likelihood

SHARINGS = ("example", "dimension", "all")


def every_level(output: Likelihood, y: Tensor) -> Tensor:
    """(B, L) log-probabilities of a one-dimensional likelihood."""
    levels = output.spec.levels
    assert levels is not None
    return torch.stack([output.log_prob(torch.full((len(y), 1), k), y) for k in range(levels)], dim=1)


def one(levels: int) -> DataSpec:
    return DataSpec("tokens", (1,), levels)


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("mixtures", [1, 3])
@pytest.mark.parametrize("sharing", SHARINGS)
def test_discretised_logistic_sums_to_one(levels: int, mixtures: int, sharing: str) -> None:
    output = DiscretisedLogistic(one(levels), mixtures=mixtures, sharing=sharing).double()
    y = 4 * Rng(levels, "y", mixtures).normal((200, *output.outputs), torch.float64)
    assert torch.allclose(every_level(output, y).logsumexp(1), torch.zeros(200, dtype=torch.float64), atol=1e-12)


def test_categorical_sums_to_one() -> None:
    output = Categorical(one(17)).double()
    y = 4 * Rng(0, "y").normal((200, *output.outputs), torch.float64)
    assert torch.allclose(every_level(output, y).exp().sum(1), torch.ones(200, dtype=torch.float64), atol=1e-12)


def test_discretised_logistic_is_the_integral_of_the_logistic_density() -> None:
    output = DiscretisedLogistic(one(17), mixtures=1, sharing="example").double()
    mu, log_s = 0.3, -1.7
    y = torch.tensor([[mu, log_s + 1.0]], dtype=torch.float64)  # the scale starts at e^-1 for a zero output
    edges = (torch.arange(1, 17, dtype=torch.float64) - 0.5) / 8 - 1
    cdf = stats.logistic(mu, math.exp(log_s)).cdf(edges.numpy())
    expected = torch.tensor([cdf[0], *(cdf[1:] - cdf[:-1]), 1 - cdf[-1]])
    assert torch.allclose(every_level(output, y)[0].exp(), expected, atol=1e-12)


def test_the_far_tail_stays_finite_with_a_gradient_in_float32() -> None:
    output = DiscretisedLogistic(one(256), mixtures=1, sharing="example")
    y = torch.tensor([[40.0, -30.0], [-40.0, -30.0], [0.0, 20.0]], requires_grad=True)
    log_prob = output.log_prob(torch.tensor([[0], [128], [77]]), y)
    log_prob.sum().backward()
    assert y.grad is not None
    assert log_prob.isfinite().all()
    assert y.grad.isfinite().all()
    assert y.grad[1, 0] > 0.1  # the mean is pulled back towards the level, however far it is


def makers() -> list[Likelihood]:
    return [
        DiscretisedLogistic(one(9), mixtures=1, sharing="example"),
        DiscretisedLogistic(one(9), mixtures=3, sharing="example"),
        DiscretisedLogistic(one(9), mixtures=2, sharing="dimension"),
        Categorical(one(9)),
    ]


@pytest.mark.parametrize("which", range(4))
def test_sampling_frequencies_and_mean(which: int) -> None:
    """Chi-square of 20,000 draws against the stated probabilities; the mean is the probabilities' mean."""
    output = makers()[which]
    n = 20_000
    y = Rng(which, "y").normal((1, *output.outputs)).expand(n, -1)
    mass = every_level(output, y[:1])[0].exp().double().detach()
    drawn = output.sample(y, Rng(which, "draw"))
    assert drawn.dtype == torch.int64
    counts = torch.bincount(drawn.flatten(), minlength=9).double()
    keep = mass * n >= 5
    observed = torch.cat([counts[keep], counts[~keep].sum()[None]])
    expected = torch.cat([mass[keep], mass[~keep].sum()[None]]) * n
    seen = expected > 0
    assert float(observed[~seen].sum()) == 0
    ratio = float(expected[seen].sum() / observed[seen].sum())
    assert ratio == pytest.approx(1, abs=1e-5)
    p = stats.chisquare(observed[seen].numpy(), expected[seen].numpy() / ratio).pvalue
    assert p > 1e-4
    mean = float((mass * torch.arange(9)).sum())
    assert float(output.mean(y[:1]).detach()) == pytest.approx(mean, abs=1e-4)


@pytest.mark.parametrize("which", range(4))
def test_item_i_does_not_depend_on_the_batch(which: int) -> None:
    output = makers()[which]
    y = Rng(which, "y").normal((100, *output.outputs))
    rng = Rng(5, "draw")
    assert torch.equal(output.sample(y, rng)[70:90], output.sample(y[70:90], rng.at(70)))


@pytest.mark.parametrize("sharing", ["dimension", "all"])
def test_optimal_sigma_is_the_root_mean_squared_error(sharing: str) -> None:
    """Rybkin et al. 2021, eq. 4: the gradient in log sigma vanishes at sigma^2 = MSE, and only there."""
    spec = DataSpec("vector", (3,))
    output = Gaussian(spec, sharing=sharing).double()
    x = Rng(1, "x").normal((50, 3), torch.float64) * torch.tensor([0.1, 1.0, 4.0]).double()
    y = Rng(2, "y").normal((50, 3), torch.float64)
    mse = (x - y).square()
    best = mse.mean(0).sqrt() if sharing == "dimension" else mse.mean().sqrt()

    def slope(sigma: Tensor) -> Tensor:
        with torch.no_grad():
            output.log_sigma.mul_(0).add_(sigma.log() / 10)
        (grad,) = torch.autograd.grad(output.log_prob(x, y).mean(), output.log_sigma)
        return grad

    assert torch.allclose(output.log_sigma.exp(), torch.ones_like(best))
    assert slope(best).abs().max() < 1e-12
    assert (slope(0.9 * best) > 0.1).all()
    assert (slope(1.1 * best) < -0.1).all()


@pytest.mark.parametrize("sharing", SHARINGS)
def test_gaussian_against_scipy(sharing: str) -> None:
    output = Gaussian(DataSpec("vector", (3,)), sharing=sharing).double()
    if sharing != "example":
        with torch.no_grad():
            output.log_sigma.add_(
                0.05 * Rng(4, "s").normal((3,), torch.float64)[: output.log_sigma.numel()].view_as(output.log_sigma)
            )
    y = Rng(1, "y").normal((20, *output.outputs), torch.float64)
    x = Rng(2, "x").normal((20, 3), torch.float64)
    mu, sigma = y[:, :3], y[:, 3:].exp() if sharing == "example" else (10 * output.log_sigma).exp().expand(20, 3)
    expected = stats.norm(mu.numpy(), sigma.detach().numpy()).logpdf(x.numpy()).sum(1)
    assert torch.allclose(output.log_prob(x, y), torch.from_numpy(expected), atol=1e-12)
    assert torch.equal(output.mean(y), mu)


def test_image_outputs_keep_the_grid() -> None:
    """Parameters of pixel (c, i, j) come from the same place of the decoder's image."""
    spec = DataSpec("image", (2, 3, 4), 5)
    output = DiscretisedLogistic(spec, mixtures=2, sharing="example")
    assert output.outputs == (12, 3, 4)
    y = Rng(0, "y").normal((2, *output.outputs))
    moved = y.clone()
    moved[:, :, 1, 2] += 1.0
    changed = (output.mean(y) != output.mean(moved)).nonzero()[:, 2:]
    assert {tuple(place) for place in changed.tolist()} == {(1, 2)}


def test_wrong_data_is_refused() -> None:
    with pytest.raises(ValueError, match="levels"):
        Categorical(DataSpec("vector", (2,)))
    with pytest.raises(ValueError, match="continuous"):
        Gaussian(one(4), sharing="all")


@pytest.mark.parametrize("mixtures", [1, 3])
def test_colour_logistic_sums_to_one_over_all_colours(mixtures: int) -> None:
    """Over all 5^3 colours of a pixel at once, and over 256 levels of the last channel given the others."""
    output = ColourLogistic(DataSpec("image", (3, 1, 1), 5), mixtures=mixtures).double()
    y = 3 * Rng(mixtures, "y").normal((20, *output.outputs), torch.float64)
    colours = torch.cartesian_prod(*[torch.arange(5)] * 3)[:, :, None, None]
    for i in range(20):
        total = output.log_prob(colours, y[i : i + 1].expand(125, -1, -1, -1)).logsumexp(0)
        assert float(total) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("mixtures", [1, 2])
def test_colour_logistic_sums_to_one_over_256_levels(mixtures: int) -> None:
    output = ColourLogistic(DataSpec("image", (2, 1, 1), 256), mixtures=mixtures).double()
    y = 2 * Rng(mixtures, "y").normal((1, *output.outputs), torch.float64)
    pairs = torch.cartesian_prod(torch.arange(256), torch.arange(256))[:, :, None, None]
    parts = [output.log_prob(p, y.expand(len(p), -1, -1, -1)) for p in pairs.split(8192)]
    assert float(torch.cat(parts).logsumexp(0)) == pytest.approx(0, abs=1e-10)


def test_colour_logistic_of_one_channel_is_the_plain_one() -> None:
    spec = DataSpec("image", (1, 2, 3), 17)
    colour, plain = (
        ColourLogistic(spec, mixtures=1).double(),
        DiscretisedLogistic(spec, mixtures=1, sharing="example").double(),
    )
    y = Rng(0, "y").normal((9, *plain.outputs), torch.float64)
    x = Rng(1, "x").integers(0, 17, (9, 1, 2, 3))
    assert torch.allclose(colour.log_prob(x, y), plain.log_prob(x, y), atol=1e-12)
    assert torch.allclose(colour.mean(y), plain.mean(y), atol=1e-12)


@pytest.mark.parametrize("mixtures", [1, 2])
def test_colour_samples_follow_the_probabilities(mixtures: int) -> None:
    """Chi-square over the colours of a pixel with three levels a channel, channels strongly coupled."""
    output = ColourLogistic(DataSpec("image", (2, 1, 1), 3), mixtures=mixtures)
    n = 20_000
    y = 0.5 * Rng(3, "y").normal((1, *output.outputs))
    y.view(1, mixtures, -1)[:, :, 4] = 1.5  # how much of the first channel the second takes over
    colours = torch.cartesian_prod(torch.arange(3), torch.arange(3))[:, :, None, None]
    mass = output.log_prob(colours, y.expand(9, -1, -1, -1)).exp().double()
    drawn = output.sample(y.expand(n, -1, -1, -1), Rng(4, "draw"))
    assert drawn.dtype == torch.int64
    counts = torch.bincount((3 * drawn[:, 0] + drawn[:, 1]).flatten(), minlength=9).double()
    keep = mass * n >= 5
    observed = torch.cat([counts[keep], counts[~keep].sum()[None]]).numpy()
    expected = (torch.cat([mass[keep], mass[~keep].sum()[None]]) * n).numpy()
    seen = expected > 0
    assert stats.chisquare(observed[seen], expected[seen] * (observed.sum() / expected[seen].sum())).pvalue > 1e-4
    independent = torch.outer(mass.view(3, 3).sum(1), mass.view(3, 3).sum(0)).flatten()
    assert (mass - independent).abs().max() > 0.02  # the channels know each other


@pytest.mark.parametrize("which", range(4))
def test_noise_is_a_temperature(which: int) -> None:
    """At 0 nothing is drawn, and towards 0 draws gather there."""
    output = makers()[which]
    y = Rng(which, "y").normal((50, *output.outputs))
    still = output.sample(y, Rng(0, "a"), noise=0.0)
    assert torch.equal(still, output.sample(y, Rng(1, "a"), noise=0.0))
    near = [float((output.sample(y, Rng(2, "a"), noise=t) == still).float().mean()) for t in (1e-3, 1.0)]
    assert near[0] > 0.9 > near[1]


def test_noise_scales_the_spread() -> None:
    output = Gaussian(DataSpec("vector", (2,)), sharing="example")
    y = torch.tensor([[0.3, -1.0, 0.5, -0.2]]).expand(20_000, -1)
    for noise in (0.0, 0.4, 1.0):
        x = output.sample(y, Rng(0, "draw"), noise)
        assert torch.allclose(x.std(0), noise * torch.tensor([0.5, -0.2]).exp(), atol=0.03)
