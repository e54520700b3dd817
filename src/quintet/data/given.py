"""Samples that any other tool made, read as examples of a data set: same shape, same levels, same classes.

What it is: folders and archives of images, arrays, tables, in files or in memory, brought to a data set's own values by
rules that are said; what cannot be matched safely is refused with what to do. What it is not: a data set (nothing is
split, and no copies are looked for), or a judgement of quality.

Values of images and other data with levels are read as one of four ranges:
    own      the data set's own units, from its lowest level to its highest.
    unit     0 to 1.
    signed   -1 to 1.
    bytes    0 to 255, as pictures have.
By default whole numbers are own where they fit, else bytes; others are signed if some are negative, else unit if none
is above 1, else own, else bytes. Numbers of 8 bits are bytes where own needs more. What lies within a hundredth of the
range outside is cut off. In images of more than 8 bits white is what it is in the data, or, where they exceed that,
what it would be were they a data set (`images.settle`).
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from quintet.core.errors import DataError, UsageError
from quintet.core.spec import DataSpec
from quintet.data.dataset import Dataset, note
from quintet.data.options import DataOptions

Array = NDArray[Any]
Notes = list[Mapping[str, str]]
T = TypeVar("T")
Values = Literal["auto", "own", "unit", "signed", "bytes"]
RANGES: tuple[Values, ...] = ("own", "unit", "signed", "bytes")

SAMPLE_KEYS = ("x", "samples", "images", "arr_0")
LABEL_KEYS = ("y", "label", "labels", "arr_1")
SLACK = 0.01
FEWEST = 20
BYTE = 255
FAR = 10.0
"""Columns whose spread differs from the data's by more than this factor are pointed at."""


@dataclass(frozen=True)
class Given:
    """Samples as a data set has them.

    Attributes:
        name: for display.
        x: (N, *spec.shape), levels or float32.
        labels: (N,) class numbers of the data set's first condition, or None.
        notes: how they were read.
    """

    name: str
    x: Array
    labels: NDArray[np.int64] | None
    notes: tuple[Mapping[str, str], ...]


def read_given(
    source: Any,
    dataset: Dataset,
    *,
    labels: Any = None,
    values: Values = "auto",
    resize: bool = False,
    options: DataOptions | None = None,
) -> Given:
    """Read samples as examples of `dataset`.

    Args:
        source: a folder or archive of images; a `.npz`, `.npy`, `.csv`, `.tsv` or `.parquet` file; an array; a tuple
            (x, labels); a mapping with "x" and optionally "y".
        labels: one a sample, in memory or in a file (`.npy`, or text with one a line), instead of the source's own;
            "none" leaves labels out.
        values: how numbers are read; see above.
        resize: bring images of another size to the data's own, by the options' policy.
        options: of images: background, policy; of tables: label.
    Raises: DataError naming what does not match and what to do.
    """
    options = options or DataOptions()
    notes: Notes = []
    name, raw, found = _open(source, dataset, resize, options, notes)
    x = _match(raw, dataset, values, f"{name}", notes)
    if len(x) < FEWEST:
        raise DataError("given.few", name=name, count=len(x), fewest=FEWEST)
    if labels is not None:
        found = None if isinstance(labels, str) and labels == "none" else _read_labels(labels)
    return Given(name, x, _classes(found, len(x), dataset, name, notes), tuple(notes))


def _open(
    source: Any, dataset: Dataset, resize: bool, options: DataOptions, notes: Notes
) -> tuple[str, Array, Array | None]:
    """Name, samples as they are, labels as they are."""
    if isinstance(source, tuple) and len(source) == 2:
        return "samples", np.asarray(source[0]), np.asarray(source[1])
    if isinstance(source, Mapping):
        return "samples", *_pick(source, "samples")
    if not isinstance(source, (str, PathLike)):
        return "samples", np.asarray(source), None
    path = Path(fspath(source))
    if not path.exists():
        raise DataError("data.missing", path=path, cwd=Path.cwd())
    suffix = path.suffix.lower()
    if suffix in (".npz", ".npy"):
        return path.stem, *_read_arrays(path)
    if suffix in (".csv", ".tsv") or (suffix == ".parquet" and dataset.spec.kind != "image"):
        from quintet.data.tables import read_columns

        return path.stem, *read_columns(path, dataset.columns, dataset.spec.dims, options)
    return _read_images(path, dataset, resize, options, notes)


