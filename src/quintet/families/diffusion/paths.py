"""Paths from data to noise: x_t = a(t) x0 + s(t) eps, t in [0, 1], 0 = data, 1 = noise.

What it is: the two coefficients, their derivatives, and the time at which the noise-to-signal ratio s/a has a given
value. A path without parameters has a name; the others have a config.
What it is not: a loss or a sampler.

A chain of T discrete steps is the same thing with the training times k/T: x_k = sqrt(alpha_bar_k) x0 +
sqrt(1 - alpha_bar_k) eps.

Sources: Lipman et al. 2023 (linear), arXiv:2210.02747; Lu & Song 2024 (cosine), arXiv:2410.11081; Song et al. 2021
(variance preserving), arXiv:2011.13456, eq. 32-33; Ho et al. 2020 (discrete, linear beta), arXiv:2006.11239; Nichol &
Dhariwal 2021 (discrete, cosine), arXiv:2102.09672; Karras et al. 2022 (a = 1), arXiv:2206.00364; Kingma et al. 2021
(linear log-SNR), arXiv:2107.00630.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from quintet.core.config import STRICT, Config

PathName = Literal["linear", "cosine", "vp"]
Scalar = Callable[[Tensor], Tensor]


class Level(NamedTuple):
    """A place on a path in plain numbers: time, and the coefficients of data and noise there."""

    t: float
    a: float
    s: float

    @property
    def sigma(self) -> float:
        """Noise-to-signal ratio."""
        return self.s / self.a if self.a else math.inf


@plain_dataclass(frozen=True)
class Path:
    """Coefficients of x_t, each a function of t of any shape.

    Attributes:
        a, s: of the data and of the noise.
        da, ds: their derivatives by t.
        time: t at which s/a = sigma.
        low: smallest t at which a prediction is used; above 0 where ds is infinite at 0, or nothing below is trained.
        std: standard deviation of the data which the path starts from, a value's.
        steps: T if training times are k/T alone, None if they are continuous.
    """

    a: Scalar
    s: Scalar
    da: Scalar
    ds: Scalar
    time: Scalar
    low: float = 0.0
    std: float = 1.0
    steps: int | None = None

    def point(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_t (B, *E) of x0 and eps (B, *E) at t (B,)."""
        t = wide(t, x0)
        return self.a(t) * x0 + self.s(t) * eps

    def snap(self, t: Tensor) -> Tensor:
        """The training time in whose step t lies: k/T at or above t, or t itself where times are continuous."""
        return t if self.steps is None else torch.ceil(t * self.steps).clamp(1, self.steps) / self.steps

    def levels(self, times: Sequence[float]) -> list[Level]:
        """The levels at given times."""
        at = torch.tensor(times, dtype=torch.float64)
        return [Level(*row) for row in zip(times, self.a(at).tolist(), self.s(at).tolist(), strict=True)]

    def level(self, t: float) -> Level:
        """The level at time t."""
        return self.levels([t])[0]

    def level_of(self, sigma: float) -> Level:
        """The level at which s/a = sigma."""
        return self.level(float(self.time(torch.tensor(sigma, dtype=torch.float64))))

    def spread(self, t: float) -> float:
        """Standard deviation of a value of x_t: that of the noise sampling starts from."""
        _, a, s = self.level(t)
        return math.hypot(a * self.std, s)


def wide(t: Tensor, x: Tensor) -> Tensor:
    """t (B,) as (B, 1, ...), to multiply x (B, *E)."""
    return t.reshape(-1, *[1] * (x.ndim - 1))


# Variance preserving: a(t) = exp(-B(t) / 2), B(t) = integral of beta = b0 t + (b1 - b0) t^2 / 2, s^2 = 1 - a^2.
_B0, _B1 = 0.1, 20.0


def _vp_integral(t: Tensor) -> Tensor:
    return _B0 * t + (_B1 - _B0) / 2 * t * t


def _vp_beta(t: Tensor) -> Tensor:
    return _B0 + (_B1 - _B0) * t


def _vp_a(t: Tensor) -> Tensor:
    return torch.exp(-_vp_integral(t) / 2)


