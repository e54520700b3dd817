"""From many image files to one data set: scan, choose size and channels, decode once, cut, remember.

What it is: the same road for folders and Parquet. Each file is looked at first (small ones are decoded in the same
pass); then the common size is known and the others are decoded into one array of integers, in memory or, beyond a size,
in a file of the cache. What cannot be used is listed with its reason and left out.
What it is not: a reader of any one format (`images`) or place (`folders`, `parquet`).

The common size. Images of one size of at most 128 pixels a side stay as they are. Otherwise the short side is the
median short side, at least 8 and at most 64, in multiples of 8; the frame is a square, or has the aspect of the images
if they all have the same one, of at most 2:1.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from math import prod
from pathlib import Path
from statistics import median
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from quintet.core.errors import DataError
from quintet.core.spec import DataSpec
from quintet.data import cache
from quintet.data.arrays import Notes, are_classes, infer_grid, read_classes
from quintet.data.dataset import ROWS, Dataset, Split, fingerprint, note
from quintet.data.images import Depth, Header, Look, Pixels, Unusable, decode, fit, look, settle
from quintet.data.near import Near, find_near
from quintet.data.options import FILES_OPTIONS, IMAGE_OPTIONS, DataOptions
from quintet.data.splits import FEWEST, Parts, by_hash, cut, default_sizes, hashes

Array = NDArray[Any]
Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = ("train", "validation", "test")
SPLITS = ("train", "validation", "judge", "test")

SMALL = 128 * 128
"""Pixels up to which an image is decoded when it is first looked at."""
KEPT_SIDE, AUTO_SIDE, STEP = 128, 64, 8
WIDEST = 2.0
BAD = 0.1
"""Share of files that cannot be used above which a source is refused."""
FEW_LEVELS, SURE = 64, 10_000
"""Fewer than 256 levels are believed up to so many, seen in so many values."""
TASK, HEAVY = 32, 1 << 24
"""Images that a thread is given at once: so many, or fewer where their files have so many bytes."""
SHOWN_SIZES = 100
SUFFIXES = {
    "png": "PNG", "jpg": "JPEG", "jpeg": "JPEG", "jpe": "JPEG", "jfif": "JPEG", "webp": "WEBP", "bmp": "BMP",
    "dib": "BMP", "tif": "TIFF", "tiff": "TIFF", "gif": "GIF",
}  # fmt: skip
T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True)
class Entry:
    """One image of a source.

    Attributes:
        name: as the user knows it.
        content: the file's bytes or its path.
        label: a class's name or number, None where there is none.
        part: the source's own split.
    """

    name: str
    content: bytes | Path
    label: str | int | None
    part: Part = "train"


@dataclass(frozen=True)
class FileNote:
    """A file that was not used ("bad"), was not meant to be ("skipped"), or was used in spite of something ("odd")."""

    name: str
    verdict: Literal["bad", "skipped", "odd"]
    reason: str
    fields: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        text = note(f"bad.{self.reason}", **self.fields)
        return {"file": printable(self.name), "verdict": self.verdict, "reason": self.reason, **text}


@dataclass(frozen=True)
class Source:
    """Where images come from.

    Attributes:
        name: for display.
        kind: "folder", "archive" or "parquet".
        place: absolute path, for messages and the cache.
        state: changes whenever a file does.
        entries: the images, always in the same order.
        titles: a label as text -> the class's name.
        files: files that are no entries, and why.
        notes: what was inferred.
        facts: more for the report.
        states: a file's name -> what changes when the file does, where there is such a list.
    """

    name: str
    kind: str
    place: str
    state: str
    entries: Callable[[], Iterable[Entry]]
    titles: Mapping[str, str] = field(default_factory=dict)
    files: tuple[FileNote, ...] = ()
    notes: tuple[Mapping[str, str], ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    states: Mapping[str, str] = field(default_factory=dict)


class SourceError(DataError):
    """Data that cannot be used, with what a scan found of it."""

    def __init__(self, key: str, found: Mapping[str, Any], **fields: Any) -> None:
        self.found = found
        super().__init__(key, **fields)


def printable(name: str) -> str:
    """A file's name for people and JSON: undecodable bytes and control characters as escapes."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def assemble(source: Source, options: DataOptions) -> Dataset:
    """The data set of a source's images.

    Raises: DataError if there is none, if more than a tenth cannot be used, or if they do not fit into memory.
    """
    options.only(IMAGE_OPTIONS if source.kind == "parquet" else FILES_OPTIONS, source.kind)
    kept = {k: v for k, v in asdict(options).items() if k not in ("allow_bad", "memory_gib", "cache")}
    keys = cache.digest(str(cache.SCHEMA), source.kind, source.place, repr(kept)), source.state
    entry = cache.find(*keys) if options.cache else None
    if entry is not None:
        dataset = stored(entry, limit(options))
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, about files that are looked at here
            dataset = _Assembly(source, options, keys).run()
    _check_bad(dataset.found, source, options)
    return dataset


