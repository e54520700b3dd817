"""vae: a variational autoencoder with a learned prior, for images, whole numbers and real vectors.

    quintet train vae digits --budget 60s

Levels get a discretised logistic each, whose probability is a mass: no dequantisation, no edge left out. Real columns
get a Gaussian with one learned sigma (Rybkin et al. 2021, arXiv:2006.13202). Small images and vectors have one latent
vector under a mixture prior, and small residual perceptrons: with about a thousand examples everything larger learns
them by heart. Larger images get the groups of latents of `ladder-vae`: one vector leaves a decoder no choice but to
blur. Measured figures: docs/families/vae.md.
"""

from __future__ import annotations

from quintet.core.budget import Budget
from quintet.core.messages import say
from quintet.core.recipe import OptimizerConfig, Recipe, Stage, TrainConfig
from quintet.core.spec import DataSpec
from quintet.data.codecs import LevelCodecConfig, StandardizeCodecConfig
from quintet.families.vae.likelihoods import DiscretisedLogisticConfig, GaussianConfig
from quintet.families.vae.model import VAEConfig, VaeSampling
from quintet.families.vae.priors import MixtureConfig
from quintet.nets.conv import ConvConfig
from quintet.nets.mlp import MLPConfig, ResidualMLPConfig
from quintet.recipes import ladder_vae

SMALL = 256
"""Values an example, up to which the networks are those measured on 8x8 images."""


def stages(spec: DataSpec, budget: Budget) -> tuple[Stage, ...]:
    """One stage: the ladder for larger images, else what `flat` gives."""
    if spec.kind == "image" and spec.dims > SMALL:
        return ladder_vae.stages(spec, budget)
    return (flat(spec),)


def flat(spec: DataSpec) -> Stage:
    """With one latent vector, for any data: levels as they are, or standardised columns."""
    if spec.levels is None:
        return _columns(spec)
    return _image(spec) if spec.kind == "image" and spec.dims > SMALL else _levels(spec)


def unfit(spec: DataSpec) -> str | None:
    """Why this recipe cannot model such data, in the user's language."""
    return say("vae.tokens") if spec.kind == "tokens" else None


def _levels(spec: DataSpec) -> Stage:
    large = spec.dims > SMALL
    width = 320 if large else 160
    network = ResidualMLPConfig(width=width, depth=1, hidden=2 * width, context=64, dropout=0.5)
    return Stage(
        name="model",
        codec=LevelCodecConfig(),
        model=VAEConfig(
            encoder=network,
            decoder=network,
            width=32 if large else 12,
            prior=MixtureConfig(components=50),
            likelihood=DiscretisedLogisticConfig(),
            beta=2.0,  # on a thousand digits 2 gives a better bound on test images than 1: less is learned by heart
            free_bits=2.0,
            kl_warmup=0.5,
        ),
        train=TrainConfig(
            batch=128,
            optimizers={"model": OptimizerConfig(lr=4e-3, weight_decay=0.2)},
        ),
    )


def _image(spec: DataSpec) -> Stage:
    network = ConvConfig(channels=(32, 64, 96), smallest=4, patch=ladder_vae.patch(spec))
    return Stage(
        name="model",
        codec=LevelCodecConfig(flat=False),
        model=VAEConfig(
            encoder=network,
            decoder=network,
            width=48,
            prior=MixtureConfig(components=100),
            likelihood=DiscretisedLogisticConfig(),
            kl_warmup=0.2,
            bound_samples=16,
            sampling=VaeSampling(noise=0.0),
        ),
        train=TrainConfig(batch=64, optimizers={"model": OptimizerConfig(lr=2e-3)}),
    )


def _columns(spec: DataSpec) -> Stage:
    network = MLPConfig(width=128, depth=3)
    return Stage(
        name="model",
        codec=StandardizeCodecConfig(),
        model=VAEConfig(
            encoder=network,
            decoder=network,
            width=min(16, spec.dims),
            prior=MixtureConfig(components=64, speed=5.0),
            likelihood=GaussianConfig(),
            kl_warmup=0.3,
        ),
        train=TrainConfig(batch=256, optimizers={"model": OptimizerConfig(lr=2e-3)}),
    )


RECIPE = Recipe(
    name="vae",
    family="vae",
    stages=stages,
    summary={
        "en": "encoder and decoder with a learned prior: one step to draw, a latent space, a bound on the likelihood",
        "zh": "编码器与解码器，先验可学习：一步采样，有潜空间，可给出似然下界",
    },
    unfit=unfit,
)
