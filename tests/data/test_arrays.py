"""Arrays: what is inferred is right and said; what cannot be used is refused with exit 3 in both languages."""

from __future__ import annotations

import io
import os
import re
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quintet.core.errors import DataError
from quintet.data.arrays import infer_grid
from quintet.data.dataset import Dataset
from quintet.data.sources import open_dataset

PARTS = ("train", "validation", "judge", "test")
generator = np.random.default_rng(0)


def every(dataset):
    return np.concatenate([getattr(dataset, name).x for name in PARTS])


def same_rows(a, b):
    key = lambda x: sorted(row.tobytes() for row in np.ascontiguousarray(x))  # noqa: E731
    return key(a) == key(b)


def refused(data, key, *needles):
    with pytest.raises(DataError) as caught:
        open_dataset(data)
    error = caught.value
    assert error.key == key
    assert error.exit_code == 3
    english, chinese = error.text("en"), error.text("zh")
    assert english != chinese
    assert any("\u4e00" <= c <= "\u9fff" for c in chinese)
    for needle in needles:
        assert str(needle) in english
        assert str(needle) in chinese
    return error


def photos(n=40, shape=(6, 5)):
    return np.random.default_rng(1).integers(0, 256, (n, *shape)).astype(np.uint8)


# What is read


def test_npz_and_npy_and_memory_agree(tmp_path):
    x, y = photos(), np.arange(40) % 4
    np.savez(tmp_path / "a.npz", x=x, y=y)
    np.savez_compressed(tmp_path / "b.NPZ", x=x, y=y, other=np.array([None], dtype=object))
    np.save(tmp_path / "c.npy", x)
    memory = open_dataset((x, y))
    assert open_dataset(tmp_path / "a.npz").fingerprint == memory.fingerprint
    assert open_dataset(str(tmp_path / "a.npz")).name == "a"
    assert open_dataset({"x": x, "y": y}).fingerprint == memory.fingerprint
    if (tmp_path / "b.npz").exists() or (tmp_path / "b.NPZ").exists():
        file = next(tmp_path.glob("b.*"))
        assert open_dataset(file).fingerprint == memory.fingerprint
    assert open_dataset(tmp_path / "c.npy").fingerprint == open_dataset(x).fingerprint
    assert open_dataset(memory) is memory
    assert isinstance(memory, Dataset)


def test_torch_tensors_are_arrays():
    import torch

    x = photos()
    assert open_dataset(torch.from_numpy(x)).fingerprint == open_dataset(x).fingerprint


def test_fortran_order_and_big_endian(tmp_path):
    x = generator.normal(size=(50, 3))
    np.save(tmp_path / "f.npy", np.asfortranarray(x.astype(">f8")))
    assert same_rows(every(open_dataset(tmp_path / "f.npy")), x.astype(np.float32))


@pytest.mark.parametrize(
    ("shape", "event", "words"),
    [
        ((6, 5), (1, 6, 5), "(N, H, W)"),
        ((6, 5, 1), (1, 6, 5), "(N, H, W, C)"),
        ((6, 5, 3), (3, 6, 5), "(N, H, W, C)"),
        ((3, 6, 5), (3, 6, 5), "(N, C, H, W)"),
        ((4, 8, 8), (4, 8, 8), "(N, C, H, W)"),
        ((1, 4, 4), (1, 4, 4), "(N, C, H, W)"),  # both ends could be channels: the square one
        ((4, 4, 1), (1, 4, 4), "(N, H, W, C)"),
        ((3, 3, 3), (3, 3, 3), "(N, H, W, C)"),
    ],
)
def test_axes(shape, event, words):
    x = photos(60, shape)
    dataset = open_dataset(x)
    assert dataset.spec.kind == "image"
    assert dataset.spec.shape == event
    for lang in ("en", "zh"):
        assert any(words in text[lang] for text in dataset.notes)
    channels_first = x[:, None] if len(shape) == 2 else np.moveaxis(x, 3, 1) if words.endswith("C)") else x
    assert same_rows(every(dataset), channels_first)


