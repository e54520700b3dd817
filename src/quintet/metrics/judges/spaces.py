"""Feature spaces without a trained network: raw values, principal components, standardised coordinates.

Source: Halko et al. 2011, arXiv:0909.4061 (leading components of large matrices).
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from quintet.core.results import Estimate
from quintet.core.spec import DataSpec
from quintet.metrics.distances import Kernel, Polynomial, kid, real_kernels
from quintet.metrics.neighbours import nearest
from quintet.metrics.sizes import SMALL, Array, Features, matrix, small, unavailable

COMPONENTS = 64
"""Features at most: what small nets add beyond is noise to a covariance of a few hundred items."""

EXACT = 1000
"""Up to so many rows or columns all principal components are computed; of larger matrices the leading ones, by random
projection with a fixed seed (Halko et al. 2011, arXiv:0909.4061)."""


class Space(Protocol):
    """Raw data to features; `kernel` is the one its MMD is taken with."""

    @property
    def name(self) -> str: ...

    @property
    def kernel(self) -> Kernel: ...

    def features(self, raw: NDArray[np.generic]) -> Features:
        """(N, *raw) to (N, d); row i depends on item i alone."""
        ...

    def to_json(self) -> dict[str, Any]: ...


class PixelSpace:
    """Raw values, brought to [-1, 1] where they have levels."""

    def __init__(self, spec: DataSpec) -> None:
        self.spec = spec
        self.name = "raw values" if spec.kind != "image" else "pixels"
        if spec.kind == "image" and max(spec.shape[1:]) > SMALL:
            self.name = f"pixels, averaged to {SMALL} along the longer side"
        self.kernel: Kernel = Polynomial()

    def features(self, raw: NDArray[np.generic]) -> Features:
        if self.spec.levels is None:
            return matrix(small(raw))
        # half of the memory, and equal values stay equal
        rows = np.asarray(small(raw), np.float32).reshape(len(raw), -1) * np.float32(2 / (self.spec.levels - 1))
        rows -= 1
        return rows

    def to_json(self) -> dict[str, Any]:
        return {"kind": "pixels", "name": self.name}


class PCASpace:
    """Principal components of the training split, whitened: where choices on validation data are made.

    Args:
        train: (N, ...) raw training items; of more than MOST evenly spaced ones.
        components: at most; fewer where they reach `share` of the variance.
        share: of the variance to keep.
        kernel: of the space's MMD; None for vectors means Gaussian kernels on training distances.
    """

    MOST = 4000

    def __init__(
        self, train: NDArray[np.generic], *, components: int = 32, share: float = 0.99, kernel: Kernel | None = None
    ) -> None:
        rows = matrix(small(train[:: max(1, -(-len(train) // self.MOST))]))
        self.mean: Array = rows.mean(axis=0)
        singular, axes, total = _leading_axes(rows - self.mean, components)
        variance = singular**2 / max(len(rows) - 1, 1)
        real = variance > variance[0] * 1e-12 if variance[0] > 0 else np.arange(len(variance)) == 0
        enough = int(np.searchsorted(np.cumsum(variance) / max(total / max(len(rows) - 1, 1), 1e-300), share)) + 1
        keep = max(1, min(components, enough, int(real.sum())))
        # whitening: without it the first two or three components are all that a distance sees
        self.axes: Array = axes[:keep].T / np.sqrt(np.maximum(variance[:keep], 1e-300))
        self.name = f"PCA of the training split, {keep} whitened components"
        self.kernel: Kernel = Polynomial() if kernel is None else kernel

    def features(self, raw: NDArray[np.generic]) -> Array:
        result: Array = (matrix(small(raw)) - self.mean) @ self.axes
        return result

    def distance(self, samples: NDArray[np.generic], validation: Features) -> Estimate:
        """KID of raw samples to features of validation items: the one number by which choices are made.

        Null where samples are not finite.
        """
        lost = int((~np.isfinite(np.asarray(samples, np.float64))).reshape(len(samples), -1).any(axis=1).sum())
        if lost:
            return unavailable(f"{lost} of {len(samples)} samples are not finite", len(samples))
        return kid(self.features(samples), validation, self.kernel, space=self.name)

    def to_json(self) -> dict[str, Any]:
        return {"kind": "pca", "name": self.name, "components": int(self.axes.shape[1])}


class CoordinateSpace:
    """Standardised raw coordinates: the judge's space for vectors, with a vote of neighbours for classes.

    Args:
        raw: (N, D) items of the judge split.
        labels: (N,) their classes, or None.
    """

    NEIGHBOURS = 5

    def __init__(self, raw: NDArray[np.generic], labels: NDArray[np.int64] | None = None, classes: int = 0) -> None:
        rows = matrix(raw)
        self.mean: Array = rows.mean(axis=0)
        scale = rows.std(axis=0)
        self.scale: Array = np.where(scale > 0, scale, 1.0)
        self.classes = classes if labels is not None else 0
        self.name = "standardised coordinates"
        self.accuracy: float | None = None
        self._rows: Array = (rows - self.mean) / self.scale
        self._labels = labels
        # a polynomial kernel of degree 3 cannot tell a ring of modes from a blob with its first moments
        self.kernel: Kernel = real_kernels(self._rows)

    def features(self, raw: NDArray[np.generic]) -> Array:
        result: Array = (matrix(raw) - self.mean) / self.scale
        return result

    def predict(self, raw: NDArray[np.generic]) -> NDArray[np.int64]:
        """(N,) classes by vote of the judge split's nearest items, the nearest one deciding ties."""
        if self._labels is None:
            raise ValueError("this judge was given no labels")
        k = min(self.NEIGHBOURS, len(self._rows))
        votes = self._labels[nearest(self.features(raw), self._rows, k).item]  # (N, k)
        counts = (votes[:, :, None] == np.arange(self.classes)).sum(axis=1).astype(np.float64)
        counts[np.arange(len(votes)), votes[:, 0]] += 0.5
        best: NDArray[np.int64] = counts.argmax(axis=1)
        return best

    def measure(self, raw: NDArray[np.generic], labels: NDArray[np.int64]) -> float:
        """Accuracy on real items outside the judge split; kept as `accuracy`."""
        self.accuracy = float((self.predict(raw) == labels).mean())
        return self.accuracy

    def to_json(self) -> dict[str, Any]:
        return {"kind": "coordinates", "name": self.name, "classes": self.classes, "accuracy": self.accuracy}


