"""Real SIGKILL of a two-player run, at a step and inside a checkpoint's writing: the resumed run has the same bits."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from oracles import TinyDuel, VectorBatches
from quintet.core import checkpoint
from quintet.core.budget import Budget
from quintet.core.ledger import Ledger
from quintet.core.plan import Plan
from quintet.core.recipe import OptimizerConfig, TrainConfig
from quintet.core.rng import Rng, layer_noise
from quintet.train.calibrate import warm_up
from quintet.train.run import fit

STEPS, EVERY = 24, 6
CONFIG = TrainConfig(
    batch=16,
    optimizers={"critic": OptimizerConfig(beta2_end=0.999), "generator": OptimizerConfig(method="muon")},
    warmup=5,
)


class Diary:
    """A watcher whose lines and plan are on disk, as a run folder's are."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)

    def log(self, line: Mapping[str, Any]) -> None:
        with (self.folder / "log.jsonl").open("a") as stream:
            stream.write(json.dumps(line) + "\n")

    def plan(self, plan: Plan) -> None:
        checkpoint.write_atomically(self.folder / "plan.json", json.dumps(plan.to_json()).encode())

    def step(self, step: int, plan: Plan, seconds: float, share: float) -> None: ...

    def preview(self, state: Any, seconds: float) -> None: ...

    def stop(self) -> bool:
        return False

    def stored_plan(self) -> Plan | None:
        path = self.folder / "plan.json"
        return Plan.from_json(json.loads(path.read_text())) if path.exists() else None

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "log.jsonl").read_text().splitlines()]


def train(folder: Path, fault: str = "") -> None:
    """Begin or go on; die at the fault."""
    os.environ["QUINTET_FAULT"] = fault
    diary = Diary(folder)
    with layer_noise(Rng(3, "init")):
        model = TinyDuel()
    fit(
        model,
        VectorBatches(),
        CONFIG,
        Budget("steps", STEPS),
        seed=3,
        folder=folder,
        ledger=Ledger(),
        watcher=diary,
        plan=diary.stored_plan(),
        checkpoint_steps=EVERY,
    )


def in_a_process(folder: Path, fault: str = "") -> int | None:
    child = multiprocessing.get_context("fork").Process(target=train, args=(folder, fault))
    child.start()
    child.join(60)
    return child.exitcode


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every tensor file, as read from the disk and found undamaged."""
    found: dict[str, str] = {}
    for path in sorted((folder / "checkpoints").iterdir()):
        if path.is_dir():
            assert checkpoint.damage(path) is None, path
            files = json.loads((path / "manifest.json").read_text())["files"]
            found |= {f"{path.name}/{k}": v["sha256"] for k, v in files.items() if k.endswith(".safetensors")}
    return found


def losses(folder: Path) -> dict[int, Any]:
    """Step -> losses; a step that was logged twice must have been the same both times."""
    told: dict[int, Any] = {}
    for line in Diary(folder).lines():
        if line["kind"] == "step":
            now = {name: line.get(name) for name in ("critic", "generator", "grad_norm", "lr")}
            assert told.setdefault(line["step"], now) == now
    return told


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    warm_up()  # here and not in each child
    folder: Path = tmp_path_factory.mktemp("whole") / "run"
    assert in_a_process(folder) == 0
    assert sorted(losses(folder)) == list(range(STEPS))
    return folder


# A checkpoint writes five files (model, optim, two averages, state) and the manifest, then the pointer.
WRITES = 7
FAULTS = [
    *(f"train.step:{n}" for n in (1, EVERY, EVERY + 1, STEPS)),
    *(f"checkpoint.half:{n}" for n in (1, 7, WRITES + 2)),
    *(f"checkpoint.after_file:{n}" for n in (1, WRITES + 5)),
    *(
        f"checkpoint.{point}:{n}"
        for point in ("before_manifest", "after_manifest", "after_rename", "after_pointer")
        for n in (1, 3)
    ),
]


@pytest.mark.parametrize("fault", FAULTS)
def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path, whole: Path, fault: str) -> None:
    folder = tmp_path / "run"
    assert in_a_process(folder, fault) == -signal.SIGKILL
    assert in_a_process(folder) == 0
    assert digests(folder) == digests(whole)
    assert losses(folder) == losses(whole)
    left = [path.name for path in (folder / "checkpoints").iterdir() if path.name.startswith(".")]
    assert not left, "a killed writer's files stay behind"


def test_killed_again_and_again(tmp_path: Path, whole: Path) -> None:
    folder = tmp_path / "run"
    for fault in ("checkpoint.half:3", "train.step:9", "checkpoint.after_rename", "train.step:2", "checkpoint.half:1"):
        assert in_a_process(folder, fault) == -signal.SIGKILL
    assert in_a_process(folder) == 0
    assert digests(folder) == digests(whole)
    assert losses(folder) == losses(whole)


def test_a_run_that_never_died_is_left_as_it_is(whole: Path) -> None:
    before = digests(whole)
    assert in_a_process(whole) == 0
    assert digests(whole) == before
