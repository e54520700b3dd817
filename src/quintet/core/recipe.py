"""Recipe and Stage: a complete run, as a function of the data and the budget that returns typed configs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass as plain_dataclass
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from quintet.core.budget import Budget
from quintet.core.codec import Codec
from quintet.core.config import STRICT, Config
from quintet.core.model import Model
from quintet.core.numerics import Precision
from quintet.core.spec import DataSpec

Family = Literal["gan", "vae", "flow", "diffusion", "autoregressive"]
Decay = Annotated[float, Field(ge=0, lt=1)]
Width = Annotated[float, Field(gt=0, lt=0.29)]  # no profile of an average is wider


class ModelConfig(Config, ABC):
    """Config of a family's one model class."""

    @abstractmethod
    def build(self, spec: DataSpec) -> Model[Any]:
        """An initialised model of data that look like `spec`; torch's global generator initialises it."""


class NetworkConfig(Config, ABC):
    """Config of a network from one real tensor to another.

    The module's forward is `(x (B, *inputs), cond: Cond, t (B,) | None) -> (B, *outputs)`; `t` is given when
    built with `time=True`. An absent condition, or -1 in a row, is unconditional.
    """

    @abstractmethod
    def build(
        self,
        inputs: tuple[int, ...],
        outputs: tuple[int, ...],
        conditions: Mapping[str, int],
        *,
        time: bool = False,
    ) -> nn.Module: ...


class TokenNetworkConfig(Config, ABC):
    """Config of a causal network over tokens.

    The module's forward is `(tokens (B, T) int64, cond: Cond) -> (B, T, outputs)`, where outputs at i depend on tokens
    before i and the condition alone. Its cached form, for sampling: `start(n, cond)` returns a cache with
    `reorder(rows)`, and `next(cache, tokens (n,) | None) -> (n, outputs)` moves it on by one position, given the token
    at the position before (None at the first).
    """

    @abstractmethod
    def build(
        self, length: int, levels: int, conditions: Mapping[str, int], *, grid: tuple[int, ...], outputs: int
    ) -> nn.Module:
        """Args: grid: how the positions lie, read line by line (rows, columns); outputs: numbers a position."""


Draw = Callable[[int, Tensor | None], Tensor]
"""(group, posterior (B, 2, *shape) or None) -> noise u (B, *shape).

u is standard normal under the prior: the decoder turns it into the latent z = mean + std u of p(z | groups above). The
posterior is mean and log standard deviation of u, hence relative to the prior; None where there are no features.
"""


