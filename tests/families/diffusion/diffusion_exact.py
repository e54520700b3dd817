"""Networks that are the exact optimum for data whose posterior mean is known: Gaussians, mixtures, finite sets.

Each takes E[x0 | x_t] from its own distribution by Bayes' rule and writes the target as c0 E[x0] + c1 E[eps] with
E[eps | x_t] = (x_t - a E[x0]) / s, by hand and not through quintet's own table.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from quintet.core.rng import Rng
from quintet.core.spec import Cond, DataSpec
from quintet.families.diffusion.densities import OdeDensityConfig
from quintet.families.diffusion.model import Diffusion
from quintet.families.diffusion.paths import PATHS, DdpmPathConfig, EdmPathConfig, LogSnrPathConfig, Path
from quintet.families.diffusion.sampling import DiffusionSampling
from quintet.families.diffusion.targets import TargetName, span
from quintet.families.diffusion.weighting import WeightingConfig

MEAN = torch.tensor([1.5, -0.5, 0.25], dtype=torch.float64)
ROOT = torch.tensor([[0.8, 0.0, 0.0], [0.5, 0.4, 0.0], [-0.3, 0.2, 0.6]], dtype=torch.float64)
COVARIANCE = ROOT @ ROOT.T
ALL_PATHS: dict[str, Path] = {
    **PATHS,
    "ddpm-linear": DdpmPathConfig().build(),
    "ddpm-cosine": DdpmPathConfig(schedule="cosine").build(),
    "edm": EdmPathConfig().build(),
    "log-snr": LogSnrPathConfig().build(),
}
"""Every path, the parametric ones with their default parameters."""


class Exact(nn.Module):
    """E[target | x_t] for components N(means[k], covariance) with the given weights; `labels`: k is the condition."""

    def __init__(
        self,
        path: str,
        target: TargetName,
        means: Tensor,
        covariance: Tensor,
        weights: Tensor | None = None,
        labels: bool = False,
    ) -> None:
        super().__init__()
        self.path, self.target, self.labels = ALL_PATHS[path], target, labels
        self.means = nn.Parameter(means.double().clone())  # (K, D)
        self.covariance = covariance.double()
        self.weights = torch.full((len(means),), 1 / len(means)).double() if weights is None else weights.double()

    def forward(self, x: Tensor, cond: Cond, t: Tensor) -> Tensor:
        if self.target == "edm":  # undo what the network is shown: x / sqrt(s^2 + a^2 d^2), and ln(s / a) / 4
            t = self.path.time(torch.exp(4 * t))
            x = x * (self.path.s(t) ** 2 + (self.path.a(t) * self.path.std) ** 2).sqrt()[:, None]
        a, s = self.path.a(t)[:, None], self.path.s(t)[:, None]
        x0 = self.posterior_mean(x, cond, t)
        eps = torch.where(s == 0, 0.0, (x - a * x0) / s.clamp_min(1e-300))  # clean data say nothing of the noise
        if self.target == "x0":
            return x0
        if self.target == "eps":
            return eps
        if self.target == "v":
            return a * eps - s * x0
        if self.target == "velocity":
            return self.path.da(t)[:, None] * x0 + self.path.ds(t)[:, None] * eps
        if self.target == "edm":  # (D - c_skip x / a) / c_out
            sigma, d = s / a, self.path.std
            skip, out = d**2 / (sigma**2 + d**2), sigma * d / (sigma**2 + d**2).sqrt()
            return (x0 - skip * x / a) / out
        return -eps / s

    def posterior_mean(self, x: Tensor, cond: Cond, t: Tensor) -> Tensor:
        a, s = self.path.a(t)[:, None, None], self.path.s(t)[:, None, None]
        eye = torch.eye(x.shape[1], dtype=x.dtype)
        v = a**2 * self.covariance + s**2 * eye  # (B, D, D), marginal covariance within a component
        off = x[:, None] - a * self.means  # (B, K, D)
        solved = torch.linalg.solve(v, off.mT).mT
        score = torch.log(self.weights) - 0.5 * (off * solved).sum(-1)  # the determinant is common to all
        if self.labels and "label" in cond:
            chosen = nn.functional.one_hot(cond["label"].clamp_min(0), len(self.means)).bool()
            score = torch.where((cond["label"] >= 0)[:, None] & ~chosen, float("-inf"), score)
        each = self.means + a * solved @ self.covariance
        return (torch.softmax(score, 1)[..., None] * each).sum(1)


def model_of(network: Exact, *, path: str, target: TargetName, **more: object) -> Diffusion:
    """The one model class around an exact network."""
    dims = network.means.shape[1]
    arguments: dict[str, object] = {
        "weighting": WeightingConfig(),
        "class_dropout": 0.0,
        "sampling": DiffusionSampling(solver="rk4", steps=200),
        "density": OdeDensityConfig(solver="dopri5", tolerance=1e-8, probes=0),
    }
    conditions = {"label": len(network.means)} if network.labels else {}
    spec = DataSpec("vector", (dims,), conditions=conditions)
    return Diffusion(spec, network, path=ALL_PATHS[path], target=target, **{**arguments, **more}).eval()  # type: ignore[arg-type]


def gaussian(path: str, target: TargetName, **more: object) -> Diffusion:
    """N(MEAN, COVARIANCE) exactly."""
    return model_of(Exact(path, target, MEAN[None], COVARIANCE), path=path, target=target, **more)


def draws(n: int, d: int, seed: int) -> Tensor:
    return Rng(seed, "test").normal((n, d), torch.float64)


def root(matrix: Tensor) -> Tensor:
    """Symmetric square root."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.sqrt() @ vectors.T


def flow_map(path: str, x: Tensor, start: float, end: float) -> Tensor:
    """x_end of x_start for N(MEAN, COVARIANCE): a(r) mu + V_r^1/2 V_t^-1/2 (x - a(t) mu); all V commute."""
    p, d = ALL_PATHS[path], len(MEAN)
    t, r = (torch.tensor(time, dtype=torch.float64) for time in (start, end))
    v = [p.a(u) ** 2 * COVARIANCE + p.s(u) ** 2 * torch.eye(d, dtype=torch.float64) for u in (t, r)]
    return p.a(r) * MEAN + (x - p.a(t) * MEAN) @ torch.linalg.solve(root(v[0]), root(v[1]))


def carried(path: str, target: TargetName, x: Tensor, start: float) -> Tensor:
    """Where the exact equation leads x from `start`: along the flow map to the lowest time, then E[x0 | x]."""
    low = max(span(target, ALL_PATHS[path])[0], 0.0)
    end = flow_map(path, x, start, low)
    p = ALL_PATHS[path].level(low)
    v = p.a**2 * COVARIANCE + p.s**2 * torch.eye(len(MEAN), dtype=torch.float64)
    return MEAN + p.a * (end - p.a * MEAN) @ torch.linalg.solve(v, COVARIANCE)
