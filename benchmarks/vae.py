"""Variational autoencoders on 28x28 against pythae: a step, an epoch, sampling; a KL autoencoder against diffusers.

    python benchmarks/vae.py --out benchmarks/results/DATE-speed.jsonl

"quintet" has the same layers as the peer (512 hidden units, 16 latents; the peer's likelihood is Bernoulli, ours a
Gaussian, an element-wise pass each). The epoch is what a user gets: pythae's trainer against the product's loop with
its batches, checks, optimiser and two averages.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from product import build, training
from race import Contender, Races, flops_of, parameters
from torch import Tensor, nn

from quintet.core.plan import Plan
from quintet.core.recipe import OptimizerConfig, TrainConfig
from quintet.core.rng import Rng
from quintet.core.spec import DataSpec
from quintet.data.batches import Batches
from quintet.data.codecs import PixelCodecConfig
from quintet.data.dataset import Split
from quintet.families.vae.likelihoods import GaussianConfig
from quintet.families.vae.model import VAEConfig
from quintet.families.vae.priors import StandardNormalConfig
from quintet.nets.conv import ConvConfig
from quintet.nets.mlp import MLPConfig
from quintet.train.loop import TrainState, steps

LATENT, EPOCH = 16, 40
SPEC = DataSpec("image", (1, 28, 28))
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


def train_autoencoder_kl(batch: int) -> Contender:
    from diffusers import AutoencoderKL

    model = AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, sample_size=32, norm_num_groups=8,
        block_out_channels=(32, 64, 64), layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
    )  # fmt: skip

    def loss_of(m: Any, x: Tensor) -> Tensor:
        posterior = m.encode(x).latent_dist
        return F.mse_loss(m.decode(posterior.sample()).sample, x) + 1e-6 * posterior.kl().mean()

    return train_peer(model, loss_of, torch.randn(batch, 3, 32, 32, device=DEVICE))


def train_ours(config: VAEConfig, batch: int, spec: DataSpec = SPEC, **choices: Any) -> Contender:
    return training(build(config, spec, DEVICE), torch.rand(batch, *spec.shape, device=DEVICE), **choices)


def conv_vae() -> VAEConfig:
    """About the peer's floating-point operations and parameters."""
    network = ConvConfig(channels=(32, 64, 128), blocks=1)
    return VAEConfig(
        encoder=network, decoder=network, width=LATENT, prior=StandardNormalConfig(), likelihood=GaussianConfig()
    )


def epoch_ours(batch: int) -> Contender:
    raw = DataSpec("image", (1, 28, 28), 256)
    split = Split(np.random.default_rng(0).integers(0, 256, (batch * EPOCH, 1, 28, 28), dtype=np.uint8))
    codec = PixelCodecConfig().fit(raw, split.tensor())
    model = build(MLP, codec.spec, DEVICE)
    config = TrainConfig(batch=batch, optimizers={"model": OptimizerConfig(lr=1e-3)}, decay=0.0)
    plan = Plan.start(10**9, 0.0, flops_per_step=0.0, threads=torch.get_num_threads())
    run = steps(model, Batches(split, codec, batch, 0, device=DEVICE), TrainState.start(model, config, plan), config, 0)

    def call() -> None:
        for _ in range(EPOCH):
            next(run)

    return Contender(call, batch * EPOCH, params=parameters(model))


def sample_ours(count: int) -> Contender:
    model = build(MLP, SPEC, DEVICE).eval()

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
    races.race("train/vae-conv-28x28/b64", "img/s", {
        "pythae": lambda: train_pythae("resnet", 64), "quintet/own": lambda: train_ours(conv_vae(), 64),
        "quintet/own+bf16": lambda: train_ours(conv_vae(), 64, precision="bfloat16"),
    }, reference="pythae")  # fmt: skip
    races.race("epoch/vae-mlp-28x28/40x128", "img/s", {
        "pythae": lambda: epoch_pythae(128), "quintet": lambda: epoch_ours(128),
    }, reference="pythae", once=True)  # fmt: skip
    races.race("sample/vae-mlp-28x28/1024", "img/s", {
        "pythae": lambda: sample_pythae(1024), "quintet": lambda: sample_ours(1024),
    }, reference="pythae")  # fmt: skip


DEVICE = "cpu"

if __name__ == "__main__":
    main()
