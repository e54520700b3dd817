"""Folders: labels, splits, what is listed with which reason, sizes, duplicates, few images, odd names, the cache."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from quintet.core.errors import DataError, UsageError
from quintet.data import cache
from quintet.data.dataset import Dataset
from quintet.data.options import DataOptions
from quintet.data.report import describe_data
from quintet.data.sources import open_dataset

PARTS = ("train", "validation", "judge", "test")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("QUINTET_CACHE", str(tmp_path_factory.mktemp("cache")))


def noise(seed, size=(10, 12), channels=3):
    x = np.random.default_rng(seed).integers(0, 256, (*size, channels)).astype(np.uint8)
    return Image.fromarray(x[:, :, 0] if channels == 1 else x)


def smooth(seed, side=64):
    """A picture of low frequencies, which survives encoding and resizing."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 5, 3)).astype(np.uint8)
    return Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)


def fill(folder: Path, count=30, first=0, suffix="png", **more):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        noise(first + i, **more).save(folder / f"{i:03d}.{suffix}")


def every(dataset: Dataset):
    return np.concatenate([getattr(dataset, part).x for part in PARTS])


def listed(dataset: Dataset):
    return {item["file"]: (item["verdict"], item["reason"]) for item in dataset.found["listed"]}


def said(dataset: Dataset, words: str) -> bool:
    return any(words in text["en"] for text in dataset.notes)


# Labels and splits


def test_sub_folders_are_labels_at_any_depth(tmp_path):
    fill(tmp_path / "cat", 20)
    fill(tmp_path / "dog" / "2024" / "may", 20, first=100)
    dataset = open_dataset(tmp_path)
    assert dataset.names == {"label": ("cat", "dog")}
    assert dataset.spec.shape == (3, 10, 12)
    assert dataset.spec.levels == 256
    assert sum(len(getattr(dataset, part)) for part in PARTS) == 40
    pixels = {np.asarray(noise(i)).transpose(2, 0, 1).tobytes(): 0 for i in range(20)}
    pixels |= {np.asarray(noise(100 + i)).transpose(2, 0, 1).tobytes(): 1 for i in range(20)}
    for part in PARTS:
        split = getattr(dataset, part)
        for x, label in zip(split.x, split.labels["label"], strict=True):
            assert pixels[x.tobytes()] == label
    assert not open_dataset(tmp_path, {"label": "none"}).spec.conditions
    with pytest.raises(UsageError):
        open_dataset(tmp_path, {"label": "colour"})


def test_official_splits(tmp_path):
    fill(tmp_path / "train" / "a", 40)
    fill(tmp_path / "train" / "b", 40, first=100)
    fill(tmp_path / "test" / "a", 12, first=200)
    fill(tmp_path / "val" / "b", 9, first=300)
    fill(tmp_path / "other", 3, first=400)
    noise(0).save(tmp_path / "test" / "a" / "copy.png")
    dataset = open_dataset(tmp_path)
    assert len(dataset.test) == 13
    assert len(dataset.validation) == 9
    assert len(dataset.train) + len(dataset.judge) == 79  # the copy of a test image is left out
    assert dataset.names["label"] == ("a", "b")
    assert listed(dataset)["other/000.png"] == ("skipped", "beside_train")
    assert dataset.found["across"] == {"copies": 1, "near": 0}
    assert said(dataset, "exact copies of test")


def test_missing_labels_one_class_empty_class_and_case(tmp_path):
    fill(tmp_path / "cat", 20)
    (tmp_path / "empty").mkdir()
    one = open_dataset(tmp_path)
    assert not one.spec.conditions
    assert said(one, "All labels are equal")
    assert said(one, "empty")
    fill(tmp_path / "Cat", 5, first=50)
    noise(99).save(tmp_path / "stray.png")
    dataset = open_dataset(tmp_path)
    assert not dataset.spec.conditions
    assert said(dataset, "1 of 26 images have no label")
    assert said(dataset, "differ in case only")


