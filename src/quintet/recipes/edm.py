"""edm: diffusion with the noise level for the time, a preconditioned network, and Heun's method in the noise level.

    quintet train edm digits --budget 60s
    quintet sample RUN --solver edm --churn 40

x = x0 + sigma eps with ln sigma ~ N(-1.2, 1.2^2) in training; the network's inputs and targets have unit variance at
every sigma. 18 steps between sigma 80 and 0.002, evenly spread in sigma^(1/7), are 35 evaluations. sigma_data is 0.5
for levels, 1 for standardised columns, whose narrow modes want more training at low noise. The codec and the network
are flow-matching's. Source: Karras et al. 2022, table 1, arXiv:2206.00364. Measured figures:
docs/families/diffusion.md.
"""

from __future__ import annotations

from dataclasses import replace

from quintet.core.budget import Budget
from quintet.core.recipe import Recipe, Stage
from quintet.core.spec import DataSpec
from quintet.families.diffusion.model import DiffusionConfig
from quintet.families.diffusion.paths import EdmPathConfig
from quintet.families.diffusion.sampling import DiffusionSampling
from quintet.families.diffusion.weighting import WeightingConfig
from quintet.recipes import flow_matching


def stages(spec: DataSpec, budget: Budget) -> tuple[Stage, ...]:
    """flow-matching's stage with the noise level for its path and the preconditioned target."""
    (stage,) = flow_matching.stages(spec, budget)
    assert isinstance(stage.model, DiffusionConfig)
    columns = spec.levels is None
    model = replace(
        stage.model,
        path=EdmPathConfig(std=1.0 if columns else 0.5),
        target="edm",
        weighting=WeightingConfig(density="log-normal", mean=-1.2, std=1.8 if columns else 1.2),
        sampling=DiffusionSampling(solver="edm", steps=18),
    )
    return (replace(stage, model=model),)


RECIPE = Recipe(
    name="edm",
    family="diffusion",
    stages=stages,
    summary={
        "en": "diffusion by noise level with a preconditioned network (EDM), drawn in 35 evaluations",
        "zh": "以噪声水平为时间、对网络做预处理的扩散模型（EDM）：采样计算 35 次",
    },
    unfit=flow_matching.unfit,
)
