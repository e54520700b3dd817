"""Config files: everything that a comparison or a training would do, as commented YAML that a user can edit.

    quintet config fashion_mnist --budget 3m -o mine.yaml
    quintet compare --config mine.yaml
    quintet train gan --config mine.yaml

What it is: a writer that shows every field of every stage with what the config classes say of it, and a reader that
points at the line of whatever is wrong. A recipe in a file may have a name of its own; `family` says whose it is.
What it is not: a second place of defaults; what a file leaves out of a config is the class's own default.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import textwrap
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, get_args, get_type_hints

from quintet.core import config, yaml
from quintet.core.budget import Budget
from quintet.core.config import Config
from quintet.core.errors import QuintetError, UsageError
from quintet.core.messages import say
from quintet.core.recipe import Family, Recipe, Stage
from quintet.core.spec import DataSpec
from quintet.recipes.registry import KINDS, RECIPES

WIDTH = 110
TOP = ("data", "options", "budget", "within", "seeds", "recipes")
OF_RECIPE = ("family", "stages")
SHARES = 1e-6
FOLLOWING = "，。；：、？！）”》"
"""Marks that begin no line."""


@dataclass(frozen=True)
class ConfigFile:
    """What a config file asks for; None where it says nothing.

    Attributes:
        path: of the file.
        data: a name or path, as on the command line.
        options: of the data source.
        budget, within, seeds: as on the command line.
        recipes: by name, in the file's order.
    """

    path: Path
    data: str | None
    options: Mapping[str, Any]
    budget: str | None
    within: str | None
    seeds: int | None
    recipes: Mapping[str, Recipe]

    def find(self, name: str) -> Recipe:
        """A recipe of the file.

        Raises: UsageError naming those it has.
        """
        if name not in self.recipes:
            raise UsageError("file.no_recipe", path=self.path, name=name, known=", ".join(self.recipes))
        return self.recipes[name]


NOTHING = ConfigFile(Path(), None, {}, None, None, None, {})


def write(
    data: str,
    spec: DataSpec,
    recipes: Sequence[Recipe],
    budget: Budget,
    *,
    options: Mapping[str, Any] | None = None,
    seeds: int | None = None,
    lang: str = "en",
) -> str:
    """The text of a config file that does what the same command without it would do.

    Args:
        data: as the user typed it.
        spec: of the data.
        recipes: those that fit.
        budget: of one model; the sizes of networks follow it.
        options: of the data source, where they are not the defaults.
        seeds: of each recipe.
        lang: of the comments.
    """
    lines = [f"# {line}" for line in say("file.head", lang, data=data).splitlines()]
    lines += ["", f"data: {_plain(data)}"]
    if options:
        lines += ["options:", *(f"  {name}: {_plain(value)}" for name, value in options.items())]
    lines += [f"budget: {_plain(str(budget))}  # {say('file.budget', lang)}"]
    if seeds is not None:
        lines += [f"seeds: {seeds}"]
    lines += ["recipes:"]
    for recipe in recipes:
        summary = recipe.summary.get(lang, recipe.summary["en"])
        lines += ["", f"  # {summary}", f"  {recipe.name}:", f"    family: {recipe.family}", "    stages:"]
        told: set[tuple[type, str]] = set()
        for stage in recipe.stages(spec, budget):
            lines += _item(stage, 6, told, lang)
    return "\n".join(lines) + "\n"


def read(path: Path) -> ConfigFile:
    """Read a config file.

    Raises: UsageError with file and line for anything unknown, of a wrong type or out of range.
    """
    document = yaml.read(path)
    top = _mapping(document, document.data, "", TOP)
    recipes: dict[str, Recipe] = {}
    given = top.get("recipes")
    if given is not None:
        if not isinstance(given, Mapping) or not given:
            raise _wrong(document, "recipes", say("file.needs_recipes"))
        for name, content in given.items():
            recipes[name] = _recipe(document, name, content)
    seeds = top.get("seeds")
    if seeds is not None and (not isinstance(seeds, int) or isinstance(seeds, bool) or seeds < 1):
        raise _wrong(document, "seeds", say("file.needs_count", value=seeds))
    for key in ("data", "budget", "within"):
        if top.get(key) is not None and not isinstance(top[key], str):
            raise _wrong(document, key, say("file.needs_text", value=top[key]))
    options = top.get("options") or {}
    if not isinstance(options, Mapping):
        raise _wrong(document, "options", say("file.needs_fields", known="size: 64"))
    for key in ("budget", "within"):
        if top.get(key) is not None:
            with _located(document, key):
                Budget.parse(top[key])
    return ConfigFile(path, top.get("data"), options, top.get("budget"), top.get("within"), seeds, recipes)


def _recipe(document: yaml.Document, name: str, content: Any) -> Recipe:
    where = f"recipes.{name}"
    fields = _mapping(document, content, where, OF_RECIPE)
    known = RECIPES.get(name)
    family = fields.get("family", known.family if known else None)
    if family not in get_args(Family):
        raise _wrong(document, f"{where}.family", say("file.needs_family", known=", ".join(get_args(Family))))
    stages = fields.get("stages")
    if not isinstance(stages, list) or not stages:
        raise _wrong(document, f"{where}.stages", say("file.needs_stages"))
    found = []
    for i, stage in enumerate(stages):
        at = f"{where}.stages[{i}]"
        with _located(document, at):
            decoded = config.decode(stage, KINDS, at)
        if not isinstance(decoded, Stage):
            raise _wrong(document, at, say("file.needs_stage"))
        found.append(decoded)
    total = sum(stage.share for stage in found)
    if abs(total - 1) > SHARES:
        raise _wrong(document, f"{where}.stages", say("file.shares", total=f"{total:g}"))
    names = [stage.name for stage in found]
    for i, stage in enumerate(found):
        missing = [earlier for earlier in stage.needs.values() if earlier not in names[:i]]
        if missing:
            raise _wrong(document, f"{where}.stages[{i}].needs", say("file.needs_earlier", name=missing[0]))
    resolved = tuple(found)
    summary = known.summary if known else {"en": f"from {document.path.name}", "zh": f"来自 {document.path.name}"}
    unfit = known.unfit if known else (lambda spec: None)
    return Recipe(name, family, lambda spec, budget: resolved, summary, unfit)


class _located:
    """Adds file and line to a UsageError raised inside."""

    def __init__(self, document: yaml.Document, where: str) -> None:
        self.document, self.where = document, where

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, QuintetError):
            place = str(error.fields.get("where", self.where))
            field = error.fields.get("field")
            inside = f"{place}.{field}" if field is not None else place
            line = self.document.line(inside if inside in self.document.lines else place)
            raise UsageError("file.at", path=self.document.path, line=line, why=error.text()) from error


def _wrong(document: yaml.Document, where: str, why: str) -> UsageError:
    return UsageError("file.at", path=document.path, line=document.line(where), why=f"{where}: {why}")


def _mapping(document: yaml.Document, value: Any, where: str, known: Sequence[str]) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise _wrong(document, where, say("file.needs_fields", known=", ".join(known)))
    for name in value:
        if name not in known:
            near = config.nearest(name, known)
            inside = f"{where}.{name}" if where else name
            raise _wrong(document, inside, say("file.unknown", name=name, hint=near))
    return value


# Writing

Told = set[tuple[type, str]]
"""Kinds and fields that were explained already: once a recipe is enough."""


def _item(value: Config, indent: int, told: Told, lang: str) -> list[str]:
    """A config as an item of a list."""
    lines = list(_fields(value, indent + 2, told, lang))
    lines[0] = " " * indent + "- " + lines[0].lstrip()
    return lines


def _fields(value: Config, indent: int, told: Told, lang: str) -> Iterator[str]:
    """The fields of a config, each with its comment."""
    pad, known, what = " " * indent, explained(type(value), lang), about(type(value), lang)
    first = what and (type(value), "") not in told
    told.add((type(value), ""))
    yield f"{pad}kind: {value.kind}" + (f"  # {what}" if first else "")
    for field in dataclasses.fields(value):  # type: ignore[arg-type]
        if field.name in known and (type(value), field.name) not in told:
            told.add((type(value), field.name))
            for line in _wrapped(known[field.name], WIDTH - indent - 2):
                yield f"{pad}# {line}"
        yield from _entry(field.name, getattr(value, field.name), indent, told, lang)


def _wrapped(text: str, width: int) -> list[str]:
    """Lines of at most `width` columns; a Chinese letter takes two, and a line may end after any of them."""
    lines, used = [""], 0
    for part in re.findall(r"[\u2e80-\uffef]|[^\s\u2e80-\uffef]+|\s+", text):
        size = sum(1 + ("\u2e80" <= letter <= "\uffef") for letter in part)
        if used + size > width and part not in FOLLOWING:
            lines, used = [*lines, ""], 0
        if used or not part.isspace():
            lines[-1], used = lines[-1] + part, used + size
    return [line.rstrip() for line in lines]


def _entry(name: str, item: Any, indent: int, told: Told, lang: str) -> Iterator[str]:
    pad = " " * indent
    if isinstance(item, Config):
        yield f"{pad}{name}:"
        yield from _fields(item, indent + 2, told, lang)
    elif isinstance(item, (list, tuple)) and any(isinstance(part, Config) for part in item):
        yield f"{pad}{name}:"
        for part in item:
            yield from _item(part, indent + 2, told, lang)
    elif isinstance(item, Mapping) and any(isinstance(part, Config) for part in item.values()):
        yield f"{pad}{name}:"
        for key, part in item.items():
            yield from _entry(key, part, indent + 2, told, lang)
    else:
        yield f"{pad}{name}: {_plain(config.encode(item))}"


def _plain(value: Any) -> str:
    """A plain value on one line: JSON, which YAML is a superset of, with words unquoted where that is safe."""
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z][\w./+-]*( [\w./+-]+)*", value):
        return value if value not in ("true", "false", "null") else json.dumps(value)
    return json.dumps(value, ensure_ascii=False)


@cache
def kinds() -> dict[str, dict[str, Any]]:
    """Kind -> what it is (`en`, `zh`), and its `fields` in Chinese, from kinds.toml."""
    return tomllib.loads((resources.files("quintet.recipes") / "kinds.toml").read_text(encoding="utf-8"))


def about(cls: type[Config], lang: str = "en") -> str:
    """What a config of ours is, in a few words; nothing of a user's own."""
    return str(kinds().get(cls.kind, {}).get(lang, "")) if cls in KINDS.values() else ""


