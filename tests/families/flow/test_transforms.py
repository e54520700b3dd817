import numpy as np
import pytest
import torch
from scipy import stats

from quintet.core.spec import DataSpec
from quintet.families.flow.bijections import Affine, Triangular
from quintet.families.flow.images import ActNorm, ChannelCoupling, InvertibleConv, PyramidConfig
from quintet.families.flow.splines import PiecewiseLinear, RationalQuadratic
from quintet.families.flow.transforms import (
    AutoregressiveConfig,
    Composite,
    Coupling,
    CouplingConfig,
    LULinear,
    LULinearConfig,
    Marginals,
    MarginalsConfig,
    Probit,
    ProbitConfig,
    SweepConfig,
    Transform,
    partition,
    patches,
    reordered,
)
from quintet.nets.causal import CausalTransformerConfig
from quintet.nets.made import MADEConfig
from quintet.nets.mlp import MLPConfig, ResidualMLPConfig
from quintet.nets.plain import PlainConvConfig

NET = MLPConfig(width=16, depth=2)
RQ, PL = RationalQuadratic(bins=5, bound=3.0), PiecewiseLinear(bins=6)
VECTOR = DataSpec("vector", (5,), conditions={"label": 3})
IMAGE = DataSpec("image", (2, 3, 2), conditions={"label": 3})
SQUARE = DataSpec("image", (1, 4, 4), conditions={"label": 3})
MADE = MADEConfig(width=17, depth=2)
CAUSAL = CausalTransformerConfig(width=8, depth=2, heads=2, hidden=16)
TRIANGULAR = AutoregressiveConfig(bijection=Triangular(size=4), network=CAUSAL, patch=2)
RAGGED = AutoregressiveConfig(bijection=Triangular(size=8), network=CAUSAL, patch=2)
PYRAMID = PyramidConfig(bijection=Affine(), network=PlainConvConfig(width=8), levels=2, steps=2)
CASES = {
    "affine-coupling": (VECTOR, (CouplingConfig(bijection=Affine(), network=NET),) * 2),
    "maf": (VECTOR, (AutoregressiveConfig(bijection=Affine(), network=MADE),) * 2),
    "autoregressive-spline": (VECTOR, (AutoregressiveConfig(bijection=RQ, network=MADE),) * 2),
    "one-column": (
        DataSpec("vector", (1,), conditions={"label": 3}),
        (AutoregressiveConfig(bijection=RQ, network=MADE),),
    ),
    "patches": (SQUARE, (AutoregressiveConfig(bijection=Affine(), network=CAUSAL, patch=2),)),
    "patches-backwards": (SQUARE, (TRIANGULAR, TRIANGULAR)),
    "ragged-patches": (IMAGE, (RAGGED, RAGGED)),
    "pyramid": (SQUARE, (PYRAMID,)),
    "spline-pyramid": (
        DataSpec("image", (2, 4, 2), conditions={"label": 3}),
        (PyramidConfig(bijection=RQ, network=PlainConvConfig(width=8), levels=3, steps=1),),
    ),
    "marginals": (VECTOR, (MarginalsConfig(bins=4),)),
    "bells": (VECTOR, (MarginalsConfig(bins=4, bell=True),)),
    "tarflow": (SQUARE, (MarginalsConfig(bins=4, bell=True), ProbitConfig(), TRIANGULAR, TRIANGULAR)),
    "alternate": (VECTOR, (CouplingConfig(bijection=RQ, network=NET),)),
    "random": (VECTOR, (CouplingConfig(bijection=RQ, network=NET, mask="random"),)),
    "one-dimension": (
        DataSpec("vector", (1,), conditions={"label": 3}),
        (CouplingConfig(bijection=RQ, network=NET),),
    ),
    "residual-conditioner": (
        VECTOR,
        (CouplingConfig(bijection=RQ, network=ResidualMLPConfig(width=16, hidden=16)),),
    ),
    "lu": (VECTOR, (LULinearConfig(),)),
    "probit": (VECTOR, (ProbitConfig(),)),
    "sweep": (IMAGE, (SweepConfig(bijection=PL, network=NET, groups=4),)),
    "rows-of-all": (VECTOR, (LULinearConfig(), CouplingConfig(bijection=RQ, network=NET)) * 3),
    "box-then-line": (IMAGE, (SweepConfig(bijection=PL, network=NET, groups=12), ProbitConfig(), LULinearConfig())),
}
BOX = {"probit", "sweep", "box-then-line", "marginals", "bells", "tarflow"}


