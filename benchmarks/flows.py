"""Affine and spline flows on columns beside zuko, nflows and normflows: training, density and sampling.

    python benchmarks/flows.py --out benchmarks/results/DATE-speed.jsonl

Each contender has the same number of transforms, hidden widths and bins; parameter counts stand beside the speed, as
the conditioners are each library's own (ours: plain perceptrons and MADE). "quintet" runs eagerly and trains in the
product's loop; "+compile" is a lever that a plan chooses by itself where it pays. normflows' MAF is built the other way
round: one pass to sample, as many as columns for a density.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from product import build
from product import training as product_training
from race import Contender, Races, parameters
from torch import Tensor, nn

from quintet.core.recipe import OptimizerConfig
from quintet.core.rng import Rng
from quintet.core.spec import DataSpec
from quintet.families.flow.bijections import Affine
from quintet.families.flow.model import Flow, FlowConfig
from quintet.families.flow.splines import RationalQuadratic
from quintet.families.flow.transforms import AutoregressiveConfig, CouplingConfig
from quintet.nets.made import MADEConfig
from quintet.nets.mlp import MLPConfig

TRANSFORMS, WIDTH, BINS, BOUND, BATCH = 4, 128, 8, 5.0, 4096
KINDS = ("affine-coupling", "maf", "nsf-coupling", "nsf-autoregressive")
REFERENCE = {"affine-coupling": "zuko", "maf": "zuko", "nsf-coupling": "nflows", "nsf-autoregressive": "zuko"}
"""The fastest peer of each kind, where several runs agreed on one."""


@dataclass(frozen=True)
class Peer:
    """One library's flow.

    Attributes:
        module: its parameters.
        log_prob: (B, D) -> (B,).
        sample: n -> (n, D).
    """

    module: nn.Module
    log_prob: Callable[[Tensor], Tensor]
    sample: Callable[[int], Tensor]


def model(kind: str, dims: int) -> Flow:
    bijection = RationalQuadratic(bins=BINS, bound=BOUND) if kind.startswith("nsf") else Affine()
    if kind.endswith("coupling"):
        network = MLPConfig(width=WIDTH, depth=2, zero_output=True, activation="leaky-relu")
        part: Any = CouplingConfig(bijection=bijection, network=network)
    else:
        part = AutoregressiveConfig(bijection=bijection, network=MADEConfig(width=WIDTH, depth=2))
    flow = build(FlowConfig(transforms=(part,) * TRANSFORMS), DataSpec("vector", (dims,)))
    assert isinstance(flow, Flow)
    return flow


def ours(kind: str, dims: int) -> Peer:
    flow = model(kind, dims)
    return Peer(flow, flow.log_prob, lambda n: flow.sample(n, rng=Rng(0, "sample")))


def compiled(kind: str, dims: int) -> Peer:
    flow = model(kind, dims)
    for network in flow.networks():
        network.compile(dynamic=False)
    return Peer(flow, flow.log_prob, lambda n: flow.sample(n, rng=Rng(0, "sample")))


def train_ours(kind: str, x: Tensor, compile: bool) -> Contender:
    return product_training(model(kind, x.shape[1]), x, compile=compile, optimizer=OptimizerConfig(lr=1e-4, clip=None))


def zuko(kind: str, dims: int) -> Peer:
    import zuko

    hidden = [WIDTH, WIDTH]
    make: dict[str, Callable[[], Any]] = {
        "affine-coupling": lambda: zuko.flows.NICE(dims, transforms=TRANSFORMS, hidden_features=hidden),
        "maf": lambda: zuko.flows.MAF(dims, transforms=TRANSFORMS, hidden_features=hidden),
        "nsf-autoregressive": lambda: zuko.flows.NSF(dims, bins=BINS, transforms=TRANSFORMS, hidden_features=hidden),
        "nsf-coupling": lambda: zuko.flows.NSF(
            dims, bins=BINS, transforms=TRANSFORMS, hidden_features=hidden, passes=2
        ),
    }
    flow = make[kind]()
    return Peer(flow, lambda x: flow().log_prob(x), lambda n: flow().sample((n,)))


def nflows(kind: str, dims: int) -> Peer:
    from nflows import distributions, flows, transforms
    from nflows.nn.nets import ResidualNet

    def network(inputs: int, outputs: int) -> Any:
        return ResidualNet(inputs, outputs, hidden_features=WIDTH, num_blocks=1)

    spline = {"num_bins": BINS, "tails": "linear", "tail_bound": BOUND}
    masked = {"num_blocks": 1, "use_residual_blocks": False}
    layers: list[Any] = []
    for place in range(TRANSFORMS):
        mask = (torch.arange(dims) + place) % 2
        if kind == "affine-coupling":
            layers.append(transforms.AffineCouplingTransform(mask, network))
        elif kind == "nsf-coupling":
            layers.append(transforms.PiecewiseRationalQuadraticCouplingTransform(mask, network, **spline))
        elif kind == "maf":
            layers.append(transforms.MaskedAffineAutoregressiveTransform(dims, WIDTH, **masked))
        else:
            make = transforms.MaskedPiecewiseRationalQuadraticAutoregressiveTransform
            layers.append(make(dims, WIDTH, **masked, **spline))
        if not kind.endswith("coupling"):
            layers.append(transforms.ReversePermutation(dims))
    flow = flows.Flow(transforms.CompositeTransform(layers), distributions.StandardNormal([dims]))
    return Peer(flow, flow.log_prob, flow.sample)


def normflows(kind: str, dims: int) -> Peer:
    import normflows as nf

    layers: list[Any] = []
    for place in range(TRANSFORMS):
        if kind == "affine-coupling":
            layers += [
                nf.flows.AffineCouplingBlock(nf.nets.MLP([dims // 2, WIDTH, WIDTH, dims])),
                nf.flows.Permute(dims, mode="swap"),
            ]
        elif kind == "maf":  # its inverse is the fast direction: sampling in one pass, density in `dims`
            layers += [
                nf.flows.MaskedAffineAutoregressive(dims, WIDTH, num_blocks=1, use_residual_blocks=False),
                nf.flows.Permute(dims, mode="swap"),
            ]
        elif kind == "nsf-coupling":
            make = nf.flows.CoupledRationalQuadraticSpline
            layers.append(make(dims, 1, WIDTH, num_bins=BINS, tail_bound=BOUND, reverse_mask=bool(place % 2)))
        else:
            make = nf.flows.AutoregressiveRationalQuadraticSpline
            layers.append(make(dims, 1, WIDTH, num_bins=BINS, tail_bound=BOUND, permute_mask=bool(place % 2)))
    flow = nf.NormalizingFlow(nf.distributions.DiagGaussian(dims, trainable=False), layers)
    return Peer(flow, flow.log_prob, lambda n: flow.sample(n)[0])


CONTENDERS: dict[str, Callable[[str, int], Peer]] = {
    "quintet": ours,
    "quintet+compile": compiled,
    "zuko": zuko,
    "nflows": nflows,
    "normflows": normflows,
}


def training(flow: Peer, x: Tensor) -> Callable[[], object]:
    optimizer = torch.optim.Adam(flow.module.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        (-flow.log_prob(x).mean()).backward()
        optimizer.step()

    return step


def density(flow: Peer, x: Tensor) -> Callable[[], object]:
    return torch.no_grad()(lambda: flow.log_prob(x))


def sampling(flow: Peer, x: Tensor) -> Callable[[], object]:
    return torch.no_grad()(lambda: flow.sample(len(x)))


TASKS: dict[str, Callable[[Peer, Tensor], Callable[[], object]]] = {
    "train": training,
    "log_prob": density,
    "sample": sampling,
}


def main() -> None:
    races = Races(__doc__.splitlines()[0])
    for dims in (16, 64):
        for kind in KINDS:
            for task, work in TASKS.items():
                slow = dims == 64 and task == "sample" and not kind.endswith("coupling")
                batch = BATCH // 8 if slow else BATCH
                x = torch.randn(batch, dims)

                def builder(
                    make: Callable[[str, int], Peer],
                    task: Callable[[Peer, Tensor], Callable[[], object]] = work,
                    x: Tensor = x,
                    kind: str = kind,
                ) -> Callable[[], Contender]:
                    def build() -> Contender:
                        flow = make(kind, x.shape[1])
                        return Contender(task(flow, x), len(x), params=parameters(flow.module))

                    return build

                builders = {name: builder(make) for name, make in CONTENDERS.items()}
                if task == "train":
                    builders["quintet"] = lambda kind=kind, x=x: train_ours(kind, x, False)  # type: ignore[misc]
                    builders["quintet+compile"] = lambda kind=kind, x=x: train_ours(kind, x, True)  # type: ignore[misc]
                if task == "sample":
                    del builders["quintet+compile"]  # only training and densities are compiled
                races.race(
                    f"flow/{kind}/d{dims}/b{batch}/{task}", "rows/s", builders, reference=REFERENCE[kind], once=slow
                )


if __name__ == "__main__":
    main()
