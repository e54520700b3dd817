"""From what a user types to a data set: one place that knows which file reads which kind of source."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from quintet.core.errors import DataError
from quintet.data.arrays import open_arrays, open_file
from quintet.data.dataset import Dataset
from quintet.data.digits import open_digits
from quintet.data.options import TABLE_OPTIONS, DataOptions, read_options
from quintet.data.toy import TOYS, open_toy

ARRAY_FILES = (".npz", ".npy")
TEXT_TABLES = (".csv", ".tsv")
ARCHIVES = (".zip", ".tar", ".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz")
XY = 2
DATA = "../shared/data"
"""Where data sets are found by name unless QUINTET_DATA says otherwise."""


def open_dataset(data: Any, options: DataOptions | Mapping[str, Any] | Sequence[str] | None = None) -> Dataset:
    """Open data by name, by path or from memory.

    Args:
        data: "digits"; "toy:NAME"; the name of a folder in $QUINTET_DATA ("fashion_mnist"); a path to a folder of
            images, a folder of Parquet files, an archive of images, or a `.parquet`, `.csv`, `.npz` (arrays x,
            optionally y, x_test, y_test) or `.npy` file; "hf:owner/name"; an array; a tuple (x, y); a mapping with "x"
            and optionally "y", "x_test", "y_test"; or a Dataset, returned as it is.
        options: how to read it, as DataOptions, fields, or "size=64" pairs.
    Raises: DataError for what cannot be read or used, saying what and what to do; UsageError for options that the
        source does not know.
    """
    chosen = read_options(options)
    if isinstance(data, (str, PathLike)):
        return _open_name(fspath(data), chosen)
    chosen.only((), "arrays")
    if isinstance(data, Dataset):
        return data
    if isinstance(data, Mapping):
        return open_arrays(data)
    if isinstance(data, tuple) and len(data) == XY:
        return open_arrays({"x": data[0], "y": data[1]})
    if isinstance(data, list) or hasattr(data, "__array__"):
        return open_arrays({"x": data})
    raise DataError("data.unsupported_type", type=type(data).__name__)


def _open_name(text: str, options: DataOptions) -> Dataset:
    path = Path(text)
    suffix = path.suffix.lower()
    if text == "digits" or text.startswith("toy:") or suffix in ARRAY_FILES:
        options.only((), "arrays" if suffix in ARRAY_FILES else text)
        if text == "digits":
            return open_digits()
        return open_toy(text.removeprefix("toy:")) if text.startswith("toy:") else open_file(path)
    if text.startswith("hf:"):
        from quintet.data.hub import download

        folder, *files = download(text.removeprefix("hf:"))
        return _open_parquet(folder, files, options, text)
    if not path.exists() and Path(text).name == text:
        named = Path(os.environ.get("QUINTET_DATA", DATA)) / text
        if named.is_dir():
            path = named
    if path.is_dir() or suffix == ".parquet":
        return _open_folder(path, options)
    if path.name.lower().endswith(ARCHIVES):
        from quintet.data.archives import find_archive_images
        from quintet.data.assemble import assemble

        return assemble(find_archive_images(path, options), options)
    if suffix in TEXT_TABLES:
        from quintet.data.tables import open_text_table

        options.only(TABLE_OPTIONS, "table")
        return open_text_table(path, options)
    if path.exists() or (suffix[1:].isalnum() and ":" not in text):
        raise DataError("data.unsupported_format", path=path, suffix=suffix or "?")
    raise DataError("data.unknown_source", name=text, toys=", ".join(TOYS), place=os.environ.get("QUINTET_DATA", DATA))


def _open_folder(path: Path, options: DataOptions) -> Dataset:
    """A folder of images, or Parquet files; pyarrow and Pillow are imported for those only."""
    if path.is_dir():
        from quintet.data.folders import find_images, is_image_folder

        try:
            plain = is_image_folder(path) and not any(path.glob("*/*.parquet")) and not any(path.glob("*/*/*.parquet"))
        except OSError as error:
            raise DataError("data.unreadable", path=path, why=error.strerror or error) from error
        if plain:
            from quintet.data.assemble import assemble

            return assemble(find_images(path, options), options)
    if not path.exists():
        raise DataError("data.missing", path=path, cwd=Path.cwd())
    return _open_parquet(path, None, options)


def _open_parquet(path: Path, chosen: Sequence[Path] | None, options: DataOptions, name: str = "") -> Dataset:
    """A Parquet file, those below a folder, or the chosen ones of them: images or a table."""
    from quintet.data.assemble import assemble
    from quintet.data.parquet import find_parquet_images, image_column, open_columns, parquet_files

    files = parquet_files(path, chosen)
    if not files:
        raise DataError("data.no_image_files", path=path, others="-")
    schema = open_columns(files)
    if image_column(schema) is not None:
        return assemble(find_parquet_images(name or path.stem, path, files, options), options)
    from quintet.data.tables import open_parquet_table

    options.only(TABLE_OPTIONS, "table")
    return open_parquet_table(name or path.stem, path, files, options)
