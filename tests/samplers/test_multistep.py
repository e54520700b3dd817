"""Tables of the clean-data samplers against closed forms: orders, moments, posterior variance, the printed steps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from quintet.samplers.multistep import LAST, Clean, Row, ddim, dpmpp_2m, edm, follow

MU, VARIANCE = 1.5, 0.25


class Place(NamedTuple):
    a: float
    s: float

    @property
    def sigma(self) -> float:
        return self.s / self.a if self.a else math.inf


def preserving(sigma: float) -> Place:
    """The variance-preserving level of a given sigma."""
    return Place(1 / math.hypot(1, sigma), sigma / math.hypot(1, sigma))


def plain(sigma: float) -> Place:
    return Place(1.0, sigma)


def straight(sigma: float) -> Place:
    return Place(1 / (1 + sigma), sigma / (1 + sigma))


ON = (preserving, plain, straight)


def geometric(n: int, on: Callable[[float], Place], high: float = 80.0, low: float = 0.02) -> list[Place]:
    return [on(high * (low / high) ** (i / (n - 1))) for i in range(n)]


def clean_of(levels: list[Place]) -> Clean:
    """E[x0 | x] for data N(MU, VARIANCE)."""

    def clean(x: Tensor, i: int) -> Tensor:
        a, s = levels[i]
        return MU + a * VARIANCE / (a**2 * VARIANCE + s**2) * (x - a * MU)

    return clean


def carried(x: Tensor, start: Place, end: Place) -> Tensor:
    """The flow map, then the clean data expected at its end."""
    root = [math.sqrt(p.a**2 * VARIANCE + p.s**2) for p in (start, end)]
    y = end.a * MU + root[1] / root[0] * (x - start.a * MU)
    return clean_of([end])(y, 0)


def points(n: int = 64) -> Tensor:
    return torch.randn((n, 2), dtype=torch.float64, generator=torch.Generator().manual_seed(n))


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize(("solver", "order"), [("ddim", 1), ("dpmpp-2m", 2), ("edm", 2)])
def test_order_is_measured(solver: str, order: int, on: Callable[[float], Place]) -> None:
    errors = []
    for n in (129, 257, 513):
        levels = geometric(n, on)
        x = points() * levels[0].s
        if solver == "edm":
            rows, places = edm(levels, on)
        else:
            rows, places = (ddim(levels) if solver == "ddim" else dpmpp_2m(levels)), levels
        errors.append(float((follow(clean_of(places), x, rows) - carried(x, levels[0], levels[-1])).abs().max()))
    slopes = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert slopes[-1] == pytest.approx(order, abs=0.15), (slopes, errors)


@pytest.mark.parametrize("on", ON)
def test_ddim_with_eta_1_has_the_posterior_variance(on: Callable[[float], Place]) -> None:
    """q(x_r | x_t, x0) by Bayes' rule on the joint Gaussian, against the row."""
    levels = [on(5.0), on(1.7), on(0.4)]
    for row, at, to in zip(ddim(levels, 1.0), levels, levels[1:], strict=False):
        within = (at.a / to.a) ** 2 * to.s**2  # Var(x_t | x0) that comes from x_r
        cov = at.a / to.a * to.s**2
        variance = to.s**2 - cov**2 / at.s**2
        assert at.s**2 > within
        assert row.noise**2 == pytest.approx(variance, rel=1e-12)
        assert row.x == pytest.approx(cov / at.s**2, rel=1e-12)
        assert row.clean == pytest.approx(to.a - cov / at.s**2 * at.a, rel=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim_keeps_the_marginals(eta: float) -> None:
    """With the true x0 for the prediction every step leads from q(x_t | x0) to q(x_r | x0) exactly."""
    levels = geometric(9, preserving)
    for row, at, to in zip(ddim(levels, eta), levels, levels[1:], strict=False):
        assert row.x * at.a + row.clean == pytest.approx(to.a, abs=1e-12)
        assert (row.x * at.s) ** 2 + row.noise**2 == pytest.approx(to.s**2, abs=1e-12)


def noise_from(seed: int, x: Tensor) -> Callable[[int], Tensor]:
    def noise(i: int) -> Tensor:
        return torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1000 * seed + i))

    return noise


def moments(x: Tensor) -> tuple[float, float]:
    return abs(float(x.mean()) - MU), abs(float(x.var()) - VARIANCE)


