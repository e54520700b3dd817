"""Arrays as data: `.npz` with `x` and optionally `y`, `x_test`, `y_test`; `.npy`; arrays in memory.

Everything that is inferred (which axis holds the channels, the levels, the classes) is said in the data set's notes;
what cannot be inferred safely is refused with what to do. Files are opened without unpickling, their headers are
checked against their size before anything is allocated.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import floor, gcd, log10, prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from quintet.core.errors import DataError
from quintet.core.spec import DataSpec, Kind
from quintet.data.dataset import Dataset, Split, fingerprint, note
from quintet.data.splits import FEWEST, by_hash, default_sizes, hashes, split

Array = NDArray[Any]
Notes = list[Mapping[str, str]]

KEYS = ("x", "y", "x_test", "y_test")
CHANNELS = (1, 3, 4)
PHOTO = 64
"""Above so many distinct values on the grid of bytes, images have all 256 levels, whether each occurs or not."""
VECTOR_LEVELS = 32
"""Up to so many levels, whole-number vectors are discrete."""
MOST_LEVELS = 65_536
COARSE = 10_000
"""Float32 may round a column's values by its standard deviation divided by this."""


@dataclass(frozen=True)
class Grid:
    """Equally spaced values: level k stands for low + step * k."""

    low: float
    step: float
    levels: int

    def to_levels(self, x: Array) -> Array:
        """The level of each value, in the smallest unsigned type."""
        small = np.uint8 if self.levels <= 256 else np.uint16
        if x.dtype == small and self.low == 0 and self.step == 1:
            return x
        return np.rint((x.astype(np.float64) - self.low) / self.step).astype(small)


def open_file(path: Path) -> Dataset:
    """The data set in a `.npz` or `.npy` file.

    Raises: DataError for anything that cannot be read or used.
    """
    npz = path.suffix.lower() == ".npz"
    try:
        with path.open("rb") as file:
            arrays = (
                _read_npz(file, path) if npz else {"x": _read_npy(file, os.fstat(file.fileno()).st_size, str(path))}
            )
    except FileNotFoundError as error:
        raise DataError("data.missing", path=path, cwd=Path.cwd()) from error
    except OSError as error:
        why = error.strerror or str(error)
        raise DataError("data.unreadable", path=path, why=why) from error
    except (DataError, MemoryError):
        raise
    except Exception as error:  # a damaged header makes zipfile, zlib, tokenize and numpy fail in a dozen ways
        kind, writer = (".npz", "savez") if npz else (".npy", "save")
        why = str(error) or type(error).__name__
        raise DataError("data.broken", path=path, kind=kind, why=why, writer=writer) from error
    return open_arrays(arrays, path.stem, str(path))


def open_arrays(
    arrays: Mapping[str, Any], name: str = "arrays", where: str = "the data", columns: Sequence[str] = ()
) -> Dataset:
    """The data set in arrays.

    Args:
        arrays: "x" and optionally "y", "x_test", "y_test"; other keys are left alone.
        name: for display.
        where: named in errors.
        columns: names of a table's columns; without them numbers.
    Raises: DataError for anything that cannot be used.
    """
    if arrays.get("x") is None:
        raise DataError("data.no_x", where=where, keys=", ".join(map(str, arrays)) or "-")
    found = {key: _array(arrays[key], f"{where}: {key}") for key in KEYS if arrays.get(key) is not None}
    for given, needed in (("y_test", "x_test"), ("y_test", "y")):
        if given in found and needed not in found:
            raise DataError("data.bare_test", where=where, found=given, missing=needed)
    if "x_test" in found and "y" in found and "y_test" not in found:
        raise DataError("data.bare_test", where=where, found="y", missing="y_test")

    notes: Notes = []
    parts: dict[str, Array] = {}
    labels: dict[str, Array] = {}
    for key, label in (("x", "y"), ("x_test", "y_test")):
        if key in found:
            parts[key] = _check(found[key], f"{where}: {key}")
        if label in found:
            labels[label] = _check_labels(found[label], len(parts[key]), f"{where}: {label}")
    if len(parts["x"]) < FEWEST:
        raise DataError("data.few", where=f"{where}: x", count=len(parts["x"]), fewest=FEWEST)
    kind, parts = _read_shape(parts, where, notes)
    parts, grid = _read_values(kind, parts, where, notes, columns)
    classes, names = read_classes(labels, notes)
    conditions = {"label": len(names)} if names else {}
    shape = parts["x"].shape[1:]
    splits = _split(parts, classes, notes)
    return Dataset(
        name=name,
        spec=DataSpec(kind, shape, levels=grid.levels if grid else None, conditions=conditions),
        train=splits[0],
        validation=splits[1],
        judge=splits[2],
        test=splits[3],
        names={"label": names} if names else {},
        origin=grid.low if grid else 0.0,
        step=grid.step if grid else 1.0,
        notes=tuple(notes),
        fingerprint=fingerprint(splits),
    )


