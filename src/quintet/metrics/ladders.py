"""Ladders: real items, corrupted more and more, scored by every metric.

What it is: known faults of known size (blur, noise, fewer levels, missing classes, duplicates, copies of training
items) applied to training items in place of samples, as the floor does with clean ones. They calibrate a metric's axis
("as far as blur 0.4") and test it: a metric that does not order the faults it is there to see is not used on that data.
What it is not: a list of all faults that models have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from quintet.core.ladders import Ladder, Rung
from quintet.core.results import BETTER, Estimate
from quintet.core.rng import Rng
from quintet.core.spec import DataSpec
from quintet.metrics.classify import cas
from quintet.metrics.distances import fd
from quintet.metrics.evaluate import Part, Reference
from quintet.metrics.judges.pretrained import PretrainedSpace
from quintet.metrics.sizes import Z95, Array, matrix

MOST = 500
"""Items of a set at most: eighteen sets go through every space."""

FEWEST = 20
"""Items without which there is no ladder."""

MOST_COPIES = 300
"""Items of a set that may hold copies, which are sought among all training items."""

BLUR, NOISE, LEVELS = (0.25, 0.5, 1.0), (0.02, 0.05, 0.1, 0.2), (16.0, 8.0, 4.0)
CLASSES, DUPLICATES, COPIES = (0.1, 0.3, 0.5), (0.5, 0.9), (0.1, 0.5)
SHRINK = (0.9, 0.7, 0.5)
MOST_PUBLISHED, PUBLISHED = 100, ("blur", "noise", "classes")
"""Items of a set and corruptions in the spaces of the user's weights, whose networks take seconds an item: together
about as many items as one model's samples."""

LADDER_ITEMS = (2 + len(BLUR) + len(NOISE) + len(CLASSES)) * MOST_PUBLISHED
"""Items that those networks see at most: real ones, clean ones, and each rung's."""

CLUSTERS = 10
"""Clusters that stand for classes where there are neither labels nor known modes."""

SURE, SLACK = 2.0, 2.0
"""In the floor's standard deviations: how much worse the strongest rung must be than clean data, and how much better
than the rung before it a rung may be."""

MUST: Mapping[str, tuple[str, ...]] = {
    "kid": ("blur", "shrink", "noise", "classes"), "fd": ("blur", "shrink", "noise", "classes"),
    "fid": ("blur", "noise", "classes"), "precision": ("noise",),
    "density": ("noise",), "recall": ("classes",), "coverage": ("classes",),
    "c2st": ("noise",), "cas": ("classes",), "modes": ("classes",), "modes_kl": ("classes",), "in_3_sigma": ("noise",),
    "sharpness": ("blur",), "memorisation": ("copies",), "copies": ("copies",), "authenticity": ("copies",),
    "c_t": ("copies",), "vendi": ("duplicates",),
}  # fmt: skip
"""What a metric is there to see, by its own name or, for one in another space, that before the suffix. The others are
measured and shown, but a metric need not see them: a distance between distributions is all but blind to duplicates."""

Corrupt = Callable[[float], Part]


@dataclass(frozen=True)
class Corruption:
    """One way to spoil a set of real items.

    Attributes:
        name: as in `core.ladders`.
        clean: the strength of clean data.
        strengths: from weak to strong.
        apply: strength -> items and labels.
    """

    name: str
    clean: float
    strengths: tuple[float, ...]
    apply: Corrupt


def ladders(reference: Reference, floor: Mapping[str, Estimate]) -> dict[str, Ladder]:
    """Metric -> its ladder on this data; empty where there are too few items.

    Args:
        reference: of the data.
        floor: its floor, whose spread is the noise of one set.
    """
    size = min(reference.size, MOST)
    if size < FEWEST or len(reference.shown.x) < FEWEST:
        return {}
    rng = Rng(reference.seed, "ladder")
    order = rng("rows").permutation(len(reference.shown.x))
    clean = _quality(reference, _part(reference.shown, order[:size]), rng, with_cas=True)
    found: list[tuple[str, float, dict[str, Estimate]]] = []
    for corruption in corruptions(reference, order, size, rng):
        found.append((corruption.name, corruption.clean, clean))
        for strength in corruption.strengths:
            part = corruption.apply(strength)
            values = _quality(reference, part, rng, with_cas=corruption.name in ("classes", "noise"))
            found.append((corruption.name, strength, values))
    found += [("copies", strength, values) for strength, values in copied(reference, rng)]
    metrics = dict.fromkeys(metric for _, _, values in found for metric in values)
    rows = {
        metric: [(name, strength, e.value) for name, strength, values in found if (e := values.get(metric)) is not None]
        for metric in metrics
    }
    known = {
        metric: judged(metric, measured, floor.get(metric))
        for metric, measured in rows.items()
        if measured[0][2] is not None
    }
    return known | published(reference, order, floor, rng("published"))


