"""GAN oracles: games, discriminators and penalties with a known answer, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from quintet.core.batch import Batch
from quintet.core.model import Turn
from quintet.core.rng import Rng
from quintet.core.spec import DataSpec
from quintet.families.gan.losses import (
    LOSSES,
    Hinge,
    LeastSquares,
    Minimax,
    NonSaturating,
    Relativistic,
    WassersteinGP,
    cosine,
    gradient_penalties,
)
from quintet.families.gan.model import GAN, GANSampling
from quintet.train.loop import frozen

F64 = torch.float64


class Point(nn.Module):
    """The Dirac-GAN's generator: every z becomes theta."""

    def __init__(self, theta: float) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(theta, dtype=F64))

    def forward(self, z: Tensor, cond: object) -> Tensor:
        return self.theta.expand(len(z), 1)


class Slope(nn.Module):
    """The Dirac-GAN's discriminator: D(x) = psi x."""

    def __init__(self, psi: float) -> None:
        super().__init__()
        self.psi = nn.Parameter(torch.tensor(psi, dtype=F64))

    def forward(self, x: Tensor, cond: object) -> tuple[Tensor, dict[str, Tensor]]:
        return self.psi * x[:, 0], {}


def make(generator, discriminator, loss, dims=1, latent=1, gamma=0.0):
    return GAN(
        DataSpec("vector", (dims,)),
        generator,
        discriminator,
        loss,
        latent=latent,
        gamma=gamma,
        gamma_end=gamma,
        class_dropout=0.0,
        augment=0.0,
        noise=0.0,
        coins=0,
        bound=None,
        sampling=GANSampling(),
    )


def update(loss, gamma: float, h: float, alternating: bool):
    """The Dirac-GAN's update (theta, psi) -> (theta, psi), differentiable, from the loss objects."""

    def step(state: Tensor) -> Tensor:
        theta, psi = state[0], state[1]
        x = torch.stack([torch.zeros_like(theta), theta])[:, None]
        logits = psi * x[:, 0]
        total = loss.discriminator(logits[:1], logits[1:]) + gamma / 2 * gradient_penalties(logits, x, 1).r1
        (down,) = torch.autograd.grad(total, psi, create_graph=True)
        new = psi - h * down
        judge, own = new if alternating else psi, theta.clone()  # the partial derivative: judge is a constant to it
        logits = judge * torch.stack([torch.zeros_like(own), own])
        (down,) = torch.autograd.grad(loss.generator(logits[:1], logits[1:]), own, create_graph=True)
        return torch.stack([theta - h * down, new])

    return step


SLOPES = {  # -d/dD(fake) of the generator's loss, and d/dD(fake) of the discriminator's, where both logits are 0
    "relativistic": (1 / 2, 1 / 2),
    "minimax": (1 / 2, 1 / 2),
    "non-saturating": (1 / 2, 1 / 2),
    "hinge": (1, 1),
    "least-squares": (1, 0),
    "wasserstein-gp": (1, 1),
}


@pytest.mark.parametrize("kind", sorted(LOSSES))
@pytest.mark.parametrize("alternating", [False, True])
@pytest.mark.parametrize("gamma", [0.0, 0.3, 2.0])
def test_dirac_gan_eigenvalues(kind, alternating, gamma):
    """Mescheder et al. 2018, lemma 2.3 and 2.4 and section 4, for a generator's slope a and a discriminator's b.

    In (theta, psi) a simultaneous step is [[1, h a], [-h b, 1 - h gamma]]. Least squares is degenerate here: without a
    constant, psi x cannot reach its optimum 1/2, and the discriminator has no slope at 0.
    """
    (a, b), h = SLOPES[kind], 0.2
    zero = torch.zeros(2, dtype=F64, requires_grad=True)
    jacobian = torch.autograd.functional.jacobian(update(LOSSES[kind](), gamma, h, alternating), zero)
    found = np.sort_complex(np.linalg.eigvals(jacobian.numpy()))
    if alternating:
        trace, det = 2 - h * gamma - h * h * a * b, 1 - h * gamma
    else:
        trace, det = 2 - h * gamma, 1 - h * gamma + h * h * a * b
    root = np.emath.sqrt(trace**2 / 4 - det)
    expected = np.sort_complex(np.array([trace / 2 - root, trace / 2 + root], dtype=complex))
    np.testing.assert_allclose(found, expected, atol=1e-7)  # a double root loses half the digits
    largest = abs(found).max()
    if b == 0:
        assert largest == pytest.approx(1, abs=1e-7)
    elif gamma:
        assert largest < 1
    elif alternating:
        assert largest == pytest.approx(1, abs=1e-12)
    else:
        assert largest == pytest.approx(math.sqrt(1 + h * h * a * b), abs=1e-12)
        assert largest > 1


