"""Tables of numbers: `.csv`, `.tsv` and Parquet files as vectors, one row an example.

What is inferred is said: delimiter, decimal comma, header, byte-order mark, the label's column. A column that cannot be
modelled (words, missing values, one value throughout) is refused by name with what to do; nothing is dropped or filled
silently. What it is not: mixed tables with columns of categories, which need an encoding of their own.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from quintet.core.errors import DataError
from quintet.data.arrays import VECTOR_LEVELS, Notes, are_classes, open_arrays
from quintet.data.assemble import Part
from quintet.data.dataset import Dataset, note
from quintet.data.options import LABELS, DataOptions

DELIMITERS = (",", ";", "\t", "|")
NAMED = {",": ",", ";": ";", "\t": "tab", "|": "|"}
MISSING = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", "-nan", "#N/A", "?")
PEEK = 1 << 16
LINES = 100
MOST_BYTES = 2**31
BLOCK = 1 << 20
"""Bytes that are parsed at once; a line must fit."""
ROWS_A_CLASS = 10
"""Numbers are taken for classes unasked if there are so many rows of each on average, or few numbers."""

Frame = dict[str, pa.ChunkedArray]


def open_text_table(path: Path, options: DataOptions) -> Dataset:
    """The data set in a `.csv` or `.tsv` file.

    Raises: DataError for what cannot be read as a table of numbers, naming the column.
    """
    notes: Notes = []
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise DataError("data.table_large", path=path, gib=size / 2**30)
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError("data.missing", path=path, cwd=Path.cwd()) from error
    except OSError as error:
        raise DataError("data.unreadable", path=path, why=error.strerror or error) from error
    content = _utf8(content, path, notes)
    table = _parse(content, path, notes)
    return _dataset(path.stem, str(path), [(table, "train")], options, notes)


def read_columns(
    path: Path, columns: Sequence[str], dims: int, options: DataOptions
) -> tuple[NDArray[np.float64], NDArray[Any] | None]:
    """The numbers and the labels of one table, for data that are known already.

    Args:
        columns: to look for by name; where the table has none of them, its own columns count in their order.
        dims: how many there must be.
    Raises: DataError for missing columns, another number of them, or what is no number.
    """
    notes: Notes = []
    try:
        if path.suffix.lower() == ".parquet":
            table = pq.read_table(path, partitioning=None)
        else:
            table = _parse(_utf8(path.read_bytes(), path, notes), path, notes)
    except (OSError, pa.ArrowException) as error:
        raise DataError("data.unreadable", path=path, why=" ".join(str(error).split())[:200]) from error
    names = table.column_names
    known = [name for name in columns if name in names]
    label = options.label if options.label != "none" else None
    if options.label is None and len(names) > dims:
        likely = (name for name in _candidates(names, options) if name not in known)
        label = next((name for name in likely if _whole(table.column(name))), None)
    chosen = known if known else [name for name in names if name != label]
    if known and len(known) < len(columns):
        missing = next(name for name in columns if name not in names)
        raise DataError("data.no_column", path=path, column=missing, known=", ".join(names))
    if len(chosen) != dims:
        raise DataError("given.columns", path=path, count=len(chosen), dims=dims)
    return _numbers(table, chosen, str(path)), _labels(table, label, str(path)) if label is not None else None


def open_parquet_table(name: str, path: Path, files: list[tuple[Path, Part]], options: DataOptions) -> Dataset:
    """The data set in Parquet files of numbers; files named `test-...` are the test split.

    Raises: DataError for what cannot be read as a table of numbers, naming the column.
    """
    tables: list[tuple[pa.Table, Part]] = []
    for file, part in files:
        try:
            tables.append((pq.read_table(file, partitioning=None), part))
        except (OSError, pa.ArrowException) as error:
            why = " ".join(str(error).split())[:200]
            raise DataError("data.parquet_broken", path=file, why=why) from error
    return _dataset(name, str(path), tables, options, [])


def _dataset(name: str, where: str, tables: list[tuple[pa.Table, Part]], options: DataOptions, notes: Notes) -> Dataset:
    names = tables[0][0].column_names
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise DataError("data.table_twice", where=where, columns=", ".join(twice))
    for column in (*options.columns, *options.drop, *([options.label] if options.label not in (None, "none") else [])):
        if column not in names:
            raise DataError("data.no_column", path=where, column=column, known=", ".join(names))
    label = _label([table for table, _ in tables], options, notes)
    chosen = [n for n in (options.columns or names) if n != label and n not in options.drop]
    if not chosen:
        raise DataError("data.table_no_columns", where=where)
    # a source's validation rows join the training rows, from which validation is cut
    test = [table for table, part in tables if part == "test"]
    train = [table for table, part in tables if part != "test"]
    if not train:
        raise DataError("data.no_train", path=where)
    arrays: dict[str, Any] = {}
    for key, parts in (("", train), ("_test", test)):
        if parts:
            table = pa.concat_tables(parts)
            arrays[f"x{key}"] = _numbers(table, chosen, where)
            if label is not None:
                arrays[f"y{key}"] = _labels(table, label, where)
    everything = np.concatenate([arrays[key] for key in ("x", "x_test") if key in arrays])
    still = [column for column, values in zip(chosen, everything.T, strict=True) if (values == values[0]).all()]
    if still and len(everything) > 1:
        raise DataError("data.table_constant", where=where, columns=", ".join(still), drop=",".join(still))
    notes.append(note("data.note_table", count=len(chosen), columns=_some(chosen), label=label or "-"))
    made = open_arrays(arrays, name, where, chosen)
    fields = {key: getattr(made, key) for key in made.__dataclass_fields__}
    found = {"source": "table", "columns": chosen, "label_column": label}
    return Dataset(**{**fields, "notes": (*notes, *made.notes), "columns": tuple(chosen), "found": found})


def _candidates(names: list[str], options: DataOptions) -> list[str]:
    """The column that was asked for as label, or those that may be by their names, the likeliest first."""
    if options.label is not None:
        return [] if options.label == "none" else [options.label]
    lower = {name.strip().lower(): name for name in reversed(names)}
    found = [lower[name] for name in LABELS if name in lower]
    return [name for name in found if name not in options.columns and name not in options.drop]


def _label(tables: list[pa.Table], options: DataOptions, notes: Notes) -> str | None:
    """The label's column; unasked only one that can be classes, the others being columns like any."""
    for name in _candidates(tables[0].column_names, options):
        kind = tables[0].column(name).type
        column = pa.chunked_array([chunk for table in tables for chunk in table.column(name).chunks], kind)
        different, rows = len(column.unique()), len(column)
        few = different <= max(VECTOR_LEVELS, rows // ROWS_A_CLASS) and (different < 2 or are_classes(different, rows))
        if options.label is not None or _are_words(kind) or (few and _whole(column)):
            return name
        if not options.columns:
            notes.append(note("data.note_no_label", column=name, different=different, rows=rows))
    return None


def _are_words(kind: pa.DataType) -> bool:
    return not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _whole(column: pa.ChunkedArray) -> bool:
    """Whether a column's values can name classes: words, or whole numbers."""
    if not (pa.types.is_floating(column.type) or pa.types.is_decimal(column.type)):
        return True
    values = column.drop_null().cast(pa.float64()).to_numpy()
    return bool((np.isfinite(values) & (values == np.rint(values))).all())


def _numbers(table: pa.Table, columns: list[str], where: str) -> NDArray[np.float64]:
    """(N, D) of the chosen columns.

    Raises: DataError naming the columns that are no numbers, or have missing values.
    """
    words, holes, found = [], [], []
    for name in columns:
        column = table.column(name)
        kind = column.type
        if pa.types.is_boolean(kind):
            column = column.cast(pa.int8())
        elif pa.types.is_decimal(kind):
            column = column.cast(pa.float64())
        elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
            if pa.types.is_null(kind):
                holes.append((name, len(column)))
            else:
                words.append((name, kind))
            continue
        if column.null_count:
            holes.append((name, column.null_count))
            continue
        values = column.to_numpy().astype(np.float64)
        bad = int((~np.isfinite(values)).sum())
        if bad:
            holes.append((name, bad))
        found.append(values)
    if words:
        shown = _some([f"{name} ({kind})" for name, kind in words])
        raise DataError("data.table_words", where=where, columns=shown, drop=",".join(name for name, _ in words))
    if holes:
        shown = _some([f"{name} ({count})" for name, count in holes])
        raise DataError("data.table_missing", where=where, columns=shown, drop=",".join(name for name, _ in holes))
    return np.stack(found, axis=1)


def _labels(table: pa.Table, name: str, where: str) -> NDArray[Any]:
    column = table.column(name)
    if column.null_count:
        raise DataError("data.table_label_missing", where=where, column=name, count=column.null_count)
    found = np.array(column.to_pylist())
    if not _whole(column) or found.dtype.hasobject:
        raise DataError("data.label_column_kind", path=where, column=name, kind=column.type)
    return found


# Text


def _utf8(content: bytes, path: Path, notes: Notes) -> bytes:
    """The content as UTF-8 without a byte-order mark.

    Raises: DataError for other encodings than UTF-8 and, with a mark, UTF-16.
    """
    for mark, encoding in ((b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"), (b"\xef\xbb\xbf", "utf-8-sig")):
        if content.startswith(mark):
            notes.append(note("data.note_bom", encoding=encoding.removesuffix("-sig").upper()))
            break
    else:
        encoding = "utf-8"
    try:
        return content.decode(encoding).encode()
    except UnicodeDecodeError as error:
        raise DataError("data.table_encoding", path=path, encoding=encoding, at=error.start) from error


def _parse(content: bytes, path: Path, notes: Notes) -> pa.Table:
    if not content.strip():
        raise DataError("data.table_empty", path=path)
    lines = _first_lines(content)
    delimiter, rows = _delimiter(lines)
    comma = delimiter != "," and _decimal_comma(rows)
    header = _header(rows, comma)
    if not header:
        notes.append(note("data.note_no_header", columns=len(rows[0])))
    notes.append(note("data.note_csv", delimiter=NAMED[delimiter], decimal="," if comma else "."))
    names = [name.strip() or f"column{i}" for i, name in enumerate(rows[0])]
    names = names if header else [f"column{i}" for i in range(len(rows[0]))]
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise DataError("data.table_twice", where=path, columns=", ".join(twice))
    try:
        return pacsv.read_csv(
            io.BytesIO(content),
            pacsv.ReadOptions(
                column_names=names,
                skip_rows=1 if header else 0,
                use_threads=False,
                block_size=max(BLOCK, 4 * max(len(line.encode()) for line in lines)),
            ),
            pacsv.ParseOptions(delimiter=delimiter),
            pacsv.ConvertOptions(
                decimal_point="," if comma else ".", null_values=list(MISSING), strings_can_be_null=True
            ),
        )
    except pa.ArrowException as error:
        raise DataError("data.table_broken", path=path, why=" ".join(str(error).split())[:200]) from error


def _first_lines(content: bytes) -> list[str]:
    """Whole lines from the beginning of a text, at least two where it has them, without empty ones."""
    size = PEEK
    while True:
        found = content[:size].splitlines()
        lines = [line for line in (found if size >= len(content) else found[:-1]) if line.strip()]
        if len(lines) > 1 or size >= len(content):
            return [line.decode("utf-8", "ignore") for line in lines[:LINES]]
        size *= 4


def _delimiter(lines: list[str]) -> tuple[str, list[list[str]]]:
    """The delimiter that cuts all lines into the same number of fields, the most; and the fields of the lines."""
    best, found = ",", [[line] for line in lines]
    for delimiter in DELIMITERS:
        try:
            rows = list(csv.reader(lines, delimiter=delimiter))
        except csv.Error:
            continue
        same = sum(len(row) == len(rows[0]) for row in rows)
        if same >= 0.9 * len(rows) and len(rows[0]) > len(found[0]):
            best, found = delimiter, rows
    return best, found


def _decimal_comma(rows: list[list[str]]) -> bool:
    fields = [field.strip() for row in rows[1:] or rows for field in row]
    commas = sum(bool(re.fullmatch(r"[-+]?\d+,\d+([eE][-+]?\d+)?", field)) for field in fields)
    points = sum(bool(re.fullmatch(r"[-+]?\d*\.\d+([eE][-+]?\d+)?", field)) for field in fields)
    return commas > points


def _header(rows: list[list[str]], comma: bool) -> bool:
    """Whether the first row is names: no field of it is a number, or one is words where the second row has a number."""
    first = [_is_number(field, comma) for field in rows[0]]
    second = [_is_number(field, comma) for field in rows[1]] if len(rows) > 1 else first
    return not any(first) or any(b and not a for a, b in zip(first, second, strict=False) if not a)


def _is_number(field: str, comma: bool) -> bool:
    text = field.strip()
    try:
        float(text.replace(",", ".") if comma else text)
    except ValueError:
        return text in MISSING and bool(text)
    return True


def _some(items: list[str], most: int = 10) -> str:
    return ", ".join(items[:most]) + (f", ... ({len(items)})" if len(items) > most else "")