def leading(found: Array, least: float = 1e-3) -> Array:
    """Axes (width, d) that standardise features (N, width) and take leading components, with mean variance one.

    A feature whose deviation is below `least` of the largest is not blown up: on other items it may be far larger.
    """
    scale = found.std(axis=0)
    most = max(float(scale.max()), 1e-12)
    weight = 1 / np.where(scale > least * most, scale, most)
    _, singular, axes = np.linalg.svd((found - found.mean(axis=0)) * weight, full_matrices=False)
    keep = max(1, min(COMPONENTS, int((singular > 1e-6 * max(singular[0], 1e-12)).sum())))
    spread = math.sqrt(float((singular[:keep] ** 2).mean()) / len(found))
    result: Array = weight[:, None] * axes[:keep].T / max(spread, 1e-12)
    return result


def _leading_axes(centred: Array, components: int) -> tuple[Array, Array, float]:
    """Singular values, axes and the sum of all squared singular values; of large matrices only the leading ones."""
    total = float(np.einsum("ij,ij->", centred, centred))
    if min(centred.shape) <= EXACT:
        _, singular, axes = np.linalg.svd(centred, full_matrices=False)
    else:
        from sklearn.utils.extmath import randomized_svd

        _, singular, axes = randomized_svd(centred, components, n_iter=6, random_state=0)
    return singular, axes, total
