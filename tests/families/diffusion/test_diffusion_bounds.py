"""DDPM's chain, EDM's preconditioning and VDM's bound against closed forms, in float64."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from diffusion_exact import ALL_PATHS, COVARIANCE, MEAN, ROOT, draws, gaussian
from torch import Tensor, nn

from quintet.core.batch import Batch
from quintet.core.model import Turn
from quintet.core.rng import Rng
from quintet.core.spec import Cond, DataSpec
from quintet.families.diffusion.densities import BoundConfig
from quintet.families.diffusion.model import WAVES, Diffusion
from quintet.families.diffusion.paths import DdpmPathConfig, EdmPathConfig, LogSnrPathConfig, Path
from quintet.families.diffusion.sampling import DiffusionSampling
from quintet.families.diffusion.targets import TargetName, combine, convert, presented
from quintet.families.diffusion.weighting import ElboConfig, WeightingConfig

# DDPM


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("steps", [40, 1000])
def test_iterating_the_chain_gives_the_closed_form(schedule: str, steps: int) -> None:
    """q(x_k | x_0) by iterating q(x_k | x_{k-1}) = N(sqrt(1 - beta_k) x_{k-1}, beta_k I)."""
    config = DdpmPathConfig(steps=steps, schedule=schedule)  # type: ignore[arg-type]
    beta, alpha, alpha_bar = config.chain()
    path, mean, variance = config.build(), 1.0, 0.0
    assert bool(((beta > 0) & (beta <= 0.999)).all())
    torch.testing.assert_close(alpha, 1 - beta)
    assert path.level(0.0)[1:] == (1.0, 0.0)
    for k in range(1, steps + 1):
        mean, variance = math.sqrt(1 - beta[k - 1]) * mean, (1 - beta[k - 1]) * variance + beta[k - 1]
        level = path.level(k / steps)
        assert level.a == pytest.approx(mean, rel=1e-10)
        assert level.s**2 == pytest.approx(float(variance), rel=1e-10)
        assert float(alpha_bar[k - 1]) == pytest.approx(mean**2, rel=1e-10)
    assert path.level(1.0).a < 0.02


def test_schedules_do_not_depend_on_the_number_of_steps() -> None:
    """Fewer steps are larger ones: alpha_bar at a share of the chain is nearly the same."""
    for schedule in ("linear", "cosine"):
        few, many = (DdpmPathConfig(steps=n, schedule=schedule).build() for n in (200, 2000))  # type: ignore[arg-type]
        for t in (0.1, 0.5, 0.9):
            assert math.log(few.level(t).a) == pytest.approx(math.log(many.level(t).a), rel=0.1)


def test_float32_times_hit_the_steps() -> None:
    """k / T in float32 may lie below k / T; alpha_bar must still be that of step k."""
    config = DdpmPathConfig()
    t = torch.arange(1, 1001, dtype=torch.float32) / 1000
    torch.testing.assert_close(config.build().a(t).double() ** 2, config.chain().alpha_bar, rtol=1e-4, atol=0)


def test_training_times_are_the_steps() -> None:
    path, law = DdpmPathConfig(steps=20).build(), WeightingConfig(density="uniform")
    k = torch.cat([law.times(64, Rng(0, "t", i), "eps", path) for i in range(50)]).double() * 20
    assert (k - k.round()).abs().max() < 1e-5
    counts = torch.bincount(k.round().long(), minlength=21)
    assert counts[0] == 0
    assert (counts[1:] - 160).abs().max() < 40  # 3,200 draws over 20 steps, even within each batch


def test_ancestral_steps_are_the_articles_mean() -> None:
    """mu(x_t, t) = (x_t - (1 - alpha_t) / sqrt(1 - alpha_bar_t) eps) / sqrt(alpha_t), the posterior's variance."""
    config = DdpmPathConfig(steps=50)
    path, (beta, alpha, alpha_bar) = config.build(), config.chain()
    rows, levels = DiffusionSampling(solver="ancestral").table("v", path)
    assert [round(level.t * 50) for level in levels] == list(range(50, 0, -1))
    x, eps = draws(6, 2, 1), draws(6, 2, 2)
    for row, level in zip(rows, levels, strict=True):
        k = round(level.t * 50) - 1
        x0 = (x - (1 - alpha_bar[k]).sqrt() * eps) / alpha_bar[k].sqrt()
        mu = (x - (1 - alpha[k]) / (1 - alpha_bar[k]).sqrt() * eps) / alpha[k].sqrt()
        torch.testing.assert_close(row.x * x + row.clean * x0, mu, rtol=1e-9, atol=1e-9)
        before = alpha_bar[k - 1] if k else torch.tensor(1.0).double()
        assert row.noise**2 == pytest.approx(float(beta[k] * (1 - before) / (1 - alpha_bar[k])), abs=1e-12)


