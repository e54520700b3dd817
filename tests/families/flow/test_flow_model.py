import math

import numpy as np
import pytest
import torch
from scipy import stats

from quintet.core.batch import Batch
from quintet.core.config import decode, encode
from quintet.core.model import HasLatent, HasLogProb, HasTrace, Turn, capabilities, round_trip_error
from quintet.core.rng import Rng
from quintet.core.spec import DataSpec
from quintet.families.flow.bijections import Affine, Triangular
from quintet.families.flow.model import Flow, FlowConfig, FlowSampling
from quintet.families.flow.splines import PiecewiseLinear, RationalQuadratic
from quintet.families.flow.transforms import (
    AutoregressiveConfig,
    CouplingConfig,
    LULinearConfig,
    MarginalsConfig,
    ProbitConfig,
    SweepConfig,
)
from quintet.nets.causal import CausalTransformerConfig
from quintet.nets.made import MADEConfig
from quintet.nets.mlp import MLPConfig, ResidualMLPConfig

NET = MLPConfig(width=16, depth=2)
LINE = (
    LULinearConfig(),
    CouplingConfig(bijection=RationalQuadratic(bins=4, bound=3.0), network=NET),
) * 3
BOX = (SweepConfig(bijection=PiecewiseLinear(bins=3), network=NET, groups=2), ProbitConfig())

MASKED = (
    AutoregressiveConfig(bijection=Affine(), network=MADEConfig(width=32)),
    AutoregressiveConfig(bijection=RationalQuadratic(bins=4, bound=3.0), network=MADEConfig(width=32)),
)
PATCHES = (
    MarginalsConfig(bins=8),
    ProbitConfig(),
    *(
        AutoregressiveConfig(
            bijection=Triangular(size=4), patch=2, network=CausalTransformerConfig(width=16, heads=2, hidden=32)
        ),
    )
    * 3,
)


def build(transforms, spec: DataSpec, seed: int = 0, scale: float = 0.3, **fields) -> Flow:
    """A float64 flow with random parameters, in eval mode."""
    torch.manual_seed(seed)
    flow = FlowConfig(transforms=transforms, **fields).build(spec).double().eval()
    with torch.no_grad():
        for p in flow.parameters():
            p += scale * torch.randn_like(p)
    return flow


def vector(dims: int, labels: int = 0) -> DataSpec:
    return DataSpec("vector", (dims,), conditions={"label": labels} if labels else {})


def turn(x: torch.Tensor, cond=None, step: int = 0) -> Turn:
    return Turn(step, 0.0, Batch(x, torch.arange(len(x)), cond or {}), Rng(0, "train", step))


@torch.no_grad()
def test_density_integrates_to_one_on_the_line():
    flow = build(LINE, vector(1), scale=0.15)
    x = torch.linspace(-40, 40, 400_001, dtype=torch.float64)[:, None]
    mass = torch.trapezoid(flow.log_prob(x).exp(), x[:, 0])
    assert abs(float(mass) - 1) < 1e-6


@torch.no_grad()
@pytest.mark.parametrize("label", [None, -1, 0, 1])
def test_density_integrates_to_one_in_the_plane_for_every_label(label):
    flow = build(LINE, vector(2, labels=2), seed=1, scale=0.2)
    axis = torch.linspace(-12, 12, 601, dtype=torch.float64)
    x = torch.cartesian_prod(axis, axis)
    cond = {} if label is None else {"label": torch.full((len(x),), label)}
    density = flow.log_prob(x, cond).exp().reshape(601, 601)
    mass = torch.trapezoid(torch.trapezoid(density, axis), axis)
    assert abs(float(mass) - 1) < 2e-4


@torch.no_grad()
def test_a_masked_autoregression_integrates_to_one_in_the_plane():
    flow = build(MASKED, vector(2, labels=2), seed=3, scale=0.2)
    axis = torch.linspace(-25, 25, 1001, dtype=torch.float64)
    x = torch.cartesian_prod(axis, axis)
    density = flow.log_prob(x, {"label": torch.ones(len(x), dtype=torch.int64)}).exp().reshape(1001, 1001)
    mass = torch.trapezoid(torch.trapezoid(density, axis), axis)
    assert abs(float(mass) - 1) < 2e-4


