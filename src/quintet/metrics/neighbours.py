"""What nearest neighbours say: precision, recall, density, coverage, the 1-NN two-sample test, memorisation, copies.

What it is: exact Euclidean neighbours, computed in float64 block by block (a large set is never copied whole); ties
count half, so the order of items plays no part.
What it is not: approximate search; for a million items use another library.

Sources: Kynkäänniemi et al. 2019, arXiv:1904.06991 (precision, recall); Naeem et al. 2020, arXiv:2002.09797 (density,
coverage); Lopez-Paz & Oquab 2017, arXiv:1610.06545 (C2ST); Xu et al. 2018, arXiv:1806.07755 (1-NN, leave one out);
Meehan et al. 2020, arXiv:2004.05675 (comparing distances to training and held-out items).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import hypergeom, norm

from quintet.core.results import Estimate
from quintet.core.rng import Rng
from quintet.metrics.distances import BLOCK, squared_distances
from quintet.metrics.screen import screens
from quintet.metrics.sizes import Array, matrix, normal, pair, proportion, rows, too_few

Indices = NDArray[np.int64]

K = 5
"""Neighbours that make a manifold, as Naeem et al. chose."""

ALARM = 0.01
"""Level of each of the copy alarm's two tests."""

PERMUTATIONS = 200

WIDE = 4096
"""Columns of a block of distances: with BLOCK rows 32 MB, beside the converted items."""


class Neighbours(NamedTuple):
    """(N, k) distances, rising along a row, and which items they are."""

    distance: Array
    item: Indices


def nearest(x: NDArray[np.generic], y: NDArray[np.generic], k: int = 1, *, same: bool = False) -> Neighbours:
    """The k items of y nearest to each item of x.

    Args:
        x: (N, ...). y: (M, ...).
        k: how many.
        same: x is y; an item is then not its own neighbour.
    Raises: ValueError if y has fewer than k items to offer.
    """
    if not 1 <= k <= len(y) - same:
        raise ValueError(f"asked for {k} neighbours among {len(y) - same} items")
    best, item = np.full((len(x), k), np.inf), np.full((len(x), k), -1, np.int64)
    for i, j, part in distance_blocks(x, y):
        rows, columns = np.arange(len(part)), np.arange(part.shape[1])
        if same:
            inside = (rows + i >= j) & (rows + i < j + part.shape[1])
            part[rows[inside], rows[inside] + i - j] = np.inf
        if k == 1:
            near = part.argmin(axis=1)[:, None]  # a tenth of a partition's time
        elif part.shape[1] > k:
            near = np.argpartition(part, k - 1, axis=1)[:, :k]
        else:
            near = np.tile(columns, (len(part), 1))
        here = slice(i, i + len(part))
        found = np.concatenate([best[here], np.take_along_axis(part, near, axis=1)], axis=1)
        order = np.concatenate([item[here], near + j], axis=1)
        rank = np.lexsort((order, found), axis=1)[:, :k]
        item[here] = np.take_along_axis(order, rank, axis=1)
        best[here] = np.take_along_axis(found, rank, axis=1)
    return Neighbours(np.sqrt(best), item)


def distance_blocks(x: NDArray[np.generic], y: NDArray[np.generic]) -> Iterator[tuple[int, int, Array]]:
    """Squared distances of all items of x and y, block by block: (first row, first column, block of the matrix).

    All columns of a block of rows come before the next block of rows.
    """
    offset = np.rint(matrix(y[:WIDE]).mean(axis=0)) if len(y) else 0.0
    for i in range(0, len(x), BLOCK):
        rows = matrix(x[i : i + BLOCK])
        for j in range(0, len(y), WIDE):
            a, b = pair(rows, y[j : j + WIDE])
            yield i, j, squared_distances(a, b, offset)


class Manifolds(NamedTuple):
    """Per-item outcomes whose means are the four numbers."""

    precision: NDArray[np.bool_]  # per fake item: inside some real item's ball
    recall: NDArray[np.bool_]  # per real item: inside some fake item's ball
    density: Array  # per fake item: real balls around it / k
    coverage: NDArray[np.bool_]  # per real item: some fake item in its ball