def randomised(transform: Transform, seed: int) -> Transform:
    """Float64, every parameter moved away from its initial value."""
    g = torch.Generator().manual_seed(seed)
    transform.double().eval()
    with torch.no_grad():
        for p in transform.parameters():
            p += 0.2 * torch.randn(p.shape, generator=g, dtype=torch.float64)
    return transform


def counted(transform: Composite, dims: int) -> None:
    """Give histograms something to count."""
    x = torch.from_numpy(np.random.default_rng(1).beta(0.3, 0.6, (200, dims))) * 2 - 1
    for part in transform.leaves():
        if isinstance(part, Marginals):
            part.prepare(lambda: iter([(x, {})]))


@pytest.fixture(params=CASES)
def case(request):
    """Transform, x (6, D), cond."""
    spec, configs = CASES[request.param]
    torch.manual_seed(3)
    transform = randomised(Composite([c.build(spec, i) for i, c in enumerate(configs)]), seed=4)
    transform.requires_grad_(False)
    counted(transform, spec.dims)
    x = torch.randn(6, spec.dims, dtype=torch.float64)
    x = x.tanh() * 0.99 if request.param in BOX else 2 * x
    return transform, x, {"label": torch.tensor([0, 1, 2, -1, 0, 1])}


def test_log_det_is_that_of_the_jacobian(case):
    transform, x, cond = case
    _, log_det = transform(x, cond)
    assert log_det.shape == (6,)
    turns = any(isinstance(part, InvertibleConv) for part in transform.modules())  # its permutation may be odd
    for i in range(6):
        one = {"label": cond["label"][i : i + 1]}
        jacobian = torch.autograd.functional.jacobian(lambda v, one=one: transform(v[None], one)[0][0], x[i])
        sign, expected = torch.linalg.slogdet(jacobian)
        assert sign > 0 or turns
        assert abs(float(expected - log_det[i])) < 1e-10


def test_inverse(case):
    transform, x, cond = case
    y, _ = transform(x, cond)
    assert (transform.inverse(y, cond) - x).abs().max() < 1e-9
    assert not torch.allclose(y, x)


@torch.no_grad()
def test_log_det_of_the_inverse_has_the_opposite_sign(case):
    transform, x, cond = case
    y, log_det = transform(x, cond)
    dims, step = x.shape[1], 1e-6  # by differences: a cached inverse keeps no graph
    around = torch.cat([y[:1] + step * torch.eye(dims), y[:1] - step * torch.eye(dims)]).to(y)
    back = transform.inverse(around, {"label": cond["label"][:1].expand(2 * dims)})
    jacobian = (back[:dims] - back[dims:]).T / (2 * step)
    assert abs(float(torch.linalg.slogdet(jacobian)[1] + log_det[0])) < 1e-5


def test_the_label_changes_every_coupling():
    torch.manual_seed(0)
    transform = randomised(CouplingConfig(bijection=RQ, network=NET).build(VECTOR, 0), 1)
    x = torch.randn(4, 5).double()
    a, b = (transform(x, {"label": torch.full((4,), k)})[0] for k in (0, 2))
    assert (a - b).abs().max() > 1e-3