# Files


def _read_npz(file: IO[bytes], path: Path) -> dict[str, Array]:
    with zipfile.ZipFile(file) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        if "x" not in members:
            raise DataError("data.no_x", where=path, keys=", ".join(members) or "-")
        arrays = {}
        for key in KEYS:
            if key in members:
                with archive.open(members[key]) as member:
                    arrays[key] = _read_npy(member, members[key].file_size, f"{path}: {key}")
        return arrays


def _read_npy(stream: IO[bytes], size: int, where: str) -> Array:
    """One array of `size` bytes, header included; ValueError if header and size disagree."""
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
    else:
        raise ValueError(f"format version {version[0]}.{version[1]}")
    if dtype.hasobject:
        raise DataError("data.objects", where=where)
    needed = prod(shape) * dtype.itemsize
    if needed > size:
        raise ValueError(f"{needed} bytes announced, at most {size} there")
    _check_memory(needed, where)
    content = bytearray(needed)
    view, got = memoryview(content), 0
    while got < needed and (more := stream.readinto(view[got:])):  # type: ignore[attr-defined]
        got += more
    if got < needed:
        raise ValueError(f"{needed} bytes announced, {got} there")
    stream.read(1)  # a zip member's checksum is verified at its end
    return np.frombuffer(content, dtype=dtype).reshape(shape, order="F" if fortran else "C")


def _check_memory(needed: int, where: str) -> None:
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on every system; then allocation itself decides
        return
    if needed > memory // 2:
        raise DataError("data.too_large", where=where, gib=needed / 2**30, memory=memory / 2**30)


# Checks


def _array(value: Any, where: str) -> Array:
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise DataError("data.ragged", where=where, why=error) from error
    if array.dtype.hasobject:
        raise DataError("data.objects", where=where)
    return array


def _check(x: Array, where: str) -> Array:
    """Finite real numbers, two to four axes, none empty."""
    if x.dtype.kind not in "biuf":
        raise DataError("data.dtype", where=where, dtype=x.dtype)
    if not 2 <= x.ndim <= 4:
        raise DataError("data.rank", where=where, shape=x.shape)
    if not x.size:
        raise DataError("data.empty", where=where, shape=x.shape, fewest=FEWEST)
    if x.dtype.kind == "f":
        with np.errstate(over="ignore", invalid="ignore"):
            bad = ~np.isfinite(x.astype(np.float32))
        if bad.any():
            first = tuple(int(i) for i in np.argwhere(bad)[0])
            raise DataError("data.nonfinite", where=where, count=int(bad.sum()), index=first)
    return x


def _check_labels(y: Array, examples: int, where: str) -> Array:
    """One whole number or string an example."""
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1:
        raise DataError("data.labels_rank", where=where, shape=y.shape)
    if len(y) != examples:
        raise DataError("data.labels_length", where=where, labels=len(y), examples=examples)
    if y.dtype.kind == "f" and np.isfinite(y).all() and (y == np.rint(y)).all() and np.abs(y).max() < 2**53:
        y = y.astype(np.int64)
    if y.dtype.kind not in "biuU":
        raise DataError("data.labels_kind", where=where, dtype=y.dtype)
    return y


# Readings


def _read_shape(parts: dict[str, Array], where: str, notes: Notes) -> tuple[Kind, dict[str, Array]]:
    """Vectors stay (N, D); images become (N, C, H, W)."""
    x = parts["x"]
    if "x_test" in parts and parts["x_test"].shape[1:] != x.shape[1:]:
        raise DataError("data.test_shape", where=where, test=parts["x_test"].shape[1:], train=x.shape[1:])
    if x.ndim == 2:
        notes.append(note("data.note_vectors", shape=x.shape, count=len(x), dims=x.shape[1]))
        return "vector", parts
    if x.ndim == 3:
        notes.append(note("data.note_grey", shape=x.shape, height=x.shape[1], width=x.shape[2]))
        return "image", {key: part[:, None] for key, part in parts.items()}
    last = _channels_last(x.shape)
    if last is None:
        raise DataError("data.channels", where=f"{where}: x", shape=x.shape, dims=prod(x.shape[1:]))
    if last:
        parts = {key: np.moveaxis(part, 3, 1) for key, part in parts.items()}
    _, channels, height, width = parts["x"].shape
    key = "data.note_channels_last" if last else "data.note_channels_first"
    notes.append(note(key, shape=x.shape, channels=channels, height=height, width=width))
    return "image", parts


