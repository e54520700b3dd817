"""Subpackages that are verbs too: `quintet.train(...)` trains, `quintet.train.loop` is a module.

Importing a subpackage sets an attribute of its name on the package, which would hide the verb; so the module itself is
callable.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class Verb(ModuleType):
    """A module that calls the function of its name in quintet.api."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from quintet import api

        return getattr(api, self.__name__.rpartition(".")[2])(*args, **kwargs)


def make_verb(name: str) -> None:
    """Make the module `name` callable."""
    sys.modules[name].__class__ = Verb
