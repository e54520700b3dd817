"""The message catalogue: every sentence a user reads on the command line, in English and Chinese side by side.

One TOML file an area; `[area.name]` tables with `en` and `zh`, `str.format` fields equal in both (tested).
"""

from __future__ import annotations

import os
import tomllib
from functools import cache
from importlib import resources
from typing import Any

LANGUAGES = ("en", "zh")


def language(choice: str | None = None) -> str:
    """The language to speak: `choice`, QUINTET_LANG, LC_ALL, LC_MESSAGES, LANG, then English."""
    for value in (
        choice,
        *(os.environ.get(name) for name in ("QUINTET_LANG", "LC_ALL", "LC_MESSAGES", "LANG")),
    ):
        if value:
            return "zh" if value.lower().startswith("zh") else "en"
    return "en"


@cache
def catalogue() -> dict[str, dict[str, str]]:
    """Key -> {"en": ..., "zh": ...}, from all TOML files beside this one."""
    found: dict[str, dict[str, str]] = {}
    for file in sorted(resources.files(__package__).iterdir(), key=lambda f: f.name):
        if file.name.endswith(".toml"):
            for area, entries in tomllib.loads(file.read_text(encoding="utf-8")).items():
                for name, texts in entries.items():
                    found[f"{area}.{name}"] = texts
    return found


def say(key: str, lang: str | None = None, **fields: Any) -> str:
    """The message `key` in a language, its fields filled in.

    Raises: KeyError for an unknown key or a missing field (ours to fix, not the user's).
    """
    return catalogue()[key][language(lang)].format(**fields)