def test_time_of_a_noise_level_is_the_inverse() -> None:
    for name in ("ddpm-linear", "ddpm-cosine", "edm", "log-snr"):
        path = ALL_PATHS[name]
        t = torch.linspace(path.low + 0.001, 0.998, 333, dtype=torch.float64)
        torch.testing.assert_close(path.time(path.s(t) / path.a(t)), t, rtol=1e-9, atol=1e-9)
        step = 1e-6
        for value, slope in ((path.a, path.da), (path.s, path.ds)):
            inside = (t * 1000 % 1 - 0.5).abs() < 0.49  # not across the corner of a discrete chain
            measured = (value(t + step) - value(t - step)) / (2 * step)
            torch.testing.assert_close(slope(t)[inside], measured[inside], rtol=1e-5, atol=1e-6)


# EDM


@pytest.mark.parametrize("name", ["edm", "linear", "log-snr", "ddpm-linear"])
def test_preconditioned_inputs_and_targets_have_unit_variance(name: str) -> None:
    path, n = ALL_PATHS[name], 200_000
    for t in (0.02, 0.3, 0.7, 0.99):
        time = torch.full((n,), t, dtype=torch.float64)
        x0, eps = path.std * draws(n, 1, 1), draws(n, 1, 2)
        told = presented("edm", path, time[:1])
        assert told is not None
        x = path.point(x0, eps, time)
        assert (told[0] * x).var().item() == pytest.approx(1, abs=0.02)
        f = combine("edm", path, x0, eps, time)
        assert f.var().item() == pytest.approx(1, abs=0.02)
        assert abs((f * x).mean().item()) < 0.02 * x.std().item()  # what the network adds is what x does not tell
        assert told[1].item() == pytest.approx(math.log(path.level(t).sigma) / 4)


def test_preconditioning_is_the_papers_table() -> None:
    """D = c_skip x + c_out F(c_in x), and lambda = 1 / c_out^2 makes the loss that of F."""
    path, d = EdmPathConfig(std=0.6).build(), 0.6
    for sigma in (0.002, 0.1, 0.6, 5.0, 80.0):
        t = path.time(torch.tensor([sigma]).double())
        x, f = draws(1, 4, 3), draws(1, 4, 4)
        skip, out = d**2 / (sigma**2 + d**2), sigma * d / math.sqrt(sigma**2 + d**2)
        torch.testing.assert_close(convert("edm", "x0", path, f, x, t), skip * x + out * f)
        told = presented("edm", path, t)
        assert told is not None
        assert float(told[0]) == pytest.approx(1 / math.sqrt(sigma**2 + d**2))
        weight = WeightingConfig(space="x0").weight("edm", path, t)  # of F's error, to be x0's
        assert float(weight) == pytest.approx(out**2)


def test_log_normal_noise_levels() -> None:
    path, law = EdmPathConfig().build(), WeightingConfig(density="log-normal", mean=-1.2, std=1.2)
    z = (torch.log(path.s(law.times(4096, Rng(1, "t"), "edm", path).double())) + 1.2) / 1.2
    assert abs(z.mean().item()) < 0.01
    assert z.std().item() == pytest.approx(1, abs=0.02)
    assert (z < 0).double().mean().item() == pytest.approx(0.5, abs=0.01)


# VDM


