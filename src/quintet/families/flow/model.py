"""Normalizing flow: data go through invertible transforms to a standard normal, so that their density is exact.

    log p(x) = log N(f(x); 0, I) + log |det df/dx|

What it is: the family's one Model. What varies (which transforms, which bijections, which conditioner networks) is in
the config. What it is not: a continuous flow; that is flow matching's place.

With `noise` the flow learns the density of data to which Gaussian noise was added, and a sample then takes one step
along the score to the expected clean image (Tweedie's formula), which the flow's own density gives:

    x = y + noise^2 grad log p(y)

Sources: Rezende & Mohamed 2015, eq. 5-7, arXiv:1505.05770; Dinh et al. 2017, arXiv:1605.08803; Durkan et al. 2019,
arXiv:1906.04032; Zhai et al. 2024, section 2.4 (noise and its removal) and 2.5 (guidance of a conditioner's
parameters), arXiv:2412.06329. Departure: labels are left out of some training examples, so that one flow has a density
with and without them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from quintet.core.batch import Batch, Examples
from quintet.core.config import STRICT, Config
from quintet.core.model import (
    Finding,
    HasLatent,
    HasLogProb,
    HasTrace,
    HasWatch,
    Loss,
    Model,
    Player,
    Trace,
    Turn,
    hide,
    round_trip_error,
)
from quintet.core.recipe import ModelConfig
from quintet.core.rng import Rng
from quintet.core.spec import Cond, DataSpec
from quintet.families.flow.transforms import Autoregressive, Composite, Coupling, ProbitConfig, TransformConfig

INVERTED, INVERSE_TOLERANCE = 16, 0.01
"""Examples whose way to noise and back is watched, and the largest error in their own units."""

PREPARE = 1024
"""Examples at once while transforms are initialised from the data."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FlowSampling(Config):
    """How a flow is sampled.

    Attributes:
        temperature: standard deviation of the base noise; below 1 gives likelier and less varied samples.
        guidance: scale of the condition's effect on every conditioner's parameters: 1 is the model as it is, 0 ignores
            the condition; other than 0 and 1 takes two evaluations instead of one.
    """

    kind = "flow-sampling"
    temperature: float = Field(default=1.0, ge=0)
    guidance: float = Field(default=1.0, ge=0)