def _read_arrays(path: Path) -> tuple[Array, Array | None]:
    try:
        if path.suffix.lower() == ".npy":
            return np.load(path, allow_pickle=False), None
        with np.load(path, allow_pickle=False) as loaded:
            return _pick({key: loaded[key] for key in loaded.files if key in (*SAMPLE_KEYS, *LABEL_KEYS)}, str(path))
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, MemoryError) as error:
        kind, writer = (".npz", "savez") if path.suffix.lower() == ".npz" else (".npy", "save")
        raise DataError("data.broken", path=path, kind=kind, why=error, writer=writer) from error


def _pick(arrays: Mapping[str, Any], where: str) -> tuple[Array, Array | None]:
    """Samples and labels by their usual names."""
    key = next((key for key in SAMPLE_KEYS if arrays.get(key) is not None), None)
    if key is None:
        raise DataError("given.no_samples", where=where, known=", ".join(SAMPLE_KEYS))
    label = next((arrays[key] for key in LABEL_KEYS if arrays.get(key) is not None), None)
    return np.asarray(arrays[key]), None if label is None else np.asarray(label)


def _read_images(
    path: Path, dataset: Dataset, resize: bool, options: DataOptions, notes: Notes
) -> tuple[str, Array, Array | None]:
    """Every image of a folder, an archive or Parquet files in the data's size and channels.

    Values are 0..255; where the data have more levels and an image more bits, the data's own.
    """
    from quintet.data.assemble import deepened, to_channels
    from quintet.data.images import Depth, decode, look, settle

    spec = dataset.spec
    if spec.kind != "image":
        raise DataError("given.no_images_here", path=path, kind=spec.kind)
    source = _images(path, options)
    channels, height, width = spec.shape
    bad: list[str] = []
    looks = []
    for entry in source.entries():
        seen = _tried(entry.name, bad, look, entry.content, options, height * width)
        if seen is not None and not resize and (seen.header.height, seen.header.width) != (height, width):
            fields = {"height": seen.header.height, "width": seen.header.width}
            raise DataError("given.size", name=entry.name, **fields, own=f"{height}x{width}")
        looks.append(seen)
    headers = [seen.header for seen in looks if seen is not None]
    top = _full(dataset)
    depth = settle(headers, round(top) if top > BYTE else int(dataset.found.get("white", 0)))
    sizes = {(header.height, header.width) for header in headers}
    pictures, labels, changed = [], list[Any](), False
    for entry, seen in zip(source.entries(), looks, strict=False):
        if seen is None:
            continue
        found = None if seen.pixels is None else [seen.pixels]
        if found is None or found[0].shape[:2] != (height, width):
            found = _tried(entry.name, bad, decode, entry.content, options, (height, width), depth or Depth())
        if found is None:
            continue
        pixels = found[0] if depth is None else deepened(found[0], depth)
        changed = changed or pixels.shape[2] != channels
        pictures.append(to_channels(pixels, channels).transpose(2, 0, 1))
        labels.append(source.titles.get(str(entry.label), entry.label))
    notes.extend(source.notes)
    if resize and sizes != {(height, width)}:
        notes.append(note("given.note_resized", own=f"{height}x{width}", policy=options.policy))
    if changed:
        notes.append(note("given.note_channels", channels=channels))
    if bad:
        shown = "; ".join(bad[:3])
        notes.append(note("given.note_bad", count=len(bad), first=shown))
    if not pictures:
        raise DataError("data.no_images", path=path)
    x: Array = np.stack(pictures)
    if depth is not None:
        notes.append(note("data.note_deep_given", white=depth.white))
        x = np.rint(x.clip(0, depth.white) * (max(top, BYTE) / depth.white)).astype(np.uint16)
        x = x if top > BYTE else x.astype(np.uint8)
    known = [label for label in labels if label is not None]
    return (
        path.name.split(".")[0],
        x,
        np.array([str(y) for y in labels]) if len(known) == len(labels) else None,
    )


