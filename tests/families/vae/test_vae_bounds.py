"""Bounds of log p(x) against closed forms and quadrature, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, Normal

from quintet.core.rng import Rng
from quintet.core.spec import Cond
from quintet.families.vae.bounds import Inference, annealed, betas, elbo, importance, log_weights, ways

B, D = 24, 5
GENERATOR = Rng(5, "linear")
WEIGHT = GENERATOR("weight").normal((D, 2), torch.float64)
NOISE = 0.4
X = GENERATOR("z").normal((B, 2), torch.float64) @ WEIGHT.T + NOISE * GENERATOR("noise").normal((B, D), torch.float64)


def linear(shift: float, stretch: float) -> Callable[[Tensor, Cond], Inference]:
    """x = W z + noise, and its posterior moved by `shift` standard deviations and `stretch` times as wide."""
    precision = torch.eye(2, dtype=torch.float64) + WEIGHT.T @ WEIGHT / NOISE**2
    values, turn = torch.linalg.eigh(torch.linalg.inv(precision))
    weight = WEIGHT @ turn  # on its axes the posterior's numbers are independent, and the prior is as before

    def infer(x: Tensor, cond: Cond) -> Inference:
        std = values.sqrt() * stretch
        mean = x @ weight * values / NOISE**2 + shift * values.sqrt()

        def terms(z: Tensor) -> tuple[Tensor, Tensor]:
            joint = Normal(0.0, 1.0).log_prob(z).sum(1) + Normal(z @ weight.T, NOISE).log_prob(x).sum(1)
            return Normal(mean, std).log_prob(z).sum(1), joint

        return Inference(lambda noise: mean + std * noise, terms, std.expand(len(x), -1))

    return infer


def exact() -> Tensor:
    cov = WEIGHT @ WEIGHT.T + NOISE**2 * torch.eye(D, dtype=torch.float64)
    return MultivariateNormal(torch.zeros(D, dtype=torch.float64), cov).log_prob(X)


def test_with_the_exact_posterior_every_bound_is_log_p() -> None:
    infer, truth = linear(0.0, 1.0), exact()
    found = infer(X, {})
    torch.testing.assert_close(elbo(found, 3, Rng(0, "b")), truth, atol=1e-6, rtol=0)
    torch.testing.assert_close(importance(found, 3, Rng(0, "b")), truth, atol=1e-6, rtol=0)
    torch.testing.assert_close(annealed(infer, X, {}, temperatures=7, rng=Rng(0, "b")), truth, atol=1e-6, rtol=0)


def test_each_bound_is_nearer_than_the_one_before() -> None:
    infer, truth = linear(0.8, 0.6), exact().mean()
    found = infer(X, {})
    logs = log_weights(found, 2048, Rng(1, "w"))  # (2048, B)
    plain = logs.mean()
    weighted = [(logs.view(k, -1, B).logsumexp(0) - math.log(k)).mean() for k in (1, 8, 64)]
    assert float(importance(found, 64, Rng(1, "w")).mean()) == pytest.approx(float(weighted[2]), abs=0.1)
    best = annealed(infer, X.repeat(4, 1), {}, temperatures=60, rng=Rng(0, "ais")).mean()
    assert plain == pytest.approx(float(elbo(found, 64, Rng(2, "e")).mean()), abs=0.3)
    assert plain < truth - 0.3
    assert weighted[0] < weighted[1] < weighted[2] < truth + 0.01
    assert abs(best - truth) < 0.02
    assert truth - best < (truth - weighted[1]) / 4


def test_annealing_is_unbiased() -> None:
    """The mean of exp(bound) is p(x) for any number of temperatures, also where moves are refused."""
    infer, n = linear(0.5, 0.8), 150
    for temperatures in (1, 6):
        found = annealed(infer, X.repeat(n, 1), {}, temperatures=temperatures, chains=2, rng=Rng(0, "u"))
        ratio = (found - exact().repeat(n)).exp().view(n, B).mean(1)
        error = float(ratio.std()) / math.sqrt(n)
        assert 1e-4 < error < 0.1
        assert float(ratio.mean()) == pytest.approx(1, abs=4 * error)


class Curved(nn.Module):
    """A decoder of two latents whose posterior is bent: x = (z1, z1^2 + z2, tanh 2 z2) + noise."""

    def forward(self, z: Tensor) -> Tensor:
        return torch.stack([z[:, 0], z[:, 0] ** 2 + z[:, 1], torch.tanh(2 * z[:, 1])], 1)


def test_annealing_finds_log_p_of_a_curved_decoder() -> None:
    """Against quadrature over the plane, from an encoder that is only roughly right."""
    decoder, noise, n = Curved(), 0.3, 12
    x = decoder(Rng(2, "z").normal((n, 2), torch.float64)) + noise * Rng(2, "x").normal((n, 3), torch.float64)

    def infer(x: Tensor, cond: Cond) -> Inference:
        mean = torch.stack([0.9 * x[:, 0], x[:, 1] - x[:, 0] ** 2], 1)
        std = torch.tensor([0.35, 0.5], dtype=torch.float64).expand(len(x), -1)

        def terms(z: Tensor) -> tuple[Tensor, Tensor]:
            joint = Normal(0.0, 1.0).log_prob(z).sum(1) + Normal(decoder(z), noise).log_prob(x).sum(1)
            return Normal(mean, std).log_prob(z).sum(1), joint

        return Inference(lambda eps: mean + std * eps, terms, std)

    side = torch.linspace(-5, 5, 601, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    prior, centre = Normal(0.0, 1.0).log_prob(grid).sum(1), decoder(grid)
    inside = torch.stack([torch.logsumexp(prior + Normal(centre, noise).log_prob(one).sum(1), 0) for one in x])
    truth = inside + 2 * math.log(float(side[1] - side[0]))
    repeats = 6
    runs = annealed(infer, x.repeat(repeats, 1), {}, temperatures=150, rng=Rng(0, "curved")).view(repeats, n)
    error = runs.std(0) / math.sqrt(repeats) + 0.01
    assert ((runs.mean(0) - truth).abs() < 5 * error).all()
    assert float(runs.mean()) == pytest.approx(float(truth.mean()), abs=4 * float(error.square().mean()) ** 0.5 + 0.01)
    assert float(error.mean()) < 0.2
    assert elbo(infer(x, {}), 500, Rng(0, "rough")).mean() < truth.mean() - 0.3  # so that the task is not trivial


def test_rows_are_their_own() -> None:
    """Whatever the batch: row i of the noise serves example i, its step sizes are its own."""
    infer = linear(0.5, 0.8)
    whole = annealed(infer, X, {}, temperatures=9, rng=Rng(3, "rows"))
    rest = annealed(infer, X[5:], {}, temperatures=9, rng=Rng(3, "rows").at(5))
    torch.testing.assert_close(rest, whole[5:], rtol=1e-9, atol=1e-9)
    found = infer(X, {})
    torch.testing.assert_close(
        log_weights(infer(X[5:], {}), 3, Rng(3, "rows").at(5)), log_weights(found, 3, Rng(3, "rows"))[:, 5:]
    )


def test_temperatures_rise_from_nothing_to_all() -> None:
    for count in (1, 2, 50):
        values = torch.tensor(betas(count))
        assert len(values) == count + 1
        assert values[0] == 0
        assert values[-1] == 1
        assert (values.diff() > 0).all()


def test_effort_shares_the_draws() -> None:
    infer = linear(0.5, 0.8)
    full, part = ways(infer, 1.0), ways(infer, 1 / 64)
    assert set(full) == set(part) == {"elbo", "iw", "ais"}
    assert "1024 samples" in full["iw"].protocol
    assert "16 samples" in part["iw"].protocol
    for way in part.values():
        assert way.likelihood == "bound"
        value = way.log_prob(X, {}, Rng(0, "way"))
        assert value.shape == (B,)
        assert value.isfinite().all()
