"""flow-matching: a diffusion model on the straight path from data to noise, for images, whole numbers and real vectors.

    quintet train flow-matching digits --budget 60s

The network, modulated by time and label, is a mixer of patches for images, which generalises where a plain perceptron
learns a small training set by heart, and a residual perceptron for columns. It learns the velocity (noise minus data)
with logit-normal times, spread evenly in each batch, and hides a tenth of the labels so that guidance has something to
lean on. Levels are dequantised, so that the likelihood of the probability-flow equation bounds that of the levels.
Measured figures: docs/families/diffusion.md.
"""

from __future__ import annotations

import math

from quintet.core.budget import Budget
from quintet.core.messages import say
from quintet.core.recipe import NetworkConfig, OptimizerConfig, Recipe, Stage, TrainConfig
from quintet.core.spec import DataSpec
from quintet.data.codecs import DequantizedPixelCodecConfig, StandardizeCodecConfig
from quintet.families.diffusion.model import DiffusionConfig, OdeSampling
from quintet.families.diffusion.weighting import WeightingConfig
from quintet.nets.mixer import MixerConfig
from quintet.nets.mlp import ResidualMLPConfig


def stages(spec: DataSpec, budget: Budget) -> tuple[Stage, ...]:
    """One stage: dequantised levels, or standardised columns."""
    return (_columns(),) if spec.levels is None else (_levels(spec),)


def unfit(spec: DataSpec) -> str | None:
    """Why this recipe cannot model such data, in the user's language."""
    return say("diffusion.tokens") if spec.kind == "tokens" else None


def _levels(spec: DataSpec) -> Stage:
    return Stage(
        name="model",
        codec=DequantizedPixelCodecConfig(),
        model=DiffusionConfig(network=_network(spec), sampling=OdeSampling(solver="heun", steps=16)),
        train=TrainConfig(batch=128, optimizers={"model": OptimizerConfig(lr=3e-3)}),
    )


def _network(spec: DataSpec) -> NetworkConfig:
    if spec.kind != "image":
        return ResidualMLPConfig(width=192, depth=3, hidden=384, context=64, dropout=0.1)
    patch = 2  # of at most 64 patches
    while math.prod(-(-size // patch) for size in spec.shape[1:]) > 64:
        patch *= 2
    width = 96 if spec.dims <= 256 else 192
    return MixerConfig(patch=patch, width=width, hidden=2 * width, patch_hidden=32 if spec.dims <= 256 else 64)


def _columns() -> Stage:
    # narrow modes are resolved at small times, in training and in sampling, and by fine sines of the columns
    network = ResidualMLPConfig(width=128, depth=3, hidden=256, context=64, octaves=5)
    return Stage(
        name="model",
        codec=StandardizeCodecConfig(),
        model=DiffusionConfig(
            network=network,
            weighting=WeightingConfig(mean=-1.0, std=1.5),
            sampling=OdeSampling(solver="heun", steps=24, warp=2.0),
        ),
        train=TrainConfig(batch=256, optimizers={"model": OptimizerConfig(lr=3e-3)}),
    )


RECIPE = Recipe(
    name="flow-matching",
    family="diffusion",
    stages=stages,
    summary={
        "en": "flow matching: carries noise to data along a learned velocity field, in a few dozen steps",
        "zh": "流匹配：沿学到的速度场把噪声带到数据，采样需要几十步",
    },
    unfit=unfit,
)
