"""Diffusion and flow matching: one model of a network, a path, a target, a weighting, a density, a sampler.

What it is: x_t = a(t) x0 + s(t) eps; a network learns the conditional mean of a target (velocity, noise, clean data)
given x_t and t, which gives the velocity of an ordinary differential equation that carries noise (t = 1) to data
(t = 0), the reverse kernels of a chain of discrete steps, and a bound on the likelihood. Flow matching is the linear
path with the velocity target; DDPM the "ddpm-path" with "eps"; EDM the "edm-path" with "edm", its preconditioning; VDM
the "log-snr-path" with the bound's weighting. What it is not: a network, or a solver.

Data with levels are read as L even values from -1 to 1, and the network is shown where between the levels each value
lies: sines and cosines whose periods are one and two level widths, faded out where noise hides the levels.

Sources: Ho et al. 2020, arXiv:2006.11239; Song et al. 2021, arXiv:2011.13456; Kingma et al. 2021 (levels: appendix on
Fourier features, whose periods are theirs for 256 levels), arXiv:2107.00630; Karras et al. 2022, arXiv:2206.00364;
Lipman et al. 2023, arXiv:2210.02747; Ho & Salimans 2022, arXiv:2207.12598.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from quintet.core.config import STRICT
from quintet.core.model import HasDenoiser, HasLogProb, HasTrace, Loss, Model, Player, Trace, Turn, Way, hide
from quintet.core.recipe import ModelConfig, NetworkConfig
from quintet.core.rng import Rng
from quintet.core.spec import Cond, DataSpec
from quintet.families.diffusion.densities import BoundConfig, DensityConfig, OdeDensityConfig
from quintet.families.diffusion.paths import PATHS, Level, Path, PathConfig, PathName, wide
from quintet.families.diffusion.sampling import DiffusionSampling
from quintet.families.diffusion.targets import TargetName, combine, convert, factors, presented, span
from quintet.families.diffusion.warps import CONDITION, WarpConfig, Warps
from quintet.families.diffusion.weighting import Weighting, WeightingConfig
from quintet.samplers.guidance import guided
from quintet.samplers.multistep import Clean, follow
from quintet.samplers.ode import FIXED, Counted, Velocity, solve

WAVES = 4
"""Channels that tell where between the levels a value lies: a sine and a cosine of two periods."""


class Diffusion(
    Model[DiffusionSampling],
    HasLogProb,
    HasDenoiser,
    HasTrace,
):
    """See the module.

    Args:
        spec: of continuous data with about unit scale (the codec's business), or of images or vectors with levels.
        network: (x, cond, t) -> prediction of `target` (B, *spec.shape); of levels, x has 1 + WAVES times the channels.
        path, target, weighting, density, sampling: see their classes.
        class_dropout: share of training examples whose conditions are hidden.
        warps: augmentation that the network is told of, through the condition warps.CONDITION.
    """

    def __init__(
        self,
        spec: DataSpec,
        network: nn.Module,
        *,
        path: Path,
        target: TargetName,
        weighting: Weighting,
        density: DensityConfig,
        class_dropout: float,
        sampling: DiffusionSampling,
        warps: Warps | None = None,
    ) -> None:
        super().__init__(spec, sampling)
        if spec.kind == "tokens":
            raise ValueError("diffusion models continuous values and levels in order, not tokens")
        self.network, self.path, self.target = network, path, target
        self.weighting, self.class_dropout, self.warps = weighting, class_dropout, warps
        self.density, self.likelihood = density, density.likelihood

    # training

    def players(self) -> Sequence[Player]:
        return (Player("model", self, self.loss),)

    def loss(self, turn: Turn) -> Loss:
        """Weighted mean squared error of the target, per dimension.

        Source: Ho et al. 2020, eq. 14 for the discrete chain with "eps"; Lipman et al. 2023, eq. 14 for the linear path
        with the velocity; Karras et al. 2022, eq. 8; Kingma et al. 2021, eq. 17.
        """
        x0 = self._read(turn.batch.x)
        cond = hide(turn.batch.cond, self.class_dropout, turn.rng("hide"))
        if self.warps is not None:
            x0, which = self.warps(x0, turn.rng("warp"))
            cond = {**cond, CONDITION: which}
        t = self.weighting.times(len(x0), turn.rng("time"), self.target, self.path).to(x0.dtype)
        eps = turn.rng("noise").normal(tuple(x0.shape)).to(x0.dtype)
        y = self._call(self.path.point(x0, eps, t), t, cond)
        error = (y - combine(self.target, self.path, x0, eps, t)).square().flatten(1).mean(1)  # (B,)
        total = (self.weighting.weight(self.target, self.path, t) * error).mean()
        return Loss(total, {f"{self.target}_mse": error.detach().mean()})

    # the network

    def _call(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """The network's prediction of its own target at x (B, *E), t (B,)."""
        shown, clock = x, t
        told = presented(self.target, self.path, t)
        if told is not None:
            scale, clock = told
            shown = wide(scale, x) * x
        if self.spec.levels is not None:
            a, s = wide(self.path.a(t).clamp_min(1e-6), x), wide(self.path.s(t), x)
            shown = _waves(shown, x / a, s / a, self.spec.levels)
        y: Tensor = self.network(shown, cond, clock)
        return y.to(x.dtype)

    def predict(self, target: TargetName, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """The conditional mean (B, *E) of any target at x (B, *E), t (B,); times outside its range are moved in."""
        low, high = span(self.target, self.path)
        t = t.clamp(low, high)
        return convert(self.target, target, self.path, self._call(x, t.to(x.dtype), cond), x, t)

    def velocity(self, cond: Cond | None = None, guidance: float = 1.0) -> Velocity:
        """dx/dt of the probability-flow equation as a function of (x (B, *E), t (B,))."""
        return guided(self._velocity, cond, guidance)

    def _velocity(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        return self.predict("velocity", x, t, cond)

    def denoiser(self, cond: Cond | None = None, guidance: float = 1.0) -> Callable[[Tensor, Tensor], Tensor]:
        """See HasDenoiser; data with levels come and go in levels, as floats."""

        def predict(x: Tensor, t: Tensor, cond: Cond) -> Tensor:
            return self.predict("x0", x, t, cond)

        clean = guided(predict, cond, guidance)
        unit = 1.0 if self.spec.levels is None else 2 / (self.spec.levels - 1)
        shift = 0.0 if self.spec.levels is None else 1.0

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            x = x * unit - shift
            t = self.path.time(unit * torch.as_tensor(sigma, dtype=x.dtype, device=x.device).expand(len(x)))
            return (clean(self.path.a(wide(t, x)) * x, t) + shift) / unit

        return denoise

    def _clean(self, levels: Sequence[Level], cond: Cond | None, sampling: DiffusionSampling) -> Clean:
        """The clean data expected at given levels, with every coefficient worked out beforehand."""
        times = torch.tensor([level.t for level in levels], dtype=torch.float64)
        of_x, of_y = (value.tolist() for value in factors(self.target, "x0", self.path, times))
        told = presented(self.target, self.path, times)
        scale, clock = (None, times) if told is None else (told[0].tolist(), told[1])
        like = next(self.parameters())
        clocks = clock.to(device=like.device, dtype=like.dtype).unbind(0)

        def predict(x: Tensor, i: int, cond: Cond) -> Tensor:
            shown = x if scale is None else x * scale[i]
            if self.spec.levels is not None:
                a = max(levels[i].a, 1e-6)
                shown = _waves(shown, x / a, levels[i].s / a, self.spec.levels)
            y = self.network(shown, cond, clocks[i].expand(len(x))).to(x.dtype)
            return torch.add(x * of_x[i], y, alpha=of_y[i])

        inside = None
        if sampling.interval is not None:
            low, high = sampling.interval
            inside = [low <= level.t <= high for level in levels].__getitem__
        return guided(predict, cond, sampling.guidance, inside)

    # sampling

    def sample(
        self, n: int, cond: Cond | None = None, *, rng: Rng, sampling: DiffusionSampling | None = None
    ) -> Tensor:
        sampling = self.sampling if sampling is None else sampling
        if sampling.follows_velocity:
            return self._write(self._flow(self._noise(n, span(self.target, self.path)[1], rng), cond, sampling))
        rows, levels = sampling.table(self.target, self.path)
        x = self._noise(n, levels[0].t, rng)

        def noise(i: int) -> Tensor:
            return rng("step", i).normal(tuple(x.shape)).to(device=x.device, dtype=x.dtype)

        return self._write(follow(self._clean(levels, cond, sampling), x, rows, noise))

    def sequential_steps(self, sampling: DiffusionSampling | None = None) -> int:
        sampling = self.sampling if sampling is None else sampling
        if not sampling.follows_velocity:
            return len(sampling.table(self.target, self.path)[0])
        low, high = span(self.target, self.path)
        if sampling.solver in FIXED:
            return sampling.count(self.path) * FIXED[sampling.solver][1] + int(self.path.level(low).s > 0)
        with torch.no_grad():  # the adaptive solver's count depends on the items: that of 64 of its own
            field = Counted(self._velocity_at({}, sampling))
            self._flow(self._noise(64, high, Rng(0, "sequential-steps")), {}, sampling, field)
        return field.evaluations + int(self.path.level(low).s > 0)

    def _velocity_at(self, cond: Cond | None, sampling: DiffusionSampling) -> Velocity:
        within = None
        if sampling.interval is not None:
            low, high = sampling.interval
            within = lambda t: (t >= low) & (t <= high)  # noqa: E731
        return guided(self._velocity, cond, sampling.guidance, within)

    def _flow(self, x: Tensor, cond: Cond | None, sampling: DiffusionSampling, field: Velocity | None = None) -> Tensor:
        """Along the equation to the lowest time, and from there to the clean data expected, if it is not clean."""
        field = self._velocity_at(cond, sampling) if field is None else field
        low, high = span(self.target, self.path)
        if sampling.solver == "dopri5":
            times = torch.tensor([high, low], dtype=torch.float64)
            x = solve(field, x, times, "dopri5", tolerance=sampling.tolerance or 1e-4)
        else:
            assert sampling.solver in FIXED
            x = FIXED[sampling.solver][0](field, x, sampling.times(self.path, high, low))
        level = self.path.level(low)
        return x if level.s == 0 else self._clean([level], cond, sampling)(x, 0)

    def _noise(self, n: int, t: float, rng: Rng) -> Tensor:
        like = next(self.parameters())
        eps = rng("noise").normal((n, *self.spec.shape)).to(device=like.device, dtype=like.dtype)
        return eps * self.path.spread(t)

    def trace(self, n: int, frames: int, cond: Cond | None = None, *, rng: Rng) -> Trace:
        """Evenly spaced moments of the way from noise to data, by DPM-Solver++(2M)."""
        if frames < 2:
            raise ValueError(f"a trace needs at least two frames, got {frames}")
        steps = (frames - 1) * math.ceil(32 / (frames - 1))
        sampling = DiffusionSampling(
            solver="dpmpp-2m", grid="time", steps=min(steps, self.path.steps or steps), guidance=self.sampling.guidance
        )
        rows, levels = sampling.table(self.target, self.path)
        x = self._noise(n, levels[0].t, rng)
        states, times = [x], [*(level.t for level in levels), 0.0]
        follow(self._clean(levels, cond, sampling), x, rows, seen=lambda i, state: states.append(state))
        kept = [round(j * len(rows) / (frames - 1)) for j in range(frames)]
        labels = tuple(f"t={times[i]:.2f}" for i in kept)
        return Trace("denoise", torch.stack([self._write(states[i]) for i in kept]), labels)

    # levels

    def _read(self, x: Tensor) -> Tensor:
        """Data as the network sees them: levels as even values from -1 to 1."""
        return x if self.spec.levels is None else x.to(torch.get_default_dtype()) * (2 / (self.spec.levels - 1)) - 1

    def _write(self, x: Tensor) -> Tensor:
        """The inverse of `_read`: the nearest levels."""
        if self.spec.levels is None:
            return x
        return (
            ((x + 1) * ((self.spec.levels - 1) / 2)).round().nan_to_num(nan=0.0).clamp(0, self.spec.levels - 1).long()
        )

    # likelihood

    def log_prob(self, x: Tensor, cond: Cond | None = None, *, rng: Rng) -> Tensor:
        return self._log_prob(self.density, x, {} if cond is None else cond, rng)

    def _log_prob(self, density: DensityConfig, x: Tensor, cond: Cond, rng: Rng) -> Tensor:
        return density.log_prob(
            lambda target, x, t: self.predict(target, x, t, cond),
            self._read(x),
            self.target,
            self.path,
            self.spec.levels,
            rng,
        )

    @property
    def log_prob_protocol(self) -> str:
        return self.density.protocol(self.path, self.spec.levels)

    def ways(self, effort: float = 1.0) -> Mapping[str, Way]:
        """The variational bound and the probability-flow equation, whichever of them `log_prob` takes."""
        bound = BoundConfig(draws=max(1, round(128 * effort)))
        ode = OdeDensityConfig(steps=max(1, round(64 * effort)))
        return {
            name: Way(
                density.likelihood,
                density.protocol(self.path, self.spec.levels),
                lambda x, cond, rng, density=density: self._log_prob(density, x, cond, rng),  # type: ignore[misc]
            )
            for name, density in (("vlb", bound), ("ode", ode))
        }


def _waves(shown: Tensor, x: Tensor, sigma: Tensor | float, levels: int) -> Tensor:
    """`shown` (B, C, ...) and waves of x = x0 + sigma eps (B, C, ...): (B, (1 + WAVES) C, ...).

    Each wave is scaled by exp(-(frequency sigma)^2 / 2), the share of it that the noise leaves.
    """
    parts = [shown]
    for frequency in (math.pi * (levels - 1) / 2, math.pi * (levels - 1)):
        strength = -((frequency * sigma) ** 2) / 2
        fade = torch.exp(strength) if isinstance(strength, Tensor) else math.exp(strength)
        parts += [torch.sin(frequency * x) * fade, torch.cos(frequency * x) * fade]
    return torch.cat(parts, 1)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DiffusionConfig(ModelConfig):
    """See Diffusion. `path`: a name of PATHS, or a config."""

    kind = "diffusion"
    network: NetworkConfig
    path: PathName | PathConfig = "linear"
    target: TargetName = "velocity"
    weighting: Weighting = WeightingConfig()
    density: DensityConfig = OdeDensityConfig()
    class_dropout: float = Field(default=0.1, ge=0, lt=1)
    sampling: DiffusionSampling = DiffusionSampling()
    warps: WarpConfig | None = None

    def build(self, spec: DataSpec) -> Diffusion:
        told = {} if self.warps is None else {CONDITION: self.warps.count}
        waves = 1 if spec.levels is None else 1 + WAVES
        inputs = (waves * spec.shape[0], *spec.shape[1:])
        network = self.network.build(inputs, spec.shape, {**spec.conditions, **told}, time=True)
        return Diffusion(
            spec,
            network,
            path=self.path.build() if isinstance(self.path, PathConfig) else PATHS[self.path],
            target=self.target,
            weighting=self.weighting,
            density=self.density,
            class_dropout=self.class_dropout,
            sampling=self.sampling,
            warps=None if self.warps is None else self.warps.build(spec),
        )
