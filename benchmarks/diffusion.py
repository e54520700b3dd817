"""Diffusion: training steps of a U-Net and a DiT, sampling, and a sampler's own cost a step.

    python benchmarks/diffusion.py --out benchmarks/results/DATE-speed.jsonl

Peers: diffusers (UNet2DModel, DiTTransformer2DModel and its schedulers) and flow_matching's solver. "quintet" trains
diffusers' very network in the product's loop, which shows the loop; "quintet/own" trains the product's network of the
same widths and depth; "+bf16" and "+compile" are levers that a plan chooses by itself where they pay.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from product import build, training
from pydantic.dataclasses import dataclass
from race import Contender, Races, flops_of, parameters
from torch import Tensor, nn

from quintet.core.config import STRICT
from quintet.core.recipe import NetworkConfig
from quintet.core.rng import Rng
from quintet.core.spec import DataSpec
from quintet.families.diffusion.model import DiffusionConfig
from quintet.families.diffusion.paths import PATHS
from quintet.families.diffusion.sampling import DiffusionSampling
from quintet.nets.dit import DiTConfig
from quintet.nets.unet import UNetConfig
from quintet.samplers.multistep import ddim, dpmpp_2m, follow
from quintet.samplers.ode import solve

UNETS = {"unet-32x32x3": ((3, 32, 32), (64, 128, 128), 16), "unet-8x8x1": ((1, 8, 8), (32, 64), 128)}
STEPS = 50


# The peer


def diffusers_unet(shape: tuple[int, ...], widths: tuple[int, ...]) -> Any:
    from diffusers import UNet2DModel

    deep = len(widths) - 1
    return UNet2DModel(
        sample_size=shape[1],
        in_channels=shape[0],
        out_channels=shape[0],
        layers_per_block=2,
        block_out_channels=widths,
        norm_num_groups=8,
        down_block_types=("DownBlock2D",) * deep + ("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * deep,
    )


def diffusers_dit() -> Any:
    from diffusers import DiTTransformer2DModel

    return DiTTransformer2DModel(
        num_attention_heads=6, attention_head_dim=64, in_channels=3, out_channels=3, num_layers=6, sample_size=32,
        patch_size=2, num_embeds_ada_norm=1000,
    )  # fmt: skip


def train_peer(model: nn.Module, call: Callable[..., Tensor], shape: tuple[int, ...], batch: int) -> Contender:
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(1000)
    model = model.to(DEVICE).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    x = torch.randn(batch, *shape, device=DEVICE)

    def step() -> None:
        noise = torch.randn_like(x)
        t = torch.randint(0, 1000, (batch,), device=DEVICE)
        loss = F.mse_loss(call(model, scheduler.add_noise(x, noise, t), t), noise)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return Contender(step, batch, flops_of(step), parameters(model))


# Ours


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PeerNetwork(NetworkConfig):
    """A network of the peer behind our contract."""

    kind = "peer-network"
    which: str

    def build(self, inputs: Any, outputs: Any, conditions: Any, *, time: bool = False) -> nn.Module:
        net = diffusers_dit() if self.which == "dit" else diffusers_unet(*UNETS[self.which][:2])

        class Wrapped(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.net = net

            def forward(self, x: Tensor, cond: Any, t: Tensor) -> Tensor:
                if "label" in cond:
                    return self.net(x, timestep=(999 * t).long(), class_labels=cond["label"], return_dict=False)[0]  # type: ignore[no-any-return]
                return self.net(x, 999 * t, return_dict=False)[0]  # type: ignore[no-any-return]

        return Wrapped()


def train_ours(
    network: NetworkConfig, shape: tuple[int, ...], batch: int, *, classes: int = 0, channels_last: bool = True,
    **choices: Any,
) -> Contender:  # fmt: skip
    conditions = {"label": classes} if classes else {}
    config = DiffusionConfig(network=network, target="eps", class_dropout=0.0)
    model = build(config, DataSpec("image", shape, conditions=conditions), DEVICE)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    cond = {"label": torch.randint(0, classes, (batch,), device=DEVICE)} if classes else {}
    return training(model, torch.randn(batch, *shape, device=DEVICE), cond, **choices)


def own_unet(widths: tuple[int, ...]) -> UNetConfig:
    return UNetConfig(channels=widths, blocks=3, attention=8, context=4 * widths[0])


OWN_DIT = DiTConfig(patch=2, width=384, depth=6, heads=6)


# Sampling


def sample_peer(name: str, kind: str, steps: int, batch: int) -> Contender:
    import diffusers

    shape, widths, _ = UNETS[name]
    model = diffusers_unet(shape, widths).to(DEVICE).eval()
    scheduler = getattr(diffusers, kind)()
    x = torch.randn(batch, *shape, device=DEVICE)

    def call() -> Tensor:
        with torch.inference_mode():
            return run(scheduler, lambda s, t: model(s, t.expand(batch), return_dict=False)[0], x, steps)

    return Contender(call, batch, params=parameters(model))


def sample_ours(name: str, sampling: DiffusionSampling, batch: int, network: NetworkConfig) -> Contender:
    shape, _, _ = UNETS[name]
    model = build(DiffusionConfig(network=network, target="eps"), DataSpec("image", shape), DEVICE)
    model = model.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    rng = Rng(0, "sample", device=DEVICE)

    def call() -> Tensor:
        with torch.inference_mode():
            drawn: Tensor = model.sample(batch, rng=rng, sampling=sampling)
            return drawn

    return Contender(call, batch, params=parameters(model))


def run(scheduler: Any, call: Callable[[Tensor, Tensor], Tensor], x: Tensor, steps: int) -> Tensor:
    scheduler.set_timesteps(steps, device=x.device)
    for t in scheduler.timesteps:
        given = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(call(given, t), t, x, return_dict=False)[0]
    return x


def overhead_peer(kind: str, shape: tuple[int, ...], **options: Any) -> Contender:
    import diffusers

    scheduler = getattr(diffusers, kind)(**options)
    x, output = torch.randn(shape, device=DEVICE), torch.randn(shape, device=DEVICE)

    def call() -> Tensor:
        with torch.inference_mode():
            return run(scheduler, lambda s, t: output, x, STEPS)

    return Contender(call, STEPS)


def overhead_flow_matching(shape: tuple[int, ...]) -> Contender:
    from flow_matching.solver import ODESolver
    from flow_matching.utils import ModelWrapper

    x, output = torch.randn(shape, device=DEVICE), torch.randn(shape, device=DEVICE)

    class Field(ModelWrapper):  # type: ignore[misc]
        def forward(self, x: Tensor, t: Tensor, **extras: Any) -> Tensor:
            return output

    solver = ODESolver(velocity_model=Field(nn.Identity()))
    return Contender(lambda: solver.sample(x_init=x, method="euler", step_size=1 / STEPS), STEPS)


def overhead_ours(solver: str, shape: tuple[int, ...]) -> Contender:
    """The table is made anew at every call, as the peers' set_timesteps is; the network is a constant."""
    x, output = torch.randn(shape, device=DEVICE), torch.randn(shape, device=DEVICE)
    path = PATHS["vp"]
    sampling = DiffusionSampling(solver=solver, steps=STEPS)  # type: ignore[arg-type]

    def table() -> Tensor:
        levels = sampling.levels("eps", path)
        return follow(lambda s, i: output, x, ddim(levels) if solver == "ddim" else dpmpp_2m(levels))

    def euler() -> Tensor:
        return solve(lambda s, t: output, x, sampling.times(path, 1.0, 0.0), "euler")

    chosen = euler if solver == "euler" else table

    def call() -> Tensor:
        with torch.inference_mode():
            return chosen()

    return Contender(call, STEPS)


