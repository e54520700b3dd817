"""The ladder against mathematics: a linear Gaussian chain and its exact posterior, free bits, temperatures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quintet.core.batch import Batch
from quintet.core.config import decode, encode
from quintet.core.model import Turn, capabilities
from quintet.core.recipe import Draw
from quintet.core.rng import Rng, layer_noise
from quintet.core.spec import DataSpec
from quintet.families.vae.ladder import LadderVAE, LadderVAEConfig
from quintet.families.vae.likelihoods import DiscretisedLogisticConfig, Gaussian, GaussianConfig, LikelihoodConfig
from quintet.families.vae.model import VaeSampling
from quintet.nets.ladder import LadderConfig

D, TOP, LOW = 5, 2, 3


class LinearChain(nn.Module):
    """z1 = u1, z2 = A z1 + b + s u2, x = C z2 + noise, and a posterior linear in (x, u1): all known in closed form.

    The exact posterior of u has correlated numbers within a group, which a diagonal one cannot be. So u is turned,
    group by group, onto the axes of its posterior covariance, which leaves the prior N(0, I) as it is.
    """

    groups = ((TOP,), (LOW,))

    def __init__(self, seed: int) -> None:
        super().__init__()
        rng = Rng(seed, "chain")
        self.noise = 0.5
        a = rng("a").normal((LOW, TOP), torch.float64)
        b = rng("b").normal((LOW,), torch.float64)
        s = 0.5 + rng("s").uniform((LOW,), torch.float64)
        c = rng("c").normal((D, LOW), torch.float64)
        precision = torch.eye(D, dtype=torch.float64) / self.noise**2
        # x = (C A) u1 + (C S) u2 + C b + noise; u1 | x sees u2 and the noise as noise, u2 | x, u1 the noise alone
        up, low = c @ a, c * s
        outer = torch.linalg.inv(low @ low.T + torch.eye(D, dtype=torch.float64) * self.noise**2)
        turn1 = torch.linalg.eigh(up.T @ outer @ up).eigenvectors
        turn2 = torch.linalg.eigh(low.T @ precision @ low).eigenvectors
        self.up, self.low, self.shift = up @ turn1, low @ turn2, c @ b
        self.gain = [self.up.T @ outer, self.low.T @ precision]
        self.var = [1 / (1 + torch.diagonal(g @ w)) for g, w in zip(self.gain, (self.up, self.low), strict=True)]
        self.wrong = nn.Parameter(torch.zeros(2, dtype=torch.float64))  # moves the posterior's mean and log std
        self.encoder, self.decoder = _Part(self.see), _Part(self.down)

    def see(self, x: Tensor, cond: Any) -> list[Tensor]:
        return [x, x]

    def down(self, features: Sequence[Tensor] | None, cond: Any, draw: Draw, n: int) -> Tensor:
        mean = self.shift.expand(n, -1)
        for group, weight in enumerate((self.up, self.low)):
            posterior = None
            if features is not None:
                # precision of u_i | x is 1 + g w on these axes
                at = self.var[group] * ((features[group] - mean) @ self.gain[group].T) + self.wrong[0]
                spread = 0.5 * self.var[group].log() + self.wrong[1]
                posterior = torch.stack([at, spread.expand_as(at)], dim=1)
            mean = mean + draw(group, posterior) @ weight.T
        return mean

    def log_prob(self, x: Tensor) -> Tensor:
        eye = torch.eye(D, dtype=x.dtype)
        cov = self.up @ self.up.T + self.low @ self.low.T + self.noise**2 * eye
        return torch.distributions.MultivariateNormal(self.shift, cov).log_prob(x)


class _Part(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        return self.function(*args)


def chain(seed: int = 0, **changes: Any) -> LadderVAE:
    spec = DataSpec("vector", (D,))
    fields = {
        "beta": (1.0,),
        "free_bits": (0.0,),
        "kl_warmup": 0.0,
        "class_dropout": 0.0,
        "bound_samples": 4,
        **changes,
    }
    vae = LadderVAE(spec, LinearChain(seed), Gaussian(spec, sharing="all"), sampling=VaeSampling(), **fields).double()
    with torch.no_grad():
        vae.output.log_sigma.fill_(math.log(0.5) / 10)  # type: ignore[union-attr]
    return vae


def data(vae: LadderVAE, n: int = 200) -> Tensor:
    """From the model itself, and half of it shifted away: the identity holds for any x."""
    with torch.no_grad():
        x = vae.sample(n, rng=Rng(1, "x"))
    return x + 2.0 * (torch.arange(n) % 2)[:, None]


@pytest.mark.parametrize("seed", range(3))
@torch.no_grad()
def test_the_exact_posterior_makes_the_bound_log_p(seed: int) -> None:
    """Every importance weight equals p(x): bound = log p to 1e-6 at any number of samples."""
    vae = chain(seed)
    x = data(vae)
    truth = vae.network.log_prob(x)  # type: ignore[attr-defined]
    for samples in (1, 6):
        assert (vae.importance_bound(x, None, samples, rng=Rng(0, "b")) - truth).abs().max() < 1e-6
    assert float(truth.std()) > 0.1


@torch.no_grad()
def test_the_loss_is_minus_the_bound() -> None:
    """Averaged over noise, with the closed form of the divergence, it meets log p from the same posterior."""
    vae = chain(1)
    x = data(vae, 40)
    truth = float(vae.network.log_prob(x).mean())  # type: ignore[attr-defined]
    losses = [vae.loss(Turn(i, 0.5, Batch(x, torch.arange(40)), Rng(i, "t"))) for i in range(400)]
    values = -D * torch.stack([loss.total for loss in losses])
    assert float(values.mean()) == pytest.approx(truth, abs=5 * float(values.std()) / 20)
    parts = losses[0].parts
    assert float(parts["kl_nats"]) == pytest.approx(float(parts["kl_nats_1"] + parts["kl_nats_2"]))


@torch.no_grad()
def test_the_importance_bound_rises_with_samples_and_is_unbiased_in_weights() -> None:
    vae = chain(2)
    x = data(vae, 60)
    truth = vae.network.log_prob(x)  # type: ignore[attr-defined]
    vae.network.wrong.copy_(torch.tensor([0.15, 0.3]))  # type: ignore[attr-defined]
    means = []
    for k in (1, 4, 16, 64):
        draws = torch.stack([vae.importance_bound(x, None, k, rng=Rng(i, "b", k)).mean() for i in range(60)])
        means.append(draws.mean())
    assert means[0] + 0.02 < means[1] < means[2] < means[3] < truth.mean() + 0.01
    assert truth.mean() - means[3] < 0.2 * (truth.mean() - means[0])
    ratio = torch.stack([(vae.importance_bound(x, None, 7, rng=Rng(i, "u")) - truth).exp().mean() for i in range(300)])
    assert float(ratio.mean()) == pytest.approx(1, abs=5 * float(ratio.std()) / math.sqrt(300))
    assert float(ratio.std()) > 1e-4


@torch.no_grad()
def test_samples_follow_the_chain_and_temperature_narrows_them() -> None:
    vae = chain(3)
    net = vae.network
    for temperature, noise in ((1.0, 1.0), (0.5, 0.0)):
        x = vae.sample(40_000, rng=Rng(0, "s"), sampling=VaeSampling(temperature=temperature, noise=noise))
        cov = temperature**2 * (net.up @ net.up.T + net.low @ net.low.T)  # type: ignore[attr-defined]
        cov = cov + (noise * net.noise) ** 2 * torch.eye(D, dtype=x.dtype)  # type: ignore[attr-defined]
        assert (x.mean(0) - net.shift).abs().max() < 5 * float(cov.diagonal().max().sqrt()) / 200  # type: ignore[attr-defined]
        assert (torch.cov(x.T) - cov).abs().max() < 0.05 * float(cov.diagonal().max())


@torch.no_grad()
def test_beta_weighs_the_groups() -> None:
    """The loss is linear in the factors, with the groups' divergences as slopes; the last factor repeats."""
    x = data(chain(0), 30)
    moment = Turn(0, 0.5, Batch(x, torch.arange(30)), Rng(0, "t"))
    plain, parts = (loss := chain(0).loss(moment)).total, loss.parts
    for beta, extra in (((3.0, 1.0), 2 * parts["kl_nats_1"]), ((0.5,), -0.5 * parts["kl_nats"])):
        assert float(chain(0, beta=beta).loss(moment).total - plain) * D == pytest.approx(float(extra), rel=1e-9)