class Rows:
    """A training split for `prepare`."""

    augmented = False

    def __init__(self, x: torch.Tensor) -> None:
        self.x, self.examples = x, len(x)

    def take(self, start: int, stop: int) -> Batch:
        x = self.x[start:stop]
        return Batch(x, torch.arange(start, start + len(x)), {"label": torch.zeros(len(x), dtype=torch.int64)})


def levels(n: int, seed: int) -> torch.Tensor:
    """Images (n, 1, 6, 6) of 8 levels, half of them black."""
    g = np.random.default_rng(seed)
    k = np.where(g.random((n, 1, 6, 6)) < 0.5, 0, g.integers(0, 8, (n, 1, 6, 6)))
    return torch.from_numpy((k + 0.5) / 8 * 2 - 1)


@torch.no_grad()
def test_a_prepared_flow_of_patches_starts_as_the_product_of_histograms():
    spec = DataSpec("image", (1, 6, 6), conditions={"label": 2})
    torch.manual_seed(0)
    flow = FlowConfig(transforms=PATCHES).build(spec).double()
    x = levels(3000, 1)
    flow.prepare(Rows(x))
    k = ((x + 1) * 4).floor().long().flatten(1)
    counts = torch.stack([(k == level).double().mean(0) for level in range(8)])  # (8, 36)
    expected = counts.gather(0, k[:200]).log().sum(1)
    got = flow.log_prob(x[:200]) + 36 * math.log(2 / 8)  # a density flat over cells of width 2 / 8
    assert (got - expected).abs().mean() / 36 < 0.05  # pooling and floor move a histogram a little
    assert abs(float(got.mean() - expected.mean())) / 36 < 0.02


@torch.no_grad()
def test_a_flow_of_patches_finds_back_from_data_samples_and_far_away_in_float32():
    spec = DataSpec("image", (1, 6, 6), conditions={"label": 2})
    flow = build(PATCHES, spec, scale=0.1).float()
    flow.prepare(Rows(levels(500, 2).float()))
    label = {"label": torch.arange(64) % 3 - 1}
    x = levels(64, 3).float()
    samples = flow.sample(64, label, rng=Rng(1, "sample"))
    for points in (x, samples):
        assert round_trip_error(flow, points, label).max() < 0.01
    z = Rng(2, "z").normal((64, 1, 6, 6))
    z = 10 * z / z.flatten(1).norm(dim=1)[:, None, None, None]  # ten standard deviations from the mode
    assert round_trip_error(flow, flow.decode(z, label), label).max() < 0.01


@torch.no_grad()
def test_guidance_one_is_the_model_and_zero_ignores_the_label():
    flow = build(PATCHES, DataSpec("image", (1, 4, 4), conditions={"label": 3}))
    label = {"label": torch.tensor([0, 1, 2])}

    def draw(cond, guidance):
        return flow.sample(3, cond, rng=Rng(1, "sample"), sampling=FlowSampling(guidance=guidance))

    assert torch.allclose(draw(label, 1.0), flow.sample(3, label, rng=Rng(1, "sample")))
    assert torch.allclose(draw(label, 0.0), draw({}, 1.0))
    assert torch.allclose(draw({}, 3.0), draw({}, 1.0))
    assert not torch.allclose(draw(label, 2.0), draw(label, 1.0))


def test_noise_is_in_the_loss_and_one_step_along_the_score_takes_it_out():
    mean, std, noise = 1.5, 0.5, 0.8
    flow = FlowConfig(transforms=(LULinearConfig(),), noise=noise).build(vector(1)).double()
    lu = next(flow.transform.leaves())
    wide = math.hypot(std, noise)  # the flow of the noisy data N(mean, std^2 + noise^2)
    with torch.no_grad():
        lu.log_diagonal.fill_(-math.log(wide))
        lu.shift.fill_(-mean / wide)
    x = mean + std * Rng(1, "x").normal((20_000, 1), torch.float64)
    entropy = 0.5 * math.log(2 * math.pi * math.e * wide**2)
    assert abs(float(flow.loss(turn(x)).total.detach()) - entropy) < 0.02
    assert abs(float(-flow.log_prob(x, rng=Rng(3, "log_prob")).mean().detach()) - entropy) < 0.02
    assert "noise of 0.8" in flow.log_prob_protocol
    with torch.inference_mode():
        clean = flow.sample(20_000, rng=Rng(2, "sample"))
    noisy = FlowConfig(transforms=(LULinearConfig(),)).build(vector(1)).double()
    noisy.load_state_dict(flow.state_dict())
    y = noisy.sample(20_000, rng=Rng(2, "sample"))
    assert torch.allclose(clean, y + noise**2 * (mean - y) / wide**2)  # the Gaussian's posterior mean


