"""Batches are functions of (seed, epoch, index) and of the step; nothing else matters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quintet.core.errors import UsageError
from quintet.core.rng import Rng
from quintet.core.spec import DataSpec
from quintet.data.augment import flip, shift
from quintet.data.batches import Batches
from quintet.data.codecs import DequantizedPixelCodecConfig, LevelCodecConfig, PixelCodecConfig
from quintet.data.dataset import Split

RAW = DataSpec("image", (1, 8, 8), levels=17, conditions={"label": 5})


def images(n, seed=0):
    generator = np.random.default_rng(seed)
    x = generator.integers(0, 17, (n, 1, 8, 8)).astype(np.uint8)
    return Split(x, {"label": generator.integers(0, 5, n)})


def exact(split, batch, seed=3, **more):
    return Batches(split, LevelCodecConfig().empty(RAW), batch, seed, **more)


def noisy(split, batch, seed=3, **more):
    return Batches(split, DequantizedPixelCodecConfig().empty(RAW), batch, seed, **more)


@settings(max_examples=40)
@given(n=st.integers(1, 50), batch=st.integers(1, 130), seed=st.integers(0, 10**6))
def test_every_epoch_visits_each_example_once(n, batch, seed):
    batches = exact(images(n), batch, seed)
    steps = -(-3 * n // batch)
    line = torch.cat([batches[step].index for step in range(steps)])[: 3 * n]
    for epoch in line.view(3, n):
        assert sorted(epoch.tolist()) == list(range(n))


def test_order_depends_on_seed_and_epoch_only():
    split = images(97)
    long = torch.cat([exact(split, 1)[step].index for step in range(97)])
    for batch in (5, 64, 300):
        batches = exact(split, batch)
        line = torch.cat([batches[step].index for step in range(-(-97 // batch))])[:97]
        assert torch.equal(line, long)
    assert not torch.equal(exact(split, 97, seed=4)[0].index, exact(split, 97)[0].index)
    assert not torch.equal(exact(split, 97)[1].index, exact(split, 97)[0].index)


def test_contents_belong_to_the_index():
    split = images(41)
    batches = exact(split, 100)
    for step in range(4):
        got = batches[step]
        assert len(got) == 100
        assert got.x.dtype == torch.int64
        assert torch.equal(got.x, torch.from_numpy(split.x.astype(np.int64))[got.index].flatten(1))
        assert torch.equal(got.cond["label"], torch.from_numpy(split.labels["label"])[got.index])


@settings(max_examples=30)
@given(n=st.integers(5, 60), batch=st.integers(2, 150), data=st.data())
def test_processes_share_one_batch(n, batch, data):
    """Any cut of the rows gives the rows of the whole: same examples, same noise, same augmentation."""
    split = images(n)
    whole = noisy(split, batch, augment="shift")
    cut = data.draw(st.integers(1, batch - 1))
    step = data.draw(st.integers(0, 30))
    parts = [
        noisy(split, batch, augment="shift", first=0, rows=cut),
        noisy(split, batch, augment="shift", first=cut),
    ]
    for name in ("x", "index"):
        joined = torch.cat([getattr(part[step], name) for part in parts])
        assert torch.equal(joined, getattr(whole[step], name))
    assert torch.equal(torch.cat([part[step].cond["label"] for part in parts]), whole[step].cond["label"])


def test_a_resumed_run_sees_the_same_batches():
    split = images(33)
    walked = noisy(split, 8, augment="shift")
    seen = [walked[step] for step in range(20)]
    for step in (19, 7, 0, 13, 3):  # in any order, from a fresh object or a used one
        for batches in (noisy(split, 8, augment="shift"), walked):
            assert torch.equal(batches[step].x, seen[step].x)
            assert torch.equal(batches[step].index, seen[step].index)


def test_noise_changes_with_step_and_stays_in_its_cell():
    batches = noisy(images(10), 10)
    one, two = (batches[step] for step in (0, 1))
    codec = batches.codec
    for got in (one, two):
        assert torch.equal(codec.decode(got.x), codec.decode(codec.encode(codec.decode(got.x))))
    first = {int(i): x for i, x in zip(one.index, one.x, strict=True)}
    assert all(not torch.equal(first[int(i)], x) for i, x in zip(two.index, two.x, strict=True))


@pytest.mark.parametrize("name", ["shift", "flip"])
def test_augmentation_of_an_example_does_not_depend_on_the_batch(name):
    split = images(40)

    def epoch(number, batch):
        batches = exact(split, batch, augment=name)
        found = {}
        for step in range(-(-40 * (number + 1) // batch)):
            got = batches[step]
            for row, (i, x) in enumerate(zip(got.index, got.x, strict=True)):
                if (step * batch + row) // 40 == number:
                    found[int(i)] = x
        return torch.stack([found[i] for i in range(40)])

    plain = torch.from_numpy(split.x).flatten(1).long()
    first = epoch(0, 40)
    assert torch.equal(first, epoch(0, 7))
    assert torch.equal(first, epoch(0, 64))
    assert not torch.equal(first, epoch(1, 40))
    assert not torch.equal(first, plain)


def test_shift_moves_by_at_most_an_eighth():
    x = torch.zeros(200, 2, 16, 24, dtype=torch.uint8)
    x[:, :, 8, 12] = 9
    u = Rng(1, "test").uniform((200, 2))
    moved = shift(x, u)
    assert moved.dtype == x.dtype
    assert moved.shape == x.shape
    places = (moved[:, 0] == 9).nonzero()
    assert len(places) == 200
    by = places[:, 1:] - torch.tensor([8, 12])
    assert set(by[:, 0].tolist()) == {-2, -1, 0, 1, 2}
    assert set(by[:, 1].tolist()) == {-3, -2, -1, 0, 1, 2, 3}
    assert torch.equal(moved[:, 0], moved[:, 1])


def test_shift_repeats_the_edge():
    x = torch.arange(64).view(1, 1, 8, 8)
    moved = shift(x, torch.tensor([[0.99, 0.5]]))  # one row down
    assert torch.equal(moved[0, 0], torch.cat([x[0, 0, :1], x[0, 0, :-1]]))


def test_flip_mirrors_half():
    x = torch.randint(0, 9, (100, 3, 4, 5), generator=torch.Generator().manual_seed(0))
    u = torch.linspace(0, 0.999, 100)[:, None]
    got = flip(x, u)
    assert torch.equal(got[:50], x[:50].flip(3))
    assert torch.equal(got[51:], x[51:])


def test_augmentations_refuse_what_they_cannot_change():
    vectors = DataSpec("vector", (4,), levels=3)
    split = Split(np.zeros((5, 4), np.uint8))
    for name in ("shift", "flip"):
        with pytest.raises(UsageError) as caught:
            Batches(split, PixelCodecConfig().empty(vectors), 2, 0, augment=name)
        assert caught.value.key == "data.augment_unfit"
    with pytest.raises(UsageError) as caught:
        exact(images(5), 2, augment="shfit")
    assert caught.value.key == "data.unknown_augment"
    small = DataSpec("image", (1, 4, 4), levels=3)
    with pytest.raises(UsageError):
        Batches(Split(np.zeros((5, 1, 4, 4), np.uint8)), PixelCodecConfig().empty(small), 2, 0, augment="shift")


@pytest.mark.parametrize(("first", "rows"), [(-1, 2), (0, 0), (5, 4), (8, None)])
def test_rows_outside_the_batch_are_refused(first, rows):
    with pytest.raises(ValueError, match="not within a batch"):
        exact(images(9), 8, first=first, rows=rows)


def test_negative_steps_are_refused():
    with pytest.raises(IndexError):
        exact(images(9), 8)[-1]


def test_wide_levels_and_floats_survive():
    raw = DataSpec("image", (1, 1, 2), levels=65_536)
    x = np.array([[[[0, 65_535]]], [[[40_000, 1]]]], dtype=np.uint16)
    batches = Batches(Split(x), LevelCodecConfig().empty(raw), 2, 0)
    got = batches[0]
    assert torch.equal(got.x, torch.from_numpy(x.astype(np.int64))[got.index].flatten(1))


def test_mapped_and_wide_data_are_gathered_like_others(tmp_path):
    """A mapped file and values of more than 8 bits give the rows that memory gives."""
    x = np.random.default_rng(1).integers(0, 65_536, (40, 1, 4, 6)).astype(np.uint16)
    np.save(tmp_path / "x.npy", x)
    raw = DataSpec("image", (1, 4, 6), levels=65_536)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="c")
    for split in (Split(x), Split(mapped)):
        batches = Batches(split, LevelCodecConfig().empty(raw), 7, 0)
        for step in range(8):
            got = batches[step]
            assert torch.equal(got.x, torch.from_numpy(x.astype(np.int64))[got.index].flatten(1))
        assert torch.equal(batches.take(3, 9).x, torch.from_numpy(x[3:9].astype(np.int64)).flatten(1))
    assert Split(mapped).mapped
    assert Split(mapped).tensor().numpy().ctypes.data == mapped.ctypes.data
