"""The cache of decoded data: arrays in the user's cache folder, named by what they were made from.

An entry is written beside its place and renamed, so it is there as a whole or not at all; its manifest carries sizes
and check sums, and an entry that does not match them is made again. Deleting the folder is always safe.
The place: $QUINTET_CACHE, else $XDG_CACHE_HOME/quintet, else ~/.cache/quintet.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SCHEMA = 3
META = "meta.json"
FILES = "files"
"""Array of an entry: the files that it was made from, see `file_digests`."""
HELD = "held"
"""File of an entry: the folders of runs that were begun with it, one a line."""
BLOCKS, BLOCK = 64, 1 << 16
ORPHAN_S = 24 * 3600.0

Array = NDArray[Any]


def cache_root() -> Path | None:
    """The cache folder, which may not exist yet; None where there is no home."""
    named = os.environ.get("QUINTET_CACHE")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    if base:
        return Path(base) / "quintet"
    try:
        return Path.home() / ".cache" / "quintet"
    except RuntimeError:
        return None


def digest(*parts: str) -> str:
    """A short name for what an entry was made from."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:24]


def file_digests(states: Mapping[str, str]) -> NDArray[np.uint64]:
    """(N, 2) hashes of names and states of files, sorted: which came, went or changed can be counted from two."""
    pairs = sorted((_hash(name), _hash(state)) for name, state in states.items())
    return np.array(pairs, np.uint64).reshape(len(pairs), 2)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big")


class Draft:
    """An entry that is being written: arrays go into `folder`, `publish` puts it in its place.

    Args:
        source: digest of where the data come from and how they are read.
        state: digest of what is there now; an older state of the same source is replaced.
    Raises: OSError where the cache cannot be written.
    """

    def __init__(self, source: str, state: str) -> None:
        root = cache_root()
        if root is None:
            raise OSError("no home directory")
        self.place = root / f"{source}-{state}"
        self.folder = root / f".{source}-{state}.tmp-{os.getpid()}"
        root.mkdir(parents=True, exist_ok=True)
        for orphan in root.glob(".*.tmp-*"):
            if orphan == self.folder or time.time() - orphan.stat().st_mtime > ORPHAN_S:
                shutil.rmtree(orphan, ignore_errors=True)
        self.folder.mkdir()

    def array(self, name: str, shape: tuple[int, ...], dtype: Any) -> Array:
        """A new array on disk, to be filled.

        Raises: OSError before anything is written if the disk has no room for it.
        """
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if size > shutil.disk_usage(self.folder).free - (64 << 20):
            raise OSError(f"no room for {size / 2**30:.1f} GiB in {self.folder.parent}")
        return np.lib.format.open_memmap(self.folder / f"{name}.npy", mode="w+", dtype=dtype, shape=shape)

    def save(self, name: str, values: Array) -> None:
        np.save(self.folder / f"{name}.npy", values, allow_pickle=False)

    def drop(self, name: str) -> None:
        (self.folder / f"{name}.npy").unlink(missing_ok=True)

    def publish(self, meta: Mapping[str, Any]) -> None:
        """Write the manifest, sync, and rename; entries of older states of this source go, unless a run holds them."""
        files = {}
        for path in sorted(self.folder.glob("*.npy")):
            with path.open("rb+") as stream:
                os.fsync(stream.fileno())
            files[path.name] = {"size": path.stat().st_size, "check": _check(path)}
        text = json.dumps({"schema": SCHEMA, "files": files, "meta": meta}, allow_nan=False)
        with (self.folder / META).open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        source, _, state = self.place.name.partition("-")
        if find(source, state) is None:
            shutil.rmtree(self.place, ignore_errors=True)
        try:
            os.replace(self.folder, self.place)
        except OSError:
            if find(source, state) is None:
                raise
            self.discard()  # another process has made the same, which others may be reading by now
        for old in self.place.parent.glob(f"{source}-*"):
            if old != self.place and not _is_held(old):
                shutil.rmtree(old, ignore_errors=True)

    def discard(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


class Entry:
    """A verified entry."""

    def __init__(self, place: Path, meta: Mapping[str, Any]) -> None:
        self.place, self.meta = place, meta

    @property
    def source(self) -> str:
        return self.place.name.partition("-")[0]

    def files(self) -> NDArray[np.uint64] | None:
        """What `file_digests` made of the files, where the source lists any."""
        return self.array(FILES, False) if (self.place / f"{FILES}.npy").exists() else None

    def hold(self, folder: Path) -> None:
        """Keep this entry for as long as a run's folder exists.

        Raises: OSError where the cache cannot be written.
        """
        path = self.place / HELD
        known = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines() if path.exists() else []
        line = str(folder.resolve())
        if line not in known and "\n" not in line:
            with path.open("a", encoding="utf-8", errors="surrogateescape") as stream:
                stream.write(f"{line}\n")

    def array(self, name: str, mapped: bool) -> Array:
        """An array in memory, or mapped copy-on-write: it can be handed to torch, and the file never changes."""
        found: Array = np.load(self.place / f"{name}.npy", mmap_mode="c" if mapped else None, allow_pickle=False)
        return found


def find(source: str, state: str) -> Entry | None:
    """The entry, if it is there and undamaged (sizes, and check sums of 64 blocks spread over each file)."""
    root = cache_root()
    if root is None:
        return None
    place = root / f"{source}-{state}"
    try:
        held = json.loads((place / META).read_text(encoding="utf-8"))
        if held["schema"] != SCHEMA:
            return None
        for name, expected in held["files"].items():
            path = place / name
            if path.stat().st_size != expected["size"] or _check(path) != expected["check"]:
                return None
        return Entry(place, held["meta"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def find_all(source: str) -> list[Entry]:
    """All entries of a source, of whatever state."""
    root = cache_root()
    places = [] if root is None else sorted(root.glob(f"{source}-*"))
    found = (find(source, place.name.partition("-")[2]) for place in places)
    return [entry for entry in found if entry is not None]


def _is_held(place: Path) -> bool:
    try:
        lines = (place / HELD).read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return False
    return any(Path(line).is_dir() for line in lines)


def _check(path: Path) -> int:
    """CRC-32 of the file's first and last block and of blocks spread between."""
    size, crc = path.stat().st_size, 0
    with path.open("rb") as stream:
        for number in range(BLOCKS):
            stream.seek(max(0, size - BLOCK) * number // (BLOCKS - 1))
            crc = zlib.crc32(stream.read(BLOCK), crc)
    return crc
