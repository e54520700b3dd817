"""Memory that is no longer used goes back to the system, so that a fork's own memory can be seen."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import numpy as np
from quintet.core.memory import release
def held():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS")) // 1024
start = held()
kept = [np.ones(2000) for _ in range(20000)]  # 320 MB in pieces that stay in the heap
last = np.ones(2000)
del kept
before = held()
release()
print(start, before, held())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems give memory back by themselves")
def test_freed_pieces_leave_the_process() -> None:
    out = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    start, before, after = map(int, out.stdout.split())
    assert after < start + 100
    assert before >= after
