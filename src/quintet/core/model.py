"""The contract of every family: a list of players and a way to draw samples; what else a family can is a capability.

Source: the shape of a two-player step as a list of turns follows Karras et al.'s training phases; the rest is ours.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Literal, TypeVar

import torch
from torch import Tensor, nn

from quintet.core.batch import Batch, Examples
from quintet.core.numerics import Precision
from quintet.core.rng import Rng
from quintet.core.spec import UNCONDITIONAL, Cond, DataSpec

S = TypeVar("S")


@dataclass(frozen=True)
class Turn:
    """All that a loss may see.

    Attributes:
        step: the step's number, from 0.
        progress: in [0, 1), from the step and the stored plan, never from a clock.
        batch: one batch a step, seen by every player.
        rng: keyed by (seed, "train", step): `turn.rng("noise").normal(shape)`.
        shared: what `Model.shared` returned.
    """

    step: int
    progress: float
    batch: Batch
    rng: Rng
    shared: Any = None


@dataclass(frozen=True)
class Loss:
    """A player's loss: `total` is a scalar, minimised; `parts` are scalars for the log, named with their unit."""

    total: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Player:
    """One optimiser's view of a model.

    Attributes:
        name: "model", "generator", "discriminator".
        module: the parameters this player may change.
        loss: computed with gradients on this player's parameters only.
        every: takes a turn on steps divisible by it.
        ema: whether sampling uses an average of these parameters (a discriminator does not).
    """

    name: str
    module: nn.Module
    loss: Callable[[Turn], Loss]
    every: int = 1
    ema: bool = True


class Model(nn.Module, ABC, Generic[S]):
    """Something trained by players and sampled.

    Attributes:
        spec: shape, levels and conditions of what it models (after the codec).
        sampling: the family's own choices, a frozen config: solver, steps, guidance; temperature, top_k.
        precisions: in which its losses may run; a model that needs every bit says ("float32",).
    """

    precisions: ClassVar[tuple[Precision, ...]] = ("float32", "bfloat16")
    spec: DataSpec
    sampling: S

    def __init__(self, spec: DataSpec, sampling: S) -> None:
        super().__init__()
        self.spec, self.sampling = spec, sampling

    @abstractmethod
    def players(self) -> Sequence[Player]:
        """Who trains, in the order of their turns."""

    @abstractmethod
    def sample(self, n: int, cond: Cond | None = None, *, rng: Rng, sampling: S | None = None) -> Tensor:
        """Draw (n, *spec.shape). Item i depends on (rng, i, cond[i]) alone, to float rounding.

        Args:
            n: how many.
            cond: name -> (n,) int64; absent or -1 is unconditional.
            rng: its row i is item i's noise.
            sampling: overrides the model's own.
        """

    @abstractmethod
    def sequential_steps(self, sampling: S | None = None) -> int:
        """Network evaluations that must wait for each other to draw one batch."""

    def prepare(self, examples: Examples) -> None:
        """Called once before a run's first step, and again when a run is resumed (a checkpoint is restored afterwards).

        For what depends on the data: initialisation from a first batch, latents of a frozen first stage. A function of
        the examples and the initialised model alone; its time is training time.
        """

    def networks(self) -> Sequence[nn.Module]:
        """What may be compiled: by default the trained submodules that are called. Losses themselves never are."""
        called = (m for m in self.children() if type(m).forward is not nn.Module.forward)
        return [m for m in called if any(p.requires_grad for p in m.parameters())]

    def shared(self, turn: Turn) -> Any:
        """Computed once a step, before the players, with gradients recorded (a GAN's fake batch).

        Where memory does not hold the whole batch it is computed for each player and each part of the batch again, so
        it may not use what a player has changed in the same step before another one reads it.
        """
        return None

    def after_step(self, losses: Mapping[str, Loss]) -> None:
        """Codebooks, adaptive augmentation. State lives in buffers only."""


LikelihoodKind = Literal["exact", "bound", "estimate"]
"""What a log-likelihood is: the value itself, at most the value in expectation, or a number near it."""


@dataclass(frozen=True)
class Way:
    """One way to a model's log-likelihood, beside the one that it reports first.

    Attributes:
        likelihood: what the values are.
        protocol: how, in a few words, with the number of draws or steps.
        log_prob: (x (B, *E), cond, rng) -> (B,) nats; row i of `rng` serves example i.
    """

    likelihood: LikelihoodKind
    protocol: str
    log_prob: Callable[[Tensor, Cond, Rng], Tensor]


class HasLogProb(ABC):
    """A likelihood. `likelihood` says of which kind; `protocol` how it was computed, for the report."""

    likelihood: LikelihoodKind

    @abstractmethod
    def log_prob(self, x: Tensor, cond: Cond | None = None, *, rng: Rng) -> Tensor:
        """(B,) nats per example, summed over dimensions. `rng` draws what a bound or an estimate needs."""

    @property
    @abstractmethod
    def log_prob_protocol(self) -> str:
        """A few words: "exact", "importance-weighted bound, 64 samples", "probability-flow ODE, dopri5 1e-4"."""

    def ways(self, effort: float = 1.0) -> Mapping[str, Way]:
        """Further ways to the same quantity by their short names ("elbo", "iw", "ais", "vlb", "ode"); {} for none.

        Args:
            effort: in (0, 1], the share of the full number of draws or steps, to which the time is in proportion.
        """
        return {}