def main() -> None:
    global DEVICE
    races = Races(__doc__.splitlines()[0])
    DEVICE = races.options.device
    for name, (shape, widths, batch) in UNETS.items():
        peer, own = PeerNetwork(which=name), own_unet(widths)
        races.race(f"train/{name}/b{batch}", "img/s", {
            "diffusers": lambda: train_peer(
                diffusers_unet(shape, widths), lambda m, x, t: m(x, t, return_dict=False)[0], shape, batch),
            "quintet": lambda: train_ours(peer, shape, batch),
            "quintet+bf16": lambda: train_ours(peer, shape, batch, precision="bfloat16"),
            "quintet/own": lambda: train_ours(own, shape, batch),
            "quintet/own+bf16": lambda: train_ours(own, shape, batch, precision="bfloat16"),
            "quintet+bf16+lanes": lambda: train_ours(peer, shape, batch, precision="bfloat16", lanes=True),
            "quintet/own+bf16+lanes": lambda: train_ours(own, shape, batch, precision="bfloat16", lanes=True),
        }, reference="diffusers")  # fmt: skip
    peer = PeerNetwork(which="dit")
    races.race("train/dit-6x384-32x32x3-p2/b8", "img/s", {
        "diffusers": lambda: train_peer(
            diffusers_dit(), lambda m, x, t: m(x, timestep=t, class_labels=t % 10, return_dict=False)[0],
            (3, 32, 32), 8),
        "quintet": lambda: train_ours(peer, (3, 32, 32), 8, classes=10),
        "quintet+bf16": lambda: train_ours(peer, (3, 32, 32), 8, classes=10, precision="bfloat16"),
        "quintet+bf16+lanes": lambda: train_ours(peer, (3, 32, 32), 8, classes=10, precision="bfloat16", lanes=True),
        "quintet/own": lambda: train_ours(OWN_DIT, (3, 32, 32), 8, classes=10),
        "quintet/own+bf16": lambda: train_ours(OWN_DIT, (3, 32, 32), 8, classes=10, precision="bfloat16"),
        "quintet/own+bf16+compile": lambda: train_ours(
            OWN_DIT, (3, 32, 32), 8, classes=10, precision="bfloat16", compile=True),
    }, reference="diffusers")  # fmt: skip
    for name, batch in (("unet-8x8x1", 64), ("unet-32x32x3", 4)):
        peer, own = PeerNetwork(which=name), own_unet(UNETS[name][1])
        for kind, steps, sampling in (
            ("DDIMScheduler", 50, DiffusionSampling(solver="ddim", steps=50)),
            ("DPMSolverMultistepScheduler", 20, DiffusionSampling(solver="dpmpp-2m", steps=20)),
            ("FlowMatchEulerDiscreteScheduler", 20, DiffusionSampling(solver="euler", steps=20)),
        ):
            races.race(f"sample/{name}/{sampling.solver}-{steps}/b{batch}", "img/s", {
                "diffusers": lambda: sample_peer(name, kind, steps, batch),
                "quintet": lambda: sample_ours(name, sampling, batch, peer),
                "quintet/own": lambda: sample_ours(name, sampling, batch, own),
            }, reference="diffusers", once=True)  # fmt: skip
    for batch in (1, 64):
        state = (batch, 3, 32, 32)
        races.race(f"step-overhead/{'x'.join(map(str, state))}/ddim", "steps/s", {
            "diffusers": lambda: overhead_peer("DDIMScheduler", state),
            "diffusers/noclip": lambda: overhead_peer("DDIMScheduler", state, clip_sample=False),
            "quintet": lambda: overhead_ours("ddim", state),
        }, reference="diffusers")  # fmt: skip
        races.race(f"step-overhead/{'x'.join(map(str, state))}/dpmpp-2m", "steps/s", {
            "diffusers": lambda: overhead_peer("DPMSolverMultistepScheduler", state),
            "quintet": lambda: overhead_ours("dpmpp-2m", state),
        }, reference="diffusers")  # fmt: skip
        races.race(f"step-overhead/{'x'.join(map(str, state))}/euler", "steps/s", {
            "diffusers": lambda: overhead_peer("FlowMatchEulerDiscreteScheduler", state),
            "flow_matching": lambda: overhead_flow_matching(state),
            "quintet": lambda: overhead_ours("euler", state),
        }, reference="diffusers")  # fmt: skip


DEVICE = "cpu"

if __name__ == "__main__":
    main()
