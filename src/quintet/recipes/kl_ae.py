"""kl-ae: a first stage with a Gaussian bottleneck of tiny weight, for images; what latent-diffusion stands on.

    quintet train kl-ae fashion_mnist --budget 3m

It is made to reconstruct, and is judged by that: its reconstruction floor says what any model of its latents can reach
at best. Its own draws come from the standard normal that the bottleneck hardly pulls towards, and look like it.

See docs/families/latent.md.
"""

from __future__ import annotations

from quintet.core.budget import Budget
from quintet.core.messages import say
from quintet.core.recipe import OptimizerConfig, Recipe, Stage, TrainConfig
from quintet.core.spec import DataSpec
from quintet.data.codecs import PixelCodecConfig
from quintet.families.vae.autoencoder import AutoencoderConfig
from quintet.families.vae.quantize import BottleneckConfig, GaussianBottleneckConfig
from quintet.nets.rescale import RescaleConfig

TINY, LARGE = 16, 128
"""Pixels a side up to which a place of the latents is 2 x 2 pixels, and above which it is 8 x 8; 4 x 4 between."""


def stages(spec: DataSpec, budget: Budget) -> tuple[Stage, ...]:
    """One stage."""
    return (first_stage(spec, GaussianBottleneckConfig(channels=2 if max(spec.shape[1:]) <= TINY else 4)),)


def unfit(spec: DataSpec) -> str | None:
    """Why this recipe cannot model such data, in the user's language."""
    return say("vae.images", recipe="kl-ae") if spec.kind != "image" or spec.levels is None else None


def first_stage(spec: DataSpec, bottleneck: BottleneckConfig, share: float = 1.0) -> Stage:
    """An autoencoder of images, sized by them.

    Args:
        bottleneck: of its latents.
        share: of the recipe's budget.
    """
    side = max(spec.shape[1:])
    factor = 2 if side <= TINY else 4 if side <= LARGE else 8
    network = RescaleConfig(channels=(64, 128) if factor < 8 else (64, 96, 128), blocks=1, patch=2)
    return Stage(
        name="autoencoder",
        codec=PixelCodecConfig(),
        model=AutoencoderConfig(encoder=network, decoder=network, bottleneck=bottleneck, factor=factor),
        train=TrainConfig(batch=64, optimizers={"model": OptimizerConfig(lr=2e-3)}, warmup=100, decay=0.5, ema=(0.05,)),
        share=share,
    )


RECIPE = Recipe(
    name="kl-ae",
    family="vae",
    stages=stages,
    summary={
        "en": "first stage for latent models: images to a small grid of numbers and back",
        "zh": "潜空间模型的第一阶段：把图像压缩成小网格的数值，再还原",
    },
    unfit=unfit,
)
