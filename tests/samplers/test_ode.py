"""Solvers against exact flow maps: measured orders, error control, and independence of items."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torchdiffeq
from torch import Tensor

from quintet.samplers.ode import FIXED, Counted, dopri5, solve

MU, VARIANCE = 1.5, 0.25


def variance(t: Tensor) -> Tensor:
    return (1 - t) ** 2 * VARIANCE + t**2


def gaussian_velocity(x: Tensor, t: Tensor) -> Tensor:
    """The linear path's exact velocity for data N(MU, VARIANCE), derived from the exact flow map below."""
    t = t.reshape(-1, *[1] * (x.ndim - 1))
    mean, slope = (1 - t) * MU, -2 * (1 - t) * VARIANCE + 2 * t  # slope of the variance
    return -MU + slope / (2 * variance(t)) * (x - mean)


def flow_map(x: Tensor, start: float, end: float) -> Tensor:
    """x_end of x_start: standardised by the marginal at one end, spread out by that at the other."""
    a, b = torch.tensor(start, dtype=x.dtype), torch.tensor(end, dtype=x.dtype)
    return (1 - b) * MU + torch.sqrt(variance(b) / variance(a)) * (x - (1 - a) * MU)


def points(n: int = 32, d: int = 3) -> Tensor:
    return torch.randn((n, d), dtype=torch.float64, generator=torch.Generator().manual_seed(n))


def grid(steps: int) -> Tensor:
    return torch.linspace(1, 0, steps + 1, dtype=torch.float64)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2), ("rk4", 4)])
def test_order_is_measured(solver: str, order: int) -> None:
    x = points()
    exact = flow_map(x, 1.0, 0.0)
    counts = (64, 128, 256) if solver != "rk4" else (48, 96, 192)
    errors = [float((solve(gaussian_velocity, x, grid(n), solver) - exact).abs().max()) for n in counts]
    slopes = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert slopes[-1] == pytest.approx(order, abs=0.15), slopes


@pytest.mark.parametrize("solver", list(FIXED))
def test_evaluations_per_interval(solver: str) -> None:
    counted = Counted(gaussian_velocity)
    solve(counted, points(), grid(7), solver)  # type: ignore[arg-type]
    assert counted.evaluations == 7 * FIXED[solver][1]


@pytest.mark.parametrize("tolerance", [1e-3, 1e-6, 1e-9])
def test_dopri5_keeps_its_tolerance(tolerance: float) -> None:
    x = points()
    counted = Counted(gaussian_velocity)
    error = (dopri5(counted, x, 1.0, 0.0, rtol=tolerance, atol=tolerance) - flow_map(x, 1.0, 0.0)).abs().max()
    assert error < 100 * tolerance  # local tolerance, global error: the flow multiplies it by up to about 10
    assert counted.evaluations < 60 * tolerance**-0.2


def test_dopri5_agrees_with_torchdiffeq() -> None:
    x, tolerance = points(8, 2), 1e-9
    wobble = torch.tensor([[0.3, 2.0], [-2.0, 0.1]], dtype=torch.float64)

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return torch.sin(x @ wobble) + torch.cos(5 * t.reshape(-1, 1)) * x

    theirs = torchdiffeq.odeint(
        lambda t, x: velocity(x, t.expand(len(x))),
        x,
        torch.tensor([0.0, 1.0], dtype=torch.float64),
        rtol=tolerance,
        atol=tolerance,
        method="dopri5",
    )[-1]
    torch.testing.assert_close(dopri5(velocity, x, 0.0, 1.0, rtol=tolerance, atol=tolerance), theirs, rtol=0, atol=1e-7)


@pytest.mark.parametrize("solver", [*FIXED, "dopri5"])
def test_there_and_back(solver: str) -> None:
    x = points()
    there = solve(gaussian_velocity, x, grid(200), solver, tolerance=1e-8)  # type: ignore[arg-type]
    back = solve(gaussian_velocity, there, grid(200).flip(0), solver, tolerance=1e-8)  # type: ignore[arg-type]
    assert (back - x).abs().max() < (0.1 if solver == "euler" else 1e-3)


@pytest.mark.parametrize("solver", [*FIXED, "dopri5"])
def test_an_item_does_not_depend_on_its_neighbours(solver: str) -> None:
    x = points(16, 4)
    x[3] *= 100  # under one common error norm this one would set everybody's steps

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return torch.sin(3 * x) * (1 + t.reshape(-1, 1))

    together = solve(velocity, x, grid(5), solver, tolerance=1e-3)  # type: ignore[arg-type]
    alone = torch.cat([solve(velocity, x[i : i + 1], grid(5), solver, tolerance=1e-3) for i in range(len(x))])  # type: ignore[arg-type]
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)


def test_dopri5_says_so_when_it_cannot() -> None:
    x = points(4, 2)
    with pytest.raises(ArithmeticError, match="stiff or not finite"):
        dopri5(lambda x, t: x * float("nan"), x, 0.0, 1.0)
    with pytest.raises(ArithmeticError):
        dopri5(lambda x, t: x**2, x.abs() + 1, 0.0, 1.0)  # reaches infinity before the end
    with pytest.raises(ArithmeticError, match="3 steps"):
        dopri5(gaussian_velocity, x, 1.0, 0.0, rtol=1e-10, atol=1e-10, most=3)


@pytest.mark.parametrize(
    "call",
    [
        lambda x: solve(gaussian_velocity, x, torch.zeros(1), "heun"),
        lambda x: solve(gaussian_velocity, x, torch.tensor([0.0, 1.0, 0.5]), "heun"),
        lambda x: solve(gaussian_velocity, x, grid(3), "midpoint"),  # type: ignore[arg-type]
        lambda x: dopri5(gaussian_velocity, x, 0.0, 1.0, rtol=0.0),
    ],
)
def test_wrong_arguments(call) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=r"."):
        call(points(2, 2))
