"""dit: flow matching by a diffusion transformer, for images.

    quintet train dit fashion_mnist --budget 3m

What flow-matching does, with a transformer over patches for the network and Muon for its matrices. On a CPU it sees
fewer images a second than the U-Net of flow-matching; its place is a GPU, of which it uses more. An image is cut into
at most 64 patches, or 256 where the budget pays for the large network.

Sources: Peebles & Xie 2023, arXiv:2212.09748; Jordan et al. 2024, "Muon: an optimizer for hidden layers". Measured
figures: docs/families/diffusion.md.
"""

from __future__ import annotations

from dataclasses import replace

from quintet.core.budget import Budget
from quintet.core.messages import say
from quintet.core.recipe import OptimizerConfig, Recipe, Stage
from quintet.core.spec import DataSpec
from quintet.nets.dit import DiTConfig
from quintet.recipes import flow_matching


def stages(spec: DataSpec, budget: Budget) -> tuple[Stage, ...]:
    """flow-matching's stage with another network and optimiser."""
    (stage,) = flow_matching.stages(spec, budget)
    if flow_matching.training_flop(budget) >= flow_matching.LARGE:
        network = DiTConfig(
            patch=max(2, flow_matching.patch_for(spec, 256)), width=384, depth=12, heads=6, hidden=1536, context=384
        )
    elif spec.dims > 256:
        network = DiTConfig(patch=max(2, flow_matching.patch_for(spec, 64)))
    else:
        network = DiTConfig(patch=2, width=64, depth=4, hidden=256, context=64)
    model = flow_matching.matching(spec, network, network.patch)
    optimizer = OptimizerConfig(method="muon", lr=2e-3, matrix_lr=0.02)
    return (replace(stage, model=model, train=replace(stage.train, optimizers={"model": optimizer})),)


def unfit(spec: DataSpec) -> str | None:
    """Why this recipe cannot model such data, in the user's language."""
    return None if spec.kind == "image" and spec.levels is not None else say("diffusion.dit_images")


RECIPE = Recipe(
    name="dit",
    family="diffusion",
    stages=stages,
    summary={
        "en": "flow matching by a transformer over image patches (DiT); for images, and at its best on a GPU",
        "zh": "用图像块上的 Transformer（DiT）做流匹配；适用于图像，在 GPU 上更能发挥所长",
    },
    unfit=unfit,
)
