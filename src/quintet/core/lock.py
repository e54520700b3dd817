"""One writer a run folder: an OS lock, which a killed process gives back at once."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from quintet.core.checkpoint import sweep, writing
from quintet.core.errors import BusyError, ResourceError


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder, and clear away what a killed writer left directly in it.

    Raises: BusyError (exit 6) naming the holder; ResourceError (exit 4) if the folder cannot be made or written.
    """
    holder = folder / ".lock.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire(timeout=0)
    except Timeout as error:
        try:
            who = json.loads(holder.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            who = {"pid": "?", "host": "?"}
        raise BusyError("lock.busy", path=folder, pid=who.get("pid"), host=who.get("host")) from error
    except OSError as error:
        raise ResourceError("lock.not_writable", path=folder, why=error.strerror or error) from error
    try:
        with writing(holder):
            holder.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}), encoding="utf-8")
        sweep(folder)
        yield
    finally:
        with suppress(OSError):
            holder.unlink()
        lock.release()
