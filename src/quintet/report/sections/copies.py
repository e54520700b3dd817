"""Copies: each model's samples beside their nearest training examples, and the copy alarm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup

from quintet.core.results import Estimate
from quintet.report import table
from quintet.report.artefacts import arrays, inside
from quintet.report.pictures import grid
from quintet.report.view import Section, View
from quintet.report.words import say

_PAIRS = 10


@dataclass(frozen=True)
class Neighbours:
    """Samples and their nearest training examples.

    Attributes:
        alarm: True, False, or None where it was not measured.
        finding: the numbers behind it.
        ratios: distance to training over distance to held-out, for each pair shown; for data other than images the
            medians of both distances and their ratio.
    """

    name: Markup | str
    family: str
    alarm: bool | None
    finding: Markup | str
    samples: tuple[str, ...] = ()
    train: tuple[str, ...] = ()
    ratios: tuple[str, ...] = ()
    bootstrap: bool = False


def copies(view: View) -> Section:
    """Each recipe, then the bootstrap: what an alarm looks like."""
    found = []
    for recipe in view.compare.recipes:
        if view.state(recipe) or not table.done(recipe):
            continue
        metrics = {key: e for key in ("memorisation", "copies") if (e := table.estimate(recipe, key)) is not None}
        found_by = [s.metrics["copies"] for s in table.done(recipe) if "copies" in s.metrics]
        place = next(
            (p for s in table.done(recipe) if (p := inside(view.folder, s.run)) and (p / "nearest.npz").exists()),
            None,
        )
        found.append(_neighbours(view, recipe.name, recipe.family, metrics, found_by, place))
    b = table.baseline(view.compare, "bootstrap")
    if b is not None:
        place = inside(view.folder, b.run)
        name = say("baseline.bootstrap")
        found_by = [b.metrics["copies"]] if "copies" in b.metrics else []
        found.append(_neighbours(view, name, "baseline", b.metrics, found_by, place, bootstrap=True))
    return Section("copies", {"rows": found})


def _neighbours(
    view: View,
    name: Markup | str,
    family: str,
    metrics: Mapping[str, Estimate],
    found_by: Sequence[Estimate],
    place: Path | None,
    *,
    bootstrap: bool = False,
) -> Neighbours:
    tested = [e.protocol for e in found_by if e.value is not None]  # the metric's protocol starts with its finding
    alarm = any(text.startswith("alarm") for text in tested) if tested else None
    share, index = (metrics.get(key, Estimate(value=None)).value for key in ("copies", "memorisation"))
    finding: Markup | str = ""
    if index is not None:
        index_text = view.forms["memorisation"].text(index)
        finding = say("copies.index", index=index_text)
        if share is not None:
            finding = say("copies.finding", share=f"{100 * share:.1f}%", index=index_text)
    pairs = arrays(place, "nearest.npz", "sample", "train", "distance")
    if pairs is None or not view.fits(pairs["sample"]):
        return Neighbours(name, family, alarm, finding, bootstrap=bootstrap)
    distance = np.asarray(pairs["distance"], np.float64)
    held = np.asarray(pairs["held_out"], np.float64) if "held_out" in pairs else None
    if not view.is_image:
        near = float(np.median(distance))
        far = float("nan") if held is None else float(np.median(held))
        medians = tuple(
            table.significant(v) if np.isfinite(v) else "–" for v in (near, far, near / far if far else np.nan)
        )
        return Neighbours(name, family, alarm, finding, ratios=medians, bootstrap=bootstrap)
    shown = range(min(_PAIRS, len(distance)))
    samples, train = (view.range.pixels(pairs[key][: len(shown)]) for key in ("sample", "train"))
    ratios = tuple(f"{distance[i] / held[i]:.2f}" if held is not None and held[i] > 0 else "–" for i in shown)
    return Neighbours(
        name, family, alarm, finding,
        tuple(grid(samples[i : i + 1], 1, width=88) for i in shown),
        tuple(grid(train[i : i + 1], 1, width=88) for i in shown),
        ratios, bootstrap=bootstrap,
    )  # fmt: skip