def _channels_last(shape: Sequence[int]) -> bool | None:
    """Whether the channels of (N, a, b, c) are last; None where neither end can be channels.

    Where both could be, the reading that makes square images wins, and channels last (as image files) otherwise.
    """
    _, a, b, c = shape
    if c in CHANNELS and a in CHANNELS:
        return not (b == c and a != b)
    if c in CHANNELS:
        return True
    return False if a in CHANNELS else None


def _read_values(
    kind: Kind, parts: dict[str, Array], where: str, notes: Notes, columns: Sequence[str]
) -> tuple[dict[str, Array], Grid | None]:
    """Levels where the values are discrete, float32 otherwise."""
    whole = all(part.dtype.kind in "biu" or (part == np.rint(part)).all() for part in parts.values())
    distinct = np.unique(np.concatenate([_distinct(part) for part in parts.values()]))
    if len(distinct) == 1:
        raise DataError("data.constant", where=f"{where}: x", value=f"{distinct[0]:g}")
    grid = None
    if kind == "image" or (whole and len(distinct) <= VECTOR_LEVELS):
        slack = max(float(np.finfo(part.dtype).eps) if part.dtype.kind == "f" else 0.0 for part in parts.values())
        grid = infer_grid(distinct, slack, photo=kind == "image")
    if kind == "image":
        if grid is None:
            fields = {"count": len(distinct), "low": f"{distinct[0]:g}", "high": f"{distinct[-1]:g}"}
            raise DataError("data.float_grid", where=f"{where}: x", **fields)
        if grid.levels > MOST_LEVELS:
            raise DataError("data.many_levels", where=f"{where}: x", levels=grid.levels)
    elif grid is not None and grid.levels > VECTOR_LEVELS:
        grid = None
    if grid is not None:
        high = grid.low + grid.step * (grid.levels - 1)
        fields = {"low": f"{grid.low:g}", "high": f"{high:g}", "distinct": len(distinct)}
        notes.append(note("data.note_levels", levels=grid.levels, **fields))
        return {key: np.ascontiguousarray(grid.to_levels(part)) for key, part in parts.items()}, grid
    if whole:
        notes.append(note("data.note_integers", distinct=len(distinct)))
    else:
        notes.append(note("data.note_continuous"))
    floats = {key: np.ascontiguousarray(part, dtype=np.float32) for key, part in parts.items()}
    _check_precision(parts, floats, where, columns)
    repeating = [d for d, column in enumerate(floats["x"].T) if 10 * len(np.unique(column)) <= len(column)]
    if repeating and not whole:
        named = ", ".join(map(str, repeating[:10])) + (", ..." if len(repeating) > 10 else "")
        notes.append(note("data.note_repeats", columns=named))
    return floats, None


def _check_precision(
    parts: Mapping[str, Array], floats: Mapping[str, Array], where: str, columns: Sequence[str]
) -> None:
    """Refuse a column far from zero whose values float32 blurs, though it keeps them apart nearer to zero.

    Raises: DataError with what to subtract.
    """
    for d in range(parts["x"].shape[1]):
        column = np.concatenate([part[:, d].astype(np.float64) for part in parts.values()])
        rounded = np.concatenate([part[:, d] for part in floats.values()])
        low, high, spread = float(column.min()), float(column.max()), float(column.std())
        if not 0 < spread < COARSE * np.abs(column - rounded).max():
            continue
        offset = near_offset(low, high)
        if len(np.unique(rounded)) < len(np.unique((column - offset).astype(np.float32))):
            named = columns[d] if columns else str(d)
            fields = {"low": f"{low:.15g}", "high": f"{high:.15g}", "offset": f"{offset:.15g}"}
            raise DataError("data.coarse_column", where=where, column=named, **fields)


def near_offset(low: float, high: float) -> float:
    """A number of few digits just below values from low to high."""
    step = 10.0 ** floor(log10(high - low))
    return floor(low / step) * step


def _distinct(x: Array) -> NDArray[np.float64]:
    if x.dtype == np.uint8:  # counting is much faster than sorting
        return np.flatnonzero(np.bincount(x.ravel(), minlength=256)).astype(np.float64)
    return np.unique(x).astype(np.float64)


