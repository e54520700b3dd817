"""Bounds of log p(x) for a model with latent variables: the plain one, importance-weighted, annealed.

What it is: functions of a decoder's joint density and an encoder's posterior; all three are lower bounds of log p(x)
in expectation, each at least as tight as the one before where their draws are as many.
What it is not: a loss, or a model.

The annealed bound starts at the encoder's posterior, not at the prior as Wu et al. do: any start with a known density
is allowed, and this one is nearer. With one temperature it is the importance-weighted bound.

Legend: B examples, C chains an example, d latent numbers, q the encoder's posterior, z the latent.

Sources: Kingma & Welling 2014, arXiv:1312.6114; Burda et al. 2016, arXiv:1509.00519; Neal 2001 (annealed importance
sampling), arXiv:physics/9803008; Sohl-Dickstein & Culpepper 2012 (with Hamiltonian transitions), arXiv:1205.1925; Wu et
al. 2017 (for decoders; the schedule and the step sizes), arXiv:1611.04273.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quintet.core.model import Way
from quintet.core.rng import Rng
from quintet.core.spec import Cond

STEP, STEP_LIMITS = 0.2, (1e-3, 2.0)
"""The leapfrog step at first, in standard deviations of q, and between which sizes it may be adapted."""

ACCEPTED = 0.65
"""The share of accepted moves that the step sizes are adapted to (Neal 2011, section 5.4.4)."""

STRETCH = 4.0
"""Half width of the sigmoid of the temperatures: dense at both ends (Wu et al. 2017, section 4.2)."""


@dataclass(frozen=True)
class Inference:
    """A posterior q(z | x) beside the joint density p(x, z), the data given.

    Attributes:
        draw: standard normal noise (B, d) to z ~ q, (B, d).
        terms: z (B, d) to log q(z | x) and log p(x, z), each (B,), differentiable in z.
        spread: (B, d), the standard deviations of q, roughly where they depend on z; the unit of leapfrog steps.
    """

    draw: Callable[[Tensor], Tensor]
    terms: Callable[[Tensor], tuple[Tensor, Tensor]]
    spread: Tensor


Infer = Callable[[Tensor, Cond], Inference]
"""x (B, *E) and its conditions to the Inference."""


def log_weights(found: Inference, draws: int, rng: Rng) -> Tensor:
    """(draws, B) log p(x, z) - log q(z | x) at z ~ q; row i of `rng` serves example i."""
    logs = []
    for k in range(draws):
        noise = rng("z", k).normal(tuple(found.spread.shape)).to(found.spread)
        log_q, log_joint = found.terms(found.draw(noise))
        logs.append(log_joint - log_q)
    return torch.stack(logs)


def elbo(found: Inference, draws: int, rng: Rng) -> Tensor:
    """(B,) nats: the mean of the log weights (Kingma & Welling 2014, eq. 5)."""
    return log_weights(found, draws, rng).mean(0)


def importance(found: Inference, samples: int, rng: Rng) -> Tensor:
    """(B,) nats: the logarithm of the mean weight (Burda et al. 2016, eq. 8)."""
    return torch.logsumexp(log_weights(found, samples, rng), 0) - math.log(samples)


def annealed(
    infer: Infer, x: Tensor, cond: Cond, *, temperatures: int, leapfrog: int = 4, chains: int = 4, rng: Rng
) -> Tensor:
    """(B,) nats by annealed importance sampling from q(z | x) to p(z | x): its mean over noise is at most log p(x).

    Step sizes are adapted in a rehearsal over a quarter of the temperatures with noise of its own, so that the run
    itself has fixed ones and the mean of exp(result) is p(x).

    Args:
        temperatures: T; log f_t = (1 - beta_t) log q(z | x) + beta_t log p(x, z).
        leapfrog: steps of a Hamiltonian move, one move a temperature.
        chains: C, whose weights are averaged before the logarithm.
    Source: Neal 2001, eq. 11; Wu et al. 2017, section 3.1.
    """
    found = infer(x.repeat_interleave(chains, 0), {k: v.repeat_interleave(chains, 0) for k, v in cond.items()})
    step = torch.full((len(x), 1, 1), STEP, dtype=found.spread.dtype, device=x.device)
    fewer = max(1, temperatures // 4)
    _, steps = _anneal(found, fewer, leapfrog, chains, [step] * fewer, rng("rehearsal"), adapt=True)
    held = [steps[k * fewer // temperatures] for k in range(temperatures)]
    weights, _ = _anneal(found, temperatures, leapfrog, chains, held, rng("run"), adapt=False)
    return (torch.logsumexp(weights, 1) - math.log(chains)).to(found.spread.dtype)


def betas(temperatures: int) -> list[float]:
    """T + 1 inverse temperatures from 0 to 1, close together at both ends."""
    at = torch.sigmoid(STRETCH * torch.linspace(-1, 1, temperatures + 1, dtype=torch.float64))
    values: list[float] = ((at - at[0]) / (at[-1] - at[0])).tolist()
    return values


def _anneal(
    found: Inference, temperatures: int, leapfrog: int, chains: int, steps: Sequence[Tensor], rng: Rng, *, adapt: bool
) -> tuple[Tensor, list[Tensor]]:
    """The log weights (B, C) in float64, and the step sizes (B, 1, 1) used at each temperature."""
    rows, d = found.spread.shape
    shape = (rows // chains, chains, d)

    def normal(*name: str | int) -> Tensor:
        return rng(*name).normal(shape).to(found.spread).view(rows, d)

    z = found.draw(normal("z")).detach()
    total = torch.zeros(shape[:2], dtype=torch.float64, device=z.device)
    used, step = [], steps[0]
    schedule = betas(temperatures)
    for k, (before, beta) in enumerate(itertools.pairwise(schedule)):
        log_q, log_joint, force = _force(found, z, beta)
        total += (beta - before) * (log_joint - log_q).double().view(shape[:2])
        step = step if adapt else steps[k]
        used.append(step)
        if k == temperatures - 1 and not adapt:
            break  # the last move would change no weight
        each = step.expand(-1, chains, -1).reshape(rows, 1)
        p = normal("momentum", k)
        energy = _energy(log_q, log_joint, p, beta)
        moved = z
        for _ in range(leapfrog):  # in units of the spread, in which q is about standard normal
            p = p + 0.5 * each * force
            moved = moved + each * found.spread * p
            log_q, log_joint, force = _force(found, moved, beta)
            p = p + 0.5 * each * force
        change = (energy - _energy(log_q, log_joint, p, beta)).nan_to_num(nan=-math.inf)
        accepted = change > rng("accept", k).uniform(shape[:2], torch.float64).to(z.device).view(rows).log()
        z = torch.where(accepted[:, None], moved, z)
        if adapt:
            share = accepted.view(shape[:2]).to(step).mean(1)[:, None, None]
            step = (step * torch.exp(0.5 * (share - ACCEPTED))).clamp(*STEP_LIMITS)
    return total, used


def _energy(log_q: Tensor, log_joint: Tensor, p: Tensor, beta: float) -> Tensor:
    """(B,) in float64: minus log f, and the momentum's half square."""
    return 0.5 * p.double().square().sum(1) - ((1 - beta) * log_q.double() + beta * log_joint.double())


def _force(found: Inference, z: Tensor, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    """log q and log p(x, z), (B,), and the gradient of log f in units of the spread, (B, d)."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        log_q, log_joint = found.terms(z)
        (gradient,) = torch.autograd.grad(((1 - beta) * log_q + beta * log_joint).sum(), z)
    return log_q.detach(), log_joint.detach(), gradient * found.spread


def ways(infer: Infer, effort: float) -> Mapping[str, Way]:
    """The three bounds of a model, with a share of the full number of draws and temperatures."""
    draws, samples, temperatures = (max(1, round(effort * full)) for full in (64, 1024, 256))
    return {
        "elbo": Way(
            "bound",
            f"evidence lower bound, {draws} draws",
            lambda x, cond, rng: elbo(infer(x, cond), draws, rng),
        ),
        "iw": Way(
            "bound",
            f"importance-weighted bound, {samples} samples",
            lambda x, cond, rng: importance(infer(x, cond), samples, rng),
        ),
        "ais": Way(
            "bound",
            f"annealed importance sampling from the encoder's posterior, {temperatures} temperatures, 4 chains",
            lambda x, cond, rng: annealed(infer, x, cond, temperatures=temperatures, rng=rng),
        ),
    }
