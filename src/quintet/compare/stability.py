"""Stability, measured: what a log tells of spikes, short trainings at other learning rates, and a score with its parts.

Every part lies in [0, 1], 1 the steadiest, and says what it was made from and on how much it rests. The score is the
geometric mean of the parts that were measured, so that no part can be bought with another; none counts as less than
0.05 in it, so that a single zero leaves the others to be seen. Where a part was not measured the score says so.

| part | measured | value |
| finished | share of trainings that neither failed, diverged nor ended as hopeless | the share |
| smooth | jumps of losses and gradient norms per 1,000 values, at every step | 1 / (1 + jumps / 10) |
| unbroken | updates left out and 10 times the returns to a checkpoint, per training | 1 / (1 + that / 10) |
| covered | share of trainings without an alarm of collapse | the share |
| seeds | standard deviation of KID over seeds, in the floor's standard deviations | 1 / (1 + that / 10) |
| rate | the worse distance at a third or three times the rate, over that at the rate itself | its inverse, at most 1 |

The distance of the last part is KID to validation data in PCA space, plus the floor's standard deviation, so that two
models at the floor are alike.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import stdev
from typing import Any

import numpy as np

from quintet.compare.forecast import TRIALS
from quintet.core.results import Estimate, RateTrial, SeedResult, StabilityPart, StabilityScore
from quintet.core.statistics import exact_interval
from quintet.core.verdicts import floor_sd

LEAST = 0.05  # what a part counts at least in the score


def logged(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a log.jsonl, which a kill may have cut short."""
    found: list[dict[str, Any]] = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            found.append(json.loads(text))
        except ValueError:
            continue
    return found


def count_spikes(lines: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """Jumps of losses and gradient norms over all stages of a log, and how many values were judged.

    Each stage tells its running total now and then, so that its last line counts.
    """
    last = {line.get("stage"): line for line in lines if line.get("kind") == "spikes"}
    return sum(int(line["found"]) for line in last.values()), sum(int(line["judged"]) for line in last.values())


def failure_rate(seeds: Sequence[SeedResult]) -> Estimate | None:
    """Share of the ended trainings that failed or diverged, with its exact interval; None before any ended."""
    ended = [seed for seed in seeds if seed.status != "skipped"]
    if not ended:
        return None
    failed = sum(seed.status != "done" for seed in ended)
    low, high = exact_interval(failed, len(ended))
    protocol = f"{failed} of {len(ended)} trainings failed or diverged; Clopper and Pearson's exact 95 % interval"
    return Estimate(value=failed / len(ended), low=low, high=high, n=len(ended), protocol=protocol)


def score(
    seeds: Sequence[SeedResult], trials: Sequence[RateTrial], floor: Mapping[str, Estimate], *, rates: str = ""
) -> StabilityScore | None:
    """A recipe's parts and their mean; None before any training ended.

    Args:
        seeds: its cells.
        trials: its short trainings at other learning rates.
        floor: of the comparison.
        rates: the reason's key where there are no such trainings: "off", "short", or "" where they are to come.
    """
    ended = [seed for seed in seeds if seed.status != "skipped"]
    if not ended:
        return None
    parts = {
        "finished": _share([seed.status == "done" and not hopeless(seed) for seed in ended]),
        "smooth": _smooth(ended),
        "unbroken": _unbroken(ended),
        "covered": _share([not (seed.stability.collapsed or severe(seed)) for seed in ended if seed.status == "done"]),
        "seeds": _between_seeds(ended, floor.get("kid")),
        "rate": _rate(trials, floor_sd(floor.get("kid_pca")), rates),
    }
    values = [max(LEAST, part.value) for part in parts.values() if part.value is not None]
    return StabilityScore(value=math.exp(float(np.mean(np.log(values)))) if values else None, parts=parts)


def _share(good: Sequence[bool]) -> StabilityPart:
    if not good:
        return StabilityPart(value=None, reason="none_done")
    low, high = exact_interval(sum(good), len(good))
    share = sum(good) / len(good)
    return StabilityPart(value=share, measured=share, low=low, high=high, n=len(good))


def _smooth(ended: Sequence[SeedResult]) -> StabilityPart:
    found, watched = sum(s.stability.spikes for s in ended), sum(s.stability.watched for s in ended)
    if not watched:
        return StabilityPart(value=None, reason="short_log")
    low, high = (1000 * end for end in exact_interval(found, watched))
    rate = 1000 * found / watched
    return StabilityPart(value=smoothness(found, watched), measured=rate, low=low, high=high, n=watched)


def _unbroken(ended: Sequence[SeedResult]) -> StabilityPart:
    back = sum(event.get("what") == "rollback" for seed in ended for event in seed.stability.events)
    trouble = (sum(seed.stability.skipped_steps for seed in ended) + 10 * back) / len(ended)
    return StabilityPart(value=steadiness(trouble), measured=trouble, n=len(ended))


def smoothness(spikes: int, watched: int) -> float:
    """In (0, 1], from spikes among so many values."""
    return 1 / (1 + 1000 * spikes / watched / 10)


def steadiness(trouble: float) -> float:
    """In (0, 1], from updates left out and ten times the returns to a checkpoint."""
    return 1 / (1 + trouble / 10)


def _between_seeds(ended: Sequence[SeedResult], floor: Estimate | None) -> StabilityPart:
    found = [s.metrics["kid"].value for s in ended if s.status == "done" and "kid" in s.metrics]
    values = [value for value in found if value is not None]
    if len(values) < 2:
        return StabilityPart(value=None, n=len(values), reason="one_seed")
    spread = floor_sd(floor)
    if spread <= 0:
        return StabilityPart(value=None, n=len(values), reason="no_floor")
    ratio = stdev(values) / spread
    return StabilityPart(value=1 / (1 + ratio / 10), measured=ratio, n=len(values))


def _rate(trials: Sequence[RateTrial], spread: float, reason: str) -> StabilityPart:
    if len(trials) < TRIALS:
        return StabilityPart(value=None, n=len(trials), reason=reason or "not_yet")
    distances = {t.factor: _excess(t, spread) for t in trials}
    base = distances.pop(1.0)
    if base is None or base <= 0:
        return StabilityPart(value=None, n=len(trials), reason="no_base")
    if any(d is None for d in distances.values()):  # a training that did not end well at another rate
        return StabilityPart(value=0.0, n=len(trials), reason="lost")
    worst = max(d / base for d in distances.values() if d is not None)
    return StabilityPart(value=1 / max(1.0, worst), measured=worst, n=len(trials))


def _excess(trial: RateTrial, spread: float) -> float | None:
    """A trial's distance from validation data, the floor's spread added; None where there is none."""
    value = trial.kid_pca.value
    return None if trial.status != "done" or value is None else max(value, 0.0) + spread


def hopeless(seed: SeedResult) -> bool:
    """Whether a training was given up since its samples were worthless."""
    return any(event.get("what") == "hopeless" for event in seed.stability.events)


def severe(seed: SeedResult) -> bool:
    """Whether a detector found something severe in the second half; early samples are poor in every family."""
    half = seed.curve[-1]["step"] / 2 if seed.curve else 0
    return any(event.get("severe") and event.get("step", 0) >= half for event in seed.stability.events)
