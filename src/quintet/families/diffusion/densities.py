"""The likelihood of a diffusion model: an estimate by the probability-flow equation, or a variational bound.

What it is: two ways from the model's predictions to nats per example, each with its own config. What it is not: a loss;
ElboConfig in weighting.py trains for the bound.

Sources: Song et al. 2021, eq. 39, arXiv:2011.13456, with Hutchinson's probes as in Grathwohl et al. 2019,
arXiv:1810.01367; Kingma et al. 2021 (the bound), arXiv:2107.00630.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from quintet.core.config import STRICT, Config
from quintet.core.rng import Rng
from quintet.families.diffusion.paths import Path
from quintet.families.diffusion.targets import TargetName, noise_span, span
from quintet.samplers.ode import Solver, solve

Predict = Callable[[TargetName, Tensor, Tensor], Tensor]
"""The conditional mean (B, *E) of a target at x (B, *E), t (B,), the condition bound."""

_AT_ONCE = 2**24  # numbers in the largest temporary of the reconstruction term


class DensityConfig(Config, ABC):
    """How log p(x) is computed; `likelihood` says what the value is."""

    likelihood: ClassVar[Literal["estimate", "bound"]]

    @abstractmethod
    def log_prob(
        self, predict: Predict, x: Tensor, target: TargetName, path: Path, levels: int | None, rng: Rng
    ) -> Tensor:
        """(B,) nats.

        Args:
            predict: see Predict.
            x: (B, *E), clean data as the network sees them.
            target, path: of the model.
            levels: None for a density; else the probability of x among so many levels from -1 to 1.
            rng: row i serves example i.
        """

    @abstractmethod
    def protocol(self, path: Path, levels: int | None) -> str:
        """How, in a few words."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class OdeDensityConfig(DensityConfig):
    """log p(x) = log N(x_1) + integral from 0 to 1 of the divergence of the velocity along the flow.

    Levels are spread by the noise of the lowest time, z = x + sigma eps, which bounds their probability in expectation
    and exactly where sigma is small beside a level: log P(x) >= E[log p(z) + log P(x | z) - log q(z | x)].

    Attributes:
        solver, steps, tolerance: of the integration; steps play no part for dopri5, tolerance for the others.
        probes: random probes of the divergence per item; 0 = the exact trace; None: exact up to 8 dimensions, else 1.
    Source: Song et al. 2021, eq. 39; Ho et al. 2019 (variational dequantisation), eq. 12, arXiv:1902.00275.
    """

    kind = "ode-density"
    likelihood = "estimate"
    solver: Solver = "rk4"
    steps: int = Field(default=16, ge=1, le=10_000)
    tolerance: float = Field(default=1e-4, gt=0, le=1)
    probes: int | None = Field(default=None, ge=0)

    def log_prob(
        self, predict: Predict, x: Tensor, target: TargetName, path: Path, levels: int | None, rng: Rng
    ) -> Tensor:
        if levels is None:
            return self._density(predict, x, span(target, path), path, rng)
        clean, _ = noise_span(target, path)
        low = float(path.time(torch.tensor(clean, dtype=torch.float64)))
        _, a, s = path.level(low)
        eps = rng("spread").normal(tuple(x.shape)).to(device=x.device, dtype=x.dtype)
        density = self._density(predict, a * x + s * eps, (low, span(target, path)[1]), path, rng)
        spread = (0.5 * (eps.square() + math.log(2 * math.pi)) + math.log(s)).flatten(1).sum(1)  # -log q(z | x)
        return density + spread - _levels_given(x, x + s / a * eps, clean, levels)

    def _density(self, predict: Predict, x: Tensor, ends: tuple[float, float], path: Path, rng: Rng) -> Tensor:
        """(B,) log density of the flow's point x at the first of two times."""
        flat = x.flatten(1)
        n, d = flat.shape
        count = self._probes(d)
        probes = rng("probes").integers(0, 2, (n, count, d)) if count else None
        signs = None if probes is None else (2 * probes - 1).to(device=x.device, dtype=x.dtype)

        def joint(state: Tensor, t: Tensor) -> Tensor:  # (B, D + 1): the point, and the divergence gathered so far
            with torch.enable_grad():
                point = state[:, :-1].detach().requires_grad_()
                v = predict("velocity", point.view_as(x), t).flatten(1)
                divergence = _trace(v, point, signs)
            return torch.cat([v.detach(), divergence[:, None]], dim=1)

        low, high = ends
        start = torch.cat([flat, torch.zeros_like(flat[:, :1])], dim=1)
        times = torch.linspace(low, high, self.steps + 1, dtype=torch.float64)
        end = solve(joint, start, times, self.solver, tolerance=self.tolerance)
        z, gathered = end[:, :-1], end[:, -1]
        s = path.spread(high)
        base = -0.5 * (z / s).square().sum(1) - d * (0.5 * math.log(2 * math.pi) + math.log(s))
        return base + gathered

    def _probes(self, dims: int) -> int:
        return self.probes if self.probes is not None else int(dims > 8)

    def protocol(self, path: Path, levels: int | None) -> str:
        grid = f"tolerance {self.tolerance:g}" if self.solver == "dopri5" else f"{self.steps} steps"
        trace = {None: "exact trace up to 8 dimensions, else 1 random probe", 0: "exact trace"}.get(
            self.probes, f"{self.probes} random probes"
        )
        spread = "" if levels is None else ", levels spread by Gaussian noise"
        return f"probability-flow ODE, {self.solver}, {grid}, {trace}{spread}"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BoundConfig(DensityConfig):
    """log p(x) >= -(prior + diffusion + reconstruction), the terms of the variational bound, without bias.

    prior           KL(q(z_1 | x) || N(0, spread^2 I))
    diffusion       continuous: 1/2 integral over gamma of E||eps - eps_hat||^2
                    T steps: 1/2 sum over k of (exp(gamma_k - gamma_{k-1}) - 1) E||eps - eps_hat||^2
    reconstruction  E[-log p(x | z_0)], p(x | z_0) proportional to q(z_0 | x) over the levels, or N(z_0 / a, sigma^2)

    with gamma = 2 ln sigma. The diffusion term is an average over times spread evenly from a random start.

    Attributes:
        steps: T of the discrete bound; None takes the path's own, or continuous time where it has none.
        draws: times per example.
    Source: Kingma et al. 2021, eq. 4, 11-17 and appendix on the discretisation; Ho et al. 2020, eq. 5.
    """

    kind = "variational-bound"
    likelihood = "bound"
    steps: int | None = Field(default=None, ge=1)
    draws: int = Field(default=16, ge=1)

    def log_prob(
        self, predict: Predict, x: Tensor, target: TargetName, path: Path, levels: int | None, rng: Rng
    ) -> Tensor:
        clean, noisy = noise_span(target, path)
        diffusion = self._diffusion(predict, x, path, (clean, noisy), rng)
        t = float(path.time(torch.tensor(noisy, dtype=torch.float64)))
        return -(_prior(x, path, t) + diffusion + _reconstruction(x, clean, levels, rng("reconstruction")))

    def _diffusion(self, predict: Predict, x: Tensor, path: Path, ends: tuple[float, float], rng: Rng) -> Tensor:
        low, high = (2 * math.log(sigma) for sigma in ends)
        knots = self._knots(path, ends)
        u = rng("time").uniform((len(x),), torch.float64).to(x.device)
        total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        for j in range(self.draws):
            share = (u + j / self.draws) % 1.0
            if knots is None:
                gamma = low + (high - low) * share
                t, weight = path.time(torch.exp(gamma / 2)), torch.full_like(share, high - low)
            else:
                # a step is drawn as often as it is long in gamma, which evens out the terms
                times, gammas = (value.to(x.device) for value in knots)
                k = torch.searchsorted(gammas, low + (high - low) * share, right=True).clamp(1, len(gammas) - 1)
                h = gammas[k] - gammas[k - 1]
                t, weight = times[k], (gammas[-1] - gammas[0]) / h * torch.expm1(h)
            t = t.to(x.dtype)
            eps = rng("noise", j).normal(tuple(x.shape)).to(device=x.device, dtype=x.dtype)
            error = (eps - predict("eps", path.point(x, eps, t), t)).double().square().flatten(1).sum(1)
            total += weight / 2 * error
        return (total / self.draws).to(x.dtype)

    def _knots(self, path: Path, ends: tuple[float, float]) -> tuple[Tensor, Tensor] | None:
        """Times and gammas of the discrete chain, from data to noise; None in continuous time."""
        low, high = path.time(torch.tensor(ends, dtype=torch.float64)).tolist()
        if self.steps is not None:
            times = torch.linspace(low, high, self.steps + 1, dtype=torch.float64)
        elif path.steps is not None:
            times = torch.arange(round(low * path.steps), path.steps + 1, dtype=torch.float64) / path.steps
            times = times[times <= high + 1e-9]
        else:
            return None
        return times, 2 * torch.log(path.s(times) / path.a(times))

    def protocol(self, path: Path, levels: int | None) -> str:
        steps = self.steps or path.steps
        chain = "continuous time" if steps is None else f"{steps} steps"
        return f"variational bound, {chain}, {self.draws} times an example"


