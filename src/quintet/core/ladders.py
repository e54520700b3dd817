"""Ladders: what known corruptions of real data score in a metric, so that a value reads "as far as blur 0.4".

What it is: the numbers that `compare.json` holds and where another value lies among them. What it is not: the
corruptions themselves (see metrics/ladders).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from quintet.core.messages import LANGUAGES, say

RELATIVE = ("levels", "shrink")
"""Corruptions whose strength falls from that of clean data (all levels, full size) and is compared by ratios."""


class Rung(BaseModel):
    """A corruption at one strength and what the metric says of it, with a 95 % interval of one set.

    `strength` is the blur's standard deviation in pixels, the noise's as a share of the data's range or spread, a share
    of classes, items or copies, a number of levels, or a factor of size. A corruption's first rung is clean data.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    corruption: str
    strength: float
    value: float | None
    low: float | None = None
    high: float | None = None


class Ladder(BaseModel):
    """A metric's rungs, corruption by corruption from clean to strongest.

    Attributes:
        ordered: corruption -> whether the metric gets worse rung by rung and certainly in the end.
        must: the corruptions that the metric is there to see; it is used only where it orders them all.
        used: whether the metric takes part in rankings, verdicts and advice on this data.
        reason: why not, "" if it does.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    rungs: list[Rung]
    ordered: dict[str, bool]
    must: list[str] = []
    used: bool = True
    reason: str = ""

    def of(self, corruption: str) -> list[Rung]:
        """The rungs of one corruption, clean data first."""
        return [rung for rung in self.rungs if rung.corruption == corruption]

    def moved(self, by: float) -> Ladder:
        """Every rung `by` farther from real data, as the floor is with another number of samples."""
        ends = ("value", "low", "high")
        moved = [
            rung.model_copy(update={end: e + by for end in ends if (e := getattr(rung, end)) is not None})
            for rung in self.rungs
        ]
        return self.model_copy(update={"rungs": moved})


class Place(BaseModel):
    """Where a value lies on a corruption's rungs: at `strength`, or `beyond` the strongest one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    corruption: str
    strength: float
    beyond: bool = False


def place(ladder: Ladder, value: float, corruption: str) -> Place | None:
    """The strength of a corruption that scores `value`, linearly between rungs.

    Returns: None where the corruption is not ordered, or the value is not worse than the clean data's interval.
    """
    rungs = [rung for rung in ladder.of(corruption) if rung.value is not None]
    if len(rungs) < 2 or not ladder.ordered.get(corruption, False):
        return None
    values = [rung.value for rung in rungs if rung.value is not None]
    way = 1.0 if values[-1] > values[0] else -1.0
    edge = rungs[0].high if way > 0 else rungs[0].low
    if way * (value - (values[0] if edge is None else edge)) <= 0:
        return None
    losses = _rising([way * v for v in values])
    if way * value > losses[-1]:
        return Place(corruption=corruption, strength=rungs[-1].strength, beyond=True)
    i = next(k for k in range(1, len(losses)) if way * value <= losses[k])
    part = (way * value - losses[i - 1]) / (losses[i] - losses[i - 1])
    a, b = rungs[i - 1].strength, rungs[i].strength
    strength = math.exp(math.log(a) * (1 - part) + math.log(b) * part) if corruption in RELATIVE else a + part * (b - a)
    return Place(corruption=corruption, strength=strength)


def placed(ladder: Ladder, value: float | None) -> dict[str, str]:
    """Language -> "as far as blur 0.4": on the first corruption (in the ladder's order) that the value lies on.

    Where it lies beyond one, the next is tried; "" where there is no value or the metric is not used.
    """
    if value is None or not ladder.used:
        return dict.fromkeys(LANGUAGES, "")
    corruptions = list(dict.fromkeys(rung.corruption for rung in ladder.rungs))
    found = [spot for c in corruptions if (spot := place(ladder, value, c)) is not None]
    if not found:
        return {lang: say("ladder.real", lang) for lang in LANGUAGES}
    first = next((p for p in found if not p.beyond), found[0])
    key = "ladder.beyond" if first.beyond else "ladder.as_far"
    return {lang: say(key, lang, what=described(first.corruption, first.strength, lang)) for lang in LANGUAGES}


def described(corruption: str, strength: float, lang: str) -> str:
    """A corruption and its strength in words: "blur 0.4", "5 % noise", "8 levels"."""
    share = 100 * strength
    shown = f"{share:.0f}" if share >= 10 else f"{share:.2g}"
    return say(f"ladder.{corruption}", lang, s=f"{strength:.2g}", share=shown, count=f"{strength:.0f}")


def _rising(values: Sequence[float]) -> list[float]:
    """The running maximum: small reversals, which the noise of a set explains, are no reversals of the axis."""
    result = [values[0]]
    for v in values[1:]:
        result.append(max(result[-1], v))
    return result
