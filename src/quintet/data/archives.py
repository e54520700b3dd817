"""Archives of images: `.zip`, `.tar`, `.tar.gz`, `.tgz`, `.tar.bz2`, `.tar.xz`. Nothing is unpacked to disk.

What it is: the images of an archive as a source, with the labels and splits of a folder (`layout`), label files
included; one folder around everything is not counted. What it is not: a way to run anything that an archive holds.

Rules. Members with absolute names or `..`, links and other special members, encrypted ones and those above 256 MiB are
left out and listed; of several members of one name the last counts, as if they were unpacked. A member's own size is
not believed: no more than the limit is ever read. An archive of a million members, or whose members are together more
than 200 times as large as itself (and 1 GiB), is refused before it is decompressed that far.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from quintet.core.errors import DataError
from quintet.data import cache
from quintet.data.assemble import SUFFIXES, Entry, FileNote, Source
from quintet.data.dataset import note
from quintet.data.folders import read_label_file
from quintet.data.images import MOST_BYTES
from quintet.data.layout import LabelFile, is_label_file, lay_out
from quintet.data.options import DataOptions

ZIP = ".zip"
MOST_MEMBERS = 1_000_000
MOST_RATIO, RATIO_FROM = 200, 1 << 30
MOST_READ = MOST_BYTES + (1 << 20)
"""Bytes that are read in one piece."""
PACKED: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
BROKEN = (
    OSError, ValueError, EOFError, RuntimeError, NotImplementedError, OverflowError, zipfile.BadZipFile,
    tarfile.TarError, zlib.error, lzma.LZMAError,
)  # fmt: skip
"""What a damaged archive raises; a chain of headers without end is a RecursionError."""


@dataclass(frozen=True)
class Member:
    """A file in an archive.

    Attributes:
        number: its place in the archive.
        name: as the archive has it.
        size: announced, in bytes.
        refused: why it is not used, if so.
    """

    number: int
    name: str
    size: int
    refused: str = ""


Opened = Callable[[], IO[bytes] | None]


def find_archive_images(path: Path, options: DataOptions) -> Source:
    """The images of an archive.

    Raises: DataError if the file is no archive that can be read, or holds no images.
    """
    with _reading(path):
        facts = path.stat()
        members = [member for member, _ in _walk(path)]
    shown = [member for member in members if not _hidden(member.name)]
    images = [member for member in shown if _ending(member.name) in SUFFIXES]
    fine = [member for member in images if not member.refused]
    if not fine:
        raise _no_images(path, members)
    around = _around([member.name for member in [*fine, *(m for m in shown if is_label_file(m.name))]])
    last = {_place(member.name, around): member for member in fine}
    limit = {"mib": MOST_BYTES >> 20}
    files = [FileNote(m.name, "bad", m.refused, limit if m.refused == "large" else {}) for m in images if m.refused]
    files += [
        FileNote(m.name, "skipped", "member_twice") for m in fine if last[_place(m.name, around)].number != m.number
    ]
    tables = _label_files(path, shown, around, options)
    layout = lay_out(last, _folders(last), tables, options)
    if not layout.rows:
        raise _no_images(path, members)
    rows = {last[name].number: (name, *row) for name, row in layout.rows.items()}

    def entries() -> Iterator[Entry]:
        with _reading(path):
            for member, opened in _walk(path):
                if member.number in rows:
                    name, part, label = rows[member.number]
                    yield Entry(name, _read(opened), label, part)

    return Source(
        name=path.name.split(".")[0],
        kind="archive",
        place=str(path.resolve()),
        state=cache.digest(
            str(facts.st_size), str(facts.st_mtime_ns), *(hashlib.sha256(table.content).hexdigest() for table in tables)
        ),
        entries=entries,
        files=tuple(sorted([*files, *layout.files], key=lambda file: file.name)),
        notes=(note("data.note_archive", count=len(layout.rows), members=len(members)), *layout.notes),
        states={name: str(last[name].size) for name in layout.rows},
    )


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Whatever a damaged archive raises becomes a DataError."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError("data.missing", path=path, cwd=Path.cwd()) from error
    except BROKEN as error:
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError("data.archive_broken", path=path, why=why) from error


def _walk(path: Path) -> Iterator[tuple[Member, Opened]]:
    """Every file of an archive, in its order, and what opens it until the next; folders are left alone.

    Raises: ValueError for too many members, or for more than 200 times the archive's size; others of BROKEN.
    """
    most = max(RATIO_FROM, MOST_RATIO * path.stat().st_size)
    total = 0
    for member, opened in _zip(path) if path.name.lower().endswith(ZIP) else _tar(path):
        total += member.size
        if member.number >= MOST_MEMBERS:
            raise ValueError(f"more than {MOST_MEMBERS:,} members")
        if member.size < 0 or total > most:
            raise ValueError(f"its members are more than {MOST_RATIO} times as large as itself")
        yield replace(member, refused=member.refused or _unsafe(member)), opened


def _zip(path: Path) -> Iterator[tuple[Member, Opened]]:
    with zipfile.ZipFile(path) as archive:
        for number, info in enumerate(archive.infolist()):
            if not info.is_dir():
                link = info.external_attr >> 28 == 0xA  # a symbolic link's mode
                refused = "encrypted" if info.flag_bits & 1 else "special" if link else ""
                yield Member(number, info.filename, info.file_size, refused), partial(archive.open, info)


def _tar(path: Path) -> Iterator[tuple[Member, Opened]]:
    with _stream(path) as stream, tarfile.open(fileobj=cast(IO[bytes], stream), mode="r:") as archive:
        number = 0
        while (member := archive.next()) is not None:
            cast(Any, archive).members.clear()  # else all are kept
            if not member.isdir():
                refused = "" if member.isreg() else "special"
                yield Member(number, member.name, member.size, refused), partial(archive.extractfile, member)
            number += 1


class _Stream:
    """What tarfile reads from: never a piece that is larger than any member may be, whatever a header asks for."""

    def __init__(self, file: IO[bytes]) -> None:
        self.seek, self.tell, self.file = file.seek, file.tell, file

    def read(self, count: int = -1) -> bytes:
        if not 0 <= count <= MOST_READ:
            raise ValueError(f"a header asks for {count:,} bytes")
        return self.file.read(count)


@contextmanager
def _stream(path: Path) -> Iterator[_Stream]:
    """The content of a tar file, decompressed if its first bytes say so."""
    with path.open("rb") as raw:
        start = raw.read(8)
        raw.seek(0)
        opener = next((opener for magic, opener in PACKED.items() if start.startswith(magic)), None)
        if opener is None:
            yield _Stream(raw)
            return
        with opener(raw, "rb") as file:
            yield _Stream(file)


def _read(opened: Opened) -> bytes:
    """A member's content, nothing where it is damaged or larger than it says and allowed: decoding then refuses it."""
    try:
        stream = opened()
        if stream is None:
            return b""
        with stream:
            content = stream.read(MOST_BYTES + 1)
    except BROKEN:
        return b""
    return content if len(content) <= MOST_BYTES else b""


