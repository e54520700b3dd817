"""Variational autoencoders on 28x28 against pythae: a step, an epoch, sampling; a KL autoencoder against diffusers.

    python benchmarks/vae.py --out benchmarks/results/DATE-speed.jsonl

"quintet" has the peer's networks, or the same layers (512 hidden units, 16 latents); the peer's likelihood is
Bernoulli, ours a Gaussian, an element-wise pass each. The epoch is what a user gets: pythae's trainer against the
product's loop with its batches, checks, optimiser and two averages; "+1thread" is a lever that a plan chooses by
itself, and the peer's row with it shows what it gives the peer. The peer's sampler shows means, as "quintet" does;
"+noise" draws each pixel from p(x | z), row by row from counters.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from product import build, training
from pydantic.dataclasses import dataclass
from race import Contender, Races, flops_of, parameters
from torch import Tensor, nn

from quintet.core.config import STRICT
from quintet.core.numerics import Precision
from quintet.core.plan import Plan
from quintet.core.recipe import ModelConfig, NetworkConfig, OptimizerConfig, TrainConfig
from quintet.core.rng import Rng
from quintet.core.spec import DataSpec
from quintet.core.threads import using_threads
from quintet.data.batches import Batches
from quintet.data.codecs import PixelCodecConfig
from quintet.data.dataset import Split
from quintet.families.vae.autoencoder import AutoencoderConfig
from quintet.families.vae.likelihoods import GaussianConfig
from quintet.families.vae.model import VAEConfig, VaeSampling
from quintet.families.vae.priors import StandardNormalConfig
from quintet.families.vae.quantize import GaussianBottleneckConfig
from quintet.nets.mlp import MLPConfig
from quintet.nets.rescale import RescaleConfig
from quintet.train.loop import TrainState, steps

LATENT, EPOCH = 16, 40
SPEC, COLOUR = DataSpec("image", (1, 28, 28)), DataSpec("image", (3, 32, 32))
MLP = VAEConfig(
    encoder=MLPConfig(width=512, depth=1),
    decoder=MLPConfig(width=512, depth=1),
    width=LATENT,
    prior=StandardNormalConfig(),
    likelihood=GaussianConfig(),
)


def pythae(kind: str) -> nn.Module:
    from pythae.models import VAE
    from pythae.models import VAEConfig as PeerConfig

    config = PeerConfig(input_dim=(1, 28, 28), latent_dim=LATENT, reconstruction_loss="bce")
    if kind == "mlp":
        return VAE(config)  # type: ignore[no-any-return]
    from pythae.models.nn.benchmarks.mnist import Decoder_ResNet_AE_MNIST, Encoder_ResNet_VAE_MNIST

    return VAE(config, encoder=Encoder_ResNet_VAE_MNIST(config), decoder=Decoder_ResNet_AE_MNIST(config))  # type: ignore[no-any-return]


def train_peer(model: nn.Module, loss_of: Callable[[nn.Module, Tensor], Tensor], x: Tensor) -> Contender:
    model = model.to(DEVICE).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss_of(model, x).backward()
        optimizer.step()

    return Contender(step, len(x), flops_of(step), parameters(model))


def train_pythae(kind: str, batch: int) -> Contender:
    return train_peer(pythae(kind), lambda m, x: m({"data": x}).loss, torch.rand(batch, 1, 28, 28, device=DEVICE))


def epoch_pythae(batch: int) -> Contender:
    from pythae.pipelines.training import TrainingPipeline
    from pythae.trainers import BaseTrainerConfig

    logging.disable(logging.WARNING)
    x, model, folder = torch.rand(batch * EPOCH, 1, 28, 28), pythae("mlp"), tempfile.mkdtemp()

    def call() -> None:
        config = BaseTrainerConfig(
            output_dir=folder, num_epochs=1, learning_rate=1e-3, per_device_train_batch_size=batch
        )
        TrainingPipeline(training_config=config, model=model)(train_data=x)

    return Contender(call, len(x), params=parameters(model))


def sample_pythae(count: int) -> Contender:
    from pythae.samplers import NormalSampler

    sampler = NormalSampler(model=pythae("mlp").eval())

    def call() -> Tensor:
        with torch.no_grad():
            return sampler.sample(num_samples=count, batch_size=count)  # type: ignore[no-any-return]

    return Contender(call, count)


def autoencoder_kl() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, sample_size=32, norm_num_groups=8,
        block_out_channels=(32, 64, 64), layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
    )  # fmt: skip


def train_autoencoder_kl(batch: int) -> Contender:
    def loss_of(m: Any, x: Tensor) -> Tensor:
        posterior = m.encode(x).latent_dist
        divergence: Tensor = posterior.kl().mean()
        return F.mse_loss(m.decode(posterior.sample()).sample, x) + 1e-6 * divergence

    return train_peer(autoencoder_kl(), loss_of, torch.randn(batch, *COLOUR.shape, device=DEVICE))


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PeerNetwork(NetworkConfig):
    """Half of a peer's autoencoder behind our contract."""

    kind = "peer-network"
    which: Literal["resnet-encoder", "resnet-decoder", "kl-encoder", "kl-decoder"]

    def build(self, inputs: Any, outputs: Any, conditions: Any, *, time: bool = False) -> nn.Module:
        whole = pythae("resnet") if self.which.startswith("resnet") else autoencoder_kl()
        return HALVES[self.which](whole)


