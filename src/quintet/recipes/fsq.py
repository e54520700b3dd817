"""fsq: a first stage whose latents are whole-number codes (finite scalar quantisation), for images.

    quintet train fsq fashion_mnist --budget 3m

Each place of a small grid becomes one of a few hundred codes, without a codebook that could collapse. It is made to
reconstruct; its own draws are codes at random, and look like it. A model of the codes goes on top (families/latent).

Mentzer et al. 2024, arXiv:2309.15505. See docs/families/latent.md.
"""

from __future__ import annotations

from quintet.core.budget import Budget
from quintet.core.messages import say
from quintet.core.recipe import Recipe, Stage
from quintet.core.spec import DataSpec
from quintet.families.vae.quantize import FiniteScalarsConfig
from quintet.recipes.kl_ae import first_stage


def stages(spec: DataSpec, budget: Budget) -> tuple[Stage, ...]:
    """One stage: 1,000 codes a place for colour, 240 for grey images."""
    return (first_stage(spec, FiniteScalarsConfig(levels=(8, 5, 5, 5) if spec.shape[0] > 1 else (8, 6, 5))),)


def unfit(spec: DataSpec) -> str | None:
    """Why this recipe cannot model such data, in the user's language."""
    return say("vae.images", recipe="fsq") if spec.kind != "image" or spec.levels is None else None


RECIPE = Recipe(
    name="fsq",
    family="vae",
    stages=stages,
    summary={
        "en": "first stage with whole-number codes: images to a small grid of tokens and back",
        "zh": "离散编码的第一阶段：把图像压缩成小网格的词元，再还原",
    },
    unfit=unfit,
)