def gap(path: Path, target: TargetName, density: BoundConfig, n: int = 1500) -> tuple[float, float]:
    """Mean of (exact log-likelihood - bound) over Gaussian data and its standard error, with the exact predictions."""
    x = MEAN + draws(n, 3, 5) @ ROOT.T
    exact = torch.distributions.MultivariateNormal(MEAN, COVARIANCE).log_prob(x)

    def predict(wanted: TargetName, z: Tensor, t: Tensor) -> Tensor:
        a, s = path.a(t)[:, None], path.s(t)[:, None]
        v = a[:, :, None] ** 2 * COVARIANCE + s[:, :, None] ** 2 * torch.eye(3, dtype=torch.float64)
        clean = MEAN + a * torch.linalg.solve(v, (z - a * MEAN)[:, :, None])[..., 0] @ COVARIANCE
        assert wanted == "eps"
        return (z - a * clean) / s

    found = exact - density.log_prob(predict, x, target, path, None, Rng(1, "bound"))
    return found.mean().item(), found.std().item() / math.sqrt(n)


def expected_gap(path: Path, steps: int | None = None) -> float:
    """The same in closed form, for chains: E||eps - eps_hat||^2 = tr(I - s^2 V^-1) at each step."""
    count = path.steps if steps is None else steps
    assert count is not None
    first = round(path.low * count) if path.steps else 0
    levels = [path.level(k / count) for k in range(first, count + 1)]
    eye, second = torch.eye(3, dtype=torch.float64), COVARIANCE + torch.outer(MEAN, MEAN)
    terms = 0.0
    for before, at in itertools.pairwise(levels):
        error = torch.trace(eye - at.s**2 * torch.linalg.inv(at.a**2 * COVARIANCE + at.s**2 * eye))
        terms += 0.5 * (before.sigma**-2 / at.sigma**-2 - 1) * float(error)
    last, p = levels[-1], path.spread(1.0) ** 2
    prior = 0.5 * ((3 * last.s**2 + last.a**2 * float(second.trace())) / p - 3 - 3 * math.log(last.s**2 / p))
    reconstruction = 1.5 * (1 + math.log(2 * math.pi * levels[0].sigma ** 2))
    entropy = 0.5 * float(torch.logdet(2 * math.pi * math.e * COVARIANCE))
    return prior + terms + reconstruction - entropy


@pytest.mark.parametrize("name", ["log-snr", "edm", "linear"])
def test_with_the_exact_denoiser_the_bound_is_the_likelihood(name: str) -> None:
    """In continuous time, between ends that say everything and nothing of the data."""
    path = LogSnrPathConfig(low=-14, high=12).build() if name == "log-snr" else ALL_PATHS[name]
    mean, error = gap(path, "edm", BoundConfig(draws=200))
    assert abs(mean) < 4 * error + 0.005
    assert error < 0.05


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_bound_of_a_chain_is_the_sum_over_its_steps(schedule: str) -> None:
    path = DdpmPathConfig(steps=100, schedule=schedule).build()  # type: ignore[arg-type]
    mean, error = gap(path, "edm", BoundConfig(draws=200))
    assert mean == pytest.approx(expected_gap(path), abs=4 * error)
    assert mean > 10 * error


def test_the_discrete_bound_falls_to_the_continuous_one() -> None:
    path = LogSnrPathConfig(low=-12, high=8).build()
    gaps = [gap(path, "edm", BoundConfig(steps=steps, draws=150)) for steps in (10, 30, 100, 400)]
    for (mean, error), steps in zip(gaps, (10, 30, 100, 400), strict=True):
        assert mean == pytest.approx(expected_gap(path, steps), abs=4 * error)
    falling = [expected_gap(path, steps) for steps in (10, 30, 100, 400, 10_000)]
    assert all(a > b for a, b in itertools.pairwise(falling))
    assert falling[-1] == pytest.approx(gap(path, "edm", BoundConfig(draws=150))[0], abs=0.15)


