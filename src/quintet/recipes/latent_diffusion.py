"""latent-diffusion: a first stage, then flow matching in its latents, in one budget; Stable Diffusion's shape.

    quintet train latent-diffusion fashion_mnist --budget 3m

The first stage takes a third of the budget. The second one computes all latents once and then works on a sixteenth of
the places, so that it sees many more images; no sample can be better than the first stage's reconstructions, whose
distance to real images (the reconstruction floor) is reported beside it.

Rombach et al. 2022, arXiv:2112.10752. Departures: flow matching instead of 1,000 discrete steps; no perceptual or
adversarial loss in the first stage. See docs/families/latent.md.
"""

from __future__ import annotations

from dataclasses import replace

from quintet.core.budget import Budget
from quintet.core.messages import say
from quintet.core.recipe import OptimizerConfig, Recipe, Stage, TrainConfig
from quintet.core.spec import DataSpec
from quintet.data.codecs import PixelCodecConfig
from quintet.families.diffusion.model import DiffusionConfig
from quintet.families.diffusion.sampling import DiffusionSampling
from quintet.families.latent import LatentConfig
from quintet.nets.unet import UNetConfig
from quintet.recipes import kl_ae

FIRST_SHARE = 0.35


def stages(spec: DataSpec, budget: Budget) -> tuple[Stage, ...]:
    """The autoencoder, then the diffusion model of its latents."""
    (first,) = kl_ae.stages(spec, budget)
    first = replace(first, share=FIRST_SHARE)
    network = UNetConfig(channels=(64, 128), blocks=2, heads=2)
    second = Stage(
        name="diffusion",
        codec=PixelCodecConfig(),
        model=LatentConfig(
            first=first.model,
            inner=DiffusionConfig(network=network, sampling=DiffusionSampling(solver="heun", steps=12)),
        ),
        train=TrainConfig(batch=128, optimizers={"model": OptimizerConfig(lr=2e-3)}),
        share=1 - FIRST_SHARE,
        needs={"first": first.name},
    )
    return first, second


def unfit(spec: DataSpec) -> str | None:
    """Why this recipe cannot model such data, in the user's language."""
    return say("vae.images", recipe="latent-diffusion") if spec.kind != "image" or spec.levels is None else None


RECIPE = Recipe(
    name="latent-diffusion",
    family="diffusion",
    stages=stages,
    summary={
        "en": "an autoencoder, then diffusion in its latents: cheap steps, and a floor set by the reconstruction",
        "zh": "先训练自编码器，再在其潜空间中做扩散：每步便宜，质量上限取决于重建",
    },
    unfit=unfit,
)
