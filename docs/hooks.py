"""What the site is built with beside its pages: the reference, written from the program itself, and links.

A page holds `<!-- generated: commands -->` where a table of GENERATED goes. So the reference is never older than the
program, and needs no copy in the repository. Used by mkdocs (`hooks:` in mkdocs.yml) and by tests/docs.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from quintet.core.config import Config, encode

ROOT = Path(__file__).parents[1]
MARKER = re.compile(r"<!-- generated: (\w+) -->")
TWIN = re.compile(r" ?\[(?:中文|English)\]\([^)]*\)")
PICTURE = re.compile(r"!\[([^\]]*)\]\(((?:\.\./)+images/[^)]*)\)")
FORMULA = re.compile(r"\$`([^`]+)`\$|^```math\n(.*?)\n```$", re.S | re.M)
INCLUDED = re.compile(r"<!-- file: (\S+) -->")
WORDS = {
    "en": {
        "argument": "argument or option",
        "default": "default",
        "means": "meaning",
        "field": "field",
        "type": "type",
    },
    "zh": {"argument": "参数或选项", "default": "默认", "means": "含义", "field": "字段", "type": "类型"},
}
REQUIRED = {"en": "required", "zh": "必填"}
BREAK = re.compile(r"(?<=[\u3000-\u9fff\uff00-\uffef])\n *(?=[\u3000-\u9fff\uff00-\uffef])")
MARK = re.compile(r"FORMULA(\d+)END")
_formulas: list[str] = []
FULL_STOP = {"en": ".", "zh": "。"}


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Fill a page's generated parts; the language switch replaces its link to the other language."""
    lang = str(config.theme["language"])
    markdown = MARKER.sub(lambda found: GENERATED[found[1]](lang), markdown)
    markdown = INCLUDED.sub(lambda found: included(found[1]), markdown)
    markdown = TWIN.sub("", markdown)
    markdown = FORMULA.sub(lambda found: formula(found[1] or found[2], block=found[1] is None), markdown)
    markdown = joined(markdown) if lang == "zh" else markdown
    # pictures lie once, beside the English pages; mkdocs looks for linked files in its own folder alone
    return PICTURE.sub(r'<img alt="\1" src="\2">', markdown) if lang == "zh" else markdown


def joined(markdown: str) -> str:
    """Chinese lines without the breaks between them, which would be shown as spaces; code stays as it is."""
    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.S | re.M)
    return "".join(part if part.startswith("```") else BREAK.sub("", part) for part in parts)


def on_page_content(html: str, **_: Any) -> str:
    """Put the formulas in where `formula` left a mark: Markdown would read underscores and bars inside them."""
    return MARK.sub(lambda found: _formulas[int(found[1])], html)


def formula(tex: str, *, block: bool) -> str:
    """A mark for a formula, which becomes MathML: browsers draw it without a script or a font from elsewhere."""
    from latex2mathml.converter import convert

    made = convert(tex, display="block" if block else "inline").replace("\\_", "_")
    if not block:
        made = made.replace("<math ", '<math displaystyle="true" ', 1)
    _formulas.append(made)
    return f"FORMULA{len(_formulas) - 1}END"


def included(name: str) -> str:
    """A Markdown file of the repository without its title; links between the repository's files lose their targets."""
    text = (ROOT / name).read_text(encoding="utf-8").partition("\n")[2]
    return re.sub(r"\[([^\]]+)\]\((?!http)[^)]*\)", r"\1", text)


def commands(lang: str) -> str:
    """Every command with its arguments and options, as `--help` tells them."""
    import typer

    from quintet.cli.main import build

    group: Any = typer.main.get_command(build(lang))
    return "\n".join(line for name, command in group.commands.items() for line in _command(name, command, lang))


def _command(name: str, command: Any, lang: str) -> Iterator[str]:
    given = [p for p in command.params if p.name != "help"]
    usage = ["quintet", name, *(p.metavar or p.name.upper() for p in given if p.param_type_name == "argument")]
    yield from (
        f"## quintet {name}",
        "",
        _cell(command.help),
        "",
        "```text",
        " ".join([*usage, "[OPTIONS]"]),
        "```",
        "",
    )
    yield from _head(lang, "argument", "means", "default")
    for p in given:
        yield f"| {_call(p)} | {_cell(p.help)} | {_default(p, lang)} |"
    yield ""


def _head(lang: str, *columns: str) -> tuple[str, str]:
    """The first two lines of a table."""
    return f"| {' | '.join(WORDS[lang][column] for column in columns)} |", "|---" * len(columns) + "|"