@pytest.mark.parametrize(
    ("values", "levels", "origin", "step"),
    [
        (np.arange(17, dtype=np.uint8), 17, 0, 1),
        (np.array([0, 255], np.uint8), 2, 0, 255),
        (np.array([False, True]), 2, 0, 1),
        (np.arange(256, dtype=np.uint8), 256, 0, 1),
        (np.arange(5, 200, 2, dtype=np.uint8), 256, 0, 1),  # more than 64 values: bytes
        (np.arange(3, 50, dtype=np.int64), 47, 3, 1),
        (np.array([-2, 0, 4], np.int32), 4, -2, 2),
        (np.arange(0, 4096, dtype=np.uint16), 4096, 0, 1),
        (np.array([0, 65_535, 1], np.uint16), 65_536, 0, 1),
        (np.arange(256, dtype=np.float32) / np.float32(255), 256, 0, 1 / 255),
        (np.arange(256) / 255 * 2 - 1, 256, -1, 2 / 255),
        (np.arange(256, dtype=np.float64), 256, 0, 1),
        ((np.arange(256) / 255).astype(np.float16), 256, 0, 1 / 255),
        (np.arange(17, dtype=np.float32) / np.float32(16), 17, 0, 1 / 16),
        (np.array([0.0, 0.2, 0.5, 1.0]), 11, 0, 0.1),  # smallest gap is twice the step
        (np.array([0.0, 1.0]), 2, 0, 1),
    ],
)
def test_levels_are_inferred_and_shown(values, levels, origin, step):
    fill = np.random.default_rng(2).choice(values, (64, 16, 16))
    fill.reshape(-1)[: len(values)] = values
    dataset = open_dataset(fill)
    assert dataset.spec.levels == levels
    assert (dataset.origin, dataset.step) == pytest.approx((origin, step), rel=1e-3)
    assert dataset.train.x.dtype == (np.uint8 if levels <= 256 else np.uint16)
    assert every(dataset).max() < levels
    back = dataset.origin + dataset.step * every(dataset).astype(np.float64)
    assert np.sort(back.ravel()) == pytest.approx(np.sort(fill.astype(np.float64).ravel()), abs=1e-3 * step + 1e-3)
    assert any(text["en"].startswith(f"{levels} levels") for text in dataset.notes)


