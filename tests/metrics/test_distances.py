"""MMD and Fréchet distance against independent implementations and closed forms."""

import math
import sys
import types

import numpy as np
import pytest
import scipy.linalg
import torch
from sklearn.metrics.pairwise import polynomial_kernel, rbf_kernel

from quintet.core.rng import Rng
from quintet.metrics.distances import (
    Centred,
    GaussianKernels,
    Polynomial,
    covariance,
    fd,
    frechet,
    frechet_gaussians,
    kid,
    mmd2,
    real_kernels,
    squared_distances,
)


@pytest.fixture
def sets():
    g = np.random.default_rng(1)
    scale = np.linspace(0.3, 2, 12)
    return np.abs(g.standard_normal((320, 12))) * scale, np.abs(g.standard_normal((270, 12))) * scale + 0.2


def mmd_by_hand(kxx, kyy, kxy):
    n, m = len(kxx), len(kyy)
    return (kxx.sum() - np.trace(kxx)) / (n * (n - 1)) + (kyy.sum() - np.trace(kyy)) / (m * (m - 1)) - 2 * kxy.mean()


def test_mmd_agrees_with_sklearn_kernels(sets):
    x, y = sets
    kernel = [polynomial_kernel(a, b, degree=3, gamma=1 / 12, coef0=1) for a, b in ((x, x), (y, y), (x, y))]
    assert mmd2(x, y, Polynomial()).value == pytest.approx(mmd_by_hand(*kernel), rel=1e-9)
    widths = (0.7, 3.0)
    kernel = [sum(rbf_kernel(a, b, gamma=1 / (2 * s * s)) for s in widths) / 2 for a, b in ((x, x), (y, y), (x, y))]
    assert mmd2(x, y, GaussianKernels(widths)).value == pytest.approx(mmd_by_hand(*kernel), rel=1e-9)


def test_blocks_and_order_play_no_part(sets):
    x, y = sets
    whole = mmd2(x, y, Polynomial(), block=4096)
    parts = mmd2(x[::-1], np.random.default_rng(2).permutation(y), Polynomial(), block=37)
    assert parts.value == pytest.approx(whole.value, rel=1e-9)
    assert parts.se == pytest.approx(whole.se, rel=1e-9)


def test_products_of_wide_rows_in_float32_keep_the_value(monkeypatch):
    """Far from the origin too, and where the sets are of one distribution, up to a thousandth of the standard error."""
    g = np.random.default_rng(20261121)
    scale = 20 * np.arange(1, 513) ** -0.75
    x, y, z = (np.float32(np.abs(g.standard_normal((n, 512))) * scale) for n in (300, 250, 250))
    for a, b in ((1.1 * x, y), (1.1 * x + np.float32(30), y + np.float32(30)), (0.01 * x, 0.011 * y), (z, y)):
        fast = mmd2(a, b, Polynomial(), block=128)
        with monkeypatch.context() as patch:
            patch.setattr("quintet.metrics.distances.SINGLE", 10**9)
            slow = mmd2(a, b, Polynomial())
        assert fast.value != slow.value
        assert fast.value == pytest.approx(slow.value, rel=1e-6, abs=1e-5 * slow.se)
        assert fast.se == pytest.approx(slow.se, rel=1e-5)
    by_hand = [polynomial_kernel(p.astype(float), q.astype(float), degree=3, gamma=1 / 512, coef0=1)
               for p, q in ((x, x), (y, y), (x, y))]  # fmt: skip
    assert mmd2(x, y, Polynomial()).value == pytest.approx(mmd_by_hand(*by_hand), rel=1e-6)
    centre = y.mean(axis=0)
    inner = Centred(x, centre).inner(Centred(y, centre), slice(3, 70), slice(40, 90))
    assert inner == pytest.approx(x[3:70].astype(float) @ y[40:90].T.astype(float), rel=1e-5)


def test_jackknife_is_what_leaving_out_gives(sets):
    x, y = sets[0][:17], sets[1][:11]
    left = [mmd2(np.delete(x, i, 0), y, Polynomial()).value for i in range(17)]
    right = [mmd2(x, np.delete(y, j, 0), Polynomial()).value for j in range(11)]
    assert mmd2(x, y, Polynomial()).se == pytest.approx(math.sqrt(16 * np.var(left) + 10 * np.var(right)), rel=1e-9)


def import_torchmetrics():
    """torchmetrics, with an empty torchvision for its import where that is missing and it insists."""
    try:
        import torchmetrics.image
    except ImportError:
        for name in [n for n in sys.modules if n.startswith("torchmetrics")]:
            del sys.modules[name]
        sys.modules.setdefault("torchvision", types.ModuleType("torchvision"))
        return pytest.importorskip("torchmetrics")
    return torchmetrics


class Identity(torch.nn.Module):
    num_features = 12

    def forward(self, x):
        return x


def test_kid_and_fd_agree_with_torchmetrics(sets):
    import_torchmetrics()
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    x, y = (torch.from_numpy(s[:270]) for s in sets)
    theirs = KernelInceptionDistance(feature=Identity(), subsets=1, subset_size=270, normalize=True)
    theirs.set_dtype(torch.float64)
    theirs.update(x, real=True)
    theirs.update(y, real=False)
    assert mmd2(y.numpy(), x.numpy(), Polynomial()).value == pytest.approx(float(theirs.compute()[0]), rel=1e-6)
    metric = FrechetInceptionDistance(feature=Identity(), normalize=True).set_dtype(torch.float64)
    metric.update(x, real=True)
    metric.update(y, real=False)
    assert frechet(x.numpy(), y.numpy()) == pytest.approx(float(metric.compute()), rel=1e-6)


