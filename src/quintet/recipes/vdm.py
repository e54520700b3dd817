"""vdm: a diffusion model trained on the bound of the likelihood, on the data's levels as they are.

    quintet train vdm digits --budget 60s

-log p(x) <= KL(q(z_1 | x) || N(0, I)) + 1/2 integral over gamma of E||eps - eps_hat||^2 + E[-log p(x | z_0)],

gamma = -log SNR, from where the noise is a sixth of a data level (so z_0 gives the data away; -13.3 for 256 levels) to
5. Nothing is dequantised, and the network sees where between the levels a value lies. It predicts v, which is the
noise where there is little and the data where there is much. The network is flow-matching's. Source: Kingma et al.
2021, arXiv:2107.00630, with the ends of gamma fixed. Measured figures: docs/families/diffusion.md.
"""

from __future__ import annotations

import math
from dataclasses import replace

from quintet.core.budget import Budget
from quintet.core.recipe import Recipe, Stage
from quintet.core.spec import DataSpec
from quintet.data.codecs import LevelCodecConfig
from quintet.families.diffusion.densities import BoundConfig
from quintet.families.diffusion.model import DiffusionConfig
from quintet.families.diffusion.paths import LogSnrPathConfig
from quintet.families.diffusion.sampling import DiffusionSampling
from quintet.families.diffusion.weighting import ElboConfig
from quintet.recipes import flow_matching


def stages(spec: DataSpec, budget: Budget) -> tuple[Stage, ...]:
    """flow-matching's stage with the bound for its loss, on levels or standardised columns."""
    (stage,) = flow_matching.stages(spec, budget)
    assert isinstance(stage.model, DiffusionConfig)
    low = -10.0 if spec.levels is None else round(2 * math.log(2 / (spec.levels - 1) / 6), 2)
    model = replace(
        stage.model,
        path=LogSnrPathConfig(low=low),
        target="v",
        weighting=ElboConfig(),
        density=BoundConfig(),
        sampling=DiffusionSampling(solver="dpmpp-2m", steps=25),
    )
    return (replace(stage, model=model, codec=stage.codec if spec.levels is None else LevelCodecConfig(flat=False)),)


RECIPE = Recipe(
    name="vdm",
    family="diffusion",
    stages=stages,
    summary={
        "en": "diffusion trained for likelihood: reports a bound on the probability of the data's own levels",
        "zh": "以似然为目标训练的扩散模型：直接给出数据各级别概率的界",
    },
    unfit=flow_matching.unfit,
)