def test_composite_adds_log_dets_and_inverts_in_reverse():
    a, b = randomised(LULinear(3), 1), randomised(LULinear(3), 2)
    x = torch.randn(4, 3).double()
    y, log_det = Composite([a, b])(x, {})
    ya, log_a = a(x, {})
    yb, log_b = b(ya, {})
    assert torch.allclose(y, yb)
    assert torch.allclose(log_det, log_a + log_b)
    assert torch.allclose(Composite([a, b]).inverse(y, {}), a.inverse(b.inverse(y, {}), {}))
    assert not torch.allclose(b.inverse(a.inverse(y, {}), {}), x)


ALTERNATE, RANDOM = (CouplingConfig(bijection=RQ, network=NET, mask=mask) for mask in ("alternate", "random"))


@pytest.mark.parametrize(
    ("spec", "configs"),
    [
        (VECTOR, (ALTERNATE,) * 3),  # blocks of 3 and 2 columns that change places
        (VECTOR, (RANDOM,) * 4),
        (VECTOR, (LULinearConfig(), ALTERNATE, RANDOM, LULinearConfig(), RANDOM)),
        (SQUARE, (SweepConfig(bijection=PL, network=NET, groups=5), ALTERNATE, ALTERNATE)),
    ],
    ids=["alternate", "random", "mixed", "sweep"],
)
def test_a_composite_is_its_parts_one_after_the_other_in_whatever_order_its_columns_lie(spec, configs):
    transform = randomised(Composite([c.build(spec, i) for i, c in enumerate(configs)]), 6)
    x = (torch.rand(6, spec.dims, dtype=torch.float64) * 2 - 1).requires_grad_()
    cond = {"label": torch.tensor([0, 1, 2, -1, 0, 1])}
    weight = torch.randn(6, spec.dims, dtype=torch.float64)

    def both(y, log_det):
        return y, log_det, torch.autograd.grad((weight * y).sum() + log_det.sum(), x)[0]

    y, log_det = x, 0
    for part in transform.leaves():
        y, more = part(y, cond)
        log_det = log_det + more
    for found, expected in zip(both(*transform(x, cond)), both(y, log_det), strict=True):
        assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        back = y
        for part in reversed(list(transform.leaves())):
            back = part.inverse(back, cond)
        assert torch.allclose(transform.inverse(y, cond), back, rtol=1e-12, atol=1e-12)
        assert (back - x).abs().max() < 1e-9


def test_coupling_leaves_what_it_sees_and_two_of_them_change_everything():
    for mask in ("alternate", "random"):
        torch.manual_seed(0)
        couplings = [CouplingConfig(bijection=RQ, network=NET, mask=mask).build(VECTOR, i) for i in (0, 1)]
        changed = [set(c.change.tolist()) for c in couplings]
        assert changed[0] | changed[1] == set(range(5))
        assert not changed[0] & changed[1]
        for c in couplings:
            x = torch.randn(3, 5)
            y, _ = c(x, {})
            assert torch.equal(y[:, c.given], x[:, c.given])


def test_reordered_columns_have_the_gradients_of_a_selection():
    order = torch.randperm(7)
    x = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 7, dtype=torch.float64)

    def both(y):
        (first,) = torch.autograd.grad((weight * y.sin()).sum(), x, create_graph=True)
        return y, first, torch.autograd.grad((first * weight).sum(), x)[0]

    for found, expected in zip(both(reordered(x, order, order.argsort())), both(x[:, order]), strict=True):
        assert torch.equal(found, expected)


def test_coupling_refuses_overlap_and_emptiness():
    with pytest.raises(ValueError, match="changes at least one"):
        Coupling(VECTOR, [0, 1], [1, 2], RQ, NET)
    with pytest.raises(ValueError, match="changes at least one"):
        Coupling(VECTOR, [], [1, 2], RQ, NET)


