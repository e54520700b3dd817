"""Splits are exact in size, keep copies together, and depend on content alone."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quintet.core.errors import DataError
from quintet.data.digits import open_digits
from quintet.data.sources import open_dataset
from quintet.data.splits import Sizes, default_sizes, split

NAMES = ("train", "validation", "judge", "test")


def rows_of(dataset):
    return {name: [row.tobytes() for row in getattr(dataset, name).x] for name in NAMES}


def test_digits_has_the_stated_sizes_and_every_image_once():
    from sklearn.datasets import load_digits

    dataset = open_digits()
    assert {name: len(getattr(dataset, name)) for name in NAMES} == {
        "train": 927,
        "validation": 100,
        "judge": 270,
        "test": 500,
    }
    source = load_digits()
    wanted = sorted((i.astype(np.uint8).tobytes(), int(t)) for i, t in zip(source.images, source.target, strict=True))
    got = sorted(
        (row.tobytes(), int(label))
        for name in NAMES
        for row, label in zip(getattr(dataset, name).x, getattr(dataset, name).labels["label"], strict=True)
    )
    assert got == wanted
    assert dataset.spec.levels == 17
    assert dataset.spec.shape == (1, 8, 8)
    assert dict(dataset.spec.conditions) == {"label": 10}
    assert dataset.train.x.dtype == np.uint8


def test_digits_is_cut_by_the_hash_and_is_always_the_same():
    one, two = open_digits(), open_digits()
    assert one.fingerprint == two.fingerprint
    last_test = max(hashlib.sha256(row.tobytes()).digest() for row in one.test.x)
    first_train = min(hashlib.sha256(row.tobytes()).digest() for row in one.train.x)
    assert last_test < first_train


@settings(max_examples=30)
@given(
    seed=st.integers(0, 10**6),
    examples=st.integers(20, 400),
    values=st.integers(2, 40),
    labelled=st.booleans(),
)
def test_file_order_plays_no_role_and_copies_stay_together(seed, examples, values, labelled):
    generator = np.random.default_rng(seed)
    x = generator.integers(0, values, (examples, 3)).astype(np.uint8)
    y = {"label": generator.integers(0, 3, examples)} if labelled else {}
    if len(np.unique(x, axis=0)) < 20:
        with pytest.raises(DataError) as caught:
            split(x, y, default_sizes(examples))
        assert caught.value.key == "data.few_distinct"
        return
    shuffle = generator.permutation(examples)
    one = split(x, y, default_sizes(examples))
    two = split(x[shuffle], {name: value[shuffle] for name, value in y.items()}, default_sizes(examples))
    seen: dict[bytes, str] = {}
    for name in NAMES:
        rows, other = getattr(one, name), getattr(two, name)
        assert len(rows) >= 1
        assert np.array_equal(x[rows], x[shuffle][other])
        for label in y.values():
            assert np.array_equal(label[rows], label[shuffle][other])
        for row in x[rows]:
            assert seen.setdefault(row.tobytes(), name) == name
    every = np.concatenate([getattr(one, name) for name in NAMES])
    assert sorted(every) == list(range(examples))
    assert one.copies == examples - len(np.unique(x, axis=0))


def test_one_crowd_of_copies_leaves_something_for_every_part():
    x = np.concatenate([np.zeros((981, 2)), np.arange(38).reshape(19, 2) + 1.0])
    parts = split(x, {}, default_sizes(1000))
    assert min(len(getattr(parts, name)) for name in NAMES) >= 1
    crowd = [name for name in NAMES if 0 in getattr(parts, name)]
    assert len(crowd) == 1
    assert len(getattr(parts, crowd[0])) >= 981


def test_minus_zero_is_a_copy_of_zero():
    x = np.random.default_rng(0).normal(size=(30, 2))
    x[:2] = [[0.0, 1.0], [-0.0, 1.0]]
    assert split(x, {}, default_sizes(30)).copies == 1


@pytest.mark.parametrize(
    ("n", "official", "wanted"),
    [
        (1000, False, Sizes(validation=40, judge=80, test=200)),
        (70_000, False, Sizes(validation=2000, judge=6000, test=10_000)),
        (60_000, True, Sizes(validation=2000, judge=6000, test=0)),
        (400_000, False, Sizes(validation=2000, judge=10_000, test=10_000)),
        (20, False, Sizes(validation=1, judge=2, test=4)),
    ],
)
def test_default_sizes(n, official, wanted):
    assert default_sizes(n, official) == wanted


def test_sizes_are_met_exactly_without_copies():
    x = np.random.default_rng(1).normal(size=(500, 3))
    parts = split(x, {}, Sizes(validation=31, judge=57, test=101))
    assert [len(getattr(parts, name)) for name in NAMES] == [500 - 31 - 57 - 101, 31, 57, 101]


def test_an_official_test_split_stays_and_its_copies_leave_training():
    generator = np.random.default_rng(2)
    x, test = generator.normal(size=(300, 2)).astype(np.float32), generator.normal(size=(50, 2)).astype(np.float32)
    x[:7] = test[:7]
    dataset = open_dataset({"x": x, "x_test": test})
    assert np.array_equal(np.sort(dataset.test.x, axis=0), np.sort(test, axis=0))
    parts = rows_of(dataset)
    assert not set(parts["test"]) & set(parts["train"] + parts["validation"] + parts["judge"])
    assert sum(len(parts[name]) for name in NAMES) == 300 - 7 + 50
    assert any("7 training examples" in text["en"] for text in dataset.notes)


def test_the_first_examples_of_an_official_split_are_no_single_class():
    """Where time is short they stand for all; files and arrays often lie class by class."""
    generator = np.random.default_rng()
    x, y = generator.normal(size=(400, 2)), np.repeat(np.arange(4), 100)
    data = {"x": x[::2], "y": y[::2], "x_test": x[1::2], "y_test": y[1::2]}
    dataset = open_dataset(data)
    assert len(set(dataset.test.labels["label"][:32].tolist())) == 4
    assert {row.tobytes(): k for row, k in zip(dataset.test.x, dataset.test.labels["label"], strict=True)} == {
        row.tobytes(): k for row, k in zip(data["x_test"].astype(np.float32), data["y_test"], strict=True)
    }
    again = open_dataset({**data, "x_test": data["x_test"][::-1], "y_test": data["y_test"][::-1]})
    assert np.array_equal(again.test.x, dataset.test.x)


def test_copies_are_counted_in_a_note():
    x = np.random.default_rng(3).normal(size=(100, 2))
    dataset = open_dataset(np.concatenate([x, x[:5]]))
    assert any(text["en"].startswith("5 examples are exact copies") for text in dataset.notes)
    assert all(set(text) == {"en", "zh"} for text in dataset.notes)


def test_opening_twice_in_another_order_gives_the_same_fingerprint():
    generator = np.random.default_rng(4)
    x, y = generator.integers(0, 256, (200, 5, 5)).astype(np.uint8), generator.integers(0, 4, 200)
    order = generator.permutation(200)
    one = open_dataset((x, y)).fingerprint
    assert open_dataset((x[order], y[order])).fingerprint == one
    y[0] = (y[0] + 1) % 4
    assert open_dataset((x, y)).fingerprint != one