def test_noise_on_a_box_is_refused():
    with pytest.raises(ValueError, match="models a box"):
        FlowConfig(transforms=PATCHES, noise=0.1).build(DataSpec("image", (1, 6, 6)))


@torch.no_grad()
def test_density_on_the_box_integrates_to_one_inside_and_is_zero_outside():
    flow = build(BOX, DataSpec("image", (1, 1, 2)), scale=0.5)
    axis = (torch.arange(600, dtype=torch.float64) + 0.5) / 300 - 1  # cell centres: exact for the last drawn pixel
    x = torch.cartesian_prod(axis, axis).reshape(-1, 1, 1, 2)
    assert abs(float(flow.log_prob(x).exp().mean() * 4) - 1) < 1e-9
    assert (flow.log_prob(1.0 + x.abs()) == -math.inf).all()


@torch.no_grad()
def test_one_group_is_a_product_of_categoricals_over_the_cells():
    levels, dims = 5, 3
    spline = PiecewiseLinear(bins=levels, floor=0.01)
    flow = build(
        (SweepConfig(bijection=spline, network=NET, groups=1), ProbitConfig()), DataSpec("image", (1, 1, dims))
    )
    (coupling, _) = flow.transform.leaves()
    probabilities = 0.01 / levels + 0.99 * coupling.conditioner(torch.ones(1, 1).double(), {})[0].T.softmax(-1)
    k = torch.cartesian_prod(*[torch.arange(levels)] * dims)
    expected = probabilities[torch.arange(dims), k[:, coupling.change]].log().sum(1)
    x = (k + Rng(1, "u").uniform(k.shape, torch.float64)) / levels * 2 - 1
    got = flow.log_prob(x.reshape(-1, 1, 1, dims)) + dims * math.log(2 / levels)
    assert (got - expected).abs().max() < 1e-9
    assert abs(float(got.exp().sum()) - 1) < 1e-9


def test_affine_flow_on_gaussian_data_reaches_the_analytic_entropy():
    x = torch.from_numpy(np.random.default_rng(5).standard_normal((500, 3)))
    x = x @ torch.tensor([[1.0, 0.4, -0.3], [0, 2.0, 0.7], [0, 0, 0.5]]).double() + torch.tensor([1.0, -2.0, 3.0])
    flow = FlowConfig(transforms=(LULinearConfig(),)).build(vector(3)).double()
    optimizer = torch.optim.LBFGS(flow.parameters(), max_iter=500, line_search_fn="strong_wolfe", tolerance_grad=1e-10)

    def closure():
        optimizer.zero_grad()
        loss = -flow.log_prob(x).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    covariance = np.cov(x.numpy().T, bias=True)
    entropy = 0.5 * np.linalg.slogdet(2 * np.pi * np.e * covariance)[1]  # the maximum-likelihood Gaussian's loss
    assert abs(float(closure().detach()) - entropy) < 1e-7


@torch.no_grad()
def test_log_prob_is_the_density_of_samples():
    flow = build(LINE, vector(1), seed=2)
    x = flow.sample(20_000, rng=Rng(3, "sample"))[:, 0].numpy()
    grid = torch.linspace(-60, 60, 200_001, dtype=torch.float64)
    density = flow.log_prob(grid[:, None]).exp()
    cumulative = torch.cumulative_trapezoid(density, grid).numpy()
    uniform = np.interp(x, grid.numpy()[1:], cumulative)
    assert stats.kstest(uniform, "uniform").pvalue > 1e-3


