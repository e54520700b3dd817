"""Labels by folders and by label files: who names an image, what does not fit, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quintet.core.errors import DataError, UsageError
from quintet.data.layout import LabelFile, Layout, lay_out
from quintet.data.options import DEFAULT, DataOptions, read_options

NAMES = [f"images/{i:03d}.png" for i in range(20)]


def table(text: str, name: str = "labels.csv", folder: str = "") -> LabelFile:
    return LabelFile(name, folder, text.encode())


def labels(layout: Layout) -> dict[str, str | int | None]:
    return {name: label for name, (_, label) in layout.rows.items()}


def keys(layout: Layout) -> dict[str, tuple[str, str]]:
    return {file.name: (file.verdict, file.reason) for file in layout.files}


def said(layout: Layout, words: str) -> bool:
    return any(words in text["en"] for text in layout.notes)


@pytest.mark.parametrize("way", ["path", "name", "stem", "windows", "jsonl", "tsv", "semicolon", "bom", "headless"])
def test_every_way_to_name_an_image(way: str) -> None:
    wanted = {name: f"class {int(name[7:10]) % 3}" for name in NAMES}
    pairs = [(name if way == "path" else name.removeprefix("images/"), label) for name, label in wanted.items()]
    if way == "stem":
        pairs = [(name.removesuffix(".png"), label) for name, label in pairs]
    if way == "windows":
        pairs = [(".\\" + name, label) for name, label in pairs]
    name, sign = "labels.csv", ","
    folder = "images" if way == "windows" else ""
    if way == "jsonl":
        name = "metadata.jsonl"
        text = "\n".join(json.dumps({"file_name": a, "label": b, "text": "a caption"}) for a, b in pairs)
    else:
        name, sign = ("labels.tsv", "\t") if way == "tsv" else (name, ";" if way == "semicolon" else ",")
        head = [] if way == "headless" else [("filename", "label")]
        text = "\r\n".join(sign.join(pair) for pair in [*head, *pairs])
    text = "\ufeff" * (way == "bom") + text
    layout = lay_out(NAMES, ["images"], [table(text, name, folder)], DEFAULT)
    assert labels(layout) == wanted
    assert not layout.files
    assert said(layout, "names 20 images")


def test_splits_stay_and_each_label_file_speaks_of_its_own_folder() -> None:
    names = [f"{part}/{i}.png" for part in ("train", "test") for i in range(5)]
    tables = [
        table("file_name,label\n" + "".join(f"{i}.png,{add + i}\n" for i in range(5)), f"{part}/metadata.csv", part)
        for part, add in (("train", 0), ("test", 10))
    ]
    layout = lay_out(names, ["train", "test"], tables, DEFAULT)
    assert layout.rows == {
        f"{part}/{i}.png": (part, add + i) for part, add in (("train", 0), ("test", 10)) for i in range(5)
    }


def test_what_does_not_fit_is_listed_and_never_guessed() -> None:
    rows = [f"{name},rose" for name in NAMES[2:]]
    rows += [f"{NAMES[3]},tulip", "nowhere.png,rose", "../../etc/passwd,rose", "/etc/x.png,rose", f"{NAMES[4]},rose"]
    layout = lay_out(NAMES, ["images"], [table("file,label\n" + "\n".join(rows))], DEFAULT)
    found = keys(layout)
    assert found[NAMES[3]] == ("bad", "label_twice")
    assert NAMES[3] not in layout.rows
    assert found[NAMES[0]] == found[NAMES[1]] == ("odd", "label_missing")
    assert labels(layout)[NAMES[0]] is None
    assert found["nowhere.png"] == found["../../etc/passwd"] == found["/etc/x.png"] == ("skipped", "label_only")
    assert said(layout, "more than one (3): nowhere.png")
    assert said(layout, "in the label files: 2.")
    assert sum(label == "rose" for label in labels(layout).values()) == 17


def test_a_name_that_could_be_two_images_is_none() -> None:
    names = ["a/1.png", "b/1.png", "b/2.png"]
    layout = lay_out(names, ["a", "b"], [table("id,label\n1,x\n2,y\na/1.png,z")], DEFAULT)
    assert labels(layout) == {"a/1.png": "z", "b/1.png": None, "b/2.png": "y"}
    assert keys(layout)["1"] == ("skipped", "label_only")


def test_the_label_file_counts_against_folders_and_says_so() -> None:
    names = [f"{kind}/{i}.png" for kind in ("cat", "dog") for i in range(5)]
    text = "file_name,label\n" + "".join(f"{name},{name[:3]}\n" for name in names[1:]) + f"{names[0]},dog\n"
    layout = lay_out(names, ["cat", "dog"], [table(text)], DEFAULT)
    assert labels(layout)["cat/0.png"] == "dog"
    assert said(layout, "another class than the label file says: 1, such as cat/0.png")
    folders = lay_out(names, ["cat", "dog"], [], DataOptions(label_file="none"))
    assert labels(folders)["cat/0.png"] == "cat"
    other = lay_out(names, ["cat", "dog"], [table(text.replace("cat\n", "0\n").replace("dog\n", "1\n"))], DEFAULT)
    assert not said(other, "another class")  # folders in other words contradict nothing
    assert set(labels(other).values()) == {0, 1}


def test_a_column_may_be_chosen_and_captions_are_no_labels() -> None:
    text = "file_name,text,kind\n" + "".join(f"{name},caption {i},{i % 2}\n" for i, name in enumerate(NAMES))
    left = lay_out(NAMES, ["images"], [table(text, "metadata.csv")], DEFAULT)
    assert said(left, "left alone")
    assert set(labels(left).values()) == {"images"}
    chosen = lay_out(NAMES, ["images"], [table(text, "metadata.csv")], DataOptions(label="kind"))
    assert [chosen.rows[name][1] for name in NAMES] == [0, 1] * 10
    none = lay_out(NAMES, ["images"], [table(text, "metadata.csv")], DataOptions(label="none"))
    assert set(labels(none).values()) == {None}
    with pytest.raises(UsageError) as caught:
        lay_out(NAMES, ["images"], [], DataOptions(label="kind"))
    assert caught.value.key == "data.folder_label"


@pytest.mark.parametrize(
    ("content", "name", "key"),
    [
        (b"file_name,label\na.png,\xff\xfe\xfd", "labels.csv", "data.table_encoding"),
        (b"file_name,label\na.png,b,c", "labels.csv", "data.label_file_broken"),
        (b"file_name,label\na.png,b\0", "labels.csv", "data.label_file_broken"),
        (b'{"file_name": "a.png", "label": 1}\n{', "metadata.jsonl", "data.label_file_broken"),
        (b"[1]", "metadata.jsonl", "data.label_file_broken"),
        (b"[" * 100_000, "metadata.jsonl", "data.label_file_broken"),
        (b'{"file_name": "a.png", "label": [1]}', "metadata.jsonl", "data.label_file_broken"),
        (b'{"file_name": "a.png", "label": 0.5}', "metadata.jsonl", "data.label_file_broken"),
    ],
)
def test_broken_label_files_are_refused_by_name(content: bytes, name: str, key: str) -> None:
    with pytest.raises(DataError) as caught:
        lay_out(["a.png"], [], [LabelFile(name, "", content)], DEFAULT)
    assert caught.value.key == key
    assert name in caught.value.text("en")


def test_a_file_that_was_asked_for_must_be_of_use() -> None:
    asked = read_options(["label-file=mine.csv"])
    assert asked.label_file == "mine.csv"
    for text, key in (
        ("file_name,label\nb.png,1", "data.label_file_useless"),
        ("colour,size\nred,1\nblue,2", "data.label_file_columns"),
        ("", "data.label_file_columns"),
    ):
        with pytest.raises(DataError) as caught:
            lay_out(["a.png"], [], [table(text, "mine.csv")], asked)
        assert caught.value.key == key
    assert said(lay_out(["a.png"], [], [table("file_name,label\nb.png,1")], DEFAULT), "none of its rows (1)")


@settings(max_examples=200)
@given(content=st.binary(max_size=200), head=st.sampled_from([b"", b"file_name,label\n", b'{"file_name": "a.png", ']))
def test_random_bytes_are_read_or_refused(content: bytes, head: bytes) -> None:
    for name in ("labels.csv", "metadata.jsonl", "labels.tsv"):
        try:
            layout = lay_out(["a.png", "b/c.png"], ["b"], [LabelFile(name, "", head + content)], DEFAULT)
        except DataError:
            continue
        assert set(layout.rows) <= {"a.png", "b/c.png"}


@settings(max_examples=50)
@given(order=st.permutations(range(20)), seed=st.integers(0, 1000))
def test_neither_order_of_files_nor_of_rows_plays_a_role(order: list[int], seed: int) -> None:
    kinds = np.random.default_rng(seed).integers(0, 3, 20)
    rows = [f"{NAMES[i]},{kinds[i]}" for i in order]
    layout = lay_out([NAMES[i] for i in order], ["images"], [table("path,y\n" + "\n".join(rows))], DEFAULT)
    assert list(layout.rows.items()) == [(name, ("train", int(kind))) for name, kind in zip(NAMES, kinds, strict=True)]
