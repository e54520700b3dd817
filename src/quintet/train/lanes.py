"""Lanes: parts of a batch's rows that are taken through a model at the same time, each by a thread of its own.

Small layers leave most of a processor idle when its threads share every single operation. Lanes share nothing until
their gradients are added, in a fixed order, so that a training stays reproducible.
What it is not: several processes (core/processes.py), which have memory, optimisers and machines of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
U = TypeVar("U")


class Lanes:
    """Threads for work that is done side by side. A single lane is the caller's own thread.

    Args:
        count: of lanes.
        threads: of torch in each lane.
    """

    def __init__(self, count: int = 1, threads: int = 1) -> None:
        self.count, self.threads = count, threads
        self._others: ThreadPoolExecutor | None = None

    def changed(self, count: int, threads: int) -> Lanes:
        """These lanes, or others in their place."""
        if (count, threads) == (self.count, self.threads):
            return self
        self.close()
        return Lanes(count, threads)

    def map(self, work: Callable[[U], T], parts: Sequence[U]) -> list[T]:
        """work(part) of each part, the first on the caller's thread, all ended when this returns or raises."""
        if len(parts) > 1 and self._others is None:
            self._others = ThreadPoolExecutor(self.count - 1, "lane", torch.set_num_threads, (self.threads,))
        others = [self._others.submit(work, part) for part in parts[1:]] if self._others is not None else []
        try:
            first = work(parts[0])
        finally:
            wait(others)
        return [first, *(other.result() for other in others)]

    def close(self) -> None:
        """End the threads."""
        if self._others is not None:
            self._others.shutdown()
            self._others = None


def add_gradients(parameters: Sequence[Tensor], found: Sequence[Sequence[Tensor | None]]) -> None:
    """Set each parameter's gradient to the sum of what the lanes found, from the first lane to the last.

    Args:
        parameters: without gradients so far.
        found: of each lane, by parameter; None where its rows did not touch it.
    """
    for p, lanes in zip(parameters, zip(*found, strict=True), strict=True):
        parts = [g for g in lanes if g is not None]
        if parts:
            total = sum(parts[1:], start=parts[0])
            # not shared with another parameter, and in this one's order: optimisers pair numbers by place in memory
            p.grad = total if len(parts) > 1 and total.stride() == p.stride() else torch.empty_like(p).copy_(total)