@torch.no_grad()
def test_cells_are_sampled_as_often_as_their_probability_says():
    levels = 3
    flow = build(BOX, DataSpec("image", (1, 1, 2)), scale=0.6, seed=3)
    n = 20_000
    x = flow.sample(n, rng=Rng(4, "sample")).reshape(n, 2)
    k = ((x + 1) / 2 * levels).floor().clamp(0, levels - 1).long()
    seen = torch.bincount(k[:, 0] * levels + k[:, 1], minlength=levels**2).numpy()
    axis = (torch.arange(600, dtype=torch.float64) + 0.5) / 300 - 1
    density = flow.log_prob(torch.cartesian_prod(axis, axis).reshape(-1, 1, 1, 2)).exp()
    expected = density.reshape(3, 200, 3, 200).mean((1, 3)).flatten() * 4 / levels**2
    expected = expected / expected.sum()
    assert stats.chisquare(seen, n * expected.numpy()).pvalue > 1e-3


@torch.no_grad()
def test_encode_and_decode_are_inverse_on_data_samples_and_far_away_in_float32():
    flow = build(LINE, vector(4, labels=3), scale=0.1).float()
    x = Rng(6, "x").normal((300, 4))
    label = {"label": torch.arange(300) % 4 - 1}
    samples = flow.sample(300, label, rng=Rng(7, "sample"))
    for points in (x, samples, 10 * x / x.norm(dim=1, keepdim=True)):
        error = round_trip_error(flow, points, label)
        assert error.shape == (300,)
        assert error.quantile(0.99) < 1e-3
        assert error.max() < 1e-2  # a spline's flattest bins hold no more in float32, whatever the arithmetic
        assert error.median() < 1e-5
    z = Rng(8, "z").normal((300, 4))
    assert (flow.encode(flow.decode(z, label), label) - z).abs().max() < 1e-3


@torch.no_grad()
def test_images_survive_the_round_trip_in_float32_also_in_the_corners():
    spec = DataSpec("image", (1, 4, 4), conditions={"label": 3})
    transforms = (SweepConfig(bijection=PiecewiseLinear(bins=17), network=NET, groups=8), ProbitConfig())
    flow = build(transforms, spec, scale=0.2).float()
    levels = Rng(9, "k").integers(0, 17, (200, 1, 4, 4))
    levels[:50] = levels[:50].clamp(0, 1) * 16  # black and white
    x = (levels + 0.5) / 17 * 2 - 1
    assert round_trip_error(flow, x).max() < 0.5 / 17  # the same level


@torch.no_grad()
def test_a_flow_that_lost_its_inverse_is_reported():
    flow = build(LINE, vector(2))
    x = torch.randn(5, 2).double()
    assert round_trip_error(flow, x).max() < 1e-9
    next(flow.transform.leaves()).upper.fill_(math.nan)
    assert (round_trip_error(flow, x) == math.inf).all()


def test_loss_is_the_mean_negative_log_likelihood_per_dimension_with_its_detector():
    flow = build(BOX, DataSpec("image", (1, 1, 2), conditions={"label": 2}), class_dropout=0.0)
    x = torch.rand(8, 1, 1, 2, dtype=torch.float64) * 2 - 1
    cond = {"label": torch.arange(8) % 2}
    loss = flow.loss(turn(x, cond))
    assert torch.allclose(loss.total, -flow.log_prob(x, cond).mean() / 2)
    assert float(loss.parts["log_det_nonfinite_share"]) == 0
    assert float(loss.parts["log_det_min_nats"]) < float(loss.parts["log_det_max_nats"])
    assert not any(part.requires_grad for part in loss.parts.values())
    x[:2] = 1.5
    assert float(flow.loss(turn(x, cond)).parts["log_det_nonfinite_share"]) == 0.25


def test_hidden_labels_are_as_many_as_asked_for():
    flow = build(LINE, vector(2, labels=2), class_dropout=0.5)
    x = torch.randn(1, 2).double().expand(2000, 2)
    ones = torch.ones(2000, dtype=torch.int64)
    plain, hidden = (float(-flow.log_prob(x[:1], {"label": ones[:1] * k}).detach() / 2) for k in (1, -1))
    share = (float(flow.loss(turn(x, {"label": ones})).total.detach()) - plain) / (hidden - plain)
    assert abs(share - 0.5) < 0.05