@settings(max_examples=60)
@given(
    low=st.floats(-100, 100),
    step=st.floats(1e-3, 50),
    levels=st.sets(st.integers(0, 40), min_size=5),
)
def test_a_float_grid_is_found(low, step, levels):
    values = np.array(sorted(levels | {0, 1}), dtype=np.float64)
    grid = infer_grid(low + step * values, slack=float(np.finfo(np.float64).eps))
    assert grid is not None
    assert grid.levels == values.max() + 1
    assert grid.step == pytest.approx(step, rel=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_random_floats_are_on_no_grid(dtype):
    for seed in range(20):
        values = np.unique(np.random.default_rng(seed).random(100).astype(dtype)).astype(np.float64)
        assert infer_grid(values, slack=float(np.finfo(dtype).eps)) is None


def test_vectors():
    x = generator.normal(size=(200, 5))
    dataset = open_dataset(x)
    assert dataset.spec.kind == "vector"
    assert dataset.spec.levels is None
    assert dataset.train.x.dtype == np.float32
    assert same_rows(every(dataset), x.astype(np.float32))


def test_whole_number_vectors_with_few_values_have_levels():
    dataset = open_dataset(generator.integers(0, 17, (200, 8)).astype(np.float64))
    assert dataset.spec.kind == "vector"
    assert dataset.spec.levels == 17


def test_whole_number_vectors_with_many_values_are_continuous_and_say_so():
    dataset = open_dataset(generator.integers(0, 10_000, (200, 3)))
    assert dataset.spec.levels is None
    assert any("whole numbers" in text["en"] for text in dataset.notes)


def test_repeated_values_of_a_column_are_said():
    x = generator.normal(size=(200, 3))
    x[:, 1] = generator.integers(0, 3, 200)
    assert any("Columns 1 repeat" in text["en"] for text in open_dataset(x).notes)


@pytest.mark.parametrize(
    ("y", "names"),
    [
        (np.arange(40) % 3 + 5, ("5", "6", "7")),
        (np.array(["dog", "cat"] * 20), ("cat", "dog")),
        (np.array([True, False] * 20), ("False", "True")),
        (np.array([1.0, 2.0] * 20), ("1", "2")),
        (np.array([[3], [-1]] * 20), ("-1", "3")),
        (["b", "a"] * 20, ("a", "b")),
        (np.array([0, 2**40] * 20, dtype=np.uint64), ("0", str(2**40))),
    ],
)
def test_labels_become_classes(y, names):
    x = photos()
    dataset = open_dataset((x, y))
    assert dataset.names["label"] == names
    assert dict(dataset.spec.conditions) == {"label": len(names)}
    wanted = {row.tobytes(): str(v.item() if hasattr(v, "item") else v) for row, v in zip(x, np.ravel(y), strict=True)}
    for part in PARTS:
        split = getattr(dataset, part)
        assert split.labels["label"].dtype == np.int64
        for row, code in zip(split.x, split.labels["label"], strict=True):
            assert wanted[row.tobytes()].removesuffix(".0") == names[code]


def test_labels_that_are_no_classes_are_left_out_and_said():
    x = photos()
    for y, words in ((np.zeros(40, int), "equal"), (np.arange(40), "too many")):
        dataset = open_dataset((x, y))
        assert not dataset.spec.conditions
        assert not dataset.train.labels
        assert any(words in text["en"] for text in dataset.notes)


def test_official_test_split_with_labels_shares_the_classes():
    x, test = photos(60), np.random.default_rng(9).integers(0, 256, (10, 6, 5)).astype(np.uint8)
    dataset = open_dataset({"x": x, "y": np.arange(60) % 3, "x_test": test, "y_test": np.full(10, 3)})
    assert dataset.names["label"] == ("0", "1", "2", "3")
    assert dataset.test.labels["label"].tolist() == [3] * 10
    assert {image.tobytes() for image in dataset.test.x} == {image.tobytes() for image in test}
    test[:] = 0
    assert dataset.test.x.any()  # ours, not the caller's


# What is refused


def test_missing_file(tmp_path):
    refused(tmp_path / "no.npz", "data.missing", tmp_path / "no.npz")


def test_unreadable_file(tmp_path):
    file = tmp_path / "a.npy"
    np.save(file, photos())
    file.chmod(0)
    if os.access(file, os.R_OK):
        pytest.skip("this user may read everything")
    refused(file, "data.unreadable", file)


def test_a_link_to_itself_is_unreadable(tmp_path):
    file = tmp_path / "loop.npy"
    file.symlink_to(file)
    refused(file, "data.unreadable", file)


@pytest.mark.parametrize("suffix", [".npz", ".npy"])
@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04 nothing", b"\x93NUMPY\x01\x00", b"\x93NUMPY\x09\x00aaaa", b"GIF89a"]
)
def test_broken_files(tmp_path, suffix, content):
    file = tmp_path / f"broken{suffix}"
    file.write_bytes(content)
    refused(file, "data.broken", file)


@pytest.mark.parametrize("suffix", [".npz", ".npy"])
def test_truncated_and_flipped_files(tmp_path, suffix):
    file = tmp_path / f"cut{suffix}"
    (np.savez(file, x=photos()) if suffix == ".npz" else np.save(file, photos()))
    whole = file.read_bytes()
    for cut in (1, 7, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:cut])
        refused(file, "data.broken", file)
    if suffix == ".npz":  # the archive's checksum sees one bit
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 1
        file.write_bytes(flipped)
        refused(file, "data.broken", file)


