"""The data that a run was begun with, though their files have changed since.

Decoded images are kept in the cache, and a copy that a run was begun with stays there while the run's folder exists. So
a run goes on with the very same examples when files were removed, replaced or added; what changed is counted and said.
What it is not: a way to mix old and new data, or a copy of arrays and tables, which are read from their files alone.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quintet.data import cache
from quintet.data.dataset import Dataset, note


def as_begun(dataset: Dataset, record: Path) -> Dataset:
    """The examples that a run was begun with: these, or the cache's copy, with a note on what changed since.

    Args:
        dataset: as its files are now.
        record: config.json of a run or compare.json of a comparison, which may not be there yet.
    Returns: `dataset` itself where it is what the run was begun with, or where there is no such copy.
    """
    fingerprint = _fingerprint(record)
    if not fingerprint or dataset.fingerprint == fingerprint or not dataset.source:
        return dataset
    from quintet.data.assemble import limit, stored
    from quintet.data.options import DEFAULT

    entries = {entry.meta["fingerprint"]: entry for entry in cache.find_all(dataset.source)}
    if fingerprint not in entries:
        return dataset
    before = entries[fingerprint]
    now = entries[dataset.fingerprint].files() if dataset.fingerprint in entries else None
    found = stored(before, limit(DEFAULT))
    return replace(found, notes=(*found.notes, note("data.note_begun", **_changes(before.files(), now))))


def hold(dataset: Dataset, folder: Path) -> None:
    """Keep the cache's copy of these examples for as long as the run's folder exists; without a copy, nothing."""
    if not dataset.source:
        return
    for entry in cache.find_all(dataset.source):
        if entry.meta["fingerprint"] == dataset.fingerprint:
            try:
                entry.hold(folder)
            except OSError:
                return  # a cache that cannot be written keeps what it has; the run itself needs nothing of it


def _fingerprint(record: Path) -> str:
    try:
        return str(json.loads(record.read_text(encoding="utf-8"))["data"]["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""  # no run yet; a damaged record is its reader's to report


def _changes(before: NDArray[np.uint64] | None, now: NDArray[np.uint64] | None) -> dict[str, int | str]:
    """How many files went, changed and came, "?" where one side has no list."""
    if before is None or now is None:
        return {"gone": "?", "changed": "?", "new": "?"}
    both, old, new = np.intersect1d(before[:, 0], now[:, 0], return_indices=True)
    changed = int((before[old, 1] != now[new, 1]).sum())
    return {"gone": len(before) - len(both), "changed": changed, "new": len(now) - len(both)}
