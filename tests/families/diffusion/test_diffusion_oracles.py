"""The model against closed forms, in float64: Gaussian data, mixtures, a finite set; two claims of the articles."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from diffusion_exact import ALL_PATHS, COVARIANCE, MEAN, ROOT, Exact, carried, draws, flow_map, gaussian, model_of
from torch import Tensor

from quintet.core.batch import Batch
from quintet.core.errors import UsageError
from quintet.core.model import Turn
from quintet.core.rng import Rng
from quintet.families.diffusion.densities import OdeDensityConfig
from quintet.families.diffusion.paths import PATHS
from quintet.families.diffusion.sampling import DiffusionSampling
from quintet.families.diffusion.targets import TargetName, span
from quintet.families.diffusion.weighting import WeightingConfig

PATH_NAMES = tuple(ALL_PATHS)
TARGETS: tuple[TargetName, ...] = ("x0", "eps", "v", "velocity", "score", "edm")
EYE = torch.eye(3, dtype=torch.float64)


def at(t: float, n: int) -> Tensor:
    return torch.full((n,), t, dtype=torch.float64)


@pytest.mark.parametrize("path", PATH_NAMES)
@pytest.mark.parametrize("target", TARGETS)
def test_every_head_gives_the_same_field(path: str, target: TargetName) -> None:
    """Score and velocity of N(a mu, V): -V^-1 (x - a mu), and the derivative of the exact flow map by time."""
    model, x, p = gaussian(path, target), draws(20, 3, 1), ALL_PATHS[path]
    for t in (0.0503, 0.3004, 0.7006, 0.9505):  # between the steps of a discrete chain, where the slope jumps
        time = at(t, len(x))
        a, s = p.a(time[0]), p.s(time[0])
        v = a**2 * COVARIANCE + s**2 * EYE
        score = -(x - a * MEAN) @ torch.linalg.inv(v)
        torch.testing.assert_close(model.predict("score", x, time, {}), score, rtol=1e-8, atol=1e-8)
        step = 1e-5
        slope = (flow_map(path, x, t, t + step) - flow_map(path, x, t, t - step)) / (2 * step)
        torch.testing.assert_close(model.predict("velocity", x, time, {}), slope, rtol=1e-6, atol=1e-6)
        clean = MEAN + a * (x - a * MEAN) @ torch.linalg.solve(v, COVARIANCE)
        torch.testing.assert_close(model.predict("x0", x, time, {}), clean, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("path", PATH_NAMES)
def test_denoiser_takes_any_noise_level(path: str) -> None:
    model, x = gaussian(path, "velocity"), draws(30, 3, 2) * 2
    sigma = torch.linspace(0.05, 8.0, 30, dtype=torch.float64)
    v = COVARIANCE + sigma[:, None, None] ** 2 * EYE
    expected = MEAN + torch.linalg.solve(v, (x - MEAN)[:, :, None])[..., 0] @ COVARIANCE
    torch.testing.assert_close(model.denoiser()(x, sigma), expected, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(
        model.denoiser()(x, torch.tensor(0.5)), model.denoiser()(x, torch.full((30,), 0.5).double())
    )


HEADS = [(path, target) for path in PATH_NAMES for target in (("v", "edm") if path in PATHS else ("eps", "edm"))]


@pytest.mark.parametrize(("path", "target"), [*HEADS, ("linear", "x0"), ("linear", "score"), ("linear", "velocity")])
@pytest.mark.parametrize("solver", ["rk4", "dopri5", "ddim", "dpmpp-2m", "edm"])
def test_sampling_is_the_exact_flow_map(path: str, target: TargetName, solver: str) -> None:
    """Whatever the head, the path and the solver. Where the lowest time is not clean, the rest is one look at E[x0]."""
    if solver == "dopri5" and path.startswith("ddpm"):
        pytest.skip("the slope jumps at each of a thousand steps: dopri5 follows it, slowly")
    model = gaussian(path, target)
    steps = {"rk4": 150, "ddim": 1000, "dpmpp-2m": 200, "edm": 200}
    sampling = DiffusionSampling(solver=solver, steps=steps.get(solver), tolerance=1e-6 if solver == "dopri5" else None)  # type: ignore[arg-type]
    start = span(target, model.path)[1]
    if solver in ("ddim", "dpmpp-2m", "edm"):
        start = sampling.levels(target, model.path)[0].t
    noise = Rng(3, "sample")("noise").normal((50, 3)).double()
    found = model.sample(50, rng=Rng(3, "sample"), sampling=sampling)
    exact = carried(path, target, noise * model.path.spread(start), start)
    # ddim is of first order; the chain's first steps are not small, and the others' grids end at sigma 0.002
    assert (found - exact).abs().max() < (0.03 if solver == "ddim" or path.startswith("ddpm") else 0.005)


def test_the_paths_know_their_own_grids() -> None:
    """Clean-data solvers use training times alone: T of them at most; log-SNR grids are even in log-SNR."""
    chain = ALL_PATHS["ddpm-linear"]
    for solver, steps in (("ddim", 50), ("dpmpp-2m", 20), ("edm", 18), ("ancestral", None)):
        levels = DiffusionSampling(solver=solver, steps=steps).levels("eps", chain)  # type: ignore[arg-type]
        assert all(abs(level.t * 1000 - round(level.t * 1000)) < 1e-9 for level in levels)
        assert len(levels) == (steps or 1000)
    with pytest.raises(UsageError, match="1000"):
        DiffusionSampling(solver="ddim", steps=1001).levels("eps", chain)
    sigma = [level.sigma for level in DiffusionSampling(solver="dpmpp-2m", steps=9).levels("v", ALL_PATHS["cosine"])]
    ratios = [b / a for a, b in itertools.pairwise(sigma)]
    assert max(ratios) == pytest.approx(min(ratios), rel=1e-6)
    seventh = [level.sigma ** (1 / 7) for level in DiffusionSampling(solver="edm").levels("edm", ALL_PATHS["edm"])]
    gaps = [a - b for a, b in itertools.pairwise(seventh)]
    assert max(gaps) == pytest.approx(min(gaps), rel=1e-6)
    assert (seventh[0] ** 7, seventh[-1] ** 7) == pytest.approx((80, 0.002))


@pytest.mark.parametrize(("path", "sampling"), [
    ("ddpm-linear", DiffusionSampling(solver="ancestral")),
    ("log-snr", DiffusionSampling(solver="ddim", eta=1.0, steps=600, grid="log-snr")),
    ("edm", DiffusionSampling(solver="edm", steps=100, churn=30.0, churn_low=0.01, churn_high=50.0)),
    ("linear", DiffusionSampling(solver="edm", steps=100, churn=30.0)),
])  # fmt: skip
def test_stochastic_sampling_has_the_datas_moments(path: str, sampling: DiffusionSampling) -> None:
    model, n = gaussian(path, "edm"), 1000
    with torch.no_grad():
        x = model.sample(n, rng=Rng(8, "s"), sampling=sampling)
    spread = COVARIANCE.diagonal().sqrt()
    assert ((x.mean(0) - MEAN) / spread).abs().max() < 4.5 / math.sqrt(n)
    assert (x.T.cov() - COVARIANCE).abs().max() < 0.1


@pytest.mark.parametrize("path", ["linear", "cosine", "vp", "edm", "log-snr"])
@pytest.mark.parametrize("target", ["velocity", "edm"])
def test_likelihood_of_a_gaussian(path: str, target: TargetName) -> None:
    model = gaussian(path, target, density=OdeDensityConfig(solver="dopri5", tolerance=1e-6, probes=0))
    x = MEAN + draws(40, 3, 5) @ ROOT.T
    low, p = span(target, model.path)[0], model.path
    z = flow_map(path, x, low, 1.0)
    v = [p.level(t).a ** 2 * COVARIANCE + p.level(t).s ** 2 * EYE for t in (low, 1.0)]
    base = torch.distributions.Normal(0.0, p.spread(1.0)).log_prob(z).sum(1)
    expected = base + 0.5 * (torch.logdet(v[1]) - torch.logdet(v[0]))
    torch.testing.assert_close(model.log_prob(x, rng=Rng(0, "l")), expected, rtol=0, atol=1e-4)
    if path in ("linear", "cosine"):  # the others leave some of the data in the noise, or begin above clean data
        exact = torch.distributions.MultivariateNormal(MEAN, COVARIANCE).log_prob(x)
        torch.testing.assert_close(expected, exact, rtol=0, atol=1e-4)


def test_probes_are_unbiased_and_rows_are_their_own() -> None:
    x = MEAN + draws(64, 3, 6) @ ROOT.T
    exact = torch.distributions.MultivariateNormal(MEAN, COVARIANCE).log_prob(x)
    one = gaussian("linear", "velocity", density=OdeDensityConfig(probes=1))
    errors = torch.stack([one.log_prob(x, rng=Rng(seed, "probe")) - exact for seed in range(8)])
    assert errors.std() > 0.05  # the covariance is not diagonal, so a probe is an estimate
    assert abs(errors.mean()) < 4 * errors.std() / math.sqrt(errors.numel())
    four = gaussian("linear", "velocity", density=OdeDensityConfig(probes=4))
    spread = torch.stack([four.log_prob(x, rng=Rng(seed, "probe")) - exact for seed in range(8)]).std()
    assert spread < 0.75 * errors.std()
    rng = Rng(1, "rows")
    torch.testing.assert_close(one.log_prob(x, rng=rng)[9:12], one.log_prob(x[9:12], rng=rng.at(9)))


def test_log_prob_of_a_mixture_integrates_to_one() -> None:
    means = torch.tensor([[-1.0], [0.8]])
    model = model_of(
        Exact("linear", "velocity", means, torch.tensor([[0.04]]), torch.tensor([0.3, 0.7])),
        path="linear",
        target="velocity",
        density=OdeDensityConfig(solver="dopri5", tolerance=1e-6, probes=0),
    )
    x = torch.linspace(-2.5, 2.5, 401, dtype=torch.float64)[:, None]
    density = model.log_prob(x, rng=Rng(0, "l")).exp()
    assert torch.trapezoid(density, x[:, 0]).item() == pytest.approx(1, abs=1e-4)
    parts = [w * torch.exp(torch.distributions.Normal(m, 0.2).log_prob(x[:, 0])) for w, m in ((0.3, -1.0), (0.7, 0.8))]
    torch.testing.assert_close(density, parts[0] + parts[1], rtol=0, atol=1e-4)


def test_posterior_mean_of_a_mixture_by_quadrature() -> None:
    means, width, weights = torch.tensor([[-1.0], [0.2], [1.5]]), 0.3, torch.tensor([0.2, 0.5, 0.3])
    network = Exact("cosine", "v", means, torch.tensor([[width**2]]), weights)
    model, path = model_of(network, path="cosine", target="v"), PATHS["cosine"]
    x0 = torch.linspace(-5, 6, 40_001, dtype=torch.float64)
    prior = sum(w * torch.exp(-0.5 * ((x0 - m) / width) ** 2) for w, m in zip(weights, means[:, 0], strict=True))
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)
    for t in (0.1, 0.5, 0.9):
        a, s = path.a(at(t, 1)), path.s(at(t, 1))
        joint = prior * torch.exp(-0.5 * ((x[:, None] - a * x0) / s) ** 2)  # (9, grid)
        expected = (joint * x0).sum(1) / joint.sum(1)
        torch.testing.assert_close(model.predict("x0", x[:, None], at(t, 9), {})[:, 0], expected, rtol=0, atol=1e-8)


def test_the_optimum_on_a_finite_set_is_to_memorise_it() -> None:
    """The ideal denoiser of N points is a softmax over them, and its samples are those points."""
    points = draws(12, 4, 7) * 1.5
    network = Exact("linear", "velocity", points, torch.zeros(4, 4))
    model = model_of(network, path="linear", target="velocity", sampling=DiffusionSampling(solver="heun", steps=400))
    x, sigma = draws(6, 4, 8), 0.75
    weights = torch.softmax(-(torch.cdist(x, points) ** 2) / (2 * sigma**2), 1)
    torch.testing.assert_close(
        model.denoiser()(x, torch.tensor(sigma).double()), weights @ points, rtol=1e-8, atol=1e-8
    )
    # the step before t = 0 divides by s, so stop at the last denoised state instead of the singular end
    noise = Rng(9, "s")("noise").normal((200, 4)).double()
    field, state = model.velocity(), noise
    times = DiffusionSampling(steps=400).times(model.path, 1.0, 0.0)
    for t, r in itertools.pairwise(times):
        state = state + (r - t) * field(state, t.expand(len(state)))
    distance, which = torch.cdist(state, points).min(1)
    assert distance.max() < 1e-2
    assert len(which.unique()) > 6


def test_loss_floor_is_the_conditional_variance() -> None:
    """E||velocity - E[velocity | x_t]||^2 = tr Cov(eps - x0 | x_t), for Gaussians a matrix of t alone."""
    weighting = WeightingConfig(density="uniform")
    model = gaussian("linear", "velocity", weighting=weighting)
    t = torch.linspace(0.0005, 0.9995, 1000, dtype=torch.float64)
    v = (1 - t[:, None, None]) ** 2 * COVARIANCE + t[:, None, None] ** 2 * EYE
    cross = t[:, None, None] * EYE - (1 - t[:, None, None]) * COVARIANCE  # Cov(eps - x0, x_t)
    floor = (COVARIANCE + EYE - cross @ torch.linalg.solve(v, cross)).diagonal(dim1=1, dim2=2).mean(1)

    def losses(model_: torch.nn.Module, steps: int = 60) -> Tensor:
        found = []
        for step in range(steps):
            x0 = MEAN + draws(512, 3, 100 + step) @ ROOT.T
            with torch.no_grad():
                found.append(model_.loss(Turn(step, 0.0, Batch(x0, torch.arange(512)), Rng(1, "train", step))).total)  # type: ignore[operator]
        return torch.stack(found)

    best = losses(model)
    assert abs(best.mean() - floor.mean()) < 4 * best.std() / math.sqrt(len(best))
    worse = gaussian("linear", "velocity", weighting=weighting)
    with torch.no_grad():
        worse.network.means.add_(0.3)
    gaps = losses(worse) - best  # the same noise in both
    assert gaps.mean() > 4 * gaps.std() / math.sqrt(len(gaps))


def test_guidance_on_two_gaussians() -> None:
    means = torch.tensor([[-1.0, 0.0], [1.0, 0.5]])
    network = Exact("linear", "velocity", means, 0.09 * torch.eye(2), labels=True)
    model = model_of(network, path="linear", target="velocity", sampling=DiffusionSampling(solver="heun", steps=60))
    label = {"label": torch.arange(400) % 2}

    def sample(scale: float, cond: dict[str, Tensor] | None) -> Tensor:
        return model.sample(400, cond, rng=Rng(2, "g"), sampling=DiffusionSampling(steps=60, guidance=scale))

    plain = sample(1.0, label)
    for k in (0, 1):
        part = plain[label["label"] == k]
        assert (part.mean(0) - means[k].double()).abs().max() < 4 * 0.3 / math.sqrt(200)
        assert (part.std(0) - 0.3).abs().max() < 4 * 0.3 / math.sqrt(400)
    torch.testing.assert_close(sample(0.0, label), sample(1.0, None))
    torch.testing.assert_close(sample(3.0, {"label": torch.full((400,), -1)}), sample(1.0, None))
    strong = sample(3.0, label)
    side = 2 * label["label"] - 1
    assert (strong[:, 0] * side).mean() > (plain[:, 0] * side).mean() + 0.05  # pushed away from the other class


# the articles' two claims


def test_training_on_pure_noise_learns_the_data_mean() -> None:
    """E||x0 - f(x_T, t)||^2 has x_T where x_t belongs: x_T says nothing of x0, so the best f is the mean of the data.

    By closed form (the exact denoiser at t = 1), then by a fit of both losses with the same features.
    """
    means = torch.tensor([[-1.0], [1.0]])
    network = Exact("linear", "x0", means, torch.tensor([[0.01]]), torch.tensor([0.25, 0.75]))
    model = model_of(network, path="linear", target="x0")
    x = torch.linspace(-3, 3, 13, dtype=torch.float64)[:, None]
    mean = 0.25 * -1.0 + 0.75 * 1.0
    torch.testing.assert_close(model.predict("x0", x, at(1.0, 13), {}), torch.full_like(x, mean), rtol=0, atol=1e-12)

    n = 20_000
    u = Rng(1, "side").uniform((n, 1), torch.float64)
    x0 = torch.where(u < 0.25, -1.0, 1.0) + 0.1 * draws(n, 1, 1)
    eps, t = draws(n, 1, 2), Rng(3, "t").uniform((n, 1), torch.float64)
    x_t = (1 - t) * x0 + t * eps

    def features(x: Tensor, t: Tensor) -> Tensor:
        return torch.cat([torch.tanh(k * x) * t**p for k in (0.5, 1, 2, 4) for p in range(4)] + [t**0, t, t**2], 1)

    def fit(inputs: Tensor) -> tuple[Tensor, Tensor]:
        a = features(inputs, t)
        prediction = a @ torch.linalg.lstsq(a, x0).solution
        return prediction, (x0 - prediction).square().mean()

    variance = x0.var()
    wrong, wrong_loss = fit(eps)
    right, right_loss = fit(x_t)
    assert wrong_loss > 0.99 * variance
    assert wrong.std() < 0.05
    assert (wrong - mean).abs().mean() < 0.05
    assert right_loss < 0.6 * variance
    assert right.std() > 0.5


def chain() -> tuple[Tensor, Tensor, Tensor, float, float]:
    """a, s on a grid of 21 times from data to noise, and the data's mean and variance."""
    t = torch.linspace(0.0, 1.0, 21, dtype=torch.float64)
    path = PATHS["cosine"]
    return t, path.a(t), path.s(t), 1.5, 0.25