def test_sweep_is_block_autoregressive():
    spec = DataSpec("image", (1, 4, 4))
    torch.manual_seed(0)
    sweep = randomised(SweepConfig(bijection=PL, network=NET, groups=8).build(spec, 0), 5)
    groups = partition(spec, 8)
    place = np.empty(16, dtype=int)
    for n, group in enumerate(groups):
        place[group] = n
    x = torch.rand(16, dtype=torch.float64) * 1.8 - 0.9
    jacobian = torch.autograd.functional.jacobian(lambda v: sweep(v[None], {})[0][0], x).numpy()
    later = place[:, None] < place[None, :]  # output drawn before input
    same = (place[:, None] == place[None, :]) & ~np.eye(16, dtype=bool)
    assert not jacobian[later].any()
    assert not jacobian[same].any()
    assert (jacobian[place[:, None] > place[None, :]] != 0).all()


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 2), (1, 1, 1)])
def test_partition_covers_every_dimension_once(shape):
    spec = DataSpec("image", shape)
    for groups in {1, min(5, spec.dims), spec.dims}:
        parts = partition(spec, groups)
        assert len(parts) == groups
        assert sorted(i for part in parts for i in part) == list(range(spec.dims))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    with pytest.raises(ValueError, match="groups"):
        partition(spec, spec.dims + 1)


