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
        assert f"(`{cls.__name__}`)" in parts[kind]
        if lang == "zh":
            assert [name for name, said in rows.items() if not re.search("[\u4e00-\u9fff]|->", said)] == [], kind


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_every_table_of_the_schema_is_there(hooks: ModuleType, lang: str) -> None:
    text = hooks.schema(lang)
    described = Compare.model_json_schema(by_alias=True)
    for name, table in {"Compare": described, **described["$defs"]}.items():
        part = re.search(rf"^## {name}\n(.*?)(?=^## |\Z)", text, flags=re.S | re.M)
        assert part is not None, name
        rows = dict(re.findall(r"^\| `(\w+)` \|.*\| (.*) \|$", part[1], flags=re.M))
        assert list(rows) == list(table.get("properties", {})), name
        assert [field for field, said in rows.items() if not said.strip()] == [], name
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


def test_formulas_become_mathml_that_markdown_leaves_alone(hooks: ModuleType) -> None:
    pytest.importorskip("latex2mathml", reason="comes with the extra quintet[docs]")
    page = "# A\n\n| a | $`x_i^2`$ |\n\n```math\n\\frac{a}{\\text{free\\_bits}}\n```\n"
    made = hooks.on_page_markdown(page, None, Config("en"))
    assert "$" not in made
    assert "_" not in made
    html = hooks.on_page_content(made)
    assert html.count("</math>") == 2
    assert "<mfrac>" in html
    assert "free_bits" in html


def test_broken_lines_of_chinese_are_joined_and_code_is_not(hooks: ModuleType) -> None:
    page = "# 甲\n\n一行，\n二行 `x`\n三行\n四行\n\n* 甲\n  乙\n* 丙\n\n```text\n甲\n乙\n```\n"
    made = hooks.on_page_markdown(page, None, Config("zh"))
    assert made == "# 甲\n\n一行，二行 `x`\n三行四行\n\n* 甲乙\n* 丙\n\n```text\n甲\n乙\n```\n"