def _vp_s(t: Tensor) -> Tensor:
    return torch.sqrt(-torch.expm1(-_vp_integral(t)))


def _vp_time(sigma: Tensor) -> Tensor:
    integral = torch.log1p(sigma * sigma)
    slope = _B1 - _B0
    return (torch.sqrt(_B0**2 + 2 * slope * integral) - _B0) / slope


PATHS: Mapping[str, Path] = {
    "linear": Path(
        a=lambda t: 1 - t,
        s=lambda t: t,
        da=lambda t: -torch.ones_like(t),
        ds=torch.ones_like,
        time=lambda sigma: sigma / (1 + sigma),
    ),
    "cosine": Path(
        a=lambda t: torch.cos(math.pi / 2 * t),
        s=lambda t: torch.sin(math.pi / 2 * t),
        da=lambda t: -math.pi / 2 * torch.sin(math.pi / 2 * t),
        ds=lambda t: math.pi / 2 * torch.cos(math.pi / 2 * t),
        time=lambda sigma: torch.atan(sigma) * (2 / math.pi),
    ),
    "vp": Path(
        a=_vp_a,
        s=_vp_s,
        da=lambda t: -_vp_beta(t) / 2 * _vp_a(t),
        ds=lambda t: _vp_beta(t) / 2 * _vp_a(t) ** 2 / _vp_s(t),
        time=_vp_time,
        low=1e-4,
    ),
}


class PathConfig(Config, ABC):
    """Config of a path with parameters."""

    @abstractmethod
    def build(self) -> Path: ...