def _tried(name: str, bad: list[str], read: Callable[..., T], *args: Any) -> T | None:
    """What `read` returns, or None and a line in `bad` where the image cannot be used."""
    from quintet.data.images import Unusable

    try:
        return read(*args)
    except Unusable as error:
        bad.append(f"{name} ({note(f'bad.{error.reason}', **error.fields)['en']})")
        return None


def _images(path: Path, options: DataOptions) -> Any:
    """The source of images at a path."""
    from quintet.data.sources import ARCHIVES

    if path.name.lower().endswith(ARCHIVES):
        from quintet.data.archives import find_archive_images

        return find_archive_images(path, options)
    if path.is_dir() and not any(path.rglob("*.parquet")):
        from quintet.data.folders import find_images

        return find_images(path, options)
    from quintet.data.parquet import find_parquet_images, image_column, open_columns, parquet_files

    files = parquet_files(path) if path.is_dir() or path.suffix.lower() == ".parquet" else []
    if not files or image_column(open_columns(files)) is None:
        raise DataError("given.unknown", path=path)
    return find_parquet_images(path.stem, path, files, options)


# Matching


def _match(raw: Array, dataset: Dataset, values: Values, name: str, notes: Notes) -> Array:
    """The samples with the data set's shape and values."""
    spec = dataset.spec
    if raw.dtype.kind not in "biuf" or raw.dtype.hasobject:
        raise DataError("data.dtype", where=name, dtype=raw.dtype)
    x = _shaped(raw, spec, name, notes)
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        bad = int((~np.isfinite(x.reshape(len(x), -1))).any(1).sum())
        raise DataError("given.nonfinite", name=name, count=bad, total=len(x))
    if spec.levels is not None:
        return _levels(x, dataset, values, name, notes)
    if values not in ("auto", "own"):
        raise UsageError("given.no_range", values=values)
    found = np.ascontiguousarray(x, dtype=np.float32)
    _compare_spread(found, dataset, notes)
    return found


def _shaped(raw: Array, spec: DataSpec, name: str, notes: Notes) -> Array:
    """(N, *spec.shape); images may come with channels last, without a channel axis, or flat."""
    shape = spec.shape
    if raw.shape[1:] == shape:
        return raw
    if spec.kind == "image":
        channels, height, width = shape
        if raw.shape[1:] == (height, width, channels):
            return np.moveaxis(raw, 3, 1)
        if channels == 1 and raw.shape[1:] == (height, width):
            return raw[:, None]
        if raw.ndim == 2 and raw.shape[1] == prod(shape):
            notes.append(note("given.note_flat", shape="x".join(map(str, shape))))
            return raw.reshape(-1, *shape)
    raise DataError("given.shape", name=name, shape="x".join(map(str, raw.shape)), own="Nx" + "x".join(map(str, shape)))


