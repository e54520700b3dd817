"""`toy:NAME`: two-dimensional densities that are known exactly, so that nothing about a model stays a matter of taste.

Each has `log_prob`, `sample`, `entropy` and, where it has separate modes, their centres. The usual samplers of moons,
spirals and pinwheel have no density in closed form; here the curves are mixtures of many Gaussians close together, and
the pinwheel is twisted by a rotation that depends on the radius only and so keeps areas.

They are unconditional: which modes a model finds by itself is the question.

Sources: ring and grid: Metz et al. 2017, "Unrolled GANs", arXiv:1611.02163; Srivastava et al. 2017, "VEEGAN",
arXiv:1705.07761 (grid: sigma 0.05, spacing 2). Pinwheel: Johnson et al. 2016, arXiv:1603.06277. Checkerboard and
spirals: Grathwohl et al. 2019, "FFJORD", arXiv:1810.01367. Ring departs from Metz et al. (sigma 0.02) with sigma 0.1
at the same radius 2, about the ratio of FFJORD's eight Gaussians; the grid is the narrow one.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field
from math import log, pi, sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr, logsumexp

from quintet.core.errors import DataError
from quintet.core.rng import Rng
from quintet.core.spec import DataSpec
from quintet.data.dataset import Dataset, Density, Split, fingerprint, note

Array = NDArray[np.float64]

TRAIN, VALIDATION, JUDGE, TEST = 10_000, 1_000, 2_000, 5_000
SEED = 0
"""Seed of the examples of every toy data set; a run's seed plays no part in its data."""

NO_MODES = np.zeros((0, 2))