class Schedule(NamedTuple):
    """A discrete chain q(x_k | x_{k-1}) = N(sqrt(1 - beta_k) x_{k-1}, beta_k I), each (T,) float64, k = 1..T in order.

    alpha_k = 1 - beta_k, and alpha_bar_k is the product of alpha_1 .. alpha_k: q(x_k | x_0) =
    N(sqrt(alpha_bar_k) x_0, (1 - alpha_bar_k) I).
    """

    beta: Tensor
    alpha: Tensor
    alpha_bar: Tensor


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DdpmPathConfig(PathConfig):
    """A chain of discrete steps, and between them log alpha_bar interpolated linearly (for solvers that stop there).

    Attributes:
        steps: T, the number of training times.
        schedule: "linear": beta_k from 1e-4 to 0.02 for T = 1000, both times 1000/T for another T (at most 0.999);
            "cosine": alpha_bar_k = f(k) / f(0), f(k) = cos((k/T + 0.008) / 1.008 pi/2)^2, beta_k at most 0.999.
    Source: Ho et al. 2020, section 4; Nichol & Dhariwal 2021, eq. 17; the interpolation: Lu et al. 2022, appendix D.1,
        arXiv:2206.00927.
    """

    kind = "ddpm-path"
    steps: int = Field(default=1000, ge=2, le=100_000)
    schedule: Literal["linear", "cosine"] = "linear"

    def chain(self) -> Schedule:
        """beta, alpha and alpha_bar of the steps 1..T."""
        if self.schedule == "linear":
            ends = 1000 / self.steps
            beta = torch.linspace(1e-4 * ends, 0.02 * ends, self.steps, dtype=torch.float64)
        else:
            k = torch.arange(self.steps + 1, dtype=torch.float64)
            f = torch.cos((k / self.steps + 0.008) / 1.008 * (math.pi / 2)).square()
            beta = 1 - f[1:] / f[:-1]
        beta = beta.clamp_max(0.999)
        return Schedule(beta, 1 - beta, torch.cumprod(1 - beta, 0))

    def build(self) -> Path:
        table = torch.cat([torch.zeros(1, dtype=torch.float64), torch.log1p(-self.chain().beta).cumsum(0)])
        steps, here = self.steps, {torch.device("cpu"): table}

        def on(t: Tensor) -> Tensor:
            if t.device not in here:
                with torch.inference_mode(False):  # kept, and used in training too
                    here[t.device] = table.to(t.device)
            return here[t.device]

        def log_bar(t: Tensor) -> tuple[Tensor, Tensor]:  # log alpha_bar and its slope by t, as t
            logs, u = on(t), t.double() * steps
            k = (u + 1e-4).floor().long().clamp(0, steps - 1)  # float32's k/T may lie just below the step
            slope = logs[k + 1] - logs[k]
            return (logs[k] + (u - k) * slope).clamp_max(0.0), slope * steps

        def a(t: Tensor) -> Tensor:
            return torch.exp(log_bar(t)[0] / 2).to(t.dtype)

        def s(t: Tensor) -> Tensor:
            return torch.sqrt(-torch.expm1(log_bar(t)[0])).to(t.dtype)

        def da(t: Tensor) -> Tensor:
            value, slope = log_bar(t)
            return (torch.exp(value / 2) * slope / 2).to(t.dtype)

        def ds(t: Tensor) -> Tensor:  # s^2 = 1 - a^2, so s s' = -a a'
            value, slope = log_bar(t)
            return (-torch.exp(value) * slope / 2 / torch.sqrt(-torch.expm1(value))).to(t.dtype)

        def time(sigma: Tensor) -> Tensor:
            logs, value = on(sigma), -torch.log1p(sigma.double().square())
            k = (torch.searchsorted(-logs, -value.contiguous()) - 1).clamp(0, steps - 1)
            return ((k + (value - logs[k]) / (logs[k + 1] - logs[k])) / steps).clamp(0, 1).to(sigma.dtype)

        return Path(a=a, s=s, da=da, ds=ds, time=time, low=1 / steps, steps=steps)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EdmPathConfig(PathConfig):
    """a = 1: noise is added to data that stay as they are, s = sigma(t), so that even times are the paper's grid.

    sigma(t)^(1/rho) is linear in t, from `low` at t = 0, which is never quite clean, to `high` at t = 1.

    Attributes:
        low, high: ends of sigma, in data units.
        rho: above 1 the steps are shorter near the data.
        std: sigma_data, the standard deviation of the data.
    Source: Karras et al. 2022, table 1 and eq. 5, arXiv:2206.00364.
    """

    kind = "edm-path"
    low: float = Field(default=0.002, gt=0)
    high: float = Field(default=80.0, gt=0)
    rho: float = Field(default=7.0, ge=1)
    std: float = Field(default=0.5, gt=0)

    def build(self) -> Path:
        """Raises: ValueError if low is not below high."""
        if self.low >= self.high:
            raise ValueError(f"low must be below high, got {self.low} and {self.high}")
        rho, first = self.rho, self.low ** (1 / self.rho)
        gap = self.high ** (1 / rho) - first
        return Path(
            a=torch.ones_like,
            s=lambda t: (first + t * gap) ** rho,
            da=torch.zeros_like,
            ds=lambda t: rho * gap * (first + t * gap) ** (rho - 1),
            time=lambda sigma: ((sigma ** (1 / rho) - first) / gap).clamp(0, 1),
            std=self.std,
        )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LogSnrPathConfig(PathConfig):
    """Variance preserving with gamma(t) = -log SNR linear in t: a^2 = sigmoid(-gamma), s^2 = sigmoid(gamma).

    Only the ends matter for the likelihood bound (Kingma et al. 2021, section 5.1), and the way between them, which
    they learn for less variance, is straight here.

    Attributes:
        low, high: gamma at t = 0 and t = 1.
    """

    kind = "log-snr-path"
    low: float = -13.3
    high: float = 5.0

    def build(self) -> Path:
        """Raises: ValueError if low is not below high."""
        if self.low >= self.high:
            raise ValueError(f"low must be below high, got {self.low} and {self.high}")
        low, slope = self.low, self.high - self.low

        def a(t: Tensor) -> Tensor:
            return torch.sigmoid(-(low + slope * t)).sqrt()

        def s(t: Tensor) -> Tensor:
            return torch.sigmoid(low + slope * t).sqrt()

        return Path(
            a=a,
            s=s,
            da=lambda t: -slope / 2 * a(t) * s(t).square(),
            ds=lambda t: slope / 2 * s(t) * a(t).square(),
            time=lambda sigma: ((2 * torch.log(sigma) - low) / slope).clamp(0, 1),
        )
