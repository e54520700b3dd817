"""tarflow: blocks of a causal Transformer over patches, each an invertible autoregressive map, for images of any size.

    quintet train tarflow fashion_mnist --budget 3m

Pixels are dequantised uniformly, so that bits per dimension are those of the levels, and first go through their own
histograms: half of a greyscale image is one black level, which is then half of the space instead of a spike that an
affine map can only shrink to. The paper's Gaussian noise of 0.05 is not needed then.

Departures from Zhai et al. 2024, arXiv:2412.06329, beside that: maps are triangular inside a patch where it is small
(`Triangular`), as affine ones leave its pixels independent given the patches before, which costs a small budget more
than it can win back with blocks; a place sees four neighbouring patches, not one.

Measured figures: docs/families/flow.md.
"""

from __future__ import annotations

from quintet.core.budget import Budget
from quintet.core.messages import say
from quintet.core.recipe import OptimizerConfig, Recipe, Stage, TrainConfig
from quintet.core.spec import DataSpec
from quintet.data.codecs import DequantizedPixelCodecConfig
from quintet.families.flow.bijections import Affine, Bijection, Triangular
from quintet.families.flow.model import FlowConfig
from quintet.families.flow.transforms import AutoregressiveConfig, MarginalsConfig, ProbitConfig
from quintet.nets.causal import CausalTransformerConfig

MOST_PLACES = 64
LARGEST_GROUP = 64
"""Values in a patch up to which a map is triangular: their square is the number of parameters a patch."""

BLOCKS = 3


def stages(spec: DataSpec, budget: Budget) -> tuple[Stage, ...]:
    """One stage: patches of 2, 4, 8, ... pixels, so that there are at most MOST_PLACES of them."""
    assert spec.levels is not None
    channels, height, width = spec.shape
    patch = 2
    while -(-height // patch) * -(-width // patch) > MOST_PLACES:
        patch *= 2
    size = channels * min(patch, height) * min(patch, width)
    bijection: Bijection = Triangular(size=size) if size <= LARGEST_GROUP else Affine()
    small = spec.dims <= 256
    network = CausalTransformerConfig(width=64 if small else 128, depth=2, heads=4, hidden=128 if small else 256)
    block = AutoregressiveConfig(bijection=bijection, patch=patch, network=network)
    levels = min(spec.levels, 256)
    histograms = MarginalsConfig(bins=levels, bell=True)
    optimizer = OptimizerConfig(method="muon", lr=3e-3, matrix_lr=0.02)
    return (
        Stage(
            name="model",
            codec=DequantizedPixelCodecConfig(),
            model=FlowConfig(transforms=(histograms, ProbitConfig(), *(block,) * BLOCKS)),
            train=TrainConfig(batch=64, optimizers={"model": optimizer}, decay=0.6),
        ),
    )


def unfit(spec: DataSpec) -> str | None:
    """Why this recipe cannot model such data, in the user's language."""
    if spec.kind != "image" or spec.levels is None:
        return say("flow.images_only", recipe="tarflow")
    return None


RECIPE = Recipe(
    name="tarflow",
    family="flow",
    stages=stages,
    summary={
        "en": "Transformer flow over patches: exact likelihood, images of any size",
        "zh": "基于图像块的 Transformer 流：似然精确，适用于任意大小的图像",
    },
    unfit=unfit,
)
