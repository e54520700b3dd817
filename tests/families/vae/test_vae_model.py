"""The VAE against mathematics: probabilistic PCA, the importance-weighted bound, gradients, free bits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quintet.core.batch import Batch
from quintet.core.config import decode, encode
from quintet.core.model import Turn, capabilities
from quintet.core.rng import Rng, layer_noise
from quintet.core.spec import DataSpec
from quintet.families.vae.likelihoods import (
    CategoricalConfig,
    DiscretisedLogisticConfig,
    Gaussian,
    GaussianConfig,
    LikelihoodConfig,
)
from quintet.families.vae.model import VAE, VAEConfig, VaeSampling
from quintet.families.vae.priors import MixtureConfig, Prior, PriorConfig, StandardNormal, StandardNormalConfig
from quintet.nets.mlp import MLPConfig

D, W = 6, 2


class Affine(nn.Module):
    """Linear in the first input, with a constant appended that does not depend on it."""

    def __init__(self, inputs: int, outputs: int, constant: int = 0) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.constant = nn.Parameter(torch.zeros(constant)) if constant else None

    def forward(self, x: Tensor, cond: Any, t: Tensor | None = None) -> Tensor:
        y = self.linear(x)
        return y if self.constant is None else torch.cat([y, self.constant.expand(len(x), -1)], dim=1)


def linear_vae(**changes: Any) -> VAE:
    spec = DataSpec("vector", (D,))
    fields = {"beta": 1.0, "free_bits": 0.0, "kl_warmup": 0.0, "class_dropout": 0.0, "bound_samples": 8, **changes}
    vae = VAE(
        spec,
        Affine(D, W, W),
        Affine(W, D),
        fields.pop("prior", StandardNormal(W)),
        Gaussian(spec, sharing="all"),
        sampling=VaeSampling(),
        **fields,
    )
    return vae.double()


def factor_data(n: int = 400, seed: int = 0) -> Tensor:
    mix = Rng(seed, "mix").normal((W, D), torch.float64) * 1.5
    return (
        Rng(seed, "z").normal((n, W), torch.float64) @ mix
        + 0.4 * Rng(seed, "noise").normal((n, D), torch.float64)
        + Rng(seed, "mean").normal((1, D), torch.float64)
    )


def ppca(x: Tensor) -> tuple[Tensor, Tensor, float]:
    """Maximum likelihood mean, W (D, W) and sigma^2 (Tipping & Bishop 1999, eqs. 7 and 8)."""
    mean = x.mean(0)
    values, vectors = torch.linalg.eigh((x - mean).T @ (x - mean) / len(x))
    values, vectors = values.flip(0), vectors.flip(1)
    noise = float(values[W:].mean())
    return mean, vectors[:, :W] * (values[:W] - noise).sqrt(), noise


def set_ppca(vae: VAE, mean: Tensor, weight: Tensor, noise: float) -> None:
    """The decoder of probabilistic PCA and its exact posterior, diagonal because `weight` has orthogonal columns."""
    m = (weight.square().sum(0) + noise).reciprocal()  # (W,)
    with torch.no_grad():
        vae.decoder.linear.weight.copy_(weight)  # type: ignore[union-attr]
        vae.decoder.linear.bias.copy_(mean)  # type: ignore[union-attr]
        vae.output.log_sigma.fill_(0.5 * math.log(noise) / 10)  # type: ignore[union-attr]
        inverse = m[:, None] * weight.T
        vae.encoder.linear.weight.copy_(inverse)  # type: ignore[union-attr]
        vae.encoder.linear.bias.copy_(-inverse @ mean)  # type: ignore[union-attr]
        vae.encoder.constant.copy_(0.5 * (noise * m).log())  # type: ignore[union-attr]


def exact_bound(vae: VAE, x: Tensor) -> Tensor:
    """(B,) the bound without sampling error: log p(x | z) is quadratic in z, which 2 W points integrate exactly."""
    mean, log_std = vae.posterior(x, {})
    total = torch.zeros(len(x), dtype=x.dtype)
    for i in range(W):
        for side in (-1, 1):
            step = torch.zeros(W, dtype=x.dtype)
            step[i] = side * math.sqrt(W)
            z = mean + step * log_std.exp()
            total = total + vae.output.log_prob(x, vae.decoder(z, {})) / (2 * W)
    return total - vae.prior.kl(mean, log_std, mean, {})


def exact_log_prob(x: Tensor, mean: Tensor, weight: Tensor, noise: float) -> Tensor:
    cov = weight @ weight.T + noise * torch.eye(D, dtype=x.dtype)
    return torch.distributions.MultivariateNormal(mean, cov).log_prob(x)


def test_linear_vae_with_the_exact_posterior_reaches_log_p() -> None:
    """Bound = log p to 1e-6, for the exact expectation, and for the importance-weighted one at any K."""
    x, vae = factor_data(), linear_vae()
    mean, weight, noise = ppca(x)
    set_ppca(vae, mean, weight, noise)
    truth = exact_log_prob(x, mean, weight, noise)
    assert (exact_bound(vae, x) - truth).abs().max() < 1e-6
    for samples in (1, 5):
        bound = vae.importance_bound(x, None, samples, rng=Rng(0, "b"))
        assert (bound - truth).abs().max() < 1e-6
    noisy = torch.stack([vae.elbo(x, rng=Rng(i, "e")) for i in range(200)])
    gap = (noisy - truth).mean(0)
    assert float(gap.detach().abs().max()) < 6 * float(noisy.detach().std(0).max()) / math.sqrt(200)


def test_ppca_is_where_the_bound_is_stationary_and_where_training_ends() -> None:
    x, vae = factor_data(seed=3), linear_vae()
    mean, weight, noise = ppca(x)
    set_ppca(vae, mean, weight, noise)
    best = exact_bound(vae, x).mean()
    for grad in torch.autograd.grad(best, list(vae.parameters())):
        assert grad.abs().max() < 1e-9
    for trial in range(20):  # no nearby parameters are better
        with torch.no_grad():
            other = linear_vae()
            other.load_state_dict(vae.state_dict())
            for name, p in other.named_parameters():
                p.add_(0.01 * Rng(trial, name).normal((*p.shape, 1), torch.float64)[..., 0] if p.ndim else 0.01)
            assert exact_bound(other, x).mean() < best
    fresh = linear_vae()
    with torch.no_grad():
        for name, p in fresh.named_parameters():
            p.copy_(0.2 * Rng(1, name).normal((*p.shape, 1), torch.float64)[..., 0] if p.ndim else p)
    optimiser = torch.optim.LBFGS(
        fresh.parameters(), max_iter=2000, history_size=50, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = -exact_bound(fresh, x).mean()
        loss.backward()
        return loss

    optimiser.step(closure)
    assert float(best.detach() - exact_bound(fresh, x).mean().detach()) == pytest.approx(0, abs=1e-5)
    learned = fresh.decoder.linear.weight.detach()  # type: ignore[union-attr]
    assert torch.allclose(learned @ learned.T, weight @ weight.T, atol=1e-2)


def set_beta_ppca(vae: VAE, x: Tensor, beta: float, noise: float) -> Tensor:
    """The optimum of the linear VAE with factor beta on the divergence and fixed noise variance; (W,) its rates.

    Reverse water-filling: along an axis of variance l > beta noise the distortion is beta noise and the rate
    log(l / (beta noise)) / 2. From the gradients of (distortion + ...) / (2 noise) + beta KL, solved axis by axis.
    """
    mean = x.mean(0)
    values, vectors = torch.linalg.eigh((x - mean).T @ (x - mean) / len(x))
    values, vectors = values.flip(0)[:W], vectors.flip(1)[:, :W]
    level = beta * noise
    assert (values > level).all()
    set_ppca(vae, mean, vectors * (values - level).sqrt(), level)
    with torch.no_grad():
        vae.output.log_sigma.fill_(0.5 * math.log(noise) / 10)  # type: ignore[union-attr]
    return 0.5 * (values / level).log()


@pytest.mark.parametrize("beta", [0.3, 1.0, 2.5])
def test_beta_moves_rate_and_distortion_as_the_closed_form_says(beta: float) -> None:
    """With the scale learned as well, noise = (sum of discarded variances) / (D - beta W)."""
    x = factor_data(seed=4)
    values = torch.linalg.eigvalsh(torch.cov(x.T, correction=0)).flip(0)
    noise = float(values[W:].sum()) / (D - beta * W)
    vae = linear_vae(beta=beta)
    rates = set_beta_ppca(vae, x, beta, noise)
    mean, log_std = vae.posterior(x, {})
    kl = vae.prior.kl(mean, log_std, mean, {}).mean()
    assert float(kl.detach()) == pytest.approx(float(rates.sum()), rel=1e-9)
    assert torch.allclose(vae.kl_per_dimension(x), rates, atol=1e-9)
    distortion = -(exact_bound(vae, x).mean() + kl - D * -0.5 * math.log(2 * math.pi * noise)) * 2 * noise
    assert float(distortion.detach()) == pytest.approx(beta * noise * W + float(values[W:].sum()), rel=1e-9)
    for grad in torch.autograd.grad((beta - 1) * kl - exact_bound(vae, x).mean(), list(vae.parameters())):
        assert grad.abs().max() < 1e-9


def off_posterior(seed: int = 0) -> tuple[VAE, Tensor, Tensor]:
    """A linear VAE whose encoder is wrong on purpose: (model, x, exact log p)."""
    x = factor_data(60, seed)
    mean, weight, noise = ppca(x)
    vae = linear_vae()
    set_ppca(vae, mean, weight, noise)
    with torch.no_grad():
        vae.encoder.constant.add_(0.5)  # type: ignore[union-attr]
        vae.encoder.linear.bias.add_(0.1)  # type: ignore[union-attr]
    return vae, x, exact_log_prob(x, mean, weight, noise)


@torch.no_grad()
def test_the_importance_bound_rises_with_samples_towards_log_p() -> None:
    """Burda et al. 2016, theorem 1."""
    vae, x, truth = off_posterior()
    plain = exact_bound(vae, x)
    draws = {
        k: [vae.importance_bound(x, None, k, rng=Rng(i, "b", k)).mean() for i in range(100)] for k in (1, 4, 16, 64)
    }
    means = [torch.stack(values).mean() for values in draws.values()]
    spread = float(torch.stack(draws[1]).std())
    assert float(means[0]) == pytest.approx(float(plain.mean()), abs=5 * spread / 10)
    assert means[0] + 0.05 < means[1] < means[2] < means[3] < truth.mean() + 0.005
    assert truth.mean() - means[3] < 0.2 * (truth.mean() - means[0])


@torch.no_grad()
def test_the_importance_weights_are_unbiased() -> None:
    """The mean of exp(bound) is p(x), whatever K."""
    vae, x, truth = off_posterior(1)
    for k in (1, 7):
        ratio = torch.stack([(vae.importance_bound(x, None, k, rng=Rng(i, "u", k)) - truth).exp() for i in range(400)])
        each = ratio.mean(1)  # the examples of one repetition share nothing but the model
        assert float(each.mean() - 1) == pytest.approx(0, abs=5 * float(each.std()) / math.sqrt(400))
        assert float(each.std()) > 1e-3


def tiny(
    likelihood: LikelihoodConfig | None = None, prior: PriorConfig | None = None, **changes: Any
) -> tuple[VAE, DataSpec]:
    likelihood = likelihood or DiscretisedLogisticConfig()
    levels = None if isinstance(likelihood, GaussianConfig) else 5
    spec = DataSpec("vector" if levels is None else "tokens", (4,), levels, {"label": 3})
    config = VAEConfig(
        encoder=MLPConfig(width=16, depth=2),
        decoder=MLPConfig(width=16, depth=2),
        width=3,
        prior=prior or MixtureConfig(components=6),
        likelihood=likelihood,
        **changes,
    )
    kinds = {c.kind: c for c in (VAEConfig, VaeSampling, MLPConfig, type(config.prior), type(likelihood))}
    assert decode(encode(config), kinds) == config
    with layer_noise(Rng(0, "init")):
        return config.build(spec), spec


def turn(spec: DataSpec, n: int = 32, step: int = 0, progress: float = 0.9) -> Turn:
    rng = Rng(7, "data")
    x = rng.integers(0, spec.levels, (n, *spec.shape)) if spec.levels else rng.normal((n, *spec.shape))
    cond = {"label": rng("label").integers(0, 3, (n,))}
    return Turn(step, progress, Batch(x, torch.arange(n), cond), Rng(0, "train", step))


def test_reparameterised_gradient_against_finite_differences() -> None:
    vae, spec = tiny()
    vae.double()
    moment = turn(spec)
    loss = vae.loss(moment).total
    params = dict(vae.named_parameters())
    grads = dict(zip(params, torch.autograd.grad(loss, list(params.values())), strict=True))
    for name, p in params.items():
        direction = Rng(1, name).normal((*p.shape, 1), torch.float64)[..., 0]
        values = []
        for side in (-1, 1):
            with torch.no_grad():
                p.add_(side * 1e-5 * direction)
                values.append(float(vae.loss(moment).total))
                p.sub_(side * 1e-5 * direction)
        slope = (values[1] - values[0]) / 2e-5
        assert slope == pytest.approx(float((grads[name] * direction).sum()), abs=1e-7, rel=1e-5), name


def test_reparameterised_gradient_is_the_gradient_of_the_exact_bound() -> None:
    """Averaged over noise it meets the gradient of the closed form, in which nothing is sampled."""
    vae, x, _ = off_posterior(2)
    params = list(vae.parameters())
    exact = torch.cat([g.flatten() for g in torch.autograd.grad(-exact_bound(vae, x).mean() / D, params)])
    draws = []
    for i in range(400):
        moment = Turn(i, 0.5, Batch(x, torch.arange(len(x))), Rng(3, "train", i))
        draws.append(torch.cat([g.flatten() for g in torch.autograd.grad(vae.loss(moment).total, params)]))
    each = torch.stack(draws)
    error = (each.mean(0) - exact).abs()
    assert (error <= 5 * each.std(0) / 20 + 1e-9).all()


def test_free_bits_switch_the_divergence_off_below_their_threshold() -> None:
    """With a decoder that ignores z the encoder's gradient is the divergence's alone."""
    x = factor_data(50)
    moment = Turn(0, 0.5, Batch(x, torch.arange(50)), Rng(0, "train", 0))
    for free, moves in ((1e6, False), (0.0, True)):
        vae = linear_vae(free_bits=free)
        with torch.no_grad():
            vae.decoder.linear.weight.zero_()  # type: ignore[union-attr]
        loss = vae.loss(moment)
        assert 0 < float(loss.parts["kl_nats"]) < 1e6
        grads = torch.autograd.grad(loss.total, list(vae.encoder.parameters()))
        assert any((g != 0).any() for g in grads) == moves


def test_warm_up_scales_the_divergence() -> None:
    vae = linear_vae(kl_warmup=0.4, beta=2.0)
    x = factor_data(20)
    seen = []
    for progress in (0.0, 0.1, 0.2, 0.4, 0.8):
        loss = vae.loss(Turn(0, progress, Batch(x, torch.arange(20)), Rng(0, "train", 0)))
        seen.append(float((loss.total.detach() * D - loss.parts["reconstruction_nats"]) / loss.parts["kl_nats"]))
    assert seen == pytest.approx([0.0, 0.5, 1.0, 2.0, 2.0], abs=1e-6)


def test_collapse_shows_in_the_active_units() -> None:
    x = factor_data(200)
    moment = Turn(0, 0.5, Batch(x, torch.arange(200)), Rng(0, "train", 0))
    vae = linear_vae()
    assert float(vae.loss(moment).parts["active_units"]) == W
    with torch.no_grad():
        vae.encoder.linear.weight[0].zero_()  # type: ignore[union-attr]
    assert float(vae.loss(moment).parts["active_units"]) == W - 1


def test_one_held_out_example_tells_nothing_of_a_collapse() -> None:
    vae = linear_vae()
    x = factor_data(8)
    with torch.no_grad():
        assert not vae.watch(Batch(x, torch.arange(8)), Batch(x[:1], torch.arange(1)), rng=Rng(0, "watch"))
        vae.encoder.linear.weight.zero_()  # type: ignore[union-attr]
        vae.encoder.linear.bias.zero_()  # type: ignore[union-attr]
        (found,) = vae.watch(Batch(x, torch.arange(8)), Batch(x, torch.arange(8)), rng=Rng(0, "watch"))
    assert found.what == "posterior_collapse"


LIKELIHOODS = [DiscretisedLogisticConfig(mixtures=2, sharing="dimension"), CategoricalConfig(), GaussianConfig()]


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=lambda c: c.kind)
@pytest.mark.parametrize("prior", [StandardNormalConfig(), MixtureConfig(components=5)], ids=lambda c: c.kind)
def test_the_model_keeps_the_contract(likelihood: LikelihoodConfig, prior: PriorConfig) -> None:
    vae, spec = tiny(likelihood, prior)
    vae.loss(turn(spec)).total.backward()
    for name, p in vae.named_parameters():
        assert p.grad is not None, name
    assert capabilities(vae) == ("log_prob", "latent", "trace")
    vae.eval()
    with torch.no_grad():
        cond = {"label": torch.arange(80) % 3}
        for sampling in (VaeSampling(), VaeSampling(noise=0.0), VaeSampling(temperature=0.5)):
            x = vae.sample(80, cond, rng=Rng(0, "s"), sampling=sampling)
            assert x.shape == (80, *spec.shape)
            if spec.levels is not None:
                assert x.dtype == torch.int64
                assert x.min() >= 0
                assert x.max() < spec.levels
            part = vae.sample(5, {"label": cond["label"][66:71]}, rng=Rng(0, "s").at(66), sampling=sampling)
            assert torch.allclose(x[66:71].double(), part.double(), atol=1e-5)
        hidden = {"label": torch.full((9,), -1)}
        assert torch.equal(vae.sample(9, rng=Rng(1, "s")), vae.sample(9, hidden, rng=Rng(1, "s")))
        x = vae.sample(30, cond := {"label": torch.arange(30) % 3}, rng=Rng(0, "s"))
        bound = vae.log_prob(x, cond, rng=Rng(0, "b"))
        assert bound.shape == (30,)
        assert bound.isfinite().all()
        part = vae.log_prob(x[10:13], {"label": cond["label"][10:13]}, rng=Rng(0, "b").at(10))
        assert torch.allclose(bound[10:13], part, atol=1e-4)
        z = vae.encode(x, cond)
        assert z.shape == (30, *vae.latent.shape)
        assert torch.equal(z, vae.encode(x, cond))
        assert not torch.equal(z, vae.encode(x, cond, rng=Rng(0, "q")))
        assert vae.decode(z, cond).shape == x.shape
        assert vae.decode(z, cond).dtype == x.dtype
        trace = vae.trace(3, 5, {"label": torch.tensor([0, 1, 2])}, rng=Rng(0, "t"))
        assert trace.kind == "walk"
        assert trace.frames.shape == (5, 3, *spec.shape)
        assert len(trace.at) == 5
    assert vae.sequential_steps() == 1
    assert "64" in vae.log_prob_protocol


@torch.no_grad()
def test_the_bound_is_that_of_a_normalised_distribution() -> None:
    """Summed over all 3^3 data, exp(bound) has mean 1: the sampled weights of a proper model."""
    spec = DataSpec("tokens", (3,), 3)
    config = VAEConfig(
        encoder=MLPConfig(width=8, depth=1),
        decoder=MLPConfig(width=8, depth=1),
        width=2,
        prior=MixtureConfig(components=3),
        likelihood=DiscretisedLogisticConfig(),
    )
    with layer_noise(Rng(2, "init")):
        vae = config.build(spec).double()
    x = torch.cartesian_prod(*[torch.arange(3)] * 3)
    total = torch.stack([vae.importance_bound(x, None, 200, rng=Rng(i, "t")).exp().sum() for i in range(30)])
    assert float(total.std()) > 1e-6
    assert float(total.mean()) == pytest.approx(1.0, abs=5 * float(total.std()) / math.sqrt(30))


def test_a_prior_alone_decides_its_divergence() -> None:
    """A one-component mixture at (0, I) charges, on average, what the standard normal charges exactly."""
    prior = MixtureConfig(components=1).build(2, {}).double()
    with torch.no_grad():
        prior.place.zero_()  # type: ignore[union-attr]
    mean, log_std = torch.tensor([[0.3, -1.0]]).double(), torch.tensor([[-0.5, 0.2]]).double()
    z = mean + log_std.exp() * Rng(0, "z").normal((50_000, 2), torch.float64)
    each = prior.kl(mean.expand(50_000, -1), log_std.expand(50_000, -1), z, {})
    exact = StandardNormal(2).kl(mean, log_std, mean, {})
    assert isinstance(prior, Prior)
    assert float(each.mean().detach()) == pytest.approx(float(exact), abs=5 * float(each.std()) / math.sqrt(50_000))
