"""Results read back from disk, with a message instead of a traceback where another version wrote them."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from quintet._version import __version__
from quintet.core.errors import UsageError

Stored = TypeVar("Stored", bound=BaseModel)


def read_stored(path: Path, kind: type[Stored]) -> Stored:
    """What a JSON file of ours holds.

    Raises: UsageError naming the file and the first entry that does not fit this version's schema.
    """
    try:
        return kind.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        what = f"{where}: {first['msg']}" if where else str(first["msg"])
        raise UsageError("stored.version", path=path, version=__version__, what=what) from error