def test_the_bound_depends_on_the_ends_alone() -> None:
    """Another way between the same noise levels gives the same value."""
    ends = (math.log(1e-3) * 2, math.log(50.0) * 2)
    straight = LogSnrPathConfig(low=ends[0], high=ends[1]).build()
    rho = EdmPathConfig(low=1e-3, high=50.0, std=1.0).build()  # variance exploding, another speed
    values = [gap(path, "edm", BoundConfig(draws=256)) for path in (straight, rho)]
    assert values[0][0] == pytest.approx(values[1][0], abs=4 * (values[0][1] + values[1][1]) + 0.01)


class ExactLevels(nn.Module):
    """E[v | z] for one value with known probabilities of its levels."""

    def __init__(self, path: Path, mass: Tensor) -> None:
        super().__init__()
        self.path, self.mass = path, nn.Parameter(mass)

    def forward(self, shown: Tensor, cond: Cond, t: Tensor) -> Tensor:
        assert shown.shape[1] == 1 + WAVES
        x = shown[:, :1]
        a, s = self.path.a(t)[:, None], self.path.s(t)[:, None]
        values = torch.linspace(-1, 1, len(self.mass), dtype=x.dtype)
        weights = torch.softmax(torch.log(self.mass) - (x - a * values) ** 2 / (2 * s**2), 1)
        x0 = (weights * values).sum(1, keepdim=True)
        return a * (x - a * x0) / s - s * x0


def levels_model(mass: Tensor, **more: object) -> Diffusion:
    path = LogSnrPathConfig(low=2 * math.log(2 / (len(mass) - 1) / 8), high=9).build()
    arguments: dict[str, object] = {
        "weighting": ElboConfig(),
        "density": BoundConfig(draws=400),
        "class_dropout": 0.0,
        "sampling": DiffusionSampling(solver="ddim", steps=300, grid="log-snr"),
    }
    spec = DataSpec("vector", (1,), levels=len(mass))
    return Diffusion(spec, ExactLevels(path, mass), path=path, target="v", **{**arguments, **more}).eval()  # type: ignore[arg-type]


def test_the_bound_of_levels_is_their_probability() -> None:
    """With the exact denoiser the bound of each level is its own log-probability: no dequantisation comes in."""
    mass = torch.tensor([0.05, 0.5, 0.15, 0.3], dtype=torch.float64)
    torch.set_default_dtype(torch.float64)
    try:
        model = levels_model(mass)
        x = torch.arange(4).repeat(60)[:, None]
        with torch.no_grad():
            found = model.log_prob(x, rng=Rng(2, "p")).reshape(60, 4)
            drawn = model.sample(4000, rng=Rng(3, "s"))
    finally:
        torch.set_default_dtype(torch.float32)
    error = found.std(0) / math.sqrt(60)
    assert ((found.mean(0) - mass.log()).abs() < 4 * error + 0.02).all(), (found.mean(0), mass.log())
    assert error.max() < 0.05
    share = torch.bincount(drawn[:, 0], minlength=4).double() / 4000
    assert drawn.dtype == torch.int64
    assert (share - mass).abs().max() < 4.5 * 0.5 / math.sqrt(4000)


def test_the_elbo_loss_is_the_bounds_diffusion_term() -> None:
    """Mean over steps of the loss + prior + reconstruction = -bound, per dimension."""
    model = gaussian("linear", "edm")
    model.weighting, model.density = ElboConfig(), BoundConfig(draws=64)
    losses, n = [], 256
    for step in range(40):
        x0 = MEAN + draws(n, 3, 200 + step) @ ROOT.T
        with torch.no_grad():
            losses.append(model.loss(Turn(step, 0.0, Batch(x0, torch.arange(n)), Rng(1, "train", step))).total)
    loss = torch.stack(losses)
    x = MEAN + draws(2000, 3, 9) @ ROOT.T
    diffusion = model.density._diffusion(  # type: ignore[attr-defined]
        lambda target, z, t: model.predict(target, z, t, {}), x, model.path, (1 / 999, 999.0), Rng(0, "d")
    )
    expected = diffusion.mean() / 3
    spread = loss.std() / math.sqrt(40) + diffusion.std() / 3 / math.sqrt(2000)
    assert abs(loss.mean() - expected) < 4 * spread
