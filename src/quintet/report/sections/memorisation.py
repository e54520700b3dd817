"""Memorisation: how far samples stay from the training set and from each other, and repeats in the data themselves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from quintet.report import table
from quintet.report.view import Section, View
from quintet.report.words import say


def memorisation(view: View) -> Section | None:
    """The table's columns and a sentence for each kind of repeats."""
    columns = [view.forms[m] for m in table.MEMORY if m in view.forms and table.absent(view.compare, m) is None]
    return Section("memorisation", {"columns": columns, "repeats": repeats(view)}) if columns else None


def repeats(view: View) -> list[Markup]:
    """What repeats itself in the data that were used, and what was left out before."""
    known, found = view.compare.data.get("repeats", {}), _scan(view)
    texts = []
    if known:
        count = int(view.compare.data.get("splits", {}).get("train", 0))
        share = f"{100 * known['train'] / count:.1f}" if count else "–"
        texts.append(say("memorisation.repeats", n=f"{known['train']:,}", share=share, across=f"{known['across']:,}"))
    if found.get("near"):
        texts.append(say("memorisation.near", n=f"{found['near']:,}"))
    across = found.get("across") or {}
    if any(across.values()):
        left = {key: f"{across.get(key, 0):,}" for key in ("copies", "near")}
        texts.append(say("memorisation.left_out", **left))
    return texts


def _scan(view: View) -> Mapping[str, Any]:
    """What the scan of the data's files found, empty where there is no report of it."""
    try:
        report = json.loads((view.folder / "data_report.json").read_text(encoding="utf-8"))
        return dict(report["found"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}
