"""ddpm: the discrete chain of the comparison articles, trained to predict the noise, drawn by DDIM or step by step.

    quintet train ddpm digits --budget 60s
    quintet sample RUN --solver ancestral

In the articles' notation, with beta_t given, alpha_t = 1 - beta_t and alpha_bar_t = alpha_1 ... alpha_t:

    q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t I)
    x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps,   t = 1 .. T
    loss = E_{t, x_0, eps} ||eps - eps_theta(x_t, t)||^2
    mu_theta(x_t, t) = (x_t - (1 - alpha_t) / sqrt(1 - alpha_bar_t) eps_theta(x_t, t)) / sqrt(alpha_t)

T = 1000 with the linear schedule (`--set model.path.schedule=cosine` for the other), t drawn uniformly. The network
sees t / T. DDIM needs 50 of the 1000 steps; `--solver ancestral` takes them all, as the articles describe. The codec
and the network are flow-matching's, so that the two differ in path and target alone. Source: Ho et al. 2020,
arXiv:2006.11239. Measured figures: docs/families/diffusion.md.
"""

from __future__ import annotations

from dataclasses import replace

from quintet.core.budget import Budget
from quintet.core.recipe import Recipe, Stage
from quintet.core.spec import DataSpec
from quintet.families.diffusion.densities import BoundConfig
from quintet.families.diffusion.model import DiffusionConfig
from quintet.families.diffusion.paths import DdpmPathConfig
from quintet.families.diffusion.sampling import DiffusionSampling
from quintet.families.diffusion.weighting import WeightingConfig
from quintet.recipes import flow_matching


def stages(spec: DataSpec, budget: Budget) -> tuple[Stage, ...]:
    """flow-matching's stage with the chain for its path and the noise for its target."""
    (stage,) = flow_matching.stages(spec, budget)
    assert isinstance(stage.model, DiffusionConfig)
    model = replace(
        stage.model,
        path=DdpmPathConfig(),
        target="eps",
        weighting=WeightingConfig(density="uniform"),
        density=BoundConfig(),
        sampling=DiffusionSampling(solver="ddim", steps=50, warp=2.0 if spec.levels is None else None),
    )
    return (replace(stage, model=model),)


RECIPE = Recipe(
    name="ddpm",
    family="diffusion",
    stages=stages,
    summary={
        "en": "the classic diffusion chain: predicts the noise of 1,000 steps, drawn in 50 of them (DDIM) or in all",
        "zh": "经典扩散链：预测 1000 个时间步中的噪声，可用其中 50 步（DDIM）或全部步数采样",
    },
    unfit=flow_matching.unfit,
)
