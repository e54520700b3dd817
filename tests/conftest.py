"""Threads pinned, and `tests/` importable for the shared oracles."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).parent))

import torch
from hypothesis import settings

settings.register_profile("quintet", deadline=None)  # a busy machine is no failure
settings.load_profile("quintet")
torch.set_num_threads(1)
