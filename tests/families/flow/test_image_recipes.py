"""tarflow and glow: from raw images to raw samples, which data they take, and what they start as."""

import json
import math

import pytest
import torch

from quintet.core.batch import Batch
from quintet.core.budget import Budget
from quintet.core.config import decode, encode, override
from quintet.core.messages import catalogue
from quintet.core.model import Turn
from quintet.core.rng import Rng
from quintet.core.spec import DataSpec
from quintet.data.batches import Batches
from quintet.data.dataset import Split
from quintet.families.flow.bijections import Affine, Triangular
from quintet.recipes import glow, tarflow
from quintet.recipes.registry import KINDS

BUDGET = Budget.parse("60s")
EVEN = DataSpec("image", (1, 12, 8), levels=16, conditions={"label": 3})
ODD = DataSpec("image", (3, 7, 5), levels=256)
FAR = DataSpec("image", (3, 64, 64), levels=256)
CASES = [(tarflow, EVEN), (tarflow, ODD), (glow, EVEN), (glow, DataSpec("image", (4, 6, 2), levels=1000))]


def data(spec: DataSpec, n: int = 48) -> Split:
    k = Rng(1, "x").integers(0, spec.levels, (n, *spec.shape))
    k[: n // 2] = 0  # a spike
    labels = {name: (torch.arange(n) % count).numpy() for name, count in spec.conditions.items()}
    return Split(k.numpy().astype("uint8" if spec.levels <= 256 else "uint16"), labels)


@pytest.mark.parametrize(("recipe", "spec"), CASES, ids=lambda v: getattr(v, "__name__", None) or str(v.shape))
def test_from_raw_data_to_raw_samples_with_gradients_everywhere(recipe, spec):
    assert recipe.unfit(spec) is None
    (stage,) = recipe.stages(spec, BUDGET)
    assert decode(json.loads(json.dumps(encode(stage))), KINDS) == stage
    split = data(spec)
    codec = stage.codec.fit(spec, split.tensor())
    torch.manual_seed(0)
    flow = stage.model.build(codec.spec)
    batches = Batches(split, codec, 16, 0)
    flow.prepare(batches)
    with torch.no_grad():  # away from the identity, where hidden layers get no gradient yet
        for p in flow.parameters():
            p += 0.02 * torch.randn_like(p)
    batch = batches[0]
    loss = flow.loss(Turn(0, 0.0, batch, Rng(0, "train", 0)))
    loss.total.backward()
    assert loss.total.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in flow.parameters())
    x = codec.decode(flow.sample(10, rng=Rng(3, "sample")))
    assert x.shape == (10, *spec.shape)
    with torch.no_grad():
        back = codec.decode(flow.decode(flow.encode(batch.x, batch.cond), batch.cond))
    assert torch.equal(back, codec.decode(batch.x))


@torch.no_grad()
@pytest.mark.parametrize("recipe", [tarflow, glow], ids=lambda v: v.__name__)
def test_in_bfloat16_log_determinants_stay_in_float32(recipe):
    (stage,) = recipe.stages(EVEN, BUDGET)
    torch.manual_seed(0)
    flow = stage.model.build(DataSpec("image", EVEN.shape, conditions=EVEN.conditions))
    for p in flow.parameters():
        p += 0.05 * torch.randn_like(p)
    x = torch.rand(8, *EVEN.shape) * 2 - 1
    turn = Turn(0, 0.0, Batch(x, torch.arange(8), {"label": torch.arange(8) % 3}), Rng(0, "train", 0))
    whole = flow.loss(turn).total
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = flow.loss(turn).total
        assert flow.transform(x.flatten(1), {})[1].dtype == torch.float32
    assert half.dtype == torch.float32
    assert abs(float(half - whole)) < 0.02


def test_patches_grow_with_the_image_and_maps_are_triangular_while_patches_are_small():
    for spec, patch, bijection in (
        (DataSpec("image", (1, 8, 8), levels=17), 2, Triangular(size=4)),
        (DataSpec("image", (1, 28, 28), levels=256), 4, Triangular(size=16)),
        (DataSpec("image", (3, 32, 32), levels=256), 4, Triangular(size=48)),
        (FAR, 8, Affine()),
    ):
        (stage,) = tarflow.stages(spec, BUDGET)
        block = stage.model.transforms[-1]
        assert (block.patch, block.bijection) == (patch, bijection)


def test_unfit_says_why():
    for recipe in (tarflow, glow):
        assert recipe.unfit(FAR) is None
        for spec in (DataSpec("vector", (5,)), DataSpec("tokens", (5,), levels=3)):
            assert "nsf" in recipe.unfit(spec)
    assert "7 x 5" in glow.unfit(ODD)
    for key in ("flow.images_only", "flow.odd_size"):
        assert set(catalogue()[key]) == {"en", "zh"}


@torch.no_grad()
def test_untrained_and_unprepared_flows_are_uniform_over_the_levels():
    for recipe in (tarflow, glow):
        (stage,) = recipe.stages(EVEN, BUDGET)
        if recipe is tarflow:  # bells are not flat
            stage = override(stage, "model.transforms.0.bell", "false", kinds=KINDS)
        x = torch.from_numpy(data(EVEN).x)
        codec = stage.codec.fit(EVEN, x)
        flow = stage.model.build(codec.spec)
        encoded = codec.encode(x, rng=Rng(2, "noise"))
        bits = -(flow.log_prob(encoded) + codec.log_det(encoded)) / math.log(2) / EVEN.dims
        assert (bits - 4).abs().max() < 1e-3
