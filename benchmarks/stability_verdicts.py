"""How often the verdict on stability is wrong, and what it sees: simulated comparisons of five recipes, no training.

    .venv/bin/python benchmarks/stability_verdicts.py --out benchmarks/results/DATE-stability-verdicts.md

A training has trouble (it diverges) with a probability of its recipe, else spikes at a rate of its recipe, which varies
between seeds by a factor of exp(0.5 z), among 5,000 watched values. The rules are those of
`quintet.compare.steadiness`.
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from quintet.compare.stability import score
from quintet.compare.steadiness import behind
from quintet.core.results import RecipeResult, SeedResult, Stability
from quintet.core.rng import Rng
from quintet.core.statistics import exact_interval

WATCHED, BETWEEN = 5000, 0.5
Kind = tuple[float, float]  # probability of trouble, spikes in 1,000 values


def comparison(g: np.random.Generator, kinds: Sequence[Kind], seeds: int) -> list[RecipeResult]:
    """A recipe of each kind."""
    rows = []
    for name, (trouble, rate) in zip("abcde", kinds, strict=True):
        cells = []
        for seed in range(seeds):
            spikes = int(g.poisson(WATCHED / 1000 * rate * np.exp(BETWEEN * g.standard_normal())))
            lost = bool(g.random() < trouble)
            cells.append(
                SeedResult.model_construct(
                    seed=seed, status="diverged" if lost else "done", metrics={}, curve=[],
                    stability=Stability.model_construct(
                        spikes=spikes, watched=WATCHED, events=[], skipped_steps=0, collapsed=False, diverged=lost
                    ),
                )
            )  # fmt: skip
        steadiness = score(cells, [], {})
        rows.append(
            RecipeResult.model_construct(name=name, family="gan", status="done", seeds=cells, steadiness=steadiness)
        )
    return rows


def first(rows: Sequence[RecipeResult]) -> str:
    """The recipe that the report puts first."""
    return max(rows, key=lambda row: (row.steadiness and row.steadiness.value) or 0.0).name


def counted(kinds: Sequence[Kind], seeds: int, repeats: int, label: str) -> tuple[float, float]:
    """Shares of comparisons that call some recipe less steady: established, and at least likely."""
    sure = guessed = 0
    for i in range(repeats):
        rows = comparison(Rng(i, "stability", label, seeds).numpy(), kinds, seeds)
        words = set(behind(first(rows), rows).values())
        sure += "established" in words
        guessed += bool(words)
    return sure / repeats, guessed / repeats


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    n, seeds = args.repeats, (2, 3, 4, 5, 6, 8, 10)
    cases = {
        "equal, no trouble, 2 spikes": [(0.0, 2.0)] * 5,
        "equal, no trouble, 10 spikes": [(0.0, 10.0)] * 5,
        "equal, trouble in 10 %": [(0.1, 2.0)] * 5,
        "equal, trouble in 50 %": [(0.5, 2.0)] * 5,
        "one has 10 spikes, others 2": [*[(0.0, 2.0)] * 4, (0.0, 10.0)],
        "one has trouble in 50 %": [*[(0.0, 2.0)] * 4, (0.5, 2.0)],
        "one has trouble in 90 %": [*[(0.0, 2.0)] * 4, (0.9, 2.0)],
        "one never finishes": [*[(0.0, 2.0)] * 4, (1.0, 2.0)],
    }
    lines = [
        "# Verdicts on stability, simulated",
        "",
        f"`benchmarks/stability_verdicts.py --repeats {n}`, {datetime.date.today()}. Per cent of comparisons of five",
        "recipes in which some recipe is called less steady than the first: established / at least likely. Of equal",
        f"recipes every such word is false; 0 of {n} leaves up to {100 * exact_interval(0, n)[1]:.1f} %.",
        "",
        "| seeds | " + " | ".join(map(str, seeds)) + " |",
        "|---" * (len(seeds) + 1) + "|",
    ]
    for label, kinds in cases.items():
        found = [counted(kinds, count, n, label) for count in seeds]
        lines.append(f"| {label} | " + " | ".join(f"{100 * a:.1f} / {100 * b:.1f}" for a, b in found) + " |")
        print(lines[-1], flush=True)
    if args.out is not None:
        args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
