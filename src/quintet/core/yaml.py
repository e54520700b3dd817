"""Strict YAML: plain data with the line of every value, and nothing that YAML can do beside that.

What it is: YAML 1.2's idea of numbers and booleans (1e-4 is a number, `on` and `no` are words), duplicate keys refused,
no anchors, aliases, tags or merge keys, one document, a bounded size. What it is not: a writer.

Source: YAML 1.2.2, section 10.3 (core schema).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from quintet.core.errors import UsageError

LARGEST = 1_000_000
"""Bytes."""
DEEPEST = 50

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_ZERO_FIRST = re.compile(r"[-+]?0[0-9]+")


@dataclass(frozen=True)
class Document:
    """What a file says.

    Attributes:
        path: of the file.
        data: dicts, lists, strings, numbers, booleans, None.
        lines: "recipes.gan.stages[0].train" -> the line, from 1, on which that value or its key stands.
    """

    path: Path
    data: Any
    lines: dict[str, int]

    def line(self, where: str) -> int:
        """The line of a place, or of the nearest place around it."""
        while where not in self.lines and where:
            where = re.sub(r"(\.[^.\[]*|\[[^\]]*\])$", "", where) if re.search(r"[.\[]", where) else ""
        return self.lines.get(where, 1)


def read(path: Path) -> Document:
    """Read a file.

    Raises: UsageError naming the file and the line for everything that is not plain data.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise UsageError("yaml.large", path=path, most=LARGEST)
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError("yaml.unreadable", path=path, why=error.strerror or error) from error
    except UnicodeDecodeError as error:
        raise UsageError("yaml.unreadable", path=path, why="UTF-8") from error
    try:
        node = _Composer(text).get_single_node()
        lines: dict[str, int] = {}
        data = None if node is None else _value(node, "", lines, path, 0)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = 1 if mark is None else mark.line + 1
        why = getattr(error, "problem", None) or str(error).splitlines()[0]
        if "'\\t'" in why:
            raise UsageError("yaml.tab", path=path, line=line) from error
        raise UsageError("yaml.syntax", path=path, line=line, why=why) from error
    except RecursionError as error:
        raise UsageError("yaml.deep", path=path, line=1, most=DEEPEST) from error
    if data is None:
        raise UsageError("yaml.empty", path=path)
    return Document(path, data, lines)


class _Composer(yaml.reader.Reader, yaml.scanner.Scanner, yaml.parser.Parser, yaml.composer.Composer):
    """Text to nodes, with nothing resolved."""

    def __init__(self, text: str) -> None:
        yaml.reader.Reader.__init__(self, text)
        yaml.scanner.Scanner.__init__(self)
        yaml.parser.Parser.__init__(self)
        yaml.composer.Composer.__init__(self)

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise yaml.MarkedYAMLError(problem="anchors and aliases are not allowed", problem_mark=event.start_mark)
        if getattr(event, "tag", None) is not None:
            raise yaml.MarkedYAMLError(problem="tags such as !!python are not allowed", problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def resolve(self, kind: Any, value: Any, implicit: Any) -> str:
        return ""

    def descend_resolver(self, current_node: Any, current_index: Any) -> None: ...

    def ascend_resolver(self) -> None: ...


def _value(node: yaml.Node, where: str, lines: dict[str, int], path: Path, depth: int) -> Any:
    line = node.start_mark.line + 1
    lines.setdefault(where, line)
    if depth > DEEPEST:
        raise UsageError("yaml.deep", path=path, line=line, most=DEEPEST)
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, f"{where}[{i}]", lines, path, depth + 1) for i, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        found: dict[str, Any] = {}
        for key_node, item in node.value:
            at = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode) or key_node.value == "<<":
                raise UsageError("yaml.key", path=path, line=at)
            key = key_node.value
            if key in found:
                raise UsageError("yaml.twice", path=path, line=at, name=key)
            inside = f"{where}.{key}" if where else key
            lines[inside] = at
            found[key] = _value(item, inside, lines, path, depth + 1)
        return found
    assert isinstance(node, yaml.ScalarNode)
    return _scalar(node, path)


def _scalar(node: yaml.ScalarNode, path: Path) -> Any:
    text = str(node.value)
    if node.style is not None:  # quoted or a block
        return text
    if text in ("", "~", "null"):
        return None
    if text in ("true", "false"):
        return text == "true"
    if _INTEGER.fullmatch(text):
        return int(text) if len(text) < 400 else float(text)
    if _ZERO_FIRST.fullmatch(text):
        raise UsageError("yaml.zero", path=path, line=node.start_mark.line + 1, text=text, plain=int(text))
    if _FLOAT.fullmatch(text):
        return float(text)
    if text in (".inf", "-.inf", ".nan"):
        return {".inf": math.inf, "-.inf": -math.inf, ".nan": math.nan}[text]
    return text
