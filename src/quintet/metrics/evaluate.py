"""All sample metrics of one set of samples in one pass, the same for every family and every baseline.

What it is: `Reference` holds the real data in every space, fixed before any sample is seen; `evaluate` takes raw
samples and gives named estimates; `floor` says what real data would score. What it is not: likelihoods (`likelihood`),
costs, stability.

Spaces. Kernel and Fréchet distances and the k-NN manifolds are taken in the judge's space ("kid", "fd", "precision",
...), and distances again in the spaces of a self-supervised judge ("_self", where the judge has labels), of random
convolutional features ("_random"), of PCA of the training split ("_pca"), and on raw values ("_pixels"): a win must
hold in all. The two-sample test, memorisation and copies are taken on raw values, where a copy is a copy, and the first
two again in the judge's space with the suffix "_judge". Where the user gives weights, "fid" and "fd_dinov2" are
measured by their published protocols, against the training split.

Sizes. Distances without bias use all samples and all test items. The others depend on the number of samples, so they
take sets of exactly `size` samples (the same for every model, baseline and floor) against `size` test items, averaged
over disjoint sets where there are more samples. Samples are put in an order of their own first: the order in which they
come plays no part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quintet.core.results import Estimate
from quintet.core.rng import Rng
from quintet.core.spec import DataSpec
from quintet.metrics.classify import MOST as MOST_CAS
from quintet.metrics.classify import cas
from quintet.metrics.coverage import class_metrics, cluster_metrics, known_modes, mode_metrics
from quintet.metrics.distances import fd, kid, real_kernels
from quintet.metrics.diversity import MOST as MOST_VENDI
from quintet.metrics.diversity import vendi_ratio, vendi_score
from quintet.metrics.judges import (
    CoordinateSpace,
    Judge,
    PCASpace,
    PixelSpace,
    RandomSpace,
    Space,
    make_judge,
    train_exemplars,
)
from quintet.metrics.judges.pretrained import PretrainedSpace
from quintet.metrics.memory import Cells, authenticity, c_t, cell_count
from quintet.metrics.neighbours import (
    Copies,
    approach,
    c2st,
    copies_estimate,
    find_copies,
    memorisation,
    nearest,
    prdc,
)
from quintet.metrics.sharpness import sharpness
from quintet.metrics.sizes import Z95, Array, Features, matrix, too_few, unavailable

Labels = NDArray[np.int64] | None

RECONSTRUCTED = ("kid", "fd", "sharpness")
MEMORY = ("memorisation", "memorisation_judge", "copies", "c_t", "authenticity")

MOST = 1000
"""Test items that metrics see at most."""

MOST_CLUSTERS, CLUSTER = 20, 15
"""Clusters that stand for modes where none are known, and test items for each of them, on average and at least."""

MOST_VALUES = 250_000_000
"""Numbers of the training split held for the search of copies (1 GB); of a larger one evenly spaced items."""


class Part(NamedTuple):
    """Raw items of one split and their labels, if any."""

    x: NDArray[np.generic]
    labels: Labels = None


class Modes(NamedTuple):
    """Known modes: (K, D) centres in raw coordinates, and a mode's standard deviation."""

    centres: Array
    scale: float


def pca_space(train: NDArray[np.generic], spec: DataSpec) -> PCASpace:
    """The space of choices on validation data; for vectors with Gaussian kernels, as a polynomial sees no modes."""
    space = PCASpace(train)
    if spec.kind == "vector":
        space.kernel = real_kernels(space.features(train))
    return space


def second_spaces(
    judge: NDArray[np.generic], labels: Labels, spec: DataSpec, *, seed: int = 0
) -> tuple[Judge | None, RandomSpace | None]:
    """The self-supervised judge (None where the judge itself is) and random features; neither for vectors.

    Args:
        judge: (N, *E) raw items of the judge split.
        labels: theirs, or None.
        spec: of the raw data.
        seed: of both.
    """
    if spec.kind != "image" or judge.ndim != 4:
        return None, None
    own = None if labels is None else train_exemplars(judge, spec, seed=seed)
    return own, RandomSpace(judge, spec, seed=seed)