def _call(p: Any) -> str:
    if p.param_type_name == "argument":
        return f"`{p.metavar or p.name.upper()}`"
    value = "" if p.is_flag else f" {p.metavar or p.name.upper()}"
    return ", ".join(f"`{opt}{value}`" if opt.startswith("--") else f"`{opt}`" for opt in (*p.opts, *p.secondary_opts))


def _default(p: Any, lang: str) -> str:
    if p.required:
        return REQUIRED[lang]
    if p.default in (None, "", False, ()) or callable(p.default):
        return ""
    return f"`{p.default}`"


def configs(lang: str) -> str:
    """Every config class: what it is, and each field with its type, default and meaning."""
    from quintet.recipes.registry import KINDS

    groups: dict[str, list[type[Config]]] = {}
    for cls in KINDS.values():
        groups.setdefault(cls.__module__.removeprefix("quintet."), []).append(cls)
    lines: list[str] = []
    for module in sorted(groups):
        lines += [f"## {module}", ""]
        for cls in groups[module]:
            lines += _config(cls, lang)
    return "\n".join(lines)


def _config(cls: type[Config], lang: str) -> Iterator[str]:
    from quintet.recipes.files import about, explained

    said, what = explained(cls, lang), about(cls, lang)
    yield from (f"### `{cls.kind}`", "", f"{what[:1].upper()}{what[1:]}{FULL_STOP[lang]} (`{cls.__name__}`)", "")
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    if fields:
        yield from _head(lang, "field", "type", "default", "means")
    for field in fields:
        kind = _cell(field.type if isinstance(field.type, str) else getattr(field.type, "__name__", str(field.type)))
        yield f"| `{field.name}` | {kind} | {_value(field, lang)} | {_cell(said.get(field.name, ''))} |"
    yield ""


def _value(field: Any, lang: str) -> str:
    value, factory = field.default, field.default_factory
    inner = getattr(value, "default", dataclasses.MISSING)  # pydantic's Field(...)
    if inner is not dataclasses.MISSING and not isinstance(value, Config):
        value, factory = inner, getattr(value, "default_factory", None) or dataclasses.MISSING
    if value is dataclasses.MISSING or type(value).__name__ == "PydanticUndefinedType":
        if factory in (dataclasses.MISSING, None):
            return REQUIRED[lang]
        value = factory()
    if isinstance(value, Config):
        return f"`{value.kind}`"
    return f"`{json.dumps(encode(value), ensure_ascii=False)}`"


def schema(lang: str) -> str:
    """The tables of compare.json, from its JSON schema."""
    from quintet.core.results import Compare

    described = Compare.model_json_schema(by_alias=True)
    tables = {"Compare": described, **described["$defs"]}
    fields = tomllib.loads((ROOT / "docs" / "compare-json.toml").read_text(encoding="utf-8"))
    lines: list[str] = []
    for name, table in tables.items():
        written, _, _ = inspect.cleandoc(table.get("description", "")).partition("\nAttributes:")
        said = fields[name]
        lines += [f"## {name}", "", written.strip() if lang == "en" else said[""][1], ""]
        lines += _head(lang, "field", "type", "means")
        for field, kind in table.get("properties", {}).items():
            lines.append(f"| `{field}` | {_kind(kind, lang)} | {_cell(said[field][lang == 'zh'])} |")
        lines.append("")
    return "\n".join(lines)


def _kind(schema: Mapping[str, Any], lang: str) -> str:
    """A JSON schema's type in a few words, with links to the other tables."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return {"en": " or ", "zh": " 或 "}[lang].join(_kind(each, lang) for each in schema["anyOf"])
    if "enum" in schema:
        return {"en": ", ", "zh": "、"}[lang].join(f"`{each}`" for each in schema["enum"])
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    if schema.get("type") == "array" and isinstance(schema.get("items"), Mapping):
        return {"en": "list of {}", "zh": "{} 的列表"}[lang].format(_kind(schema["items"], lang))
    if schema.get("type") == "object" and isinstance(schema.get("additionalProperties"), Mapping):
        return {"en": "map to {}", "zh": "到 {} 的映射"}[lang].format(_kind(schema["additionalProperties"], lang))
    return str(schema.get("type", "any"))


def _cell(text: Any) -> str:
    """Text for a table's cell or a paragraph: one line, with what Markdown would take for its own escaped."""
    return " ".join(str(text or "").split()).replace("|", "\\|").replace("<", "&lt;")


GENERATED: Mapping[str, Callable[[str], str]] = {"commands": commands, "configs": configs, "schema": schema}
