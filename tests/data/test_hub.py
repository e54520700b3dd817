"""Data sets of the hub: which files are taken, what a cache keeps, and what is said where nothing can be had.

A stand-in answers as the hub would. Where the real client is installed, it reads a cache of its own layout, offline.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import textwrap
import types
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from quintet.core.errors import DataError, UsageError
from quintet.data.sources import open_dataset

CONVERTED = "refs/convert/parquet"


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUINTET_CACHE", str(tmp_path_factory.mktemp("cache")))


class HubError(Exception):
    pass


class RepositoryNotFoundError(HubError):
    pass


class GatedRepoError(RepositoryNotFoundError):
    pass


class RevisionNotFoundError(HubError):
    pass


class OfflineModeIsEnabled(HubError):
    pass


def write(path: Path, first: int, count: int = 30) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(first, first + count):
        stream = io.BytesIO()
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (6, 6)).astype(np.uint8)).save(stream, "PNG")
        rows.append({"image": {"bytes": stream.getvalue(), "path": None}, "label": i % 2})
    pq.write_table(pa.Table.from_pylist(rows), path)


class Hub:
    """A hub of one repository: branch -> the folder with its files.

    Attributes:
        error: raised by whatever goes over the network.
        asked: (branch, files) of each download.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **branches: Path) -> None:
        self.branches: dict[str | None, Path] = {
            {"main": None, "converted": CONVERTED}[name]: folder for name, folder in branches.items()
        }
        self.error: Exception | None = None
        self.asked: list[tuple[str | None, tuple[str, ...]]] = []
        module: Any = types.ModuleType("huggingface_hub")
        module.HfApi, module.snapshot_download = lambda: self, self.snapshot_download
        monkeypatch.setitem(sys.modules, "huggingface_hub", module)

    def list_repo_files(self, repository: str, *, repo_type: str, revision: str | None = None) -> list[str]:
        assert (repository, repo_type) == ("owner/roses", "dataset")
        if self.error is not None:
            raise self.error
        if revision not in self.branches:
            raise RevisionNotFoundError(f"no {revision}")
        root = self.branches[revision]
        return [file.relative_to(root).as_posix() for file in root.rglob("*") if file.is_file()]

    def snapshot_download(
        self, repository: str, *, repo_type: str, revision: str | None = None, allow_patterns: Any = (),
        local_files_only: bool = False,
    ) -> str:  # fmt: skip
        assert (repository, repo_type) == ("owner/roses", "dataset")
        if revision not in self.branches:
            raise FileNotFoundError(str(revision))
        self.asked.append((revision, tuple(sorted(allow_patterns))))
        return str(self.branches[revision])


def test_parquet_files_of_the_repository_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "data" / "train-00000-of-00001.parquet", 0)
    write(tmp_path / "data" / "test-00000-of-00001.parquet", 100)
    (tmp_path / "script.py").write_text("raise SystemExit('never run')")
    hub = Hub(monkeypatch, main=tmp_path)
    dataset = open_dataset("hf:owner/roses", ["size=4"])
    assert dataset.name == "hf:owner/roses"
    assert dataset.spec.shape == (1, 4, 4)
    assert len(dataset.test) == 30
    assert hub.asked == [(None, ("data/test-00000-of-00001.parquet", "data/train-00000-of-00001.parquet"))]


@pytest.mark.parametrize(
    ("config", "first"), [("", 0), ("/default", 0), ("/other", 200)], ids=["no configuration", "default", "other"]
)
def test_configurations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: str, first: int) -> None:
    (tmp_path / "main").mkdir()
    (tmp_path / "main" / "a.json").write_text("{}")
    converted = tmp_path / "converted"
    write(converted / "default" / "train" / "0000.parquet", 0)
    write(converted / "default" / "test" / "0000.parquet", 100, 10)
    write(converted / "other" / "train" / "0000.parquet", 200)
    hub = Hub(monkeypatch, main=tmp_path / "main", converted=converted)
    dataset = open_dataset(f"hf:owner/roses{config}")
    write(tmp_path / "alone.parquet", first)
    alone = open_dataset(tmp_path / "alone.parquet")
    pixels = {x.tobytes() for part in (alone.train, alone.validation, alone.judge, alone.test) for x in part.x}
    assert {x.tobytes() for x in dataset.train.x} <= pixels
    assert len(hub.asked) == 1
    assert (len(dataset.test) == 10) == (first == 0)
    with pytest.raises(DataError) as caught:
        open_dataset("hf:owner/roses/third")
    assert caught.value.key == "data.hub_config"
    assert "default, other" in caught.value.text("en")