def test_many_classes(tmp_path):
    for i in range(300):
        (tmp_path / f"class{i:05d}").mkdir()
        for j in range(2):
            noise(2 * i + j, (4, 4), 1).save(tmp_path / f"class{i:05d}" / f"{j}.png")
    assert dict(open_dataset(tmp_path).spec.conditions) == {"label": 300}


# Files that cannot be used


def test_bad_files_are_listed_and_survived(tmp_path):
    fill(tmp_path / "a", 100)
    bad = tmp_path / "a"
    content = (bad / "000.png").read_bytes()
    noise(1).save(tmp_path / "whole.jpg")
    jpeg = (tmp_path / "whole.jpg").read_bytes()
    os.remove(tmp_path / "whole.jpg")
    (bad / "cut.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (bad / "zero.png").write_bytes(b"")
    (bad / "text.jpg").write_text("no picture")
    (bad / "really.png").write_bytes(jpeg)
    (bad / "header.png").write_bytes(content[:20] + b"\xff\xff" + content[22:])
    (bad / "a.png").mkdir()
    (bad / "gone.png").symlink_to(tmp_path / "nowhere.png")
    outside = tmp_path.parent / f"{tmp_path.name}-outside.png"
    noise(7777).save(outside)
    (bad / "outside.png").symlink_to(outside)
    (bad / "inside.png").symlink_to(bad / "001.png")
    os.mkfifo(bad / "pipe.png")
    (bad / ".hidden.png").write_bytes(content)
    (bad / "vector.svg").write_text("<svg/>")
    (bad / "notes.txt").write_text("hello")
    (bad / "loop").symlink_to(tmp_path)
    dataset = open_dataset(tmp_path)
    found = listed(dataset)
    assert found["a/cut.jpg"] == ("bad", "truncated")
    assert found["a/zero.png"] == ("bad", "zero")
    assert found["a/text.jpg"] == ("bad", "no_image")
    assert found["a/really.png"] == ("odd", "mislabelled")
    assert found["a/header.png"][0] == "bad"
    assert found["a/a.png"] == ("bad", "directory")
    assert found["a/gone.png"] == ("bad", "dangling")
    assert found["a/outside.png"] == ("bad", "outside")
    assert found["a/pipe.png"] == ("bad", "special")
    assert found["a/vector.svg"] == ("bad", "format")
    assert found["a/.hidden.png"] == ("skipped", "hidden")
    assert found["a/loop"] == ("skipped", "folder_link")
    assert "a/inside.png" not in found
    assert dataset.found["other_files"] == {"txt": 1}
    assert dataset.found["bad"] == 9
    assert len(every(dataset)) == 102  # 100, the mislabelled one, the link inside
    assert dataset.found["copies"] == 1
    assert not any(np.array_equal(x, np.asarray(noise(7777)).transpose(2, 0, 1)) for x in every(dataset))
    report = describe_data(dataset)
    json.dumps(report, allow_nan=False)
    assert all(item["en"] and item["zh"] for item in report["found"]["listed"])


def test_files_without_permission(tmp_path, monkeypatch):
    fill(tmp_path / "a", 30)
    locked = tmp_path / "a" / "003.png"
    locked.chmod(0)
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != locked and allowed(path, mode))  # also as root
    dataset = open_dataset(tmp_path)
    assert listed(dataset)["a/003.png"] == ("bad", "permission")
    assert len(every(dataset)) == 29


def test_more_than_a_tenth_bad_stops_unless_allowed(tmp_path):
    fill(tmp_path, 30)
    for i in range(4):
        (tmp_path / f"bad{i}.png").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        open_dataset(tmp_path)
    assert caught.value.key == "data.many_bad"
    assert "bad0.png" in caught.value.text("zh")
    assert len(every(open_dataset(tmp_path, ["allow_bad=true"]))) == 30
    with pytest.raises(DataError):
        open_dataset(tmp_path)