def _levels(x: Array, dataset: Dataset, values: Values, name: str, notes: Notes) -> Array:
    """Levels 0..L-1 of values in one of the ranges."""
    top = (dataset.spec.levels or 2) - 1
    ranges: dict[Values, tuple[float, float]] = {
        "own": (dataset.origin, dataset.origin + dataset.step * top), "unit": (0.0, 1.0), "signed": (-1.0, 1.0),
        "bytes": (0.0, 255.0),
    }  # fmt: skip
    low, high = float(x.min()), float(x.max())
    chosen: Values | None = values
    if values == "auto":
        short = x.dtype == np.uint8 and _full(dataset) > BYTE
        chosen = "bytes" if short else _reading(x, low, high, ranges)
    if chosen is None or not _fits(low, high, *ranges[chosen]):
        listed = ", ".join(f"{key} {a:g} .. {b:g}" for key, (a, b) in ranges.items())
        raise DataError("given.range", name=name, low=f"{low:g}", high=f"{high:g}", ranges=listed)
    start, end = ranges[chosen]
    level = (x.astype(np.float64) - start) * (top / (end - start))
    off = float(np.abs(level - np.rint(level)).max())
    fields = {"low": f"{low:g}", "high": f"{high:g}", "start": f"{start:g}", "end": f"{end:g}", "levels": top + 1}
    own_rounding = top / 510 if chosen == "bytes" else 0.0  # of the pictures that held the levels
    notes.append(note("given.note_rounded" if off > SLACK + own_rounding else "given.note_values", **fields))
    small = np.uint8 if top < 256 else np.uint16
    return np.ascontiguousarray(np.rint(level).clip(0, top).astype(small))


def _full(dataset: Dataset) -> float:
    """The highest value in the data's own units."""
    return dataset.origin + dataset.step * ((dataset.spec.levels or 2) - 1)


def _reading(x: Array, low: float, high: float, ranges: Mapping[Values, tuple[float, float]]) -> Values | None:
    """The range that the values are in."""
    whole = x.dtype.kind in "iu" or (high > 1 + SLACK and bool((x == np.rint(x)).all()))
    order: tuple[Values, ...] = (
        ("own", "bytes") if whole else ("signed", "own") if low < -SLACK else ("unit", "own", "bytes")
    )
    return next((key for key in order if _fits(low, high, *ranges[key])), None)


def _fits(low: float, high: float, start: float, end: float) -> bool:
    slack = SLACK * (end - start)
    return low >= start - slack and high <= end + slack


def _compare_spread(x: Array, dataset: Dataset, notes: Notes) -> None:
    """Point at columns on quite another scale: standardised ones, or other units."""
    own = np.asarray(dataset.train.x, np.float64).std(0)
    ratio = x.astype(np.float64).std(0) / np.where(own > 0, own, 1.0)
    far = np.flatnonzero((ratio > FAR) | (ratio < 1 / FAR))
    if len(far):
        names = [dataset.columns[d] if dataset.columns else str(d) for d in far[:10]]
        notes.append(note("given.note_spread", columns=", ".join(names), factor=f"{FAR:g}"))


# Labels


def _read_labels(labels: Any) -> Array:
    if not isinstance(labels, (str, PathLike)):
        return np.asarray(labels)
    path = Path(fspath(labels))
    try:
        if path.suffix.lower() == ".npy":
            return np.asarray(np.load(path, allow_pickle=False))
        return np.array(path.read_text(encoding="utf-8").split())
    except FileNotFoundError as error:
        raise DataError("data.missing", path=path, cwd=Path.cwd()) from error
    except (OSError, ValueError) as error:
        raise DataError("data.unreadable", path=path, why=error) from error


def _classes(found: Array | None, count: int, dataset: Dataset, name: str, notes: Notes) -> NDArray[np.int64] | None:
    """Labels as the data set's class numbers: by its names, else by number."""
    condition = next(iter(dataset.spec.conditions), None)
    if found is None or condition is None:
        notes.append(note("given.note_no_labels" if condition is not None else "given.note_no_classes"))
        return None
    if found.shape != (count,):
        raise DataError("given.labels_length", name=name, labels=len(found) if found.ndim else 0, count=count)
    names = dataset.names.get(condition, tuple(str(i) for i in range(dataset.spec.conditions[condition])))
    known = {text: i for i, text in enumerate(names)}
    texts = [_plain(value) for value in found.tolist()]
    unknown = next((t for t in texts if t not in known and not (t.isdigit() and int(t) < len(names))), None)
    if unknown is not None:
        raise DataError("given.label", name=name, label=unknown, known=", ".join(names[:20]))
    notes.append(note("given.note_labels", classes=len(set(texts))))
    return np.array([known[t] if t in known else int(t) for t in texts], np.int64)


def _plain(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
