"""Labels and splits of images by where they lie, in a folder or an archive: by their folders, or by a label file.

Folders. The first folder below the root is the label, at any depth below it: `cats/2024/a.png` is of class `cats`.
Files beside the folders have no label. A root with a folder `train` has official splits: `train`, `test` and
`validation` (or `val`, `valid`) are parts, and labels are the first folders below those.

Label files. `labels` or `metadata` with the ending `.csv`, `.tsv` or `.jsonl`, at any place (the layout that the
Hugging Face hub calls imagefolder), or the one file that the option `label_file` names. A row names a file relative to
the label file's own folder; else the only image below it with that name, with or without its ending. Where a label file
names images it alone says the labels, and what the folders say otherwise is counted. What does not fit together (rows
without image, images without row, two labels for one image) is listed, never guessed.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from quintet.core.errors import DataError, UsageError
from quintet.data.arrays import Notes
from quintet.data.assemble import SUFFIXES, FileNote, Part, printable
from quintet.data.dataset import note
from quintet.data.options import LABELS, DataOptions

PART_NAMES: dict[str, Part] = {
    "train": "train", "training": "train", "test": "test", "testing": "test", "val": "validation",
    "valid": "validation", "validation": "validation",
}  # fmt: skip
TABLE_NAMES = frozenset(f"{stem}.{end}" for stem in ("labels", "metadata") for end in ("csv", "tsv", "jsonl"))
FILE_COLUMNS = ("file_name", "filename", "file", "image", "image_path", "path", "img", "name", "image_id", "id")
"""Names of the column of file names, the first that there is."""
MOST_TABLE = 1 << 28
"""Bytes of a label file."""
MOST_LISTED = 1000
"""Rows without an image that are listed one by one."""
Label = str | int | None


@dataclass(frozen=True)
class LabelFile:
    """A label file: its name for messages, the folder that its file names start at ("" the root), and its bytes."""

    name: str
    folder: str
    content: bytes


@dataclass(frozen=True)
class Layout:
    """What the places of images say.

    Attributes:
        rows: image -> (part, label), sorted by name; what belongs to no split is not among them.
        files: what is left out or remarked, and why.
        notes: what was inferred.
        empty: folders of classes without an image.
    """

    rows: dict[str, tuple[Part, Label]]
    files: list[FileNote]
    notes: Notes
    empty: list[str]


def lay_out(names: Iterable[str], folders: Iterable[str], tables: Sequence[LabelFile], options: DataOptions) -> Layout:
    """Labels and splits of images.

    Args:
        names: of the images, relative to the root, with slashes.
        folders: all folders, likewise.
        tables: label files; none are looked at with `label=none`.
        options: `label` names the column of a label file, or "none"; `label_file` says that a file must be of use.
    Raises: DataError for a label file that cannot be read or says nothing; UsageError for a label column without one.
    """
    names, folders = sorted(names), list(folders)
    tops = {name.split("/")[0] for name in [*folders, *(name for name in names if "/" in name)]}
    split = any(PART_NAMES.get(top.lower()) == "train" for top in tops)
    files: list[FileNote] = []
    rows: dict[str, tuple[Part, Label]] = {}
    for name in names:
        places = name.split("/")
        part: Part = "train"
        if split:
            known = PART_NAMES.get(places[0].lower()) if len(places) > 1 else None
            if known is None:
                files.append(FileNote(name, "skipped", "beside_train"))
                continue
            part, places = known, places[1:]
        rows[name] = part, places[0] if len(places) > 1 else None
    depth = 2 if split else 1
    full = {"/".join(name.split("/")[:depth]) for name in rows}
    empty = sorted(name for name in folders if name.count("/") == depth - 1 and name not in full)
    notes: Notes = []
    if split and rows:
        counts = Counter(part for part, _ in rows.values())
        notes.append(note("data.note_part_folders", parts=", ".join(f"{k} {v}" for k, v in counts.items())))
    if options.label == "none":
        return Layout({name: (part, None) for name, (part, _) in rows.items()}, files, notes, empty)
    told = _Told(rows)
    for table in tables:
        told.read(table, options)
    files += told.files
    if options.label_file not in (None, "none") and not told.labels:
        raise DataError("data.label_file_useless", path=options.label_file, root=names[0] if names else "-")
    if told.labels:
        rows = told.rows()
        notes += told.notes
        missing = [name for name, (_, label) in rows.items() if label is None]
        files += [FileNote(name, "odd", "label_missing") for name in missing[:MOST_LISTED]]
        return Layout(rows, files, notes, [])
    if options.label is not None:
        raise UsageError("data.folder_label", label=options.label)
    return Layout(rows, files, notes + told.notes + _folder_notes(rows, empty), empty)


def is_label_file(name: str) -> bool:
    """Whether a file is taken as a label file by its name alone."""
    return PurePosixPath(name).name.lower() in TABLE_NAMES


def _folder_notes(rows: dict[str, tuple[Part, Label]], empty: list[str]) -> Notes:
    notes: Notes = []
    if empty:
        shown = ", ".join(printable(name) for name in empty[:10]) + (", ..." if len(empty) > 10 else "")
        notes.append(note("data.note_empty_folders", count=len(empty), names=shown))
    labels = {str(label) for _, label in rows.values() if label is not None}
    folded = Counter(label.casefold() for label in labels)
    twins = sorted(label for label in labels if folded[label.casefold()] > 1)
    if twins:
        notes.append(note("data.note_case", names=", ".join(printable(label) for label in twins[:10])))
    return notes


# Label files


@dataclass
class _Told:
    """What label files say of images.

    Attributes:
        found: image -> (part, label of its folder).
        labels: image -> label.
        twice: images with two different labels; they are left out.
    """

    found: dict[str, tuple[Part, Label]]
    labels: dict[str, Label] = field(default_factory=dict)
    twice: set[str] = field(default_factory=set)
    files: list[FileNote] = field(default_factory=list)
    notes: Notes = field(default_factory=list)

    def read(self, table: LabelFile, options: DataOptions) -> None:
        asked = options.label_file not in (None, "none")
        rows = _rows(table, options.label, asked)
        if rows is None:
            self.notes.append(note("data.note_label_file_other", file=printable(table.name)))
            return
        exact, loose = _images_below(self.found, table.folder)
        unknown, named = [], 0
        for text, label in rows:
            key = text.replace("\\", "/").removeprefix("./")
            name = exact.get(key) or loose.get(key)
            if name is None:
                unknown.append(text)
                continue
            named += 1
            if name in self.labels and self.labels[name] != label:
                if name not in self.twice:
                    fields = {"first": self.labels[name], "second": label}
                    self.files.append(FileNote(name, "bad", "label_twice", fields))
                self.twice.add(name)
            self.labels[name] = label
        file = printable(table.name)
        if not named:
            self.notes.append(note("data.note_label_file_unused", file=file, rows=len(rows)))
            return
        self.notes.append(note("data.note_label_file", file=file, count=named))
        if unknown:
            shown = ", ".join(printable(text)[:80] for text in unknown[:3])
            self.notes.append(note("data.note_label_rows", file=file, count=len(unknown), first=shown))
            self.files += [
                FileNote(text[:300] or "?", "skipped", "label_only", {"file": file}) for text in unknown[:MOST_LISTED]
            ]

    def rows(self) -> dict[str, tuple[Part, Label]]:
        """Parts with these labels instead of the folders'; the sentence on what contradicts."""
        found = {
            name: (part, self.labels.get(name)) for name, (part, _) in self.found.items() if name not in self.twice
        }
        pairs = [(name, str(self.found[name][1]), str(label)) for name, (_, label) in found.items()
                 if label is not None and self.found[name][1] is not None]  # fmt: skip
        words = {label for _, _, label in pairs}
        # folders named for other things (a year, a camera) contradict nothing
        against = [pair for pair in pairs if pair[1] != pair[2] and pair[1] in words]
        if against:
            name, folder, label = against[0]
            fields = {"name": printable(name), "folder": printable(folder), "label": printable(label)}
            self.notes.append(note("data.note_label_conflict", count=len(against), **fields))
        missing = sum(label is None for _, label in found.values())
        if missing:
            self.notes.append(note("data.note_label_missing", count=missing))
        return found