def test_names_that_are_none_and_repositories_without_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Hub(monkeypatch, main=tmp_path)
    with pytest.raises(DataError) as caught:
        open_dataset("hf:owner/roses")
    assert caught.value.key == "data.hub_no_parquet"
    for name in ("hf:roses", "hf:../x", "hf:a/b/c/d", "hf:a b/c", "hf:a/..", "hf:"):
        with pytest.raises(UsageError):
            open_dataset(name)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UsageError) as usage:
        open_dataset("hf:owner/roses")
    assert usage.value.exit_code == 2
    assert 'pip install "quintet[hf]"' in usage.value.text("en")


@pytest.mark.parametrize(
    ("error", "key", "words"),
    [
        (GatedRepoError("403"), "data.hub_gated", "https://huggingface.co/datasets/owner/roses"),
        (RepositoryNotFoundError("401"), "data.hub_unknown", "spelling"),
        (OfflineModeIsEnabled("offline"), "data.hub_offline", "offline"),
        (ConnectionError("no route\nto host"), "data.hub_offline", "no route to host"),
        (RuntimeError("a disk that is full"), "data.hub_failed", "a disk that is full"),
    ],
)
def test_what_is_said_where_nothing_can_be_had(
    monkeypatch: pytest.MonkeyPatch, error: Exception, key: str, words: str
) -> None:
    hub = Hub(monkeypatch)
    hub.error = error
    with pytest.raises(DataError) as caught:
        open_dataset("hf:owner/roses")
    assert caught.value.key == key
    assert words in caught.value.text("en")
    assert "owner/roses" in caught.value.text("zh")
    assert "\n" not in caught.value.text("en")


def test_what_the_client_keeps_is_used_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "default" / "train" / "0000.parquet", 0)
    hub = Hub(monkeypatch, converted=tmp_path)
    (tmp_path / "none").mkdir()
    online = open_dataset("hf:owner/roses")
    try:
        raise RuntimeError("wrapped") from ConnectionError("no route")
    except RuntimeError as error:
        hub.error = error
    assert open_dataset("hf:owner/roses").fingerprint == online.fingerprint
    hub.error = GatedRepoError("terms have changed")  # a refusal is none that a cache overrules
    with pytest.raises(DataError):
        open_dataset("hf:owner/roses")


def kept(home: Path) -> Path:
    """The hub client's cache with one data set, as it lays it out: a snapshot of links to blobs."""
    base = home / "hub" / "datasets--owner--roses"
    commit = "0123456789" * 4
    blob = base / "blobs" / ("f" * 40)
    write(blob, 0)
    link = base / "snapshots" / commit / "data" / "train-00000-of-00001.parquet"
    link.parent.mkdir(parents=True)
    link.symlink_to(os.path.relpath(blob, link.parent))
    (base / "refs").mkdir()
    (base / "refs" / "main").write_text(commit)
    return link


def test_the_real_client_offline(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub", reason="the extra 'hf' is not installed")
    link = kept(tmp_path)
    code = """
        from quintet.core.errors import DataError
        from quintet.data.hub import download

        print(download("owner/roses")[1])
        try:
            download("owner/tulips")
        except DataError as error:
            print(error.key)
    """
    env = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(link), "data.hub_offline"]


def test_a_snapshot_of_images_in_the_clients_cache_is_a_folder(tmp_path: Path) -> None:
    base = tmp_path / "datasets--owner--roses"
    root = base / "snapshots" / ("0" * 40)
    for i in range(24):
        blob = base / "blobs" / f"{i:040d}"
        blob.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (6, 6)).astype(np.uint8)).save(blob, "PNG")
        link = root / ("a", "b")[i % 2] / f"{i}.png"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    (tmp_path / "private.png").write_bytes((base / "blobs" / f"{0:040d}").read_bytes())
    (root / "a" / "private.png").symlink_to(tmp_path / "private.png")
    dataset = open_dataset(root)
    assert dataset.found["images"] == 24
    assert [(item["file"], item["reason"]) for item in dataset.found["listed"]] == [("a/private.png", "outside")]
