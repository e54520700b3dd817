"""The baseline rows: bootstrap of the training set, independent histograms, Gaussian mixture, local network.

What they are for: the bootstrap wins every distance and must raise the copy alarm; the histograms know no dependence
between values but get constant pixels right; the mixture is what a model without a network reaches; the local network,
a perceptron that predicts each pixel from the nearest earlier ones, is the likelihood that some seconds buy.

Each is fitted on the training split and offers `sample(n, rng=...) -> (x, labels)` in raw data's form and
`bits(test, labels)`, the bits per dimension of raw test items.

Sources: McLachlan & Peel 2000 (mixtures by EM, through scikit-learn); Bengio & Bengio 2000 (each value predicted from
earlier ones by a perceptron).
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from quintet.core.results import Estimate
from quintet.core.rng import Rng, layer_noise
from quintet.core.spec import DataSpec
from quintet.metrics.likelihood import bits_per_dim, undefined
from quintet.metrics.sizes import Array, matrix
from quintet.nets.entry import level_features, neighbours

Labels = NDArray[np.int64] | None
Name = Literal["bootstrap", "histograms", "mixture", "local"]

MOST_CELLS = 64
"""Cells of a continuous column's histogram at most."""

MOST_DIMS = 512
"""Above it the mixture takes diagonal covariances: a full one has D^2 / 2 parameters a component."""

MOST_FITTED = 2**25
"""Values of training items that the mixture sees at most, a random part of the items where there are more."""


class Drawn(NamedTuple):
    """Samples in raw data's shape, and their labels where the data have any."""

    x: NDArray[np.generic]
    labels: Labels


class BaselineModel(Protocol):
    """A fitted baseline."""

    name: Name

    def sample(self, n: int, *, rng: Rng) -> Drawn | None: ...

    def bits(self, x: NDArray[np.generic], labels: Labels = None, *, rng: Rng) -> Estimate: ...


class Bootstrap:
    """Training items drawn with replacement: the perfect memoriser."""

    name: Name = "bootstrap"

    def __init__(self, spec: DataSpec, x: NDArray[np.generic], labels: Labels = None) -> None:
        self.spec, self.x, self.labels = spec, x, labels

    def sample(self, n: int, *, rng: Rng) -> Drawn:
        """n items; item i depends on (rng, i) alone."""
        rows = rng("rows").integers(0, len(self.x), (n,)).numpy()
        return Drawn(self.x[rows], None if self.labels is None else self.labels[rows])

    def bits(self, x: NDArray[np.generic], labels: Labels = None, *, rng: Rng) -> Estimate:
        """Null: unseen items have probability zero."""
        return undefined("a bootstrap gives unseen items probability zero")