def infer_grid(distinct: NDArray[np.float64], slack: float = 0.0, *, photo: bool = True) -> Grid | None:
    """The equally spaced levels that all values lie on.

    Args:
        distinct: (K,) sorted distinct values, K >= 2.
        slack: relative precision of the values' type, 0 for integers.
        photo: more than 64 values on a grid of bytes (0..255, or those scaled to [0, 1] or [-1, 1]) mean 256 levels.
    Returns: None for values on no grid of at most 65,536 levels (whole numbers: on a grid of any size).
    """
    low, high = float(distinct[0]), float(distinct[-1])
    if photo and len(distinct) > PHOTO:
        for start, step in ((0.0, 1.0), (0.0, 1 / 255), (-1.0, 2 / 255)):
            if low > start - step / 4 and high < start + 255.25 * step and _fits(distinct, start, step, slack):
                return Grid(start, step, 256)
    if (distinct == np.rint(distinct)).all() and np.abs(distinct).max() < 2**53:
        step = gcd(*(int(gap) for gap in np.diff(distinct)))
        return Grid(low, float(step), int(high - low) // step + 1)
    if len(distinct) > MOST_LEVELS:
        return None
    gaps = np.diff(distinct)
    # values equal but for rounding are one level; the smallest real gap is a small multiple of the step
    gaps = gaps[gaps > 8 * slack * max(abs(low), abs(high))]
    for divisor in (1, 2, 3, 4):
        count = round((high - low) * divisor / float(gaps.min())) if len(gaps) else MOST_LEVELS
        if count < MOST_LEVELS and _fits(distinct, low, (high - low) / count, slack):
            return Grid(low, (high - low) / count, count + 1)
    return None


def _fits(distinct: NDArray[np.float64], low: float, step: float, slack: float) -> bool:
    """Whether the values are within a hundredth of a step, or their type's precision, of a level."""
    tolerance = max(0.01, slack * float(np.abs(distinct).max()) / step)
    k = (distinct - low) / step
    return tolerance < 0.3 and bool((np.abs(k - np.rint(k)) <= tolerance).all())


def read_classes(
    labels: Mapping[str, Array], notes: Notes, titles: Mapping[str, str] = {}
) -> tuple[dict[str, NDArray[np.int64]], tuple[str, ...]]:
    """Labels as 0..K-1 in sorted order, and the classes' names; nothing where they are no classes.

    Args:
        labels: key -> one label an example.
        notes: told what was read.
        titles: a label as text -> the class's name, where the source has names for its numbers.
    """
    if not labels:
        return {}, ()
    values, codes = np.unique(np.concatenate(list(labels.values())), return_inverse=True)
    names = tuple(titles.get(str(value), str(value)) for value in values.tolist())
    if len(names) == 1:
        notes.append(note("data.note_one_label", name=names[0]))
        return {}, ()
    if not are_classes(len(names), len(codes)):
        notes.append(note("data.note_many_labels", classes=len(names), examples=len(codes)))
        return {}, ()
    shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    notes.append(note("data.note_labels", classes=len(names), names=shown))
    cuts = np.cumsum([len(y) for y in labels.values()])[:-1]
    return dict(zip(labels, np.split(codes.astype(np.int64).ravel(), cuts), strict=True)), names


def are_classes(different: int, examples: int) -> bool:
    """Whether so many different labels of so many examples can be classes: several, of two examples on average."""
    return 1 < different <= examples / 2


def _split(
    parts: dict[str, Array], classes: dict[str, NDArray[np.int64]], notes: Notes
) -> tuple[Split, Split, Split, Split]:
    """Train, validation, judge, test; the source's own test split stays test."""
    x, y = parts["x"], {"label": classes["y"]} if "y" in classes else {}
    if "x_test" in parts:
        notes.append(note("data.note_official_test", count=len(parts["x_test"])))
        tested = set(hashes(parts["x_test"]))
        new = np.array([digest not in tested for digest in hashes(x)])
        if not new.all():
            if new.sum() < FEWEST:
                raise DataError("data.copied_test", count=int(new.sum()), fewest=FEWEST)
            notes.append(note("data.note_test_copies", count=int((~new).sum())))
            x, y = x[new], {name: values[new] for name, values in y.items()}
    cut = split(x, y, default_sizes(len(x), official_test="x_test" in parts))
    if cut.copies:
        notes.append(note("data.note_copies", count=cut.copies))

    def take(rows: NDArray[np.int64]) -> Split:
        return Split(x[rows], {name: values[rows] for name, values in y.items()})

    if "x_test" in parts:
        rows = by_hash(hashes(parts["x_test"]))
        test = Split(parts["x_test"][rows], {"label": classes["y_test"][rows]} if "y_test" in classes else {})
    else:
        test = take(cut.test)
    return take(cut.train), take(cut.validation), take(cut.judge), test
