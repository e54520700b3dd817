"""Table: recipes against metrics as rows of formatted cells, and which value may be called the best.

The page draws what stands here; nothing here knows HTML.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from quintet.core import verdicts
from quintet.core.results import BETTER, SHARED_BITS, Baseline, Compare, Estimate, RecipeResult, SeedResult

QUALITY = ("kid", "fd", "c2st", "cas", "precision", "density", "sharpness")
DIVERSITY = ("recall", "coverage", "modes", "memorisation", "bits_per_dim")
MEMORY = ("copies", "c_t", "authenticity", "memorisation_judge", "vendi", "modes_kl")
LIKELIHOOD = (
    SHARED_BITS, "bits_per_dim_first", "bits_per_dim_elbo", "bits_per_dim_iw", "bits_per_dim_ais", "bits_per_dim_vlb",
    "bits_per_dim_ode", "coded_bits_per_dim", "file_bits_per_dim",
)  # fmt: skip
"""Shown on a scale of their own (sections/likelihood)."""
RECONSTRUCTION = ("kid_reconstruction", "fd_reconstruction", "sharpness_reconstruction")
COSTS = ("sampling", "latency", "sequential", "training", "steps", "flops", "params", "memory")
Better = Literal["low", "high"] | float | None

_COST_BETTER: dict[str, Better] = {
    "sampling": "low", "latency": "low", "sequential": "low", "memory": "low",
    "training": None, "steps": None, "flops": None, "params": None,
}  # fmt: skip
_COST_NAMES = {
    "sampling": "seconds_per_1000", "latency": "latency_s", "sequential": "sequential_steps", "memory": "peak_bytes",
}  # fmt: skip
_PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True)
class Cell:
    """One value of the table.

    Attributes:
        value, interval: formatted; "" where there is none.
        sort: the number to sort by.
        missing: why there is no value; None where there is one.
        best: the verdict that lets it be marked, else "".
        protocol, n: how the number was made.
        seeds: (seed, formatted value) of each seed.
    """

    value: str = ""
    interval: str = ""
    sort: float | None = None
    missing: str | None = None
    best: str = ""
    protocol: str = ""
    n: int | None = None
    seeds: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True)
class Column:
    """A metric of the table: which way is better, and how its numbers are written."""

    key: str
    better: Better
    scale: float = 1.0
    decimals: int | None = None

    def text(self, value: float | None) -> str:
        """A number in this column's form; a true minus sign."""
        if value is None or not math.isfinite(value):
            return "–"
        if self.key in ("flops", "params"):
            return with_prefix(value)
        if self.key == "memory":
            return f"{value / 1e6:,.0f} MB" if value < 1e9 else f"{value / 1e9:.2f} GB"
        if self.key in ("steps", "sequential"):
            return f"{round(value):,}"
        if self.decimals is None:
            return significant(value, 2 if self.key in ("sampling", "latency") else 3)
        text = f"{value / self.scale:,.{self.decimals}f}"
        if float(text.replace(",", "")) == 0:
            text = text.lstrip("-")
        return text.replace("-", "−")

    def interval(self, low: float | None, high: float | None) -> str:
        """ "[low, high]", or "" where they are unknown or the same when written."""
        if low is None or high is None:
            return ""
        a, b = self.text(low), self.text(high)
        return "" if a == b else f"[{a}, {b}]"


def significant(value: float, digits: int = 3) -> str:
    """Three significant digits without an exponent where that is readable: 0.0061, 12.3, 1,240."""
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(value)))
    if not -4 <= size <= 6:
        return f"{value:.{digits - 1}e}".replace("-", "−")
    text = f"{value:,.{max(0, digits - 1 - size)}f}"
    return text.replace("-", "−")


def with_prefix(value: float) -> str:
    """1.2e9 as "1.2 G"."""
    for factor, prefix in _PREFIXES:
        if abs(value) >= factor:
            return f"{value / factor:.3g} {prefix}"
    return f"{value:.3g}"


def done(recipe: RecipeResult) -> list[SeedResult]:
    """The seeds that ended well."""
    return [seed for seed in recipe.seeds if seed.status == "done"]


def estimate(recipe: RecipeResult, metric: str) -> Estimate | None:
    """Median and range over the seeds; the only seed's own interval where there is one."""
    seeds = [seed.metrics[metric] for seed in done(recipe) if metric in seed.metrics]
    if len(seeds) == 1:
        return seeds[0]
    return recipe.summary.get(metric) or (seeds[0] if seeds else None)