class LadderNetwork(nn.Module):
    """The two networks of a hierarchy of latents in groups, the most abstract first.

    Args:
        encoder: (x (B, *inputs), cond) -> one tensor of features a group.
        decoder: (features | None, cond, draw: Draw, n) -> (n, *outputs). Group by group it calls `draw`, whose answer
            is all that it gets to know of that group. Without features it is the generator.
        groups: shape of each group.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, groups: tuple[tuple[int, ...], ...]) -> None:
        super().__init__()
        self.encoder, self.decoder, self.groups = encoder, decoder, groups


class LadderNetworkConfig(Config, ABC):
    """Config of a LadderNetwork."""

    @abstractmethod
    def build(
        self, inputs: tuple[int, ...], outputs: tuple[int, ...], conditions: Mapping[str, int]
    ) -> LadderNetwork: ...


class CausalNetworkConfig(Config, ABC):
    """Config of a causal network over real vectors.

    The module's forward is `(x (B, T, P), cond: Cond) -> (B, T, outputs)`, where outputs at i depend on vectors before
    i and the condition alone. Its cached form, for sampling: `start(n, cond)` returns a cache, and
    `next(cache, vector (n, P) | None) -> (n, outputs)` moves it on by one place, given the vector at the place before
    (None at the first).
    """

    @abstractmethod
    def build(
        self, length: int, size: int, conditions: Mapping[str, int], *, grid: tuple[int, int], outputs: int
    ) -> nn.Module:
        """Args: length, size: T and P; grid: rows and columns in which the T places lie, read line by line."""


class CodecConfig(Config, ABC):
    """Config of a codec; `fit` learns its buffers from raw training data."""

    @abstractmethod
    def fit(self, raw: DataSpec, x: Tensor) -> Codec:
        """Args: raw: the raw spec. x: (N, *raw.shape), the training split."""

    @abstractmethod
    def empty(self, raw: DataSpec) -> Codec:
        """The same codec with buffers to be filled from a checkpoint."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class OptimizerConfig(Config):
    """AdamW, or Muon for hidden matrices with AdamW for the rest.

    Attributes:
        method: "adamw" or "muon".
        lr: AdamW's peak learning rate.
        lr_end: the learning rate at the end as a share of the peak, before the plan's decay (cosine in progress).
        betas: AdamW's decay rates of the mean gradient and of its square.
        beta2_end: where betas[1] moves to over the training (cosine in progress), None for staying.
        weight_decay: decoupled, on matrices only.
        clip: largest gradient norm, None for no clipping.
        matrix_lr: Muon's peak learning rate, in units of the update's spectral norm.
        momentum: Muon's, of the gradient's running mean.
    """

    kind = "optimizer"
    method: Literal["adamw", "muon"] = "adamw"
    lr: float = Field(default=1e-3, gt=0)
    lr_end: float = Field(default=1.0, ge=0, le=1)
    betas: tuple[Decay, Decay] = (0.9, 0.99)
    beta2_end: Decay | None = None
    weight_decay: float = Field(default=0.0, ge=0)
    clip: float | None = Field(default=1.0, gt=0, allow_inf_nan=False)
    matrix_lr: float = Field(default=0.02, gt=0)
    momentum: float = Field(default=0.95, ge=0, lt=1)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainConfig(Config):
    """How a stage is trained.

    Attributes:
        batch: examples per step, over all processes.
        optimizers: player name -> its optimiser.
        warmup: steps of linear warm-up.
        decay: share of the run in which the learning rate falls linearly to 0 (0: none).
        ema: relative widths of the power-function averages (Karras et al. 2024, arXiv:2312.02696, eq. 1 and 18).
        augment: kind of augmentation, or None.
        precision: of the large products inside networks; "auto" takes the faster one, measured on real steps.
        compile: whether networks are compiled; "auto" tries it where the budget pays for the compilation.
        on_nonfinite: what a gradient that is not finite leads to, before anything is updated. "skip" leaves the update
            out and rolls back after three within 50 steps; "rollback" goes back to the last good checkpoint with half
            the learning rate at once; "stop" ends the run. After two rollbacks the run ends.
        shard: whether weights, optimiser state and averages of the networks are spread over the processes of a run.
    """

    kind = "train"
    batch: int = Field(default=256, ge=1)
    optimizers: dict[str, OptimizerConfig]
    warmup: int = Field(default=50, ge=0)
    decay: float = Field(default=0.4, ge=0, le=1)
    ema: tuple[Width, ...] = (0.05, 0.10)
    augment: str | None = None
    precision: Literal["auto"] | Precision = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    on_nonfinite: Literal["skip", "rollback", "stop"] = "skip"
    shard: bool = False


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Stage(Config):
    """One model of a recipe.

    Attributes:
        name: folder and log name.
        codec: raw data to this model's.
        model: what is trained.
        train: how it is trained.
        share: of the recipe's budget; shares of all stages sum to 1.
        needs: submodule of this stage's model -> earlier stage whose trained model it starts from ("first": "kl-ae").
            What belongs to no player stays as it is (a first stage, a teacher), the rest trains on (a student).
    """

    kind = "stage"
    name: str
    codec: CodecConfig
    model: ModelConfig
    train: TrainConfig
    share: float = Field(default=1.0, gt=0, le=1)
    needs: dict[str, str] = Field(default_factory=dict)


@plain_dataclass(frozen=True)
class Recipe:
    """A named way from raw data to a trained model.

    Attributes:
        name: what a user types.
        family: whose recipe it is.
        stages: f(raw spec, budget) -> stages, in order of training.
        summary: language -> one line.
        unfit: f(raw spec) -> why it does not fit such data, or None.
        tuning_trials: trainings spent on the data at hand to choose its settings; the ledger shows them.
    """

    name: str
    family: Family
    stages: Callable[[DataSpec, Budget], tuple[Stage, ...]]
    summary: Mapping[str, str]
    unfit: Callable[[DataSpec], str | None] = lambda spec: None
    tuning_trials: int = 0
