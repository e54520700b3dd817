"""The data report on the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from quintet.core.messages import say

SIZES, CLASSES, FILES = 10, 20, 30
BAR = 24


def check_tables(report: Mapping[str, Any], lang: str) -> Iterator[Table | Text]:
    """What `quintet check` prints: facts, notes, sizes, labels, files. Names are shown as they are, never as markup."""
    found = report["found"]
    yield _facts(report, found, lang)
    for text in report.get("notes", []):
        yield Text(f"• {text[lang]}")
    if len(found.get("sizes", {})) > 1:
        yield _sizes(found, lang)
    for condition, classes in report.get("labels", {}).items():
        yield _labels(condition, classes, lang)
    if found.get("listed"):
        yield _files(found["listed"], lang)


def _facts(report: Mapping[str, Any], found: Mapping[str, Any], lang: str) -> Table:
    table = Table(title=Text(str(report["name"])), title_justify="left", show_header=False)
    rows: dict[str, str] = {}
    if "source" in found:
        rows["source"] = say(f"check.source_{found['source']}", lang)
    if "files" in found:
        counts = {key: found[key] for key in ("files", "images", "bad", "skipped", "odd")}
        rows["files"] = say("check.file_counts", lang, **counts)
        rows["modes"] = ", ".join(f"{name} {count}" for name, count in found["modes"].items())
        rows["formats"] = ", ".join(f"{name} {count}" for name, count in found["formats"].items())
    if report["usable"]:
        rows["kind"] = say(f"kind.{report['kind']}", lang)
        rows["shape"] = "×".join(map(str, report["shape"]))
        levels = report["levels"]
        rows["levels"] = say("cli.continuous", lang) if levels is None else f"{levels:,}"
        rows["splits"] = say("check.split_counts", lang, **report["splits"])
        rows["labels"] = ", ".join(f"{k} ({len(v)})" for k, v in report["labels"].items()) or say("doctor.none", lang)
        if "copies" in found:
            left = found["across"]["copies"] + found["across"]["near"]
            near = "–" if found["near"] is None else found["near"]
            rows["duplicates"] = say("check.duplicate_counts", lang, copies=found["copies"], near=near, left=left)
        memory = report["memory"]
        rows["memory"] = f"{memory['bytes'] / 1e6:,.1f} MB" + (f" ({say('check.mapped', lang)})" * memory["mapped"])
    for key, value in rows.items():
        table.add_row(say(f"check.{key}", lang), Text(value))
    return table


def _sizes(found: Mapping[str, Any], lang: str) -> Table:
    title = say("check.sizes", lang, count=found["sizes_in_all"])
    table = Table(title=title, title_justify="left", show_header=False)
    most = max(found["sizes"].values())
    for size, count in list(found["sizes"].items())[:SIZES]:
        table.add_row(size, f"{count:,}", "█" * max(1, round(BAR * count / most)))
    return table


def _labels(condition: str, classes: Mapping[str, Mapping[str, int]], lang: str) -> Table:
    parts = list(next(iter(classes.values())))
    table = Table(title=say("check.classes", lang, name=condition, count=len(classes)), title_justify="left")
    table.add_column(say("check.class", lang), overflow="fold")
    for part in parts:
        table.add_column(say(f"check.part_{part}", lang), justify="right")
    for name, counts in sorted(classes.items(), key=lambda item: -sum(item[1].values()))[:CLASSES]:
        table.add_row(Text(name), *(f"{counts[part]:,}" for part in parts))
    if len(classes) > CLASSES:
        table.add_row("...", *("" for _ in parts))
    return table


def _files(listed: list[Mapping[str, Any]], lang: str) -> Table:
    table = Table(title=say("check.listed", lang, count=len(listed)), title_justify="left", show_header=False)
    order = ("bad", "odd", "skipped")
    for item in sorted(listed, key=lambda item: order.index(item["verdict"]))[:FILES]:
        table.add_row(Text(item["file"], overflow="fold"), say(f"check.{item['verdict']}", lang), Text(item[lang]))
    if len(listed) > FILES:
        table.add_row("...", "", say("check.more", lang, count=len(listed) - FILES))
    return table
