"""From what a user types to a data set: one place that knows which file reads which kind of source."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from quintet.core.errors import DataError
from quintet.data.arrays import open_arrays, open_file
from quintet.data.dataset import Dataset
from quintet.data.digits import open_digits
from quintet.data.toy import TOYS, open_toy

ARRAY_FILES = (".npz", ".npy")
XY = 2


def open_dataset(data: Any) -> Dataset:
    """Open data by name, by path or from memory.

    Args:
        data: "digits"; "toy:NAME"; a path to a `.npz` (arrays x, optionally y, x_test, y_test) or `.npy` file; an
            array; a tuple (x, y); a mapping with "x" and optionally "y", "x_test", "y_test"; or a Dataset, returned
            as it is.
    Raises: DataError for what cannot be read or used, saying what and what to do.
    """
    if isinstance(data, Dataset):
        return data
    if isinstance(data, str) and data == "digits":
        return open_digits()
    if isinstance(data, str) and data.startswith("toy:"):
        return open_toy(data.removeprefix("toy:"))
    if isinstance(data, (str, PathLike)):
        return _open_path(fspath(data))
    if isinstance(data, Mapping):
        return open_arrays(data)
    if isinstance(data, tuple) and len(data) == XY:
        return open_arrays({"x": data[0], "y": data[1]})
    if isinstance(data, list) or hasattr(data, "__array__"):
        return open_arrays({"x": data})
    raise DataError("data.unsupported_type", type=type(data).__name__)


def _open_path(text: str) -> Dataset:
    path = Path(text)
    suffix = path.suffix.lower()
    if path.is_dir():
        raise DataError("data.folder", path=path)
    if suffix in ARRAY_FILES:
        return open_file(path)
    if path.exists() or (suffix[1:].isalnum() and ":" not in text):
        raise DataError("data.unsupported_format", path=path, suffix=suffix or "?")
    raise DataError("data.unknown_source", name=text, toys=", ".join(TOYS))