def test_groups_of_pixels_lie_far_apart():
    groups = partition(DataSpec("image", (1, 8, 8)), 16)
    for group in groups:
        places = torch.tensor([(i // 8, i % 8) for i in group]).double()
        apart = torch.cdist(places, places) + 100 * torch.eye(len(group))
        assert apart.min() == 4


def test_lu_starts_as_the_identity_and_stays_invertible():
    lu = LULinear(4)
    x = torch.randn(3, 4)
    y, log_det = lu(x, {})
    assert torch.equal(y, x)
    assert not log_det.any()


def test_probit_is_the_normal_quantile():
    u = np.array([[1e-5, 0.2], [0.5, 0.999], [0.3, 0.7]])
    z, log_det = Probit()(torch.from_numpy(2 * u - 1), {})
    assert np.abs(z.numpy() - stats.norm.ppf(u)).max() < 1e-9
    # d z / d x with x = 2 u - 1 is 1 / (2 pdf(z))
    assert np.abs(log_det.numpy() + np.log(2 * stats.norm.pdf(z.numpy())).sum(1)).max() < 1e-9


def test_probit_has_no_density_outside_the_box_and_is_finite_on_its_faces():
    x = torch.tensor([[1.0, -1.0], [0.0, 1.0001], [-7.0, 0.0]])
    z, log_det = Probit()(x, {})
    assert z.isfinite().all()
    assert log_det.isfinite().tolist() == [True, False, False]
    assert (Probit().inverse(z[0], {}) - x[0]).abs().max() < 1e-6


@pytest.mark.parametrize("bijection", [Affine(), RQ], ids=lambda b: b.kind)
@pytest.mark.parametrize("place", [0, 1])
def test_the_jacobian_of_a_masked_autoregression_is_triangular(bijection, place):
    torch.manual_seed(1)
    config = AutoregressiveConfig(bijection=bijection, network=MADEConfig(width=96, depth=3))
    transform = randomised(config.build(DataSpec("vector", (6,)), place), 2)
    jacobian = torch.autograd.functional.jacobian(lambda v: transform(v[None], {})[0][0], torch.randn(6).double())
    upper = jacobian.triu(1) if place == 0 else jacobian.tril(-1)
    lower = jacobian.tril(-1) if place == 0 else jacobian.triu(1)
    assert not upper.any()
    assert (lower != 0).sum() == 15


def test_patches_are_read_line_by_line_and_cover_everything_once():
    groups, grid = patches(DataSpec("image", (2, 3, 4)), 2)
    assert grid == (2, 2)
    assert groups[1].tolist() == [2, 3, 6, 7, 14, 15, 18, 19]
    assert groups[2].tolist() == [8, 9, 24, 24, 20, 21, 24, 24]
    assert sorted(i for i in groups.flatten().tolist() if i < 24) == list(range(24))
    groups, grid = patches(DataSpec("vector", (3,)), 1)
    assert groups.tolist() == [[0], [1], [2]]
    assert grid == (1, 3)


def test_guidance_moves_the_parameters_of_every_kind_of_conditioner_in_a_line():
    cond = {"label": torch.tensor([0, 1, 2, -1])}
    for spec, config in (
        (VECTOR, CouplingConfig(bijection=Affine(), network=NET)),
        (VECTOR, AutoregressiveConfig(bijection=Affine(), network=MADE)),
        (SQUARE, TRIANGULAR),
        (SQUARE, PYRAMID),
    ):
        torch.manual_seed(2)
        transform = randomised(config.build(spec, 0), 3)
        z = torch.randn(4, spec.dims).double()
        with torch.no_grad():
            plain, free, twice = (transform.inverse(z, cond, scale) for scale in (1.0, 0.0, 2.0))
            assert torch.equal(plain, transform.inverse(z, cond))
            assert torch.allclose(free, transform.inverse(z, {}))
            assert torch.allclose(twice[3], free[3])  # without a label there is nothing to guide
            assert not torch.allclose(twice[:3], plain[:3])
    # the first column of an affine autoregression: x = mu + z exp(a), mu and a in a line
    made = randomised(AutoregressiveConfig(bijection=Affine(), network=MADE).build(VECTOR, 0), 3)
    with torch.no_grad():
        zero = torch.zeros(4, 5).double()
        first = [made.inverse(zero, cond, scale)[:, 0] for scale in (0.0, 1.0, 3.0)]
    assert torch.allclose(first[2], first[0] + 3 * (first[1] - first[0]))


def test_actnorm_standardises_what_it_is_prepared_on():
    x = 3 * torch.randn(50, 4, 3, 5).double() + torch.arange(4.0)[:, None, None]
    norm = ActNorm(4).double()
    norm.prepare(lambda: iter([(x, {})]))
    with torch.no_grad():
        y, log_det = norm(x, {})
    assert y.mean((0, 2, 3)).abs().max() < 1e-12
    assert (y.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-12
    assert torch.allclose(log_det, -15 * x.std((0, 2, 3), correction=0).log().sum().expand(50))


def test_preparation_reaches_every_actnorm_of_a_stack():
    torch.manual_seed(0)
    transform = Composite([LULinear(16), PYRAMID.build(SQUARE, 0)]).double()
    x = torch.randn(300, 16).double() @ torch.randn(16, 16).double() + 2
    transform.prepare(lambda: iter([(x, {})]))
    seen: list[torch.Tensor] = []
    for part in transform.modules():
        if isinstance(part, ActNorm):
            part.register_forward_hook(lambda module, inputs, output: seen.append(output[0]))
    with torch.no_grad():
        transform(x, {})
    assert len(seen) == 4
    for y in seen:
        assert y.mean((0, 2, 3)).abs().max() < 1e-9
        assert (y.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-9


def test_invertible_convolution_is_a_matrix_on_the_channels_of_every_pixel():
    conv = randomised(InvertibleConv(5, 3), 1)
    lower, upper = conv.lower.tril(-1) + torch.eye(5), conv.upper.triu(1) + conv.log_diagonal.exp().diag()
    matrix = torch.eye(5).double()[conv.order] @ lower @ upper
    x = torch.randn(2, 5, 3, 2).double()
    assert torch.allclose(conv(x, {})[0], torch.einsum("ij,bjhw->bihw", matrix, x))


def test_channel_coupling_keeps_what_it_sees():
    torch.manual_seed(0)
    coupling = randomised(ChannelCoupling((5, 2, 2), 2, {}, Affine(), PlainConvConfig(width=8)), 1)
    x = torch.randn(3, 5, 2, 2).double()
    y, _ = coupling(x, {})
    assert torch.equal(y[:, :3], x[:, :3])
    assert (y[:, 3:] != x[:, 3:]).all()


def test_marginals_make_every_dimension_uniform_and_agree_with_the_histogram():
    g = np.random.default_rng(4)
    levels, n = 8, 4000
    k = np.stack([g.binomial(7, 0.3, n), np.where(g.random(n) < 0.9, 0, 5), np.full(n, 2)], 1)
    x = torch.from_numpy((k + 0.5) / levels * 2 - 1)
    marginals = Marginals(3, 1, levels, pool=1e-6, floor=1e-9).double()
    marginals.prepare(lambda: iter([(x[:1000], {}), (x[1000:], {})]))
    noisy = x + torch.from_numpy(g.random((n, 3)) - 0.5) * 2 / levels
    y, _ = marginals(noisy, {})
    for d in range(3):
        assert stats.kstest((y[:, d].numpy() + 1) / 2, "uniform").pvalue > 1e-3
        share = np.bincount(k[:, d], minlength=levels) / n
        one = noisy.clone()
        alone = Marginals(1, 1, levels, pool=1e-6, floor=1e-9).double()
        alone.edges.copy_(marginals.edges[d : d + 1])
        mass = alone(one[:, d : d + 1], {})[1].exp() / levels
        assert np.abs(mass.numpy() - share[k[:, d]]).max() < 1e-6
    assert (marginals.inverse(y, {}) - noisy).abs().max() < 1e-9
    assert marginals(torch.full((1, 3), 1.01).double(), {})[1] == -np.inf


@pytest.mark.parametrize("level", [0, 7])
def test_a_bell_is_a_gaussian_that_ends_at_the_inner_edge_of_its_bin(level):
    g = np.random.default_rng(5 + level)
    share, levels, n = 0.8, 8, 4000
    k = np.where(g.random((n, 1)) < share, level, 3)
    x = torch.from_numpy((k + g.random((n, 1))) / levels * 2 - 1)
    z, spilled = {}, {}
    for bell in (False, True):
        marginals = Marginals(1, 1, levels, pool=1e-6, floor=1e-9, bell=bell).double()
        marginals.prepare(lambda: iter([(x, {})]))
        mass = float(marginals.edges[0, 1] if level == 0 else 1 - marginals.edges[0, -2])
        assert mass == pytest.approx((k == level).mean())
        out = Probit()(marginals(x, {})[0], {})[0].numpy()[k == level] * (1 if level == 0 else -1)
        edge = stats.norm.ppf(mass)
        assert (out <= edge + 1e-9).all()
        z[bell], spilled[bell] = out, stats.norm.sf((edge - out.mean()) / out.std())
    std = np.sqrt(mass) / 2
    assert stats.kstest(z[True], stats.truncnorm(-np.inf, 4, edge - 4 * std, std).cdf).pvalue > 1e-3
    assert stats.kstest(z[False], stats.truncnorm(-np.inf, edge).cdf).pvalue > 1e-3
    # what an affine map behind the probit, which can but fit a Gaussian, would put beyond the edge
    assert spilled[True] < 1e-4 < 0.02 < spilled[False]


def test_pooling_draws_a_rare_dimension_towards_its_channel():
    x = torch.full((10, 4), -1.0).double() + 0.1
    x[:, 3] = 0.9
    marginals = Marginals(4, 2, 2, pool=10.0, floor=1e-9).double()
    marginals.prepare(lambda: iter([(x, {})]))
    # second channel: 10 of 20 in each bin, with one more example each: 1/2; counted half, pooled half
    assert torch.allclose(marginals.edges[3], torch.tensor([0.0, 0.25, 1.0]).double())
    assert torch.allclose(marginals.edges[0, 1], torch.tensor(0.5 + 0.5 * 21 / 22).double())


def test_a_pyramid_refuses_odd_sides():
    with pytest.raises(ValueError, match="3 x 4"):
        PYRAMID.build(DataSpec("image", (1, 3, 4)), 0)
