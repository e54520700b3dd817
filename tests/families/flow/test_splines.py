import math

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from quintet.core.config import decode, encode
from quintet.families.flow.bijections import Bijection
from quintet.families.flow.splines import PiecewiseLinear, RationalQuadratic, _softmax

SPLINES = [
    RationalQuadratic(bins=5, bound=3.0),
    RationalQuadratic(bins=2, bound=1.0, least=0.01),
    PiecewiseLinear(bins=7, bound=1.0),
    PiecewiseLinear(bins=17, bound=2.0, floor=0.1),
]
IDS = [f"{s.kind}-{s.bins}" for s in SPLINES]


@pytest.fixture(params=SPLINES, ids=IDS)
def spline(request) -> Bijection:
    return request.param


def draw(spline: Bijection, rows: int, seed: int, scale: float = 2.0, spread: float = 1.3):
    """Values across the box and beyond, and random parameters, float64: (rows, 3) and (rows, 3, P)."""
    g = torch.Generator().manual_seed(seed)
    x = (2 * torch.rand(rows, 3, generator=g, dtype=torch.float64) - 1) * spline.bound * spread
    theta = scale * torch.randn(rows, 3, spline.parameters, generator=g, dtype=torch.float64)
    return x, theta


def rational_quadratic_by_hand(x: float, theta: np.ndarray, k: int, bound: float, least: float) -> float:
    """Durkan et al. 2019, equation 4, for one number, with a loop over the bins."""
    if abs(x) >= bound:
        return x

    def shares(v):
        e = np.exp(v - v.max())
        return 2 * bound * (least / k + (1 - least) * e / e.sum())

    w, h = shares(theta[:k]), shares(theta[k : 2 * k])
    one = math.log(math.exp(1 - least) - 1)
    slopes = [1.0, *(least + math.log1p(math.exp(v + one)) for v in theta[2 * k :]), 1.0]
    left = low = -bound
    for i in range(k):
        if x <= left + w[i]:
            s, xi = h[i] / w[i], (x - left) / w[i]
            top = h[i] * (s * xi**2 + slopes[i] * xi * (1 - xi))
            return low + top / (s + (slopes[i + 1] + slopes[i] - 2 * s) * xi * (1 - xi))
        left, low = left + w[i], low + h[i]
    raise AssertionError


def test_rational_quadratic_agrees_with_the_paper_written_as_a_loop():
    spline = RationalQuadratic(bins=6, bound=2.5, least=0.02)
    x, theta = draw(spline, 40, seed=1)
    y, _ = spline.forward(x, theta)
    for i in range(40):
        for j in range(3):
            expected = rational_quadratic_by_hand(float(x[i, j]), theta[i, j].numpy(), 6, 2.5, 0.02)
            assert abs(float(y[i, j]) - expected) < 1e-12


def test_piecewise_linear_is_the_distribution_function_of_a_histogram():
    spline = PiecewiseLinear(bins=9, bound=2.0, floor=0.05)
    x, theta = draw(spline, 50, seed=2, spread=1.0)
    y, log_slope = spline.forward(x, theta)
    mass = 0.05 / 9 + 0.95 * torch.softmax(theta, -1).numpy()
    grid = np.linspace(-2, 2, 10)
    for i in range(50):
        for j in range(3):
            cumulative = np.concatenate([[0], np.cumsum(mass[i, j])])
            at = float(x[i, j])
            assert abs(np.interp(at, grid, 4 * cumulative - 2) - float(y[i, j])) < 1e-12
            cell = int(np.searchsorted(grid, at, side="right") - 1)
            assert abs(mass[i, j, cell] * 9 - math.exp(log_slope[i, j])) < 1e-10


def test_log_slope_is_the_derivative(spline):
    x, theta = draw(spline, 200, seed=3)
    x.requires_grad_()
    y, log_slope = spline.forward(x, theta)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert (slope.log() - log_slope).abs().max() < 1e-10


def test_inverse_undoes_forward_and_forward_undoes_inverse(spline):
    x, theta = draw(spline, 500, seed=4)
    assert (spline.inverse(spline.forward(x, theta)[0], theta) - x).abs().max() < 1e-9
    assert (spline.forward(spline.inverse(x, theta), theta)[0] - x).abs().max() < 1e-9


