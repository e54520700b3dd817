"""dcgan: strided convolutions with a classic adversarial loss, for images; made to compare losses.

    quintet train dcgan data.npz --budget 3m
    quintet train dcgan data.npz --budget 3m --set 'model.loss={"kind": "minimax"}'
    quintet train dcgan data.npz --budget 3m --set 'model.loss={"kind": "wasserstein-gp"}' --set model.critic_steps=5

The loss objects are "non-saturating" (the default, which Radford et al. used), "minimax", "hinge", "least-squares",
"wasserstein-gp" and "relativistic"; gradient penalties are off (`model.gamma`), as they were not known then. The
networks are those of `gan` at image size.

Radford et al. 2016, arXiv:1511.06434: Adam with beta1 0.5, latent of 100 numbers. Departures: no batch normalisation
(it couples the rows of a batch, so that results would depend on micro-batches and processes; the paper's networks do
not start without it, ours do by their initialisation); bilinear growth instead of transposed convolutions; normal
instead of uniform z; labels; a rate of 5e-4 that falls to 0.

Measured figures: docs/families/gan.md.
"""

from __future__ import annotations

from dataclasses import replace

from quintet.core.budget import Budget
from quintet.core.messages import say
from quintet.core.recipe import Recipe, Stage
from quintet.core.spec import DataSpec
from quintet.families.gan.losses import NonSaturating
from quintet.families.gan.model import GANConfig
from quintet.recipes import gan


def stages(spec: DataSpec, budget: Budget) -> tuple[Stage, ...]:
    """One stage: the networks of `gan` for images, with the non-saturating loss of 2014 and no gradient penalty."""
    stage = gan.images(spec)
    assert isinstance(stage.model, GANConfig)
    model = replace(stage.model, loss=NonSaturating(), gamma=0.0, gamma_end=0.0, classifier=0.0, latent=100)
    optimizers = {
        name: replace(each, lr=5e-4, betas=(0.5, 0.999), beta2_end=None)
        for name, each in stage.train.optimizers.items()
    }
    return (replace(stage, model=model, train=replace(stage.train, optimizers=optimizers)),)


def unfit(spec: DataSpec) -> str | None:
    """Why this recipe cannot model such data, in the user's language."""
    return say("gan.images") if spec.kind != "image" else None


RECIPE = Recipe(
    name="dcgan",
    family="gan",
    stages=stages,
    summary={
        "en": "classic convolutional GAN with a loss to choose: 2014, non-saturating, hinge, Wasserstein-GP",
        "zh": "经典卷积 GAN，损失可选：2014 年原始损失、非饱和、hinge、Wasserstein-GP",
    },
    unfit=unfit,
)
