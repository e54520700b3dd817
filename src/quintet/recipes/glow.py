"""glow: the classic image flow, invertible convolutions and couplings of channels on a pyramid of sizes.

    quintet train glow fashion_mnist --budget 3m

Pixels first go through their own histograms, as in `tarflow`: a black background is then no spike that every coupling
has to keep apart from the rest. Measured figures: docs/families/flow.md.
"""

from __future__ import annotations

from quintet.core.budget import Budget
from quintet.core.messages import say
from quintet.core.recipe import OptimizerConfig, Recipe, Stage, TrainConfig
from quintet.core.spec import DataSpec
from quintet.data.codecs import DequantizedPixelCodecConfig
from quintet.families.flow.bijections import Affine
from quintet.families.flow.images import PyramidConfig
from quintet.families.flow.model import FlowConfig
from quintet.families.flow.transforms import MarginalsConfig, ProbitConfig
from quintet.nets.plain import PlainConvConfig


def stages(spec: DataSpec, budget: Budget) -> tuple[Stage, ...]:
    """One stage: a pyramid of up to three levels."""
    assert spec.levels is not None
    small = spec.dims <= 256
    pyramid = PyramidConfig(
        bijection=Affine(),
        network=PlainConvConfig(width=64 if small else 128),
        levels=2 if small else 3,
        steps=2 if small else 4,
    )
    return (
        Stage(
            name="model",
            codec=DequantizedPixelCodecConfig(),
            model=FlowConfig(transforms=(MarginalsConfig(bins=min(spec.levels, 256)), ProbitConfig(), pyramid)),
            train=TrainConfig(batch=64, optimizers={"model": OptimizerConfig(lr=1e-3)}, decay=0.6),
        ),
    )


def unfit(spec: DataSpec) -> str | None:
    """Why this recipe cannot model such data, in the user's language."""
    if spec.kind != "image" or spec.levels is None:
        return say("flow.images_only", recipe="glow")
    if spec.shape[1] % 2 or spec.shape[2] % 2:
        return say("flow.odd_size", height=spec.shape[1], width=spec.shape[2])
    return None


RECIPE = Recipe(
    name="glow",
    family="flow",
    stages=stages,
    summary={
        "en": "the classic image flow: invertible convolutions, exact likelihood, one pass to sample",
        "zh": "经典图像流：可逆卷积，似然精确，一次前向即可采样",
    },
    unfit=unfit,
)