def _label_files(path: Path, members: list[Member], around: int, options: DataOptions) -> list[LabelFile]:
    """Label files in the archive, or the one that was asked for, there or beside it."""
    if "none" in (options.label_file, options.label):
        return []
    named = {_place(member.name, around): member for member in members if not member.refused}
    if options.label_file is None:
        wanted = [name for name in named if is_label_file(name)]
    elif options.label_file in named:
        wanted = [options.label_file]
    else:
        return [LabelFile(options.label_file, "", read_label_file(Path(options.label_file), options.label_file))]
    if not wanted:
        return []
    numbers = {named[name].number: name for name in wanted}
    with _reading(path):
        found = {numbers[member.number]: _read(opened) for member, opened in _walk(path) if member.number in numbers}
    return [LabelFile(name, name.rpartition("/")[0], found[name]) for name in sorted(found)]


def _no_images(path: Path, members: list[Member]) -> DataError:
    others = ", ".join(sorted({f".{_ending(member.name)}" for member in members})[:5]) or "-"
    return DataError("data.no_image_files", path=path, others=others)


def _unsafe(member: Member) -> str:
    parts = _parts(member.name)
    if not parts or member.name.startswith(("/", "\\")) or ".." in parts or ":" in parts[0]:
        return "member_place"
    return "large" if member.size > MOST_BYTES else ""


def _parts(name: str) -> tuple[str, ...]:
    return PurePosixPath(name.replace("\\", "/")).parts


def _place(name: str, around: int) -> str:
    return "/".join(_parts(name)[around:])


def _folders(names: dict[str, Member]) -> set[str]:
    return {str(folder) for name in names for folder in PurePosixPath(name).parents if str(folder) != "."}


def _around(names: list[str]) -> int:
    """1 if one folder lies around everything, else 0."""
    tops = {_parts(name)[0] for name in names}
    return int(len(tops) == 1 and all(len(_parts(name)) > 1 for name in names))


def _ending(name: str) -> str:
    last = PurePosixPath(name).name
    return last.rpartition(".")[2].lower() if "." in last else ""


def _hidden(name: str) -> bool:
    return any((part.startswith(".") and part != "..") or part == "__MACOSX" for part in _parts(name))
