"""A run goes on with the images it was begun with, whatever has become of their files, or is told why it cannot."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from quintet import api
from quintet.compare.cell import TRAINING, _claim, train_cell
from quintet.core.errors import Interrupted, UsageError
from quintet.data import cache
from quintet.data.begun import as_begun, hold
from quintet.data.dataset import Dataset
from quintet.data.sources import open_dataset
from quintet.recipes.load import CONFIG, load

PARTS = ("train", "validation", "judge", "test")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUINTET_CACHE", str(tmp_path_factory.mktemp("cache")))


def noise(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8)).astype(np.uint8)).save(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for i in range(40):
        noise(tmp_path / "photos" / ("a", "b")[i % 2] / f"{i:02d}.png", i)
    return tmp_path / "photos"


def change(photos: Path) -> None:
    """Three removed, two replaced, one added."""
    for i in (0, 2, 4):
        os.remove(photos / "a" / f"{i:02d}.png")
    for i in (1, 3):
        noise(photos / "b" / f"{i:02d}.png", 100 + i)
    noise(photos / "b" / "new.png", 200)


def begin(dataset: Dataset, folder: Path) -> Path:
    """What a command leaves when it begins."""
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / "compare.json"
    record.write_text(json.dumps({"data": {"fingerprint": dataset.fingerprint}}))
    hold(dataset, folder)
    return record


def same(a: Dataset, b: Dataset) -> bool:
    return a.fingerprint == b.fingerprint and all(
        np.array_equal(getattr(a, part).x, getattr(b, part).x)
        and np.array_equal(getattr(a, part).labels["label"], getattr(b, part).labels["label"])
        for part in PARTS
    )


def test_the_copy_in_the_cache_is_used_and_changes_are_counted(photos: Path, tmp_path: Path) -> None:
    first = open_dataset(photos)
    record = begin(first, tmp_path / "run")
    change(photos)
    for _ in range(2):  # the second time both are in the cache
        now = open_dataset(photos)
        assert now.fingerprint != first.fingerprint
        again = as_begun(now, record)
        assert same(again, first)
        assert again.names == first.names
        assert "3 removed, 2 replaced, 1 added" in again.notes[-1]["en"]
        assert as_begun(again, record) is again
    assert as_begun(now, tmp_path / "no" / "compare.json") is now
    record.write_text("{")
    assert as_begun(now, record) is now


def test_a_copy_stays_as_long_as_the_run_and_no_longer(photos: Path, tmp_path: Path) -> None:
    record = begin(open_dataset(photos), tmp_path / "run")
    change(photos)
    open_dataset(photos)
    root = cache.cache_root()
    assert root is not None
    assert len(list(root.iterdir())) == 2
    noise(photos / "b" / "newer.png", 300)
    open_dataset(photos)
    assert len(list(root.iterdir())) == 2  # the state between went, as no run held it
    shutil.rmtree(record.parent)
    noise(photos / "b" / "newest.png", 400)
    open_dataset(photos)
    assert len(list(root.iterdir())) == 1


def test_other_options_are_other_data(photos: Path, tmp_path: Path) -> None:
    record = begin(open_dataset(photos), tmp_path / "run")
    other = open_dataset(photos, {"size": 4})
    assert as_begun(other, record) is other


def test_without_a_copy_nothing_is_made_up(photos: Path, tmp_path: Path) -> None:
    record = begin(open_dataset(photos, {"cache": False}), tmp_path / "run")
    change(photos)
    now = open_dataset(photos, {"cache": False})
    assert as_begun(now, record) is now
    assert not now.source


def test_touched_files_are_the_same_data(photos: Path, tmp_path: Path) -> None:
    first = open_dataset(photos)
    record = begin(first, tmp_path / "run")
    for file in photos.rglob("*.png"):
        os.utime(file, (0, 0))
    now = open_dataset(photos)
    assert as_begun(now, record) is now
    assert same(now, first)


def test_train_and_compare_go_on_with_what_they_were_begun_with(photos: Path, tmp_path: Path) -> None:
    def job(rescan: bool = False) -> api.CellJob:
        return api.train_job("vae", photos, budget="5steps", out=tmp_path / "run", rescan=rescan)

    begun = job()
    begun.folder.mkdir()
    _claim(begun.folder, begun.config(), resume=False)
    hold(begun.dataset, begun.folder)
    record = begin(begun.dataset, tmp_path / "comparison")
    change(photos)
    assert same(job().dataset, begun.dataset)
    _claim(begun.folder, job().config(), resume=True)
    assert job(rescan=True).dataset.fingerprint == open_dataset(photos).fingerprint
    planned = api.plan_compare(photos, ["vae"], budget="5steps", out=record.parent)
    assert same(planned.dataset, begun.dataset)


def test_changed_data_are_taken_on_purpose_only(photos: Path, tmp_path: Path) -> None:
    def config(size: int = 8) -> dict[str, object]:
        options = {"cache": False, "size": size}
        return api.train_job("vae", photos, options=options, budget="5steps", out=tmp_path / "none").config()

    folder = tmp_path / "run"
    folder.mkdir()
    before = config()
    _claim(folder, before, resume=False)
    change(photos)
    with pytest.raises(UsageError) as caught:
        _claim(folder, config(), resume=True)
    assert caught.value.key == "data.changed_run"
    assert "--rescan" in caught.value.text("en")
    assert "--rescan" in caught.value.text("zh")
    _claim(folder, config(), resume=True, rescan=True)
    held = json.loads((folder / CONFIG).read_text())
    assert held["data"]["earlier"] == [before["data"]["fingerprint"]]  # type: ignore[index]
    _claim(folder, config(), resume=True)  # from now on these are its data
    noise(photos / "c" / "class.png", 500)
    for rescan in (False, True):
        with pytest.raises(UsageError) as caught:
            _claim(folder, config(), resume=True, rescan=rescan)
    assert caught.value.key == "data.changed_shape"  # another class
    shutil.rmtree(photos / "c")
    noise(photos / "b" / "one.png", 600)
    (folder / TRAINING).write_text("{}")
    with pytest.raises(UsageError) as caught:
        _claim(folder, config(), resume=True, rescan=True)
    assert caught.value.key == "data.changed_run"  # a finished training is not made to look as if it had seen them


def test_a_resumed_training_ends_in_the_same_bits_though_its_images_are_gone(photos: Path, tmp_path: Path) -> None:
    changes = ["train.batch=8"]

    def weights(folder: Path, *, resume: bool = False, rescan: bool = False, stop_after: int | None = None) -> bytes:
        seen = 0

        def stop() -> bool:
            return stop_after is not None and seen >= stop_after

        def listen(told: Mapping[str, Any]) -> None:
            nonlocal seen
            seen += told["kind"] == "step"

        job = api.train_job("vae", photos, budget="24steps", out=folder, rescan=rescan, threads=1, set=changes)
        train_cell(job, listen, stop, resume=resume, rescan=rescan)
        model = load(folder, "cpu").model
        return b"".join(value.numpy().tobytes() for value in model.state_dict().values())

    whole = weights(tmp_path / "whole")
    for name in ("cut", "rescan"):
        with pytest.raises(Interrupted):
            weights(tmp_path / name, stop_after=1)
    change(photos)
    assert weights(tmp_path / "cut", resume=True) == whole
    assert weights(tmp_path / "rescan", resume=True, rescan=True) != whole
