"""Sentences of the articles that mathematics decides: each is computed here, on the spot, in float64.

What it is: small cases whose answers are closed forms or integrals on a grid; every function computes both sides of its
sentence and compares them. What it is not: words. A finding follows from the numbers, and would be another one if they
were.

Notation is the articles': beta_t given, alpha_t = 1 - beta_t, abar_t = alpha_1 ... alpha_t, x_t = sqrt(abar_t) x_0 +
sqrt(1 - abar_t) eps, T = 1000 steps with beta from 1e-4 to 0.02.

Sources: Ho et al. 2020, arXiv:2006.11239 (the chain, its loss and its bound); Song et al. 2021, arXiv:2011.13456
(probability-flow equation); Lipman et al. 2023, arXiv:2210.02747 and Liu et al. 2023, arXiv:2209.03003 (straight
paths); Goodfellow et al. 2014, arXiv:1406.2661 (the game, its optimum, its gradients); Kingma and Welling 2014,
arXiv:1312.6114 (the bound).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from quintet.compare.findings import Check, Finding, finding, spoken
from quintet.core.articles import Kind, Word
from quintet.core.results import Compare

Array = NDArray[np.float64]
T = 1000
BETA: Array = np.linspace(1e-4, 0.02, T)
ALPHA: Array = 1 - BETA
ABAR: Array = np.asarray(np.cumprod(ALPHA), np.float64)
CENTRES, WEIGHTS = np.array([-1.0, 1.0]), np.array([0.25, 0.75])
"""Two points, -1 and 1: the data where a case needs some; their mean is 0.5, their variance 0.75."""
GRID: Array = np.linspace(-12.0, 12.0, 48_001)
EXACT = 1e-9


@dataclass(frozen=True)
class Derived(Check):
    """A sentence decided by a computation of this module, whatever the data; `rule.math_<key>` says which."""

    key: str
    compute: Callable[[], Finding]
    kind: ClassVar[Kind] = "mathematics"

    def __call__(self, result: Compare) -> Finding:
        return _once(self.compute)

    @property
    def rule(self) -> dict[str, str]:
        return spoken(f"rule.math_{self.key}")


@cache
def _once(compute: Callable[[], Finding]) -> Finding:
    return compute()


def wrong_index() -> Finding:
    """E||x_0 - f(x_T, t)||^2 against E||x_0 - f(x_t, t)||^2, each with its best f, as shares of the data's variance."""
    variance = float(WEIGHTS @ CENTRES**2 - (WEIGHTS @ CENTRES) ** 2)
    at_end, inside = (_best_error(ABAR[t]) / variance for t in (T - 1, T // 4))
    learns_nothing = at_end > 0.99 > inside
    return finding(
        "contradicted" if learns_nothing else "confirmed", "math_index", end=f"{at_end:.2%}", inside=f"{inside:.1%}",
        t=T // 4,
    )  # fmt: skip


def reverse_in_parallel() -> Finding:
    """Mean and variance after all exact reverse kernels in sequence, and after each is given x_T at once."""
    mean, variance = 1.5, 0.25
    m, v = np.sqrt(ABAR[-1]) * mean, ABAR[-1] * variance + 1 - ABAR[-1]  # of x_T
    start = (m, v)
    for t in range(T - 1, -1, -1):
        slope, intercept, noise = _reverse_kernel(t, mean, variance)
        m, v = slope * m + intercept, slope**2 * v + noise
    slope, intercept, noise = _reverse_kernel(0, mean, variance)
    lone_m, lone_v = slope * start[0] + intercept, slope**2 * start[1] + noise
    sequence = abs(m - mean) < EXACT and abs(v - variance) < EXACT
    alone = abs(lone_m - mean) < 0.1 and abs(lone_v - variance) < 0.1
    word: Word = "confirmed" if alone else "contradicted" if sequence else "not decided"
    numbers = {"m": m, "v": v, "lone_m": lone_m, "lone_v": lone_v, "mean": mean, "variance": variance}
    return finding(word, "math_parallel", **{k: f"{x:.3f}" for k, x in numbers.items()})


def closed_form_noising() -> Finding:
    """q(x_t | x_{t-1}) composed t times, against N(sqrt(abar_t) x_0, 1 - abar_t), for every t."""
    factor, variance, worst = 1.0, 0.0, 0.0
    for alpha, abar in zip(ALPHA, ABAR, strict=True):
        factor, variance = np.sqrt(alpha) * factor, alpha * variance + 1 - alpha
        worst = max(worst, abs(factor - np.sqrt(abar)), abs(variance - (1 - abar)))
    return finding("confirmed" if worst < EXACT else "contradicted", "math_noising", error=f"{worst:.0e}")


def ends_in_noise() -> Finding:
    """KL(q(x_T | x_0) || N(0, 1)) in nats a dimension, at x_0 = 1, with the articles' schedule."""
    kl = _gaussian_kl(np.sqrt(ABAR[-1]), 1 - ABAR[-1], 0.0, 1.0)
    return finding(
        "confirmed" if kl < 1e-3 else "contradicted", "math_end", kl=f"{kl:.1e}", signal=f"{np.sqrt(ABAR[-1]):.2%}"
    )


def posterior_mean() -> Finding:
    """mu(x_t, t) with the exact noise prediction of Gaussian data, against E[x_{t-1} | x_t], for every t."""
    mean, variance, x, worst = 1.5, 0.25, np.linspace(-3, 3, 7), 0.0
    for t in range(1, T):
        total = ABAR[t] * variance + 1 - ABAR[t]
        eps = np.sqrt(1 - ABAR[t]) * (x - np.sqrt(ABAR[t]) * mean) / total  # E[eps | x_t]
        mu = (x - (1 - ALPHA[t]) / np.sqrt(1 - ABAR[t]) * eps) / np.sqrt(ALPHA[t])
        slope, intercept, _ = _reverse_kernel(t, mean, variance)
        worst = max(worst, float(np.abs(mu - slope * x - intercept).max()))
    return finding("confirmed" if worst < EXACT else "contradicted", "math_mean", error=f"{worst:.0e}")


def squared_error_is_no_likelihood() -> Finding:
    """The bound's weight of ||eps - eps_theta||^2 at each t, from the divergence of the two reverse Gaussians."""
    x0, eps, wrong = 0.7, -0.4, 0.3  # any data, noise and error
    t = np.arange(1, T)
    x_t = np.sqrt(ABAR[t]) * x0 + np.sqrt(1 - ABAR[t]) * eps
    spread = (1 - ABAR[t - 1]) / (1 - ABAR[t]) * BETA[t]  # of q(x_{t-1} | x_t, x_0)
    true, predicted = (
        (x_t - BETA[t] / np.sqrt(1 - ABAR[t]) * noise) / np.sqrt(ALPHA[t]) for noise in (eps, eps + wrong)
    )
    divergence = (true - predicted) ** 2 / (2 * spread)
    weight = BETA[t] ** 2 / (2 * spread * ALPHA[t] * (1 - ABAR[t]))
    identity = float(np.abs(divergence / (weight * wrong**2) - 1).max())
    ratio = float(weight.max() / weight.min())
    word: Word = (
        "contradicted" if identity < EXACT and ratio > 2 else "confirmed" if identity < EXACT else "not decided"
    )
    return finding(word, "math_weights", ratio=f"{ratio:,.0f}", error=f"{identity:.0e}")


def straight_paths() -> Finding:
    """Paths of the exact velocity field from noise to two points blurred by 0.05: bends, and where one step leads."""
    spread = 0.05
    start = np.sqrt(2) * _erfinv(np.linspace(-0.995, 0.995, 200))  # quantiles of the noise
    times = np.linspace(1.0, 0.0, 801)
    x, speeds = start, []
    for t, after in pairwise(times):  # Heun
        v = _velocity(x, t, spread)
        x_next = x + (after - t) * v
        x = x + (after - t) * (v + _velocity(x_next, after, spread)) / 2
        speeds.append(v)
    moved = start - x
    bend = float(np.mean((np.stack(speeds) - moved) ** 2) / np.mean(moved**2))
    one = start - _velocity(start, 1.0, spread)
    near = np.abs(one[:, None] - CENTRES).min(1)
    lost = float(np.mean(near > 4 * spread))
    bent = bend > 0.01
    return finding("contradicted" if bent else "confirmed", "math_straight", bend=f"{bend:.2f}", lost=f"{lost:.0%}",
                   where=f"{float(one.mean()):.2f}")  # fmt: skip


def only_flows_invert() -> Finding:
    """The probability-flow equation of two points blurred by 0.3, from data to noise and back."""
    start = np.linspace(-1.5, 1.5, 31)
    times = np.linspace(0.0, 1.0, 401)
    there = _rk4(start, times, 0.3)
    back = _rk4(there, times[::-1], 0.3)
    error, moved = float(np.abs(back - start).max()), float(np.abs(there - start).max())
    order = bool((np.diff(there) > 0).all())
    word: Word = "contradicted" if error < 1e-6 and order and moved > 0.1 else "confirmed"
    return finding(word, "math_flow", error=f"{error:.0e}")


def vanishing_gradient() -> Finding:
    """d loss / d logit of a generated example that has been found out (logit -10), for both losses of 2014."""
    logits = np.array([-10.0 - 1e-5, -10.0 + 1e-5])
    losses = -np.logaddexp(0, logits), np.logaddexp(0, -logits)
    minimax, other = (abs(float(loss[1] - loss[0])) / 2e-5 for loss in losses)
    word: Word = "confirmed" if minimax < 1e-3 else "contradicted"
    return finding(word, "math_vanishing", minimax=f"{minimax:.1e}", other=f"{other:.4f}")


def equilibrium() -> Finding:
    """V(D*, G) = -log 4 + 2 JS(p, q) at p and at every other distribution of a grid over three outcomes."""
    p = np.array([0.2, 0.3, 0.5])
    grid = np.array([(i, j, 40 - i - j) for i in range(1, 39) for j in range(1, 40 - i)]) / 40
    best = p / (p + grid)  # the best discriminator
    value = (p * np.log(best) + grid * np.log(1 - best)).sum(1)
    middle = (p + grid) / 2
    js = ((p * np.log(p / middle) + grid * np.log(grid / middle)) / 2).sum(1)
    identity = float(np.abs(value - (2 * js - np.log(4))).max())
    lowest = grid[value.argmin()]
    holds = identity < EXACT and np.allclose(lowest, p)
    return finding("confirmed" if holds else "contradicted", "math_game", q=", ".join(f"{x:.2f}" for x in lowest),
                   value=f"{value.min():.4f}")  # fmt: skip


def elbo_is_a_bound() -> Finding:
    """A linear Gaussian VAE, z ~ N(0, 1), x | z ~ N(w z, s^2): the bound for many encoders, against log p(x)."""
    w, s, x = 1.3, 0.6, 0.9
    total = w**2 + s**2
    evidence = _log_normal(x, 0.0, total)
    best_m, best_v = w * x / total, s**2 / total  # the true posterior
    gaps = []
    for m in np.linspace(best_m - 1, best_m + 1, 41):
        for v in best_v * np.array([0.25, 0.5, 1.0, 2.0, 4.0]):
            expected = _log_normal(x, w * m, s**2) - w**2 * v / (2 * s**2)
            gaps.append(evidence - (expected - _gaussian_kl(m, v, 0.0, 1.0)))
    holds = min(gaps) > -EXACT and min(gaps) < EXACT < max(gaps)
    word: Word = "confirmed" if holds else "contradicted"
    return finding(word, "math_bound", count=len(gaps), least=f"{abs(min(gaps)):.0e}", most=f"{max(gaps):.1f}")


def chain_rule() -> Finding:
    """The product of conditionals of a random table of three values, against the table."""
    table = np.arange(1.0, 25.0).reshape(2, 3, 4) ** 2
    table /= table.sum()
    first = table.sum((1, 2))
    second = table.sum(2) / first[:, None]
    third = table / table.sum(2, keepdims=True)
    error = float(np.abs(first[:, None, None] * second[:, :, None] * third - table).max())
    return finding("confirmed" if error < EXACT else "contradicted", "math_chain", error=f"{error:.0e}")


def _best_error(abar: float) -> float:
    """E Var(x_0 | x_t) of the two points."""
    means, variance = np.sqrt(abar) * CENTRES, 1 - abar
    joint = WEIGHTS * np.exp(-((GRID[:, None] - means) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)
    density = joint.sum(1)
    share = joint / np.maximum(density, 1e-300)[:, None]
    spread = share @ CENTRES**2 - (share @ CENTRES) ** 2
    return float(np.trapezoid(density * spread, GRID))


def _reverse_kernel(t: int, mean: float, variance: float) -> tuple[float, float, float]:
    """p(x_{t-1} | x_t) = N(slope x_t + intercept, noise) of Gaussian data; t counts from 0, and x_{-1} is x_0."""
    before = ABAR[t - 1] if t else 1.0
    earlier = before * variance + 1 - before
    total = ALPHA[t] * earlier + BETA[t]
    slope = np.sqrt(ALPHA[t]) * earlier / total
    intercept = np.sqrt(before) * mean - slope * np.sqrt(ABAR[t]) * mean
    return float(slope), float(intercept), float(earlier - slope * np.sqrt(ALPHA[t]) * earlier)


def _velocity(x: Array, t: float, spread: float) -> Array:
    """E[eps - x_0 | x_t = x] on the path x_t = (1 - t) x_0 + t eps, of the two points blurred by `spread`."""
    means, variance = (1 - t) * CENTRES, (1 - t) ** 2 * spread**2 + t**2
    log = np.log(WEIGHTS) - (x[:, None] - means) ** 2 / (2 * variance)
    share = np.exp(log - log.max(1, keepdims=True))
    share /= share.sum(1, keepdims=True)
    off = x[:, None] - means
    clean = CENTRES + (1 - t) * spread**2 / variance * off  # E[x_0 | x_t, which point]
    noise = t / variance * off
    return np.asarray((share * (noise - clean)).sum(1))


def _rk4(x: Array, times: Array, spread: float) -> Array:
    for t, after in pairwise(times):
        h = after - t
        k1 = _velocity(x, t, spread)
        k2 = _velocity(x + h / 2 * k1, t + h / 2, spread)
        k3 = _velocity(x + h / 2 * k2, t + h / 2, spread)
        k4 = _velocity(x + h * k3, after, spread)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return x


def _erfinv(y: Array) -> Array:
    from scipy.special import erfinv

    return np.asarray(erfinv(y))


def _gaussian_kl(m: float, v: float, m2: float, v2: float) -> float:
    """KL(N(m, v) || N(m2, v2)) in nats."""
    return float(0.5 * (np.log(v2 / v) + (v + (m - m2) ** 2) / v2 - 1))


def _log_normal(x: float, mean: float, variance: float) -> float:
    return float(-0.5 * (np.log(2 * np.pi * variance) + (x - mean) ** 2 / variance))
