"""tarflow: blocks of a Transformer over patches, each an invertible autoregressive map, for images of any size.

quintet train tarflow shared/data/fashion_mnist --budget 3m
"""

from __future__ import annotations

from quintet.core.budget import Budget
from quintet.core.messages import say
from quintet.core.recipe import OptimizerConfig, Recipe, Stage, TrainConfig
from quintet.core.spec import DataSpec
from quintet.data.codecs import DequantizedPixelCodecConfig
from quintet.families.flow.bijections import Affine, Bijection, Triangular
from quintet.families.flow.model import FlowConfig
from quintet.families.flow.transforms import AutoregressiveConfig, MarginalsConfig, ProbitConfig, TransformConfig
from quintet.nets.causal import CausalTransformerConfig

MOST_PLACES = 64
LARGEST_GROUP = 64


def stages(spec: DataSpec, budget: Budget) -> tuple[Stage, ...]:
    """One stage."""
    patch = 2
    while -(-spec.shape[1] // patch) * -(-spec.shape[2] // patch) > MOST_PLACES:
        patch *= 2
    size = spec.shape[0] * min(patch, spec.shape[1]) * min(patch, spec.shape[2])
    bijection: Bijection = Triangular(size=size) if size <= LARGEST_GROUP else Affine()
    blocks: list[TransformConfig] = [
        AutoregressiveConfig(
            bijection=bijection,
            patch=patch,
            network=CausalTransformerConfig(width=128, depth=depth, heads=4, hidden=256),
        )
        for depth in (2, 2, 2)
    ]
    assert spec.levels is not None
    levels = min(spec.levels, 256)
    first = MarginalsConfig(bins=levels, spread=0.25, reach=levels // 64)
    optimizer = OptimizerConfig(method="muon", lr=3e-3, matrix_lr=0.02)
    return (
        Stage(
            name="model",
            codec=DequantizedPixelCodecConfig(),
            model=FlowConfig(transforms=(first, ProbitConfig(), *blocks)),
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
