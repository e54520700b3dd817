"""Configs: frozen, typed, strict, with a `kind`; plain JSON and back.

A config class is a frozen keyword-only pydantic dataclass that sits next to the class it builds, derives from `Config`
and names its `kind`. A field that may hold several kinds is typed by an abstract config; `decode` looks the kind up in
the table it is given (recipes own the table, so families need not import nets). No class paths in strings, no
registration by import.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

from pydantic import ConfigDict, ValidationError

from quintet.core.errors import UsageError

STRICT = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
"""Give it to pydantic's dataclass: `@dataclass(frozen=True, kw_only=True, config=STRICT)`."""

C = TypeVar("C", bound="Config")


class Config:
    """Anything that `encode` writes as {"kind": ..., fields} and `decode` reads back."""

    kind: ClassVar[str]


def classes(value: Any) -> set[type[Config]]:
    """The config classes that occur in a config, or in a tuple or dict of configs."""
    if isinstance(value, Config):
        inner = (getattr(value, f.name) for f in dataclasses.fields(value))  # type: ignore[arg-type]
        return {type(value)}.union(*map(classes, inner))
    if isinstance(value, Mapping):
        return set().union(*map(classes, value.values()))
    if isinstance(value, (list, tuple)):
        return set().union(*map(classes, value))
    return set()


@runtime_checkable
class Selective(Protocol):
    """A config some of whose fields go with some values of another (a solver's own options)."""

    def carried(self, choices: Mapping[str, Any]) -> dict[str, Any]:
        """Its fields, without those that `choices` make void."""
        ...


def encode(value: Any) -> Any:
    """A config, or a value made of configs, tuples, dicts and plain values, as JSON-ready data."""
    if isinstance(value, Config):
        fields = dataclasses.fields(value)  # type: ignore[arg-type]
        return {"kind": value.kind, **{f.name: encode(getattr(value, f.name)) for f in fields}}
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a config holds plain values and configs, got {type(value).__name__}")


def decode(data: Any, kinds: Mapping[str, type[Config]], where: str = "config") -> Any:
    """The inverse of `encode`.

    Args:
        data: what `encode` returned, possibly through JSON.
        kinds: kind -> config class, for every kind that may occur.
        where: named in errors.
    Raises: UsageError for an unknown kind or field (naming the nearest known one) or a wrong type.
    """
    if isinstance(data, Mapping) and "kind" in data:
        kind = data["kind"]
        if kind not in kinds:
            raise UsageError("config.unknown_kind", where=where, kind=kind, known=", ".join(sorted(kinds)))
        fields = {key: decode(item, kinds, f"{where}.{key}") for key, item in data.items() if key != "kind"}
        return make(kinds[kind], fields, where)
    if isinstance(data, Mapping):
        return {key: decode(item, kinds, f"{where}.{key}") for key, item in data.items()}
    if isinstance(data, list):
        return tuple(decode(item, kinds, f"{where}[{i}]") for i, item in enumerate(data))
    return data


def make(cls: type[C], fields: Mapping[str, Any], where: str = "config") -> C:
    """Build a config from fields, turning pydantic's complaints into one line for the user."""
    known = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for name in fields:
        if name not in known:
            raise UsageError("config.unknown_field", where=where, field=name, hint=nearest(name, known))
    try:
        return cls(**fields)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join([where, *(str(part) for part in first["loc"])])
        raise UsageError("config.bad_value", where=place, why=first["msg"], value=repr(first.get("input"))) from error


def nearest(name: str, known: Sequence[str]) -> str:
    """What was probably meant, or all that is known."""
    near = difflib.get_close_matches(name, known, 1)
    return near[0] if near else ", ".join(known)


def override(
    value: Any, path: str, text: str, where: str = "config", kinds: Mapping[str, type[Config]] | None = None
) -> Any:
    """Replace one field deep inside a config: `override(stage, "train.batch", "128")`.

    Args:
        value: a config.
        path: field names joined by dots; a tuple's or dict's items by number or key.
        text: the new value as JSON or bare text; {"kind": ...} is a config if `kinds` are given.
    Raises: UsageError naming the nearest known field.
    """
    head, _, rest = path.partition(".")
    here = f"{where}.{head}"
    if isinstance(value, Mapping):
        if head not in value:
            raise UsageError("config.unknown_field", where=where, field=head, hint=", ".join(map(str, value)))
        item = override(value[head], rest, text, here, kinds) if rest else _parse(text, kinds, here)
        return {**value, head: item}
    if isinstance(value, tuple):
        if not head.isdigit() or int(head) >= len(value):
            raise UsageError("config.unknown_field", where=where, field=head, hint=f"0..{len(value) - 1}")
        i = int(head)
        item = override(value[i], rest, text, here, kinds) if rest else _parse(text, kinds, here)
        return (*value[:i], item, *value[i + 1 :])
    if not isinstance(value, Config):
        raise UsageError("config.not_a_group", where=where, field=head)
    fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}  # type: ignore[arg-type]
    if head in fields and rest:
        fields[head] = override(fields[head], rest, text, here, kinds)
    else:
        fields[head] = _parse(text, kinds, here)
    return make(type(value), fields, where)


def _parse(text: str, kinds: Mapping[str, type[Config]] | None, where: str) -> Any:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return text
    return value if kinds is None else decode(value, kinds, where)