def explained(cls: type[Config], lang: str = "en") -> dict[str, str]:
    """Field -> what it means: by the docstrings, or by kinds.toml in Chinese where the config is ours."""
    said = _docstrings(cls)
    if lang == "zh" and cls in KINDS.values():
        said |= kinds().get(cls.kind, {}).get("fields", {})
    return said


def _docstrings(cls: type) -> dict[str, str]:
    """Of the class that the config builds, then the config's own."""
    found: dict[str, str] = {}
    build = getattr(cls, "build", None)
    built = None if build is None else get_type_hints(build).get("return")
    if isinstance(built, type):
        found |= section(built.__doc__, "Args")
    for base in reversed(cls.__mro__):
        if "kind" in vars(base):
            found |= section(base.__doc__, "Args") | section(base.__doc__, "Attributes")
    return found


def section(doc: str | None, name: str) -> dict[str, str]:
    """Name -> text of a docstring's section."""
    _, _, after = inspect.cleandoc(doc or "").partition(f"{name}:\n")
    section = textwrap.dedent(re.split(r"\n(?=\S)", after)[0])
    found: dict[str, str] = {}
    for entry in re.split(r"\n(?=\S)", section):
        names, colon, said = " ".join(entry.split()).partition(": ")
        if colon:
            found |= dict.fromkeys((part.strip() for part in names.split(",")), said)
    return found
