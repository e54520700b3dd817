"""Checkpoints survive what can happen to files: truncation, flipped bits, full disks, death inside the write."""

from __future__ import annotations

import json
import os
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