def test_nothing_usable(tmp_path):
    with pytest.raises(DataError) as caught:
        open_dataset(tmp_path)
    assert caught.value.key == "data.no_image_files"
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(DataError) as caught:
        open_dataset(tmp_path, {"allow_bad": True})
    assert caught.value.key == "data.no_images"
    assert caught.value.found["listed"][0]["reason"] == "no_image"


# Sizes, channels, levels


def test_mixed_sizes_get_the_median_short_side(tmp_path):
    for i, size in enumerate([(1, 1), (1, 5000), (5000, 1), (17, 33), *[(40 + i, 90 - i) for i in range(30)]]):
        noise(i, size).save(tmp_path / f"{i}.png")
    dataset = open_dataset(tmp_path)
    assert dataset.spec.shape == (3, 48, 48)
    assert len(every(dataset)) == 34
    assert dataset.found["sizes"]["1x5000"] == 1
    assert dataset.found["sizes_in_all"] == 34
    assert said(dataset, "34 size(s)")
    assert open_dataset(tmp_path, ["size=12x20", "policy=fit"]).spec.shape == (3, 12, 20)
    assert open_dataset(tmp_path, {"size": 8, "channels": 1}).spec.shape == (1, 8, 8)
    with pytest.raises(DataError) as caught:
        open_dataset(tmp_path, {"size": "keep"})
    assert caught.value.key == "data.mixed_sizes"


@pytest.mark.parametrize(
    ("size", "frame"),
    [
        ((128, 96), (128, 96)),
        ((300, 300), (64, 64)),
        ((240, 320), (64, 88)),
        ((320, 240), (88, 64)),
        ((20, 900), (16, 16)),
    ],
)
def test_one_size_is_kept_or_reduced_with_its_aspect(tmp_path, size, frame):
    fill(tmp_path, 20, size=size, suffix="jpg")
    assert open_dataset(tmp_path).spec.shape == (3, *frame)
    assert open_dataset(tmp_path, {"size": "keep"}).spec.shape == (3, *size)


def test_grey_stays_grey_even_when_stored_in_colour(tmp_path):
    fill(tmp_path / "grey", 20, channels=1)
    for i in range(20):
        noise(i, channels=1).convert("RGB").save(tmp_path / "grey" / f"rgb{i}.png")
    dataset = open_dataset(tmp_path)
    assert dataset.spec.shape == (1, 10, 12)
    assert dataset.found["copies"] == 20
    assert said(dataset, "stored in colour")
    assert open_dataset(tmp_path, {"channels": 3}).spec.shape == (3, 10, 12)
    noise(5000).save(tmp_path / "grey" / "colour.png")
    assert open_dataset(tmp_path).spec.shape == (3, 10, 12)


def test_sixteen_bits(tmp_path):
    for i in range(30):
        x = np.random.default_rng(i).integers(0, 4096, (8, 9)).astype(np.uint16)
        Image.fromarray(x).save(tmp_path / f"{i}.png")
    dataset = open_dataset(tmp_path)
    assert dataset.spec.levels == 256
    assert every(dataset).dtype == np.uint8
    assert said(dataset, "4095 becomes 255")
    assert 120 < every(dataset).mean() < 135
    kept = open_dataset(tmp_path, {"levels": 65_536})
    assert kept.spec.levels == 4096
    assert every(kept).max() > 4000
    x = np.random.default_rng(3).integers(0, 65_536, (8, 9)).astype(np.uint16)
    Image.fromarray(x).save(tmp_path / "x.png")
    wide = open_dataset(tmp_path)
    expected = np.rint(x / 257).astype(np.uint8)
    assert any(np.array_equal(row[0], expected) for row in every(wide))