def kernel(k: int) -> tuple[float, float, float]:
    """p(x_k | x_{k+1}) = N(slope x_{k+1} + intercept, v): the true reverse of the forward Markov chain."""
    _, a, s, mu, variance = chain()
    v, later = a[k] ** 2 * variance + s[k] ** 2, a[k + 1] ** 2 * variance + s[k + 1] ** 2
    joint = a[k + 1] / a[k] * v  # forward: x_{k+1} = (a_{k+1} / a_k) x_k + fresh noise
    slope = joint / later
    return float(slope), float(a[k] * mu - slope * a[k + 1] * mu), float(v - slope * joint)


def test_reverse_steps_are_sequential() -> None:
    """The article's reverse steps "can be computed independently": training times can, sampling steps cannot.

    Run in sequence, the exact reverse kernels carry noise to the data's mean and variance, and neighbouring states have
    the forward process's covariance. Computed independently from noise, the states are uncorrelated and the last one is
    not data.
    """
    _, a, s, mu, variance = chain()
    noise = draws(200_000, 21, 4)
    states = [noise[:, 20]]
    for k in range(19, -1, -1):
        slope, intercept, v = kernel(k)
        states.append(slope * states[-1] + intercept + math.sqrt(max(v, 0.0)) * noise[:, k])
    sequential = states[-1]
    assert sequential.mean().item() == pytest.approx(mu, abs=0.01)
    assert sequential.var().item() == pytest.approx(variance, abs=0.01)

    slope, intercept, v = kernel(0)  # every step at once: each kernel sees noise instead of its predecessor's state
    parallel = slope * noise[:, 20] + intercept + math.sqrt(max(v, 0.0)) * noise[:, 0]
    assert abs(parallel.mean().item() - mu) > 1.0
    assert parallel.var().item() > 3 * variance

    k = 8
    later, earlier = states[20 - k - 4], states[20 - k]  # x_12 and x_8
    true = float(a[12] / a[8] * (a[8] ** 2 * variance + s[8] ** 2))
    assert torch.stack([earlier, later]).cov()[0, 1].item() == pytest.approx(true, abs=0.02)
    assert true > 0.3
    lone_8, lone_12 = (
        kernel(i)[0] * noise[:, j] + kernel(i)[1] + math.sqrt(kernel(i)[2]) * noise[:, i]
        for i, j in ((8, 20), (12, 19))
    )
    assert abs(torch.stack([lone_8, lone_12]).cov()[0, 1].item()) < 0.02
