"""README and docs: both languages say the same commands, links lead somewhere, every figure's place is filled."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAIRS = [("README.md", "README.zh-CN.md")] + [
    (str(path.relative_to(ROOT)), str(Path("docs/zh") / path.relative_to(ROOT / "docs")))
    for path in sorted((ROOT / "docs").rglob("*.md"))
    if "zh" not in path.relative_to(ROOT / "docs").parts
]
PAGES = sorted(page for pair in PAIRS for page in pair)


def blocks(text: str) -> list[str]:
    """Blocks of commands and Python, without their comments: those and the words in formulas are translated."""
    found = re.findall(r"```[a-z]*\n(.*?)```", text, flags=re.S)
    code = [block for block in found if re.search(r"^(quintet|make|import|from|pip|python) ", block, flags=re.M)]
    return [re.sub(r"\s*#.*", "", block).strip() for block in code]


def test_there_is_a_page_for_every_family() -> None:
    names = {Path(english).stem for english, _ in PAIRS}
    assert {"gan", "vae", "flow", "diffusion", "autoregressive", "measuring", "index", "README"} <= names


@pytest.mark.parametrize(("english", "chinese"), PAIRS)
def test_both_languages_have_the_same_code(english: str, chinese: str) -> None:
    ours, theirs = ((ROOT / page).read_text(encoding="utf-8") for page in (english, chinese))
    assert blocks(ours) == blocks(theirs)
    assert any("\u4e00" <= letter <= "\u9fff" for letter in theirs)


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_exist_and_figures_are_filled_in(page: str) -> None:
    path = ROOT / page
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)\)", text):
        if not target.startswith(("http:", "https:")):
            assert (path.parent / target).exists(), target
    assert "<!-- measured" not in text
    assert not re.search(r"/(work|farm|root)/|TODO|FIXME", text)