@settings(max_examples=150)
@given(data=st.data())
def test_any_damage_ends_in_a_data_error_or_data(tmp_path_factory, data):
    file = tmp_path_factory.mktemp("fuzz") / f"x{data.draw(st.sampled_from(['.npz', '.npy']))}"
    (np.savez(file, x=photos(), y=np.arange(40) % 2) if file.suffix == ".npz" else np.save(file, photos()))
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, min(200, len(content) - 1)))] = data.draw(st.integers(0, 255))
    file.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    try:
        dataset = open_dataset(file)
    except DataError:
        return
    assert len(dataset.train)


def test_a_header_that_promises_too_much(tmp_path):
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000, 1000000, 1000), }"
    header += b" " * (118 - len(header)) + b"\n"
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    (tmp_path / "bomb.npy").write_bytes(content + b"\0" * 100)
    refused(tmp_path / "bomb.npy", "data.broken", "announced")
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w") as archive:
        archive.writestr("x.npy", content)
    refused(tmp_path / "bomb.npz", "data.broken", "announced")


def test_more_than_the_machine_has(tmp_path, monkeypatch):
    np.save(tmp_path / "big.npy", photos(2000))
    monkeypatch.setattr(os, "sysconf", lambda name: 100)
    refused(tmp_path / "big.npy", "data.too_large", "GiB")


