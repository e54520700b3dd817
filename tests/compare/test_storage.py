"""A run folder that cannot be written, or lost what it held: one line that says what to do, and a way back."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import quintet
from quintet.compare import cell
from quintet.core import checkpoint
from quintet.core.errors import ResourceError
from quintet.families.vae.model import VAE


@pytest.fixture(autouse=True)
def frequent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints after every eighth step, and no run that ends early."""
    monkeypatch.setattr(VAE, "watch", lambda self, train, held_out, *, rng: [])
    monkeypatch.setattr(cell, "fit", partial(cell.fit, checkpoint_steps=8))


def train(out: Path, **options: Any) -> Any:
    given = {"budget": "24steps", "threads": 1, "set": ["train.batch=32"], **options}
    return quintet.train("vae", "toy:ring8", out=out, **given)


def state(trained: Any) -> dict[str, torch.Tensor]:
    return dict(trained.model.state_dict())


def equal(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def is_told(error: ResourceError, what: Path) -> None:
    assert error.exit_code == 4
    assert str(what) in str(error)
    assert str(what) in error.text("zh")


@pytest.mark.parametrize("name", ["log.jsonl", "samples.npz"])
def test_a_folder_where_a_file_should_be(tmp_path: Path, name: str) -> None:
    (tmp_path / "run" / name).mkdir(parents=True)
    with pytest.raises(ResourceError) as caught:
        train(tmp_path / "run")
    is_told(caught.value, tmp_path / "run")


def test_a_file_where_the_previews_should_be(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "previews").write_text("")
    with pytest.raises(ResourceError) as caught:
        train(tmp_path / "run")
    is_told(caught.value, tmp_path / "run" / "previews")
    (tmp_path / "run" / "previews").unlink()
    assert equal(state(train(tmp_path / "run", resume=True)), state(train(tmp_path / "other")))


def test_a_disk_that_is_full_from_some_moment_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def listen(line: Mapping[str, Any]) -> None:
        if line["kind"] == "preview" and line["step"] >= 12:
            monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(ResourceError) as caught:
        train(tmp_path / "run", listen=listen)
    is_told(caught.value, tmp_path / "run")
    monkeypatch.setattr(os, "fsync", real)
    assert equal(state(train(tmp_path / "run", resume=True)), state(train(tmp_path / "other")))


def test_a_folder_that_is_deleted_while_training(tmp_path: Path) -> None:
    def listen(line: Mapping[str, Any]) -> None:
        if line["kind"] == "preview" and line["step"] >= 12:
            shutil.rmtree(tmp_path / "run", ignore_errors=True)

    with pytest.raises(ResourceError) as caught:
        train(tmp_path / "run", listen=listen)
    is_told(caught.value, tmp_path / "run")


def test_what_killed_writers_left_is_gone_after_a_resume(tmp_path: Path) -> None:
    left = [
        tmp_path / "run" / place
        for place in (
            ".plan.json.tmp-1", "stages/0-model/.choice.json.tmp-1", "stages/0-model/best/.last.json.tmp-1",
            "stages/0-model/checkpoints/.last.json.tmp-1",
        )
    ]  # fmt: skip
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    train(tmp_path / "run")
    assert (tmp_path / "run" / "stages" / "0-model" / "choice.json").exists()
    assert not list((tmp_path / "run").rglob(".*.tmp-*"))


@pytest.mark.parametrize("lost", ["damaged", "gone"])
def test_older_weights_are_not_taken_for_those_that_were_measured(tmp_path: Path, lost: str) -> None:
    run = tmp_path / "run"
    wanted = state(train(run))
    last = next(run.glob("stages/*/checkpoints")) / "00000024"
    assert checkpoint.steps(last.parent) == [24, 16, 8]
    if lost == "gone":
        shutil.rmtree(last)
    else:
        weights = last / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ResourceError) as caught:
        quintet.load(run)
    is_told(caught.value, last)
    with pytest.raises(ResourceError):
        train(run, resume=True)
    for name in ("training.json", "result.json"):  # as the message says
        assert name in str(caught.value)
        (run / name).unlink()
    assert equal(state(train(run, resume=True)), wanted)
    assert equal(state(quintet.load(run)), wanted)


def test_a_plan_that_is_lost(tmp_path: Path) -> None:
    train(tmp_path / "run")
    for text in ("", "{}", '{"stages": {"model": []}}', None):
        (tmp_path / "run" / "plan.json").unlink()
        if text is not None:
            (tmp_path / "run" / "plan.json").write_text(text)
        with pytest.raises(ResourceError) as caught:
            quintet.load(tmp_path / "run")
        is_told(caught.value, tmp_path / "run" / "plan.json")


def test_best_weights_that_are_lost(tmp_path: Path) -> None:
    run = tmp_path / "run"
    wanted = state(train(run))
    (choice,) = run.glob("stages/*/choice.json")
    training = json.loads((run / "training.json").read_text())
    training["choice"]["best"] = 6
    choice.write_text(json.dumps(training["choice"]))
    (run / "training.json").write_text(json.dumps(training))
    with pytest.raises(ResourceError) as caught:
        quintet.load(run)
    is_told(caught.value, choice.parent / "best" / "00000006")
    for path in (run / "training.json", run / "result.json", choice):  # as the message says
        assert path.name in str(caught.value)
        path.unlink()
    assert equal(state(train(run, resume=True)), wanted)
    assert json.loads(choice.read_text())["best"] is None
