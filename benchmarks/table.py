"""Print a comparison's figures as a Markdown table: median over seeds with the lowest and highest seed.

.venv/bin/python benchmarks/table.py runs/digits [more folders]
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import median

from quintet.compare.run import read
from quintet.core.results import Compare, Estimate, SeedResult

COLUMNS = (
    "kid", "c2st", "c2st_judge", "coverage", "recall", "cas", "modes", "in_3_sigma", "memorisation", "bits_per_dim",
    "sharpness",
)  # fmt: skip


def over_seeds(values: list[float]) -> str:
    if not values:
        return "–"
    digits = 3 if max(abs(v) for v in values) < 100 else 0
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{median(values):.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]"


def single(estimate: Estimate | None) -> str:
    if estimate is None or estimate.value is None:
        return "–"
    half = "" if estimate.low is None or estimate.high is None else f" ± {(estimate.high - estimate.low) / 2:.3f}"
    return f"{estimate.value:.3f}{half}"


def values(seeds: list[SeedResult], name: str) -> list[float]:
    return [e.value for s in seeds if (e := s.metrics.get(name)) is not None and e.value is not None]


def show(result: Compare) -> None:
    print(f"\n{result.data['name']}, {result.budget['cell']} a cell, {result.machine['threads']} threads, ", end="")
    print(f"{result.machine['processor']}, torch {result.machine['torch']}, {result.created}\n")
    print("| row | seeds | " + " | ".join(COLUMNS) + " | s per 1,000 | steps | parameters | evaluation s | peak MB |")
    print("|---" * (len(COLUMNS) + 7) + "|")
    print("| real vs real | | " + " | ".join(single(result.floor.get(name)) for name in COLUMNS) + " | | | | | |")
    for row in result.recipes:
        done = [seed for seed in row.seeds if seed.status == "done"]
        cells = [over_seeds(values(done, name)) for name in COLUMNS]
        cells.append(over_seeds([s.sampling.seconds_per_1000 for s in done if s.sampling]))
        for field, scale in (("steps", 1), ("params", 1), ("evaluation_s", 1), ("peak_bytes", 1e-6)):
            cells.append(
                f"{median([getattr(s.ledger, field) * scale for s in done if s.ledger]):,.0f}" if done else "–"
            )
        bad = {k: row.stability[k] for k in ("failed", "diverged", "collapsed") if row.stability.get(k)}
        print(f"| {row.name} | {len(row.seeds)}{' ' + str(bad) if bad else ''} | " + " | ".join(cells) + " |")
    for base in result.baselines:
        print(f"| {base.name} | | " + " | ".join(single(base.metrics.get(name)) for name in COLUMNS) + " | | | | | |")


if __name__ == "__main__":
    for folder in sys.argv[1:]:
        show(read(Path(folder)))