def test_objects_are_never_loaded(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    trap = np.array([Trap()] * 30, dtype=object)
    np.save(tmp_path / "o.npy", trap, allow_pickle=True)
    np.savez(tmp_path / "o.npz", x=photos(), y=trap)
    refused(tmp_path / "o.npy", "data.objects", "o.npy")
    refused(tmp_path / "o.npz", "data.objects", "y")
    refused(trap, "data.objects")
    refused((photos(), trap), "data.objects", "y")
    assert not (tmp_path / "ran").exists()


def test_no_x_lists_what_is_there(tmp_path):
    np.savez(tmp_path / "k.npz", images=photos(), labels=np.zeros(40))
    refused(tmp_path / "k.npz", "data.no_x", "images, labels")
    refused({"data": photos()}, "data.no_x", "data")
    refused({}, "data.no_x")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_nonfinite_values_are_counted_and_placed(bad):
    x = np.random.default_rng(3).normal(size=(50, 4))
    x[7, 2] = x[30, 0] = bad
    refused(x, "data.nonfinite", "2", "(7, 2)")


@pytest.mark.parametrize("shape", [(0, 8, 8), (40, 0), (40, 8, 0)])
def test_empty(shape):
    refused(np.zeros(shape), "data.empty", shape)


@pytest.mark.parametrize("shape", [(), (100,), (40, 2, 2, 2, 2)])
def test_wrong_rank(shape):
    refused(np.zeros(shape), "data.rank", shape)


def test_wrong_channels():
    refused(photos(40, (6, 5, 7)), "data.channels", (40, 6, 5, 7))


@pytest.mark.parametrize("dtype", [complex, "U3", "datetime64[s]", "S2", [("a", "i4")]])
def test_wrong_types(dtype):
    refused(np.zeros((40, 3), dtype=dtype), "data.dtype")


def test_ragged_lists():
    refused([[1.0, 2.0], [1.0]] * 20, "data.ragged")


def test_constant():
    refused(np.full((40, 8, 8), 7, np.uint8), "data.constant", "7")
    refused(np.full((40, 3), 0.5), "data.constant", "0.5")


def test_too_few():
    refused(photos(19), "data.few", 19, 20)
    refused(np.repeat(photos(5), 10, axis=0), "data.few_distinct", 5, 50)


def test_test_split_that_is_the_training_split():
    x = photos()
    refused({"x": x, "x_test": x}, "data.copied_test")


def test_test_split_of_another_shape():
    refused({"x": photos(), "x_test": photos(10, (5, 6))}, "data.test_shape", (5, 6))


@pytest.mark.parametrize(
    "keys", [("x", "y_test"), ("x", "y", "y_test"), ("x", "y", "x_test"), ("x", "x_test", "y_test")]
)
def test_half_a_test_split(keys):
    whole = {"x": photos(), "y": np.arange(40) % 2, "x_test": photos(30)[20:], "y_test": np.arange(10) % 2}
    refused({key: whole[key] for key in keys}, "data.bare_test", "test")


def test_labels():
    x = photos()
    refused((x, np.zeros(39, int)), "data.labels_length", 39, 40)
    refused((x, np.zeros((40, 10), int)), "data.labels_rank", (40, 10))
    refused((x, np.linspace(0, 1, 40)), "data.labels_kind", "float64")
    refused((x, np.full(40, np.nan)), "data.labels_kind", "float64")
    refused((x, np.zeros(40, complex)), "data.labels_kind", "complex")
    refused((x, np.array([], int)), "data.labels_length", 0, 40)


def test_float_images_off_any_grid():
    refused(np.random.default_rng(4).random((40, 8, 8)), "data.float_grid", "uint8")


def test_too_many_levels():
    x = np.random.default_rng(5).integers(0, 2**31, (40, 4, 4))
    refused(x, "data.many_levels")


@pytest.mark.parametrize("spread", [1_500, 20_000, 1_000_000])
@pytest.mark.parametrize("dtype", [np.int64, np.float64])
def test_columns_that_lie_too_close_for_float32(spread, dtype):
    x = np.random.default_rng(6).normal(size=(1000, 2))
    x[:, 1] = 1.7e9 + np.random.default_rng(7).permutation(spread)[:1000]
    x = x.astype(dtype) if dtype is np.float64 else np.rint(x * [1000, 1]).astype(dtype)
    offset = float(re.search(r"subtract (\S+) ", refused(x, "data.coarse_column", "1").text("en"))[1])
    dataset = open_dataset(x - np.array([0, offset]).astype(dtype))
    assert len(np.unique(every(dataset)[:, 1])) == 1000


def test_columns_that_float32_keeps_apart_are_read():
    rng = np.random.default_rng(8)
    for column in (
        101_325 + np.round(rng.normal(size=1000), 1) * 300,  # far from zero, but on a grid that float32 keeps
        rng.lognormal(0, 5, 1000),
        100 + rng.normal(size=1000),
        np.append(rng.normal(size=999), 1e12),
        -5e6 + rng.permutation(1000),
    ):
        assert open_dataset(np.stack([column, rng.normal(size=1000)], 1)).spec.shape == (2,)


def test_unknown_sources(tmp_path):
    refused("digit", "data.unknown_source", "digits", "ring8", ".npz")
    refused("s3:bucket", "data.unknown_source", "s3:bucket")
    refused(tmp_path, "data.no_image_files", tmp_path)
    refused("table.csv", "data.missing", "table.csv")
    refused("table.parquet", "data.missing", "table.parquet")
    refused("table.xlsx", "data.unsupported_format", ".xlsx")
    (tmp_path / "plain").write_text("x")
    refused(tmp_path / "plain", "data.unsupported_format", "plain")
    refused(42, "data.unsupported_type", "int")


def test_messages_of_data_have_both_languages_and_equal_fields():
    import string

    from quintet.core.messages import catalogue

    found = {key: texts for key, texts in catalogue().items() if key.startswith("data.")}
    assert len(found) > 40
    for key, texts in found.items():
        fields = [{name for _, name, _, _ in string.Formatter().parse(texts[lang]) if name} for lang in ("en", "zh")]
        assert fields[0] == fields[1], key


def test_a_zip_with_a_damaged_member_and_encryption(tmp_path):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, x=photos())
    content = bytearray(buffer.getvalue())
    content[6] |= 1  # the local header says encrypted
    central = content.rfind(b"PK\x01\x02")
    content[central + 8] |= 1
    (tmp_path / "e.npz").write_bytes(content)
    refused(tmp_path / "e.npz", "data.broken")
