"""Running out of memory: how it is recognised, and work that is done again in smaller pieces."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")

_WORDS = ("not enough memory", "defaultcpuallocator", "out of memory", "can't allocate memory", "alloc_failed")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice: torch's, its libraries' or Python's."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _WORDS)


def release() -> None:
    """Give back what is no longer used."""
    gc.collect()
    if sys.platform == "linux":  # else what was freed stays with the process, where a fork's new memory is not seen
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def halving(work: Callable[[int], T], size: int, least: int = 1) -> tuple[T, int]:
    """Do `work(size)`, with half the size as often as memory does not suffice.

    Returns: the result and the size that worked.
    Raises: the memory error itself where no size from `least` on fits.
    """
    while True:
        try:
            return work(size), size
        except Exception as error:  # its traceback holds the tensors, so the next try is outside
            if size <= least or not out_of_memory(error):
                raise
        release()
        size = max(least, -(-size // 2))
