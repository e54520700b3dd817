"""Both ways to a diffusion model's likelihood against closed forms, in float64: bound and probability flow."""

from __future__ import annotations

import math

import pytest
import torch
from diffusion_exact import ALL_PATHS, COVARIANCE, MEAN, ROOT, Exact, draws, gaussian, model_of
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from quintet.core.rng import Rng
from quintet.core.spec import Cond, DataSpec
from quintet.families.diffusion.densities import BoundConfig, OdeDensityConfig
from quintet.families.diffusion.model import Diffusion
from quintet.families.diffusion.paths import Path
from quintet.families.diffusion.targets import TargetName

N = 1600


@pytest.mark.parametrize(("path", "target"), [("linear", "velocity"), ("edm", "edm"), ("log-snr", "v")])
def test_with_the_exact_network_both_ways_find_the_entropy(path: str, target: TargetName) -> None:
    model, x = gaussian(path, target), MEAN + draws(N, 3, 5) @ ROOT.T
    exact = MultivariateNormal(MEAN, COVARIANCE).log_prob(x)
    entropy = 0.5 * float(torch.logdet(2 * math.pi * math.e * COVARIANCE))
    with torch.no_grad():
        found = {name: way.log_prob(x, {}, Rng(1, name)) for name, way in model.ways().items()}
    assert set(found) == {"vlb", "ode"}
    gap = exact - found["vlb"]
    error = float(gap.std()) / math.sqrt(N)
    assert error < 0.06
    assert abs(float(gap.mean())) < 4 * error + 0.03  # the ends of the path do not say quite everything
    assert abs(float((exact - found["ode"]).mean())) < 0.03
    assert -float(found["ode"].mean()) == pytest.approx(entropy, abs=4 * float(exact.std()) / math.sqrt(N))


def test_a_wrong_network_pays_in_the_bound_what_the_bound_says() -> None:
    """With a flawed prediction the bound is a likelihood of no model, and below that of the data's own in the mean."""
    x = MEAN + draws(N, 3, 6) @ ROOT.T
    exact = MultivariateNormal(MEAN, COVARIANCE).log_prob(x).mean()
    wrong = model_of(Exact("log-snr", "v", MEAN[None], 3 * COVARIANCE), path="log-snr", target="v")
    with torch.no_grad():
        found = {name: way.log_prob(x, {}, Rng(2, name)).mean() for name, way in wrong.ways().items()}
    model = MultivariateNormal(MEAN, 3 * COVARIANCE).log_prob(x).mean()
    assert float(found["ode"]) == pytest.approx(float(model), abs=0.05)  # the flow's model is the wrong Gaussian
    assert float(found["vlb"]) == pytest.approx(float(model), abs=0.2)
    assert exact - found["vlb"] > 0.1
    coarse = BoundConfig(steps=20, draws=100)
    with torch.no_grad():
        below = wrong._log_prob(coarse, x, {}, Rng(2, "vlb")).mean()
    assert below < found["ode"] - 0.1  # a chain of few steps bounds from below


class Shown(nn.Module):
    """An exact network behind the waves that levels are shown with."""

    def __init__(self, inside: Exact, dims: int) -> None:
        super().__init__()
        self.inside, self.dims = inside, dims

    def forward(self, x: Tensor, cond: Cond, t: Tensor) -> Tensor:
        y: Tensor = self.inside(x[:, : self.dims], cond, t)
        return y


def on_levels(path: Path, name: str, weights: Tensor) -> Diffusion:
    """Pairs of three levels with given probabilities (3, 3), exactly."""
    values = torch.linspace(-1, 1, 3, dtype=torch.float64)
    exact = Exact(name, "v", torch.cartesian_prod(values, values), torch.zeros(2, 2), weights.flatten())
    like = model_of(exact, path=name, target="v")
    return Diffusion(
        DataSpec("vector", (2,), 3), Shown(exact, 2), path=path, target="v", weighting=like.weighting,
        density=OdeDensityConfig(), class_dropout=0.0, sampling=like.sampling,
    ).eval()  # fmt: skip


def test_levels_spread_by_noise_keep_their_probability() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        weights = torch.tensor([[0.30, 0.05, 0.01], [0.10, 0.20, 0.04], [0.05, 0.05, 0.20]])
        model = on_levels(ALL_PATHS["log-snr"], "log-snr", weights)
        x = torch.cartesian_prod(torch.arange(3), torch.arange(3))
        truth = weights.flatten().log()
        ways = model.ways()
        assert "Gaussian" in ways["ode"].protocol
        assert ways["ode"].likelihood == "estimate"
        with torch.no_grad():
            many = x.repeat(40, 1)
            ode = ways["ode"].log_prob(many, {}, Rng(0, "ode")).view(40, 9)
            vlb = ways["vlb"].log_prob(many, {}, Rng(0, "vlb")).view(40, 9)
        for found in (ode, vlb):
            error = found.std(0) / math.sqrt(40) + 0.01
            assert ((found.mean(0) - truth).abs() < 4 * error + 0.05).all()
        assert (ode.mean(0).logsumexp(0)).abs() < 0.1  # probabilities, which add up to one
    finally:
        torch.set_default_dtype(torch.float32)