@torch.no_grad()
def test_the_divergence_is_charged_in_full_precision() -> None:
    x = data(chain(0), 30)
    moment = Turn(0, 0.5, Batch(x, torch.arange(30)), Rng(0, "t"))
    vae = chain(0, beta=(0.7,)).float()
    moment = Turn(0, 0.5, Batch(x.float(), torch.arange(30)), Rng(0, "t"))
    with torch.autocast("cpu", torch.bfloat16):
        loss = vae.loss(moment)
    assert float(loss.total * D - loss.parts["reconstruction_nats"]) == pytest.approx(
        0.7 * float(loss.parts["kl_nats"]), rel=1e-4
    )


def test_free_bits_stop_the_divergence_of_each_example_and_group() -> None:
    """With a likelihood of no weight the posterior's gradient is the divergence's alone."""
    for free, moves in ((1e6, False), (0.0, True)):
        vae = chain(0, free_bits=(free,))
        x = data(vae, 30)
        with torch.no_grad():
            vae.output.log_sigma.fill_(3.0)  # type: ignore[union-attr]
        loss = vae.loss(Turn(0, 0.5, Batch(x, torch.arange(30)), Rng(0, "t")))
        (grad,) = torch.autograd.grad(loss.total, vae.network.wrong)  # type: ignore[attr-defined]
        assert (grad.abs().max() > 1e-6) == moves


