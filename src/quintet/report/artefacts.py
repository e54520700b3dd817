"""Artefacts: what a cell's folder holds for the report, read with tolerance.

Every file is optional and may have been cut short by a kill; one that cannot be read counts as absent. Nothing is
unpickled.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

STABILITY = (
    "skipped", "diverged", "collapsed", "rollback", "memory", "not_watched", "hopeless", "best_kept", "mode_collapse",
    "duplicates", "discriminator_overfit", "discriminator_won", "posterior_collapse", "not_invertible",
    "log_det_not_finite", "above_uniform",
)  # fmt: skip
"""Events that tell of stability; others (the end of the plan, a resume) are no trouble."""

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Event:
    """Something that went wrong in training: when (seconds), what, and its text where it has one of its own."""

    seconds: float
    what: str
    text: str = ""


@dataclass(frozen=True)
class Log:
    """A training log, thinned: player -> (seconds, smoothed loss), both (K,), and the events."""

    losses: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]] = field(default_factory=dict)
    events: tuple[Event, ...] = ()


def inside(folder: Path, run: str) -> Path | None:
    """The cell folder `run` names, or None where it is empty or would lead out of the comparison's folder."""
    if not run:
        return None
    place = (folder / run).resolve()
    return place if place.is_relative_to(folder.resolve()) and place.is_dir() else None


def arrays(place: Path | None, name: str, *needed: str) -> Arrays | None:
    """The arrays of an .npz file, or None where the file, one of the `needed` arrays or its end is missing."""
    if place is None:
        return None
    try:
        with np.load(place / name, allow_pickle=False) as file:
            found = {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        return None
    if any(key not in found or not found[key].size for key in needed):
        return None
    return found


def training_log(place: Path | None, points: int = 240) -> Log:
    """Read log.jsonl, averaging the losses in `points` bins of time.

    Lines that are not JSON (the last one of a killed run) are passed over. An event without seconds takes those of the
    last step before it.
    """
    losses: dict[str, list[tuple[float, float]]] = {}
    events: list[Event] = []
    seconds = 0.0
    try:
        lines = (place / "log.jsonl").read_text(encoding="utf-8", errors="replace").splitlines() if place else []
    except OSError:
        lines = []
    for text in lines:
        try:
            line: Any = json.loads(text)
        except ValueError:
            continue
        if not isinstance(line, dict):
            continue
        if isinstance(line.get("seconds"), int | float):
            seconds = float(line["seconds"])
        if line.get("kind") == "event":
            event = Event(seconds, str(line.get("what") or ""), str(line.get("text") or ""))
            if event.what in STABILITY or event.text:
                events.append(event)
        elif line.get("kind") == "step":
            for player, entry in line.items():
                total = entry.get("total") if isinstance(entry, dict) else None
                if isinstance(total, int | float) and np.isfinite(total):
                    losses.setdefault(player, []).append((seconds, float(total)))
    return Log({player: _thin(np.array(pairs), points) for player, pairs in losses.items()}, tuple(events))


def _thin(pairs: NDArray[np.float64], points: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(N, 2) in order -> at most `points` means of equally many lines each, (K,) and (K,)."""
    parts = np.array_split(pairs, min(points, len(pairs)))
    means = np.array([part.mean(0) for part in parts])
    return means[:, 0], means[:, 1]
