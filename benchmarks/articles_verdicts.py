"""How often the articles' sentences are decided by chance, and how often a difference is seen: simulated, no training.

    .venv/bin/python benchmarks/articles_verdicts.py --out benchmarks/results/DATE-articles-verdicts.md

Five families, one recipe each, as in `benchmarks/verdicts.py`; the checks are those of `quintet.compare.findings`, on
one data set and on three, whose verdicts are joined as `quintet articles` joins them.
"""

from __future__ import annotations

import argparse
import datetime
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from verdicts import comparison, drawn

from quintet.compare.claims import FAMILIES
from quintet.compare.findings import Better, Check, First
from quintet.core.articles import overall
from quintet.core.results import Compare
from quintet.core.rng import Rng
from quintet.core.statistics import exact_interval

OURS, *RIVALS = FAMILIES
CHECKS: dict[str, Check] = {
    "one family against another": Better(OURS, RIVALS[0], "kid"),
    "one family against all others": First(OURS, tuple(RIVALS), "kid"),
}


def made(seeds: int, effects: Sequence[float], shape: str, *key: object) -> Compare:
    """A comparison; effects: by how many standard deviations between seeds each family is better."""
    values = drawn(Rng(0, "articles", shape, seeds, *map(str, key)).numpy(), seeds, shape=shape)
    result = comparison(values - np.asarray(effects)[:, None])
    rows = [
        row.model_copy(update={"family": who.families[0]}) for row, who in zip(result.recipes, FAMILIES, strict=True)
    ]
    return result.model_copy(update={"recipes": rows})


def counted(check: Check, seeds: int, sets: int, effects: Sequence[float], shape: str, repeats: int) -> Counter[str]:
    """How often the sentence is confirmed and contradicted."""
    words: Counter[str] = Counter()
    for i in range(repeats):
        found = [check(made(seeds, effects, shape, str(list(effects)), i, k)) for k in range(sets)]
        words[overall([each.word for each in found if each is not None])] += 1
    return words


CASES: dict[str, tuple[Sequence[float], str]] = {
    "all equal": ((0, 0, 0, 0, 0), "normal"),
    "all equal, skewed": ((0, 0, 0, 0, 0), "skewed"),
    "two equal, three far worse": ((0, 0, -5, -5, -5), "normal"),
    "one rival better by 2": ((0, 2, 0, 0, 0), "normal"),
    "one rival better by 2, others far worse": ((0, 2, -5, -5, -5), "normal"),
    "the family better by 2": ((2, 0, 0, 0, 0), "normal"),
}
COLUMNS = [(sets, seeds) for sets in (1, 3) for seeds in (2, 3, 6, 8)]


def row(label: str, case: str, repeats: int) -> str:
    """A line of the table."""
    cells = []
    for sets, seeds in COLUMNS:
        words = counted(CHECKS[label], seeds, sets, *CASES[case], repeats)
        cells.append(f"{100 * words['confirmed'] / repeats:.1f} / {100 * words['contradicted'] / repeats:.1f}")
    return f"| {case} | " + " | ".join(cells) + " |"


def page(rows: Mapping[tuple[str, str], str], repeats: int) -> str:
    """The whole page; rows: by check and case."""
    limit = 100 * exact_interval(round(0.05 * repeats), repeats)[1]
    lines = [
        "# How often chance decides a sentence",
        "",
        f"`benchmarks/articles_verdicts.py --repeats {repeats}`, {datetime.date.today()}. Per cent of cases in which",
        'the sentence "this family is better" is confirmed / contradicted, on so many data sets with so many seeds.',
        f"Where the two are equal every decision is false; a share below {limit:.1f} % is compatible with 5 %. Effects",
        "are in standard deviations between seeds.",
    ]
    heads = [f"{sets} data set{'s' if sets > 1 else ''}, {seeds} seeds" for sets, seeds in COLUMNS]
    for label in CHECKS:
        lines += ["", f"## {label.capitalize()}", "", "| | " + " | ".join(heads) + " |"]
        lines += ["|---" * (len(COLUMNS) + 1) + "|", *(rows[label, case] for case in CASES)]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = {(label, case): row(label, case, args.repeats) for label in CHECKS for case in CASES}
    text = page(rows, args.repeats)
    print(text)
    if args.out is not None:
        args.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
