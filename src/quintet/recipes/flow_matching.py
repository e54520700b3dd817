"""flow-matching: a diffusion model on the straight path from data to noise, for images, whole numbers and real vectors.

    quintet train flow-matching digits --budget 60s
    quintet train flow-matching fashion_mnist --budget 3m

The network, modulated by time and label, is a U-Net for images; up to 256 values a mixer of patches, which generalises
where a plain perceptron learns a small training set by heart; and a residual perceptron for columns. It learns the
velocity (noise minus data) with logit-normal times, spread evenly in each batch, and hides a tenth of the labels so
that guidance has something to lean on. Levels are dequantised, so that the likelihood of the probability-flow equation
bounds that of the levels.

The U-Net's size follows the training compute, see `training_flop`. A budget in seconds is taken for one of two CPU
cores; on a GPU say it in FLOPs (`--budget 5e16flop`: minutes of an H200), which chooses the large network.
Measured figures: docs/families/diffusion.md.
"""

from __future__ import annotations

import math
from dataclasses import replace

from quintet.core.budget import Budget
from quintet.core.messages import say
from quintet.core.recipe import NetworkConfig, OptimizerConfig, Recipe, Stage, TrainConfig
from quintet.core.spec import DataSpec
from quintet.data.codecs import DequantizedPixelCodecConfig, StandardizeCodecConfig
from quintet.families.diffusion.model import DiffusionConfig
from quintet.families.diffusion.sampling import DiffusionSampling
from quintet.families.diffusion.weighting import WeightingConfig
from quintet.nets.mixer import MixerConfig
from quintet.nets.mlp import ResidualMLPConfig
from quintet.nets.unet import UNetConfig

CPU_FLOP_PER_SECOND = 4e11
"""What two cores with bf16 arithmetic reach in training a U-Net."""

MEDIUM, LARGE = 2e15, 2e16
"""Training FLOPs from which the larger networks see enough images."""


WIDE_PATCH = 64


def training_flop(budget: Budget) -> float:
    """What a budget pays for; 0 for steps and examples, which say nothing of the machine."""
    if budget.unit == "seconds":
        return CPU_FLOP_PER_SECOND * budget.amount
    return budget.amount if budget.unit == "flop" else 0.0


def stages(spec: DataSpec, budget: Budget) -> tuple[Stage, ...]:
    """One stage: larger images, other levels, or standardised columns."""
    if spec.levels is None:
        return (_columns(),)
    if spec.kind == "image" and spec.dims > 256:
        return (_images(spec, training_flop(budget)),)
    return (_levels(spec),)


def unfit(spec: DataSpec) -> str | None:
    """Why this recipe cannot model such data, in the user's language."""
    return say("diffusion.tokens") if spec.kind == "tokens" else None


def patch_for(spec: DataSpec, places: int) -> int:
    """The smallest power of two whose patches cover an image in at most so many places."""
    patch = 1
    while math.prod(-(-size // patch) for size in spec.shape[1:]) > places:
        patch *= 2
    return patch


def matching(spec: DataSpec, network: NetworkConfig, patch: int) -> DiffusionConfig:
    """Flow matching of images by a network that sees patches of this side.

    Beyond WIDE_PATCH values in a patch the network says the clean data, which lie near a few directions, not the
    velocity, whose noise leaves none of them out; the error is that of the velocity in either case.
    Source: Li & He 2025, arXiv:2511.13720.
    """
    model = DiffusionConfig(network=network, sampling=DiffusionSampling(solver="heun", steps=12))
    if spec.shape[0] * patch**2 > WIDE_PATCH:
        return replace(model, target="x0", weighting=WeightingConfig(space="velocity"))
    return model


def _images(spec: DataSpec, flop: float) -> Stage:
    if flop < LARGE:
        if flop < MEDIUM:
            network, batch = UNetConfig(patch=patch_for(spec, 256), channels=(64, 128), heads=2), 64
        else:
            network = UNetConfig(patch=patch_for(spec, 1024), channels=(64, 128, 256), blocks=2, heads=4)
            batch = 128
        lr = 2e-3
    else:  # Karras et al.'s shape at half their width
        network = UNetConfig(
            patch=patch_for(spec, 1024), channels=(96, 192, 288), blocks=2, attention=16, heads=6, context=384
        )
        batch, lr = 512, 1e-3
    return Stage(
        name="model",
        codec=DequantizedPixelCodecConfig(),
        model=matching(spec, network, network.patch),
        train=TrainConfig(
            batch=batch,
            optimizers={"model": OptimizerConfig(lr=lr)},
            augment="flip" if spec.shape[0] == 3 else None,  # photographs; a grey sign or shoe has a direction
        ),
    )


def _levels(spec: DataSpec) -> Stage:
    if spec.kind == "image":
        patch = max(2, patch_for(spec, 64))
        network: NetworkConfig = MixerConfig(patch=patch, width=96, hidden=192, patch_hidden=32)
    else:
        network = ResidualMLPConfig(width=192, depth=3, hidden=384, context=64, dropout=0.1)
    return Stage(
        name="model",
        codec=DequantizedPixelCodecConfig(),
        model=DiffusionConfig(network=network, sampling=DiffusionSampling(solver="heun", steps=16)),
        train=TrainConfig(batch=128, optimizers={"model": OptimizerConfig(lr=3e-3)}),
    )


def _columns() -> Stage:
    # narrow modes are resolved at small times, in training and in sampling, and by fine sines of the columns
    network = ResidualMLPConfig(width=128, depth=3, hidden=256, context=64, octaves=5)
    return Stage(
        name="model",
        codec=StandardizeCodecConfig(),
        model=DiffusionConfig(
            network=network,
            weighting=WeightingConfig(mean=-1.0, std=1.5),
            sampling=DiffusionSampling(solver="heun", steps=24, warp=2.0),
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