def test_fd_agrees_with_scipy(sets):
    x, y = sets
    a, b = np.cov(x.T), np.cov(y.T)
    root = scipy.linalg.sqrtm(a @ b)
    theirs = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a + b - 2 * np.real(root))
    assert frechet(x, y) == pytest.approx(theirs, rel=1e-6)


def test_fd_of_gaussians_in_closed_form():
    g = np.random.default_rng(3)
    s, t, shift = g.uniform(0.2, 3, 6), g.uniform(0.2, 3, 6), g.standard_normal(6)
    q, _ = np.linalg.qr(g.standard_normal((6, 6)))
    zero = np.zeros(6)
    commuting = frechet_gaussians(zero, q @ np.diag(s**2) @ q.T, shift, q @ np.diag(t**2) @ q.T)
    assert commuting == pytest.approx((shift**2).sum() + ((s - t) ** 2).sum(), rel=1e-9)
    # two lines in the plane: (A B)^1/2 has trace |cos| s t
    u, v = np.array([1.0, 0.0]), np.array([math.cos(0.7), math.sin(0.7)])
    lines = frechet_gaussians(np.zeros(2), 4 * np.outer(u, u), np.zeros(2), 9 * np.outer(v, v))
    assert lines == pytest.approx(4 + 9 - 2 * 6 * math.cos(0.7), rel=1e-7)


def test_fd_with_singular_covariances():
    g = np.random.default_rng(4)
    plane = g.standard_normal((3, 40))
    x, y = g.standard_normal((20, 3)) @ plane, 2 * g.standard_normal((25, 3)) @ plane
    q, _ = np.linalg.qr(plane.T)
    assert frechet(x, y) == pytest.approx(frechet(x @ q, y @ q), rel=1e-6)
    assert frechet(x, x) == pytest.approx(0, abs=1e-6 * np.trace(covariance(x)))
    constant = np.ones((5, 40))
    assert frechet(constant, constant) == 0


def test_both_are_symmetric(sets):
    x, y = sets
    assert frechet(x, y) == pytest.approx(frechet(y, x), rel=1e-9)
    assert kid(x, y).value == pytest.approx(kid(y, x).value, rel=1e-9)


@pytest.mark.parametrize("kind", ["polynomial", "gaussian"])
def test_kid_is_unbiased_and_its_interval_covers(kind):
    g = np.random.default_rng(5)
    kernel = Polynomial() if kind == "polynomial" else real_kernels(g.standard_normal((300, 4)))
    found = [mmd2(g.standard_normal((60, 4)), g.standard_normal((60, 4)), kernel) for _ in range(300)]
    values = np.array([f.value for f in found])
    assert abs(values.mean()) < 4 * values.std(ddof=1) / math.sqrt(len(values))
    covers = np.mean([abs(f.value) <= 1.96 * f.se for f in found])
    assert covers > 0.9
    # the jackknife is too wide under equality by about sqrt(2), never too narrow
    assert 0.9 < np.sqrt(np.mean([f.se**2 for f in found])) / values.std(ddof=1) < 2.2


def test_interval_covers_where_distributions_differ():
    g = np.random.default_rng(6)
    big = [g.standard_normal((4000, 3)), 1.2 * g.standard_normal((4000, 3)) + 0.3]
    truth = mmd2(*big, Polynomial()).value
    found = [mmd2(g.standard_normal((80, 3)), 1.2 * g.standard_normal((80, 3)) + 0.3, Polynomial()) for _ in range(200)]
    assert np.mean([abs(f.value - truth) <= 1.96 * f.se for f in found]) > 0.88
    assert np.mean([f.value > 0 for f in found]) > 0.5


def test_gaussian_kernels_see_what_three_moments_hide():
    """A ring of eight modes and the Gaussian with its moments."""
    g = np.random.default_rng(7)
    angle = g.integers(0, 8, 1000) * math.pi / 4
    ring = np.stack([np.cos(angle), np.sin(angle)], 1) * 2 + 0.05 * g.standard_normal((1000, 2))
    blob = g.multivariate_normal(ring.mean(0), np.cov(ring.T), 1000)
    value, se = mmd2(blob, ring, real_kernels(ring[:500]))
    assert value > 8 * se


def test_fd_interval_and_repeatability(sets):
    x, y = sets
    first, second = (fd(x, y, rng=Rng(1, "test")) for _ in range(2))
    assert first == second
    assert 0 <= first.low < first.value < first.high


def test_squared_distances_of_pixels_are_exact():
    x = np.random.default_rng(8).integers(0, 256, (50, 300)).astype(np.float64)
    assert np.array_equal(squared_distances(x, x), ((x[:, None] - x[None]) ** 2).sum(-1))


def test_too_few_is_null_with_reason():
    for found in (kid(np.ones((1, 2)), np.ones((50, 2))), fd(np.ones((1, 2)), np.ones((50, 2)), rng=Rng(0, "t"))):
        assert found.value is None
        assert "not available (n=1" in found.protocol


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="one width"):
        mmd2(np.ones((5, 2)), np.ones((5, 3)), Polynomial())
    with pytest.raises(ValueError, match="NaN"):
        frechet(np.full((5, 2), np.nan), np.ones((5, 2)))
