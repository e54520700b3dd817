"""Tables of numbers: what is inferred from text, labels, and the columns that are refused by name."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quintet.core.errors import DataError, UsageError
from quintet.data.sources import open_dataset

PARTS = ("train", "validation", "judge", "test")
DATA = Path(os.environ.get("QUINTET_DATA", Path(__file__).parents[2] / "../shared/data"))
X = np.random.default_rng(0).normal(size=(60, 3)).round(4)


def text(x=X, delimiter=",", header="a,b,c", decimal=".", label=None):
    lines = [header.replace(",", delimiter)] if header else []
    for i, row in enumerate(x):
        fields = [f"{v:.4f}".replace(".", decimal) for v in row] + ([] if label is None else [str(label[i])])
        lines.append(delimiter.join(fields))
    return "\n".join(lines) + "\n"


def every(dataset):
    return np.concatenate([getattr(dataset, part).x for part in PARTS])


def same(dataset, x):
    return np.array_equal(np.sort(every(dataset), 0), np.sort(x.astype(np.float32), 0))


def refused(path, key, *needles, options=None):
    with pytest.raises(DataError) as caught:
        open_dataset(path, options)
    assert caught.value.key == key
    for needle in needles:
        assert needle in caught.value.text("en")
        assert needle in caught.value.text("zh")


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("header", ["a,b,c", ""])
def test_delimiters_and_headers(tmp_path, delimiter, header):
    path = tmp_path / "t.csv"
    path.write_text(text(delimiter=delimiter, header=header))
    dataset = open_dataset(path)
    assert same(dataset, X)
    assert dataset.columns == (("a", "b", "c") if header else ("column0", "column1", "column2"))
    assert any("numbered" in note["en"] for note in dataset.notes) == (not header)


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_decimal_commas(tmp_path, delimiter):
    (tmp_path / "t.csv").write_text(text(delimiter=delimiter, decimal=","))
    dataset = open_dataset(tmp_path / "t.csv")
    assert same(dataset, X)
    assert any("decimal sign ','" in note["en"] for note in dataset.notes)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-8"])
def test_byte_order_marks_and_chinese_names(tmp_path, encoding):
    (tmp_path / "t.csv").write_text(text(header="长,宽,高"), encoding=encoding)
    dataset = open_dataset(tmp_path / "t.csv")
    assert dataset.columns == ("长", "宽", "高")
    assert same(dataset, X)


def test_crlf_quotes_and_windows_1252(tmp_path):
    (tmp_path / "t.csv").write_bytes(text(header='"a, b",b,c').replace("\n", "\r\n").encode())
    assert open_dataset(tmp_path / "t.csv").columns[0] == "a, b"
    (tmp_path / "t.csv").write_bytes(text(header="größe,b,c").encode("cp1252"))
    refused(tmp_path / "t.csv", "data.table_encoding", "UTF-8")


@pytest.mark.parametrize("name", ["label", "y", "Target", "CLASS"])
def test_label_columns_by_name(tmp_path, name):
    y = ["red", "green", "blue"] * 20
    (tmp_path / "t.csv").write_text(text(header=f"a,b,c,{name}", label=y))
    dataset = open_dataset(tmp_path / "t.csv")
    assert dataset.names["label"] == ("blue", "green", "red")
    assert same(dataset, X)
    key = {row.astype(np.float32).tobytes(): label for row, label in zip(X, y, strict=True)}
    for x, label in zip(dataset.train.x, dataset.train.labels["label"], strict=True):
        assert key[x.tobytes()] == dataset.names["label"][label]


def test_a_column_named_like_a_label_is_modelled_where_it_cannot_be_classes(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(text(X[:, :2], header="x,y"))
    dataset = open_dataset(path)
    assert dataset.columns == ("x", "y")
    assert not dataset.spec.conditions
    assert any("Column y" in note["en"] and "label=y" in note["en"] for note in dataset.notes)
    refused(path, "data.label_column_kind", "y", options=["label=y"])
    assert open_dataset(path, ["label=none"]).columns == ("x", "y")
    target = np.random.default_rng(1).permutation(600)[:60]
    path.write_text(text(header="a,b,c,target", label=target))
    dataset = open_dataset(path)
    assert dataset.columns == ("a", "b", "c", "target")
    assert same(dataset, np.column_stack([X, target]))
    assert any("Column target" in note["en"] and "60" in note["en"] for note in dataset.notes)
    # few rows of each of many numbers are no classes either
    x = np.random.default_rng(2).normal(size=(400, 2)).round(4)
    path.write_text(text(x, header="a,b,y", label=np.arange(400) % 150))
    assert open_dataset(path).columns == ("a", "b", "y")
    path.write_text(text(x, header="a,b,y", label=np.arange(400) % 30))
    assert open_dataset(path).spec.conditions == {"label": 30}


def test_the_next_name_of_a_label_is_taken_where_the_first_cannot_be(tmp_path):
    rows = [f"{a},{b},{c},{'uv'[i % 2]}" for i, (a, b, c) in enumerate(X)]
    (tmp_path / "t.csv").write_text("a,b,y,category\n" + "\n".join(rows) + "\n")
    dataset = open_dataset(tmp_path / "t.csv")
    assert dataset.columns == ("a", "b", "y")
    assert dataset.names["label"] == ("u", "v")


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("header", [True, False])
def test_lines_longer_than_what_is_looked_at_first(tmp_path, newline, header):
    x = np.random.default_rng(3).normal(size=(25, 7000)).round(9)
    lines = [",".join(f"a_rather_long_name_{i}" for i in range(7000))] if header else []
    lines += [",".join(f"{v:.9f}" for v in row) for row in x]
    (tmp_path / "t.csv").write_bytes((newline.join(lines) + newline).encode())
    dataset = open_dataset(tmp_path / "t.csv")
    assert dataset.spec.shape == (7000,)
    assert dataset.columns[1] == ("a_rather_long_name_1" if header else "column1")
    assert same(dataset, x)


def test_a_line_of_more_than_a_mebibyte(tmp_path):
    x = np.random.default_rng(4).integers(10**14, 10**15, (20, 12)) / 10**14
    rows = [",".join("0" * 100_000 + f"{v:.14f}" for v in row) for row in x]
    (tmp_path / "t.csv").write_text(",".join("abcdefghijkl") + "\n" + "\n".join(rows) + "\n")
    assert same(open_dataset(tmp_path / "t.csv"), x)


def test_columns_that_float32_would_blur_are_refused_with_what_to_subtract(tmp_path):
    seconds = 1_700_000_000 + np.random.default_rng(5).permutation(20_000)[:60]
    (tmp_path / "t.csv").write_text(text(header="a,b,c,time", label=seconds))
    refused(tmp_path / "t.csv", "data.coarse_column", "time", "1700000000")
    (tmp_path / "t.csv").write_text(text(header="a,b,c,time", label=seconds - 1_700_000_000))
    assert open_dataset(tmp_path / "t.csv").columns[-1] == "time"


def test_columns_drop_and_label_options(tmp_path):
    (tmp_path / "t.csv").write_text(text(header="a,b,c,kind", label=[1, 2] * 30))
    path = tmp_path / "t.csv"
    assert open_dataset(path).spec.shape == (4,)
    assert open_dataset(path, ["label=kind"]).spec.conditions == {"label": 2}
    assert open_dataset(path, ["columns=a,c"]).columns == ("a", "c")
    assert open_dataset(path, {"drop": ("kind", "b")}).columns == ("a", "c")
    refused(path, "data.no_column", "nowhere", options=["drop=nowhere"])
    refused(path, "data.table_no_columns", options=["drop=a,b,c,kind"])
    with pytest.raises(UsageError):
        open_dataset(path, ["size=3"])


@pytest.mark.parametrize(
    ("values", "key"),
    [
        (["word"] * 60, "data.table_words"),
        (["2024-01-01"] * 60, "data.table_words"),
        ([1.5, ""] * 30, "data.table_missing"),
        ([1.5, "nan"] * 30, "data.table_missing"),
        ([1.5, "inf"] * 30, "data.table_missing"),
        ([""] * 60, "data.table_missing"),
        ([7] * 60, "data.table_constant"),
    ],
)
def test_columns_that_cannot_be_modelled_are_named(tmp_path, values, key):
    (tmp_path / "t.csv").write_text(text(header="a,b,c,culprit", label=values))
    refused(tmp_path / "t.csv", key, "culprit", "drop=culprit")
    assert same(open_dataset(tmp_path / "t.csv", ["drop=culprit"]), X)


def test_broken_tables(tmp_path):
    path = tmp_path / "t.csv"
    refused(path, "data.missing")
    path.write_text("")
    refused(path, "data.table_empty")
    path.write_text(text(header="a,a,c"))
    refused(path, "data.table_twice", "a")
    path.write_text(text() + "1,2\n")
    refused(path, "data.table_broken")
    path.write_bytes(b"a,b\n\x00\xff\xfe\n")
    refused(path, "data.table_encoding")


def test_parquet_tables(tmp_path):
    columns = {name: X[:, i] for i, name in enumerate("abc")}
    pq.write_table(pa.table({**columns, "target": ["u", "v"] * 30}), tmp_path / "train-0.parquet")
    pq.write_table(
        pa.table({**{k: v[:10] + 1 for k, v in columns.items()}, "target": ["u"] * 10}), tmp_path / "test-0.parquet"
    )
    dataset = open_dataset(tmp_path)
    assert len(dataset.test) == 10
    assert dataset.names["label"] == ("u", "v")
    pq.write_table(pa.table({**columns, "w": [None, 1] * 30}), tmp_path / "w.parquet")
    refused(tmp_path / "w.parquet", "data.table_missing", "w (30)")


def test_wine_quality(monkeypatch):
    if not (DATA / "wine_quality").is_dir():
        pytest.skip(f"no data set wine_quality in {DATA} (set QUINTET_DATA)")
    monkeypatch.setenv("QUINTET_DATA", str(DATA))
    dataset = open_dataset("wine_quality")
    assert dataset.spec.shape == (13,)
    assert len(dataset.test) == 650
    refused(DATA / "adult", "data.table_words", "workclass")


@settings(max_examples=150)
@given(content=st.one_of(st.binary(max_size=200), st.text('0123456789,;.\n"ab-\t ', max_size=200).map(str.encode)))
def test_random_text_is_read_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("t") / "t.csv"
    path.write_bytes(content)
    try:
        open_dataset(path)
    except DataError as error:
        assert error.exit_code == 3  # noqa: PT017