@dataclass(frozen=True)
class GaussianMixture:
    """Equally likely isotropic Gaussians of one width in the plane.

    Attributes:
        centres: (K, 2).
        scale: the standard deviation of each.
        separate: whether each Gaussian is a mode to be found; otherwise they lie along a curve.
    """

    centres: Array
    scale: float
    separate: bool

    @property
    def modes(self) -> Array:
        """(K, 2) centres of separate Gaussians, (0, 2) for a curve."""
        return self.centres if self.separate else NO_MODES

    def sample(self, n: int, seed: int) -> Array:
        """(n, 2) independent draws."""
        generator = Rng(seed, "toy").numpy()
        which = generator.integers(len(self.centres), size=n)
        return self.centres[which] + self.scale * generator.standard_normal((n, 2))

    def log_prob(self, x: Array) -> Array:
        """(n, 2) -> (n,) nats."""
        return np.concatenate([self._log_prob(part) for part in np.array_split(x, len(x) // 4096 + 1)])

    def entropy(self) -> float:
        """Nats, by the trapezoid rule on a grid of spacing scale / 4 that reaches 9 scales beyond the outer centres.

        For a Gaussian the rule's error at this spacing is below 1e-100 and the mass left outside below 1e-17; what
        remains is rounding, far below 1e-4 nats. The density on the grid is a matrix product, as the Gaussians are
        isotropic.
        """
        h = self.scale / 4
        factors = []
        for centre in self.centres.T:
            axis = np.arange(centre.min() - 9 * self.scale, centre.max() + 9 * self.scale + h, h)
            z = (axis[:, None] - centre) / self.scale
            factors.append(np.exp(-(z**2) / 2) / (sqrt(2 * pi) * self.scale))  # (G, K)
        density = factors[0] @ factors[1].T / len(self.centres)  # (G0, G1)
        return float(entr(density).sum() * h * h)

    def _log_prob(self, x: Array) -> Array:
        square = ((x[:, None] - self.centres) ** 2).sum(2)  # (n, K)
        log_norm = log(2 * pi * self.scale**2 * len(self.centres))
        return np.asarray(logsumexp(-square / (2 * self.scale**2), axis=1) - log_norm)


@dataclass(frozen=True)
class Pinwheel:
    """Arms: Gaussians long in the radius and thin across it, twisted by an angle that grows with the radius.

    z is drawn from a mixture of `arms` Gaussians, x = R(rate * exp(|z| / length)) z. The rotation keeps |z| and its
    angle depends on |z| only, so it keeps areas: p(x) = p(z) and both have the same entropy. Johnson et al. twist by
    the first coordinate in place of the radius, which has no such inverse.
    """

    arms: int = 5
    length: float = 2.0
    radial: float = 0.6
    scale: float = 0.2
    rate: float = 0.25
    modes: Array = field(default_factory=lambda: NO_MODES)

    def sample(self, n: int, seed: int) -> Array:
        """(n, 2) independent draws."""
        generator = Rng(seed, "toy").numpy()
        arm = generator.integers(self.arms, size=n)
        along = self.length + self.radial * generator.standard_normal(n)
        z = np.stack([along, self.scale * generator.standard_normal(n)], 1)
        return self._rotate(z, 2 * pi * arm / self.arms + self._angle(z))

    def log_prob(self, x: Array) -> Array:
        """(n, 2) -> (n,) nats."""
        return self._log_prob_straight(self._rotate(x, -self._angle(x)))

    def entropy(self) -> float:
        """Nats, of the untwisted mixture: the trapezoid rule with spacing scale / 4 out to 9 radial deviations."""
        h = self.scale / 4
        reach = self.length + 9 * self.radial
        axis = np.arange(-reach, reach + h, h)
        grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
        return float(entr(np.exp(self._log_prob_straight(grid))).sum() * h * h)

    def _angle(self, z: Array) -> Array:
        return np.asarray(self.rate * np.exp(np.linalg.norm(z, axis=1) / self.length))

    def _log_prob_straight(self, z: Array) -> Array:
        logs = []
        for arm in range(self.arms):
            along, across = self._rotate(z, np.full(len(z), -2 * pi * arm / self.arms)).T
            logs.append(-(((along - self.length) / self.radial) ** 2) / 2 - (across / self.scale) ** 2 / 2)
        return np.asarray(logsumexp(logs, axis=0) - log(2 * pi * self.radial * self.scale * self.arms))

    @staticmethod
    def _rotate(z: Array, angle: Array) -> Array:
        cos, sin = np.cos(angle), np.sin(angle)
        return np.stack([cos * z[:, 0] - sin * z[:, 1], sin * z[:, 0] + cos * z[:, 1]], 1)


@dataclass(frozen=True)
class Checkerboard:
    """Uniform on the dark squares of a 4x4 board with squares of side 2, centred at the origin.

    `scale` is the standard deviation within a square. The squares touch at corners and are not counted as modes.
    """

    side: float = 2.0
    modes: Array = field(default_factory=lambda: NO_MODES)

    @property
    def scale(self) -> float:
        return self.side / sqrt(12)

    def sample(self, n: int, seed: int) -> Array:
        """(n, 2) independent draws."""
        generator = Rng(seed, "toy").numpy()
        column, pair = generator.integers(4, size=n), generator.integers(2, size=n)
        row = 2 * pair + column % 2
        corner = np.stack([column, row], 1) - 2
        return self.side * (corner + generator.random((n, 2)))

    def log_prob(self, x: Array) -> Array:
        """(n, 2) -> (n,) nats, -inf on the light squares and off the board."""
        column, row = np.floor(x / self.side).astype(np.int64).T + 2
        inside = (column >= 0) & (column < 4) & (row >= 0) & (row < 4) & ((column + row) % 2 == 0)
        return np.where(inside, -self.entropy(), -np.inf)

    def entropy(self) -> float:
        """Nats: the logarithm of the area of eight squares."""
        return log(8 * self.side**2)


def ring8() -> Density:
    """Eight Gaussians, sigma 0.1, on a circle of radius 2; neighbours are 15 sigma apart."""
    angle = 2 * pi * np.arange(8) / 8
    return GaussianMixture(2 * np.stack([np.cos(angle), np.sin(angle)], 1), 0.1, separate=True)


def grid25() -> Density:
    """Twenty-five Gaussians, sigma 0.05, on {-4, -2, 0, 2, 4}^2; neighbours are 40 sigma apart."""
    axis = np.array([-4.0, -2.0, 0.0, 2.0, 4.0])
    return GaussianMixture(np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2), 0.05, separate=True)


def moons() -> Density:
    """Two half circles of radius 1 that reach into each other, sigma 0.1: 64 Gaussians along each."""
    angle = pi * (np.arange(64) + 0.5) / 64
    upper = np.stack([np.cos(angle), np.sin(angle)], 1)
    lower = np.stack([1 - np.cos(angle), 0.5 - np.sin(angle)], 1)
    return GaussianMixture(np.concatenate([upper, lower]), 0.1, separate=False)


def spirals() -> Density:
    """Two arms of an Archimedean spiral of one and a half turns, r = angle / 3, sigma 0.1.

    160 Gaussians along each, at equal distances of 0.09, less than a sigma: the ridge is smooth to 1e-9.
    """
    turn = np.linspace(0, 3 * pi, 20_001)
    r = turn / 3
    way = np.concatenate([[0.0], np.cumsum(np.hypot(np.diff(r * np.cos(turn)), np.diff(r * np.sin(turn))))])
    angle = np.interp((np.arange(160) + 0.5) / 160 * way[-1], way, turn)
    arm = np.stack([angle / 3 * np.cos(angle), angle / 3 * np.sin(angle)], 1)
    return GaussianMixture(np.concatenate([arm, -arm]), 0.1, separate=False)


TOYS: dict[str, Callable[[], Density]] = {
    "ring8": ring8,
    "grid25": grid25,
    "moons": moons,
    "spirals": spirals,
    "pinwheel": Pinwheel,
    "checkerboard": Checkerboard,
}


def density(name: str) -> Density:
    """The exact density of a toy.

    Raises: DataError for an unknown name, with the nearest known one.
    """
    if name not in TOYS:
        near = difflib.get_close_matches(name, TOYS, 1, cutoff=0.0)[0]
        raise DataError("data.unknown_toy", name=name, known=", ".join(TOYS), near=near)
    return TOYS[name]()


def open_toy(name: str) -> Dataset:
    """A toy data set: 10,000 train, 1,000 validation, 2,000 judge and 5,000 test examples, always the same ones.

    Raises: DataError for an unknown name.
    """
    truth = density(name)
    x = truth.sample(TRAIN + VALIDATION + JUDGE + TEST, SEED).astype(np.float32)
    cuts = np.cumsum([TRAIN, VALIDATION, JUDGE])
    train, validation, judge, test = (Split(part) for part in np.split(x, cuts))
    return Dataset(
        name=f"toy:{name}",
        spec=DataSpec("vector", (2,)),
        train=train,
        validation=validation,
        judge=judge,
        test=test,
        truth=truth,
        notes=(note("data.note_toy", entropy=f"{truth.entropy():.4f}"),),
        fingerprint=fingerprint((train, validation, judge, test)),
    )
