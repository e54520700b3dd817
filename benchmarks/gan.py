"""A GAN's training step: one discriminator and one generator update of a DCGAN at 32x32, against torchgan.

    python benchmarks/gan.py --out benchmarks/results/DATE-speed.jsonl

"quintet" trains torchgan's very networks in the product's loop with the same non-saturating loss: one fake batch serves
both players, and neither player's step differentiates the other's weights. torchgan draws and generates a second batch:
the factor is one of algorithm, not of kernels. "quintet/own" has the product's networks of about the same operations.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from product import build, training
from pydantic.dataclasses import dataclass
from race import Contender, Races, flops_of, parameters, stand_in
from torch import Tensor, nn

from quintet.core.config import STRICT
from quintet.core.recipe import NetworkConfig, OptimizerConfig
from quintet.core.spec import DataSpec
from quintet.families.gan.losses import NonSaturating
from quintet.families.gan.model import GANConfig
from quintet.nets.strided import StridedConfig

BATCH, LATENT, SHAPE = 64, 100, (3, 32, 32)
OPTIMIZER = OptimizerConfig(lr=2e-4, betas=(0.5, 0.999), clip=None)


def peer() -> Any:
    """torchgan's losses and models."""
    stand_in(*(f"torchvision{part}" for part in ("", ".utils", ".models", ".transforms", ".datasets")))
    import torchgan.losses as losses
    import torchgan.models as models

    return types.SimpleNamespace(losses=losses, models=models)


def networks() -> tuple[nn.Module, nn.Module]:
    models = peer().models
    return (
        models.DCGANGenerator(encoding_dims=LATENT, out_size=32, out_channels=3, step_channels=32).to(DEVICE),
        models.DCGANDiscriminator(in_size=32, in_channels=3, step_channels=32).to(DEVICE),
    )


def train_peer() -> Contender:
    losses = peer().losses
    g, d = networks()
    g_opt = torch.optim.Adam(g.parameters(), lr=2e-4, betas=(0.5, 0.999))
    d_opt = torch.optim.Adam(d.parameters(), lr=2e-4, betas=(0.5, 0.999))
    real, device = torch.randn(BATCH, *SHAPE, device=DEVICE), torch.device(DEVICE)
    d_loss, g_loss = losses.MinimaxDiscriminatorLoss(), losses.MinimaxGeneratorLoss()

    def step() -> None:
        d_loss.train_ops(g, d, d_opt, real, device)
        g_loss.train_ops(g, d, g_opt, device, BATCH)

    return Contender(step, BATCH, flops_of(step), parameters(g) + parameters(d))


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PeerNetwork(NetworkConfig):
    """A network of the peer behind our contract."""

    kind = "peer-network"
    which: int

    def build(self, inputs: Any, outputs: Any, conditions: Any, *, time: bool = False) -> nn.Module:
        net = networks()[self.which]

        class Wrapped(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.net = net

            def forward(self, x: Tensor, cond: Any, t: Tensor | None = None) -> Tensor:
                made: Tensor = self.net(x)
                return made.reshape(len(x), *outputs)

        return Wrapped()


def train_ours(generator: NetworkConfig, discriminator: NetworkConfig, **choices: Any) -> Contender:
    config = GANConfig(
        generator=generator, discriminator=discriminator, latent=LATENT, features=1, loss=NonSaturating(), gamma=0.0,
        gamma_end=0.0,
    )  # fmt: skip
    model = build(config, DataSpec("image", SHAPE), DEVICE).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return training(model, torch.randn(BATCH, *SHAPE, device=DEVICE), optimizer=OPTIMIZER, **choices)


def main() -> None:
    global DEVICE
    races = Races(__doc__.splitlines()[0])
    DEVICE = races.options.device
    theirs = (PeerNetwork(which=0), PeerNetwork(which=1))
    own = StridedConfig(channels=(32, 64, 128))
    races.race("train/dcgan-32x32x3/b64", "img/s", {
        "torchgan": train_peer, "quintet": lambda: train_ours(*theirs),
        "quintet+bf16": lambda: train_ours(*theirs, precision="bfloat16"),
        "quintet+bf16+lanes": lambda: train_ours(*theirs, precision="bfloat16", lanes=True),
        "quintet/own": lambda: train_ours(own, own),
        "quintet/own+bf16": lambda: train_ours(own, own, precision="bfloat16"),
        "quintet/own+bf16+lanes": lambda: train_ours(own, own, precision="bfloat16", lanes=True),
    }, reference="torchgan")  # fmt: skip


DEVICE = "cpu"

if __name__ == "__main__":
    main()
