"""Normalizing flow: data go through invertible transforms to a standard normal, so that their density is exact.

    log p(x) = log N(f(x); 0, I) + log |det df/dx|

What it is: the family's one Model. What varies (which transforms, which splines, which conditioner networks) is in the
config. What it is not: a continuous flow; that is flow matching's place.

Sources: Rezende & Mohamed 2015, eq. 5-7, arXiv:1505.05770; Dinh et al. 2017, arXiv:1605.08803; Durkan et al. 2019,
arXiv:1906.04032. Departure: labels are left out of some training examples, so that one flow has a density
with and without them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from quintet.core.config import STRICT, Config
from quintet.core.model import HasLatent, HasLogProb, HasTrace, Loss, Model, Player, Trace, Turn, hide
from quintet.core.recipe import ModelConfig
from quintet.core.rng import Rng
from quintet.core.spec import Cond, DataSpec
from quintet.families.flow.transforms import Composite, SplineCoupling, TransformConfig


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FlowSampling(Config):
    """How a flow is sampled.

    Attributes:
        temperature: standard deviation of the base noise; below 1 gives likelier and less varied samples.
    """

    kind = "flow-sampling"
    temperature: float = Field(default=1.0, ge=0)


class Flow(Model[FlowSampling], HasLogProb, HasLatent, HasTrace):
    """A composite of transforms and a standard normal base.

    Args:
        spec: continuous data of any shape; they are flattened.
        transform: from data to noise.
        class_dropout: share of training examples whose labels are hidden, all fields together.
        sampling: see FlowSampling.
    """

    likelihood: ClassVar[Literal["exact", "bound", "estimate"]] = "exact"

    def __init__(self, spec: DataSpec, transform: Composite, *, class_dropout: float, sampling: FlowSampling) -> None:
        super().__init__(spec, sampling)
        if spec.levels is not None:
            raise ValueError(f"a flow models continuous values, got {spec.levels} levels; dequantise them first")
        self.transform, self.class_dropout = transform, class_dropout
        self.latent = replace(spec, conditions={})

    @property
    def log_prob_protocol(self) -> str:
        return "exact"

    def players(self) -> Sequence[Player]:
        return [Player("model", self.transform, self.loss)]

    def loss(self, turn: Turn) -> Loss:
        """Negative log-likelihood in nats per dimension.

        The parts carry the flow's detector: the lowest and highest log-determinant of the batch, and the share of
        examples where it is not finite.
        """
        cond = hide(turn.batch.cond, self.class_dropout, turn.rng("hide"))
        z, log_det = self.transform(turn.batch.x.flatten(1), cond)
        total = -(_standard_normal(z) + log_det).mean() / self.spec.dims
        seen = log_det.detach()
        parts = {
            "nll_nats_per_dim": total.detach(),
            "log_det_min_nats": seen.min(),
            "log_det_max_nats": seen.max(),
            "log_det_nonfinite_share": 1 - seen.isfinite().to(seen.dtype).mean(),
        }
        return Loss(total, parts)

    def log_prob(self, x: Tensor, cond: Cond | None = None, *, rng: Rng | None = None) -> Tensor:
        z, log_det = self.transform(x.flatten(1), cond or {})
        total: Tensor = _standard_normal(z) + log_det
        return total

    @torch.no_grad()
    def sample(self, n: int, cond: Cond | None = None, *, rng: Rng, sampling: FlowSampling | None = None) -> Tensor:
        z = rng("base").normal((n, *self.spec.shape)) * (sampling or self.sampling).temperature
        return self.decode(z.to(self._like), cond)

    def sequential_steps(self, sampling: FlowSampling | None = None) -> int:
        return sum(isinstance(part, SplineCoupling) for part in self.transform.leaves())

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
        sampling: the model's own choice.
    """

    kind = "flow"
    transforms: tuple[TransformConfig, ...]
    class_dropout: float = Field(default=0.1, ge=0, lt=1)
    sampling: FlowSampling = FlowSampling(temperature=1.0)

    def build(self, spec: DataSpec) -> Flow:
        couplings = 0
        parts = []
        for config in self.transforms:
            parts.append(config.build(spec, couplings))
            couplings += isinstance(parts[-1], SplineCoupling)
        return Flow(spec, Composite(parts), class_dropout=self.class_dropout, sampling=self.sampling)
