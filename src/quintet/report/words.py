"""Words: the report's sentences in both languages, as markup that carries the pair and lets the page choose.

The catalogue is the files of `texts`, one an area. It is not the command line's catalogue (core/messages): that one
speaks one language at a time.
"""

from __future__ import annotations

import re
import tomllib
from functools import cache
from importlib import resources

from markupsafe import Markup

LANGUAGES = {"en": "en", "zh": "zh-CN"}
"""Our language codes and the value of the `lang` attribute."""


_PAIR = re.compile(r'<span data-lang="(en|zh)"[^>]*>(.*?)</span>', re.S)


@cache
def catalogue() -> dict[str, dict[str, str]]:
    """ "section.key" -> {"en": ..., "zh": ...}; a key that two files hold is an error of ours."""
    found: dict[str, dict[str, str]] = {}
    for file in sorted(resources.files(__package__).joinpath("texts").iterdir(), key=lambda file: file.name):
        if not file.name.endswith(".toml"):
            continue
        for section, entries in tomllib.loads(file.read_text(encoding="utf-8")).items():
            for key, texts in entries.items():
                name = f"{section}.{key}"
                assert name not in found, f"{name} stands in two files"
                found[name] = texts
    return found


def pair(en: str, zh: str) -> Markup:
    """Both texts, of which the page shows one; plain strings are escaped, a text equal in both stands once."""
    if en == zh:
        return Markup("{}").format(en)
    return Markup("").join(
        Markup('<span data-lang="{}" lang="{}">{}</span>').format(code, LANGUAGES[code], text)
        for code, text in (("en", en), ("zh", zh))
    )


def say(key: str, **fields: object) -> Markup:
    """The text `key` in both languages, its fields filled in and escaped unless they are markup already.

    Raises: KeyError for an unknown key or a missing field (ours to fix, not the user's).
    """
    texts = catalogue()[key]
    en, zh = (Markup(texts[code]).format(**{k: _one(v, code) for k, v in fields.items()}) for code in LANGUAGES)
    return pair(en, zh)


def _one(field: object, code: str) -> object:
    """A field in one language: of a pair its half, so that pairs never stand inside each other."""
    if not isinstance(field, Markup):
        return field
    return Markup(_PAIR.sub(lambda found: found[2] if found[1] == code else "", field))


def known(section: str, key: str) -> Markup:
    """The text `section.key`, or the key itself where the catalogue has none (names that others chose)."""
    return say(f"{section}.{key}") if f"{section}.{key}" in catalogue() else Markup("{}").format(key)