class ResNetEncoder(nn.Module):
    def __init__(self, whole: Any) -> None:
        super().__init__()
        self.net = whole.encoder

    def forward(self, x: Tensor, cond: Any) -> Tensor:
        out = self.net(x)
        return torch.cat([out["embedding"], 0.5 * out["log_covariance"]], 1)


class ResNetDecoder(nn.Module):
    def __init__(self, whole: Any) -> None:
        super().__init__()
        self.net = whole.decoder

    def forward(self, z: Tensor, cond: Any) -> Tensor:
        return self.net(z)["reconstruction"]  # type: ignore[no-any-return]


class KLEncoder(nn.Module):
    def __init__(self, whole: Any) -> None:
        super().__init__()
        self.net = nn.Sequential(whole.encoder, whole.quant_conv)

    def forward(self, x: Tensor, cond: Any) -> Tensor:
        return self.net(x)  # type: ignore[no-any-return]


class KLDecoder(nn.Module):
    def __init__(self, whole: Any) -> None:
        super().__init__()
        self.net = nn.Sequential(whole.post_quant_conv, whole.decoder)

    def forward(self, z: Tensor, cond: Any) -> Tensor:
        return self.net(z)  # type: ignore[no-any-return]


HALVES = {
    "resnet-encoder": ResNetEncoder, "resnet-decoder": ResNetDecoder, "kl-encoder": KLEncoder, "kl-decoder": KLDecoder,
}  # fmt: skip

RESNET = replace(MLP, encoder=PeerNetwork(which="resnet-encoder"), decoder=PeerNetwork(which="resnet-decoder"))
KL = AutoencoderConfig(
    encoder=PeerNetwork(which="kl-encoder"), decoder=PeerNetwork(which="kl-decoder"),
    bottleneck=GaussianBottleneckConfig(channels=4),
)  # fmt: skip
OWN_KL = replace(KL, encoder=RescaleConfig(), decoder=RescaleConfig())


def train_ours(config: ModelConfig, batch: int, spec: DataSpec = SPEC, **choices: Any) -> Contender:
    model = build(config, spec, DEVICE).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return training(model, torch.rand(batch, *spec.shape, device=DEVICE), **choices)


