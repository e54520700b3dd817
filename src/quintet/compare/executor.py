"""Run a function in a forked process: torch is imported once, and a crash there is a message here.

A child inherits the parent's memory, so recipes and data need no serialisation; what it reports goes through a pipe as
JSON lines, what it produces through files. A parent whose OpenMP threads have already run cannot fork safely (the
child's first parallel region would wait for threads that do not exist): `can_fork` finds out by trying.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quintet.core.errors import QuintetError

Report = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Outcome:
    """How a child ended.

    Attributes:
        code: exit code; negative for a signal.
        error: {"type", "text_en", "text_zh"} of the exception that ended it, if one did.
    """

    code: int
    error: Mapping[str, str] | None = None

    @property
    def done(self) -> bool:
        return self.code == 0

    def reason(self, lang: str = "en") -> str:
        """One line for a row of the report."""
        if self.error is not None:
            return self.error[f"text_{lang}"]
        if self.code == -signal.SIGKILL:
            return {"en": "killed by the system, probably out of memory", "zh": "被系统终止，很可能是内存不足"}[lang]
        return {"en": f"ended with code {self.code}", "zh": f"以代码 {self.code} 结束"}[lang]


def run(work: Callable[[Report], None], on_report: Report, trace_file: Path | None = None) -> Outcome:
    """Call `work(report)` in a forked child and wait for its end.

    Args:
        work: runs in the child; an exception there becomes the outcome's error.
        on_report: called in the parent with each report.
        trace_file: where the child writes the traceback of an unexpected exception.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read_end)
        os._exit(_child(work, write_end, trace_file))
    os.close(write_end)
    error: Mapping[str, str] | None = None
    with os.fdopen(read_end, encoding="utf-8") as stream:
        while True:
            try:
                line = stream.readline()
            except InterruptedError:
                continue
            if not line:
                break
            report = json.loads(line)
            if report.get("kind") == "error":
                error = report
            else:
                on_report(report)
    _, status = os.waitpid(pid, 0)
    return Outcome(os.waitstatus_to_exitcode(status), error)


def run_here(work: Callable[[Report], None], on_report: Report, trace_file: Path | None = None) -> Outcome:
    """The same without a process of its own, where forking is not possible: a crash then ends everything."""
    try:
        work(on_report)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return Outcome(_code(error), _describe(error, trace_file))
    return Outcome(0)


def one_thread() -> AbstractContextManager[None]:
    """The parent computes on one thread while it forks, so that its OpenMP threads are never made."""
    from quintet.core.threads import using_threads

    return using_threads(1)


def can_fork(seconds: float = 10.0) -> bool:
    """Whether a forked child can compute in parallel here; tried on a small matrix product."""
    if not hasattr(os, "fork") or "torch" not in sys.modules:
        return hasattr(os, "fork")
    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return False
    pid = os.fork()
    if pid == 0:
        torch.set_num_threads(2)
        a = torch.ones(512, 512)
        (a @ a).relu_().sum()
        os._exit(0)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status == 0
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return False


def _child(work: Callable[[Report], None], write_end: int, trace_file: Path | None) -> int:
    with os.fdopen(write_end, "w", encoding="utf-8", buffering=1) as stream:

        def report(line: Mapping[str, Any]) -> None:
            stream.write(json.dumps(line, default=str) + "\n")

        try:
            work(report)
        except BaseException as error:
            report({"kind": "error", **_describe(error, trace_file)})
            return _code(error)
    return 0


def _code(error: BaseException) -> int:
    if isinstance(error, QuintetError):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return 130
    return 4 if isinstance(error, MemoryError) else 1


def _describe(error: BaseException, trace_file: Path | None) -> dict[str, str]:
    if isinstance(error, QuintetError):
        return {"type": type(error).__name__, "text_en": error.text("en"), "text_zh": error.text("zh")}
    if trace_file is not None:
        trace_file.parent.mkdir(parents=True, exist_ok=True)
        trace_file.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    first = (str(error).strip().splitlines() or [""])[0]
    text = f"{type(error).__name__}: {first}"
    return {"type": type(error).__name__, "text_en": text, "text_zh": text}
