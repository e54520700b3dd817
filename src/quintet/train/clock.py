"""Training time, which stands still while other work is done. Reads the clock; what to do by it others decide."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from quintet.core.meters import Meters


@dataclass
class Clock:
    """Training time: wall and CPU seconds while not paused, on top of what earlier processes used.

    The machine's meters run with it.
    """

    wall: float = 0.0
    cpu: float = 0.0
    meters: Meters = field(default_factory=Meters)
    _since: tuple[float, float] | None = field(default=None, repr=False)

    def start(self) -> None:
        """Go on; a clock that goes already is left alone."""
        if self._since is None:
            self.meters.start()
            self._since = (time.perf_counter(), time.process_time())

    def stop(self) -> None:
        self.read()
        self._since = None
        self.meters.stop()

    def read(self) -> float:
        """Wall seconds so far."""
        if self._since is not None:
            wall, cpu = time.perf_counter(), time.process_time()
            self.wall += wall - self._since[0]
            self.cpu += cpu - self._since[1]
            self._since = (wall, cpu)
        return self.wall

    @contextmanager
    def paused(self) -> Iterator[list[float]]:
        """Time inside the block does not count; the list gets its length in seconds."""
        self.stop()
        length = [0.0]
        begin = time.perf_counter()
        try:
            yield length
        finally:
            length[0] = time.perf_counter() - begin
            self.start()
