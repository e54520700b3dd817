"""Samplers that ask for the clean data: DDIM, ancestral, DPM-Solver++(2M), EDM's Heun with churn, each as a table.

What it is: all of them go from noise to data by steps of one form,

    D = clean(x, i)
    x = row.x * x + row.clean * D + row.before * (D of the row before) + row.noise * z

so a sampler is a list of rows of plain numbers, made once, and a step costs as many tensor operations as it has terms.
What it is not: tied to a family; `clean` is any callable, and the levels come from any path x_t = a x0 + s eps.

Legend: B items, E the event shape; a level (a, s) of the path; sigma = s / a; lambda = -ln sigma. The last row of every
table leaves the clean data expected at its level.

Sources: Song et al. 2021, "DDIM", eq. 12 and 16, arXiv:2010.02502; Ho et al. 2020, eq. 6-7, arXiv:2006.11239; Lu et al.
2022, "DPM-Solver++", algorithm 2, arXiv:2211.01095; Karras et al. 2022, algorithms 1 and 2, arXiv:2206.00364.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeVar

from torch import Tensor

Clean = Callable[[Tensor, int], Tensor]
"""The expected clean data (B, *E) behind x (B, *E) at the level of the table's i-th row."""

Noise = Callable[[int], Tensor]
"""Standard normal noise (B, *E) for the table's i-th row."""


class LevelLike(Protocol):
    """A place on a path."""

    @property
    def a(self) -> float: ...

    @property
    def s(self) -> float: ...

    @property
    def sigma(self) -> float: ...


L = TypeVar("L", bound=LevelLike)


class Row(NamedTuple):
    """One evaluation and the step it makes: coefficients of x, of the clean data now and before, and of fresh noise."""

    x: float
    clean: float
    before: float = 0.0
    noise: float = 0.0


LAST = Row(0.0, 1.0)


def follow(
    clean: Clean,
    x: Tensor,
    rows: Sequence[Row],
    noise: Noise | None = None,
    seen: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Walk through a table.

    Args:
        clean: see Clean; evaluated once a row.
        x: (B, *E), state at the first row's level.
        rows: the table.
        noise: see Noise; needed where a row has noise.
        seen: told the row and the state it left.
    Returns: (B, *E).
    Raises: ValueError for an empty table, or a row with noise when there is none.
    """
    if not rows:
        raise ValueError("a table needs at least one row")
    if noise is None and any(row.noise for row in rows):
        raise ValueError("this table draws noise: give `noise`")
    before = None
    for i, row in enumerate(rows):
        now = clean(x, i)
        # one new tensor a step, the rest in place: a large batch is bound by memory
        x = (x * row.x).add_(now, alpha=row.clean) if row != LAST else now
        if row.before:
            assert before is not None
            x.add_(before, alpha=row.before)
        if row.noise:
            assert noise is not None
            x.add_(noise(i), alpha=row.noise)
        before = now
        if seen is not None:
            seen(i, x)
    return x


def ddim(levels: Sequence[LevelLike], eta: float = 0.0) -> list[Row]:
    """First order in the noise level; deterministic for eta = 0, the chain's own reverse kernels for eta = 1.

    Args:
        levels: N >= 1, from noise to data; a row each.
        eta: share of the posterior's standard deviation that is drawn afresh.
    Source: Song et al. 2021, eq. 12, with their sigma (eq. 16) written for any a and s:
        sigma = eta (s_r / s_t) sqrt(s_t^2 - (a_t / a_r)^2 s_r^2), which for eta = 1 is q(x_r | x_t, x_0)'s.
    """
    rows = []
    for at, to in _pairs(levels):
        fresh = eta * to.s / at.s * math.sqrt(max(at.s**2 - (at.a / to.a * to.s) ** 2, 0.0))
        keep = math.sqrt(max(to.s**2 - fresh**2, 0.0)) / at.s
        rows.append(Row(keep, to.a - keep * at.a, noise=fresh))
    return [*rows, LAST]


def dpmpp_2m(levels: Sequence[LevelLike]) -> list[Row]:
    """DPM-Solver++(2M): second order, from the clean data now and before; the first and the last step are first order.

    Args:
        levels: N >= 1, from noise to data; a row each.
    Source: Lu et al. 2022, algorithm 2.
    """
    rows: list[Row] = []
    last: float | None = None  # lambda's growth over the step before
    for at, to in _pairs(levels):
        h = math.log(at.sigma) - math.log(to.sigma) if to.s else math.inf
        weight = -to.a * math.expm1(-h)
        share = h / last / 2 if last is not None else 0.0  # 1 / (2 r)
        if not math.isfinite(share):
            share = 0.0
        rows.append(Row(to.s / at.s, weight * (1 + share), -weight * share))
        last = h
    return [*rows, LAST]


def edm(
    levels: Sequence[L],
    at: Callable[[float], L],
    *,
    churn: float = 0.0,
    low: float = 0.0,
    high: float = math.inf,
    spread: float = 1.0,
) -> tuple[list[Row], list[L]]:
    """Heun's method in the noise level, with fresh noise added before each step if `churn` is above 0.

    A step from sigma' (after the churn) to sigma with q = sigma / sigma' is Euler's, x = q x' + (1 - q) D1, and then
    x + (1 - q) / (2 q) (D2 - D1), so it has two rows; x is scaled by a.

    Args:
        levels: N >= 1, from noise to data.
        at: the level of a given sigma.
        churn: S_churn; each step takes sigma up by the factor 1 + min(churn / N, sqrt 2 - 1), except from the first
            level, which is noise already (a departure), and never above it.
        low, high: S_min and S_max, the sigmas between which there is churn.
        spread: S_noise, standard deviation of the fresh noise.
    Returns: 2 N - 1 rows, and the level of each.
    Source: Karras et al. 2022, algorithms 1 (churn 0) and 2.
    """
    grow = min(churn / len(levels), math.sqrt(2) - 1)
    raised = [levels[0]]  # the levels after the churn
    for level in levels[1:]:
        up = min(level.sigma * (1 + grow), levels[0].sigma) if low <= level.sigma <= high else level.sigma
        raised.append(at(up) if up > level.sigma else level)
    rows: list[Row] = []
    places: list[L] = []
    for start, end, then in zip(raised[:-1], levels[1:], raised[1:], strict=True):
        q = end.sigma / start.sigma
        fresh = spread * math.sqrt(max(then.sigma**2 - end.sigma**2, 0.0))
        rows.append(Row(q * end.a / start.a, (1 - q) * end.a))
        pull = then.a * (1 - q) / (2 * q)
        rows.append(Row(then.a / end.a, pull, -pull, then.a * fresh))
        places += [start, end]
    return [*rows, LAST], [*places, raised[-1]]


def _pairs(levels: Sequence[L]) -> list[tuple[L, L]]:
    """Neighbours; levels must go from noise to data."""
    if not levels:
        raise ValueError("at least one level is needed")
    pairs = list(itertools.pairwise(levels))
    if any(to.sigma >= start.sigma for start, to in pairs):
        raise ValueError(f"levels must go from noise to data, got sigma {[level.sigma for level in levels]}")
    return pairs
