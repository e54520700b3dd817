"""Priors: divergences and densities against closed forms, sampling against the density."""

from __future__ import annotations

import math

import torch
from scipy import stats
from torch.distributions import Independent, Normal, kl_divergence

from quintet.core.rng import Rng
from quintet.families.vae.priors import Mixture, Prior, StandardNormal, normal_kl, normal_log_prob


def mixture(width: int = 2, components: int = 4, seed: int = 0) -> Mixture:
    prior = Mixture(width, {"label": 3}, components, speed=5.0).double()
    with torch.no_grad():
        for name, p in prior.named_parameters():
            size = {"size": 0.06, "place": 0.3}.get(name, 0.7)
            p.copy_(size * Rng(seed, name).normal(tuple(p.shape), torch.float64))
    return prior


def test_kl_of_normals() -> None:
    """Closed form against torch.distributions, and the one-sample estimate against the closed form."""
    mean = Rng(0, "m").normal((6, 3), torch.float64)
    log_std = 0.5 * Rng(1, "s").normal((6, 3), torch.float64)
    exact = normal_kl(mean, log_std)
    q = Independent(Normal(mean, log_std.exp()), 1)
    p = Independent(Normal(torch.zeros_like(mean), torch.ones_like(mean)), 1)
    assert torch.allclose(exact, kl_divergence(q, p), atol=1e-12)
    n = 20_000
    for i in range(6):
        z = mean[i] + log_std[i].exp() * Rng(2, "z", i).normal((n, 3), torch.float64)
        each = Prior.kl(StandardNormal(3), mean[i].expand(n, -1), log_std[i].expand(n, -1), z, {})
        error = float(each.mean() - exact[i])
        assert abs(error) < 5 * float(each.std()) / math.sqrt(n)


def test_mixture_is_its_sum() -> None:
    prior = mixture()
    z = Rng(3, "z").normal((10, 2), torch.float64)
    labels = torch.tensor([0, 1, 2, -1, 0, 1, 2, -1, 0, 1])
    got = prior.log_prob(z, {"label": labels})
    for i in range(10):
        row = 3 if labels[i] < 0 else int(labels[i])
        weight = torch.softmax(prior.logits + prior.tables["label"].weight[row], 0)
        density = sum(
            float(weight[k])
            * stats.multivariate_normal(
                prior.mean[k].detach().numpy(), torch.diag((2 * prior.log_std[k]).exp()).detach().numpy()
            ).pdf(z[i].numpy())
            for k in range(4)
        )
        assert abs(float(got[i]) - math.log(density)) < 1e-10
    assert torch.equal(prior.log_prob(z, {}), prior.log_prob(z, {"label": torch.full((10,), -1)}))


def test_mixture_integrates_to_one_and_samples_follow_it() -> None:
    """On a grid; then a chi-square of draws over cells of the plane."""
    prior = mixture(seed=5)
    edges = torch.linspace(-12, 12, 481, dtype=torch.float64)
    mid = (edges[1:] + edges[:-1]) / 2
    grid = torch.stack(torch.meshgrid(mid, mid, indexing="ij"), -1).view(-1, 2)
    label = torch.full((len(grid),), 1)
    mass = (prior.log_prob(grid, {"label": label}).exp() * float(edges[1] - edges[0]) ** 2).view(480, 480)
    assert abs(float(mass.sum()) - 1) < 1e-3
    n = 20_000
    z = prior.sample(n, {"label": torch.full((n,), 1)}, Rng(1, "sample")).double().detach()
    cells = mass.detach().view(24, 20, 24, 20).sum((1, 3)).flatten()  # unit cells
    where = (z + 12).floor().long().clamp(0, 23)
    counts = torch.bincount(where[:, 0] * 24 + where[:, 1], minlength=24 * 24).double()
    keep = cells * n >= 10
    observed = torch.cat([counts[keep], counts[~keep].sum()[None]])
    expected = torch.cat([cells[keep], 1 - cells[keep].sum()[None]]) * n
    assert stats.chisquare(observed.numpy(), (expected * (n / expected.sum())).numpy()).pvalue > 1e-4


def test_temperature_and_rows() -> None:
    prior = mixture()
    cond = {"label": torch.arange(100) % 3}
    cold = prior.sample(100, cond, Rng(0, "s"), temperature=0.0)
    assert ((cold[:, None] - prior.mean[None]).abs().sum(-1).amin(1) == 0).all()
    some = prior.sample(20, {"label": cond["label"][70:90]}, Rng(0, "s").at(70))
    assert torch.equal(prior.sample(100, cond, Rng(0, "s"))[70:90], some)
    assert torch.equal(
        StandardNormal(2).sample(9, {}, Rng(0, "s"), temperature=0.5),
        0.5 * StandardNormal(2).sample(9, {}, Rng(0, "s")),
    )


def test_normal_log_prob_against_scipy() -> None:
    z, mean, log_std = (Rng(i, "a").normal((7, 3), torch.float64) for i in range(3))
    expected = stats.norm(mean.numpy(), log_std.exp().numpy()).logpdf(z.numpy()).sum(1)
    assert torch.allclose(normal_log_prob(z, mean, log_std), torch.from_numpy(expected), atol=1e-12)


def test_marginal_divergences() -> None:
    """Exact for the standard normal; for a mixture against the integral on a grid, number by number."""
    mean = Rng(0, "m").normal((6, 2), torch.float64)
    log_std = -1 + 0.3 * Rng(1, "s").normal((6, 2), torch.float64)
    each = StandardNormal(2).marginal_kl(mean, log_std, {})
    assert torch.allclose(each.sum(1), normal_kl(mean, log_std), atol=1e-12)
    prior = mixture(seed=2)
    label = torch.tensor([0, 1, 2, -1, 0, 1])
    got = prior.marginal_kl(mean, log_std, {"label": label})
    grid = torch.linspace(-9, 9, 36_001, dtype=torch.float64)
    for i in range(6):
        z = grid[:, None].expand(-1, 2)
        log_p = prior.marginal_log_prob(z, {"label": label[i].expand(len(grid))})
        log_q = Normal(mean[i], log_std[i].exp()).log_prob(z)
        expected = (log_q.exp() * (log_q - log_p)).sum(0) * float(grid[1] - grid[0])
        assert torch.allclose(got[i], expected, atol=2e-2, rtol=2e-2)
