"""Every block of code in README and docs runs as it stands, small; nothing is left out unseen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from blocks import LANGUAGES, RUN, Block, blocks, commands, needed, pages, planned, read, run_command, skipped

from quintet.recipes.registry import KINDS

WITH_CODE = [page for page in pages() if any(block.lang in RUN for block in blocks(page))]
NOT_RUN: dict[str, int] = {}
"""Page -> blocks below `<!-- not run: REASON -->`."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reader")


@pytest.fixture(autouse=True)
def known_kinds() -> Iterator[None]:
    """What a page registers is forgotten after it."""
    before = dict(KINDS)
    yield
    KINDS.clear()
    KINDS.update(before)


@pytest.mark.parametrize("page", WITH_CODE)
def test_code_of_a_page_runs(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("QUINTET_DATA", str(folder / "data"))
    monkeypatch.setenv("QUINTET_CACHE", str(folder / "cache"))
    monkeypatch.setenv("QUINTET_LANG", "en")
    wanted = [block for block in blocks(page) if block.lang in RUN and block.skip is None]
    assert read(page) == len(wanted)


def test_skipped_blocks_are_counted() -> None:
    found: dict[str, int] = {}
    for block in skipped():
        assert block.skip
        found[block.page] = found.get(block.page, 0) + 1
    assert found == NOT_RUN


@pytest.mark.parametrize("page", [*pages(), *pages("zh")])
def test_every_block_says_what_it_is(page: str) -> None:
    for block in blocks(page):
        assert block.lang in LANGUAGES, f"{page}:{block.line}: ```{block.lang}"
    fences = (Path(__file__).parents[2] / page).read_text(encoding="utf-8").count("```")
    assert fences == 2 * len(blocks(page)), "a fence that is not closed, or not found"


def test_a_command_that_is_wrong_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for line in (
        "quintet train gan digits --budgte 60s", "quintet compare digits --recipes gann", "make nothing",
        "torchrun -m other train gan digits", "quintet sample nowhere", "rm x",
    ):  # fmt: skip
        with pytest.raises(AssertionError):
            run_command(line, "")


def test_only_what_later_lines_need_is_trained() -> None:
    words = ["train", "gan", "digits", "--budget", "60s"]
    assert needed(words, "quintet sample runs/digits-gan-s0")
    assert not needed(words, "quintet sample runs/digits-gan-s01")
    assert needed(["compare", "photos", "--within", "30m"], 'quintet.load("runs/photos:best")')
    assert not needed(["compare", "photos", "--within", "30m"], "runs/photos-fit")
    assert planned("quintet train x y")
    assert not planned("quintet sample x")


def test_commands_are_joined_and_without_comments() -> None:
    block = Block("page", 1, "bash", None, "# first\nquintet check a \\\n  --json  # why\n\nquintet doctor", None)
    assert commands(block) == ["quintet check a    --json", "quintet doctor"]
