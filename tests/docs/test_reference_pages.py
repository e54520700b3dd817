"""The generated reference: nothing of the program is missing in it, in either language."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from types import ModuleType

import pytest
import typer
from blocks import DOCS

import quintet
from quintet.cli.main import build
from quintet.core.results import Compare
from quintet.recipes.registry import KINDS


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hooks", DOCS / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Config:
    """What mkdocs hands to a hook, as far as ours looks."""

    def __init__(self, lang: str) -> None:
        self.theme = {"language": lang}


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_every_command_and_option_is_there(hooks: ModuleType, lang: str) -> None:
    text = hooks.commands(lang)
    parts = dict(re.findall(r"^## quintet (\S+)\n(.*?)(?=^## |\Z)", text, flags=re.S | re.M))
    known = typer.main.get_command(build(lang)).commands  # type: ignore[attr-defined]
    assert parts.keys() == known.keys()
    for name, command in known.items():
        for parameter in command.params:
            if parameter.name != "help":
                last = [parameter.metavar] if parameter.param_type_name == "argument" else parameter.opts
                assert all(word in parts[name] for word in last), f"{name} {parameter.name}"
                assert " ".join(parameter.help.split())[:20].split("|")[0] in parts[name]


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_every_field_of_every_config_is_there_and_explained(hooks: ModuleType, lang: str) -> None:
    parts = dict(re.findall(r"^### `(\S+)`\n(.*?)(?=^###? |\Z)", hooks.configs(lang), flags=re.S | re.M))
    assert parts.keys() == KINDS.keys()
    for kind, cls in KINDS.items():
        rows = dict(re.findall(r"^\| `(\w+)` \|.*\| (.*) \|$", parts[kind], flags=re.M))
        assert list(rows) == [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
        assert [name for name, said in rows.items() if not said.strip()] == [], kind


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_every_table_of_the_schema_is_there(hooks: ModuleType, lang: str) -> None:
    text = hooks.schema(lang)
    described = Compare.model_json_schema(by_alias=True)
    for name, table in {"Compare": described, **described["$defs"]}.items():
        part = re.search(rf"^## {name}\n(.*?)(?=^## |\Z)", text, flags=re.S | re.M)
        assert part is not None, name
        assert re.findall(r"^\| `(\w+)` \|", part[1], flags=re.M) == list(table.get("properties", {})), name
        for link in re.findall(r"\(#(\w+)\)", part[1]):
            assert re.search(rf"^## {link}$", text, flags=re.M | re.I), link


def test_every_verb_is_on_the_page_of_verbs() -> None:
    for folder in (DOCS, DOCS / "zh"):
        text = (folder / "reference" / "api.md").read_text(encoding="utf-8")
        found = re.findall(r"^::: quintet\.api\.([a-z_]+)$", text, flags=re.M)
        assert sorted(found) == sorted(name for name in quintet.__all__ if not name.startswith("__"))


def test_markers_are_filled_and_the_switch_takes_the_place_of_links_to_the_twin(hooks: ModuleType) -> None:
    page = "# A\n\nSee [x](y.md). [中文](../zh/a.md)\n\n![p](../images/p.png)\n\n<!-- generated: commands -->\n"
    made = hooks.on_page_markdown(page, None, Config("en"))
    assert "中文" not in made
    assert "[x](y.md)" in made
    assert "## quintet compare" in made
    assert "![p](../images/p.png)" in made
    assert '<img alt="p" src="../images/p.png">' in hooks.on_page_markdown(page, None, Config("zh"))


def test_a_file_of_the_repository_comes_without_its_title_and_its_links(hooks: ModuleType) -> None:
    made = hooks.on_page_markdown("# C\n\n<!-- file: CONTRIBUTING.md -->", None, Config("en"))
    assert made.count("\n# ") == 0
    assert "How to add" in made
    assert not re.search(r"\]\((?!http)", made)