def _images_below(found: Iterable[str], folder: str) -> tuple[dict[str, str], dict[str, str]]:
    """(by path from the folder, by what is told of a file otherwise, where that is one image only)."""
    start = f"{folder}/" if folder else ""
    exact = {name.removeprefix(start): name for name in found if name.startswith(start)}
    loose: dict[str, str] = {}
    several: set[str] = set()
    for below, name in exact.items():
        file = below.rpartition("/")[2]
        for key in {below.rpartition(".")[0], file, file.rpartition(".")[0]} - {below}:
            if key in loose:
                several.add(key)
            loose[key] = name
    return exact, {key: name for key, name in loose.items() if key and key not in several}


def _rows(table: LabelFile, asked: str | None, must: bool) -> list[tuple[str, Label]] | None:
    """(file, label) of each row; None where the file is about something else.

    Raises: DataError for what is no table, lacks the column asked for, or must be of use and is not.
    """
    records = list(_json_lines(table) if table.name.lower().endswith(".jsonl") else _csv_lines(table))
    columns = list(dict.fromkeys(key for record in records for key in record))
    lower = {name.strip().lower(): name for name in reversed(columns)}
    file = next((lower[name] for name in FILE_COLUMNS if name in lower), None)
    others = [name for name in columns if name != file]
    label = asked if asked in others else next((lower[n] for n in LABELS if n in lower and lower[n] != file), None)
    if asked is not None and asked not in others:
        if not must:
            return None
        raise DataError("data.no_column", path=table.name, column=asked, known=", ".join(columns))
    if label is None and len(others) == 1:
        label = others[0]
    if file is None or label is None:
        if not must:
            return None
        names = ", ".join(columns[:20])
        raise DataError("data.label_file_columns", path=table.name, columns=names, files=", ".join(FILE_COLUMNS[:3]))
    values = [_plain(record.get(label), table) for record in records]
    texts = [value for value in values if isinstance(value, str)]
    if texts and all(text.isascii() and text.isdigit() and str(int(text)) == text for text in texts):
        values = [int(value) if value is not None else None for value in values]
    return [(str(record.get(file) or ""), value) for record, value in zip(records, values, strict=True)]


