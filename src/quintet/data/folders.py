"""Folders of images: what lies in them. Labels and splits are `layout`'s.

Links are followed to files inside the root only, and never to folders. What is no image by its ending is left alone;
everything else that is not used is listed with its reason.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections import Counter
from pathlib import Path

from quintet.core.errors import DataError
from quintet.data import cache
from quintet.data.arrays import Notes
from quintet.data.assemble import SUFFIXES, Entry, FileNote, Source, printable
from quintet.data.dataset import note
from quintet.data.layout import MOST_TABLE, LabelFile, is_label_file, lay_out
from quintet.data.options import DataOptions

FOREIGN = (
    "svg", "svgz", "eps", "ps", "pdf", "heic", "heif", "avif", "ico", "psd", "tga", "ppm", "pgm", "pbm", "pnm", "jp2",
    "j2k", "jxl", "exr", "hdr", "dcm", "raw", "cr2", "nef", "dng", "xcf",
)  # fmt: skip
"""Endings of pictures in formats that are not read."""
DEEPEST = 64


def is_image_folder(path: Path) -> bool:
    """Whether a folder is to be read as images: it holds no Parquet file at its top."""
    return not any(name.lower().endswith(".parquet") for name in os.listdir(path))


def find_images(path: Path, options: DataOptions) -> Source:
    """The images of a folder.

    Raises: DataError if the folder or a label file cannot be read, or there are no image files; UsageError for a column
        of labels where there is no label file.
    """
    try:
        root = path.resolve(strict=True)
        with os.scandir(root):
            pass
    except OSError as error:
        raise DataError("data.unreadable", path=path, why=error.strerror or error) from error
    walk = _Walk(root)
    walk.folder(root, "", 0)
    if not walk.found:
        raise _no_images(path, walk)
    tables = _label_files(root, walk, options)
    layout = lay_out(walk.found, walk.folders, tables, options)
    if not layout.rows:
        raise _no_images(path, walk)
    entries = [Entry(name, root / name, label, part) for name, (part, label) in layout.rows.items()]
    files = [*walk.files, *layout.files]
    states = {name: f"{walk.found[name][0]}\n{walk.found[name][1]}" for name in layout.rows}
    said: Notes = list(layout.notes)
    if walk.others:
        others = ", ".join(f".{end} ({count})" for end, count in walk.others.most_common(5))
        said.append(note("data.note_other_files", count=walk.others.total(), endings=others))
    return Source(
        name=path.name or root.name,
        kind="folder",
        place=str(root),
        state=cache.digest(
            *(f"{name}\n{state}" for name, state in states.items()),
            *(f"{file.name}\n{file.reason}" for file in files),
            *(f"{table.name}\n{hashlib.sha256(table.content).hexdigest()}" for table in tables),
        ),
        entries=lambda: entries,
        files=tuple(sorted(files, key=lambda file: file.name)),
        notes=tuple(said),
        facts={"other_files": dict(walk.others), "empty_folders": [printable(name) for name in layout.empty]},
        states=states,
    )


def _no_images(path: Path, walk: _Walk) -> DataError:
    others = ", ".join(f".{end} {count}" for end, count in walk.others.most_common(5)) or "-"
    return DataError("data.no_image_files", path=path, others=others)


def _label_files(root: Path, walk: _Walk, options: DataOptions) -> list[LabelFile]:
    """The label file that was asked for, or those that lie there.

    Raises: DataError for one that cannot be read.
    """
    if "none" in (options.label_file, options.label):
        return []
    if options.label_file is None:
        return [
            LabelFile(name, name.rpartition("/")[0], read_label_file(root / name, name)) for name in sorted(walk.tables)
        ]
    path = Path(options.label_file)
    if not path.is_file():
        path = root / options.label_file
    inside = path.resolve()
    folder = inside.parent.relative_to(root).as_posix() if inside.is_relative_to(root) else "."
    return [LabelFile(str(path), "" if folder == "." else folder, read_label_file(path, str(path)))]


def read_label_file(path: Path, name: str) -> bytes:
    """A label file's bytes.

    Raises: DataError if it is not there, too large, or cannot be read.
    """
    try:
        if path.stat().st_size > MOST_TABLE:
            raise DataError("data.label_file_broken", path=name, why=f"it is larger than {MOST_TABLE >> 20} MiB")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DataError("data.missing", path=path, cwd=Path.cwd()) from error
    except OSError as error:
        raise DataError("data.unreadable", path=path, why=error.strerror or error) from error


class _Walk:
    """What lies below a root.

    Attributes:
        found: image file -> (size, mtime in ns), named relative to the root with slashes.
        folders: folders that were entered.
        files: what is not used, and why.
        tables: files named like label files.
        others: endings of other files that are no images, and how many.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        # a snapshot in the hub's cache is a folder of links to blobs beside it
        self.blobs = root.parents[1] / "blobs" if root.parent.name == "snapshots" else root
        self.found: dict[str, tuple[int, int]] = {}
        self.folders: list[str] = []
        self.files: list[FileNote] = []
        self.tables: list[str] = []
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
        elif is_label_file(name):
            self.tables.append(name)
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
        if not (target.is_relative_to(self.root) or target.is_relative_to(self.blobs)):
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
