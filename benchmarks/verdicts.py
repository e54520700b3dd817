"""How often the verdict rules are wrong, and how often they see a difference: simulated comparisons, no training.

    .venv/bin/python benchmarks/verdicts.py --out benchmarks/results/DATE-verdicts.md

A recipe's value on a seed is its own level, plus what all recipes share on that seed, plus a normal deviation between
seeds (standard deviation 1), plus an error of sampling (0.25, known to the interval). The rules are those of
`quintet.core.verdicts`, called on made-up comparisons of five recipes.
"""

from __future__ import annotations

import argparse
import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quintet.core.results import Compare, Estimate, RecipeResult, SeedResult
from quintet.core.rng import Rng
from quintet.core.statistics import exact_interval, median_interval
from quintet.core.verdicts import compare, leader, pairs_needed, standings

RECIPES, SAMPLING = 5, 0.25
FLOOR = Estimate(value=0.0, low=-1.96 * SAMPLING, high=1.96 * SAMPLING)


def estimate(value: float, width: float) -> Estimate:
    return Estimate.model_construct(value=value, low=value - width, high=value + width)


def comparison(values: NDArray[np.float64], width: float = 1.96 * SAMPLING) -> Compare:
    """A comparison in one metric; values: (recipes, seeds)."""
    rows = []
    for name, row in zip("abcdefghij", values, strict=False):
        seeds = [
            SeedResult.model_construct(
                seed=i, status="done", metrics={"kid": estimate(v, width)}, sampling=None, ledger=None
            )
            for i, v in enumerate(row.tolist())
        ]
        rows.append(RecipeResult.model_construct(name=name, family="gan", status="done", seeds=seeds))
    return Compare.model_construct(
        name="", quintet="", created="", data={}, budget={}, recipes=rows, floor={"kid": FLOOR}, ladders={}
    )


def drawn(rng: np.random.Generator, seeds: int, effect: float = 0.0, shape: str = "normal") -> NDArray[np.float64]:
    """(recipes, seeds); the first recipe is better by `effect` standard deviations between seeds."""
    size = (RECIPES, seeds)
    between = rng.standard_normal(size) if shape == "normal" else rng.exponential(1.0, size) - 1.0
    values = between + rng.standard_normal((1, seeds)) + SAMPLING * rng.standard_normal(size)
    values[0] -= effect
    return np.asarray(values)


def wrong(seeds: int, repeats: int, shape: str = "normal") -> dict[str, float]:
    """Under equal recipes: shares of comparisons with a false word on the best, and on any of the ten pairs."""
    counts = dict.fromkeys(("best established", "best likely", "pair established", "pair likely", "uncorrected"), 0)
    for i in range(repeats):
        made = comparison(drawn(Rng(i, "null", shape, seeds).numpy(), seeds, shape=shape))
        found = leader(made, "kid")
        words = {v.word for v in standings(made, "kid")}
        rows = made.recipes
        counts["best established"] += found is not None and found[1] == "established"
        counts["best likely"] += found is not None and found[1] == "likely"
        counts["pair established"] += "established" in words
        counts["pair likely"] += "likely" in words
        counts["uncorrected"] += any(
            compare(a, b, "kid", FLOOR).word == "established" for a in rows for b in rows if a is not b
        )
    return {name: count / repeats for name, count in counts.items()}


def power(seeds: int, effect: float, repeats: int) -> dict[str, float]:
    """Shares of comparisons in which the better recipe is found: against one other named before, and as the best."""
    counts = dict.fromkeys(("pair established", "pair at least likely", "best established", "best at least likely"), 0)
    for i in range(repeats):
        made = comparison(drawn(Rng(i, "power", seeds, round(10 * effect)).numpy(), seeds, effect))
        a, b = made.recipes[:2]
        word = compare(a, b, "kid", FLOOR).word
        found = leader(made, "kid")
        best = found[1] if found is not None and found[0] is a else ""
        counts["pair established"] += word == "established"
        counts["pair at least likely"] += word in ("established", "likely")
        counts["best established"] += best == "established"
        counts["best at least likely"] += best in ("established", "likely")
    return {name: count / repeats for name, count in counts.items()}


def coverage(seeds: int, repeats: int) -> float:
    """Share of the summary's 95 % intervals that hold the true median."""
    held = 0
    for i in range(repeats):
        rng = Rng(i, "coverage", seeds).numpy()
        values = rng.standard_normal(seeds) + SAMPLING * rng.standard_normal(seeds)
        low, high = median_interval(values.tolist(), [SAMPLING] * seeds, rng)
        held += low <= 0 <= high
    return held / repeats


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---:" if i else "---" for i in range(len(head))], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def report(repeats: int) -> str:
    """The whole page."""
    counts = (2, 3, 4, 5, 6, 8, 9, 10)
    upper = exact_interval(round(0.05 * repeats), repeats)[1]
    nulls = {(n, shape): wrong(n, repeats, shape) for shape in ("normal", "skewed") for n in counts}
    names = list(next(iter(nulls.values())))
    parts = [
        "# How often the verdict rules err\n",
        f"`benchmarks/verdicts.py --repeats {repeats}`, {datetime.date.today().isoformat()}. Five recipes, one metric; "
        "values are normal, or skewed (exponential), between seeds with standard deviation 1, with an error of "
        f"sampling of {SAMPLING} and an effect of each seed that all recipes share. A share below {upper:.3f} is "
        "compatible with 5 %.\n",
        "## Equal recipes: false words\n",
        "“best”: the first of five is said to beat all others (Holm over four). “pair”: any of the ten pairs (Holm "
        "over ten). “uncorrected”: any of the ten pairs without Holm, for comparison.\n",
    ]
    for shape in ("normal", "skewed"):
        rows = [[str(n), *(f"{nulls[n, shape][name]:.3f}" for name in names)] for n in counts]
        parts += [f"{shape.capitalize()} deviations:\n", table(["seeds", *names], rows)]
    parts += [
        "## One better recipe: how often it is found\n",
        "The first recipe is better by so many standard deviations between seeds; the other four are equal. “pair”: "
        "against one other that was named before. “best”: against all four.\n",
    ]
    rows = []
    for effect in (0.5, 1.0, 2.0, 3.0):
        for n in (3, 6, 8, 10):
            found = power(n, effect, repeats)
            rows.append([f"{effect:g}", str(n), *(f"{share:.2f}" for share in found.values())])
    parts.append(table(["effect", "seeds", *power(3, 0.0, 1)], rows))
    parts += [
        "## The summary's interval\n",
        "Share of 95 % intervals of the median over seeds (bootstrap of seeds and samples, percentiles) that hold the "
        "truth; the range of S seeds alone would hold it with probability 1 - 2^(1 - S).\n",
        table(
            ["seeds", "holds the truth", "the range would"],
            [[str(n), f"{coverage(n, repeats):.3f}", f"{1 - 2.0 ** (1 - n):.3f}"] for n in (2, 3, 4, 5, 6, 8, 10)],
        ),
        "## Seeds that “established” needs at least\n",
        table(["comparisons", "seeds"], [[str(m), str(pairs_needed(m))] for m in (1, 2, 3, 4, 6, 10, 28)]),
    ]
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    text = report(options.repeats)
    print(text)
    if options.out is not None:
        options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
