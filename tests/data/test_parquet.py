"""Parquet image data sets: columns, labels, splits, damage; names in $QUINTET_DATA; the hub through a fake client."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from quintet.core.errors import DataError
from quintet.data.sources import open_dataset

PARTS = ("train", "validation", "judge", "test")
DATA = Path(os.environ.get("QUINTET_DATA", Path(__file__).parents[2] / "../shared/data"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("QUINTET_CACHE", str(tmp_path_factory.mktemp("cache")))


def pixels(seed, size=(6, 7)):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)


def png(seed, size=(6, 7)):
    stream = io.BytesIO()
    Image.fromarray(pixels(seed, size)).save(stream, "PNG")
    return stream.getvalue()


def write(path: Path, seeds, labels=None, names=None, column="image", contents=None, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    contents = contents or [png(seed) for seed in seeds]
    columns = {column: [{"bytes": content, "path": f"{i}.png"} for i, content in enumerate(contents)]}
    if labels is not None:
        columns["label"] = labels
    table = pa.table({**columns, **more})
    if names is not None:
        features = {column: {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=16)


def counts(dataset):
    return {part: len(getattr(dataset, part)) for part in PARTS}


def test_splits_by_name_class_names_and_pixels(tmp_path):
    names = ["zero", "one", "two"]
    write(tmp_path / "train-00000-of-00002.parquet", range(40), [i % 3 for i in range(40)], names)
    write(tmp_path / "train-00001-of-00002.parquet", range(40, 60), [i % 3 for i in range(20)], names)
    write(tmp_path / "test-00000-of-00001.parquet", range(100, 110), [0] * 10, names)
    write(tmp_path / "validation-00000-of-00001.parquet", range(200, 205), [1] * 5, names)
    dataset = open_dataset(tmp_path)
    assert counts(dataset)["test"] == 10
    assert counts(dataset)["validation"] == 5
    assert sum(counts(dataset).values()) == 75
    assert dataset.names["label"] == tuple(names)
    expected = {pixels(i).transpose(2, 0, 1).tobytes(): i % 3 for i in range(40)}
    expected |= {pixels(40 + i).transpose(2, 0, 1).tobytes(): i % 3 for i in range(20)}
    for x, label in zip(dataset.train.x, dataset.train.labels["label"], strict=True):
        assert expected[x.tobytes()] == label
    assert {x.tobytes() for x in dataset.test.x} == {pixels(i).transpose(2, 0, 1).tobytes() for i in range(100, 110)}


def test_a_single_file_and_the_hubs_own_layout(tmp_path):
    write(tmp_path / "some.parquet", range(30))
    assert sum(counts(open_dataset(tmp_path / "some.parquet")).values()) == 30
    write(tmp_path / "hub" / "default" / "train" / "0000.parquet", range(30), column="img")
    write(tmp_path / "hub" / "default" / "test" / "0000.parquet", range(50, 60), column="img")
    assert counts(open_dataset(tmp_path / "hub"))["test"] == 10


def test_string_labels_chosen_labels_and_columns_not_used(tmp_path):
    species = ["rose", "tulip"] * 15
    write(tmp_path / "a.parquet", range(30), [0] * 29 + [1], kind=species, text=["a flower"] * 30)
    dataset = open_dataset(tmp_path / "a.parquet", ["label=kind"])
    assert dataset.names["label"] == ("rose", "tulip")
    assert any("text" in text["en"] for text in dataset.notes)
    assert not open_dataset(tmp_path / "a.parquet", ["label=none"]).spec.conditions
    with pytest.raises(DataError) as caught:
        open_dataset(tmp_path / "a.parquet", ["label=colour"])
    assert "kind" in caught.value.text("en")


def test_missing_labels_and_bad_rows(tmp_path):
    contents = [png(i) for i in range(40)]
    contents[3], contents[7] = b"", contents[7][:50]
    write(tmp_path / "a.parquet", range(40), [0, 1] * 19 + [None, 1], contents=contents)
    dataset = open_dataset(tmp_path / "a.parquet")
    assert not dataset.spec.conditions
    reasons = {item["file"]: item["reason"] for item in dataset.found["listed"]}
    assert reasons["a.parquet row 3 (3.png)"] == "zero"
    assert len(reasons) == 2
    assert sum(counts(dataset).values()) == 38


def test_test_rows_that_the_hub_marks_as_unlabelled_are_no_class(tmp_path):
    names = ["cat", "dog"]
    for name, seeds, labels in (("train", range(60), [0, 1] * 30), ("test", range(100, 130), [-1] * 30)):
        write(tmp_path / f"{name}-00000-of-00001.parquet", seeds, labels, names)
    dataset = open_dataset(tmp_path)
    assert dataset.names["label"] == ("cat", "dog")
    assert dict(dataset.spec.conditions) == {"label": 2}
    expected = {pixels(i).transpose(2, 0, 1).tobytes(): i % 2 for i in range(60)}
    for part in PARTS:
        split = getattr(dataset, part)
        assert len(split)
        for x, label in zip(split.x, split.labels["label"], strict=True):
            assert expected[x.tobytes()] == label
    assert sum(counts(dataset).values()) == 60
    assert dataset.found["files"] == 90
    assert dataset.found["skipped"] == 30
    assert any("30" in text["en"] and "test split" in text["en"] for text in dataset.notes)
    plain = open_dataset(tmp_path, ["label=none"])
    assert counts(plain)["test"] == 30


def test_a_held_out_part_keeps_its_labelled_rows_and_training_rows_without_label_leave_all_without(tmp_path):
    write(tmp_path / "a" / "train-0.parquet", range(60), [0, 1, 2] * 20)
    write(tmp_path / "a" / "test-0.parquet", range(100, 130), [-1] * 10 + [1, 2] * 10)
    dataset = open_dataset(tmp_path / "a")
    assert dataset.names["label"] == ("0", "1", "2")
    assert counts(dataset)["test"] == 20
    assert set(dataset.test.labels["label"].tolist()) == {1, 2}
    write(tmp_path / "b" / "train-0.parquet", range(60), [-1, 0, 1] * 20)
    half = open_dataset(tmp_path / "b")
    assert not half.spec.conditions
    assert any("20 of 60 images have no label" in text["en"] for text in half.notes)


def test_minus_one_and_one_alone_are_classes_but_not_where_there_are_others_or_names(tmp_path):
    write(tmp_path / "a.parquet", range(40), [-1, 1] * 20)
    assert open_dataset(tmp_path / "a.parquet").names["label"] == ("-1", "1")
    write(tmp_path / "b" / "train-0.parquet", range(60), [1, 2, 3] * 20)
    write(tmp_path / "b" / "test-0.parquet", range(100, 130), [-1] * 30)
    assert open_dataset(tmp_path / "b").names["label"] == ("1", "2", "3")
    write(tmp_path / "c.parquet", range(40), [-1, 1] * 20, ["no", "yes"])
    assert not open_dataset(tmp_path / "c.parquet").spec.conditions


def test_broken_files_and_different_columns(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError) as caught:
        open_dataset(tmp_path / "a.parquet")
    assert caught.value.key == "data.parquet_broken"
    write(tmp_path / "b" / "train-0.parquet", range(5))
    content = (tmp_path / "b" / "train-0.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError):
        open_dataset(tmp_path / "a.parquet")
    half = bytearray(content)
    half[40:400] = b"\xff" * 360
    (tmp_path / "a.parquet").write_bytes(half)
    with pytest.raises(DataError):
        open_dataset(tmp_path / "a.parquet")
    write(tmp_path / "b" / "train-1.parquet", range(5), [1] * 5)
    with pytest.raises(DataError) as caught:
        open_dataset(tmp_path / "b")
    assert caught.value.key == "data.parquet_columns"
    write(tmp_path / "c" / "test-0.parquet", range(30))
    with pytest.raises(DataError) as caught:
        open_dataset(tmp_path / "c")
    assert caught.value.key == "data.no_train"


def test_names_are_found_in_the_data_folder_and_paths_come_first(tmp_path, monkeypatch):
    write(tmp_path / "data" / "roses" / "train-0.parquet", range(30))
    monkeypatch.setenv("QUINTET_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    dataset = open_dataset("roses")
    assert dataset.name == "roses"
    write(tmp_path / "roses" / "train-0.parquet", range(25))
    assert sum(counts(open_dataset("roses")).values()) == 25
    with pytest.raises(DataError) as caught:
        open_dataset("tulips")
    assert str(tmp_path / "data") in caught.value.text("zh")


REAL = {
    "flowers64": ((3, 64, 64), 5042, 500, 90),
    "chest_xray": ((1, 128, 128), 800, 200, 2),
    "emoji": ((3, 64, 64), 3053, 341, None),
}


@pytest.mark.parametrize("name", REAL)
def test_real_data_sets(name, monkeypatch):
    if not (DATA / name).is_dir():
        pytest.skip(f"no data set {name} in {DATA} (set QUINTET_DATA)")
    monkeypatch.setenv("QUINTET_DATA", str(DATA))
    shape, train, test, classes = REAL[name]
    dataset = open_dataset(name)
    assert dataset.spec.shape == shape
    assert dataset.spec.levels == 256
    assert len(dataset.test) == test
    kept = sum(len(getattr(dataset, part)) for part in PARTS[:3])
    assert kept == train - sum(dataset.found["across"].values())
    assert kept > 0.98 * train
    assert dict(dataset.spec.conditions) == ({} if classes is None else {"label": classes})
    first = pq.read_table(sorted((DATA / name).glob("test-*.parquet"))[0])["image"][0]["bytes"].as_py()
    x = np.asarray(Image.open(io.BytesIO(first)))
    x = x[None] if x.ndim == 2 else x.transpose(2, 0, 1)
    assert any(np.array_equal(shown, x) for shown in dataset.test.x)
