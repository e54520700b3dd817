import json

import pytest
import torch

from quintet.core.batch import Batch
from quintet.core.budget import Budget
from quintet.core.config import decode, encode
from quintet.core.messages import catalogue
from quintet.core.model import Turn, round_trip_error
from quintet.core.recipe import OptimizerConfig, Stage, TrainConfig
from quintet.core.rng import Rng
from quintet.core.spec import DataSpec
from quintet.data.codecs import DequantizedPixelCodecConfig, StandardizeCodecConfig
from quintet.families.flow.model import FlowConfig, FlowSampling
from quintet.families.flow.splines import PiecewiseLinear, RationalQuadratic
from quintet.families.flow.transforms import CouplingConfig, LULinearConfig, ProbitConfig, SweepConfig
from quintet.nets.mlp import MLPConfig
from quintet.recipes.nsf import RECIPE

BUDGET = Budget.parse("60s")
SPECS = [
    DataSpec("image", (1, 8, 8), levels=17, conditions={"label": 10}),
    DataSpec("image", (3, 5, 4), levels=256),
    DataSpec("image", (1, 1, 1), levels=2),
    DataSpec("vector", (2,)),
    DataSpec("vector", (1,), conditions={"label": 2}),
    DataSpec("vector", (40,), levels=5),
]
KINDS = {
    c.kind: c
    for c in (
        Stage, TrainConfig, OptimizerConfig, DequantizedPixelCodecConfig, StandardizeCodecConfig, FlowConfig,
        FlowSampling, PiecewiseLinear, RationalQuadratic, LULinearConfig, ProbitConfig, CouplingConfig,
        SweepConfig, MLPConfig,
    )
}  # fmt: skip


def raw(spec: DataSpec, n: int) -> torch.Tensor:
    if spec.levels is None:
        return Rng(1, "x").normal((n, *spec.shape)) * 3 + 1
    return Rng(1, "x").integers(0, spec.levels, (n, *spec.shape))


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s.kind}-{s.shape}-{s.levels}")
def test_from_raw_data_to_raw_samples_with_gradients_everywhere(spec):
    assert RECIPE.unfit(spec) is None
    (stage,) = RECIPE.stages(spec, BUDGET)
    assert decode(json.loads(json.dumps(encode(stage))), KINDS) == stage
    x, n = raw(spec, 64), 64
    codec = stage.codec.fit(spec, x)
    torch.manual_seed(0)
    flow = stage.model.build(codec.spec)
    assert set(stage.train.optimizers) == {player.name for player in flow.players()}
    cond = {name: torch.arange(n) % classes for name, classes in spec.conditions.items()}
    encoded = codec.encode(x, rng=Rng(2, "noise"))
    with torch.no_grad():  # away from the identity, where hidden layers get no gradient yet
        for p in flow.parameters():
            p += 0.02 * torch.randn_like(p)
    loss = flow.loss(Turn(0, 0.0, Batch(encoded, torch.arange(n), cond), Rng(0, "train", 0)))
    loss.total.backward()
    assert loss.total.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in flow.parameters())
    samples = codec.decode(flow.sample(n, cond, rng=Rng(3, "sample")))
    assert samples.shape == x.shape
    assert torch.equal(codec.decode(flow.decode(flow.encode(encoded, cond), cond)).double(), x.double()) or (
        spec.levels is None and round_trip_error(flow, encoded, cond).max() < 1e-3
    )


def test_an_untrained_image_flow_is_uniform_over_the_levels():
    spec = SPECS[0]
    (stage,) = RECIPE.stages(spec, BUDGET)
    x = raw(spec, 10)
    codec = stage.codec.fit(spec, x)
    flow = stage.model.build(codec.spec)
    encoded = codec.encode(x, rng=Rng(2, "noise"))
    bits = -(flow.log_prob(encoded) + codec.log_det(encoded)) / torch.log(torch.tensor(2.0)) / spec.dims
    assert (bits - torch.log2(torch.tensor(17.0))).abs().max() < 1e-4


@pytest.mark.parametrize(
    "spec",
    [
        DataSpec("image", (3, 32, 32), levels=256),
        DataSpec("vector", (5000,)),
        DataSpec("tokens", (16,), levels=50),
    ],
    ids=lambda s: s.kind,
)
def test_unfit_says_why(spec):
    reason = RECIPE.unfit(spec)
    assert reason
    if spec.kind != "tokens":
        assert str(spec.dims) in reason


def test_messages_are_there_in_both_languages():
    for key in ("flow.too_large", "flow.tokens"):
        assert set(catalogue()[key]) == {"en", "zh"}