class Histograms:
    """Each value drawn by itself from its own histogram, given the class where there are labels.

    With labels it samples from a mixture of products, one a class; its `bits` are those of the plain product over all
    classes, exact, the reference that recipes' likelihoods are held against.

    Args:
        spec: raw data's.
        x: (N, *E) training items.
        labels: (N,) or None.
        smoothing: added to each count (Laplace).
    """

    name: Name = "histograms"

    def __init__(
        self, spec: DataSpec, x: NDArray[np.generic], labels: Labels = None, *, smoothing: float = 1.0
    ) -> None:
        self.spec, self.smoothing = spec, smoothing
        flat = x.reshape(len(x), -1)
        self.dtype = x.dtype
        if spec.levels is not None:
            self.edges: Array | None = None
            self.cells = spec.levels
        else:
            rows = matrix(x)
            self.cells = int(np.clip(round(2 * len(rows) ** (1 / 3)), 4, MOST_CELLS))  # Rice's rule
            low, high = rows.min(axis=0), rows.max(axis=0)
            reach = np.where(high > low, high - low, 1.0)
            inner = np.linspace(low, high + 1e-9 * reach, self.cells - 1).T
            # the outer cells are as wide as all training data, for test values a little outside
            self.edges = np.column_stack([low - reach, inner, high + reach])  # (D, cells + 1)
        codes = self._codes(flat)
        self.classes, self.prior = _frequencies(labels)
        self.groups = [codes] if labels is None or self.classes is None else [codes[labels == c] for c in self.classes]
        self.table = self._table(codes)  # (D, cells)

    def sample(self, n: int, *, rng: Rng) -> Drawn:
        """n items; item i depends on (rng, i) alone.

        A smoothed histogram of N values is the mixture of those values and of the uniform distribution over cells in
        proportion N to smoothing * cells: each value is drawn from an item of its class, or is any cell.
        """
        group, labels = _classes(n, self.classes, self.prior, rng)
        u = rng("values").uniform((n, self.spec.dims), torch.float64).numpy()
        codes = np.empty((n, self.spec.dims), np.int64)
        columns = np.arange(self.spec.dims)
        for g in np.unique(group):
            rows, items = group == g, self.groups[g]
            t = u[rows] * (len(items) + self.smoothing * self.cells)
            anywhere = np.clip((t - len(items)) / self.smoothing, 0, self.cells - 1).astype(np.int64)
            held = items[np.minimum(t, len(items) - 1).astype(np.int64), columns]
            codes[rows] = np.where(t < len(items), held, anywhere)
        if self.edges is None:
            return Drawn(codes.astype(self.dtype).reshape(n, *self.spec.shape), labels)
        inside = rng("inside").uniform((n, self.spec.dims)).double().numpy()
        low, high = self.edges[columns, codes], self.edges[columns, codes + 1]
        return Drawn((low + inside * (high - low)).astype(self.dtype).reshape(n, *self.spec.shape), labels)

    def bits(self, x: NDArray[np.generic], labels: Labels = None, *, rng: Rng) -> Estimate:
        """Exact. A continuous value outside a column's histogram has density zero, and the result is null."""
        flat = x.reshape(len(x), -1)
        columns = np.arange(self.spec.dims)
        logs = np.log(self.table)[columns, self._codes(flat)]  # (N, D)
        cells = f"{self.cells} levels" if self.edges is None else f"{self.cells} cells a column, density"
        if self.edges is not None:
            values = matrix(x)
            logs -= np.log(np.diff(self.edges, axis=1))[columns, self._codes(flat)]
            outside = (values < self.edges[:, 0]) | (values > self.edges[:, -1])
            logs = np.where(outside, -np.inf, logs)
        return bits_per_dim(
            logs.sum(axis=1),
            self.spec.dims,
            kind="exact",
            protocol=f"independent histograms, {cells}, Laplace smoothing {self.smoothing:g}",
        )

    def _codes(self, flat: NDArray[np.generic]) -> NDArray[np.generic]:
        if self.edges is None:
            levels: NDArray[np.generic] = np.clip(flat, 0, self.cells - 1)
            return levels
        found = [
            np.searchsorted(edges, column, side="right") - 1
            for edges, column in zip(self.edges, flat.astype(np.float64).T, strict=True)
        ]
        codes: NDArray[np.int64] = np.clip(np.column_stack(found), 0, self.cells - 1)
        return codes

    def _table(self, codes: NDArray[np.generic]) -> Array:
        counts = np.stack([np.bincount(column, minlength=self.cells) for column in codes.T]) + self.smoothing
        table: Array = counts / counts.sum(axis=1, keepdims=True)
        return table


