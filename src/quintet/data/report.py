"""The data report: what was found and what was made of it, for `quintet check` and beside every comparison.

data_report.json (schema 1):
    schema, name, usable        1; for display; whether models can be trained on it
    problem                     {"en", "zh"} where it is not usable
    kind, shape, levels         of one example; levels null for continuous values
    values                      {"origin", "step"}: level k stands for origin + step * k
    columns                     names of a table's columns
    splits                      part -> examples
    labels                      condition -> class -> part -> examples
    memory                      {"bytes", "mapped"}: of the decoded examples; mapped if they are read from the cache
    notes                       [{"en", "zh"}]: all that was inferred or changed
    fingerprint                 SHA-256 over the splits
    found                       of files: source, files, images, bad, skipped, odd, sizes ("HxW" -> images, the
                                commonest), sizes_in_all, modes, formats, policy, copies, near,
                                across {"copies", "near"}: left out of training as they repeat held-out images;
                                columns, other_files, empty_folders;
                                listed [{"file", "verdict": "bad"|"skipped"|"odd", "reason", "en", "zh"}]
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from quintet.core.checkpoint import write_atomically, writing
from quintet.core.errors import DataError
from quintet.core.messages import LANGUAGES
from quintet.data.dataset import Dataset

FILE = "data_report.json"
PARTS = ("train", "validation", "judge", "test")


def describe_data(dataset: Dataset) -> dict[str, Any]:
    """The report of an opened data set."""
    spec = dataset.spec
    parts = {name: getattr(dataset, name) for name in PARTS}
    labels: dict[str, dict[str, dict[str, int]]] = {}
    for condition, classes in spec.conditions.items():
        counts = {name: np.bincount(part.labels[condition], minlength=classes) for name, part in parts.items()}
        names = dataset.names.get(condition) or tuple(map(str, range(classes)))
        labels[condition] = {
            title: {name: int(count[i]) for name, count in counts.items()} for i, title in enumerate(names)
        }
    return {
        "schema": 1,
        "name": dataset.name,
        "usable": True,
        "kind": spec.kind,
        "shape": list(spec.shape),
        "levels": spec.levels,
        "values": {"origin": dataset.origin, "step": dataset.step},
        "columns": list(dataset.columns),
        "splits": {name: len(part) for name, part in parts.items()},
        "labels": labels,
        "memory": {
            "bytes": sum(int(part.x.nbytes) for part in parts.values()),
            "mapped": any(part.mapped for part in parts.values()),
        },
        "notes": [dict(text) for text in dataset.notes],
        "fingerprint": dataset.fingerprint,
        "found": dict(dataset.found),
    }


def describe_failure(name: str, error: DataError) -> dict[str, Any]:
    """The report of data that cannot be used."""
    problem = {lang: error.text(lang) for lang in LANGUAGES}
    return {"schema": 1, "name": name, "usable": False, "problem": problem, "found": getattr(error, "found", {})}


def write_data_report(report: Mapping[str, Any], path: Path) -> None:
    """Write data_report.json.

    Raises: ResourceError if it cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False).encode())