def manifolds(fake: NDArray[np.generic], real: NDArray[np.generic], k: int = K) -> Manifolds:
    """Whether items lie in the k-NN balls of the other set, item by item.

    A ball's radius is the distance to the k-th neighbour within its own set; its border is outside (as in prdc).

    Args:
        fake: (N, d). real: (M, d), both more than k items.
    Source: Naeem et al. 2020, eq. 1-4.
    """
    f, r = screens(rows(fake), rows(real))
    radius_f, radius_r = f.radii(k), r.radii(k)
    inside = np.zeros(len(f.x), np.int64)
    recalled, covered = np.zeros(len(r.x), bool), np.zeros(len(r.x), bool)
    for block in r.blocks(f):
        here = slice(block.start, block.start + len(block.least))
        around = block.below(radius_r[here, None])
        inside += np.bincount(around.second, minlength=len(inside))
        covered[around.first] = True
        recalled[block.below(radius_f[None]).first] = True
    return Manifolds(inside > 0, recalled, inside / k, covered)


def expected_coverage(n: int, k: int = K) -> float:
    """Coverage of two sets of n items from one distribution: 1 - (n-1)...(n-k) / ((2n-1)...(2n-k)).

    Source: Naeem et al. 2020, eq. 9.
    """
    return 1 - math.prod((n - i) / (2 * n - i) for i in range(1, k + 1))


def prdc(
    fake: NDArray[np.generic], real: NDArray[np.generic], k: int = K, *, space: str = "given features"
) -> dict[str, Estimate]:
    """Precision, recall, density, coverage.

    Intervals are over the items judged (Wilson for shares, normal for density), with the other set's balls fixed.
    """
    missing = too_few("coverage", len(fake), len(real))
    if missing:
        return dict.fromkeys(("precision", "recall", "density", "coverage"), missing)
    found = manifolds(fake, real, k)
    n, m = len(fake), len(real)
    protocol = f"{k} neighbours, {n} samples and {m} real items in {space}; interval over items"
    ideal = f"; same distribution: {expected_coverage(n, k):.3f}" if n == m else ""
    return {
        "precision": proportion(float(found.precision.mean()), n, protocol),
        "recall": proportion(float(found.recall.mean()), m, protocol),
        "density": normal(
            float(found.density.mean()), float(found.density.std(ddof=1)) / math.sqrt(n), n, protocol, floor=0.0
        ),
        "coverage": proportion(float(found.coverage.mean()), m, protocol + ideal),
    }


class Told(NamedTuple):
    """Accuracies of the 1-NN two-sample test; their mean is the test's.

    Attributes:
        fake: share of fake items whose nearest other item is fake; low where fakes lie among or between real items.
        real: share of real items whose nearest other item is real; low where real items are surrounded by fakes.
    """

    fake: float
    real: float

    @property
    def accuracy(self) -> float:
        return (self.fake + self.real) / 2

    def distinct(self, size: int) -> float:
        """How well sets of `size` items are told apart: the accuracy, or 0.5 + the mean deviation of the halves from
        0.5 where one half is certainly above and the other certainly below it (3 standard errors each).

        Noise around real items is nearer to them than to other noise: all of it is taken for real, and so are the real
        items; the mean of 0 and 1 would call that ideal.
        """
        over = [side - 0.5 for side in (self.fake, self.real)]
        sure = 3 * math.sqrt(0.25 / size)
        if min(over) < -sure and max(over) > sure:
            return 0.5 + (abs(over[0]) + abs(over[1])) / 2
        return self.accuracy


def tell_apart(fake: NDArray[np.generic], real: NDArray[np.generic]) -> Told:
    """Tell fake from real by the nearest other item, leave one out; ties count half.

    Raises: ValueError unless both sets have one size (else the larger one wins by number).
    """
    if len(fake) != len(real):
        raise ValueError(f"the 1-NN test needs sets of equal size, got {len(fake)} and {len(real)}")
    shares = []
    for own, other in ((fake, real), (real, fake)):
        near, far = nearest(own, own, same=True).distance, nearest(own, other).distance
        shares.append(float((near < far).mean() + 0.5 * (near == far).mean()))
    return Told(*shares)


def c2st(fake: NDArray[np.generic], real: NDArray[np.generic], *, space: str = "given features") -> Estimate:
    """The 1-NN two-sample test: 0.5 if the sets cannot be told apart, 1 if always, below 0.5 if fakes copy reals.

    Where there are more samples than real items, the accuracy is the mean over disjoint sets of samples of the real
    set's size, each against all real items; the interval stays that of one such test, sqrt(0.25 / n). The protocol
    gives the two halves, and `Told.distinct` says how they make one number.
    """
    size = min(len(fake), len(real))
    missing = too_few("c2st", size)
    if missing:
        return missing
    told = [tell_apart(part, real[:size]) for part in disjoint(fake, size)]
    on_fake, on_real = (float(np.mean([getattr(t, side) for t in told])) for side in ("fake", "real"))
    protocol = (
        f"leave-one-out 1-NN, {size} samples against {size} real items in {space}"
        + (f", mean of {len(told)} disjoint sets of samples" if len(told) > 1 else "")
        + f"; samples recognised {on_fake:.3f}, real items {on_real:.3f}; standard error sqrt(0.25/n) with n both sets"
    )
    value = float(np.mean([t.distinct(size) for t in told]))
    return normal(value, math.sqrt(0.25 / (2 * size)), 2 * size, protocol, 0.0, 1.0)