def test_ancestral_sampling_reaches_the_moments_as_steps_grow() -> None:
    found = []
    for n in (8, 100, 500):
        levels = geometric(n, preserving, low=0.002)
        x = torch.randn((100_000, 1), dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        found.append(moments(follow(clean_of(levels), x, ddim(levels, 1.0), noise_from(n, x))))
    # few steps lose variance: the posterior given one clean picture is narrower than the reverse kernel
    assert found[0][1] > 4 * found[1][1] > 8 * found[2][1]
    assert max(found[2]) < 0.01, found


@pytest.mark.parametrize("on", [plain, straight])
def test_edm_with_churn_keeps_the_moments(on: Callable[[float], Place]) -> None:
    levels = geometric(120, on, low=0.002)
    rows, places = edm(levels, on, churn=40.0, low=0.01, high=50.0)
    assert sum(row.noise > 0 for row in rows) > 80
    assert sum(row.noise > 0 for row in edm(levels, on, churn=40.0, low=1.0)[0]) < 80
    x = levels[0].s * torch.randn((50_000, 1), dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    assert max(moments(follow(clean_of(places), x, rows, noise_from(5, x)))) < 0.012


def test_edm_is_the_papers_algorithm() -> None:
    """Algorithm 2 as it is printed, against the table."""
    sigma = [80.0, 20.0, 4.0, 0.7, 0.1]
    churn, spread = 3.0, 1.01
    levels = [plain(v) for v in sigma]
    rows, places = edm(levels, plain, churn=churn, high=50.0, spread=spread)
    x0 = points() * 80
    noise = noise_from(6, x0)
    found = follow(clean_of(places), x0, rows, noise)

    def denoised(x: Tensor, level: float) -> Tensor:
        return clean_of([plain(level)])(x, 0)

    gamma = min(churn / len(sigma), math.sqrt(2) - 1)
    x, ends = x0, [*sigma[1:], 0.0]
    for i, (t, end) in enumerate(zip(sigma, ends, strict=True)):
        up = t * (1 + gamma) if i > 0 and t <= 50 else t
        x = x + math.sqrt(up**2 - t**2) * spread * noise(2 * i - 1)
        d = (x - denoised(x, up)) / up
        euler = x + (end - up) * d
        x = euler if end == 0 else x + (end - up) * (d + (euler - denoised(euler, end)) / end) / 2
    torch.testing.assert_close(found, x, rtol=1e-10, atol=1e-10)


def test_dpmpp_is_the_papers_algorithm() -> None:
    """Algorithm 2 of DPM-Solver++ as it is printed, with lambda = ln(alpha / sigma)."""
    levels = [preserving(v) for v in (30.0, 8.0, 3.0, 0.5, 0.2)]
    x0 = points()
    found = follow(clean_of(levels), x0, dpmpp_2m(levels))
    lam = [-math.log(level.sigma) for level in levels]
    x, before = x0, None
    for i in range(1, len(levels)):
        now = clean_of(levels)(x, i - 1)
        h, d = lam[i] - lam[i - 1], now
        if before is not None:
            r = (lam[i - 1] - lam[i - 2]) / h
            d = (1 + 1 / (2 * r)) * now - 1 / (2 * r) * before
        x = levels[i].s / levels[i - 1].s * x - levels[i].a * (math.exp(-h) - 1) * d
        before = now
    torch.testing.assert_close(found, clean_of(levels)(x, len(levels) - 1), rtol=1e-10, atol=1e-10)


def test_pure_noise_is_a_level_too() -> None:
    """a = 0, lambda = -infinity: both tables start from there with a first-order step."""
    levels = [Place(0.0, 1.0), Place(0.3, 0.7), Place(0.8, 0.2)]
    x = points()
    for rows in (ddim(levels), dpmpp_2m(levels)):
        assert rows[0] == pytest.approx(Row(0.7, 0.3))
        assert follow(clean_of(levels), x, rows).isfinite().all()
    assert rows[1].before == 0


def test_one_level_is_the_clean_data_expected() -> None:
    x, level = points(), plain(2.0)
    for rows in (ddim([level]), dpmpp_2m([level]), edm([level], plain)[0]):
        assert rows == [LAST]
        assert torch.equal(follow(clean_of([level]), x, rows), clean_of([level])(x, 0))


def test_refusals() -> None:
    x, levels = points(), geometric(4, plain)
    with pytest.raises(ValueError, match="draws noise"):
        follow(clean_of(levels), x, ddim(levels, 1.0))
    with pytest.raises(ValueError, match="at least one row"):
        follow(clean_of(levels), x, [])
    for rows in (ddim, dpmpp_2m):
        with pytest.raises(ValueError, match="from noise to data"):
            rows(levels[::-1])  # type: ignore[operator]
        with pytest.raises(ValueError, match="at least one level"):
            rows([])  # type: ignore[operator]