@pytest.mark.parametrize("gamma", [0.0, 0.2, 1.0])
def test_dirac_gan_simulation_follows_the_linear_map(gamma):
    """The model's own losses in the loop's order of turns, by gradient descent; R1 + R2 double gamma."""
    h, state = 0.1, np.array([1e-3, 5e-4])
    linear = np.array([[1 - h * h / 4, h / 2 * (1 - 2 * h * gamma)], [-h / 2, 1 - 2 * h * gamma]])
    model = make(Point(state[0]), Slope(state[1]), Relativistic(), gamma=gamma)
    players = model.players()
    real = torch.zeros(4, 1, dtype=F64)
    for step in range(300):
        turn = Turn(step, 0.0, Batch(real, torch.arange(4)), Rng(0, "train", step))
        turn = Turn(step, 0.0, turn.batch, turn.rng, model.shared(turn))
        for player, other in (players, players[::-1]):
            with frozen(list(other.module.parameters())):
                player.loss(turn).total.backward()
            for p in player.module.parameters():
                p.data -= h * p.grad
                p.grad = None
        state = linear @ state
        found = np.array([model.generator.theta.item(), model.discriminator.psi.item()])
        np.testing.assert_allclose(found, state, atol=1e-4 * np.hypot(*state))
    radius = np.hypot(*state) / np.hypot(1e-3, 5e-4)
    assert radius < 0.05 if gamma else radius > 0.7  # without the penalty it circles for ever


