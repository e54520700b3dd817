"""Named points where a test may kill this process; they do nothing unless QUINTET_FAULT is set.

`QUINTET_FAULT=checkpoint.half:2` sends SIGKILL to the process the second time it passes `fault("checkpoint.half")`.
"""

from __future__ import annotations

import os
import signal
from collections import Counter

_passed: Counter[str] = Counter()


def fault(name: str) -> None:
    """Die here by SIGKILL if the test says so."""
    wanted = os.environ.get("QUINTET_FAULT")
    if not wanted:
        return
    point, _, count = wanted.partition(":")
    if point == name:
        _passed[name] += 1
        if _passed[name] == int(count or 1):
            os.kill(os.getpid(), signal.SIGKILL)
