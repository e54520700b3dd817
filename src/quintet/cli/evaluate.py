"""`quintet evaluate` on the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from rich.console import Console

from quintet import api
from quintet.cli.commands import leaderboard
from quintet.cli.main import dump
from quintet.cli.progress import Progress
from quintet.compare.forecast import Forecast
from quintet.core.budget import Budget
from quintet.core.errors import UsageError
from quintet.core.messages import say
from quintet.metrics.judges.weights import parse_judges


def evaluate(
    arguments: list[str],
    labels: str | None,
    values: str,
    resize: bool,
    samples: int | None,
    judges: list[str],
    options: list[str] | None,
    out: Path | None,
    device: str,
    threads: int | None,
    quiet: bool,
    as_json: bool,
    lang: str,
) -> None:
    """Read all sources, say how, judge them, and print one table."""
    if len(arguments) < 2:
        raise UsageError("evaluate.one_argument")
    *sources, data = arguments
    said = Console(stderr=True, quiet=quiet or as_json)
    planned = api.plan_evaluate(
        list(sources), data, options=options, labels=labels, values=cast(Any, values), resize=resize, samples=samples,
        judges=parse_judges(judges), out=out, device=device, threads=threads,
    )  # fmt: skip
    for source in planned.sources:
        count = planned.samples if source.given is None else len(source.given.x)
        key = "evaluate.reads_run" if source.given is None else "evaluate.reads"
        said.print(say(key, lang, name=source.name, count=f"{count:,}"), highlight=False, markup=False)
        for note in source.notes:
            said.print(f"  {note[lang]}", highlight=False, markup=False)
    with Progress(said, Forecast(len(planned.sources), Budget("steps", 1), 1, None), lang) as progress:
        result = planned.run(progress, api.rewrite_evaluation)
    if as_json:
        dump(result.model_dump(mode="json", by_alias=True))
        return
    show = Console(quiet=quiet)
    table = leaderboard(result, lang)
    count = max(int(row.seeds[0].choice["samples"]) for row in result.recipes)
    table.title = say("evaluate.title", lang, data=result.data["name"], n=f"{count:,}")
    show.print(table)
    show.print(say("cli.report", lang, path=planned.folder / "report.html"), highlight=False)