@pytest.mark.parametrize("bits", [10, 12, 14])
@pytest.mark.parametrize("background", ["white", "grey"])
def test_padding_has_no_part_in_what_white_is(tmp_path, bits, background):
    white = 2**bits - 1
    for i in range(30):
        x = np.random.default_rng(i).integers(0, white + 1, (8 + i % 3, 16)).astype(np.uint16)
        x[0, :2] = 0, white  # a sharp edge, which resampling exceeds
        Image.fromarray(x).save(tmp_path / f"{i}.png")
    options = {"policy": "fit", "size": 16, "background": background}
    dataset = open_dataset(tmp_path, options)
    assert said(dataset, f"{white} becomes 255")
    assert dataset.found["white"] == white
    x = every(dataset)
    assert (x[:, :, [0, 1, -1]] == (255 if background == "white" else 128)).all()
    assert 110 < x[:, :, 6:10].mean() < 145
    kept = open_dataset(tmp_path, options | {"levels": 65_536})
    assert kept.spec.levels == white + 1
    assert np.abs(every(kept)[:, :, [0, 1, -1]] - white * (1.0 if background == "white" else 128 / 255)).max() <= 0.5


def test_a_nearly_black_float_image_stays_so_among_others(tmp_path):
    for i in range(30):
        x = np.random.default_rng(i).integers(0, 256, (8, 9)).astype(np.float32)
        Image.fromarray(x if i else (x > 128).astype(np.float32)).save(tmp_path / f"{i}.tif")
    x = every(open_dataset(tmp_path))
    assert len(x) == 30
    assert sorted(row.max() for row in x)[:2] == [1, sorted(row.max() for row in x)[1]]
    assert sum(row.max() <= 1 for row in x) == 1
    for path in tmp_path.iterdir():
        Image.fromarray(np.asarray(Image.open(path)) / np.float32(255)).save(path)
    unit = every(open_dataset(tmp_path))
    assert np.array_equal(np.sort(unit.reshape(30, -1), 0), np.sort(x.reshape(30, -1), 0))


def test_pages_of_different_depth_do_not_wrap(tmp_path):
    for i in range(30):
        rng = np.random.default_rng(i)
        pages = [rng.integers(0, 200, (8, 9)).astype(np.uint8), rng.integers(1000, 4096, (8, 9)).astype(np.uint16)]
        first, second = (Image.fromarray(page) for page in pages)
        first.save(tmp_path / f"{i}.tif", save_all=True, append_images=[second])
    dataset = open_dataset(tmp_path, {"frames": "all"})
    x = every(dataset)
    assert len(x) == 60
    means = np.sort(x.mean((1, 2, 3)))
    assert np.abs(means[:30] - 100).max() < 25  # 8-bit pages, as they are
    assert np.abs(means[30:] - 2548 / 4095 * 255).max() < 25


def test_phone_jpegs_have_no_remark_and_one_picture_each(tmp_path):
    for i in range(30):
        smooth(i).save(tmp_path / f"{i}.jpg", "MPO", save_all=True, append_images=[smooth(100 + i, 32)])
    dataset = open_dataset(tmp_path, {"frames": "all"})
    assert len(every(dataset)) == 30
    assert not listed(dataset)
    assert dataset.found["formats"] == {"JPEG": 30}


def test_a_test_folder_without_labels_is_left_out_where_training_has_them(tmp_path):
    for k, name in enumerate(("a", "b")):
        fill(tmp_path / "train" / name, 25, first=100 * k)
    fill(tmp_path / "test", 12, first=500)
    dataset = open_dataset(tmp_path)
    assert dict(dataset.spec.conditions) == {"label": 2}
    assert len(every(dataset)) == 50
    assert len(dataset.test) == 10
    assert said(dataset, "12 images")
    assert dataset.found["skipped"] == 12
    assert len(open_dataset(tmp_path, ["label=none"]).test) == 12


def test_few_levels_are_seen(tmp_path):
    generator = np.random.default_rng(0)
    for i in range(40):
        Image.fromarray(generator.choice([0, 85, 170, 255], (20, 20)).astype(np.uint8)).save(tmp_path / f"{i}.png")
    dataset = open_dataset(tmp_path)
    assert (dataset.spec.levels, dataset.origin, dataset.step) == (4, 0, 85)
    assert set(np.unique(every(dataset))) == {0, 1, 2, 3}


