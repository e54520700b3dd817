"""Which modes or classes a sample holds, and how evenly.

A mode counts as covered when it gets at least a fifth of its fair share of the samples. The literature counts a mode
from its first sample on (Srivastava et al. 2017), which a thousand samples strewn between modes also reach; that count
stands in the protocol.

Sources: Srivastava et al. 2017 (VEEGAN, modes and high-quality samples within 3 standard deviations), arXiv:1705.07761;
Lin et al. 2018 (PacGAN), arXiv:1712.04086; Metz et al. 2017, arXiv:1611.02163 (KL of the class histogram); Miller 1955
(bias of a plug-in entropy, (K-1)/(2N)).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quintet.core.results import Estimate
from quintet.core.rng import Rng
from quintet.metrics.neighbours import nearest
from quintet.metrics.sizes import Array, proportion, too_few, unavailable

SHARE = 0.2
"""Of its fair share that a mode needs to count as covered."""

RESAMPLES = 200


class Histogram(NamedTuple):
    """Samples counted by mode: (K,) counts, the total they are shares of, and the real shares (K,)."""

    counts: NDArray[np.int64]
    total: int
    fair: Array


def covered(found: Histogram) -> int:
    """Modes with at least max(1, SHARE x fair share) samples; modes without real share do not count."""
    return int(_enough(found.counts, found.total, found.fair).sum())


def kl(counts: NDArray[np.int64], fair: Array) -> float:
    """KL(histogram || real shares) in nats, 0 log 0 = 0; infinite where samples fall on a class without real share."""
    total = counts.sum()
    if total == 0:
        return math.inf
    q = counts / total
    used = q > 0
    if (fair[used] == 0).any():
        return math.inf
    return float((q[used] * np.log(q[used] / fair[used])).sum())


def kl_floor(classes: int, n: int, real: int | None = None) -> float:
    """What the KL of n perfect samples is on average: (K - 1) / 2 (1 / n + 1 / m) nats, m real items giving the shares.

    Without `real` the shares are known exactly.
    """
    return (classes - 1) / 2 * (1 / n + (1 / real if real else 0.0))


def known_modes(samples: NDArray[np.generic], modes: Array, scale: float) -> tuple[Histogram, int]:
    """Samples within 3 `scale` of their nearest mode, counted by mode; and how many those are.

    Args:
        samples: (N, D).
        modes: (K, D) centres, of equal weight.
        scale: standard deviation of a mode in each direction.
    """
    found = nearest(samples, modes)
    good = found.distance[:, 0] <= 3 * scale
    counts = np.bincount(found.item[good, 0], minlength=len(modes)).astype(np.int64)
    return Histogram(counts, len(samples), np.full(len(modes), 1 / len(modes))), int(good.sum())


def mode_metrics(
    samples: NDArray[np.generic],
    modes: Array,
    scale: float,
    *,
    rng: Rng,
    expected: float | None = None,
    size: int | None = None,
) -> dict[str, Estimate]:
    """`modes` (covered), `modes_kl` (of the samples within 3 sigma) and `in_3_sigma`, where the modes are known.

    Args:
        samples, modes, scale: see known_modes.
        rng: draws resamples for the intervals.
        expected: share of real items within 3 sigma, for the protocol.
        size: see histogram_metrics.
    """
    missing = too_few("modes", len(samples))
    if missing:
        return dict.fromkeys(("modes", "modes_kl", "in_3_sigma"), missing)
    found, good = known_modes(samples, modes, scale)
    ideal = f"; real data {expected:.3f}" if expected is not None else ""
    return {
        **histogram_metrics(found, "known modes, samples within 3 sigma", rng=rng, size=size),
        "in_3_sigma": proportion(
            good / len(samples), len(samples), f"share of samples within 3 sigma of a known mode{ideal}"
        ),
    }


def class_metrics(
    predicted: NDArray[np.int64],
    fair: Array,
    judge: str,
    *,
    rng: Rng,
    size: int | None = None,
    real: int | None = None,
) -> dict[str, Estimate]:
    """`modes` (classes covered) and `modes_kl` of the classes a judge sees in the samples.

    Args:
        predicted: (N,) classes.
        fair: (K,) shares of the classes in real data, as the same judge sees them.
        judge: named in the protocol.
        rng: draws resamples for the intervals.
        size, real: see histogram_metrics.
    """
    missing = too_few("modes", len(predicted))
    if missing:
        return dict.fromkeys(("modes", "modes_kl"), missing)
    counts = np.bincount(predicted, minlength=len(fair)).astype(np.int64)
    histogram = Histogram(counts, len(predicted), fair)
    return histogram_metrics(histogram, f"classes as seen by {judge}", rng=rng, size=size, real=real)


def cluster_metrics(
    found: NDArray[np.int64], fair: Array, space: str, *, rng: Rng, size: int | None = None, real: int | None = None
) -> dict[str, Estimate]:
    """`modes_kl` over k-means clusters of real items, where neither modes nor classes are known; `modes` is null.

    A cluster may be half a mode or two, so that a count of clusters would be no count of modes; the histogram over them
    still tells of every share that is lost.

    Args:
        found: (N,) the cluster of each sample.
        fair: (K,) shares of the clusters in real data.
        space: of the clusters, named in the protocol.
        rng, size, real: see histogram_metrics.
    Source: Richardson & Weiss 2018, arXiv:1805.12462 (shares of k-means bins); theirs are tested bin by bin.
    """
    none = unavailable("not available: neither known modes nor labels", len(found))
    missing = too_few("modes", len(found))
    if missing:
        return {"modes": none, "modes_kl": missing}
    counts = np.bincount(found, minlength=len(fair)).astype(np.int64)
    histogram = Histogram(counts, len(found), fair)
    what = f"k-means clusters of real items in {space}"
    return {"modes": none, "modes_kl": histogram_metrics(histogram, what, rng=rng, size=size, real=real)["modes_kl"]}


def histogram_metrics(
    found: Histogram, what: str, *, rng: Rng, size: int | None = None, real: int | None = None
) -> dict[str, Estimate]:
    """`modes` and `modes_kl` of a histogram with bootstrap intervals (2.5 and 97.5 % of multinomial resamples).

    Args:
        found: the samples' histogram.
        what: named in the protocol.
        rng: draws resamples and subsets.
        size: the KL is the mean over random subsets of so many samples, since perfect ones score (K - 1) / (2 size)
            and the floor is measured at that size; None takes all.
        real: items that the real shares were counted on, None where they are known.
    """
    total, classes = found.total, int((found.fair > 0).sum())
    shares = np.append(found.counts, total - found.counts.sum()) / total
    draws = rng.numpy().multinomial(total, shares, RESAMPLES)[:, :-1]
    counts = _enough(draws, total, found.fair).sum(axis=1)
    number = covered(found)
    low, high = np.percentile(counts, [2.5, 97.5])
    fair = found.fair
    if ((fair == 0) & (found.counts > 0)).any():  # a class the real items happen to lack: half an item's share
        fair = np.where(fair == 0, 0.5 / total, fair)
        fair = fair / fair.sum()
    kept = int(found.counts.sum())
    each = min(size or kept, kept)
    value = kl(found.counts, fair)
    if 0 < each < kept and math.isfinite(value):
        subsets = rng("subsets").numpy().multivariate_hypergeometric(found.counts, each, RESAMPLES, method="marginals")
        value = float(np.mean([kl(subset, fair) for subset in subsets]))
    spread = [kl(draw, fair) for draw in draws if draw.sum()]
    result = {
        "modes": Estimate(
            value=float(number),
            low=float(min(low, number)),
            high=float(max(high, number)),
            n=total,
            protocol=f"{number} of {classes}: {what}; counted from {SHARE:.0%} of the fair share on "
            f"({int(((found.counts > 0) & (found.fair > 0)).sum())} have a sample at all)",
        )
    }
    if not math.isfinite(value):
        result["modes_kl"] = Estimate(value=None, n=total, protocol=f"undefined: no sample in any of the {what}")
        return result
    # a resample's KL is one more floor too high: centre the resamples on the value
    low, high = np.percentile(spread, [2.5, 97.5]) - np.mean(spread) + value
    result["modes_kl"] = Estimate(
        value=value,
        low=float(max(0.0, min(low, value))),
        high=float(max(high, value)),
        n=kept,
        protocol=f"KL(samples || real) in nats over {classes} {what}, in sets of {each}; perfect samples: "
        f"{kl_floor(classes, each, real):.4f}",
    )
    return result


def _enough(counts: NDArray[np.int64], total: int, fair: Array) -> NDArray[np.bool_]:
    enough: NDArray[np.bool_] = (counts >= np.maximum(1, SHARE * fair * total)) & (fair > 0)
    return enough