def _prior(x: Tensor, path: Path, t: float) -> Tensor:
    """(B,) KL(q(z_t | x) || N(0, spread^2 I))."""
    _, a, s = path.level(t)
    p = path.spread(t) ** 2
    return 0.5 * ((s**2 + a**2 * x.square()) / p - 1 - math.log(s**2 / p)).flatten(1).sum(1)


def _reconstruction(x: Tensor, sigma: float, levels: int | None, rng: Rng) -> Tensor:
    """(B,) E[-log p(x | z_0)] at noise level sigma; exact for a density, one draw of the noise for levels."""
    if levels is None:
        d = x[0].numel()
        return torch.full_like(x.flatten(1)[:, 0], 0.5 * d * (1 + math.log(2 * math.pi * sigma**2)))
    eps = rng.normal(tuple(x.shape)).to(device=x.device, dtype=x.dtype)
    return _levels_given(x, x + sigma * eps, sigma, levels)


def _levels_given(x: Tensor, z: Tensor, sigma: float, levels: int) -> Tensor:
    """(B,) -log P(x | z) in nats, P(x | z) proportional to N(z; x, sigma^2 I) over the levels."""
    values = torch.linspace(-1, 1, levels, dtype=x.dtype, device=x.device)
    z, x = z.flatten(1), x.flatten(1)
    out = []
    for rows, true in zip(*(v.split(max(1, _AT_ONCE // (z.shape[1] * levels))) for v in (z, x)), strict=True):
        all_of = torch.logsumexp(-((rows[:, :, None] - values) ** 2) / (2 * sigma**2), 2)
        out.append((all_of + (rows - true).square() / (2 * sigma**2)).sum(1))
    return torch.cat(out)


def _trace(v: Tensor, point: Tensor, signs: Tensor | None) -> Tensor:
    """(B,) trace of dv/dpoint, both (B, D): exact, or the mean over probes (B, K, D) of probe' J probe."""
    n, d = point.shape
    if signs is None:
        total = torch.zeros(n, dtype=v.dtype, device=v.device)
        for i in range(d):
            (row,) = torch.autograd.grad(v[:, i].sum(), point, retain_graph=i + 1 < d)
            total = total + row[:, i]
        return total
    parts = []
    for k in range(signs.shape[1]):
        probe = signs[:, k]
        (pulled,) = torch.autograd.grad((v * probe).sum(), point, retain_graph=k + 1 < signs.shape[1])
        parts.append((pulled * probe).sum(1))
    return torch.stack(parts).mean(0)
