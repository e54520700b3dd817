import numpy as np
import pytest
import torch
from scipy import stats

from quintet.core.spec import DataSpec
from quintet.families.flow.splines import PiecewiseLinear, RationalQuadratic
from quintet.families.flow.transforms import (
    Composite,
    LULinear,
    LULinearConfig,
    Probit,
    ProbitConfig,
    SplineCoupling,
    SplineCouplingConfig,
    SweepConfig,
    Transform,
    partition,
)
from quintet.nets.mlp import MLPConfig, ResidualMLPConfig

NET = MLPConfig(width=16, depth=2)
RQ, PL = RationalQuadratic(bins=5, bound=3.0), PiecewiseLinear(bins=6)
VECTOR = DataSpec("vector", (5,), conditions={"label": 3})
IMAGE = DataSpec("image", (2, 3, 2), conditions={"label": 3})
CASES = {
    "alternate": (VECTOR, (SplineCouplingConfig(spline=RQ, network=NET),)),
    "random": (VECTOR, (SplineCouplingConfig(spline=RQ, network=NET, mask="random"),)),
    "one-dimension": (
        DataSpec("vector", (1,), conditions={"label": 3}),
        (SplineCouplingConfig(spline=RQ, network=NET),),
    ),
    "residual-conditioner": (
        VECTOR,
        (SplineCouplingConfig(spline=RQ, network=ResidualMLPConfig(width=16, hidden=16)),),
    ),
    "lu": (VECTOR, (LULinearConfig(),)),
    "probit": (VECTOR, (ProbitConfig(),)),
    "sweep": (IMAGE, (SweepConfig(spline=PL, network=NET, groups=4),)),
    "rows-of-all": (VECTOR, (LULinearConfig(), SplineCouplingConfig(spline=RQ, network=NET)) * 3),
    "box-then-line": (IMAGE, (SweepConfig(spline=PL, network=NET, groups=12), ProbitConfig(), LULinearConfig())),
}
BOX = {"probit", "sweep", "box-then-line"}


def randomised(transform: Transform, seed: int) -> Transform:
    """Float64, every parameter moved away from its initial value."""
    g = torch.Generator().manual_seed(seed)
    transform.double().eval()
    with torch.no_grad():
        for p in transform.parameters():
            p += 0.2 * torch.randn(p.shape, generator=g, dtype=torch.float64)
    return transform


@pytest.fixture(params=CASES)
def case(request):
    """Transform, x (6, D), cond."""
    spec, configs = CASES[request.param]
    torch.manual_seed(3)
    transform = randomised(Composite([c.build(spec, i) for i, c in enumerate(configs)]), seed=4)
    transform.requires_grad_(False)
    x = torch.randn(6, spec.dims, dtype=torch.float64)
    x = x.tanh() * 0.99 if request.param in BOX else 2 * x
    return transform, x, {"label": torch.tensor([0, 1, 2, -1, 0, 1])}


def test_log_det_is_that_of_the_jacobian(case):
    transform, x, cond = case
    _, log_det = transform(x, cond)
    assert log_det.shape == (6,)
    for i in range(6):
        one = {"label": cond["label"][i : i + 1]}
        jacobian = torch.autograd.functional.jacobian(lambda v, one=one: transform(v[None], one)[0][0], x[i])
        sign, expected = torch.linalg.slogdet(jacobian)
        assert sign > 0
        assert abs(float(expected - log_det[i])) < 1e-10


def test_inverse(case):
    transform, x, cond = case
    y, _ = transform(x, cond)
    assert (transform.inverse(y, cond) - x).abs().max() < 1e-9
    assert not torch.allclose(y, x)


def test_log_det_of_the_inverse_has_the_opposite_sign(case):
    transform, x, cond = case
    y, log_det = transform(x, cond)
    for i in range(2):
        one = {"label": cond["label"][i : i + 1]}
        back = torch.autograd.functional.jacobian(lambda v, one=one: transform.inverse(v[None], one)[0], y[i])
        assert abs(float(torch.linalg.slogdet(back)[1] + log_det[i])) < 1e-7


def test_the_label_changes_every_coupling():
    torch.manual_seed(0)
    transform = randomised(SplineCouplingConfig(spline=RQ, network=NET).build(VECTOR, 0), 1)
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


def test_coupling_leaves_what_it_sees_and_two_of_them_change_everything():
    for mask in ("alternate", "random"):
        torch.manual_seed(0)
        couplings = [SplineCouplingConfig(spline=RQ, network=NET, mask=mask).build(VECTOR, i) for i in (0, 1)]
        changed = [set(c.change.tolist()) for c in couplings]
        assert changed[0] | changed[1] == set(range(5))
        assert not changed[0] & changed[1]
        for c in couplings:
            x = torch.randn(3, 5)
            y, _ = c(x, {})
            assert torch.equal(y[:, c.given], x[:, c.given])


def test_coupling_refuses_overlap_and_emptiness():
    with pytest.raises(ValueError, match="changes at least one"):
        SplineCoupling(VECTOR, [0, 1], [1, 2], RQ, NET)
    with pytest.raises(ValueError, match="changes at least one"):
        SplineCoupling(VECTOR, [], [1, 2], RQ, NET)


def test_sweep_is_block_autoregressive():
    spec = DataSpec("image", (1, 4, 4))
    torch.manual_seed(0)
    sweep = randomised(SweepConfig(spline=PL, network=NET, groups=8).build(spec, 0), 5)
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