class Mixture:
    """A Gaussian mixture on dequantised values; with labels each component belongs to a class.

    Components are shared out over the classes, at least one each; the likelihood is the whole mixture's, through
    uniform dequantisation (a bound for discrete data).

    Args:
        spec: raw data's.
        x: (N, *E) training items.
        labels: (N,) or None.
        components: in all.
        regularisation: added to covariances' diagonals, as a share of the data's mean variance.
        seed: of the dequantisation noise and of EM's start.
    """

    name: Name = "mixture"

    def __init__(
        self,
        spec: DataSpec,
        x: NDArray[np.generic],
        labels: Labels = None,
        *,
        components: int = 10,
        regularisation: float = 0.02,
        seed: int = 0,
    ) -> None:
        from sklearn.mixture import GaussianMixture

        self.spec, self.dtype = spec, x.dtype
        most = max(2, MOST_FITTED // spec.dims)
        seen = ""
        if len(x) > most:
            part = np.sort(Rng(seed, "mixture", "items").permutation(len(x))[:most])
            x, labels, seen = x[part], None if labels is None else labels[part], f", fitted on {most} items"
        rows = self._dequantise(x, Rng(seed, "mixture"))
        self.classes, self.prior = _frequencies(labels)
        groups = [rows] if labels is None or self.classes is None else [rows[labels == c] for c in self.classes]
        each = max(1, components // len(groups))
        shape = "full" if spec.dims <= MOST_DIMS else "diag"
        floor = regularisation * max(float(rows.var(axis=0).mean()), 1e-12)
        random = Rng(seed, "mixture", "em").integer() % 2**32
        self.parts = [
            GaussianMixture(
                min(each, len(group)), covariance_type=shape, reg_covar=floor, random_state=random, max_iter=50
            ).fit(group if len(group) > 1 else np.repeat(group, 2, axis=0))
            for group in groups
        ]
        self.protocol = f"Gaussian mixture, {sum(p.n_components for p in self.parts)} {shape} components{seen}"
        self.low, self.high = (0.0, spec.levels - 1.0) if spec.levels is not None else (-np.inf, np.inf)

    def sample(self, n: int, *, rng: Rng) -> Drawn:
        """n items; item i depends on (rng, i) alone."""
        group, labels = _classes(n, self.classes, self.prior, rng)
        u = rng("component").uniform((n,)).double().numpy()
        noise = rng("noise").normal((n, self.spec.dims)).double().numpy()
        values = np.empty((n, self.spec.dims))
        for g, part in enumerate(self.parts):
            inside = group == g
            which = np.minimum((u[:, None] >= np.cumsum(part.weights_)).sum(axis=1), part.n_components - 1)
            for c in range(part.n_components):
                rows = inside & (which == c)
                if part.covariance_type == "full":
                    moved = noise[rows] @ np.linalg.cholesky(part.covariances_[c]).T
                else:
                    moved = noise[rows] * np.sqrt(part.covariances_[c])
                values[rows] = part.means_[c] + moved
        if self.spec.levels is not None:
            values = np.clip(np.floor(values), self.low, self.high)
        return Drawn(values.astype(self.dtype).reshape(n, *self.spec.shape), labels)

    def bits(self, x: NDArray[np.generic], labels: Labels = None, *, rng: Rng) -> Estimate:
        """Of the whole mixture, unconditional; for discrete data a bound, one draw of noise an item."""
        rows = self._dequantise(x, rng("dequantise"))
        weights = np.ones(1) if self.prior is None else self.prior / self.prior.sum()
        logs = np.stack([part.score_samples(rows) for part in self.parts]) + np.log(weights)[:, None]
        top = logs.max(axis=0)
        nats = top + np.log(np.exp(logs - top).sum(axis=0))
        if self.spec.levels is None:
            return bits_per_dim(nats, self.spec.dims, kind="exact", protocol=f"{self.protocol}, density")
        protocol = f"{self.protocol}, {self.spec.levels} levels, uniform dequantisation"
        return bits_per_dim(nats, self.spec.dims, kind="bound", protocol=protocol)

    def _dequantise(self, x: NDArray[np.generic], rng: Rng) -> Array:
        rows = matrix(x)
        if self.spec.levels is None:
            return rows
        noisy: Array = rows + rng.uniform(rows.shape).double().numpy()
        return noisy


class Local:
    """A perceptron that predicts each pixel's level from the nearest earlier ones, its place and the label.

    Trained for a fixed number of steps on random pixels of random items, some seconds on one core.

    Args:
        spec: raw data's, an image with levels.
        x: (N, C, H, W) training items.
        labels: (N,) or None.
        seed: of initialisation and of the pixels it sees.
    """

    name: Name = "local"
    HIDDEN, BATCH, STEPS, PASSES = 128, 2048, 500, 8
    MOST_DRAWN, MOST_READ = 1024, 300_000

    def __init__(self, spec: DataSpec, x: NDArray[np.generic], labels: Labels = None, *, seed: int = 0) -> None:
        assert spec.kind == "image"
        assert spec.levels is not None
        self.spec, self.dtype, self.levels = spec, x.dtype, spec.levels
        self.classes, self.prior = _frequencies(labels)
        channels, height, width = spec.shape
        grid = (height, width, channels)  # all values of a pixel one after another
        self.near = neighbours(grid, 3 if channels == 1 else 2)  # (D, K), 24 values or, in colour, 62
        self.features = level_features(self.levels, 4 if self.levels > 32 and channels == 1 else 2)
        self.places = torch.cartesian_prod(*(torch.linspace(-1, 1, n) for n in grid))  # (D, 3)
        seen = self.near.shape[1] * self.features.shape[1] + 3 + (0 if self.classes is None else len(self.classes))
        rng = Rng(seed, "local")
        with layer_noise(rng("init")):
            self.network = nn.Sequential(
                nn.Linear(seen, self.HIDDEN), nn.ReLU(),
                nn.Linear(self.HIDDEN, self.HIDDEN), nn.ReLU(),
                nn.Linear(self.HIDDEN, self.levels),
            )  # fmt: skip
        values, group = self._flat(x), self._group(labels, len(x))
        steps = max(1, min(self.STEPS, self.PASSES * values.numel() // self.BATCH))
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=3e-3, weight_decay=0.05, fused=True)
        for step in range(steps):
            pick = rng("item", step).integers(0, len(x), (self.BATCH,))
            place = rng("place", step).integers(0, spec.dims, (self.BATCH,))
            logits = self._logits(values, pick, place, group[pick])
            loss = F.cross_entropy(logits, values[pick, place].long())
            optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / steps)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    @torch.no_grad()
    def sample(self, n: int, *, rng: Rng) -> Drawn | None:
        """n items, pixel by pixel; item i depends on (rng, i) alone. None above 1,024 values, which take too long."""
        if self.spec.dims > self.MOST_DRAWN:
            return None
        group, labels = _classes(n, self.classes, self.prior, rng)
        u = rng("values").uniform((n, self.spec.dims), torch.float64)
        values = torch.zeros((n, self.spec.dims), dtype=torch.int64)
        every, given = torch.arange(n), torch.from_numpy(group)
        for d in range(self.spec.dims):
            mass = self._logits(values, every, torch.full((n,), d), given).double().softmax(1).cumsum(1)
            values[:, d] = (mass <= u[:, d, None] * mass[:, -1:]).sum(1)
        channels, height, width = self.spec.shape
        x = values.view(n, height, width, channels).permute(0, 3, 1, 2).numpy().astype(self.dtype)
        return Drawn(np.ascontiguousarray(x), labels)

    @torch.no_grad()
    def bits(self, x: NDArray[np.generic], labels: Labels = None, *, rng: Rng) -> Estimate:
        """Exact, given the label, of the first items (300,000 values in all)."""
        x = x[: max(16, self.MOST_READ // self.spec.dims)]
        values, group = self._flat(x), self._group(None if labels is None else labels[: len(x)], len(x))
        every = torch.arange(self.spec.dims)
        nats = []
        for i in range(len(x)):
            same = torch.full_like(every, i)
            logits = self._logits(values, same, every, group[same])
            nats.append(-float(F.cross_entropy(logits, values[i].long(), reduction="sum")))
        given = "" if self.classes is None else ", given the label"
        protocol = f"perceptron on {self.near.shape[1]} earlier values, {self.levels} levels{given}"
        return bits_per_dim(np.array(nats), self.spec.dims, kind="exact", protocol=protocol)

    def _logits(self, values: Tensor, pick: Tensor, place: Tensor, group: Tensor) -> Tensor:
        """values (N, D), items and places (B,), groups (B,) -> (B, levels)."""
        near = self.near[place]  # (B, K)
        outside = near == self.spec.dims
        levels = values[pick[:, None], near.masked_fill(outside, 0)].long().masked_fill(outside, self.levels)
        seen = [F.embedding(levels, self.features).flatten(1), self.places[place]]
        if self.classes is not None:
            seen.append(F.one_hot(group, len(self.classes)).to(self.features.dtype))
        logits: Tensor = self.network(torch.cat(seen, 1))
        return logits

    def _flat(self, x: NDArray[np.generic]) -> Tensor:
        """(N, C, H, W) to (N, D), all values of a pixel one after another."""
        rows = np.ascontiguousarray(np.moveaxis(x, 1, -1)).reshape(len(x), -1)
        return torch.from_numpy(np.clip(rows, 0, self.levels - 1))

    def _group(self, labels: Labels, n: int) -> Tensor:
        """(n,) the classes' numbers among those of the training split."""
        if labels is None or self.classes is None:
            return torch.zeros(n, dtype=torch.int64)
        return torch.from_numpy(np.minimum(np.searchsorted(self.classes, labels), len(self.classes) - 1))


def baselines(
    spec: DataSpec, x: NDArray[np.generic], labels: Labels = None, *, seed: int = 0
) -> tuple[BaselineModel, ...]:
    """The rows, fitted on the training split; the local network's for images of at most 256 levels."""
    rows: list[BaselineModel] = [Bootstrap(spec, x, labels), Histograms(spec, x, labels)]
    rows.append(Mixture(spec, x, labels, seed=seed))
    if spec.kind == "image" and spec.levels is not None and spec.levels <= 256:
        rows.append(Local(spec, x, labels, seed=seed))
    return tuple(rows)


def _frequencies(labels: Labels) -> tuple[Labels, Labels]:
    """The classes that occur, and how often."""
    if labels is None:
        return None, None
    classes, counts = np.unique(labels, return_counts=True)
    return classes, counts.astype(np.int64)


def _classes(
    n: int, classes: NDArray[np.int64] | None, prior: NDArray[np.int64] | None, rng: Rng
) -> tuple[NDArray[np.int64], Labels]:
    """Which group each of n items is of, drawn in the training set's proportions, and its label."""
    if classes is None or prior is None:
        return np.zeros(n, np.int64), None
    u = rng("class").uniform((n,)).double().numpy()
    group = np.minimum((u[:, None] >= np.cumsum(prior / prior.sum())).sum(axis=1), len(classes) - 1)
    return group.astype(np.int64), classes[group].astype(np.int64)