def test_each_group_has_free_bits_of_its_own() -> None:
    """Where all of the top group is free and nothing of the other, the charge is the other's divergence alone."""
    x = data(chain(0), 30)
    moment = Turn(0, 0.5, Batch(x, torch.arange(30)), Rng(0, "t"))
    with torch.no_grad():
        free, plain = chain(0, free_bits=(1e3, 0.0)).loss(moment), chain(0).loss(moment)
    assert float(free.parts["kl_nats"]) == pytest.approx(float(plain.parts["kl_nats"]))
    assert float(free.total - plain.total) * D == pytest.approx(1e3 - float(plain.parts["kl_nats_1"]), rel=1e-9)


@torch.no_grad()
def test_half_a_batch_draws_the_same_rows() -> None:
    """Losses of the halves of a batch average to the loss of the whole: rows do not mix."""
    vae = chain(0, free_bits=(1.0,))
    x = data(vae, 128)

    def loss(rows: slice) -> float:
        part = Batch(x[rows], torch.arange(128)[rows])
        return float(vae.loss(Turn(0, 0.5, part, Rng(0, "t", first=rows.start))).total)

    assert 0.5 * (loss(slice(0, 64)) + loss(slice(64, 128))) == pytest.approx(loss(slice(0, 128)), rel=1e-10)


@torch.no_grad()
def test_kl_per_dimension_finds_a_silent_number() -> None:
    vae = chain(0)
    net = vae.network
    x = data(vae)
    each = vae.kl_per_dimension(x)
    assert each.shape == (TOP + LOW,)
    assert (each > 1e-3).all()
    mean, std = vae.encode(x)[:, 0], net.var[0][0].sqrt()  # type: ignore[attr-defined]
    expected = (0.5 * (mean.square() + std**2 - 1) - std.log()).mean()
    assert float(each[0]) == pytest.approx(float(expected), rel=1e-9)
    net.up[:, 1] = 0  # type: ignore[attr-defined]
    net.gain[0][1], net.var[0][1] = 0, 1  # type: ignore[attr-defined]
    assert float(vae.kl_per_dimension(x)[1]) == pytest.approx(0, abs=1e-12)


CASES: list[tuple[DataSpec, LikelihoodConfig, LadderConfig]] = [
    (
        DataSpec("image", (1, 9, 7), 5, {"label": 3}),
        DiscretisedLogisticConfig(),
        LadderConfig(width=3, latents=(1, 2), channels=(6, 8), patch=2, smallest=3),
    ),
    (
        DataSpec("vector", (4,), None, {"label": 3}),
        GaussianConfig(),
        LadderConfig(width=2, latents=(2,), channels=(16,)),
    ),
]


@pytest.mark.parametrize(("spec", "likelihood", "network"), CASES, ids=["image", "vector"])
def test_the_model_with_networks(spec: DataSpec, likelihood: LikelihoodConfig, network: LadderConfig) -> None:
    config = LadderVAEConfig(network=network, likelihood=likelihood, bound_samples=3)
    kinds = {c.kind: c for c in (LadderVAEConfig, VaeSampling, LadderConfig, type(likelihood))}
    assert decode(encode(config), kinds) == config
    with layer_noise(Rng(0, "init")):
        vae = config.build(spec)
    assert capabilities(vae) == ("log_prob", "latent", "trace")
    assert vae.latent.shape == (sum(vae.widths),)
    cond = {"label": torch.arange(80) % 3}
    with torch.no_grad():
        for p in vae.parameters():
            p.add_(0.1 * Rng(1, "open").normal((p.numel(),)).view_as(p))
        x = vae.sample(80, cond, rng=Rng(0, "s"))
        assert x.shape == (80, *spec.shape)
        z = vae.encode(x, cond)
        assert z.shape == (80, *vae.latent.shape)
        assert not torch.equal(z, vae.encode(x, cond, rng=Rng(0, "q")))
        assert vae.decode(z, cond).shape == x.shape
        part = vae.log_prob(x[65:70], {"label": cond["label"][65:70]}, rng=Rng(0, "b").at(65))
        assert torch.allclose(vae.log_prob(x, cond, rng=Rng(0, "b"))[65:70], part, atol=1e-3)
        # the prior's divergence from itself is 0: without the encoder's word nothing is charged
        assert vae.kl_per_dimension(x, cond).shape == vae.latent.shape
    loss = vae.loss(Turn(0, 0.9, Batch(x, torch.arange(80), cond), Rng(0, "t")))
    loss.total.backward()
    assert all(p.grad is not None for p in vae.parameters())


@torch.no_grad()
def test_a_fresh_ladder_already_tells_examples_apart() -> None:
    """Every group starts with posterior means that differ between examples, or it would be trained away as noise."""
    spec, likelihood, network = CASES[0]
    with layer_noise(Rng(0, "init")):
        vae = LadderVAEConfig(network=network, likelihood=likelihood).build(spec)
    x = Rng(0, "x").integers(0, 5, (64, *spec.shape))
    spread = vae.encode(x).std(0).split(vae.widths)
    assert all(0.05 < float(group.mean()) < 5 for group in spread)