class Views:
    """One set of items in every space; features are computed when first asked for.

    Args:
        x: (N, *E) raw items.
        spaces: suffix of a space's metrics -> space.
        whole: a larger set and the rows that these items are in it, where its features may be known already.
    """

    def __init__(
        self, x: NDArray[np.generic], spaces: Mapping[str, Space], whole: tuple[Views, NDArray[np.int64]] | None = None
    ) -> None:
        self.x, self._spaces, self._whole = x, spaces, whole
        self._found: dict[str, Features] = {}

    def __getitem__(self, suffix: str) -> Features:
        """(N, d) in the space of that suffix."""
        if suffix not in self._found:
            if self._whole is None:
                self._found[suffix] = self._spaces[suffix].features(self.x)
            else:
                whole, rows = self._whole
                self._found[suffix] = whole[suffix][rows]
        return self._found[suffix]

    @property
    def judge(self) -> Features:
        return self[""]

    @property
    def pca(self) -> Features:
        return self["_pca"]

    @property
    def raw(self) -> Features:
        return self["_pixels"]

    def rows(self, rows: NDArray[np.int64]) -> Views:
        """Some of the items."""
        return Views(self.x[rows], self._spaces, (self, rows))


class Reference:
    """The real data that samples are held against.

    Args:
        spec: of the raw data.
        train, test: splits. Samples are compared with test; train serves memorisation and the floor.
        judge: the judge's space (`make_judge` on the judge split).
        own: the self-supervised judge where `judge` learned labels, or None.
        random: random convolutional features, or None.
        pretrained: spaces of the user's weights, by name.
        spare: real items in neither train nor test (judge and validation splits), for the floor of memorisation.
        modes: where they are known; none at all (a curve) is the same as None.
        most: test and training items used at most (evenly spaced ones).
        size: samples in a set at most, where models have fewer than the test split has items.
        seed: of what the metrics draw (resamples, subsets); the same for every model.

    Attributes:
        spaces: suffix -> space in which kernel distances are taken, the most important first.
        size: samples in a set of the metrics that depend on their number.
        shown: the training items that stand for all where a few thousand are enough: the PCA, the floor, memorisation
            in the judge's space.
        searched: the training items among which copies are searched: all, up to MOST_VALUES numbers.
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        train: Part,
        test: Part,
        judge: Judge | CoordinateSpace,
        own: Judge | None = None,
        random: RandomSpace | None = None,
        pretrained: Mapping[str, PretrainedSpace] | None = None,
        spare: NDArray[np.generic] | None = None,
        modes: Modes | None = None,
        most: int = MOST,
        size: int | None = None,
        seed: int = 0,
    ) -> None:
        if not len(train.x) or not len(test.x):
            raise ValueError(f"train and test need items, got {len(train.x)} and {len(test.x)}")
        self.spec, self.judge, self.seed = spec, judge, seed
        self.modes = modes if modes is not None and len(modes.centres) else None
        self.train, self.test = Part(*train), _thin(_ordered(test, Rng(seed, "test")), most)
        self.spare = None if spare is None or not len(spare) else _thin(Part(spare), most).x
        self.pixels = PixelSpace(spec)
        self.shown = _thin(self.train, 4 * most)
        self.pca = pca_space(self.shown.x, spec)
        if spec.kind == "vector":  # see CoordinateSpace: a polynomial sees three moments only
            self.pixels.kernel = real_kernels(self.pixels.features(self.shown.x))
        found = {"": judge, "_self": own, "_random": random, "_pca": self.pca, "_pixels": self.pixels}
        self.spaces: dict[str, Space] = {suffix: space for suffix, space in found.items() if space is not None}
        self.pretrained = dict(pretrained or {})
        self.test_views = self.views(self.test.x)
        self.searched = _thin(self.train, max(4 * most, MOST_VALUES // spec.dims))
        self.train_raw = self.pixels.features(self.searched.x)
        self.held_out = approach(self.test_views.raw, self.train_raw)
        self.shown_views = self.views(self.shown.x)
        self.cells = Cells(self.shown_views.pca, cell_count(len(self.test.x)), rng=Rng(seed, "cells"))
        self.held_out_cells = self.cells.of(self.test_views.pca)
        self.size = max(1, min(len(self.test.x), int(0.7 * len(self.train.x)), size or MOST))
        self.spread = real_kernels(self.shown_views.judge)
        some = self.test_views.judge[: min(self.size, MOST_VENDI)]
        self.real_vendi = None if too_few("vendi", len(some)) else vendi_score(some, self.spread)
        self.sees_classes = judge.task == "labels" if isinstance(judge, Judge) else judge.classes > 0
        if self.sees_classes:
            seen = np.bincount(judge.predict(self.test.x), minlength=judge.classes)
            self.fair: Array = seen / seen.sum()
            if self.test.labels is not None:
                judge.measure(self.test.x, self.test.labels)
        self.clusters = None if self.sees_classes or self.modes is not None else self._clusters()
        if self.clusters is not None:
            shares = np.bincount(self.clusters.of(self.test_views.judge), minlength=len(self.clusters.centres))
            self.fair = shares / shares.sum()

    @staticmethod
    def build(
        spec: DataSpec,
        *,
        train: Part,
        validation: Part,
        judge: Part,
        test: Part,
        modes: Modes | None = None,
        most: int = MOST,
        seed: int = 0,
    ) -> Reference:
        """Train the judge on its split (seconds) and set up the rest; all splits raw."""
        classes = next(iter(spec.conditions.values()), None)
        spare = np.concatenate([validation.x, judge.x])
        space = make_judge(judge.x, judge.labels, spec, classes=classes, seed=seed)
        own, random = second_spaces(judge.x, judge.labels, spec, seed=seed)
        return Reference(
            spec, train=train, test=test, judge=space, own=own, random=random, spare=spare, modes=modes, most=most,
            seed=seed,
        )  # fmt: skip

    def evaluate(
        self, samples: NDArray[np.generic], labels: Labels = None, *, seed: int | None = None
    ) -> dict[str, Estimate]:
        """Every sample metric: name -> estimate.

        Args:
            samples: (N, *spec.shape) raw.
            labels: (N,) the labels that the samples were asked for.
            seed: of resamples; by default the reference's.
        Raises: ValueError for a wrong shape. Non-finite samples give nulls that say so.
        """
        if tuple(samples.shape[1:]) != self.spec.shape:
            raise ValueError(f"samples have the shape (N, {self.spec.shape}), got {samples.shape}")
        rng = Rng(self.seed if seed is None else seed, "evaluate")
        if len(samples) == 0 or not np.isfinite(np.asarray(samples, np.float64)).all():
            lost = 0 if len(samples) == 0 else int((~np.isfinite(_rows(samples))).any(axis=1).sum())
            reason = f"not available (n={len(samples)}, {lost} not finite)"
            return {name: unavailable(reason, len(samples)) for name in self.names}
        fake = _ordered(Part(samples, labels), rng("order"))
        views = self.views(fake.x)
        return {
            **self.quality(views, rng),
            "cas": cas(fake.x, fake.labels, self.test.x, self.test.labels, n=self.cas_size),
            **self.memory(views, rng),
            **self._published(fake.x, rng),
        }

    def quality(self, fake: Views, rng: Rng, *, resamples: int = 30) -> dict[str, Estimate]:
        """Distances, manifolds, modes and sharpness: all that asks neither for labels nor for the training split.

        Args:
            fake: samples.
            rng: of resamples.
            resamples: for the intervals of Fréchet distances.
        """
        return {
            **self._distances(fake, rng, resamples),
            **self._sets(fake),
            **self._mode_metrics(fake, rng),
            "sharpness": sharpness(self._images(fake.x), self._images(self.test.x), rng=rng("sharpness")),
        }

    def reconstruction(self, again: NDArray[np.generic]) -> dict[str, Estimate]:
        """The reconstruction floor: how far from test data training items are after an encoder and a decoder.

        No model of the latents can come nearer. Held against the floor of real items, which are the same items before.

        Args:
            again: reconstructions of `shown[:size]`, raw.
        """
        rng = Rng(self.seed, "reconstruction")
        views = self.views(again)
        found = self._distances(views, rng, resamples=10)
        sharp = sharpness(self._images(again), self._images(self.test.x), rng=rng("sharpness"))
        rows = {**found, "sharpness": sharp}
        return {
            f"{name}_reconstruction": _renamed(rows[name], "reconstructed training items") for name in RECONSTRUCTED
        }

    @property
    def names(self) -> tuple[str, ...]:
        """The metrics that `evaluate` gives for this data."""
        known = ("modes", "modes_kl", "in_3_sigma") if self.modes is not None else ("modes", "modes_kl")
        return (
            *(f"kid{suffix}" for suffix in self.spaces),
            *(f"fd{suffix}" for suffix in self.spaces if suffix != "_pixels"),
            "c2st", "c2st_judge", "precision", "recall", "density", "coverage", *known, "vendi", "cas", "sharpness",
            *MEMORY, *(space.metric for space in self.pretrained.values()),
        )  # fmt: skip

    @property
    def known_modes(self) -> int | None:
        """How many modes or classes `modes` counts out of; None where there are neither."""
        if self.modes is not None:
            return len(self.modes.centres)
        return int((self.fair > 0).sum()) if self.sees_classes else None

    @property
    def cas_size(self) -> int:
        """Labelled samples that the classifier of CAS is trained on."""
        return min(len(self.train.x), MOST_CAS)

    def nearest_train(self, samples: NDArray[np.generic], k: int = 1) -> NDArray[np.int64]:
        """(N, k) rows of `searched` nearest to each sample, on raw values."""
        return nearest(self.pixels.features(samples), self.train_raw, k).item

    def find_copies(self, samples: NDArray[np.generic]) -> Copies:
        """The copy alarm on raw values, with its p-values, and each sample's nearest training item."""
        raw = self.pixels.features(samples)
        draw = Rng(self.seed, "evaluate", "memory")
        return find_copies(raw, self.train_raw, self.test_views.raw, rng=draw, own=self.held_out)

    def floor(self, repeats: int = 6) -> dict[str, Estimate]:
        """What real data score: random sets of `size` training items as samples against test.

        The value is the mean over `repeats` sets; low and high are mean +- 1.96 standard deviations of one set (the
        spread is enlarged for sets that overlap). CAS is the classifier trained on real training items, as many as
        samples; memorisation and copies take real items outside train and test as samples.
        """
        if len(self.shown.x) < 2 or self.size < 2:
            return {name: unavailable(f"not available (n={len(self.train.x)})") for name in self.names}
        runs = []
        for r in range(repeats):
            rng = Rng(self.seed, "floor", r)
            rows = rng("rows").permutation(len(self.shown.x))[: self.size]
            runs.append(self.quality(self.shown_views.rows(rows), rng, resamples=2))
        if self.spec.kind == "image":  # what reconstructions are held against: the same items before
            runs = [{**run, **{f"{name}_reconstruction": run[name] for name in RECONSTRUCTED}} for run in runs]
        share = self.size / len(self.shown.x)
        result = {name: _over([run[name] for run in runs], share) for name in runs[0]}
        result["cas"] = self.real_cas(self.cas_size)
        published = self._published(self.test.x, Rng(self.seed, "floor", "published"))
        result |= {name: _renamed(found, "test items") for name, found in published.items()}
        if self.spare is None:
            missing = unavailable("not available: no real items outside train and test")
            return result | dict.fromkeys(MEMORY, missing)
        memory = self.memory(self.views(self.spare), Rng(self.seed, "floor", "memory"))
        return result | {name: _renamed(found, "real items outside train and test") for name, found in memory.items()}

    def real_cas(self, n: int) -> Estimate:
        """CAS of n real training items: what n samples can hardly surpass."""
        rows = Rng(self.seed, "floor", "cas").permutation(len(self.train.x))[:n]
        labels = None if self.train.labels is None else self.train.labels[rows]
        found = cas(self.train.x[rows], labels, self.test.x, self.test.labels, n=n)
        return _renamed(found, "real training items")

    def cas(self, samples: NDArray[np.generic], labels: Labels, n: int) -> Estimate:
        """CAS of the first n samples in this reference's order, as `evaluate` measures it."""
        fake = _ordered(Part(samples, labels), Rng(self.seed, "evaluate", "order"))
        return cas(fake.x, fake.labels, self.test.x, self.test.labels, n=n)

    def to_json(self) -> dict[str, object]:
        """What a protocol should say of the reference."""
        return {
            "judge": self.judge.to_json(),
            "pca": self.pca.to_json(),
            "kid": {f"kid{suffix}": space.to_json() for suffix, space in self.spaces.items()},
            "pretrained": {name: space.to_json() for name, space in self.pretrained.items()},
            "train": len(self.train.x),
            "test": len(self.test.x),
            "set_size": self.size,
            "cas_size": self.cas_size,
            "seed": self.seed,
        }

    def views(self, x: NDArray[np.generic]) -> Views:
        return Views(x, self.spaces)

    def _images(self, x: NDArray[np.generic]) -> NDArray[np.generic]:
        return x if self.spec.kind == "image" else x.reshape(len(x), -1)

    def _distances(self, fake: Views, rng: Rng, resamples: int = 30) -> dict[str, Estimate]:
        real, found = self.test_views, {}
        for suffix, space in self.spaces.items():
            found[f"kid{suffix}"] = kid(fake[suffix], real[suffix], space.kernel, space=space.name)
            if suffix != "_pixels":  # hundreds of raw values against as many items: PCA says what can be said
                metric = _fd(space.name, rng(f"fd{suffix}"), resamples)
                found[f"fd{suffix}"] = self._averaged(metric, fake[suffix], real[suffix])
        return found

    def _published(self, x: NDArray[np.generic], rng: Rng) -> dict[str, Estimate]:
        """Fréchet distances to as many training items in the spaces of the user's weights."""
        found = {}
        for space in self.pretrained.values():
            real = _thin(self.train, len(x)).x
            distance = fd(
                space.features(x), space.remembered(real), rng=rng(space.metric), space=space.name, resamples=10
            )
            compared = space.comparable(len(x), len(real), len(self.train.x))
            found[space.metric] = distance.model_copy(update={"protocol": f"{distance.protocol}; {compared}"})
        return found

    def _sets(self, fake: Views) -> dict[str, Estimate]:
        real, size = self.test_views, self.size
        parts = [prdc(a, b, space=self.judge.name) for a, b in self._pairs(fake.judge, real.judge)]
        found = {name: _mean([part[name] for part in parts]) for name in parts[0]}
        found["vendi"] = self._vendi(fake.judge)
        found["c2st"] = c2st(fake.raw[: 4 * size], real.raw[:size], space=self.pixels.name)
        found["c2st_judge"] = c2st(fake.judge[: 4 * size], real.judge[:size], space=self.judge.name)
        return found

    def memory(self, fake: Views, rng: Rng) -> dict[str, Estimate]:
        """Whether samples are nearer to training items than held-out ones are, and the copy alarm."""
        real, draw = self.test_views, rng("memory")
        found = {
            "memorisation": memorisation(fake.raw, self.train_raw, real.raw, rng=draw, space=self.pixels.name),
            "memorisation_judge": memorisation(
                fake.judge, self.shown_views.judge, real.judge, rng=draw, space=self.judge.name
            ),
        }
        missing = too_few("copies", len(fake.raw), len(self.train_raw), len(real.raw))
        if missing:
            return {**found, **dict.fromkeys(("copies", "c_t", "authenticity"), missing)}
        copied = find_copies(fake.raw, self.train_raw, real.raw, rng=draw, own=self.held_out)
        near, name = (copied.distance, copied.item), self.pixels.name
        return {
            **found,
            "copies": copies_estimate(copied, space=name),
            "c_t": c_t(near[0], self.held_out.distance, self.cells.of(fake.pca), self.held_out_cells, space=name),
            "authenticity": authenticity(fake.raw, self.train_raw, *near, space=name),
        }

    def _vendi(self, fake: Features) -> Estimate:
        real = self.test_views.judge[: min(self.size, MOST_VENDI, len(fake))]
        known = self.real_vendi if len(real) == min(self.size, MOST_VENDI) else None
        sets = [fake[i * len(real) : (i + 1) * len(real)] for i in range(min(2, len(fake) // len(real)))]
        return _mean([vendi_ratio(x, real, self.spread, space=self.judge.name, known=known) for x in sets])

    def _clusters(self) -> Cells | None:
        """Clusters of the judge's space, of real items in neither train nor test; None where there are too few."""
        if self.spare is None:
            return None
        count = min(MOST_CLUSTERS, min(len(self.spare), len(self.test.x)) // CLUSTER)
        return None if count < 2 else Cells(self.views(self.spare).judge, count, rng=Rng(self.seed, "clusters"))

    def _mode_metrics(self, fake: Views, rng: Rng) -> dict[str, Estimate]:
        x, real = fake.x, len(self.test.x)
        if self.modes is not None:
            centres, scale = matrix(self.modes.centres), float(self.modes.scale)
            expected = known_modes(matrix(self.test.x), centres, scale)[1] / len(self.test.x)
            return mode_metrics(matrix(x), centres, scale, rng=rng("modes"), expected=expected, size=self.size)
        if self.clusters is not None:
            found = self.clusters.of(fake.judge)
            return cluster_metrics(
                found, self.fair, self.judge.name, rng=rng("modes"), size=self.size, real=real
            )  # fmt: skip
        if not self.sees_classes:
            why = unavailable("not available: neither known modes nor labels")
            return {"modes": why, "modes_kl": why}
        return class_metrics(
            self.judge.predict(x), self.fair, self.judge.name, rng=rng("modes"), size=self.size, real=real
        )

    def _pairs(self, fake: Features, real: Features, most: int = 2) -> list[tuple[Features, Features]]:
        """Disjoint sets of `size` samples, each with `size` test items; with fewer samples one smaller pair."""
        size = min(self.size, len(fake))
        return [(fake[i * size : (i + 1) * size], real[:size]) for i in range(min(most, len(fake) // size))]

    def _averaged(self, metric: Callable[[Features, Features], Estimate], fake: Features, real: Features) -> Estimate:
        return _mean([metric(a, b) for a, b in self._pairs(fake, real)])


def _fd(space: str, rng: Rng, resamples: int) -> Callable[[Features, Features], Estimate]:
    return lambda a, b: fd(a, b, rng=rng, space=space, resamples=resamples)


def _mean(found: list[Estimate]) -> Estimate:
    """The mean over disjoint sets, with the mean of their intervals (that of one set: on the wide side)."""
    if len(found) == 1 or any(f.value is None for f in found):
        return found[0]
    columns = np.array([[f.value, f.low, f.high] for f in found], dtype=np.float64).mean(axis=0)
    value, low, high = (float(c) for c in columns)
    protocol = f"mean of {len(found)} disjoint sets; each: {found[0].protocol}"
    return Estimate(value=value, low=low, high=high, n=sum(f.n or 0 for f in found), protocol=protocol)


def _over(found: list[Estimate], share: float) -> Estimate:
    """Mean over random sets and the range of one; sets that take `share` of the items agree too well by 1 - share."""
    values = np.array([f.value for f in found if f.value is not None], np.float64)
    if not len(values):
        return found[0]
    sd = float(values.std(ddof=1)) / np.sqrt(max(1 - share, 0.05)) if len(values) > 1 else 0.0
    mean = float(values.mean())
    protocol = f"real training items as samples, mean over {len(values)} random sets, +- 1.96 sd of one set; each: "
    return Estimate(
        value=mean,
        low=mean - Z95 * sd,
        high=mean + Z95 * sd,
        n=found[0].n,
        protocol=protocol + found[0].protocol,
    )


def _renamed(found: Estimate, what: str) -> Estimate:
    return found.model_copy(update={"protocol": f"{what} as samples; {found.protocol}"})


def _rows(x: NDArray[np.generic]) -> Array:
    """Rows as float64, non-finite values kept."""
    return np.asarray(x, np.float64).reshape(len(x), -1)


def _ordered(part: Part, rng: Rng) -> Part:
    """Items in an order that depends on their values alone: sorted, then shuffled by `rng`."""
    labels = np.zeros(len(part.x), np.int64) if part.labels is None else part.labels
    keys = [(item.tobytes(), int(label)) for item, label in zip(part.x, labels, strict=True)]
    order = np.array(sorted(range(len(keys)), key=keys.__getitem__), np.int64)[rng.permutation(len(keys))]
    return Part(part.x[order], None if part.labels is None else part.labels[order])


def _thin(part: Part, most: int) -> Part:
    """At most `most` evenly spaced items."""
    if len(part.x) <= most:
        return part
    rows = np.linspace(0, len(part.x) - 1, most).astype(int)
    return Part(part.x[rows], None if part.labels is None else part.labels[rows])
