"""README and docs as pages: both languages, the same code, links that lead somewhere, a place in the navigation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from blocks import DOCS, ROOT, pages, twin

PAIRS = [(page, twin(page)) for page in pages()]
PAGES = sorted(page for pair in PAIRS for page in pair)
SITES = {"en": ROOT / "mkdocs.yml", "zh": ROOT / "mkdocs.zh.yml"}
FAMILY = {
    "en": ("The idea", "The equations used", "Files", "The recipe", "Training and sampling", "can do, and limits",
           "How it fails, and how you notice", "What tests it"),
    "zh": ("思想", "公式", "文件", "方案", "训练与采样", "", "如何失效，如何发现", "由哪些测试"),
}  # fmt: skip
"""Part of each heading of a family's page, in order."""


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def code(text: str) -> list[str]:
    """Blocks of commands and Python, without their comments: those and the words in formulas are translated."""
    found = re.findall(r"```(?:bash|python)[^\n]*\n(.*?)```", text, flags=re.S)
    return [re.sub(r"\s*#.*", "", block).strip() for block in found]


def navigation(site: Path) -> list[str]:
    """Pages of a site's navigation, in order."""

    class Loader(yaml.SafeLoader):
        """Leaves the one function call of the file alone."""

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)
    nav = yaml.load(site.read_text(encoding="utf-8"), Loader)["nav"]

    def leaves(item: Any) -> list[str]:
        if isinstance(item, str):
            return [item]
        return [leaf for part in (item.values() if isinstance(item, dict) else item) for leaf in leaves(part)]

    return leaves(nav)


def anchors(text: str) -> set[str]:
    """Of the headings, as the site and GitHub make them."""
    plain = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    heads = re.findall(r"^#+ (.+)$", plain, flags=re.M)
    return {re.sub(r"[^\w\- ]", "", head.strip().lower()).replace(" ", "-") for head in heads}


def formulas(text: str) -> list[str]:
    """The formulas of a page, without the words in them."""
    found = re.findall(r"\$`([^`]+)`\$|^```math\n(.*?)\n```$", text, flags=re.S | re.M)
    return [re.sub(r"\\text\{[^{}]*\}", "", inline or block) for inline, block in found]


@pytest.mark.parametrize(("english", "chinese"), PAIRS)
def test_both_languages_have_the_same_formulas(english: str, chinese: str) -> None:
    ours, theirs = formulas(text_of(english)), formulas(text_of(chinese))
    assert sorted(ours) == sorted(theirs)
    for formula in ours:
        assert formula.count("{") == formula.count("}"), formula
        assert "|" not in formula, f"a bar ends a cell of a table: {formula}"


def test_every_page_has_its_twin() -> None:
    assert sorted(twin(page) for page in pages()) == pages("zh")


@pytest.mark.parametrize(("english", "chinese"), PAIRS)
def test_both_languages_have_the_same_code(english: str, chinese: str) -> None:
    ours, theirs = text_of(english), text_of(chinese)
    assert code(ours) == code(theirs)
    assert any("\u4e00" <= letter <= "\u9fff" for letter in theirs)


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_exist_and_figures_are_filled_in(page: str) -> None:
    path = ROOT / page
    text = re.sub(r"```.*?```", "", text_of(page), flags=re.S)
    for target, _, anchor in re.findall(r"\]\(([^)#\s]*)(#?)([^)\s]*)\)", text):
        if target.startswith(("http:", "https:")):
            continue
        file = (path.parent / target).resolve() if target else path
        assert file.exists(), target
        written = file.suffix == ".md" and "<!-- generated" not in file.read_text(encoding="utf-8")
        if anchor and written and "reference" not in file.parts:
            assert anchor in anchors(file.read_text(encoding="utf-8")), f"{target}#{anchor}"
    assert "<!-- measured" not in text
    assert not re.search(r"/(work|farm|root)/|TODO|FIXME|MEASURED_", text)


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_the_navigation_has_every_page_once(lang: str) -> None:
    folder = DOCS if lang == "en" else DOCS / "zh"
    there = [str((ROOT / page).relative_to(folder)) for page in pages(lang) if page.startswith("docs/")]
    assert sorted(navigation(SITES[lang])) == sorted(there)


def test_both_navigations_have_the_same_order() -> None:
    assert navigation(SITES["en"]) == navigation(SITES["zh"])


@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.parametrize("family", ["gan", "vae", "flow", "diffusion", "autoregressive", "latent"])
def test_pages_of_families_are_built_alike(family: str, lang: str) -> None:
    folder = DOCS if lang == "en" else DOCS / "zh"
    heads = re.findall(r"^## (.+)$", (folder / "families" / f"{family}.md").read_text(encoding="utf-8"), flags=re.M)
    place = 0
    for part in FAMILY[lang]:
        found = [i for i, head in enumerate(heads) if i >= place and part in head]
        assert found, f"{part!r} is missing or out of order in {heads}"
        place = found[0] + 1
