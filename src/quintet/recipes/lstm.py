"""lstm: a recurrent network over pixel levels, quantised columns or tokens, value by value, with exact likelihood.

    quintet train lstm digits --budget 60s

The memory is a vector of fixed size; nearest earlier neighbours are seen as plain numbers, in an image those of the
rows above too. Codecs are those of `gpt`; a recurrence takes AdamW for all its matrices. Positions wait for each other
in training too, so examples have at most 1,024 values.

Measured figures: docs/families/autoregressive.md.
"""

from __future__ import annotations

from quintet.core.budget import Budget
from quintet.core.messages import say
from quintet.core.recipe import CodecConfig, OptimizerConfig, Recipe, Stage, TrainConfig
from quintet.core.spec import DataSpec
from quintet.data.codecs import BinsCodecConfig, LevelCodecConfig
from quintet.families.autoregressive.model import AutoregressiveConfig
from quintet.families.autoregressive.outputs import Categorical
from quintet.nets.lstm import LstmConfig

MOST_VALUES = 1024


def stages(spec: DataSpec, budget: Budget) -> tuple[Stage, ...]:
    """One stage; its memory grows with the number of values that it has to sum up."""
    if spec.levels is None:
        network = LstmConfig(width=96, depth=1, reach=8, waves=5, nominal=False, dropout=0.0)
        return (
            _stage(
                BinsCodecConfig(bins=256, spacing="uniform"),
                AutoregressiveConfig(network=network, output=Categorical()),
                512,
            ),
        )
    colour = spec.kind == "image" and spec.shape[0] > 1
    network = LstmConfig(
        width=96 if spec.dims <= 256 else 192,
        depth=2 if spec.dims <= 256 else 1,
        reach=2 if colour else 3,
        waves=2 if spec.levels <= 32 else 4,
        nominal=spec.kind == "tokens",
        dropout=0.3 if spec.dims <= 256 else 0.0,
    )
    model = AutoregressiveConfig(
        network=network,
        output=Categorical(cap=30.0 if spec.levels <= 32 else None),
        order="pixels" if spec.kind == "image" else "rows",
        grid=spec.shape,
    )
    return (_stage(LevelCodecConfig(), model, max(16, min(64, 32_768 // spec.dims))),)


def unfit(spec: DataSpec) -> str | None:
    """Why this recipe cannot model such data, in the user's language."""
    if spec.dims > MOST_VALUES:
        return say("autoregressive.too_long", values=spec.dims, most=MOST_VALUES)
    return None


def _stage(codec: CodecConfig, model: AutoregressiveConfig, batch: int) -> Stage:
    train = TrainConfig(batch=batch, optimizers={"model": OPTIMIZER}, decay=0.6)
    return Stage(name="model", codec=codec, model=model, train=train)


OPTIMIZER = OptimizerConfig(lr=4e-3, weight_decay=0.01)

RECIPE = Recipe(
    name="lstm",
    family="autoregressive",
    stages=stages,
    summary={
        "en": "recurrent network, value by value: exact likelihood, a memory of fixed size",
        "zh": "循环网络，逐个数值生成：似然精确，记忆大小固定",
    },
    unfit=unfit,
)
