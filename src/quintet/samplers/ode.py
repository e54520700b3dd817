"""Ordinary differential equations: fixed-step and adaptive solvers, callable in, state out.

What it is: dx/dt = velocity(x, t) from one time to another, forwards or backwards. What it is not: tied to a family; a
diffusion model, a continuous flow or a test hand in their own velocity.

Legend: B items, E the event shape. `velocity(x (B, *E), t (B,)) -> (B, *E)`; times come per item, because the adaptive
solver gives each item its own steps (an error norm over the batch would make an item depend on its neighbours).

Sources: Hairer, Norsett & Wanner 1993, "Solving ordinary differential equations I", II.1, II.4, II.5;
Dormand & Prince 1980; Karras et al. 2022, Algorithm 1, arXiv:2206.00364.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

Velocity = Callable[[Tensor, Tensor], Tensor]
Solver = Literal["euler", "heun", "rk4", "dopri5"]


class Counted:
    """A velocity that counts its evaluations: each is one sequential network call."""

    def __init__(self, velocity: Velocity) -> None:
        self.velocity, self.evaluations = velocity, 0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.evaluations += 1
        return self.velocity(x, t)


def euler(velocity: Velocity, x: Tensor, times: Tensor) -> Tensor:
    """Integrate with Euler's first-order method.

    Args:
        velocity: see the module.
        x: (B, *E), state at times[0].
        times: (N+1,), monotone; one evaluation per interval.
    Returns: (B, *E), state at times[-1].
    Raises: ValueError if fewer than two times are given.
    """
    for t, _, h in _steps(x, times):
        x = torch.add(x, velocity(x, t), alpha=h)
    return x


def heun(velocity: Velocity, x: Tensor, times: Tensor) -> Tensor:
    """Integrate with Heun's second-order method; as `euler`, with two evaluations per interval.

    Source: Karras et al. 2022, Algorithm 1 without its Euler last step, arXiv:2206.00364.
    """
    for t, after, h in _steps(x, times):
        k1 = velocity(x, t)
        k2 = velocity(torch.add(x, k1, alpha=h), after)
        x = torch.add(x, k1 + k2, alpha=h / 2)
    return x


def rk4(velocity: Velocity, x: Tensor, times: Tensor) -> Tensor:
    """Integrate with the classical fourth-order Runge-Kutta method; as `euler`, with four evaluations per interval."""
    for t, after, h in _steps(x, times):
        middle = (t + after) / 2
        k1 = velocity(x, t)
        k2 = velocity(torch.add(x, k1, alpha=h / 2), middle)
        k3 = velocity(torch.add(x, k2, alpha=h / 2), middle)
        k4 = velocity(torch.add(x, k3, alpha=h), after)
        x = torch.add(x, k1 + k4 + 2 * (k2 + k3), alpha=h / 6)
    return x


FIXED: Mapping[str, tuple[Callable[[Velocity, Tensor, Tensor], Tensor], int]] = {
    "euler": (euler, 1),
    "heun": (heun, 2),
    "rk4": (rk4, 4),
}
"""Fixed-step solvers by name, each with its evaluations per interval."""

# Dormand & Prince's tableau: nodes, stages (the last row is also the fifth-order weights: "first same as last"), and
# the difference to the embedded fourth-order weights.
_NODES = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ERROR = (
    35 / 384 - 5179 / 57600,
    0.0,
    500 / 1113 - 7571 / 16695,
    125 / 192 - 393 / 640,
    -2187 / 6784 + 92097 / 339200,
    11 / 84 - 187 / 2100,
    -1 / 40,
)


def dopri5(
    velocity: Velocity,
    x: Tensor,
    start: float,
    end: float,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    most: int = 10_000,
) -> Tensor:
    """Integrate with Dormand and Prince's adaptive method of order 5(4), each item with its own steps.

    Args:
        velocity: see the module.
        x: (B, *E), state at `start`.
        start, end: times, in either order.
        rtol, atol: a step is accepted when the root mean square over the event of
            error / (atol + rtol * max(|x|, |x_new|)) is at most 1.
        most: attempted steps before giving up.
    Returns: (B, *E), state at `end`.
    Raises: ValueError for a tolerance that is not positive; ArithmeticError where `most` steps do not suffice, or an
        item's step falls below the resolution of its time (a stiff or non-finite velocity).
    Source: Hairer, Norsett & Wanner 1993, II.4 (error norm, starting step, step control), table II.5.2.
    """
    if not (rtol > 0 and atol > 0):
        raise ValueError(f"tolerances must be positive, got rtol={rtol}, atol={atol}")
    if start == end or not len(x):
        return x
    span = end - start
    axes = tuple(range(1, x.ndim))

    def norm(value: Tensor, scale: Tensor) -> Tensor:
        ratio = value / scale
        return ratio.square().mean(dim=axes).sqrt() if axes else ratio.abs()

    def wide(value: Tensor) -> Tensor:  # (B,) to (B, 1, ...)
        return value.reshape(-1, *[1] * len(axes))

    t = torch.full((len(x),), start, dtype=x.dtype, device=x.device)
    k1 = velocity(x, t)
    h = _first_step(velocity, x, t, k1, span, lambda v: norm(v, atol + rtol * x.abs()), wide)
    left = torch.full_like(t, abs(span))
    sign = 1.0 if span > 0 else -1.0
    floor = 4 * torch.finfo(x.dtype).eps * max(abs(start), abs(end), abs(span))
    for _ in range(most):
        active = left > 0
        if not bool(active.any()):
            return x
        last = h >= left
        step = torch.where(active, torch.minimum(h, left), 0.0)
        ks = [k1]
        for node, row in zip(_NODES[1:], _STAGES, strict=True):
            moved = sum(weight * k for weight, k in zip(row, ks, strict=True) if weight)
            y = x + wide(sign * step) * moved
            ks.append(velocity(y, t + sign * step * node))
        error = wide(step) * sum(weight * k for weight, k in zip(_ERROR, ks, strict=True) if weight)
        e = norm(error, atol + rtol * torch.maximum(x.abs(), y.abs()))
        accept = (e <= 1) & active  # false for NaN: the step then shrinks until it is refused below
        x = torch.where(wide(accept), y, x)
        k1 = torch.where(wide(accept), ks[-1], k1)
        t = torch.where(accept, torch.where(last, torch.full_like(t, end), t + sign * step), t)
        left = torch.where(accept, torch.where(last, torch.zeros_like(left), left - step), left)
        factor = (0.9 * e.clamp_min(1e-10) ** -0.2).clamp(0.2, 10.0).nan_to_num(nan=0.2)
        # no growth straight after a refusal
        h = torch.where(active, step * torch.where(accept, factor, factor.clamp_max(1.0)), h)
        if bool(((h < floor) & (left > h)).any()):
            raise ArithmeticError("dopri5: step size underflow; the velocity is stiff or not finite")
    raise ArithmeticError(f"dopri5: {most} steps did not reach the end")


def solve(velocity: Velocity, x: Tensor, times: Tensor, solver: Solver, *, tolerance: float = 1e-5) -> Tensor:
    """Integrate with a solver chosen by name.

    Args:
        velocity: see the module.
        x: (B, *E), state at times[0].
        times: (N+1,), monotone; dopri5 uses the two ends alone.
        solver: a key of FIXED, or "dopri5".
        tolerance: dopri5's rtol and atol.
    Returns: (B, *E), state at times[-1].
    """
    if solver == "dopri5":
        return dopri5(velocity, x, float(times[0]), float(times[-1]), rtol=tolerance, atol=tolerance)
    if solver not in FIXED:
        raise ValueError(f"solver must be one of {[*FIXED, 'dopri5']}, got {solver!r}")
    return FIXED[solver][0](velocity, x, times)


def _steps(x: Tensor, times: Tensor) -> list[tuple[Tensor, Tensor, float]]:
    """Of each interval, its first and last time, (B,) each, and its length."""
    if times.ndim != 1 or len(times) < 2:
        raise ValueError(f"times must be one axis of at least two, got shape {tuple(times.shape)}")
    gaps = times.double().diff()
    if not bool((gaps > 0).all() or (gaps < 0).all()):
        raise ValueError("times must be strictly monotone")
    rows = times.to(device=x.device, dtype=x.dtype)[:, None].expand(-1, len(x)).unbind(0)
    return list(zip(rows[:-1], rows[1:], gaps.tolist(), strict=True))


def _first_step(
    velocity: Velocity,
    x: Tensor,
    t: Tensor,
    k1: Tensor,
    span: float,
    norm: Callable[[Tensor], Tensor],
    wide: Callable[[Tensor], Tensor],
) -> Tensor:
    """Starting step per item (B,), by Hairer et al.'s algorithm (II.4, "a first guess"): one more evaluation."""
    d0, d1 = norm(x), norm(k1)
    h0 = torch.where((d0 < 1e-5) | (d1 < 1e-5), torch.full_like(d0, 1e-6), 0.01 * d0 / d1.clamp_min(1e-12))
    h0 = h0.clamp_max(abs(span)).nan_to_num(nan=1e-6)
    sign = 1.0 if span > 0 else -1.0
    k2 = velocity(x + wide(sign * h0) * k1, t + sign * h0)
    d2 = norm(k2 - k1) / h0
    most = torch.maximum(d1, d2)
    h1 = torch.where(most <= 1e-15, torch.maximum(h0 * 1e-3, torch.full_like(h0, 1e-6)), (0.01 / most) ** 0.2)
    return torch.minimum(100 * h0, h1).clamp_max(abs(span)).nan_to_num(nan=1e-6)