@dataclass
class _Assembly:
    """The state of one assembly."""

    source: Source
    options: DataOptions
    keys: tuple[str, str]
    notes: Notes = field(default_factory=list)
    files: list[FileNote] = field(default_factory=list)
    draft: cache.Draft | None = None
    depth: Depth | None = None
    spare: int = 0

    def run(self) -> Dataset:
        self.notes.extend(self.source.notes)
        self.files.extend(self.source.files)
        try:
            return self._run()
        finally:
            if self.draft is not None:
                self.draft.discard()

    def _run(self) -> Dataset:
        options = self.options
        looks = self._scan()
        headers = [seen.header for seen in looks if seen is not None]
        _check_bad(self._found(headers), self.source, options)
        if not headers:
            raise SourceError("data.no_images", self._found(headers), path=self.source.place)
        frame, policy = choose_frame(headers, options)
        self.notes.append(policy)
        channels = options.channels or (1 if all(h.grey for h in headers) else 3)
        self.depth = settle(headers)
        n = sum(h.frames for h in headers)
        shape = (n, channels, *frame)
        dtype = np.dtype(np.uint8 if self.depth is None else np.uint16)
        mapped = prod(shape) * dtype.itemsize > limit(options)
        raw = self._allocate(shape, dtype, mapped)
        mapped = self.draft is not None and isinstance(raw, np.memmap)
        labels, parts, coloured = self._decode(looks, raw, frame)
        n = len(labels)
        if not n:
            raise SourceError("data.no_images", self._found(headers), path=self.source.place)
        used = 1 if channels == 3 and options.channels is None and not coloured else channels
        if used < channels:
            self.notes.append(note("data.note_grey_rgb"))
        levels, table, origin, step = self._levels(raw[:n])
        everywhere = table is None and used == channels

        def read(rows: Any) -> Array:
            x = raw[rows] if everywhere else raw[rows][:, :used]
            found: Array = x if table is None else table[x]
            return found

        classes, names = self._classes(labels)
        digests = [d for start in range(0, n, ROWS) for d in hashes(read(slice(start, min(start + ROWS, n))))]
        near = self._near(read, digests, levels - 1)
        rows = self._divide(digests, classes, near, np.array([PARTS.index(part) for part in parts]))
        small = np.uint8 if levels <= 256 else np.uint16
        splits = []
        for name in SPLITS:
            x: Array
            if mapped:
                assert self.draft is not None
                x = self.draft.array(name, (len(rows[name]), used, *frame), small)
                for start in range(0, len(x), ROWS):
                    x[start : start + ROWS] = read(rows[name][start : start + ROWS])
            else:
                x = np.ascontiguousarray(read(rows[name]), dtype=small)
            splits.append(Split(x, {key: y[rows[name]] for key, y in classes.items()}))
        spec = DataSpec("image", (used, *frame), levels=levels, conditions={k: len(v) for k, v in names.items()})
        found = self._found(headers) | {"policy": dict(policy), **self.duplicates}
        dataset = Dataset(
            name=self.source.name, spec=spec, train=splits[0], validation=splits[1], judge=splits[2], test=splits[3],
            names=names, origin=origin, step=step, notes=tuple(self.notes), found=found,
            fingerprint=fingerprint(splits),
        )  # fmt: skip
        return self._keep(dataset, mapped)

    # Steps

    def _scan(self) -> list[Look | None]:
        """A look at every entry; None for those that are not used. Pixels are kept while they fit the limit."""
        looks: list[Look | None] = []
        labels: dict[Part, list[str | int | None]] = {part: [] for part in PARTS}
        spare: list[int] = []
        kept, most = 0, limit(self.options)

        def work(entry: Entry) -> Look | FileNote:
            try:
                return look(entry.content, self.options, SMALL)
            except Unusable as error:
                return FileNote(entry.name, "bad", error.reason, error.fields)

        for entry, seen in _threaded(work, self.source.entries(), lambda entry: entry):
            if isinstance(seen, FileNote):
                self.files.append(seen)
                looks.append(None)
                continue
            expected = SUFFIXES.get(Path(entry.name).suffix[1:].lower())
            if expected is not None and expected != seen.header.format and self.source.kind == "folder":
                fields = {"format": seen.header.format}
                self.files.append(FileNote(entry.name, "odd", "mislabelled", fields))
            kept += 0 if seen.pixels is None else seen.pixels.nbytes
            labels[entry.part].append(entry.label)
            if entry.label is None and entry.part != "train":
                spare.append(len(looks))
            looks.append(seen if kept <= most else Look(seen.header, None))
        train = labels["train"]
        if spare and None not in train and are_classes(len(set(train)), len(train)):
            self._leave_out(looks, spare, labels)
        return looks

    def _leave_out(
        self, looks: list[Look | None], spare: list[int], labels: Mapping[Part, list[str | int | None]]
    ) -> None:
        """Leave the held-out images without a label out: models are trained with labels, and judged by them."""
        for i in spare:
            looks[i] = None
        self.spare = len(spare)
        for part in ("test", "validation"):
            total, missing = len(labels[part]), labels[part].count(None)
            if missing:
                key = f"data.note_{part}_{'all' if missing == total else 'some'}_unlabelled"
                self.notes.append(note(key, count=missing, total=total))

    def _allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any], mapped: bool) -> Array:
        size = prod(shape) * dtype.itemsize
        if self.options.cache:
            try:
                self.draft = cache.Draft(*self.keys)
                if mapped:
                    return self.draft.array("raw", shape, dtype)
            except OSError as error:
                self._no_cache(error)
        memory = _memory()
        if memory is not None and size > memory // 3:
            raise DataError("data.images_too_large", path=self.source.place, gib=size / 2**30, memory=memory / 2**30)
        return np.empty(shape, dtype)

    def _decode(
        self, looks: list[Look | None], raw: Array, frame: tuple[int, int]
    ) -> tuple[list[str | int | None], list[Part], bool]:
        """Fill `raw`; labels and parts of its rows, and whether any picture has colour."""
        channels = raw.shape[1]
        labels: list[str | int | None] = []
        parts: list[Part] = []
        coloured, row = False, 0

        def work(pair: tuple[Entry, Look]) -> list[Pixels] | FileNote:
            entry, seen = pair
            try:
                if seen.pixels is not None:
                    return [fit(seen.pixels, frame, self.options)]
                return decode(entry.content, self.options, frame, self.depth or Depth())
            except Unusable as error:
                return FileNote(entry.name, "bad", error.reason, error.fields)

        pairs = ((entry, seen) for entry, seen in zip(self.source.entries(), looks, strict=False) if seen is not None)
        for (entry, _), pictures in _threaded(work, pairs, lambda pair: pair[0]):
            if isinstance(pictures, FileNote):
                self.files.append(pictures)
                continue
            for pixels in pictures[: len(raw) - row]:
                if self.depth is not None:
                    pixels = deepened(pixels, self.depth)  # noqa: PLW2901
                coloured = coloured or (pixels.shape[2] >= 3 and _coloured(pixels))
                raw[row] = to_channels(pixels, channels).transpose(2, 0, 1)
                row += 1
                labels.append(entry.label)
                parts.append(entry.part)
        return labels, parts, coloured

    def _levels(self, raw: Array) -> tuple[int, Array | None, float, float]:
        """(levels, table from raw value to level or None where they are the same, origin, step)."""
        bins = 256 if self.depth is None else 65_536
        counts = np.zeros(bins, np.int64)
        for start in range(0, len(raw), ROWS):
            counts += np.bincount(raw[start : start + ROWS].ravel(), minlength=bins)
        distinct = np.flatnonzero(counts)
        if len(distinct) == 1 and len(raw) > 1:
            raise DataError("data.constant", where=self.source.place, value=f"{distinct[0]:g}")
        table = np.arange(bins)
        top = 255
        if self.depth is not None:
            top = self.depth.white
            table = np.minimum(table, top)  # what is opaque is 65,535
            key = "data.note_deep" if self.options.levels == 256 else "data.note_deep_kept"
            self.notes.append(note(key, white=top, levels=self.options.levels))
            if self.options.levels == 256:
                table = np.rint(table * (255 / top)).astype(np.int64)
                top = 255
        values = np.unique(table[distinct])
        grid = infer_grid(values.astype(np.float64), photo=top == 255) if len(values) > 1 else None
        if grid is not None and grid.levels <= FEW_LEVELS and raw.size >= SURE:
            self.notes.append(
                note("data.note_levels", levels=grid.levels, low=f"{grid.low:g}",
                     high=f"{grid.low + grid.step * (grid.levels - 1):g}", distinct=len(values))
            )  # fmt: skip
            levels, origin, step = grid.levels, grid.low, grid.step
            table = np.rint((table - origin) / step).clip(0, levels - 1)
        else:
            levels, origin, step = top + 1, 0.0, 1.0
        table = table.astype(np.uint8 if levels <= 256 else np.uint16)
        same = table.dtype == raw.dtype and bool((table == np.arange(bins)).all())
        return levels, None if same else table, origin, step

    def _classes(
        self, labels: list[str | int | None]
    ) -> tuple[dict[str, NDArray[np.int64]], dict[str, tuple[str, ...]]]:
        missing = sum(label is None for label in labels)
        if missing == len(labels):
            return {}, {}
        if missing:
            self.notes.append(note("data.note_unlabelled", count=missing, total=len(labels)))
            return {}, {}
        whole = all(isinstance(label, int) for label in labels)
        y = np.array(labels if whole else [printable(str(label)) for label in labels])
        codes, names = read_classes({"y": y}, self.notes, self.source.titles)
        return ({"label": codes["y"]}, {"label": names}) if names else ({}, {})

    def _near(self, read: Callable[[Any], Array], digests: list[bytes], white: int) -> Near | None:
        """Near duplicates, found among the first of each set of exact copies."""
        first: dict[bytes, int] = {}
        for row, digest in enumerate(digests):
            first.setdefault(digest, row)
        alone = np.array(sorted(first.values()), dtype=np.int64)
        self.duplicates: dict[str, Any] = {"copies": len(digests) - len(alone), "near": None}
        if not self.options.near:
            return None
        found = find_near(lambda rows: read(alone[rows]), len(alone), white)
        self.duplicates["near"] = found.examples
        if found.skipped:
            self.notes.append(note(f"data.note_near_{found.skipped}", count=found.examples, total=len(alone)))
            return None
        place = {digest: int(found.group[i]) for i, digest in enumerate(digests[row] for row in alone)}
        group = np.array([place[digest] for digest in digests], dtype=np.int64)
        return Near(group, found.examples)

    def _divide(
        self, digests: list[bytes], classes: Mapping[str, NDArray[np.int64]], near: Near | None, part: NDArray[np.int64]
    ) -> dict[str, NDArray[np.int64]]:
        """Rows of each part: the source's own test and validation splits stay; copies never cross."""
        n = len(digests)
        group = np.arange(n) if near is None else near.group
        keep = np.ones(n, bool)
        crossing = {"copies": 0, "near": 0}
        pairs: tuple[tuple[Part, tuple[Part, ...]], ...] = (
            ("validation", ("test",)),
            ("train", ("test", "validation")),
        )
        for later, earlier in pairs:
            held = np.isin(part, [PARTS.index(name) for name in earlier])
            if not held.any():
                continue
            seen, groups = {digests[i] for i in np.flatnonzero(held)}, set(group[held].tolist())
            for i in np.flatnonzero(part == PARTS.index(later)):
                copied = digests[i] in seen
                if copied or (near is not None and group[i] in groups):
                    keep[i] = False
                    crossing["copies" if copied else "near"] += 1
        official = {name: by_hash(digests, np.flatnonzero((part == i) & keep)) for i, name in enumerate(PARTS) if i}
        pool = np.flatnonzero((part == 0) & keep)
        if len(official["test"]):
            self.notes.append(note("data.note_official_test", count=len(official["test"])))
        if len(official["validation"]):
            self.notes.append(note("data.note_official_validation", count=len(official["validation"])))
        if crossing["copies"]:
            self.notes.append(note("data.note_test_copies", count=crossing["copies"]))
        if crossing["near"]:
            self.notes.append(note("data.note_test_near", count=crossing["near"]))
        self.duplicates["across"] = crossing
        if not len(pool):
            raise DataError("data.no_train", path=self.source.place)
        sizes = default_sizes(len(pool), official_test=bool(len(official["test"])))
        if len(official["validation"]):
            sizes = type(sizes)(validation=0, judge=sizes.judge, test=sizes.test)
        leads = None if near is None else near.group[pool]
        try:
            parts = cut([digests[i] for i in pool], {k: y[pool] for k, y in classes.items()}, sizes, leads)
        except DataError:
            nothing = np.empty(0, np.int64)
            parts = Parts(np.arange(len(pool)), nothing, nothing, nothing, copies=0)
            self.notes.append(note("data.note_few", count=len(pool), fewest=FEWEST))
        rows = {name: pool[getattr(parts, name)] for name in SPLITS}
        rows |= {name: held for name, held in official.items() if len(held)}
        if parts.copies:
            self.notes.append(note("data.note_copies", count=parts.copies))
        if near is not None and near.examples:
            self.notes.append(note("data.note_near", count=near.examples))
        return rows

    def _keep(self, dataset: Dataset, mapped: bool) -> Dataset:
        """Put the data set into the cache, and take it from there if it is mapped."""
        if self.draft is None:
            return dataset
        try:
            for name in SPLITS:
                part: Split = getattr(dataset, name)
                if not mapped:
                    self.draft.save(name, part.x)
                elif isinstance(part.x, np.memmap):
                    part.x.flush()
                for key, y in part.labels.items():
                    self.draft.save(f"{name}-{key}", y)
            if self.source.states:
                self.draft.save(cache.FILES, cache.file_digests(self.source.states))
            self.draft.drop("raw")
            self.draft.publish(_meta(dataset))
        except OSError as error:
            self._no_cache(error)
            if mapped:
                raise DataError("data.cache_failed", path=cache.cache_root(), why=error.strerror or error) from error
            return replace(dataset, notes=tuple(self.notes))
        if not mapped:
            return replace(dataset, source=self.keys[0])
        entry = cache.find(*self.keys)
        if entry is None:
            raise DataError("data.cache_failed", path=cache.cache_root(), why="?")
        return stored(entry, 0)

    def _no_cache(self, error: OSError) -> None:
        if self.draft is not None:
            self.draft.discard()
            self.draft = None
        self.notes.append(note("data.note_no_cache", path=cache.cache_root() or "~", why=error.strerror or error))

    def _found(self, headers: list[Header]) -> dict[str, Any]:
        """What the scan found, for the report."""
        sizes: Counter[str] = Counter()
        modes: Counter[str] = Counter()
        formats: Counter[str] = Counter()
        for h in headers:
            sizes[f"{h.height}x{h.width}"] += h.frames
            modes[h.mode] += h.frames
            formats[h.format] += h.frames
        verdicts = Counter(file.verdict for file in self.files)
        return {
            "source": self.source.kind,
            "files": len(headers) + self.spare + verdicts["bad"],
            "images": sum(h.frames for h in headers),
            "bad": verdicts["bad"],
            "skipped": verdicts["skipped"] + self.spare,
            "odd": verdicts["odd"],
            "sizes": dict(sizes.most_common(SHOWN_SIZES)),
            "sizes_in_all": len(sizes),
            "modes": dict(modes.most_common()),
            "formats": dict(formats.most_common()),
            "listed": [file.to_json() for file in self.files],
            **({} if self.depth is None else {"white": self.depth.white}),
            **self.source.facts,
        }


