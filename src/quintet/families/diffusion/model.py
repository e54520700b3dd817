"""Diffusion and flow matching: one continuous-time model of a network, a path, a target, a weighting, a sampler.

What it is: x_t = a(t) x0 + s(t) eps; a network learns the conditional mean of a target (velocity, noise, clean data)
given x_t and t, which makes the velocity of an ordinary differential equation that carries noise (t = 1) to data
(t = 0). Flow matching is the linear path with the velocity target; DDPM's training is the "vp" path with the "eps"
target. What it is not: a network, a schedule of discrete steps, or a stochastic sampler.

Sources: Ho et al. 2020, arXiv:2006.11239; Song et al. 2021, arXiv:2011.13456; Karras et al. 2022, arXiv:2206.00364;
Lipman et al. 2023, arXiv:2210.02747; Ho & Salimans 2022, arXiv:2207.12598.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from quintet.core.config import STRICT, Config
from quintet.core.model import HasDenoiser, HasLogProb, HasTrace, Loss, Model, Player, Trace, Turn, hide
from quintet.core.recipe import ModelConfig, NetworkConfig
from quintet.core.rng import Rng
from quintet.core.spec import Cond, DataSpec
from quintet.families.diffusion.paths import PATHS, PathName, wide
from quintet.families.diffusion.targets import DEFINED, TargetName, combine, convert
from quintet.families.diffusion.warps import CONDITION, WarpConfig, Warps
from quintet.families.diffusion.weighting import WeightingConfig
from quintet.samplers.guidance import guided
from quintet.samplers.ode import FIXED, Counted, Solver, Velocity, solve


@dataclass(frozen=True, kw_only=True, config=STRICT)
class OdeSampling(Config):
    """How noise is carried to data.

    Attributes:
        solver: "euler", "heun", "rk4" (fixed steps) or "dopri5" (adaptive).
        steps: intervals of the fixed grid; dopri5 chooses its own.
        guidance: 1 = plain conditional, 0 = unconditional.
        warp: the grid is t = u^warp for even u; above 1 puts more steps near the data.
        tolerance: dopri5's, relative and absolute.
    """

    kind = "ode-sampling"
    solver: Solver = "heun"
    steps: int = Field(default=16, ge=1, le=10_000)
    guidance: float = Field(default=1.0, ge=-100, le=100, allow_inf_nan=False)
    warp: float = Field(default=1.0, gt=0, le=10)
    tolerance: float = Field(default=1e-4, gt=0, le=1)

    def times(self, start: float = 1.0, end: float = 0.0) -> Tensor:
        """(steps + 1,) float64 from `start` down to `end`."""
        u = torch.linspace(1, 0, self.steps + 1, dtype=torch.float64) ** self.warp
        return end + (start - end) * u


class Diffusion(
    Model[OdeSampling],
    HasLogProb,
    HasDenoiser,
    HasTrace,
):
    """See the module.

    Args:
        spec: of continuous data with about unit scale (the codec's business).
        network: (x, cond, t) -> prediction of `target`, all (B, *spec.shape).
        path, target, weighting, sampling: see their classes.
        class_dropout: share of training examples whose conditions are hidden.
        integration: how `log_prob` integrates; its guidance plays no part.
        probes: random probes of the divergence per item in `log_prob`; 0 = the exact trace.
        warps: augmentation that the network is told of, through the condition warps.CONDITION.
    """

    likelihood = "estimate"

    def __init__(
        self,
        spec: DataSpec,
        network: nn.Module,
        *,
        path: PathName,
        target: TargetName,
        weighting: WeightingConfig,
        class_dropout: float,
        sampling: OdeSampling,
        integration: OdeSampling,
        probes: int,
        warps: Warps | None = None,
    ) -> None:
        super().__init__(spec, sampling)
        if spec.levels is not None:
            raise ValueError("diffusion models continuous data; the recipe's codec turns levels into them")
        self.network, self.path, self.target = network, PATHS[path], target
        self.weighting, self.class_dropout = weighting, class_dropout
        self.integration, self.probes, self.warps = integration, probes, warps

    # training

    def players(self) -> Sequence[Player]:
        return (Player("model", self, self.loss),)

    def loss(self, turn: Turn) -> Loss:
        """Weighted mean squared error of the target, per dimension.

        Source: Lipman et al. 2023, eq. 14 for the linear path with the velocity target.
        """
        x0 = turn.batch.x
        cond = hide(turn.batch.cond, self.class_dropout, turn.rng("hide"))
        if self.warps is not None:
            x0, which = self.warps(x0, turn.rng("warp"))
            cond = {**cond, CONDITION: which}
        t = self.weighting.times(len(x0), turn.rng("time")).to(x0.dtype)
        eps = turn.rng("noise").normal(tuple(x0.shape)).to(x0.dtype)
        y = self.network(self.path.point(x0, eps, t), cond, t)
        error = (y - combine(self.target, self.path, x0, eps, t)).square().flatten(1).mean(1)  # (B,)
        total = (self.weighting.weight(self.target, self.path, t) * error).mean()
        return Loss(total, {f"{self.target}_mse": error.detach().mean()})

    # the field

    def predict(self, target: TargetName, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """The conditional mean (B, *E) of any target at x (B, *E), t (B,); times outside its range are moved in."""
        low, high = self._range()
        t = t.clamp(low, high)
        return convert(self.target, target, self.path, self.network(x, cond, t.to(x.dtype)), x, t)

    def velocity(self, cond: Cond | None = None, guidance: float = 1.0) -> Velocity:
        """dx/dt of the probability-flow equation as a function of (x (B, *E), t (B,))."""
        return guided(lambda x, t, c: self.predict("velocity", x, t, c), cond, guidance)

    def denoiser(self, cond: Cond | None = None, guidance: float = 1.0) -> Callable[[Tensor, Tensor], Tensor]:
        clean = guided(lambda x, t, c: self.predict("x0", x, t, c), cond, guidance)

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            t = self.path.time(torch.as_tensor(sigma, dtype=x.dtype, device=x.device).expand(len(x)))
            return clean(self.path.a(wide(t, x)) * x, t)

        return denoise

    def _range(self) -> tuple[float, float]:
        low, high = DEFINED[self.target]
        return max(low, self.path.low), high

    # sampling

    def sample(self, n: int, cond: Cond | None = None, *, rng: Rng, sampling: OdeSampling | None = None) -> Tensor:
        sampling = self.sampling if sampling is None else sampling
        low, high = self._range()
        field = self.velocity(cond, sampling.guidance)
        return self._finish(field, solve_from(self._noise(n, rng), field, sampling, high, low), low)

    def sequential_steps(self, sampling: OdeSampling | None = None) -> int:
        sampling = self.sampling if sampling is None else sampling
        low, high = self._range()
        last = int(low > 0)
        if sampling.solver in FIXED:
            return sampling.steps * FIXED[sampling.solver][1] + last
        with torch.no_grad():  # the adaptive solver's count depends on the items: that of 64 of its own
            field = Counted(self.velocity({}, 1.0))
            solve_from(self._noise(64, Rng(0, "sequential-steps")), field, sampling, high, low)
        return field.evaluations + last

    def _noise(self, n: int, rng: Rng) -> Tensor:
        like = next(self.parameters())
        eps = rng("noise").normal((n, *self.spec.shape)).to(device=like.device, dtype=like.dtype)
        high = torch.tensor(self._range()[1], dtype=torch.float64)
        return eps * float(self.path.s(high))

    def _finish(self, field: Velocity, x: Tensor, low: float) -> Tensor:
        """The last stretch from `low` to 0 in one Euler step."""
        if low <= 0:
            return x
        return x - low * field(x, torch.full((len(x),), low, dtype=x.dtype, device=x.device))

    def trace(self, n: int, frames: int, cond: Cond | None = None, *, rng: Rng) -> Trace:
        """Evenly spaced moments of the way from noise to data."""
        if frames < 2:
            raise ValueError(f"a trace needs at least two frames, got {frames}")
        low, high = self._range()
        field = self.velocity(cond, self.sampling.guidance)
        x = self._noise(n, rng)
        at = torch.linspace(high, low, frames, dtype=torch.float64).tolist()
        seen = [x]
        for start, end in itertools.pairwise(at):
            part = OdeSampling(solver="heun", steps=max(1, math.ceil(32 / (frames - 1))))
            x = solve_from(x, field, part, start, end)
            seen.append(x)
        seen[-1] = self._finish(field, seen[-1], low)
        labels = tuple(f"t={t:.2f}" for t in (*at[:-1], 0.0))
        return Trace("denoise", torch.stack(seen), labels)

    # likelihood

    def log_prob(self, x: Tensor, cond: Cond | None = None, *, rng: Rng) -> Tensor:
        """log p(x) = log N(x_1) + integral from 0 to 1 of the divergence of the velocity along the flow.

        Source: Song et al. 2021, eq. 39; Hutchinson's probes as in Grathwohl et al. 2019, arXiv:1810.01367.
        """
        low, high = self._range()
        field = self.velocity(cond, 1.0)
        flat = x.flatten(1)
        n, d = flat.shape
        probes = rng("probes").integers(0, 2, (n, self.probes, d)) if self.probes else None
        signs = None if probes is None else (2 * probes - 1).to(device=x.device, dtype=x.dtype)

        def joint(state: Tensor, t: Tensor) -> Tensor:  # (B, D + 1): the point, and the divergence gathered so far
            with torch.enable_grad():
                point = state[:, :-1].detach().requires_grad_()
                v = field(point.unflatten(1, self.spec.shape), t).flatten(1)
                divergence = _trace(v, point, signs)
            return torch.cat([v.detach(), divergence[:, None]], dim=1)

        start = torch.cat([flat, torch.zeros_like(flat[:, :1])], dim=1)
        end = solve_from(start, joint, self.integration, low, high)
        z, gathered = end[:, :-1], end[:, -1]
        s = float(self.path.s(torch.tensor(high, dtype=torch.float64)))
        base = -0.5 * (z / s).square().sum(1) - d * (0.5 * math.log(2 * math.pi) + math.log(s))
        return base + gathered

    @property
    def log_prob_protocol(self) -> str:
        how = self.integration
        grid = f"tolerance {how.tolerance:g}" if how.solver == "dopri5" else f"{how.steps} steps"
        trace = f"{self.probes} random probes" if self.probes else "exact trace"
        return f"probability-flow ODE, {how.solver}, {grid}, {trace}"


def solve_from(x: Tensor, field: Velocity, sampling: OdeSampling, start: float, end: float) -> Tensor:
    """Integrate `field` from time `start` to `end` as `sampling` says."""
    return solve(field, x, sampling.times(start, end), sampling.solver, tolerance=sampling.tolerance)


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


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DiffusionConfig(ModelConfig):
    """See Diffusion. `probes` None: exact for up to 8 dimensions, else one."""

    kind = "diffusion"
    network: NetworkConfig
    path: PathName = "linear"
    target: TargetName = "velocity"
    weighting: WeightingConfig = WeightingConfig()
    class_dropout: float = Field(default=0.1, ge=0, lt=1)
    sampling: OdeSampling = OdeSampling()
    integration: OdeSampling = OdeSampling(solver="rk4", steps=16)
    probes: int | None = Field(default=None, ge=0)
    warps: WarpConfig | None = None

    def build(self, spec: DataSpec) -> Diffusion:
        told = {} if self.warps is None else {CONDITION: self.warps.count}
        network = self.network.build(spec.shape, spec.shape, {**spec.conditions, **told}, time=True)
        probes = self.probes if self.probes is not None else (0 if spec.dims <= 8 else 1)
        return Diffusion(
            spec,
            network,
            path=self.path,
            target=self.target,
            weighting=self.weighting,
            class_dropout=self.class_dropout,
            sampling=self.sampling,
            integration=self.integration,
            probes=probes,
            warps=None if self.warps is None else self.warps.build(spec),
        )