class Flow(Model[FlowSampling], HasLogProb, HasLatent, HasTrace, HasWatch):
    """A composite of transforms and a standard normal base.

    Args:
        spec: continuous data of any shape; they are flattened.
        transform: from data to noise.
        class_dropout: share of training examples whose labels are hidden, all fields together.
        noise: standard deviation of Gaussian noise added to the data, 0 for none.
        sampling: see FlowSampling.
    """

    likelihood: Literal["exact", "bound", "estimate"] = "exact"

    def __init__(
        self, spec: DataSpec, transform: Composite, *, class_dropout: float, noise: float, sampling: FlowSampling
    ) -> None:
        super().__init__(spec, sampling)
        if spec.levels is not None:
            raise ValueError(f"a flow models continuous values, got {spec.levels} levels; dequantise them first")
        self.transform, self.class_dropout, self.noise = transform, class_dropout, noise
        self.latent = replace(spec, conditions={})

    @property
    def log_prob_protocol(self) -> str:
        return f"exact, of the data with Gaussian noise of {self.noise:g} added" if self.noise else "exact"

    def prepare(self, examples: Examples) -> None:
        def states() -> Iterator[tuple[Tensor, Cond]]:
            for start in range(0, examples.examples, PREPARE):
                batch = examples.take(start, start + PREPARE)
                yield batch.x.flatten(1), batch.cond

        with torch.no_grad():
            self.transform.prepare(states)

    def players(self) -> Sequence[Player]:
        return [Player("model", self.transform, self.loss)]

    def loss(self, turn: Turn) -> Loss:
        """Negative log-likelihood in nats per dimension.

        The parts carry the flow's detector: the lowest and highest log-determinant of the batch, and the share of
        examples where it is not finite.
        """
        cond = hide(turn.batch.cond, self.class_dropout, turn.rng("hide"))
        z, log_det = self.transform(self._noisy(turn.batch.x, turn.rng("noise")).flatten(1), cond)
        total = -(_standard_normal(z) + log_det).mean() / self.spec.dims
        seen = log_det.detach()
        parts = {
            "nll_nats_per_dim": total.detach(),
            "log_det_min_nats": seen.min(),
            "log_det_max_nats": seen.max(),
            "log_det_nonfinite_share": 1 - seen.isfinite().to(seen.dtype).mean(),
        }
        return Loss(total, parts)

    def watch(self, train: Batch, held_out: Batch, *, rng: Rng) -> Sequence[Finding]:
        """Log-determinants that are not finite on training data, and the way there and back on held-out data."""
        found = []
        log_det = self.transform(train.x.flatten(1), train.cond)[1]
        lost = 1 - float(log_det.isfinite().double().mean())
        if lost > 0:
            found.append(Finding("log_det_not_finite", lost, 0.0, severe=True))
        few = slice(0, INVERTED)
        cond = {name: value[few] for name, value in held_out.cond.items()}
        error = float(round_trip_error(self, held_out.x[few], cond).max())
        if error > INVERSE_TOLERANCE:
            found.append(Finding("not_invertible", error, INVERSE_TOLERANCE, severe=True))
        return found

    def log_prob(self, x: Tensor, cond: Cond | None = None, *, rng: Rng | None = None) -> Tensor:
        """(B,) nats; with noise and an rng, at data to which this noise was added."""
        if rng is not None:
            x = self._noisy(x, rng("noise"))
        z, log_det = self.transform(x.flatten(1), cond or {})
        total: Tensor = _standard_normal(z) + log_det
        return total

    @torch.no_grad()
    def sample(self, n: int, cond: Cond | None = None, *, rng: Rng, sampling: FlowSampling | None = None) -> Tensor:
        chosen = sampling or self.sampling
        z = rng("base").normal((n, self.spec.dims)) * chosen.temperature
        x = self.transform.inverse(z.to(self._like), cond or {}, chosen.guidance).reshape(n, *self.spec.shape)
        return self._cleaned(x, cond or {}) if self.noise else x

    def sequential_steps(self, sampling: FlowSampling | None = None) -> int:
        return self.transform.evaluations + bool(self.noise)

    def encode(self, x: Tensor, cond: Cond | None = None, *, rng: Rng | None = None) -> Tensor:
        z: Tensor = self.transform(x.flatten(1), cond or {})[0]
        return z.reshape(x.shape)

    def decode(self, z: Tensor, cond: Cond | None = None) -> Tensor:
        return self.transform.inverse(z.flatten(1), cond or {}).reshape(z.shape)

    @torch.no_grad()
    def trace(self, n: int, frames: int, cond: Cond | None = None, *, rng: Rng) -> Trace:
        """The base sample on its way back through the stack; between two transforms it moves in a straight line."""
        state = rng("base").normal((n, *self.spec.shape)).to(self._like).flatten(1)
        states = [state]
        for part in reversed(list(self.transform.leaves())):
            state = part.inverse(state, cond or {})
            states.append(state)
        last = len(states) - 1
        shown, at = [], []
        for frame in range(frames):
            place = last * frame / max(1, frames - 1)
            i = min(int(place), max(0, last - 1))
            shown.append(torch.lerp(states[i], states[min(i + 1, last)], place - i).reshape(n, *self.spec.shape))
            at.append(f"{place:.0f}/{last}")
        return Trace("flow", torch.stack(shown), tuple(at))

    def _noisy(self, x: Tensor, rng: Rng) -> Tensor:
        return x + self.noise * rng.normal(x.shape).to(x) if self.noise else x

    def _cleaned(self, y: Tensor, cond: Cond) -> Tensor:
        """The expected data behind noisy ones, by the flow's own score."""
        with torch.inference_mode(False), torch.enable_grad():
            y = y.clone().requires_grad_()
            log_p = self.log_prob(y, {name: value.clone() for name, value in cond.items()})
            (score,) = torch.autograd.grad(log_p.sum(), y)
            return (y + self.noise**2 * score).detach()

    @property
    def _like(self) -> Tensor:
        return next(self.transform.parameters())


def _standard_normal(z: Tensor) -> Tensor:
    """(B,) log density of (B, D)."""
    return -0.5 * z.square().sum(1) - z.shape[1] * 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FlowConfig(ModelConfig):
    """See Flow.

    Attributes:
        transforms: from data to noise.
        class_dropout: share of training examples whose labels are hidden.
        noise: standard deviation of Gaussian noise added to the data; the density is then that of the noisy data.
        sampling: the model's own choice.
    """

    kind = "flow"
    transforms: tuple[TransformConfig, ...]
    class_dropout: float = Field(default=0.1, ge=0, lt=1)
    noise: float = Field(default=0.0, ge=0)
    sampling: FlowSampling = FlowSampling(temperature=1.0)

    def build(self, spec: DataSpec) -> Flow:
        if self.noise and any(isinstance(config, ProbitConfig) for config in self.transforms):
            # noise leads out of the box before a probit, and the score is 0 within a bin of a histogram
            raise ValueError(f"a flow with a probit models a box and takes no noise, got model.noise={self.noise:g}")
        place = 0
        parts = []
        for config in self.transforms:
            parts.append(config.build(spec, place))
            place += isinstance(parts[-1], (Coupling, Autoregressive))
        return Flow(spec, Composite(parts), class_dropout=self.class_dropout, noise=self.noise, sampling=self.sampling)
