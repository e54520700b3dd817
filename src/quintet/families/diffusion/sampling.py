"""The choices at sampling, and the levels of noise they mean on a path.

What it is: one config for every solver, which refuses an option that does nothing for the chosen one; grids of levels.
What it is not: the solvers (samplers/ode.py, samplers/multistep.py).

Two groups of solvers. Those of the equation (euler, heun, rk4, dopri5) follow the velocity in time. Those of the clean
data (ddim, ancestral, dpmpp-2m, edm) go from one level of noise to the next and end with the clean data expected at the
last one; on a path with T training times they use these alone (churn aside).

Sources of the grids: Lu et al. 2022 (even in log-SNR), arXiv:2206.00927; Karras et al. 2022, eq. 5 (even in
sigma^(1/7)), arXiv:2206.00364; both between sigma 0.002 and 80, as in the latter's table 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from quintet.core.config import STRICT, Config
from quintet.core.errors import UsageError
from quintet.families.diffusion.paths import Level, Path
from quintet.families.diffusion.targets import TargetName, noise_span, span
from quintet.samplers.multistep import Row, ddim, dpmpp_2m, edm

SolverName = Literal["euler", "heun", "rk4", "dopri5", "ddim", "ancestral", "dpmpp-2m", "edm"]

_CHURN = ("churn", "churn_low", "churn_high", "churn_noise")
_COMMON = ("solver", "guidance", "interval")
_USES: Mapping[str, tuple[str, ...]] = {
    "euler": ("steps", "warp"),
    "heun": ("steps", "warp"),
    "rk4": ("steps", "warp"),
    "dopri5": ("tolerance",),
    "ddim": ("steps", "grid", "warp", "eta"),
    "ancestral": ("steps", "grid", "warp"),
    "dpmpp-2m": ("steps", "grid", "warp"),
    "edm": ("steps", "grid", "warp", *_CHURN),
}
"""What each solver takes beside the common fields."""

_STEPS: Mapping[str, int] = {
    "euler": 32, "heun": 16, "rk4": 8, "ddim": 50, "ancestral": 1000, "dpmpp-2m": 20, "edm": 18,
}  # fmt: skip
_GRID: Mapping[str, str] = {"dpmpp-2m": "log-snr", "edm": "rho"}
_ENDS, _RHO = (0.002, 80.0), 7.0


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DiffusionSampling(Config):
    """How noise is carried to data. None leaves a choice to the solver; an option that it has no use for is an error.

    Attributes:
        solver: "euler", "heun", "rk4", "dopri5" (adaptive Runge-Kutta 5(4)): of the equation; "ddim", "ancestral" (the
            chain's own reverse kernels), "dpmpp-2m", "edm" (Heun in the noise level, with churn): of the clean data.
        steps: of the grid; dopri5 chooses its own. ancestral: by default all of the path's, or 1000.
        guidance: 1 = plain conditional, 0 = unconditional.
        interval: (low, high) times between which guidance applies; elsewhere it is 1.
        grid: levels evenly spread in "time", "log-snr" (dpmpp-2m's) or "rho", sigma^(1/7) (edm's).
        warp: a grid in time is u^warp for even u; above 1 puts more steps near the data.
        tolerance: dopri5's, relative and absolute.
        eta: ddim's share of fresh noise; 0 is deterministic, 1 is ancestral.
        churn, churn_low, churn_high, churn_noise: edm's S_churn, S_min, S_max, S_noise.
    Raises: UsageError naming an option that does nothing.
    """

    kind = "diffusion-sampling"
    solver: SolverName = "heun"
    steps: int | None = Field(default=None, ge=1, le=100_000)
    guidance: float = Field(default=1.0, ge=-100, le=100, allow_inf_nan=False)
    interval: tuple[float, float] | None = None
    grid: Literal["time", "log-snr", "rho"] | None = None
    warp: float | None = Field(default=None, gt=0, le=10)
    tolerance: float | None = Field(default=None, gt=0, le=1)
    eta: float | None = Field(default=None, ge=0, le=1)
    churn: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    churn_low: float | None = Field(default=None, ge=0)
    churn_high: float | None = Field(default=None, gt=0)
    churn_noise: float | None = Field(default=None, gt=0, le=2)

    def __post_init__(self) -> None:
        used = _USES[self.solver]
        for field in dataclasses.fields(self):
            if getattr(self, field.name) is not None and field.name not in (*_COMMON, *used):
                known = ", ".join((*_COMMON[1:], *used))
                raise UsageError("diffusion.idle_option", option=field.name, solver=self.solver, known=known)
        if self.warp is not None and self.spacing != "time":
            raise UsageError("diffusion.idle_warp", solver=self.solver, grid=self.spacing)
        if self.interval is not None and self.guidance == 1:
            raise UsageError("diffusion.idle_interval")
        idle = [name for name in _CHURN[1:] if getattr(self, name) is not None]
        if idle and not self.churn:
            raise UsageError("diffusion.idle_churn", option=idle[0])

    def carried(self, choices: Mapping[str, Any]) -> dict[str, Any]:
        """This config's fields as far as they go together with a user's choices: another solver has its own options."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if choices.get("solver", self.solver) != self.solver:
            fields = {name: value for name, value in fields.items() if name in _COMMON}
        elif choices.get("grid", "time") != "time":
            fields.pop("warp")
        if choices.get("guidance") == 1:
            fields.pop("interval")
        return fields

    @property
    def follows_velocity(self) -> bool:
        """Whether the solver is one of the equation."""
        return "grid" not in _USES[self.solver]

    @property
    def spacing(self) -> str:
        return self.grid or _GRID.get(self.solver, "time")

    def count(self, path: Path) -> int:
        """Steps of the grid.

        Raises: UsageError for more steps of a clean-data solver than the path has training times.
        """
        default = path.steps if self.solver == "ancestral" else None
        most = path.steps if path.steps is not None and not self.follows_velocity else None
        count = self.steps or default or _STEPS.get(self.solver, 1)
        if self.steps is None and most is not None:
            count = min(count, most)
        if most is not None and count > most:
            raise UsageError("diffusion.too_many_steps", steps=count, most=most)
        return count

    def times(self, path: Path, start: float, end: float) -> Tensor:
        """(steps + 1,) float64 from `start` down to `end`, for a solver of the equation."""
        u = torch.linspace(1, 0, self.count(path) + 1, dtype=torch.float64) ** (self.warp or 1.0)
        return end + (start - end) * u

    def levels(self, target: TargetName, path: Path) -> list[Level]:
        """The grid of a solver of the clean data, from noise to data; the clean data themselves come after the last."""
        count, (low, high) = self.count(path), span(target, path)
        clean, noisy = noise_span(target, path)
        clean, noisy = max(clean, _ENDS[0]), min(noisy, _ENDS[1])
        if self.spacing == "time":
            if self.solver == "edm":  # its steps are in the level, which is infinite at pure noise
                high = min(high, path.level_of(noisy).t)
            times = [max(low, high * (1 - i / count) ** (self.warp or 1.0)) for i in range(count)]
        else:
            u = torch.linspace(0, 1, count, dtype=torch.float64) if count > 1 else torch.zeros(1, dtype=torch.float64)
            if self.spacing == "log-snr":
                sigma = noisy * (clean / noisy) ** u
            else:
                sigma = (noisy ** (1 / _RHO) + u * (clean ** (1 / _RHO) - noisy ** (1 / _RHO))) ** _RHO
            times = path.time(sigma).clamp(low, high).tolist()
        if path.steps is not None:
            times = [max(1, round(t * path.steps)) / path.steps for t in times]
        return path.levels(list(dict.fromkeys(times)))

    @lru_cache(maxsize=64)  # noqa: B019 - frozen, a handful in a process
    def table(self, target: TargetName, path: Path) -> tuple[list[Row], list[Level]]:
        """The rows of a solver of the clean data and the level of each."""
        levels = self.levels(target, path)
        if self.solver == "edm":
            return edm(
                levels,
                path.level_of,
                churn=self.churn or 0.0,
                low=self.churn_low or 0.0,
                high=self.churn_high or float("inf"),
                spread=self.churn_noise or 1.0,
            )
        if self.solver == "dpmpp-2m":
            return dpmpp_2m(levels), levels
        return ddim(levels, 1.0 if self.solver == "ancestral" else self.eta or 0.0), levels