def test_zero_parameters_are_the_identity(spline):
    x, theta = draw(spline, 100, seed=5)
    y, log_slope = spline.forward(x, torch.zeros_like(theta))
    assert (y - x).abs().max() < 1e-12
    assert log_slope.abs().max() < 1e-12


def test_identity_outside_the_box(spline):
    _, theta = draw(spline, 4, seed=6, scale=20.0)
    x = torch.tensor([1.0001, 3.0, 1e3]).double() * spline.bound
    x = torch.stack([x, -x, x, -x])
    y, log_slope = spline.forward(x, theta)
    assert torch.equal(y, x)
    assert torch.equal(spline.inverse(x, theta), x)
    assert not log_slope.any()


def test_strictly_increasing_and_onto_the_box(spline):
    _, theta = draw(spline, 20, seed=7, scale=4.0)
    x = torch.linspace(-1, 1, 4001, dtype=torch.float64)[:, None, None] * spline.bound
    y, _ = spline.forward(x.expand(-1, 20, 3), theta.expand(4001, -1, -1, -1))
    assert (y.diff(dim=0) > 0).all()
    assert (y[0] + spline.bound).abs().max() < 1e-9
    assert (y[-1] - spline.bound).abs().max() < 1e-9


def test_rational_quadratic_has_a_continuous_slope_at_knots_and_bounds():
    spline = RationalQuadratic(bins=6, bound=2.0)
    _, theta = draw(spline, 30, seed=8)
    sizes = (spline.least / 6 + (1 - spline.least) * theta[..., :6].softmax(-1)) * 4
    knots = torch.cat([torch.zeros(30, 3, 1).double(), sizes.cumsum(-1)], -1) - 2  # (30, 3, 7), both bounds too
    theta = theta[..., None, :].expand(-1, -1, 7, -1)
    step = 1e-12
    (y0, slope0), (y1, slope1) = (spline.forward(knots + sign * step, theta) for sign in (-1, 1))
    assert (slope1 - slope0).abs().max() < 1e-4  # a jump would be of order 1; curvature times the step is far below
    assert (y1 - y0).abs().max() < 1e-6


def test_gradients_are_finite_where_float32_is_hardest(spline):
    g = torch.Generator().manual_seed(9)
    for scale in (0.0, 5.0, 60.0):
        theta = (scale * torch.randn(6, 7, spline.parameters, generator=g)).requires_grad_()
        places = torch.tensor([-1e6, -1.0, -1 + 6e-8, 0.0, 1 - 6e-8, 1.0, 1e6]) * spline.bound
        x = places.expand(6, 7).clone().requires_grad_()
        y, log_slope = spline.forward(x, theta)
        assert y.isfinite().all()
        assert log_slope.isfinite().all()
        (y.clamp(-9, 9).sum() + log_slope.sum()).backward()
        assert theta.grad.isfinite().all()
        assert x.grad.isfinite().all()
        assert spline.inverse(x.detach(), theta.detach()).isfinite().all()


def test_float32_round_trip(spline):
    x, theta = draw(spline, 2000, seed=10, spread=10.0)
    x, theta = x.float(), theta.float()
    y, log_slope = spline.forward(x, theta)
    error = (spline.inverse(y, theta) - x).abs()
    assert (error * log_slope.exp().clamp_max(1)).max() < 1e-5 * spline.bound  # rounding of y over the slope
    assert error.median() < 1e-6 * spline.bound


def test_rational_quadratic_sums_no_short_axis():
    """Compiled for several threads, a sum over the bins starts all of them for every row: thirty times slower."""
    spline = RationalQuadratic(bins=8)
    x, theta = draw(spline, 20, 0)
    seen = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.add(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    with Watch():
        y, log_slope = spline.forward(x.requires_grad_(), theta.requires_grad_())
        (y.square() + log_slope).backward(torch.ones_like(y))
    assert "exp" in seen
    assert not seen & {"_softmax", "_softmax_backward_data", "sum", "amax", "max", "cumsum", "gather", "scatter_add"}


def test_shares_of_bins_are_a_softmax():
    logits = 30 * torch.randn(2, 6, 50, dtype=torch.float64)
    assert torch.allclose(_softmax(logits), logits.softmax(1), rtol=1e-12, atol=0)
    assert torch.equal(_softmax(logits.float() + 1e4).sum(1).round(), torch.ones(2, 50))  # no overflow


def test_config_round_trip(spline):
    assert decode(encode(spline), {spline.kind: type(spline)}) == spline