def choose_frame(headers: list[Header], options: DataOptions) -> tuple[tuple[int, int], Mapping[str, str]]:
    """The common (height, width), and the sentence that says why.

    Raises: DataError if sizes are to be kept and differ.
    """
    sizes = Counter((h.height, h.width) for h in headers)
    low, high = (f"{size[0]}x{size[1]}" for size in (min(sizes, key=prod), max(sizes, key=prod)))
    one = next(iter(sizes)) if len(sizes) == 1 else None
    frame = options.frame
    if options.size == "keep" and one is None:
        raise DataError("data.mixed_sizes", count=len(sizes), low=low, high=high)
    if frame is None and one is not None and (options.size == "keep" or max(one) <= KEPT_SIDE):
        frame = one
    if one is not None and frame == one:
        return one, note("data.note_one_size", height=one[0], width=one[1])
    key = "data.note_given_size"
    if frame is None:
        key = "data.note_median_size"
        short = int(median(min(size) for size in sizes.elements()))
        side = max(STEP, min(AUTO_SIDE, short // STEP * STEP))
        aspects = sorted(width / height for height, width in sizes)
        same = aspects[-1] <= 1.02 * aspects[0] and aspects[0] >= 1 / WIDEST and aspects[-1] <= WIDEST
        long = round(side * max(aspects[0], 1 / aspects[0]) / STEP) * STEP if same else side
        frame = (side, long) if aspects[0] >= 1 else (long, side)
    policy = note(f"data.policy_{options.policy}")
    text = note(key, count=len(sizes), low=low, high=high, height=frame[0], width=frame[1], most=AUTO_SIDE)
    return frame, {lang: text[lang] + ("" if lang == "zh" else " ") + policy[lang] for lang in text}


def deepened(pixels: Pixels, depth: Depth) -> Pixels:
    """Pixels of 8 bits in the units of deep ones: their white is white too."""
    if pixels.dtype == np.uint16:
        return pixels
    found: Pixels = np.rint(pixels * (depth.white / 255)).astype(np.uint16)
    return found


def to_channels(pixels: Array, channels: int) -> Array:
    """(H, W, 1, 3 or 4) pixels with 1, 3 or 4 channels; grey is Rec. 601 luma, added transparency is none."""
    has = pixels.shape[2]
    if has == channels:
        return pixels
    white = np.iinfo(pixels.dtype).max
    if channels == 1:
        weights = np.array([19_595, 38_470, 7_471], np.uint64)
        grey: Array = ((pixels[:, :, :3] @ weights + 32_768) >> np.uint64(16)).astype(pixels.dtype)[:, :, None]
        return grey
    colour = np.repeat(pixels, 3, axis=2) if has == 1 else pixels[:, :, :3]
    if channels == 3:
        return colour
    return np.concatenate([colour, np.full_like(colour[:, :, :1], white)], axis=2)


def _coloured(pixels: Pixels) -> bool:
    red = pixels[:, :, 0]
    return not (np.array_equal(red, pixels[:, :, 1]) and np.array_equal(red, pixels[:, :, 2]))


def _check_bad(found: Mapping[str, Any], source: Source, options: DataOptions) -> None:
    if options.allow_bad or not found["bad"] or found["bad"] <= BAD * found["files"]:
        return
    listed = [item for item in found["listed"] if item["verdict"] == "bad"][:3]
    first = "; ".join(f"{item['file']} ({item['reason']})" for item in listed)
    raise SourceError("data.many_bad", found, path=source.place, bad=found["bad"], total=found["files"], first=first)


def limit(options: DataOptions) -> int:
    """Bytes up to which an array is held in memory."""
    if options.memory_gib is not None:
        return int(options.memory_gib * 2**30)
    memory = _memory()
    return 2**31 if memory is None else min(2**31, memory // 4)


def _memory() -> int | None:
    """Bytes of this machine's memory."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _threaded(work: Callable[[T], U], items: Iterable[T], entry: Callable[[T], Entry]) -> Iterator[tuple[T, U]]:
    """(item, work(item)) in order, some tasks ahead, in threads: decoders release the interpreter."""
    threads = max(1, min(8, os.cpu_count() or 1))
    line = _tasks(items, entry)
    waiting: deque[tuple[list[T], Future[list[U]]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            while True:
                while len(waiting) <= threads and (task := next(line, None)) is not None:
                    waiting.append((task, pool.submit(lambda task=task: [work(item) for item in task])))  # type: ignore[misc]
                if not waiting:
                    return
                task, future = waiting.popleft()
                yield from zip(task, future.result(), strict=True)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _tasks(items: Iterable[T], entry: Callable[[T], Entry]) -> Iterator[list[T]]:
    """Items in lists of bounded length and, where their files are in memory, of bounded size."""
    task: list[T] = []
    held = 0
    for item in items:
        content = entry(item).content
        task.append(item)
        held += len(content) if isinstance(content, bytes) else 0
        if len(task) >= TASK or held >= HEAVY:
            yield task
            task, held = [], 0
    if task:
        yield task


def _meta(dataset: Dataset) -> dict[str, Any]:
    return {
        "name": dataset.name,
        "spec": dataset.spec.to_json(),
        "names": {key: list(names) for key, names in dataset.names.items()},
        "origin": dataset.origin,
        "step": dataset.step,
        "notes": [dict(text) for text in dataset.notes],
        "found": dict(dataset.found),
        "fingerprint": dataset.fingerprint,
    }


def stored(entry: cache.Entry, most: int) -> Dataset:
    """The data set of a cache entry; mapped if it has more bytes than `most`."""
    meta = entry.meta
    spec = DataSpec.from_json(meta["spec"])
    mapped = sum((entry.place / f"{name}.npy").stat().st_size for name in SPLITS) > most
    train, validation, judge, test = (
        Split(entry.array(name, mapped), {key: entry.array(f"{name}-{key}", False) for key in spec.conditions})
        for name in SPLITS
    )
    return Dataset(
        name=meta["name"], spec=spec, train=train, validation=validation, judge=judge, test=test,
        names={key: tuple(names) for key, names in meta["names"].items()},
        origin=meta["origin"], step=meta["step"], notes=tuple(meta["notes"]), found=meta["found"],
        fingerprint=meta["fingerprint"], source=entry.source,
    )  # fmt: skip
