"""nsf: neural spline flow, one recipe for vectors and for small images.

    quintet train nsf digits --budget 60s

Vectors are standardised and go through rational-quadratic couplings with LU layers between (Durkan et al. 2019,
arXiv:1906.04032). Images are dequantised and swept once from coarse to fine pixels by piecewise-linear couplings
(Müller et al. 2019, arXiv:1808.03856): with a bin a level each coupling is a categorical distribution over the levels,
so that constant pixels and gaps between levels cost nothing, which smooth splines spend most of their fit on.

Rational-quadratic couplings and LU layers behind the sweep gained nothing on digits and cost two thirds more time, so
images go without. Measured figures: docs/families/flow.md.
"""

from __future__ import annotations

from quintet.core.budget import Budget
from quintet.core.messages import say
from quintet.core.recipe import OptimizerConfig, Recipe, Stage, TrainConfig
from quintet.core.spec import DataSpec
from quintet.data.codecs import DequantizedPixelCodecConfig, StandardizeCodecConfig
from quintet.families.flow.model import FlowConfig
from quintet.families.flow.splines import PiecewiseLinear, RationalQuadratic
from quintet.families.flow.transforms import (
    CouplingConfig,
    LULinearConfig,
    ProbitConfig,
    SweepConfig,
    TransformConfig,
)
from quintet.nets.mlp import MLPConfig

BATCH = 256
MOST_PIXELS = 256
MOST_COLUMNS = 1024
MOST_BINS = 64


def stages(spec: DataSpec, budget: Budget) -> tuple[Stage, ...]:
    """One stage: a flow on dequantised pixels or on standardised columns."""
    if spec.kind == "image" and spec.levels is not None:
        return (_pixels(spec, spec.levels, budget),)
    return (_columns(spec),)


def unfit(spec: DataSpec) -> str | None:
    """Why this recipe cannot model such data, in the user's language."""
    if spec.kind == "tokens":
        return say("flow.tokens")
    most = MOST_PIXELS if spec.kind == "image" else MOST_COLUMNS
    return say("flow.too_large", most=most, dims=spec.dims) if spec.dims > most else None


def _pixels(spec: DataSpec, levels: int, budget: Budget) -> Stage:
    sweep = SweepConfig(
        bijection=PiecewiseLinear(bins=min(levels, MOST_BINS), floor=0.003),
        network=MLPConfig(width=128, depth=2, zero_output=True),
        groups=min(16, spec.dims),
    )
    # Through the best of what was tried on 927 digits: 8e-3 and decay 1.5 for 250 steps, 2e-3 and 2.5 for 1,000 up.
    # The high rate over-fits in a long run (2.03 bits/dim after 1,000 steps against 1.90), the low one learns no labels
    # in a short one.
    faster = min(4.0, max(1.0, (1500 / _steps(budget)) ** 0.75))
    optimizer = OptimizerConfig(lr=2e-3 * faster, weight_decay=2.5 / faster ** (1 / 3), clip=5.0)
    return Stage(
        name="model",
        codec=DequantizedPixelCodecConfig(),
        model=FlowConfig(transforms=(sweep, ProbitConfig())),
        train=TrainConfig(batch=BATCH, optimizers={"model": optimizer}, decay=0.8, ema=(0.05, 0.15)),
    )


def _steps(budget: Budget) -> float:
    """About how many steps of 8x8 pixels a budget pays for on one core."""
    return budget.amount * {"seconds": 25.0, "steps": 1.0, "examples": 1 / BATCH, "flop": 1e-9}[budget.unit]


def _columns(spec: DataSpec) -> Stage:
    coupling = CouplingConfig(
        bijection=RationalQuadratic(bins=32 if spec.dims <= 8 else 12, bound=4.0),
        network=MLPConfig(width=128, depth=2, zero_output=True),
    )
    transforms: tuple[TransformConfig, ...] = (LULinearConfig(), coupling) * 4
    optimizer = OptimizerConfig(lr=2e-3, clip=5.0)
    return Stage(
        name="model",
        codec=StandardizeCodecConfig(),
        model=FlowConfig(transforms=transforms),
        train=TrainConfig(batch=512, optimizers={"model": optimizer}, decay=0.7),
    )


RECIPE = Recipe(
    name="nsf",
    family="flow",
    stages=stages,
    summary={
        "en": "spline couplings: exact likelihood and exact inverse",
        "zh": "样条耦合层：似然精确，逆变换精确",
    },
    unfit=unfit,
)