def test_frames(tmp_path):
    for i in range(20):
        images = [noise(3 * i + j) for j in range(3)]
        images[0].save(tmp_path / f"{i}.webp", save_all=True, append_images=images[1:], lossless=True)
    assert len(every(open_dataset(tmp_path))) == 20
    assert len(every(open_dataset(tmp_path, {"frames": "all"}))) == 60


# Duplicates


def test_near_duplicates_stay_in_one_split_and_leave_training_for_an_official_test(tmp_path):
    for i in range(60):
        smooth(i).save(tmp_path / f"{i}.png")
        if i < 10:
            smooth(i).save(tmp_path / f"{i}-again.jpg", quality=80)
        elif i < 16:
            smooth(i).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / f"{i}-flip.png")
        elif i < 20:
            smooth(i, 200).save(tmp_path / f"{i}-large.png")
    dataset = open_dataset(tmp_path, {"size": 64})
    assert dataset.found["near"] == 40
    assert said(dataset, "40 images have a near duplicate")
    parts = [(part, x.astype(int)) for part in PARTS for x in getattr(dataset, part).x]
    for i in range(20):
        original = np.asarray(smooth(i)).transpose(2, 0, 1).astype(int)
        near = [
            part for part, x in parts if min(np.abs(x - original).mean(), np.abs(x[..., ::-1] - original).mean()) < 6
        ]
        assert len(near) == 2, i
        assert len(set(near)) == 1, i
    train, test = tmp_path / "train", tmp_path / "test"
    train.mkdir()
    test.mkdir()
    for path in tmp_path.glob("*.*"):
        shutil.move(path, (test if "-" in path.name else train) / path.name)
    split = open_dataset(tmp_path, {"size": 64})
    assert len(split.test) == 20
    assert len(split.train) + len(split.validation) + len(split.judge) == 40
    assert split.found["across"] == {"copies": 0, "near": 20}
    assert open_dataset(tmp_path, {"size": 64, "near": False}).found["near"] is None


def test_pictures_that_all_look_alike_are_no_near_duplicates(tmp_path):
    base = np.asarray(smooth(1)).astype(int)
    for i in range(60):
        x = base + np.random.default_rng(i).integers(-2, 3, base.shape)
        Image.fromarray(x.clip(0, 255).astype(np.uint8)).save(tmp_path / f"{i}.png")
    dataset = open_dataset(tmp_path)
    assert len(dataset.test) == 12
    assert said(dataset, "look alike")


# Few images


@pytest.mark.parametrize("count", [1, 2, 5, 19])
def test_few_images_are_all_for_training(tmp_path, count):
    fill(tmp_path, count)
    dataset = open_dataset(tmp_path)
    assert len(dataset.train) == count
    assert not len(dataset.test) + len(dataset.judge) + len(dataset.validation)
    assert said(dataset, "too few to hold any out")


# Names


@pytest.mark.skipif(os.name != "posix", reason="names that other systems refuse")
def test_odd_names(tmp_path):
    names = [
        "new\nline.png",
        "CON.png",
        "<script>.png",
        "-dash.png",
        "x" * 251 + ".png",
        "[red]b.png",
        "é中😀.png",
        "A.png",
        "a.png",
    ]
    for i, name in enumerate(names):
        noise(i).save(tmp_path / "tmp.png")
        os.rename(tmp_path / "tmp.png", tmp_path / name)
    os.rename(tmp_path / "a.png", os.fsencode(tmp_path) + b"/\xff\xfe.png")
    (tmp_path / "zero\x1b[31m\n.png").write_bytes(b"")
    fill(tmp_path / "..hidden", 3)
    fill(tmp_path / "more", 20, first=100)
    dataset = open_dataset(tmp_path)
    assert len(every(dataset)) == 29
    text = json.dumps(describe_data(dataset), allow_nan=False)
    assert "\\u001b" not in text
    shown = next(item["file"] for item in dataset.found["listed"] if item["reason"] == "zero")
    assert shown == "zero\\x1b[31m\\n.png"


