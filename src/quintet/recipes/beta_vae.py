"""beta-vae: a variational autoencoder charged beta times for what its latents tell, so that each tells one thing.

    quintet train beta-vae digits --budget 60s --set model.beta=8

The prior is N(0, I), whose axes are the only preferred directions there are: under pressure each factor of the data is
best put on one axis of its own. Above 1 beta trades detail for that, below 1 the other way. Labels that come with the
data are given to both networks, so that the latents hold what labels do not say. Networks: those of the recipe `vae`
with one latent vector.

Source: Higgins et al. 2017, "beta-VAE", ICLR; Burgess et al. 2018 (why it separates factors), arXiv:1804.03599.
Departure: no capacity annealing; the decoder's scale is learned, one for all values (Rybkin et al. 2021).
"""

from __future__ import annotations

from dataclasses import replace

from quintet.core.budget import Budget
from quintet.core.recipe import Recipe, Stage
from quintet.core.spec import DataSpec
from quintet.families.vae.likelihoods import DiscretisedLogisticConfig, GaussianConfig
from quintet.families.vae.model import VAEConfig, VaeSampling
from quintet.families.vae.priors import StandardNormalConfig
from quintet.recipes import vae

BETA = 4.0
WIDTH = 10
"""Latent numbers, as in the source's experiments on images."""


def stages(spec: DataSpec, budget: Budget) -> tuple[Stage, ...]:
    """The stage of `vae` with one latent vector, and another prior, likelihood and weight of the divergence."""
    stage = vae.flat(spec)
    return (replace(stage, model=_model(spec, stage)),)


def _model(spec: DataSpec, stage: Stage) -> VAEConfig:
    assert isinstance(stage.model, VAEConfig)
    likelihood = GaussianConfig() if spec.levels is None else DiscretisedLogisticConfig(sharing="all")
    return replace(
        stage.model,
        width=min(WIDTH, spec.dims),
        prior=StandardNormalConfig(),
        likelihood=likelihood,
        beta=BETA if spec.kind == "image" else 1.5,  # columns are few, and every one of them is told apart
        free_bits=0.0,
        kl_warmup=0.3,
        sampling=VaeSampling(noise=0.0 if spec.kind == "image" else 1.0),
    )


RECIPE = Recipe(
    name="beta-vae",
    family="vae",
    stages=stages,
    summary={
        "en": "every latent pays beta times for what it tells: few, separate, readable factors; blurred pictures",
        "zh": "潜变量按 beta 倍付出信息代价：因子少而彼此独立、易于解读；图像较模糊",
    },
    unfit=vae.unfit,
)
