"""What nearest neighbours say: precision, recall, density, coverage, the 1-NN two-sample test, memorisation, copies.

What it is: exact Euclidean neighbours, computed in float64 block by block (a large set is never copied whole); ties
count half, so the order of items plays no part.
What it is not: approximate search; for a million items use another library.

Sources: Kynkäänniemi et al. 2019, arXiv:1904.06991 (precision, recall); Naeem et al. 2020, arXiv:2002.09797 (density,
coverage); Lopez-Paz & Oquab 2017, arXiv:1610.06545 (C2ST); Xu et al. 2018, arXiv:1806.07755 (1-NN, leave one out);
Meehan et al. 2020, arXiv:2004.05675 (comparing distances to training and held-out items); Levina & Bickel 2004,
NIPS 17, and Facco et al. 2017, arXiv:1803.06992 (how neighbours are spaced in any dimension).
"""

from __future__ import annotations

import hashlib
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
"""Level of each of the copy alarm's tests."""

AROUND = 20
"""Training items around an item whose spacing says how near the nearest of them would be by chance."""

PERMUTATIONS = 200

WIDE = 4096
"""Columns of a block of distances: with BLOCK rows 32 MB, beside the converted items."""


class Neighbours(NamedTuple):
    """(N, k) distances, rising along a row, and which items they are."""

    distance: Array
    item: Indices


def nearest(
    x: NDArray[np.generic],
    y: NDArray[np.generic],
    k: int = 1,
    *,
    same: bool = False,
    among: NDArray[np.bool_] | None = None,
) -> Neighbours:
    """The k items of y nearest to each item of x.

    Args:
        x: (N, ...). y: (M, ...).
        k: how many.
        same: x is y; an item is then not its own neighbour.
        among: (M,) which items of y are looked at, by default all.
    Raises: ValueError if y has fewer than k items to offer.
    """
    offered = (len(y) if among is None else int(among.sum())) - same
    if not 1 <= k <= offered:
        raise ValueError(f"asked for {k} neighbours among {offered} items")
    best, item = np.full((len(x), k), np.inf), np.full((len(x), k), -1, np.int64)
    for i, j, part in distance_blocks(x, y):
        if same:
            own = np.arange(len(part)) + i - j
            inside = (own >= 0) & (own < part.shape[1])
            part[np.flatnonzero(inside), own[inside]] = np.inf
        if among is not None:
            part[:, ~among[j : j + part.shape[1]]] = np.inf
        here = slice(i, i + len(part))
        row, column = _nearer(part, best[here, -1], k)
        row, order = np.append(np.repeat(np.arange(len(part)), k), row), np.append(item[here], column + j)
        found = np.append(best[here], part[row[len(part) * k :], column])
        rank = np.lexsort((order, found, row))
        first = np.searchsorted(row[rank], np.arange(len(part)))
        rank = rank[first[:, None] + np.arange(k)]
        item[here], best[here] = order[rank], found[rank]
    return Neighbours(np.sqrt(best), item)


def _nearer(part: Array, limit: Array, k: int) -> tuple[Indices, Indices]:
    """Rows and columns of a block of distances that hold each row's k smallest below its limit, and few others."""
    rows = np.arange(len(part))
    if k == 1:
        return rows, part.argmin(axis=1)  # a tenth of a partition's time
    if part.shape[1] > k and np.isinf(limit).all():
        return np.repeat(rows, k), np.argpartition(part, k - 1, axis=1)[:, :k].ravel()
    # few: a quick look, where a partition would take most of the time
    row, column = np.divmod(np.flatnonzero(part < limit[:, None]), part.shape[1])
    return row, column


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


class Approach(NamedTuple):
    """How near items come to training items, (N,) each.

    Attributes:
        distance: to the nearest.
        item: which that is.
        chance: probability of one as near, given how the next ones are spaced, were training items spread evenly
            around: uniform then, whatever their density and the dimension of the data; 0 for a copy.
    """

    distance: Array
    item: Indices
    chance: Array


def approach(x: NDArray[np.generic], train: NDArray[np.generic]) -> Approach:
    """How near items come to training items, of which equal ones count as one.

    Where they are spread evenly, the spacings j log(d_(j+1) / d_j) of the distances d_1 <= d_2 <= ... are independent
    and exponential with one mean, the inverse of the dimension; so the first over the mean of m others is F(2, 2m).

    Args:
        x: (N, ...). train: (M, ...).
    Source: Levina & Bickel 2004 (the mean of the spacings); Facco et al. 2017 (the first of them).
    """
    distinct = _distinct(train)
    found = nearest(x, train, min(AROUND, int(distinct.sum())), among=distinct)
    distance = _apart(x, train, found.item)
    order = np.lexsort((found.item, distance), axis=1)
    distance = np.take_along_axis(distance, order, axis=1)
    return Approach(distance[:, 0], np.take_along_axis(found.item, order, axis=1)[:, 0], _chance(distance))


def _distinct(x: NDArray[np.generic]) -> NDArray[np.bool_]:
    """(N,) whether an item is the first of those equal to it."""
    seen: set[bytes] = set()
    first = np.zeros(len(x), bool)
    for i, row in enumerate(x):
        digest = hashlib.blake2b(row.tobytes(), digest_size=16).digest()
        first[i] = digest not in seen
        seen.add(digest)
    return first


def _apart(x: NDArray[np.generic], y: NDArray[np.generic], item: Indices) -> Array:
    """Distances (N, k) of items of x from k items of y each, by differences: 0 for equal items and for no others."""
    distance = np.empty(item.shape)
    for i in range(0, len(x), BLOCK):
        rows = matrix(x[i : i + BLOCK])
        for c in range(item.shape[1]):
            distance[i : i + BLOCK, c] = np.linalg.norm(rows - matrix(y[item[i : i + BLOCK, c]]), axis=1)
    return distance