def test_a_root_that_is_a_link_and_links_that_lead_out(tmp_path):
    real = tmp_path / "real"
    fill(real, 20)
    (real / "up").symlink_to(tmp_path)
    (tmp_path / "link").symlink_to(real)
    assert len(every(open_dataset(tmp_path / "link"))) == 20


# The cache


def test_the_cache_gives_the_same_and_notices_changes(tmp_path, monkeypatch):
    import quintet.data.assemble as assemble

    fill(tmp_path / "a", 30)
    fill(tmp_path / "b", 30, first=50)
    made = open_dataset(tmp_path)
    calls = []
    monkeypatch.setattr(assemble._Assembly, "run", lambda self: calls.append(1))
    again = open_dataset(tmp_path)
    assert not calls
    assert again.fingerprint == made.fingerprint
    assert again.notes == made.notes
    assert again.names == made.names
    assert again.found == json.loads(json.dumps(made.found))
    for part in PARTS:
        assert np.array_equal(getattr(again, part).x, getattr(made, part).x)
        assert np.array_equal(getattr(again, part).labels["label"], getattr(made, part).labels["label"])
    monkeypatch.undo()
    noise(9999).save(tmp_path / "a" / "000.png")
    changed = open_dataset(tmp_path)
    assert changed.fingerprint != made.fingerprint
    os.remove(tmp_path / "a" / "001.png")
    assert open_dataset(tmp_path).fingerprint != changed.fingerprint
    assert len(every(open_dataset(tmp_path))) == 59