def published(
    reference: Reference, order: NDArray[np.int64], floor: Mapping[str, Estimate], rng: Rng
) -> dict[str, Ladder]:
    """Ladders in the spaces of the user's weights, of small sets against as many other training items.

    Args:
        order: of the training items shown; the first are the real side, those after them are spoiled.
        floor: of the reference. The noise of one set is not its own but the bootstrap's at this size.
        rng: of corruptions and resamples.
    """
    size = min(MOST_PUBLISHED, len(order) // 2)
    if size < FEWEST:
        return {}
    real, rest = reference.shown.x[order[:size]], order[size:]
    found = {}
    for space in reference.pretrained.values():
        against = space.features(real)

        def distance(part: Part, space: PretrainedSpace = space, against: Array = against) -> Estimate:
            return fd(space.features(part.x), against, rng=rng("fd"), space=space.name)

        clean = distance(_part(reference.shown, rest[:size]))
        measured: list[tuple[str, float, float | None]] = []
        for corruption in corruptions(reference, rest, size, rng):
            if corruption.name in PUBLISHED:
                measured.append((corruption.name, corruption.clean, clean.value))
                measured += [(corruption.name, s, distance(corruption.apply(s)).value) for s in corruption.strengths]
        at = floor.get(space.metric, clean).value
        if at is None or clean.value is None or clean.high is None:
            continue
        half = clean.high - clean.value
        found[space.metric] = judged(space.metric, measured, Estimate(value=at, low=at - half, high=at + half))
    return found


def judged(metric: str, measured: Sequence[tuple[str, float, float | None]], floor: Estimate | None) -> Ladder:
    """A metric's ladder: its rungs, which corruptions it orders, and whether that makes it fit for use.

    Args:
        metric: its name.
        measured: (corruption, strength, value), each corruption's clean set first.
        floor: of the metric. Rungs are differences to the clean set added to it: the sets of a ladder may be smaller
            than those of models, which moves a biased metric, and one clean set has its own luck.
    """
    half = Z95 * spread(floor)
    rungs: list[Rung] = []
    ordered = {}
    for name in dict.fromkeys(corruption for corruption, _, _ in measured):
        steps = [(strength, value) for corruption, strength, value in measured if corruption == name]
        clean = steps[0][1]
        offset = floor.value - clean if floor is not None and floor.value is not None and clean is not None else 0.0
        moved = [(strength, None if value is None else value + offset) for strength, value in steps]
        rungs += [
            Rung(
                corruption=name, strength=strength, value=value,
                low=None if value is None else value - half, high=None if value is None else value + half,
            )
            for strength, value in moved
        ]  # fmt: skip
        known = [value for _, value in moved if value is not None]
        if len(known) == len(moved) > 1:
            ordered[name] = orders([loss(metric, value) for value in known], spread(floor))
    must = [name for name in MUST.get(metric, MUST.get(metric.partition("_")[0], ())) if name in ordered]
    missed = [name for name in must if not ordered[name]]
    reason = f"does not order {', '.join(missed)} on this data" if missed else ""
    return Ladder(rungs=rungs, ordered=ordered, must=must, used=not missed, reason=reason)


def orders(losses: Sequence[float], sd: float) -> bool:
    """Whether losses, clean data's first, rise rung by rung and certainly in the end.

    Args:
        losses: lower is better.
        sd: the noise of one; see SURE and SLACK.
    """
    rises = all(after >= before - SLACK * sd for before, after in pairwise(losses))
    return rises and losses[-1] - losses[0] > max(SURE * sd, 1e-12)


def loss(metric: str, value: float) -> float:
    """Lower is better: the value, its negative, or its distance from the ideal one."""
    way = BETTER[metric]
    if way == "low":
        return value
    return -value if way == "high" else abs(value - float(way))


def spread(floor: Estimate | None) -> float:
    """The standard deviation of one set of real items, 0 where it is unknown."""
    if floor is None or floor.low is None or floor.high is None:
        return 0.0
    return (floor.high - floor.low) / (2 * Z95)


def corruptions(reference: Reference, order: NDArray[np.int64], size: int, rng: Rng) -> Iterable[Corruption]:
    """What can be done to this data, the easiest to picture first.

    Args:
        reference: of the data.
        order: of the training items shown; the first `size` are the clean set.
        size: of a set.
        rng: of noise and choices.
    """
    spec, shown = reference.spec, reference.shown
    base = _part(shown, order[:size])
    if spec.kind == "image":
        scale = max(1.0, max(spec.shape[1:]) / 32)
        blurs = tuple(sigma * scale for sigma in BLUR)
        yield Corruption("blur", 0.0, blurs, lambda s: _kept(base, blurred(base.x, s), spec))
    else:
        yield Corruption("shrink", 1.0, SHRINK, lambda s: _kept(base, shrunk(base.x, s), spec))
    sd = _range(shown.x, spec)
    yield Corruption("noise", 0.0, NOISE, lambda s: _kept(base, noisy(base.x, s * sd, rng("noise")), spec))
    top = float(spec.levels or 256)
    levels = tuple(count for count in LEVELS if count < top)
    values = np.asarray(shown.x, np.float64)
    limits = (0.0, top - 1) if spec.levels else (values.min(axis=0), values.max(axis=0))
    yield Corruption("levels", top, levels, lambda s: _kept(base, quantised(base.x, int(s), *limits), spec))
    groups = _groups(reference)
    count = len(np.unique(groups))
    if count > 1:
        shares = sorted({max(1, min(round(share * count), count - 1)) / count for share in CLASSES})
        away = rng("classes").permutation(count)

        def dropped(share: float) -> Part:
            kept = order[~np.isin(np.unique(groups, return_inverse=True)[1][order], away[: round(share * count)])]
            return _part(shown, np.resize(kept, size))  # again from the start where too few are left

        yield Corruption("classes", 0.0, tuple(shares), dropped)
    yield Corruption("duplicates", 0.0, DUPLICATES, lambda s: _part(base, duplicated(size, s)))


def copied(reference: Reference, rng: Rng) -> Iterable[tuple[float, dict[str, Estimate]]]:
    """(share of copies, what the metrics of memorisation say), from none on; nothing without real items to spare."""
    if reference.spare is None or len(reference.spare) < FEWEST:
        return
    spare = reference.spare[:MOST_COPIES]
    rows = rng("copies").permutation(len(reference.searched.x))
    for share in (0.0, *COPIES):
        count = round(share * len(spare))
        x = np.concatenate([reference.searched.x[np.resize(rows, count)], spare[count:]])
        yield share, reference.memory(reference.views(x), rng("memory"))


def blurred(x: NDArray[np.generic], sigma: float) -> Array:
    """(N, C, H, W) averaged over a Gaussian of `sigma` pixels, integrated over each pixel; edges continued."""
    if sigma == 0:
        return np.asarray(x, np.float64)
    reach = max(1, math.ceil(3 * sigma))
    edges = (np.arange(-reach, reach + 2) - 0.5) / sigma
    weights = np.diff(ndtr(edges))
    weights /= weights.sum()
    result = np.asarray(x, np.float64)
    for axis in (2, 3):
        wide = np.pad(result, [(reach, reach) if a == axis else (0, 0) for a in range(4)], mode="edge")
        length = x.shape[axis]
        result = np.sum([w * wide.take(range(k, k + length), axis) for k, w in enumerate(weights)], axis=0)
    return result


def noisy(x: NDArray[np.generic], sd: float | Array, rng: Rng) -> Array:
    """Normal noise added; the same at every strength, but for its size."""
    result: Array = np.asarray(x, np.float64) + sd * rng.normal(x.shape).double().numpy()
    return result


def shrunk(x: NDArray[np.generic], factor: float) -> Array:
    """Distances to the mean times `factor`."""
    values = np.asarray(x, np.float64)
    mean = values.mean(axis=0)
    result: Array = mean + factor * (values - mean)
    return result


def quantised(x: NDArray[np.generic], levels: int, low: float | Array, high: float | Array) -> Array:
    """Each value to the nearest of `levels` even steps from `low` to `high`."""
    step = (high - np.asarray(low)) / (levels - 1)
    step = np.where(step > 0, step, 1.0)
    result: Array = low + np.rint((np.asarray(x, np.float64) - low) / step) * step
    return result


def duplicated(size: int, share: float) -> NDArray[np.int64]:
    """(size,) rows of which `share` repeat one of the others."""
    return np.resize(np.arange(max(1, round(size * (1 - share)))), size)


def _quality(reference: Reference, part: Part, rng: Rng, *, with_cas: bool) -> dict[str, Estimate]:
    found = reference.quality(reference.views(part.x), rng, resamples=2)
    if with_cas and part.labels is not None:
        found["cas"] = cas(part.x, part.labels, reference.test.x, reference.test.labels)
    return found


def _range(x: NDArray[np.generic], spec: DataSpec) -> float | Array:
    """What noise is measured in: all levels of an image, each column's standard deviation otherwise."""
    if spec.kind == "image":
        return float(spec.levels - 1) if spec.levels is not None else float(x.max() - x.min())
    deviations: Array = matrix(x).std(axis=0).reshape(x.shape[1:])
    return deviations


def _groups(reference: Reference) -> NDArray[np.int64]:
    """(N,) the class, mode or cluster of each training item shown."""
    shown = reference.shown
    if shown.labels is not None:
        return shown.labels
    if reference.modes is not None:
        squared = ((matrix(shown.x)[:, None] - matrix(reference.modes.centres)[None]) ** 2).sum(axis=2)
        return np.asarray(squared.argmin(axis=1), np.int64)
    from sklearn.cluster import KMeans

    count = min(CLUSTERS, len(shown.x) // 10)
    found = KMeans(count, n_init=1, random_state=0).fit_predict(reference.shown_views.pca)
    return np.asarray(found, np.int64)


def _part(part: Part, rows: NDArray[np.int64]) -> Part:
    return Part(part.x[rows], None if part.labels is None else part.labels[rows])


def _kept(part: Part, values: Array, spec: DataSpec) -> Part:
    """Corrupted values as data of the same kind: whole levels inside the range, the same type."""
    if spec.levels is not None:
        values = np.clip(np.rint(values), 0, spec.levels - 1)
    return Part(values.astype(part.x.dtype), part.labels)