def disjoint(x: NDArray[np.generic], size: int, most: int = 4) -> list[NDArray[np.generic]]:
    """Up to `most` disjoint parts of `size` rows."""
    return [x[i * size : (i + 1) * size] for i in range(min(most, len(x) // size))]


class Memorisation(NamedTuple):
    """How much nearer samples are to training items than to as many held-out ones.

    Attributes:
        share: 0.5 if it makes no difference, 1 if every sample's nearest item is a training one.
        sd: of the share if training and held-out labels meant nothing (permutations of the labels).
        size: reference items on each side.
    """

    share: float
    sd: float
    size: int


def memorisation_index(
    samples: NDArray[np.generic],
    train: NDArray[np.generic],
    held_out: NDArray[np.generic],
    *,
    rng: Rng,
) -> Memorisation:
    """Share of samples nearer to n training items than to n held-out ones, n = the smaller set's size.

    Where the training set is larger, the share is its expectation over all its subsets of n items, in closed form:
    with c training items nearer than the nearest held-out one, a subset of n of N has none of them with probability
    C(N - c, n) / C(N, n). Its spread comes from permuting which real item is called training: that counts hubs (one
    item that is the nearest of many samples), which a binomial error would miss.

    Args:
        samples, train, held_out: rows; of a training set above four times the held-out's size an evenly spaced part.
        rng: draws the permutations.
    """
    s, t, h = samples, train, held_out
    if len(t) < len(h):
        h = h[np.linspace(0, len(h) - 1, len(t)).astype(int)]
    if len(t) > 4 * len(h):
        t = t[np.linspace(0, len(t) - 1, 4 * len(h)).astype(int)]
    size = len(h)
    miss = _miss_table(len(t), size)
    near = nearest(s, h).distance[:, 0] ** 2
    below, equal = np.zeros(len(s), np.int64), np.zeros(len(s), np.int64)
    for i, _, squared in distance_blocks(s, t):
        limit = near[i : i + len(squared), None]
        # the same rounding on both sides, so that a copy in both sets is a tie
        below[i : i + len(squared)] += (squared < limit * (1 - 1e-12)).sum(axis=1)
        equal[i : i + len(squared)] += (squared <= limit * (1 + 1e-12)).sum(axis=1)
    scores = 1 - (miss[below] + miss[equal]) / 2
    spread = _permuted(s, np.concatenate([t, h]), len(t), miss, rng)
    return Memorisation(float(scores.mean()), float(spread.std()), size)


def memorisation(
    samples: NDArray[np.generic],
    train: NDArray[np.generic],
    held_out: NDArray[np.generic],
    *,
    rng: Rng,
    space: str = "given features",
) -> Estimate:
    """The memorisation index with its 95 % interval; 0.5 is ideal."""
    missing = too_few("memorisation", len(samples), len(train), len(held_out))
    if missing:
        return missing
    found = memorisation_index(samples, train, held_out, rng=rng)
    protocol = (
        f"share of {len(samples)} samples nearer to {found.size} training than to {found.size} held-out items in "
        f"{space}; interval: permuted labels, {PERMUTATIONS} permutations"
    )
    return normal(found.share, found.sd, len(samples), protocol, 0.0, 1.0)


class Copies(NamedTuple):
    """The copy alarm's finding.

    Attributes:
        share: of samples nearer to a training item than the threshold; about `expected` for honest samples.
        threshold: the 1st percentile of held-out items' distances to the nearest training item.
        p_close: probability of so many close samples if they were held-out data (exact).
        p_side: probability that close samples lean so much to training items if it made no difference to them.
        alarm: both below ALARM.
        distance: (N,) to the nearest training item.
        item: (N,) which training item.
    """

    share: float
    expected: float
    threshold: float
    p_close: float
    p_side: float
    alarm: bool
    distance: Array
    item: Indices


def find_copies(
    samples: NDArray[np.generic],
    train: NDArray[np.generic],
    held_out: NDArray[np.generic],
    *,
    rng: Rng,
    own: Array | None = None,
) -> Copies:
    """Whether samples copy training items.

    `own` are the held-out items' distances to their nearest training items where they are known already.

    Two tests must both reject at ALARM. First: more samples are closer to a training item than the held-out items'
    1st percentile (their k-th smallest distance) than chance allows; under the null samples and held-out items are
    exchangeable, so the count is negative hypergeometric, exactly. Second: among samples that are that close to any
    real item, the nearest is a training item more often than a held-out one (permuted labels): a dull model whose
    samples lie near everything does not copy. Samples equal to a training item, and to no held-out one, more often than
    held-out items are need no second test (a model collapsed on one training item). So false alarms stay below twice
    ALARM for honest samples.
    """
    s, t, h = (x.reshape(len(x), -1) for x in (samples, train, held_out))
    found = nearest(s, t)
    distance = found.distance[:, 0]
    own = np.sort(nearest(h, t).distance[:, 0] if own is None else own)
    k = max(1, math.floor(0.01 * len(h)))  # the threshold is the k-th smallest held-out distance
    threshold = float(own[k - 1])
    # zero is a copy whatever the threshold: duplicates between train and held-out would hide it
    count = int(((distance < threshold) | ((distance == 0) & (threshold == 0))).sum())
    if threshold == 0:  # ties at zero: held-out items at zero count as earlier, all of them
        k = int((own == 0).sum()) + 1
    p_close = _exchangeable(count, len(s), k, len(h))
    p_side = 1.0
    if p_close < ALARM:
        beside = nearest(s, h)
        close = np.minimum(distance, beside.distance[:, 0]) <= threshold
        equal = (s == t[found.item[:, 0]]).all(axis=1) & (s != h[beside.item[:, 0]]).any(axis=1)
        p_side = _exchangeable(int(equal.sum()), len(s), int((own < 1e-12).sum()) + 1, len(h))
        if p_side >= ALARM and close.sum() >= 2:
            side = memorisation_index(s[close], t, h, rng=rng)
            p_side = float(norm.sf((side.share - 0.5) / max(side.sd, 1e-12)))
    return Copies(
        share=count / len(s),
        expected=k / (len(h) + 1),
        threshold=threshold,
        p_close=p_close,
        p_side=p_side,
        alarm=p_close < ALARM and p_side < ALARM,
        distance=distance,
        item=found.item[:, 0],
    )


def copies(
    samples: NDArray[np.generic],
    train: NDArray[np.generic],
    held_out: NDArray[np.generic],
    *,
    rng: Rng,
    space: str = "given features",
) -> Estimate:
    """Share of copies; its protocol begins with "alarm" or "no alarm" (`find_copies` says the same as a bool)."""
    missing = too_few("copies", len(samples), len(train), len(held_out))
    if missing:
        return missing
    return copies_estimate(find_copies(samples, train, held_out, rng=rng), space=space)


def copies_estimate(found: Copies, *, space: str) -> Estimate:
    """A finding as an estimate."""
    protocol = (
        f"{'alarm' if found.alarm else 'no alarm'}: share of samples nearer to a training item than the 1st "
        f"percentile of held-out items ({found.threshold:.3g}) in {space}, {found.expected:.3f} expected; "
        f"exact p {found.p_close:.2g}"
        + (f", leaning to training items p {found.p_side:.2g}" if found.p_close < ALARM else "")
        + f"; alarm where both are below {ALARM:g}"
    )
    return proportion(found.share, len(found.distance), protocol)


def _exchangeable(count: int, n: int, k: int, m: int) -> float:
    """P(at least `count` of n samples come before the k-th of m held-out items), all n + m orders being equally likely.

    That is: among the first count + k - 1 of all at most k - 1 are held-out items.
    """
    return float(hypergeom.cdf(k - 1, n + m, m, count + k - 1)) if count else 1.0


def _miss_table(total: int, size: int) -> Array:
    """For c = 0..total: the probability that a random subset of `size` of `total` items has none of c given ones."""
    c = np.arange(total)
    ratio = np.clip((total - size - c) / (total - c), 0, None)  # C(N-c-1, n) / C(N-c, n)
    return np.concatenate([[1.0], np.cumprod(ratio)])


def _permuted(samples: NDArray[np.generic], pool: NDArray[np.generic], trains: int, miss: Array, rng: Rng) -> Array:
    """The index under random namings of `trains` of the pool's items as training ones, (PERMUTATIONS,)."""
    depth = min(len(pool), 64)  # beyond it a held-out item is all but certain to have come
    order = nearest(samples, pool, depth).item
    generator = rng.numpy()
    values = np.empty(PERMUTATIONS)
    for p in range(PERMUTATIONS):
        held = np.ones(len(pool), bool)
        held[generator.permutation(len(pool))[:trains]] = False
        names = held[order]  # (N, depth): true where a held-out item
        before = np.where(names.any(axis=1), names.argmax(axis=1), depth)
        values[p] = 1 - miss[before].mean()
    return values
