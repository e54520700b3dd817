"""gpt: a causal network over pixel levels, quantised columns or tokens, value by value, with exact likelihood.

    quintet train gpt digits --budget 60s
    quintet train gpt fashion_mnist --budget 3m

Up to 128 pixels, and for columns and tokens, it is a Transformer: each value sees all earlier ones by attention and its
nearest earlier neighbours as plain numbers. Digits over-fit in a minute, so levels are numbers only (no embedding of
their own) and dropout is high. Columns are cut into bins of equal width: bins of equal count over-fit the toy densities
and spread the edge of a cluster over the gap beside it.

Larger images are read pixel by pixel: feed-forward layers begin with a causal convolution over the nearest pixels, and
the fourth of six blocks has attention along the pixel's column and row. Attention to all earlier pixels would cost the
square of their number.

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
from quintet.nets.local import LocalConfig
from quintet.nets.transformer import TransformerConfig

MOST_VALUES = 1024
"""With attention to all of them."""

MOST_IMAGE_VALUES = 64 * 64 * 4
"""Drawn one after another: some minutes for a few hundred images."""

MOST_PIXELS = 128
"""Of an image that is read with attention to all values."""


def stages(spec: DataSpec, budget: Budget) -> tuple[Stage, ...]:
    """One stage, small for columns of a table and wider for images and tokens."""
    if spec.levels is None:
        return (_columns(),)
    return (_pixels(spec) if _large(spec) else _levels(spec),)


def unfit(spec: DataSpec) -> str | None:
    """Why this recipe cannot model such data, in the user's language."""
    most = MOST_IMAGE_VALUES if _large(spec) else MOST_VALUES
    if spec.dims > most:
        return say("autoregressive.too_long", values=spec.dims, most=most)
    return None


def _large(spec: DataSpec) -> bool:
    return spec.kind == "image" and spec.levels is not None and spec.shape[1] * spec.shape[2] > MOST_PIXELS


def _pixels(spec: DataSpec) -> Stage:
    return _stage(
        LevelCodecConfig(),
        AutoregressiveConfig(
            network=LocalConfig(),
            output=Categorical(cap=None),
            order="pixels",
            grid=spec.shape,
        ),
        TrainConfig(
            batch=max(4, min(64, 8192 // spec.dims)),
            optimizers={"model": OPTIMIZER},
            decay=0.6,
            ema=(0.05, 0.10) if spec.dims <= MOST_VALUES else (0.10,),  # one width: nothing is drawn to choose
        ),
    )


def _levels(spec: DataSpec) -> Stage:
    colour = spec.kind == "image" and spec.shape[0] > 1
    network = TransformerConfig(
        width=64,
        depth=3,
        heads=4,
        hidden=128,
        reach=2 if colour else 3,  # neighbours in every channel: 62 and 24 of them
        waves=2 if spec.levels is not None and spec.levels <= 32 else 4,
        nominal=spec.kind == "tokens",
        dropout=0.3,
    )
    return _stage(
        LevelCodecConfig(),
        AutoregressiveConfig(network=network, output=Categorical(), grid=spec.shape),
        TrainConfig(batch=max(16, min(64, 8192 // spec.dims)), optimizers={"model": OPTIMIZER}, decay=0.6),
    )


def _columns() -> Stage:
    return _stage(
        BinsCodecConfig(bins=256, spacing="uniform"),
        AutoregressiveConfig(
            network=TransformerConfig(
                width=64, depth=2, heads=4, hidden=256, reach=8, waves=5, nominal=False, dropout=0.1
            ),
            output=Categorical(),
        ),
        TrainConfig(batch=512, optimizers={"model": OPTIMIZER}, decay=0.6),
    )


def _stage(codec: CodecConfig, model: AutoregressiveConfig, train: TrainConfig) -> Stage:
    return Stage(name="model", codec=codec, model=model, train=train)


OPTIMIZER = OptimizerConfig(method="muon", lr=6e-3, matrix_lr=0.02, weight_decay=0.1)

RECIPE = Recipe(
    name="gpt",
    family="autoregressive",
    stages=stages,
    summary={
        "en": "causal Transformer (large images: and convolutions), value by value: exact likelihood, slow to draw",
        "zh": "因果 Transformer（大图辅以因果卷积），逐个数值生成：似然精确，采样较慢",
    },
    unfit=unfit,
)