class HasLatent(ABC):
    """A latent space. `decode(encode(x))` returns x (a flow) or near it (an autoencoder)."""

    latent: DataSpec

    @abstractmethod
    def encode(self, x: Tensor, cond: Cond | None = None, *, rng: Rng | None = None) -> Tensor:
        """(B, *latent.shape); without rng the mean."""

    @abstractmethod
    def decode(self, z: Tensor, cond: Cond | None = None) -> Tensor:
        """(B, *spec.shape)."""


class HasDenoiser(ABC):
    """What inverse problems need: the expected clean data behind a noisy observation."""

    @abstractmethod
    def denoiser(self, cond: Cond | None = None, guidance: float = 1.0) -> Callable[[Tensor, Tensor], Tensor]:
        """A function (x (B, *E) = x0 + sigma eps, sigma (B,) or scalar) -> x0 (B, *E)."""


class HasFill(ABC):
    """Completes partly known examples."""

    @abstractmethod
    def fill(self, x: Tensor, known: Tensor, cond: Cond | None = None, *, rng: Rng) -> Tensor:
        """(B, *E) that equals x where `known` ((B, *E) bool) is true and is drawn elsewhere."""


class HasCode(ABC):
    """What a lossless coder needs: an example's values one after another, each with its probabilities."""

    @abstractmethod
    def read(self, x: Tensor) -> Tensor:
        """(B, *E) to (B, T) int64, the values in the order in which they are coded."""

    @abstractmethod
    def place(self, tokens: Tensor) -> Tensor:
        """(B, T) to (B, *E), the inverse of `read`."""

    @abstractmethod
    def following(self, n: int, cond: Cond | None, guidance: float) -> Callable[[Tensor | None], Tensor]:
        """The values (n,) just before, None at first -> logits (n, levels) of the next; called T times.

        The same calls give the same bits, and at guidance 1 the values' log-probabilities add up to `log_prob`.
        """


def round_trip_error(model: HasLatent, x: Tensor, cond: Cond | None = None) -> Tensor:
    """(B,) largest |decode(encode(x)) - x| of each example; infinite where not finite.

    The detector of a flow that stopped being invertible; for an autoencoder it is the reconstruction error.
    """
    error = (model.decode(model.encode(x, cond), cond) - x).flatten(1).abs()
    return error.nan_to_num(nan=math.inf).amax(1)


@dataclass(frozen=True)
class Finding:
    """Something that a model's own detector found wrong while training.

    Attributes:
        what: a name with texts in `event.<what>` of the message catalogue and of the report, such as "mode_collapse",
            "posterior_collapse", "not_invertible", "above_uniform".
        value: what was measured, in the unit that the texts give it.
        limit: beyond which it counts as wrong.
        severe: samples are worthless while it lasts. At the last three previews, the last of them in the second half
            of the budget, it ends the run early; once seen, weights of earlier previews are candidates for the result.
    """

    what: str
    value: float
    limit: float
    severe: bool = False


class HasWatch(ABC):
    """Detectors of the family's own failures, asked at every preview; their time is not training time."""

    @abstractmethod
    def watch(self, train: Batch, held_out: Batch, *, rng: Rng) -> Sequence[Finding]:
        """What is wrong, nothing if all is well.

        Called in evaluation mode, without gradient, in float32, on the weights as they are trained, not their averages.

        Args:
            train, held_out: at most 256 encoded examples each, of the training and of the validation split.
            rng: for what is drawn.
        """


TraceKind = Literal["denoise", "reveal", "walk", "flow", "interpolate"]


@dataclass(frozen=True)
class Trace:
    """How a family generates, as pictures.

    Attributes:
        kind: what the frames show.
        frames: (F, n, *E), model space, first frame = where generation starts.
        at: F short labels ("t=0.50", "pixel 16").
    """

    kind: TraceKind
    frames: Tensor
    at: tuple[str, ...]


class HasTrace(ABC):
    """Shows how it generates."""

    @abstractmethod
    def trace(self, n: int, frames: int, cond: Cond | None = None, *, rng: Rng) -> Trace:
        """n items over `frames` moments of their making."""


CAPABILITIES: Mapping[str, type] = {
    "log_prob": HasLogProb,
    "latent": HasLatent,
    "denoiser": HasDenoiser,
    "fill": HasFill,
    "code": HasCode,
    "trace": HasTrace,
}


def hide(cond: Cond, share: float, rng: Rng) -> Cond:
    """Make a random share of the rows unconditional in every field, so that a model also learns without its labels.

    Args:
        cond: name -> (B,) int64.
        share: of rows, 0 to 1.
        rng: one uniform number a row.
    Source: Ho & Salimans 2022, arXiv:2207.12598, algorithm 1.
    """
    if not cond or not share:
        return cond
    hidden = rng.uniform((len(next(iter(cond.values()))),)) < share
    return {name: torch.where(hidden, UNCONDITIONAL, value) for name, value in cond.items()}


def capabilities(model: Model[Any]) -> tuple[str, ...]:
    """The names of what `model` can beside sampling."""
    return tuple(name for name, kind in CAPABILITIES.items() if isinstance(model, kind))