def two_distributions(cells: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Counts of two distributions over cells that sum to the same number, all positive."""
    generator = np.random.default_rng()
    p, q = (generator.integers(5, 50, cells - 1) for _ in range(2))
    total = cells * 60
    p, q = (np.append(c, total - c.sum()) for c in (p, q))
    return p, q, total


def fitted(objective, cells: int) -> tuple[np.ndarray, float]:
    """The table of logits that minimises `objective`, and the minimum."""
    table = torch.zeros(cells, dtype=F64, requires_grad=True)
    optimizer = torch.optim.LBFGS([table], max_iter=2000, tolerance_grad=1e-12, tolerance_change=1e-16)

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = objective(table)
        value.backward()
        return value

    optimizer.step(closure)
    return table.detach().numpy(), float(closure().detach())


@pytest.mark.parametrize("loss", [Minimax(), NonSaturating()], ids=lambda loss: loss.kind)
def test_optimal_discriminator_and_jensen_shannon(loss):
    """A table fitted to the 2014 loss is log p/q, and the loss then says the Jensen-Shannon divergence."""
    p, q, total = two_distributions(13)
    rows_p, rows_q = (torch.from_numpy(np.repeat(np.arange(13), c)) for c in (p, q))
    table, value = fitted(lambda t: loss.discriminator(t[rows_p], t[rows_q]), 13)
    p, q = p / total, q / total
    np.testing.assert_allclose(table, np.log(p / q), atol=1e-5)
    m = (p + q) / 2
    js = (p @ np.log(p / m) + q @ np.log(q / m)) / 2
    assert value == pytest.approx(2 * math.log(2) - 2 * js, abs=1e-9)


def test_optimal_discriminator_of_least_squares():
    """p / (p + q), and the loss there half the sum of p q / (p + q), a Pearson divergence (arXiv:1611.04076)."""
    p, q, total = two_distributions(13)
    rows_p, rows_q = (torch.from_numpy(np.repeat(np.arange(13), c)) for c in (p, q))
    table, value = fitted(lambda t: LeastSquares().discriminator(t[rows_p], t[rows_q]), 13)
    p, q = p / total, q / total
    np.testing.assert_allclose(table, p / (p + q), atol=1e-6)
    assert value == pytest.approx((p * q / (p + q)).sum() / 2, abs=1e-9)


def test_optimal_discriminator_of_hinge():
    """The sign of p - q, and the loss there 2 sum min(p, q) = 2 - 2 TV: no table of a finer mesh does better."""
    p, q, total = two_distributions(13)
    rows_p, rows_q = (torch.from_numpy(np.repeat(np.arange(13), c)) for c in (p, q))
    best = torch.from_numpy(np.sign(p - q).astype(float))
    value = float(Hinge().discriminator(best[rows_p], best[rows_q]))
    assert value == pytest.approx(2 - np.abs(p - q).sum() / total, abs=1e-12)
    for _ in range(50):
        other = best + 0.5 * torch.randn(13, dtype=F64)
        assert float(Hinge().discriminator(other[rows_p], other[rows_q])) >= value - 1e-12


def test_optimal_discriminator_of_the_relativistic_pairing():
    """On two cells only the difference of logits counts, and it is the difference of log p/q."""
    generator = np.random.default_rng()
    p, q = (generator.integers(5, 35, 1)[0] for _ in range(2))
    n = 40
    real, fake = (np.repeat([0, 1], [c, n - c]) for c in (p, q))
    real, fake = (torch.from_numpy(a.ravel()) for a in np.meshgrid(real, fake))  # every pair once
    table, _ = fitted(lambda t: Relativistic().discriminator(t[real], t[fake]), 2)
    expected = math.log(p / q) - math.log((n - p) / (n - q))
    assert table[0] - table[1] == pytest.approx(expected, abs=1e-6)


def test_wasserstein_dual_of_two_gaussians():
    """The 1-Lipschitz critic with the sign of the distribution functions' difference reaches W1, others stay below."""
    generator = np.random.default_rng()
    (a, b), s = generator.normal(0, 2, 2), generator.uniform(0.5, 1.5)
    x = np.linspace(-16, 16, 4001)
    p, q = (np.exp(-(((x - m) / s) ** 2) / 2) for m in (a, b))
    p, q = p / p.sum(), q / q.sum()

    def distance(slope: np.ndarray) -> float:
        f = np.concatenate([[0.0], np.cumsum(slope) * (x[1] - x[0])])
        counts = [torch.from_numpy(np.repeat(f, np.round(w * 1e6).astype(int))) for w in (p, q)]
        return -float(WassersteinGP().discriminator(*counts))

    best = np.sign(np.cumsum(q - p))[:-1]
    assert distance(best) == pytest.approx(abs(a - b), rel=1e-2)
    for _ in range(5):
        assert distance(generator.uniform(-1, 1, len(best))) <= distance(best)


def test_wasserstein_penalty_of_a_linear_discriminator_and_where_it_is_taken():
    real, fake, w = torch.randn(8, 5, dtype=F64), torch.randn(8, 5, dtype=F64), torch.randn(5, dtype=F64)
    seen = []
    loss = WassersteinGP(weight=7.0)
    found = loss.penalty(lambda x: seen.append(x.detach()) or x @ w, real, fake, Rng(0, "u"))
    assert float(found) == pytest.approx(7 * (float(w.norm()) - 1) ** 2)
    u = ((seen[0] - fake) * (real - fake)).sum(1) / (real - fake).square().sum(1)
    assert torch.allclose(fake + u[:, None] * (real - fake), seen[0])
    assert ((u >= 0) & (u <= 1)).all()
    assert u.unique().numel() == 8
    loss.penalty(lambda x: seen.append(x.detach()) or x @ w, real[3:], fake[3:], Rng(0, "u").at(3))
    assert torch.allclose(seen[1], seen[0][3:])  # row by row


def test_wasserstein_penalty_gradient_is_right():
    real, fake = torch.randn(2, 6, 3, dtype=F64).unbind()

    def penalty(w: Tensor, v: Tensor) -> Tensor:
        return WassersteinGP().penalty(lambda x: torch.tanh(x @ w) @ v, real, fake, Rng(0, "u"))

    args = (torch.randn(3, 4, dtype=F64, requires_grad=True), torch.randn(4, dtype=F64, requires_grad=True))
    assert torch.autograd.gradcheck(penalty, args)


@pytest.mark.parametrize("kind", sorted(LOSSES))
def test_gradients_of_both_players_by_finite_differences(kind):
    loss = LOSSES[kind]()
    real, fake = (torch.randn(5, dtype=F64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(loss.discriminator, (real, fake))
    assert torch.autograd.gradcheck(lambda fake: loss.generator(real.detach(), fake), (fake,))
    only_fake = torch.equal(loss.generator(real, fake), loss.generator(real + 1, fake))
    assert only_fake != loss.paired


def test_the_loss_of_2014_gives_no_signal_where_the_discriminator_has_won():
    """Section 3 of arXiv:1406.2661: minimax saturates, the others do not, the relativistic one included."""
    real = torch.full((4,), 8.0, dtype=F64)
    for kind, loss in LOSSES.items():
        fake = torch.full((4,), -8.0, dtype=F64, requires_grad=True)
        (slope,) = torch.autograd.grad(loss().generator(real, fake), fake)
        size = float(slope.abs().sum())
        assert size < 1e-3 if kind == "minimax" else size > 0.9, kind


def test_penalty_of_linear_and_quadratic_discriminators():
    w = torch.randn(5, dtype=F64)
    matrix = torch.randn(5, 5, dtype=F64)
    matrix = matrix + matrix.T
    x = torch.randn(7, 5, dtype=F64, requires_grad=True)
    linear = gradient_penalties(x @ w, x, 3)
    assert torch.allclose(linear.r1, w.square().sum())
    assert torch.allclose(linear.r2, w.square().sum())
    quadratic = gradient_penalties(((x @ matrix) * x).sum(1) / 2, x, 3)
    slopes = (x @ matrix).square().sum(1)
    assert torch.allclose(quadratic.r1, slopes[:3].mean())
    assert torch.allclose(quadratic.r2, slopes[3:].mean())


def test_penalty_gradient_is_right():
    """d/dw of the penalty of tanh features, against finite differences."""
    x = torch.randn(6, 3, dtype=F64)

    def penalty(w: Tensor, v: Tensor) -> Tensor:
        leaf = x.clone().requires_grad_()
        found = gradient_penalties(torch.tanh(leaf @ w) @ v, leaf, 2)
        return found.r1 + 3 * found.r2

    args = (torch.randn(3, 4, dtype=F64, requires_grad=True), torch.randn(4, dtype=F64, requires_grad=True))
    assert torch.autograd.gradcheck(penalty, args)


@pytest.mark.parametrize("reals", [0, 4])
def test_penalty_needs_both_halves(reals):
    x = torch.randn(4, 2, requires_grad=True)
    with pytest.raises(ValueError, match="both halves"):
        gradient_penalties(x.sum(1), x, reals)


@pytest.mark.parametrize("kind", sorted(LOSSES))
def test_only_differences_of_logits_matter_where_they_should(kind):
    loss = LOSSES[kind]()
    real, fake = torch.randn(2, 9, dtype=F64)
    by_shift = [float(abs(f(real + 2.5, fake + 2.5) - f(real, fake))) for f in (loss.discriminator, loss.generator)]
    if kind == "relativistic":
        assert max(by_shift) < 1e-12
    elif kind == "wasserstein-gp":
        assert by_shift[0] < 1e-12
    else:
        assert min(by_shift) > 1e-3


@pytest.mark.parametrize("kind", sorted(LOSSES))
def test_each_player_gains_by_the_right_side(kind):
    """The discriminator's loss falls when reals score higher, the generator's when fakes do."""
    loss = LOSSES[kind]()
    real, fake = torch.rand(2, 16, dtype=F64, requires_grad=True).unbind()
    up_real, up_fake = torch.autograd.grad(loss.discriminator(real, fake), (real, fake))
    assert (up_real < 0).all()
    assert (up_fake > 0).all()
    (up_fake,) = torch.autograd.grad(loss.generator(real, fake), fake)
    assert (up_fake < 0).all()


def test_relativistic_is_the_textbook_formula():
    real, fake = torch.randn(2, 8, dtype=F64)
    expected = -torch.log(torch.sigmoid(real - fake)).mean()
    assert torch.allclose(Relativistic().discriminator(real, fake), expected)
    assert torch.allclose(Relativistic().generator(fake, real), expected)


class Quadratic(nn.Module):
    """D(x) = x^T A x + b^T x."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.zeros(dims, dims, dtype=F64))
        self.b = nn.Parameter(torch.zeros(dims, dtype=F64))

    def forward(self, x: Tensor, cond: object) -> tuple[Tensor, dict[str, Tensor]]:
        return ((x @ self.a) * x).sum(1) + x @ self.b, {}


class Affine(nn.Module):
    def __init__(self, dims: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.eye(dims, dtype=F64))
        self.c = nn.Parameter(torch.zeros(dims, dtype=F64))

    def forward(self, z: Tensor, cond: object) -> Tensor:
        return z @ self.w.T + self.c


def whitened(n: int, dims: int) -> Tensor:
    """Rows whose mean is 0 and whose covariance is exactly the identity."""
    x = torch.randn(n, dims, dtype=F64)
    x = x - x.mean(0)
    return x @ torch.linalg.inv(torch.linalg.cholesky(x.T @ x / n)).T


def test_linear_generator_and_quadratic_discriminator_recover_mean_and_covariance():
    """The game has its fixed point where first and second moments agree; the penalties make it attractive."""
    n, dims = 64, 2
    root = torch.tensor([[1.5, 0.0], [0.7, 0.6]], dtype=F64)
    mean = torch.tensor([0.5, -0.3], dtype=F64)
    real, z = whitened(n, dims) @ root.T + mean, whitened(n, dims)
    model = make(Affine(dims), Quadratic(dims), Relativistic(), dims, dims, gamma=0.2)
    d, g = model.discriminator, model.generator
    model.shared = lambda turn: type("Fakes", (), {"x": g(z, {}), "cond": {}})()
    for step in range(900):
        turn = Turn(step, 0.0, Batch(real, torch.arange(n)), Rng(0, "train", step))
        turn = Turn(step, 0.0, turn.batch, turn.rng, model.shared(turn))
        for player in model.players():
            own = list(player.module.parameters())
            grads = torch.autograd.grad(player.loss(turn).total, own)
            for p, grad in zip(own, grads, strict=True):
                p.data -= 0.1 * grad
    assert torch.allclose(g.c, mean, atol=1e-3)
    assert torch.allclose(g.w @ g.w.T, root @ root.T, atol=1e-3)
    assert d.a.abs().max() < 1e-3


def test_cosine_schedule():
    assert cosine(2.0, 0.2, 0.0) == 2.0
    assert cosine(2.0, 0.2, 0.5) == pytest.approx(1.1)
    assert cosine(2.0, 0.2, 1.0) == pytest.approx(0.2)
