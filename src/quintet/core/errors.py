"""Errors that a user causes or meets: what happened, where, what to do; each kind has its exit code.

A message is a key into the catalogue (core/messages), so that the command line can say it in the user's language.
Wrong calls of our own functions raise ValueError in English instead.
"""

from __future__ import annotations

from typing import Any, ClassVar

from quintet.core.messages import say


class QuintetError(Exception):
    """Base of all user-facing errors.

    Args:
        key: message key in the catalogue, such as "data.labels_length".
        fields: what the message's placeholders stand for.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, key: str, **fields: Any) -> None:
        self.key, self.fields = key, fields
        super().__init__(say(key, "en", **fields))

    def text(self, lang: str | None = None) -> str:
        """The message in `lang`, by default the user's language."""
        return say(self.key, lang, **self.fields)


class UsageError(QuintetError):
    """A wrong argument or config."""

    exit_code = 2


class DataError(QuintetError):
    """Data that cannot be used."""

    exit_code = 3


class ResourceError(QuintetError):
    """Disk, memory, permission."""

    exit_code = 4


class DivergedError(QuintetError):
    """Training that became non-finite and could not be saved."""

    exit_code = 5


class BusyError(QuintetError):
    """A run folder that another process holds."""

    exit_code = 6


class Interrupted(QuintetError):
    """Ctrl-C or SIGTERM, after saving."""

    exit_code = 130