def cost(seed: SeedResult, key: str) -> float | None:
    """A cost of one seed in its base unit: seconds (one sample: milliseconds), steps, operations, weights, bytes."""
    if key in ("sampling", "latency", "sequential"):
        if seed.sampling is None:
            return None
        if key == "latency":
            return None if seed.sampling.latency_s is None else 1000 * seed.sampling.latency_s
        return seed.sampling.seconds_per_1000 if key == "sampling" else float(seed.sampling.sequential_steps)
    if seed.ledger is None:
        return None
    ledger = seed.ledger
    return float(
        {
            "training": ledger.wall_s,
            "steps": ledger.steps,
            "flops": ledger.flops,
            "params": ledger.params,
            "memory": ledger.peak_bytes,
        }[key]
    )


def over_seeds(recipe: RecipeResult, key: str) -> Estimate | None:
    """Median and range of a cost over the finished seeds, None where none has it."""
    values = [v for seed in done(recipe) if (v := cost(seed, key)) is not None]
    if not values:
        return None
    return Estimate(value=float(np.median(values)), low=min(values), high=max(values), n=len(values))


def best(compare: Compare, metric: str, better: Better) -> tuple[str, str] | None:
    """(recipe, verdict) of the one that may be called the best in a column, None where none surely is in all spaces."""
    if better is None:
        return None
    found = verdicts.leader(compare, _COST_NAMES.get(metric, metric), better=better)
    return None if found is None or found[1] not in ("likely", "established") else (found[0].name, found[1])


def column(key: str, estimates: Iterable[Estimate | None]) -> Column:
    """The form of a column: a power of ten where values are tiny, decimals from the width of the intervals."""
    known = [e for e in estimates if e is not None and e.value is not None]
    better = _COST_BETTER[key] if key in _COST_BETTER else BETTER.get(key)
    if key in _COST_BETTER or not known:
        return Column(key, better)
    values = np.abs([0.0 if e.value is None else e.value for e in known])
    scale = 1e-3 if 0 < float(np.median(values)) < 0.02 and float(values.max()) < 0.3 else 1.0
    widths = [
        (e.high - e.low) / 2 / scale for e in known if e.low is not None and e.high is not None and e.high > e.low
    ]
    if key == "modes" or all(float(v).is_integer() for v in values):
        decimals = 0 if all(float(v).is_integer() for v in values) else 1
    elif widths:
        decimals = min(3, max(0, 1 - math.floor(math.log10(float(np.median(widths))))))
    else:
        decimals = 3
    return Column(key, better, scale, decimals)


def metric_cell(form: Column, e: Estimate | None, recipe: RecipeResult | None = None, best: str = "") -> Cell:
    """The cell of one estimate; with a recipe, each seed's value too."""
    if e is None:
        return Cell(missing="")
    seeds: tuple[tuple[int, str], ...] = ()
    if recipe is not None:
        found = [(s.seed, s.metrics[form.key]) for s in done(recipe) if form.key in s.metrics]
        seeds = tuple((s, f"{form.text(v.value)} {form.interval(v.low, v.high)}".strip()) for s, v in found)
    if e.value is None:
        return Cell(missing=e.protocol, n=e.n)
    return Cell(form.text(e.value), form.interval(e.low, e.high), e.value, None, best, e.protocol, e.n, seeds)


def cost_cell(form: Column, recipe: RecipeResult, best: str = "") -> Cell:
    """The cell of a cost, median and range over the seeds."""
    e = over_seeds(recipe, form.key)
    if e is None or e.value is None:
        return Cell(missing="")
    seeds = tuple((s.seed, form.text(v)) for s in done(recipe) if (v := cost(s, form.key)) is not None)
    interval = form.interval(e.low, e.high) if len(seeds) > 1 else ""
    return Cell(form.text(e.value), interval, e.value, best=best, seeds=seeds)


def metrics_of(compare: Compare) -> list[str]:
    """Every metric any row has, the schema's first, others by name."""
    rows: list[Mapping[str, Estimate]] = [compare.floor, *(b.metrics for b in compare.baselines)]
    rows += [s.metrics for r in compare.recipes for s in r.seeds] + [r.summary for r in compare.recipes]
    found = {name for row in rows for name in row}
    first = (*QUALITY, *DIVERSITY)
    return [m for m in first if m in found] + sorted(found - set(first))


def forms(compare: Compare) -> dict[str, Column]:
    """The form of every column, by its key."""
    found = {}
    for metric in metrics_of(compare):
        rows = [compare.floor.get(metric), *(estimate(r, metric) for r in compare.recipes)]
        rows += [b.metrics.get(metric) for b in compare.baselines if b.name != "histograms"]
        found[metric] = column(metric, rows)
    return found | {key: column(key, ()) for key in COSTS}


def absent(compare: Compare, metric: str) -> str | None:
    """The reason where no recipe has a value of this metric (the column is left out then), else None."""
    found = [e for r in compare.recipes if (e := estimate(r, metric)) is not None]
    if not found or any(e.value is not None for e in found):
        return None
    return found[0].protocol


def baseline(compare: Compare, name: str) -> Baseline | None:
    """The baseline of that name."""
    return next((b for b in compare.baselines if b.name == name), None)
