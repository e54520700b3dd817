"""Checkpoints survive what can happen to files: truncation, flipped bits, full disks, death inside the write."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from quintet.core import checkpoint
from quintet.core.errors import BusyError, ResourceError
from quintet.core.lock import locked

TENSORS = {"model": {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3)}, "optim": {"m": torch.ones(4)}}


def write(folder: Path, step: int, **options: int) -> Path:
    return checkpoint.save(folder, step, TENSORS, {"wall_s": 1.5}, **options)


def test_round_trip_and_pointer(tmp_path: Path) -> None:
    path = write(tmp_path, 12)
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert (found.step, found.path, found.state["wall_s"]) == (12, path, 1.5)
    for name, group in TENSORS.items():
        got = found.tensors(name)
        assert set(got) == set(group)
        assert all(torch.equal(got[key], value) and got[key].dtype == value.dtype for key, value in group.items())
    assert json.loads((tmp_path / "last.json").read_text())["path"] == "00000012"
    assert path.name == "00000012"


def test_keeps_the_newest(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4, 5):
        write(tmp_path, step, keep=3)
    assert [p.name for p in sorted(tmp_path.iterdir()) if p.is_dir()] == ["00000003", "00000004", "00000005"]


def test_what_was_written_last_stays_though_later_steps_are_there(tmp_path: Path) -> None:
    for keep in (1, 3):
        folder = tmp_path / str(keep)
        for step in (100, 500, 800, 900):
            write(folder, step, keep=keep)
        write(folder, 700, keep=keep)  # the best so far, or the first one after training began again
        assert checkpoint.steps(folder) == [700, 500][:keep]
        found = checkpoint.newest(folder)
        assert found is not None
        assert found.step == 700


def test_one_step_and_no_other(tmp_path: Path) -> None:
    write(tmp_path, 1)
    newer = write(tmp_path, 2)
    assert checkpoint.at(tmp_path, 1).step == 1
    assert checkpoint.at(tmp_path, 2).path == newer
    (newer / "model.safetensors").write_bytes(b"")
    for step in (2, 3):
        with pytest.raises(ResourceError) as caught:
            checkpoint.at(tmp_path, step)
        assert f"0000000{step}" in str(caught.value)
        assert "--resume" in str(caught.value)


def test_every_truncation_is_noticed_and_the_previous_one_used(tmp_path: Path) -> None:
    write(tmp_path, 1)
    newer = write(tmp_path, 2)
    for name in ("model.safetensors", "optim.safetensors", "state.json", "manifest.json"):
        whole = (newer / name).read_bytes()
        for length in range(0, len(whole), max(1, len(whole) // 40)):
            (newer / name).write_bytes(whole[:length])
            told: list[str] = []
            found = checkpoint.newest(tmp_path, lambda key, fields, told=told: told.append(fields["path"]))
            assert found is not None
            assert found.step == 1
            assert told == [str(newer)]
        (newer / name).write_bytes(whole)
    assert checkpoint.damage(newer) is None


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    rng = np.random.default_rng()
    for name in ("model.safetensors", "optim.safetensors", "state.json"):
        whole = (path / name).read_bytes()
        for position in rng.integers(0, 8 * len(whole), 200):
            bent = bytearray(whole)
            bent[position // 8] ^= 1 << (position % 8)
            (path / name).write_bytes(bytes(bent))
            assert checkpoint.damage(path) is not None
        (path / name).write_bytes(whole)


@pytest.mark.parametrize(
    "manifest",
    ["", "{}", "[]", '{"schema": 2, "files": {}}', '{"schema": 1, "files": {"../x": {"size": 1, "sha256": ""}}}'],
)
def test_odd_manifests_are_no_checkpoints(tmp_path: Path, manifest: str) -> None:
    path = write(tmp_path, 1)
    (path / "manifest.json").write_text(manifest)
    assert checkpoint.damage(path) is not None
    assert checkpoint.newest(tmp_path) is None


def test_a_flipped_bit_in_the_manifest_is_no_crash(tmp_path: Path) -> None:
    manifest = write(tmp_path, 1) / "manifest.json"
    whole = manifest.read_bytes()
    for position in range(8 * len(whole)):
        bent = bytearray(whole)
        bent[position // 8] ^= 1 << (position % 8)
        manifest.write_bytes(bytes(bent))
        found = checkpoint.newest(tmp_path)
        assert found is None or found.step == 1


def test_a_pickle_under_our_name_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    canary = tmp_path / "canary"
    payload = b"cos\nsystem\n(S'touch " + str(canary).encode() + b"'\ntR."
    (path / "model.safetensors").write_bytes(payload)
    assert checkpoint.newest(tmp_path) is None
    assert not canary.exists()


def test_disk_full_leaves_the_last_good_one(tmp_path: Path) -> None:
    write(tmp_path, 1)
    code = (
        "import resource, signal, sys, torch\nfrom pathlib import Path\nfrom quintet.core import checkpoint\n"
        "from quintet.core.errors import ResourceError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "try:\n    checkpoint.save(Path(sys.argv[1]), 2, {'model': {'x': torch.zeros(100_000)}}, {})\n"
        "except ResourceError as error:\n    print(error)\n    sys.exit(error.exit_code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 4, done.stderr
    assert str(tmp_path) in done.stdout
    assert "kB" in done.stdout
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.step == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000001", "last.json"]


def test_a_file_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "plan.json"
    checkpoint.write_atomically(path, b"old")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError) as caught:
        checkpoint.write_atomically(path, b"new")
    assert caught.value.exit_code == 4
    assert all(word in str(caught.value) for word in (str(path), os.strerror(errno.ENOSPC), "B)", "--resume"))
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]


def test_a_file_into_a_folder_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(ResourceError) as caught:
        checkpoint.write_atomically(tmp_path / "gone" / "away" / "plan.json", b"")
    assert "gone" in str(caught.value)


def test_frozen_parts_that_are_lost_are_stored_again_where_they_are_known(tmp_path: Path) -> None:
    parts = {"first.weight": torch.randn(3, 2), "first.bias": torch.randn(3)}
    digest = checkpoint.save_once(tmp_path, parts)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    other = {**parts, "first.bias": torch.randn(3)}
    for damaged in (b"", whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1]), None):
        path.unlink()
        if damaged is not None:
            path.write_bytes(damaged)
        with pytest.raises(ResourceError) as caught:
            checkpoint.load_once(tmp_path, digest, other)
        assert path.name in str(caught.value)
        found = checkpoint.load_once(tmp_path, digest, parts)
        assert all(torch.equal(found[name], value) for name, value in parts.items())
        assert path.read_bytes() == whole
    found = checkpoint.load_once(tmp_path, digest, other)
    assert all(torch.equal(found[name], value) for name, value in parts.items())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ResourceError):
        write(tmp_path / "inside", 1)


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    with pytest.raises(ResourceError) as caught:
        write(tmp_path / "x", 1)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    "point",
    [
        "half:1",
        "half:2",
        "after_file:1",
        "before_manifest",
        "half:4",
        "after_manifest",
        "after_rename",
        "after_pointer",
    ],
)
def test_killed_inside_the_write(tmp_path: Path, point: str) -> None:
    write(tmp_path, 1)
    pid = os.fork()
    if pid == 0:
        os.environ["QUINTET_FAULT"] = f"checkpoint.{point}"
        try:
            write(tmp_path, 2)
        finally:
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.step == (2 if point in ("after_rename", "after_pointer") else 1)
    write(tmp_path, 3)
    assert not list(tmp_path.glob(".*"))


def test_what_a_killed_writer_left_is_swept(tmp_path: Path) -> None:
    (tmp_path / ".plan.json.tmp-1").write_bytes(b"x")
    (tmp_path / ".frozen-0123.safetensors.tmp-1").write_bytes(b"x")
    (tmp_path / ".00000007.tmp-1").mkdir()
    (tmp_path / ".00000007.tmp-1" / "model.safetensors").write_bytes(b"x")
    (tmp_path / "plan.json").write_bytes(b"{}")
    with locked(tmp_path):
        assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", ".lock.json", "plan.json"]
    (tmp_path / ".last.json.tmp-1").write_bytes(b"x")
    write(tmp_path, 1)
    assert not list(tmp_path.glob(".*.tmp-*"))


def test_a_lock_that_cannot_name_its_holder_is_given_back(tmp_path: Path) -> None:
    (tmp_path / ".lock.json").mkdir()
    with pytest.raises(ResourceError) as caught, locked(tmp_path):
        raise AssertionError("not to be reached")
    assert caught.value.exit_code == 4
    (tmp_path / ".lock.json").rmdir()
    with locked(tmp_path):
        pass


def test_a_locked_folder_that_is_deleted(tmp_path: Path) -> None:
    with locked(tmp_path / "run"):
        shutil.rmtree(tmp_path / "run")


def test_two_runs_in_one_folder(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom quintet.core.lock import locked\n"
        "from quintet.core.errors import BusyError\n"
        "try:\n    with locked(Path(sys.argv[1])):\n        pass\n"
        "except BusyError as error:\n    print(error)\n    sys.exit(error.exit_code)\n"
    )
    with locked(tmp_path):
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
        assert done.returncode == 6, done.stderr
        assert str(os.getpid()) in done.stdout
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0


def test_a_killed_holder_gives_the_lock_back(tmp_path: Path) -> None:
    read, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        with locked(tmp_path):
            os.write(write_end, b"x")
            signal.pause()
    os.read(read, 1)
    with pytest.raises(BusyError), locked(tmp_path):
        pass
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with locked(tmp_path):
        pass
