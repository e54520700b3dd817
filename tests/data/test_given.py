"""Samples of other tools as a data set's own: every way of storing the same samples gives the same levels."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from quintet.core.errors import DataError, UsageError
from quintet.data.dataset import Dataset
from quintet.data.given import read_given
from quintet.data.options import DataOptions
from quintet.data.sources import open_dataset

DIGITS = open_dataset("digits")
ROWS = np.random.default_rng().permutation(len(DIGITS.test.x))[:40]
LEVELS = np.asarray(DIGITS.test.x)[ROWS]  # (40, 1, 8, 8), 0..16
CLASSES = DIGITS.test.labels["label"][ROWS]
BYTES = np.rint(LEVELS * (255 / 16)).astype(np.uint8)


def folder(root: Path, pixels: np.ndarray = BYTES) -> Path:
    for i, (image, label) in enumerate(zip(pixels, CLASSES, strict=True)):
        place = root / DIGITS.names["label"][label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(place / f"{i:03d}.png")
    return root


def same(given: Any, ordered: bool = True) -> bool:
    """Whether the levels are the originals, in order or as a set of (image, label)."""
    if ordered:
        return given.x.dtype == np.uint8 and np.array_equal(given.x, LEVELS)
    pairs = sorted((x.tobytes(), int(y)) for x, y in zip(given.x, given.labels, strict=True))
    return pairs == sorted((x.tobytes(), int(y)) for x, y in zip(LEVELS, CLASSES, strict=True))


@pytest.mark.parametrize(
    ("stored", "range_"),
    [
        (LEVELS, "0 .. 16"),
        (LEVELS.astype(np.float32), "0 .. 16"),
        (BYTES, "0 .. 255"),
        (BYTES.astype(np.float64), "0 .. 255"),
        (LEVELS / 16, "0 .. 1"),
        (LEVELS / 8 - 1, "-1 .. 1"),
        (LEVELS / 8 - 1.005, "-1 .. 1"),
        (LEVELS[:, 0], "0 .. 16"),
        (LEVELS.transpose(0, 2, 3, 1), "0 .. 16"),
        (LEVELS.reshape(40, 64) / 16, "0 .. 1"),
    ],
)
def test_arrays_in_every_range_and_layout(stored: np.ndarray, range_: str) -> None:
    given = read_given((stored, CLASSES), DIGITS)
    assert same(given)
    assert np.array_equal(given.labels, CLASSES)
    assert any(f"the range {range_}" in text["en"] for text in given.notes)


def test_values_can_be_told() -> None:
    dark = LEVELS / 16 * 0.9 + 0.02
    assert read_given(dark, DIGITS, values="unit").x.max() <= 15
    assert read_given(dark, DIGITS, values="signed").x.min() >= 8
    with pytest.raises(DataError, match="none of the known ranges"):
        read_given(LEVELS * 100.0, DIGITS)
    with pytest.raises(DataError):
        read_given(LEVELS / 8 - 1, DIGITS, values="unit")


@pytest.mark.parametrize("kind", ["folder", "zip", "tar.gz", "npz", "npy", "openai"])
def test_files_of_every_kind(kind: str, tmp_path: Path) -> None:
    root, path = folder(tmp_path / "made"), tmp_path / f"samples.{kind}"
    if kind == "folder":
        path = root
    elif kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for file in sorted(root.rglob("*.png")):
                archive.write(file, Path("outer") / file.relative_to(root))
    elif kind == "tar.gz":
        with tarfile.open(path, "w:gz") as archive:
            archive.add(root, "outer")
    elif kind == "npz":
        np.savez(path, x=LEVELS / 8 - 1, y=CLASSES)
    elif kind == "openai":
        path = tmp_path / "samples.npz"
        np.savez(path, BYTES.transpose(0, 2, 3, 1), CLASSES)
    else:
        np.save(path, LEVELS)
    given = read_given(path, DIGITS)
    if kind == "npy":
        assert same(given)
        assert given.labels is None
    else:
        assert same(given, ordered=False)


def test_an_archive_is_data_too_and_what_it_hides_is_listed(tmp_path: Path) -> None:
    root = folder(tmp_path / "made")
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for file in sorted(root.rglob("*.png")):
            archive.write(file, file.relative_to(root))
        archive.writestr("../evil.png", b"x")
        archive.writestr("/abs.png", b"x")
        archive.writestr("zero/broken.png", b"\x89PNG broken")
        link = zipfile.ZipInfo("zero/link.png")
        link.external_attr = 0xA1FF << 16
        archive.writestr(link, "/etc/passwd")
    dataset = open_dataset(tmp_path / "photos.zip", {"cache": False, "near": False})
    assert dataset.spec.shape == (1, 8, 8)
    assert set(dataset.names["label"]) <= set(DIGITS.names["label"])
    bad = {item["file"]: item["reason"] for item in dataset.found["listed"]}
    assert bad["../evil.png"] == bad["/abs.png"] == "member_place"
    assert bad["zero/link.png"] == "special"
    assert "zero/broken.png" in bad
    (tmp_path / "no.zip").write_bytes(b"PK broken")
    with pytest.raises(DataError, match="archive"):
        open_dataset(tmp_path / "no.zip")
    with tarfile.open(tmp_path / "bad.tar", "w") as tar:
        info = tarfile.TarInfo("text.txt")
        info.size = 2
        tar.addfile(info, io.BytesIO(b"hi"))
    with pytest.raises(DataError):
        open_dataset(tmp_path / "bad.tar")


def test_another_size_is_an_error_unless_it_may_be_resized(tmp_path: Path) -> None:
    large = np.repeat(np.repeat(BYTES, 2, axis=2), 2, axis=3)
    root = folder(tmp_path / "made", np.repeat(large, 3, axis=1))
    with pytest.raises(DataError, match="--resize"):
        read_given(root, DIGITS)
    given = read_given(root, DIGITS, resize=True, options=DataOptions(policy="stretch"))
    assert given.x.shape == LEVELS.shape
    notes = " ".join(text["en"] for text in given.notes)
    assert "resized to 8x8" in notes
    assert "1 channel" in notes


def test_what_does_not_match_is_refused(tmp_path: Path) -> None:
    for wrong, match in (
        (LEVELS[:5], "at least 20"),
        (np.zeros((30, 9, 9)), "shape"),
        (np.full((30, 8, 8), np.nan), "not finite"),
        (np.array([["a"] * 64] * 30), "<U1"),
        (tmp_path / "absent.npz", "absent"),
    ):
        with pytest.raises(DataError, match=match):
            read_given(wrong, DIGITS)
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(DataError):
        read_given(tmp_path / "bad.npz", DIGITS)
    np.savez(tmp_path / "nameless.npz", pictures=LEVELS)
    with pytest.raises(DataError, match="arr_0"):
        read_given(tmp_path / "nameless.npz", DIGITS)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(DataError, match="cannot be read as samples"):
        read_given(tmp_path / "notes.txt", DIGITS)


def deep(root: Path, pixels: np.ndarray) -> Path:
    root.mkdir()
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(root / f"{i:03d}.{'tif' if image.dtype.kind == 'f' else 'png'}")
    return root


@pytest.mark.parametrize("levels", [256, 65_536])
def test_images_of_more_than_eight_bits_are_read_as_the_data_are(tmp_path: Path, levels: int) -> None:
    rng = np.random.default_rng()
    x = rng.integers(0, 4096, (40, 8, 9)).astype(np.uint16)
    x[:, 0, 0] = 4095
    dataset = open_dataset(deep(tmp_path / "data", x), {"levels": levels, "cache": False, "near": False})
    own = np.concatenate([np.asarray(getattr(dataset, part).x) for part in ("train", "validation", "judge", "test")])

    def same(given: Any) -> bool:
        return given.x.dtype == own.dtype and sorted(map(bytes, given.x)) == sorted(map(bytes, own))

    assert same(read_given(tmp_path / "data", dataset))
    assert same(read_given(deep(tmp_path / "floats", x.astype(np.float32)), dataset))
    dark = read_given(deep(tmp_path / "dark", x // 8), dataset)  # white is the data's, not the lowest that holds these
    assert dark.x.max() == round(511 * (255 / 4095 if levels == 256 else 1))
    # 8 bits: 255 is white, as in the pictures that are written of samples
    shallow = read_given(deep(tmp_path / "eight", np.rint(x * (255 / 4095)).astype(np.uint8)), dataset)
    top = min(levels, 4096) - 1
    assert (
        np.abs(np.sort(shallow.x.astype(float).ravel()) - np.sort(own.astype(float).ravel())).max() <= top / 510 + 0.5
    )


def test_nearly_black_floats_stay_so_among_others(tmp_path: Path) -> None:
    x = np.random.default_rng().integers(0, 256, (40, 8, 8)).astype(np.float32)
    pictures = [row.astype(np.uint8) for row in x]
    dataset = open_dataset(deep(tmp_path / "data", np.stack(pictures)), {"cache": False, "near": False})
    x[0] = x[0] > 128
    given = read_given(deep(tmp_path / "given", x), dataset)
    assert np.array_equal(given.x[:, 0], x.astype(np.uint8))


def test_labels_by_name_by_number_from_a_file_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("\n".join(DIGITS.names["label"][c] for c in CLASSES))
    np.save(tmp_path / "labels.npy", CLASSES.astype(np.float64))
    for labels in (tmp_path / "labels.txt", tmp_path / "labels.npy", CLASSES):
        assert np.array_equal(read_given(LEVELS, DIGITS, labels=labels).labels, CLASSES)
    assert read_given((LEVELS, CLASSES), DIGITS, labels="none").labels is None
    with pytest.raises(DataError, match="labels for 40"):
        read_given(LEVELS, DIGITS, labels=CLASSES[:10])
    with pytest.raises(DataError, match="none of the data's"):
        read_given(LEVELS, DIGITS, labels=np.full(40, 99))


def columns() -> Dataset:
    rng = np.random.default_rng(0)
    return open_dataset({"x": rng.normal([0, 100], [1, 30], (400, 2)).astype(np.float32)})


def test_vectors_and_tables(tmp_path: Path) -> None:
    rng = np.random.default_rng()
    x = rng.normal([0, 100], [1, 30], (50, 2))
    table = tmp_path / "table.csv"
    np.savetxt(table, x, delimiter=",", header="a,b", comments="")
    for source in (x, table):
        given = read_given(source, columns())
        assert given.x.dtype == np.float32
        assert np.allclose(given.x, x, rtol=1e-5)
    standardised = read_given((x - [0, 100]) / [1, 30], columns())
    assert any("own units" in text["en"] for text in standardised.notes)
    with pytest.raises(DataError):
        read_given(np.zeros((30, 3)), columns())
    with pytest.raises(UsageError):
        read_given(x, columns(), values="unit")
    (tmp_path / "wide.csv").write_text("a,b,c\n" + "1,2,3.5\n" * 30)
    with pytest.raises(DataError, match="3 columns"):
        read_given(tmp_path / "wide.csv", columns())


def test_columns_are_found_by_name_in_any_order(tmp_path: Path) -> None:
    rng = np.random.default_rng()
    x = rng.normal([0, 100], [1, 30], (400, 2))
    np.savetxt(tmp_path / "real.csv", x, delimiter=",", header="height,weight", comments="")
    dataset = open_dataset(tmp_path / "real.csv")
    made = rng.normal([0, 100], [1, 30], (50, 2))
    np.savetxt(tmp_path / "made.csv", np.column_stack([made[:, 1], np.ones(50), made[:, 0]]), delimiter=",",
               header="weight,extra,height", comments="")  # fmt: skip
    assert np.allclose(read_given(tmp_path / "made.csv", dataset).x, made, rtol=1e-5)
    # a column with a label's name is one of the data's where the data have it, or as many columns
    np.savetxt(tmp_path / "plane.csv", x, delimiter=",", header="x,y", comments="")
    plane = open_dataset(tmp_path / "plane.csv")
    assert plane.columns == ("x", "y")
    np.savetxt(tmp_path / "points.csv", made[:, ::-1], delimiter=",", header="y,x", comments="")
    np.savetxt(tmp_path / "other.csv", made, delimiter=",", header="u,target", comments="")
    for name in ("points", "other"):
        given = read_given(tmp_path / f"{name}.csv", plane)
        assert np.allclose(given.x, made, rtol=1e-5)
        assert given.labels is None
    np.savetxt(tmp_path / "less.csv", made[:, :1], delimiter=",", header="height", comments="")
    with pytest.raises(DataError, match="weight"):
        read_given(tmp_path / "less.csv", dataset)