def epoch_ours(batch: int, precision: Precision = "float32", lanes: int = 1) -> Contender:
    raw = DataSpec("image", (1, 28, 28), 256)
    split = Split(np.random.default_rng(0).integers(0, 256, (batch * EPOCH, 1, 28, 28), dtype=np.uint8))
    codec = PixelCodecConfig().fit(raw, split.tensor())
    model = build(MLP, codec.spec, DEVICE)
    config = TrainConfig(batch=batch, optimizers={"model": OptimizerConfig(lr=1e-3)}, decay=0.0)
    threads = torch.get_num_threads()
    plan = Plan.start(10**9, 0.0, flops_per_step=0.0, threads=threads, precision=precision, lanes=lanes)
    run = steps(model, Batches(split, codec, batch, 0, device=DEVICE), TrainState.start(model, config, plan), config, 0)

    def call() -> None:
        with using_threads(plan.threads_each if lanes > 1 else torch.get_num_threads()):
            for _ in range(EPOCH):
                next(run)

    return Contender(call, batch * EPOCH, params=parameters(model))


def single(contender: Contender) -> Contender:
    """The same call on one thread."""
    threads = torch.get_num_threads()

    def call() -> None:
        torch.set_num_threads(1)
        contender.call()
        torch.set_num_threads(threads)

    return replace(contender, call=call, note="one thread")


def sample_ours(count: int, noise: float) -> Contender:
    model = build(replace(MLP, sampling=VaeSampling(noise=noise)), SPEC, DEVICE).eval()

    def call() -> Tensor:
        with torch.inference_mode():
            return model.sample(count, rng=Rng(0, "sample", device=DEVICE))

    return Contender(call, count)


def main() -> None:
    global DEVICE
    races = Races(__doc__.splitlines()[0])
    DEVICE = races.options.device
    races.race("train/vae-mlp-28x28/b128", "img/s", {
        "pythae": lambda: train_pythae("mlp", 128), "quintet": lambda: train_ours(MLP, 128),
        "quintet+bf16": lambda: train_ours(MLP, 128, precision="bfloat16"),
    }, reference="pythae")  # fmt: skip
    races.race("train/vae-resnet-28x28/b64", "img/s", {
        "pythae": lambda: train_pythae("resnet", 64), "quintet": lambda: train_ours(RESNET, 64),
        "quintet+bf16": lambda: train_ours(RESNET, 64, precision="bfloat16"),
        "quintet+bf16+lanes": lambda: train_ours(RESNET, 64, precision="bfloat16", lanes=True),
    }, reference="pythae")  # fmt: skip
    races.race("train/kl-ae-32x32x3/b8", "img/s", {
        "diffusers": lambda: train_autoencoder_kl(8), "quintet": lambda: train_ours(KL, 8, COLOUR),
        "quintet+bf16": lambda: train_ours(KL, 8, COLOUR, precision="bfloat16"),
        "quintet/own": lambda: train_ours(OWN_KL, 8, COLOUR),
        "quintet/own+bf16": lambda: train_ours(OWN_KL, 8, COLOUR, precision="bfloat16"),
    }, reference="diffusers")  # fmt: skip
    races.race("epoch/vae-mlp-28x28/40x128", "img/s", {
        "pythae": lambda: epoch_pythae(128), "pythae+1thread": lambda: single(epoch_pythae(128)),
        "quintet": lambda: epoch_ours(128), "quintet+1thread": lambda: single(epoch_ours(128)),
        "quintet+bf16": lambda: epoch_ours(128, "bfloat16"),
        "quintet+bf16+1thread": lambda: single(epoch_ours(128, "bfloat16")),
        "quintet+lanes": lambda: epoch_ours(128, lanes=torch.get_num_threads()),
        "quintet+bf16+lanes": lambda: epoch_ours(128, "bfloat16", lanes=torch.get_num_threads()),
    }, reference="pythae", once=True)  # fmt: skip
    races.race("sample/vae-mlp-28x28/1024", "img/s", {
        "pythae": lambda: sample_pythae(1024), "quintet": lambda: sample_ours(1024, 0.0),
        "quintet+noise": lambda: sample_ours(1024, 1.0),
    }, reference="pythae")  # fmt: skip


DEVICE = "cpu"

if __name__ == "__main__":
    main()
