"""Folders of images.

Labels: the first folder below the root is the label, at any depth below it: `cats/2024/a.png` is of class `cats`.
Files beside the folders have no label. A root with a folder `train` has official splits: `train`, `test` and
`validation` (or `val`, `valid`) are parts, and labels are the first folders below those.
Links are followed to files inside the root only, and never to folders. What is no image by its ending is left alone;
everything else that is not used is listed with its reason.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from pathlib import Path

from quintet.core.errors import DataError, UsageError
from quintet.data import cache
from quintet.data.arrays import Notes
from quintet.data.assemble import SUFFIXES, Entry, FileNote, Part, Source, printable
from quintet.data.dataset import note
from quintet.data.options import DataOptions

FOREIGN = (
    "svg", "svgz", "eps", "ps", "pdf", "heic", "heif", "avif", "ico", "psd", "tga", "ppm", "pgm", "pbm", "pnm", "jp2",
    "j2k", "jxl", "exr", "hdr", "dcm", "raw", "cr2", "nef", "dng", "xcf",
)  # fmt: skip
"""Endings of pictures in formats that are not read."""
PART_NAMES: dict[str, Part] = {
    "train": "train", "training": "train", "test": "test", "testing": "test", "val": "validation",
    "valid": "validation", "validation": "validation",
}  # fmt: skip
DEEPEST = 64
MOST_LISTED = 1000
"""Other files that are listed one by one."""


def is_image_folder(path: Path) -> bool:
    """Whether a folder is to be read as images: it holds no Parquet file at its top."""
    return not any(name.lower().endswith(".parquet") for name in os.listdir(path))


def find_images(path: Path, options: DataOptions) -> Source:
    """The images of a folder.

    Raises: DataError if the folder cannot be read or holds no image files.
    """
    if options.label not in (None, "none"):
        raise UsageError("data.folder_label", label=options.label)
    try:
        root = path.resolve(strict=True)
        with os.scandir(root):
            pass
    except OSError as error:
        raise DataError("data.unreadable", path=path, why=error.strerror or error) from error
    walk = _Walk(root)
    walk.folder(root, "", 0)
    top = sorted({name.split("/")[0] for name in [*walk.found, *walk.folders] if "/" in name or name in walk.folders})
    split = any(PART_NAMES.get(name.lower()) == "train" for name in top)
    entries, files, notes = [], walk.files, list[dict[str, str]]()
    empty = {name for name in walk.folders if name.count("/") == (1 if split else 0)}
    state = []
    for name, size, mtime in sorted((name, *facts) for name, facts in walk.found.items()):
        places = name.split("/")
        part: Part = "train"
        if split:
            known = PART_NAMES.get(places[0].lower()) if len(places) > 1 else None
            if known is None:
                files.append(FileNote(name, "skipped", "beside_train"))
                continue
            part, places = known, places[1:]
        label = places[0] if len(places) > 1 else None
        empty.discard("/".join(name.split("/")[: 2 if split else 1]))
        entries.append(Entry(name, root / name, None if options.label == "none" else label, part))
        state.append(f"{name}\n{size}\n{mtime}")
    if not entries:
        others = ", ".join(f".{end} {count}" for end, count in walk.others.most_common(5)) or "-"
        raise DataError("data.no_image_files", path=path, others=others)
    said: Notes = list(notes)
    if options.label != "none":
        said += _label_notes(entries, empty, split)
    if walk.others:
        others = ", ".join(f".{end} ({count})" for end, count in walk.others.most_common(5))
        said.append(note("data.note_other_files", count=walk.others.total(), endings=others))
    return Source(
        name=path.name or root.name,
        kind="folder",
        place=str(root),
        state=cache.digest(*state, *(f"{file.name}\n{file.reason}" for file in files)),
        entries=lambda: entries,
        files=tuple(sorted(files, key=lambda file: file.name)),
        notes=tuple(said),
        facts={"other_files": dict(walk.others), "empty_folders": [printable(name) for name in sorted(empty)]},
    )


def _label_notes(entries: list[Entry], empty: set[str], split: bool) -> Notes:
    notes: Notes = []
    if split:
        counts = Counter(entry.part for entry in entries)
        notes.append(note("data.note_part_folders", parts=", ".join(f"{k} {v}" for k, v in counts.items())))
    if empty:
        shown = ", ".join(printable(name) for name in sorted(empty)[:10]) + (", ..." if len(empty) > 10 else "")
        notes.append(note("data.note_empty_folders", count=len(empty), names=shown))
    labels = {str(entry.label) for entry in entries if entry.label is not None}
    folded = Counter(label.casefold() for label in labels)
    twins = sorted(label for label in labels if folded[label.casefold()] > 1)
    if twins:
        notes.append(note("data.note_case", names=", ".join(printable(label) for label in twins[:10])))
    return notes


class _Walk:
    """What lies below a root.

    Attributes:
        found: image file -> (size, mtime in ns), named relative to the root with slashes.
        folders: folders that were entered.
        files: what is not used, and why.
        others: endings of files that are no images, and how many.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.found: dict[str, tuple[int, int]] = {}
        self.folders: list[str] = []
        self.files: list[FileNote] = []
        self.others: Counter[str] = Counter()

    def folder(self, path: Path, below: str, depth: int) -> None:
        if depth > DEEPEST:
            self._list(below, "bad", "deep")
            return
        try:
            with os.scandir(path) as scan:
                items = sorted(scan, key=lambda item: item.name)
        except OSError:
            self._list(below, "bad", "permission")
            return
        for item in items:
            name = f"{below}/{item.name}" if below else item.name
            try:
                self._item(item, name, depth)
            except OSError:
                self._list(name, "bad", "permission")

    def _item(self, item: os.DirEntry[str], name: str, depth: int) -> None:
        ending = item.name.rpartition(".")[2].lower() if "." in item.name else ""
        image = ending in SUFFIXES
        if item.name.startswith(".") or item.name == "__MACOSX":
            self._list(name, "skipped", "hidden")
        elif item.is_symlink():
            self._link(item, name, image)
        elif item.is_dir(follow_symlinks=False):
            if image:
                self._list(name, "bad", "directory")
            else:
                self.folders.append(name)
                self.folder(Path(item.path), name, depth + 1)
        elif not item.is_file(follow_symlinks=False):
            self._list(name, "bad" if image else "skipped", "special")
        elif image:
            self._file(name, item.stat(follow_symlinks=False), item.path)
        elif ending in FOREIGN:
            self._list(name, "bad", "format", format=ending.upper())
        else:
            self.others[ending if ending.isalnum() and len(ending) <= 10 else "?"] += 1

    def _file(self, name: str, facts: os.stat_result, path: str) -> None:
        if not os.access(path, os.R_OK):
            self._list(name, "bad", "permission")
        else:
            self.found[name] = (facts.st_size, facts.st_mtime_ns)

    def _link(self, item: os.DirEntry[str], name: str, image: bool) -> None:
        try:
            target = Path(item.path).resolve(strict=True)
            facts = target.stat()
        except (OSError, RuntimeError):
            self._list(name, "bad" if image else "skipped", "dangling")
            return
        if not target.is_relative_to(self.root):
            self._list(name, "bad" if image else "skipped", "outside")
        elif stat.S_ISDIR(facts.st_mode):
            self._list(name, "skipped", "folder_link")
        elif not stat.S_ISREG(facts.st_mode):
            self._list(name, "bad" if image else "skipped", "special")
        elif image:
            self._file(name, facts, item.path)
        else:
            self.others["?"] += 1

    def _list(self, name: str, verdict: str, reason: str, **fields: str) -> None:
        self.files.append(FileNote(name, "bad" if verdict == "bad" else "skipped", reason, fields))
