"""Forked workers: reports, errors, crashes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from quintet.compare import executor
from quintet.core.errors import DivergedError


def run(work: Any, trace: Path | None = None) -> tuple[executor.Outcome, list[Any]]:
    told: list[Any] = []
    return executor.run(work, told.append, trace), told


def test_reports_arrive_in_order() -> None:
    outcome, told = run(lambda report: [report({"kind": "step", "step": i}) for i in range(100)])
    assert outcome.done
    assert [line["step"] for line in told] == list(range(100))


def test_a_users_error_keeps_its_exit_code_and_both_languages() -> None:
    def work(report: Any) -> None:
        raise DivergedError("train.diverged", step=3, rollbacks=2, players="model", parameter="w", rows="1, 2")

    outcome, _ = run(work)
    assert outcome.code == 5
    assert outcome.reason("zh") != outcome.reason("en")


def test_a_bug_leaves_its_traceback_in_a_file(tmp_path: Path) -> None:
    def work(report: Any) -> None:
        raise RuntimeError("a\nlong story")

    outcome, _ = run(work, tmp_path / "x" / "error.txt")
    assert (outcome.code, outcome.reason()) == (1, "RuntimeError: a")
    assert "long story" in (tmp_path / "x" / "error.txt").read_text()


def test_out_of_memory_and_a_crash_become_reasons() -> None:
    def full(report: Any) -> None:
        raise MemoryError

    assert run(full)[0].code == 4
    killed, _ = run(lambda report: os.kill(os.getpid(), signal.SIGKILL))
    assert killed.code == -signal.SIGKILL
    assert "memory" in killed.reason()
    crashed, _ = run(lambda report: os._exit(17))
    assert "17" in crashed.reason("zh")


def test_in_process_gives_the_same_outcomes() -> None:
    def work(report: Any) -> None:
        raise MemoryError

    assert executor.run_here(work, print).code == 4
    assert executor.run_here(lambda report: None, print).done
    with pytest.raises(KeyboardInterrupt):
        executor.run_here(lambda report: (_ for _ in ()).throw(KeyboardInterrupt), print).done  # noqa: B018


def test_a_process_on_one_thread_can_fork() -> None:
    """In a process of its own: in this one other tests may have run torch on several threads."""
    code = "import torch; from quintet.compare import executor; torch.set_num_threads(1); print(executor.can_fork())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert found.stdout.strip() == "True"
