"""`quintet articles` on the terminal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from quintet import api
from quintet.cli.commands import clock
from quintet.cli.main import dump
from quintet.cli.progress import Progress
from quintet.core.articles import Articles, Held, Sentence
from quintet.core.messages import say
from quintet.report.articles import counts, markdown

STYLES = {"confirmed": "green", "contradicted": "red"}
WORDS = {"not decided": "undecided", "not tested here": "untested"}


def articles(
    out: Path,
    data: list[str],
    seeds: int,
    budget: str | None,
    device: str,
    threads: int | None,
    as_markdown: bool,
    quiet: bool,
    as_json: bool,
    dry_run: bool,
    lang: str,
) -> None:
    """Plan, run, and print every sentence with its verdict."""
    planned = api.plan_articles(out, data, seeds=seeds, budget=budget, device=device, threads=threads)
    said = Console(stderr=True, quiet=quiet or as_json)
    forecasts = [one.forecast() for one in planned]
    for one, found in zip(planned, forecasts, strict=True):
        total = say("cli.unknown_time", lang) if found.seconds is None else clock(found.seconds)
        names = ", ".join(recipe.name for recipe in one.recipes)
        said.print(
            say("articles.plan", lang, data=one.dataset.name, cells=found.cells, recipes=names, budget=found.budget,
                total=total)
        )  # fmt: skip
    if dry_run:
        if as_json:
            dump([{"data": one.dataset.name, "recipes": [r.name for r in one.recipes], "cells": found.cells,
                   "budget": str(found.budget), "seconds": found.seconds}
                  for one, found in zip(planned, forecasts, strict=True)])  # fmt: skip
        return
    cells = sum(found.cells for found in forecasts)
    with Progress(said, replace(forecasts[0], cells=cells), lang) as progress:
        settled = api.articles(
            out, data, seeds=seeds, budget=budget, device=device, threads=threads, listen=progress
        )  # fmt: skip
    if as_json:
        dump(settled.model_dump(mode="json", by_alias=True))
    elif as_markdown:
        print(markdown(settled, lang), end="")
    else:
        show = Console(quiet=quiet)
        show.print(table(settled, lang))
        show.print(say("articles.count", lang, path=out / "articles.html", **counts(settled)), highlight=False)


def table(settled: Articles, lang: str) -> Table:
    """Sentence, verdict, numbers."""
    found = Table(show_lines=True)
    for head in ("sentence", "verdict", "numbers"):
        found.add_column(say(f"articles.{head}", lang), overflow="fold", ratio=None if head == "verdict" else 1)
    for sentence in settled.sentences:
        text = sentence.en if lang == "en" else sentence.zh
        numbers = Text("\n").join(_numbers(held, lang) for held in sentence.held)
        found.add_row(Text(text), _verdict(sentence, lang), numbers)
    return found


def _verdict(sentence: Sentence, lang: str) -> Text:
    if sentence.split():
        return Text(say("articles.split", lang), style="yellow")
    word = WORDS.get(sentence.verdict, sentence.verdict)
    return Text(say(f"articles.{word}", lang), style=STYLES.get(sentence.verdict, "dim"))


def _numbers(held: Held, lang: str) -> Text:
    """One data set's verdict and numbers."""
    evidence = Text(held.evidence_en if lang == "en" else held.evidence_zh)
    if not held.data:
        return evidence
    name = say("articles.together", lang) if held.data == "*" else held.data
    word = say(f"articles.{WORDS.get(held.verdict, held.verdict)}", lang)
    return Text.assemble((f"{name} ({word}): ", STYLES.get(held.verdict, "dim")), evidence)
