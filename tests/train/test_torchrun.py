"""The real command line under torchrun, two processes on digits: same losses as one, Ctrl-C, a kill, resumes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from quintet.core import checkpoint

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes by /proc")

TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "QUINTET_LANG": "en"}
WAIT = 600.0


def start(folder: Path, *words: str, count: int = 2, steps: int = 20) -> subprocess.Popen[str]:
    launcher = TORCHRUN if count > 1 else ()
    command = ["train", "flow-matching", "digits", "--budget", f"{steps}steps", "--device", "cpu", "--threads", "1"]
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "quintet", *command, "--set", "train.batch=32", "-o", str(folder), *words],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    return process.communicate(timeout=WAIT)[0]


def lines(folder: Path) -> list[dict[str, Any]]:
    log = folder / "log.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def losses(folder: Path) -> dict[int, float]:
    return {line["step"]: line["model"]["total"] for line in lines(folder) if line["kind"] == "step"}


def wait_for_step(folder: Path, step: int) -> None:
    end = time.monotonic() + WAIT
    while max(losses(folder), default=-1) < step:
        assert time.monotonic() < end
        time.sleep(0.2)


def worker(parent: int, rank: int) -> int:
    """The process that torchrun started with this rank."""
    for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        if f"RANK={rank}" in Path(f"/proc/{child}/environ").read_text().split("\0"):
            return int(child)
    raise AssertionError(f"no rank {rank} below {parent}")


def undamaged(folder: Path) -> list[int]:
    found = [path for path in (folder / "stages" / "0-model" / "checkpoints").glob("[0-9]*") if path.is_dir()]
    assert not [path for path in found if checkpoint.damage(path) is not None]
    return sorted(int(path.name) for path in found)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    folder = tmp_path_factory.mktemp("alone") / "run"
    process = start(folder, count=1)
    said = finish(process)
    assert process.returncode == 0, said
    assert sorted(losses(folder)) == list(range(20))
    return losses(folder)


def test_sharded_over_two_trains_like_one(tmp_path: Path, alone: dict[int, float]) -> None:
    process = start(tmp_path / "run", "--set", "train.shard=true")
    said = finish(process)
    assert process.returncode == 0, said
    assert "100 % of the weights are sharded over 2 processes" in said
    assert said.count("Trained.") == 1
    assert losses(tmp_path / "run") == pytest.approx(alone, rel=1e-4, abs=1e-4)
    assert (tmp_path / "run" / "result.json").exists()
    ledger = json.loads((tmp_path / "run" / "training.json").read_text())["ledger"]
    assert (ledger["steps"], ledger["examples"]) == (20, 640)


def test_interrupted_on_two_resumed_on_one_killed_on_two(tmp_path: Path, alone: dict[int, float]) -> None:
    """Steps beyond 20 follow another plan than `alone`; this run is compared with itself."""
    folder, steps = tmp_path / "run", 400
    process = start(folder, steps=steps)
    wait_for_step(folder, 3)
    ranks = [worker(process.pid, rank) for rank in range(2)]
    process.send_signal(signal.SIGINT)
    said = finish(process)
    assert process.returncode != 0
    assert said.count("Interrupted after step") == 1
    assert not [pid for pid in ranks if Path(f"/proc/{pid}").exists()]
    (saved,) = undamaged(folder)

    process = start(folder, "--strict-resume", count=1, steps=steps)
    said = finish(process)
    assert (process.returncode, "processes 2 → 1" in said) == (2, True), said

    process = start(folder, "--resume", count=1, steps=steps)
    wait_for_step(folder, saved + 2)
    process.send_signal(signal.SIGINT)
    said = finish(process)
    assert process.returncode == 130, said
    assert "processes 2 → 1" in said
    between = max(undamaged(folder))
    assert between > saved

    process = start(folder, "--resume", "--set", "train.shard=true", steps=steps)
    wait_for_step(folder, between + 2)
    os.kill(worker(process.pid, 1), signal.SIGKILL)
    said = finish(process)
    assert process.returncode != 0
    assert "This is a bug" not in said
    assert max(undamaged(folder)) == between
    assert json.loads((folder / "plan.json").read_text())["stages"]["model"]["world_size"] == 2
    told = losses(folder)
    assert sorted(told) == list(range(max(told) + 1))


def test_compare_is_refused(tmp_path: Path) -> None:
    said = subprocess.run(
        [sys.executable, "-m", "quintet", "compare", "digits", "-o", str(tmp_path / "c")],
        env={**ENVIRONMENT, "RANK": "0", "WORLD_SIZE": "2"},
        capture_output=True,
        text=True,
    )
    assert said.returncode == 2
    assert "without torchrun" in said.stderr
    assert not (tmp_path / "c").exists()
