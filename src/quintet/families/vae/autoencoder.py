"""Autoencoder: the first stage of latent models; images to a small grid of latents and back, with little loss.

What it is: an encoder, a bottleneck and a decoder trained for reconstruction: absolute errors of pixels and of their
differences to neighbours, which keep edges sharp without a pretrained network, plus what the bottleneck charges.
What it is not: a good generator by itself. The bottleneck's own draws are no model of the latents; that is what
families/latent puts on top. There is no likelihood of the data.

Sources: Rombach et al. 2022, section 3.1, arXiv:2112.10752; Mathieu et al. 2016, eq. 6 (differences of neighbours),
arXiv:1511.05440. Departure: no perceptual network and no discriminator, which need weights or seconds from elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from quintet.core.config import STRICT, Config
from quintet.core.model import HasLatent, Loss, Model, Player, Turn
from quintet.core.numerics import full
from quintet.core.recipe import ModelConfig, NetworkConfig
from quintet.core.rng import Rng
from quintet.core.spec import Cond, DataSpec
from quintet.families.vae.quantize import Bottleneck, BottleneckConfig, GaussianBottleneckConfig


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AutoencoderSampling(Config):
    """There is nothing to choose: latents are drawn from what the bottleneck pulls them towards."""

    kind = "autoencoder-sampling"


class Autoencoder(Model[AutoencoderSampling], HasLatent):
    """See the module. It has no conditions; its latents keep those of the data, for a model on top.

    Args:
        spec: of images with values in about [-1, 1].
        encoder: (x (B, C, H, W), {}) -> (B, bottleneck.outputs, *place).
        decoder: (z (B, bottleneck.channels, *place), {}) -> (B, C, H, W).
        bottleneck: see there.
        place: rows and columns of the latents.
        cost: factor on the bottleneck's nats a value of x.
        edges: factor on the errors of differences to neighbours.
    """

    def __init__(
        self,
        spec: DataSpec,
        encoder: nn.Module,
        decoder: nn.Module,
        bottleneck: Bottleneck,
        *,
        place: tuple[int, int],
        cost: float,
        edges: float,
    ) -> None:
        super().__init__(DataSpec(spec.kind, spec.shape, spec.levels), AutoencoderSampling())
        self.encoder, self.decoder, self.bottleneck = encoder, decoder, bottleneck
        self.place, self.cost, self.edges = place, cost, edges
        found = bottleneck.latent(place)
        self.latent = DataSpec(found.kind, found.shape, found.levels, spec.conditions)

    def players(self) -> Sequence[Player]:
        return (Player("model", self, self.loss),)

    def loss(self, turn: Turn) -> Loss:
        """Mean absolute errors of pixels and of differences, and the bottleneck's charge, per value."""
        x = turn.batch.x
        squeezed = self.bottleneck.squeeze(self.encoder(x, {}), turn.rng("squeeze"))
        y = full(self.decoder(squeezed.z, {}))
        error = (y - x).abs().mean()
        edges = sum(
            ((y - x).diff(dim=axis).abs().mean() for axis in (2, 3) if x.shape[axis] > 1), start=x.new_zeros(())
        )
        cost = squeezed.cost.mean() / self.spec.dims
        total = error + self.edges * edges + self.cost * cost
        parts = {"l1": error.detach(), "mse": (y - x).square().mean().detach(), "kl_nats_per_value": cost.detach()}
        return Loss(total, parts)

    def sample(
        self, n: int, cond: Cond | None = None, *, rng: Rng, sampling: AutoencoderSampling | None = None
    ) -> Tensor:
        if cond:
            raise ValueError(f"unknown conditions {sorted(cond)}; this model has none")
        z = self.bottleneck.draw(n, self.place, rng).to(next(self.parameters()))
        return full(self.decoder(z, {}))

    def sequential_steps(self, sampling: AutoencoderSampling | None = None) -> int:
        return 1

    def encode(self, x: Tensor, cond: Cond | None = None, *, rng: Rng | None = None) -> Tensor:
        return self.bottleneck.store(self.bottleneck.squeeze(self.encoder(x, {}), rng).z)

    def decode(self, z: Tensor, cond: Cond | None = None) -> Tensor:
        return full(self.decoder(self.bottleneck.recall(z, self.place), {}))


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AutoencoderConfig(ModelConfig):
    """See Autoencoder.

    Attributes:
        factor: pixels a side for one place of the latents, rounded up.
    """

    kind = "autoencoder"
    encoder: NetworkConfig
    decoder: NetworkConfig
    bottleneck: BottleneckConfig = GaussianBottleneckConfig()
    factor: int = Field(default=4, ge=1)
    cost: float = Field(default=1e-4, ge=0)
    edges: float = Field(default=1.0, ge=0)

    def build(self, spec: DataSpec) -> Autoencoder:
        """Raises: ValueError for data that are not real-valued images."""
        if spec.kind != "image" or spec.levels is not None:
            raise ValueError("a first stage encodes images of real values; the recipe's codec turns levels into them")
        bottleneck = self.bottleneck.build()
        place = (-(-spec.shape[1] // self.factor), -(-spec.shape[2] // self.factor))
        return Autoencoder(
            spec,
            self.encoder.build(spec.shape, (bottleneck.outputs, *place), {}),
            self.decoder.build((bottleneck.channels, *place), spec.shape, {}),
            bottleneck,
            place=place,
            cost=self.cost,
            edges=self.edges,
        )
