"""ladder-vae: a variational autoencoder whose latents come in groups, from the whole image down to its details.

    quintet train ladder-vae fashion_mnist --budget 3m

A vector says what an example is; groups on ever finer grids say where its edges and textures lie, so that the decoder
has little left to average over and need not blur. Real columns get two vectors. Measured figures: docs/families/vae.md.
"""

from __future__ import annotations

from quintet.core.budget import Budget
from quintet.core.messages import say
from quintet.core.recipe import OptimizerConfig, Recipe, Stage, TrainConfig
from quintet.core.spec import DataSpec
from quintet.data.codecs import LevelCodecConfig, StandardizeCodecConfig
from quintet.families.vae.ladder import LadderVAEConfig
from quintet.families.vae.likelihoods import ColourLogisticConfig, DiscretisedLogisticConfig, GaussianConfig
from quintet.families.vae.model import VaeSampling
from quintet.nets.ladder import LadderConfig

LARGEST = 16
"""Side of the largest grid of states; larger images enter and leave by squares of 2, 4, ... pixels."""


def stages(spec: DataSpec, budget: Budget) -> tuple[Stage, ...]:
    """One stage: images, whole numbers, or standardised columns."""
    if spec.kind == "image":
        return (_image(spec),)
    return (_columns(spec),)


def unfit(spec: DataSpec) -> str | None:
    """Why this recipe cannot model such data, in the user's language."""
    return say("vae.tokens") if spec.kind == "tokens" else None


def patch(spec: DataSpec) -> int:
    """Side of the squares of pixels by which an image enters a network, so that its largest grid is LARGEST wide."""
    side = 1
    while max(spec.shape[1:]) > LARGEST * side:
        side *= 2
    return side


def _image(spec: DataSpec) -> Stage:
    side = patch(spec)
    likelihood = ColourLogisticConfig(mixtures=3) if spec.shape[0] > 1 else DiscretisedLogisticConfig(mixtures=3)
    return Stage(
        name="model",
        codec=LevelCodecConfig(flat=False),
        model=LadderVAEConfig(
            network=LadderConfig(
                width=32,
                latents=(2, 4) if side < 4 else (4, 8),
                channels=(32, 64) if side < 4 else (64, 96),
                blocks=(1, 2),
                # numbers of one grid are drawn independently: of squares of 4 pixels and more they would make noise
                rungs=(1, 2, 1) if side < 4 else (0, 2, 2),
                smallest=4,
                patch=side,
            ),
            likelihood=likelihood,
            beta=(0.7,) if side < 4 else (1.0, 1.0, 1.0, 1.0, 0.7),  # five groups; the last holds texture
            free_bits=(0.5,),
            kl_warmup=0.3,
            sampling=VaeSampling(noise=1.0 if side == 1 else 0.0),
        ),
        train=TrainConfig(batch=64 if side < 4 else 16, optimizers={"model": OptimizerConfig(lr=3e-3)}),
    )


def _columns(spec: DataSpec) -> Stage:
    width = min(16, spec.dims)
    return Stage(
        name="model",
        codec=StandardizeCodecConfig() if spec.levels is None else LevelCodecConfig(),
        model=LadderVAEConfig(
            network=LadderConfig(width=width, latents=(width,), channels=(128,), blocks=(2,)),
            likelihood=GaussianConfig() if spec.levels is None else DiscretisedLogisticConfig(),
            kl_warmup=0.3,
        ),
        train=TrainConfig(batch=256, optimizers={"model": OptimizerConfig(lr=2e-3)}),
    )


RECIPE = Recipe(
    name="ladder-vae",
    family="vae",
    stages=stages,
    summary={
        "en": "latents in groups, from the whole to the details: sharper than one vector, still one step to draw",
        "zh": "潜变量分层，由整体到细节：比单一向量更清晰，仍然一步采样",
    },
    unfit=unfit,
)
