"""Parquet files: images as struct{bytes, path} columns in the layout of the Hugging Face hub, or tables of numbers.

A folder's files are its splits by name: `train-00000-of-00002.parquet`, `test-...`, `validation-...` (or `val`,
`valid`), also in sub-folders of those names; files of other names are for training. Images are read row group by row
group, so that a file may be larger than memory. Class names come from the features that the hub keeps in the metadata.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from quintet.core.errors import DataError
from quintet.data import cache
from quintet.data.arrays import Notes
from quintet.data.assemble import Entry, Part, Source
from quintet.data.dataset import note
from quintet.data.layout import PART_NAMES
from quintet.data.options import LABELS, DataOptions

BATCH = 128


def parquet_files(path: Path, chosen: Sequence[Path] | None = None) -> list[tuple[Path, Part]]:
    """The Parquet files at a path, or the chosen ones below it, and the split of each, in the order of their names."""
    if path.is_file():
        return [(path, "train")]
    found = path.rglob("*.parquet") if chosen is None else chosen
    files = sorted(file for file in found if not _hidden(file.relative_to(path)))
    return [(file, _part(file.relative_to(path))) for file in files]


def open_columns(files: list[tuple[Path, Part]]) -> pa.Schema:
    """The columns, which all files must share.

    Raises: DataError for a file that cannot be read or has other columns.
    """
    schema: pa.Schema | None = None
    for file, _ in files:
        try:
            found = pq.read_schema(file)
        except FileNotFoundError as error:
            raise DataError("data.missing", path=file, cwd=Path.cwd()) from error
        except (OSError, pa.ArrowException) as error:
            raise DataError("data.parquet_broken", path=file, why=_one_line(error)) from error
        if schema is None:
            schema = found
        elif not schema.equals(found):
            raise DataError("data.parquet_columns", path=file, first=files[0][0])
    assert schema is not None
    return schema


def image_column(schema: pa.Schema) -> str | None:
    """The first column of images: struct{bytes, ...}, or binary with a telling name."""
    for column in schema:
        kind = column.type
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            # audio columns have the same type; the features say which is which
            if _features(schema).get(column.name, {}).get("_type", "Image") == "Image" and "audio" not in column.name:
                return str(column.name)
        elif _binary(kind) and column.name.lower() in ("image", "img", "images", "picture", "jpg", "png", "bytes"):
            return str(column.name)
    return None


def find_parquet_images(name: str, path: Path, files: list[tuple[Path, Part]], options: DataOptions) -> Source:
    """The images in Parquet files.

    Args:
        name: for display.
        path: the folder or file they are in.
        files: from `parquet_files`.
        options: `label` names the label's column.
    Raises: DataError for broken files or a label column that is not there.
    """
    schema = open_columns(files)
    column = image_column(schema)
    assert column is not None
    label = label_column(schema, options.label, path)
    notes: Notes = []
    others = [c.name for c in schema if c.name not in (column, label)]
    if others:
        notes.append(note("data.note_other_columns", image=column, label=label or "-", others=", ".join(others)))
    state = []
    for file, _ in files:
        facts = file.stat()
        state.append(f"{file.relative_to(path) if file != path else file.name}\n{facts.st_size}\n{facts.st_mtime_ns}")
    titles = _features(schema).get(label or "", {}).get("names") or []

    def entries() -> Iterator[Entry]:
        signed = label is not None and not titles and _are_signed([file for file, _ in files], label)
        for file, part in files:
            yield from _rows(file, part, column, label, signed)

    return Source(
        name=name,
        kind="parquet",
        place=str(path.resolve()),
        state=cache.digest(*state),
        entries=entries,
        titles={str(number): str(title) for number, title in enumerate(titles)},
        notes=tuple(notes),
        facts={"columns": {c.name: str(c.type) for c in schema}, "image_column": column, "label_column": label},
    )


def label_column(schema: pa.Schema, asked: str | None, path: Path) -> str | None:
    """The column of labels, by name.

    Raises: DataError if the one asked for is not there or holds neither whole numbers nor strings.
    """
    if asked == "none":
        return None
    if asked is not None:
        if asked not in schema.names:
            raise DataError("data.no_column", path=path, column=asked, known=", ".join(schema.names))
        if not _labels(schema.field(asked).type):
            raise DataError("data.label_column_kind", path=path, column=asked, kind=schema.field(asked).type)
        return asked
    lower = {name.lower(): name for name in reversed(schema.names)}
    return next((lower[n] for n in LABELS if n in lower and _labels(schema.field(lower[n]).type)), None)


def _are_signed(files: list[Path], label: str) -> bool:
    """Whether a column's numbers are -1 and 1, two classes; elsewhere the hub marks rows without a label with -1."""
    try:
        columns = [pq.read_table(file, columns=[label], partitioning=None).column(0) for file in files]
        return {value for column in columns for value in column.unique().to_pylist()} - {None} == {-1, 1}
    except (OSError, pa.ArrowException):
        return False  # whoever reads the rows says so


def _rows(file: Path, part: Part, column: str, label: str | None, signed: bool) -> Iterator[Entry]:
    number = 0
    try:
        with pq.ParquetFile(file) as opened:
            for batch in opened.iter_batches(BATCH, columns=[column] + ([label] if label else [])):
                images = batch.column(0)
                if pa.types.is_struct(images.type):
                    paths = images.field("path") if images.type.get_field_index("path") >= 0 else None
                    images = images.field("bytes")
                else:
                    paths = None
                labels = batch.column(1).to_pylist() if label else [None] * len(batch)
                for i in range(len(batch)):
                    shown = paths[i].as_py() if paths is not None else None
                    name = f"{file.name} row {number}" + (f" ({shown})" if shown else "")
                    yield Entry(name, images[i].as_py() or b"", _label(labels[i], signed), part)
                    number += 1
    except (OSError, pa.ArrowException) as error:
        raise DataError("data.parquet_broken", path=file, why=_one_line(error)) from error


def _label(value: Any, signed: bool) -> str | int | None:
    if isinstance(value, bool):
        return int(value)
    return None if isinstance(value, int) and value < 0 and not signed else value


def _labels(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    types = pa.types
    return bool(
        types.is_integer(kind) or types.is_boolean(kind) or types.is_string(kind) or types.is_large_string(kind)
    )


def _binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _features(schema: pa.Schema) -> dict[str, Any]:
    """What the hub's metadata say of each column; nothing where they are absent or not as expected."""
    try:
        found = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: facts for name, facts in found.items() if isinstance(facts, dict)}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def _part(file: Path) -> Part:
    """The split that a file's name, or the folder it lies in, says."""
    for text in (file.name, *reversed(file.parts[:-1])):
        first = re.split(r"[-_.0-9]", text.lower(), maxsplit=1)[0]
        if first in PART_NAMES:
            return PART_NAMES[first]
    return "train"


def _hidden(file: Path) -> bool:
    return any(place.startswith(".") for place in file.parts)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