@pytest.mark.parametrize("network", [NET, ResidualMLPConfig(width=16, hidden=16, depth=2, context=8)])
def test_gradients_reach_every_parameter(network):
    spec = DataSpec("image", (1, 2, 2), conditions={"label": 2})
    transforms = (SweepConfig(bijection=PiecewiseLinear(bins=3), network=network, groups=3), ProbitConfig(), *LINE)
    flow = build(transforms, spec, class_dropout=0.5)
    (player,) = flow.players()
    assert {id(p) for p in player.module.parameters()} == {id(p) for p in flow.parameters()}
    x = torch.rand(64, 1, 2, 2).double() * 2 - 1
    player.loss(turn(x, {"label": torch.arange(64) % 2})).total.backward()
    for name, p in flow.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
        # the strict triangles that a factor does not use stay without gradient
        assert p.grad.any(), name


@torch.no_grad()
def test_samples_follow_rng_row_by_row_and_temperature():
    flow = build(LINE, vector(3, labels=2))
    cond = {"label": torch.arange(200) % 2}
    all_of_them = flow.sample(200, cond, rng=Rng(1, "sample"))
    part = flow.sample(70, {"label": cond["label"][100:170]}, rng=Rng(1, "sample").at(100))
    assert torch.allclose(part, all_of_them[100:170], atol=1e-12)
    assert not torch.allclose(flow.sample(200, cond, rng=Rng(2, "sample")), all_of_them)
    cold = flow.sample(5, rng=Rng(1, "sample"), sampling=FlowSampling(temperature=0.0))
    assert torch.allclose(cold, flow.decode(torch.zeros(5, 3).double()))
    half = flow.encode(flow.sample(9, rng=Rng(1, "sample"), sampling=FlowSampling(temperature=0.5)))
    assert torch.allclose(2 * half, flow.encode(flow.sample(9, rng=Rng(1, "sample"))), atol=1e-8)


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 2, 5, 30])
def test_trace_leads_from_the_base_to_the_sample(frames):
    spec = DataSpec("image", (1, 1, 2))
    flow = build(BOX, spec)
    trace = flow.trace(6, frames, rng=Rng(1, "sample"))
    assert trace.kind == "flow"
    assert trace.frames.shape == (frames, 6, 1, 1, 2)
    assert len(trace.at) == frames
    assert torch.allclose(trace.frames[0], Rng(1, "sample")("base").normal((6, 1, 1, 2)).double())
    if frames > 1:
        assert torch.equal(trace.frames[-1], flow.sample(6, rng=Rng(1, "sample")))


def test_sequential_steps_count_the_networks():
    assert build(LINE, vector(3)).sequential_steps() == 3
    assert build(BOX, DataSpec("image", (1, 1, 2))).sequential_steps() == 2


def test_masks_alternate_from_coupling_to_coupling():
    flow = build(LINE, vector(4))
    masks = [part.change.tolist() for part in flow.transform.leaves() if hasattr(part, "change")]
    assert masks == [[0, 2], [1, 3], [0, 2]]


def test_capabilities_and_refusals():
    flow = build(LINE, vector(2, labels=2))
    assert isinstance(flow, HasLogProb)
    assert isinstance(flow, HasLatent)
    assert isinstance(flow, HasTrace)
    assert capabilities(flow) == ("log_prob", "latent", "trace")
    assert flow.likelihood == "exact"
    assert flow.latent.shape == (2,)
    assert not flow.latent.conditions
    with pytest.raises(ValueError, match="dequantise"):
        FlowConfig(transforms=LINE).build(DataSpec("image", (1, 2, 2), levels=17))


def test_config_round_trip():
    config = FlowConfig(transforms=(*BOX, *LINE), class_dropout=0.2, sampling=FlowSampling(temperature=0.9))
    classes = (
        FlowConfig, FlowSampling, SweepConfig, ProbitConfig, LULinearConfig, CouplingConfig, PiecewiseLinear,
        RationalQuadratic, MLPConfig,
    )  # fmt: skip
    assert decode(encode(config), {c.kind: c for c in classes}) == config