def _plain(value: Any, table: LabelFile) -> Label:
    """A cell as a label; absent and empty ones are none."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, (bool, int)):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str):
        return value.strip()
    why = f"a label is {json.dumps(value)[:60]}, neither text nor a whole number"
    raise DataError("data.label_file_broken", path=table.name, why=why)


def _csv_lines(table: LabelFile) -> Iterator[dict[str, Any]]:
    """The rows of a table with a header, or of one without whose first column names images."""
    text = _text(table)
    head = text.partition("\n")[0]
    delimiter = max(",;\t", key=head.count) if not table.name.lower().endswith(".tsv") else "\t"
    try:
        lines = [line for line in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if any(line)]
    except csv.Error as error:
        raise DataError("data.label_file_broken", path=table.name, why=error) from error
    if not lines:
        return
    header = [name.strip() for name in lines[0]]
    if header[0].rpartition(".")[2].lower() in SUFFIXES and "." in header[0]:
        header = [FILE_COLUMNS[0], *(f"column{i}" for i in range(1, len(header)))]
    else:
        lines = lines[1:]
    for number, line in enumerate(lines, 2):
        if len(line) > len(header):
            why = f"row {number} has {len(line)} fields, the header {len(header)}"
            raise DataError("data.label_file_broken", path=table.name, why=why)
        yield dict(zip(header, line, strict=False))


def _json_lines(table: LabelFile) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(_text(table).splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError("data.label_file_broken", path=table.name, why=f"line {number}: {error}"[:200]) from error
        if not isinstance(record, dict):
            raise DataError("data.label_file_broken", path=table.name, why=f"line {number} is no JSON object")
        yield record


def _text(table: LabelFile) -> str:
    content = table.content
    wide = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        encoding = "UTF-16" if wide else "UTF-8"
        raise DataError("data.table_encoding", path=table.name, encoding=encoding, at=error.start) from error
    if "\0" in text:
        raise DataError("data.label_file_broken", path=table.name, why="it holds NUL characters")
    return text