def _chance(distance: Array) -> Array:
    """See Approach; of distances (N, k) that rise along a row."""
    others = distance.shape[1] - 2
    if others < 1:
        return np.where(distance[:, 0] == 0, 0.0, 1.0)
    spacing = np.diff(np.log(np.maximum(distance, 1e-150)), axis=1) * np.arange(1, others + 2)
    ratio = spacing[:, 0] / np.maximum(spacing[:, 1:].mean(axis=1), 1e-9)  # many ties are no spacing at all
    chance: Array = (1 + ratio / others) ** -others
    chance[distance[:, 0] == 0] = 0.0
    return chance


class Copies(NamedTuple):
    """The copy alarm's finding.

    Attributes:
        share: of samples nearer to a training item than the threshold; about `expected` for honest samples.
        threshold: the 1st percentile of held-out items' distances to the nearest training item.
        p_close: probability of so many close samples if they were held-out data (exact).
        p_lone: probability of so many training items that samples are nearer to than the next ones' spacing explains,
            if samples were held-out data.
        p_side: probability that close samples lean so much to training items if it made no difference to them.
        alarm: p_close and one of the other two below ALARM; those are 1, not asked for, where p_close is not below it.
        distance: (N,) to the nearest training item.
        item: (N,) which training item.
    """

    share: float
    expected: float
    threshold: float
    p_close: float
    p_lone: float
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
    own: Approach | None = None,
) -> Copies:
    """Whether samples copy training items.

    `own` is the held-out items' approach to the training items where it is known already.

    More samples must be closer to a training item than the held-out items' 1st percentile (their k-th smallest
    distance) than chance allows; under the null samples and held-out items are exchangeable, so the count is negative
    hypergeometric, exactly. As a dull model, or one that makes the easy part of the data only, lies near everything,
    one of two more tests must reject: samples are nearer to single training items than the spacing of the next ones
    explains (`_lone`), which tells in training sets of any size; or close samples are nearer to training items than to
    as many held-out ones (`memorisation_index`, permuted labels), which tells more where there are hardly more training
    items than held-out ones. Each test has the level ALARM: so false alarms stay below it for honest samples, and
    below twice that for samples that are near everything.
    """
    s, t, h = (x.reshape(len(x), -1) for x in (samples, train, held_out))
    found, own = approach(s, t), approach(h, t) if own is None else own
    close = _below(found.distance, own.distance)
    count = int(close.which.sum())
    p_close, p_lone, p_side = _exchangeable(count, len(s), close.place, len(h)), 1.0, 1.0
    if p_close < ALARM:
        beside = _apart(s, h, nearest(s, h).item)[:, 0]
        p_lone = _lone(found, own, beside)
        near = np.minimum(found.distance, beside) <= close.threshold
        if near.sum() >= 2:
            side = memorisation_index(s[near], t, h, rng=rng)
            p_side = float(norm.sf((side.share - 0.5) / max(side.sd, 1e-12)))
    return Copies(
        share=count / len(s),
        expected=close.place / (len(h) + 1),
        threshold=close.threshold,
        p_close=p_close,
        p_lone=p_lone,
        p_side=p_side,
        alarm=p_close < ALARM and min(p_lone, p_side) < ALARM,
        distance=found.distance,
        item=found.item,
    )


def _lone(samples: Approach, held_out: Approach, beside: Array) -> float:
    """P(so many training items with samples all but on them), were samples held-out items.

    More samples than chance allows have an `Approach.chance` below the held-out items' 1st percentile. Each training
    item speaks once, with the share of the samples nearest to it, so that a few points made again and again count as
    few; and a sample no further from a held-out item, `beside`, copies nothing. Where a model has collapsed on few
    training items exactly, it is enough that more samples equal one, and no held-out item, than held-out items do.
    """
    n, m = len(samples.item), len(held_out.item)
    nearer = samples.distance < beside
    lone = _below(np.where(nearer, samples.chance, 1.0), held_out.chance)
    _, item, owned = np.unique(samples.item, return_inverse=True, return_counts=True)
    speaking = math.floor((lone.which / owned[item]).sum() + 1e-9)
    equal = int((nearer & (samples.distance == 0)).sum())
    return min(
        _exchangeable(speaking, len(owned), lone.place, m),
        _exchangeable(equal, n, int((held_out.distance == 0).sum()) + 1, m),
    )


class Below(NamedTuple):
    """Which values lie below the `place`-th smallest of held-out ones, the threshold."""

    which: NDArray[np.bool_]
    place: int
    threshold: float


def _below(values: Array, held_out: Array) -> Below:
    """Values below the held-out ones' 1st percentile.

    Zero is a copy whatever the threshold: duplicates between train and held-out would hide it. Held-out zeros then
    count as smaller than the values' zeros, all of them.
    """
    place = max(1, math.floor(0.01 * len(held_out)))
    threshold = float(np.sort(held_out)[place - 1])
    if threshold == 0:
        return Below(values == 0, int((held_out == 0).sum()) + 1, threshold)
    return Below(values < threshold, place, threshold)


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
    others = f", standing alone p {found.p_lone:.2g}, leaning to training items p {found.p_side:.2g}"
    protocol = (
        f"{'alarm' if found.alarm else 'no alarm'}: share of samples nearer to a training item than the 1st "
        f"percentile of held-out items ({found.threshold:.3g}) in {space}, {found.expected:.3f} expected; "
        f"exact p {found.p_close:.2g}{others if found.p_close < ALARM else ''}; "
        f"alarm where it and one of the others are below {ALARM:g}"
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