def test_two_processes_that_make_the_same_entry_leave_one(tmp_path, monkeypatch):
    monkeypatch.setenv("QUINTET_CACHE", str(tmp_path / "cache"))
    fill(tmp_path / "x", 30)
    publish = cache.Draft.publish

    def late(self, meta):
        monkeypatch.setattr(cache.Draft, "publish", publish)
        open_dataset(tmp_path / "x")  # somebody else is first
        (entry,) = (place for place in (tmp_path / "cache").iterdir() if not place.name.startswith("."))
        before = (entry / "train.npy").stat().st_ino
        publish(self, meta)
        assert (entry / "train.npy").stat().st_ino == before  # what others may be reading stays

    monkeypatch.setattr(cache.os, "getpid", itertools.count(1).__next__)
    monkeypatch.setattr(cache.Draft, "publish", late)
    dataset = open_dataset(tmp_path / "x")
    assert not said(dataset, "could not be kept")
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_damaged_cache_is_made_again(tmp_path, monkeypatch):

    monkeypatch.setenv("QUINTET_CACHE", str(tmp_path / "cache"))
    fill(tmp_path / "x", 30)
    made = open_dataset(tmp_path / "x")
    (entry,) = (tmp_path / "cache").iterdir()
    content = bytearray((entry / "train.npy").read_bytes())
    content[len(content) // 2] ^= 1
    (entry / "train.npy").write_bytes(content)
    assert open_dataset(tmp_path / "x").fingerprint == made.fingerprint
    (entry / cache.META).write_text("{")
    again = open_dataset(tmp_path / "x")
    assert again.fingerprint == made.fingerprint
    assert np.array_equal(again.train.x, made.train.x)
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_large_data_are_mapped_and_equal(tmp_path):
    fill(tmp_path / "a", 40)
    fill(tmp_path / "b", 40, first=50)
    held = open_dataset(tmp_path, {"cache": False})
    mapped = open_dataset(tmp_path, {"memory_gib": 0})
    assert isinstance(mapped.train.x, np.memmap)
    assert mapped.fingerprint == held.fingerprint
    assert describe_data(mapped)["memory"]["mapped"]
    assert isinstance(open_dataset(tmp_path, {"memory_gib": 0}).train.x, np.memmap)
    assert mapped.train.tensor().numpy().ctypes.data == mapped.train.x.ctypes.data


def test_an_unwritable_cache_is_said_and_survived(tmp_path, monkeypatch):
    fill(tmp_path / "x", 30)
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("QUINTET_CACHE", str(tmp_path / "file" / "cache"))
    dataset = open_dataset(tmp_path / "x", {"memory_gib": 0})
    assert not isinstance(dataset.train.x, np.memmap)
    assert said(dataset, "could not be kept")


def test_a_full_disk_is_said_and_survived(tmp_path, monkeypatch):
    fill(tmp_path / "x", 30)
    monkeypatch.setattr(cache.Draft, "publish", lambda self, meta: (_ for _ in ()).throw(OSError(28, "No space left")))

    dataset = open_dataset(tmp_path / "x")
    assert said(dataset, "No space left")
    with pytest.raises(DataError):
        open_dataset(tmp_path / "x", {"memory_gib": 0})
    assert not list(Path(os.environ["QUINTET_CACHE"]).iterdir())


def test_a_file_that_goes_away_between_two_looks_is_listed(tmp_path, monkeypatch):
    import quintet.data.assemble as assemble

    fill(tmp_path, 40)
    monkeypatch.setattr(assemble, "SMALL", 0)
    first = assemble.choose_frame
    monkeypatch.setattr(assemble, "choose_frame", lambda *a: (os.remove(tmp_path / "005.png"), first(*a))[1])
    dataset = open_dataset(tmp_path)
    assert listed(dataset)["005.png"] == ("bad", "broken")
    assert len(every(dataset)) == 39


# Options


@pytest.mark.parametrize(
    ("pair", "word"),
    [("sise=3", "size"), ("size=0", "size"), ("size=big", "size"), ("size=4x4x4", "size"),
     ("background=mauve", "background"),
     ("channels=2", "channels"), ("size", "="), ("policy=crop", "policy"), ("max_pixels=1000000000", "max_pixels")],
)  # fmt: skip
def test_wrong_options_name_the_option(tmp_path, pair, word):
    with pytest.raises(UsageError) as caught:
        open_dataset(tmp_path, [pair])
    assert word in caught.value.text("en")


def test_options_that_mean_nothing_are_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((30, 3)))
    for data in ("digits", "toy:ring8", tmp_path / "x.npy", np.zeros((30, 3))):
        with pytest.raises(UsageError) as caught:
            open_dataset(data, ["size=3"])
        assert caught.value.key == "data.option_unused"
    assert DataOptions(size="64").size == 64


# Random trees


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_trees_open_or_are_refused(tmp_path_factory, data):
    root = tmp_path_factory.mktemp("tree")
    names = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="/\0"), min_size=1, max_size=8)
    endings = st.sampled_from([".png", ".jpg", ".GIF", ".txt", "", ".parquetx", ".svg"])
    for i in range(data.draw(st.integers(0, 12))):
        folder = root
        for name in data.draw(st.lists(st.sampled_from(["a", "b", "train", "test", "x.png"]), max_size=2)):
            folder /= name
        name = data.draw(names) + data.draw(endings)
        kind = data.draw(st.sampled_from(["image", "bytes", "folder", "link"]))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if kind == "image":
                noise(i, (data.draw(st.integers(1, 20)), data.draw(st.integers(1, 20)))).save(folder / name, "PNG")
            elif kind == "bytes":
                (folder / name).write_bytes(data.draw(st.binary(max_size=50)))
            elif kind == "folder":
                (folder / name).mkdir()
            else:
                (folder / name).symlink_to(data.draw(st.sampled_from([".", "..", "nowhere", "/etc/hostname"])))
        except (OSError, ValueError):
            continue
    try:
        dataset = open_dataset(root, {"allow_bad": data.draw(st.booleans())})
    except DataError:
        return
    json.dumps(describe_data(dataset), allow_nan=False)
    assert len(every(dataset)) <= 12
