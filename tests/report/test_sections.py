"""The sections of verdicts and stability: what stands in them for a made-up comparison."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_comparison import build

from quintet.core.results import Compare
from quintet.report.page import render
from quintet.report.sections.stability import PARTS, stability
from quintet.report.sections.verdicts import verdicts
from quintet.report.view import View


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Compare, Path]:
    folder = tmp_path_factory.mktemp("fake")
    return build(folder), folder


def test_every_pair_stands_twice_and_one_of_them_won(made: tuple[Compare, Path]) -> None:
    section = verdicts(View(*made))
    assert section is not None
    fields = {field.metric: field for field in section.values["fields"]}
    assert next(iter(fields)) == "kid"
    assert {"sampling", "memory", "bits_per_dim"} <= set(fields)
    for field in fields.values():
        for i in range(len(field.names)):
            assert field.rows[i][i].word == ""
            for j in range(i):
                upper, lower = field.rows[j][i], field.rows[i][j]
                assert (upper.word, upper.won, lower.won) == (lower.word, True, False)
                assert upper.lines == lower.lines != ()
        assert [share.recipe for share in field.ranks] == list(field.names)
    assert fields["kid"].needed == 8  # six pairs of four recipes
    assert section.values["lowest"] == pytest.approx(1.0)
    assert dict(section.values["fronts"])["sampling"] == ["flow-matching", "gan"]


def test_nothing_to_compare_is_no_section(made: tuple[Compare, Path]) -> None:
    compare, folder = made
    alone = compare.model_copy(update={"verdicts": {}, "recipes": compare.recipes[:1]})
    assert verdicts(View(alone, folder)) is None
    bare = compare.recipes[0].model_copy(update={"steadiness": None})
    assert stability(View(compare.model_copy(update={"recipes": [bare]}), folder)) is None


def test_scores_with_their_parts(made: tuple[Compare, Path]) -> None:
    compare, folder = made
    section = stability(View(compare, folder))
    assert section is not None
    rows = {row.name: row for row in section.values["rows"]}
    assert len(rows["gan"].parts) == len(PARTS)
    finished = rows["gan"].parts[0]
    assert finished.value == "0.67"
    assert "3 trainings" in str(finished.measured)
    assert "1 of 3 [1 %, 91 %]" in str(rows["gan"].failure)
    unmeasured = rows["gan"].parts[1]
    assert (unmeasured.value, unmeasured.sort) == ("–", None)
    assert "too few logged steps" in str(unmeasured.reason)
    assert rows["gan"].count == len(PARTS) - 1


def test_both_stand_on_the_page_and_the_front_is_marked(made: tuple[Compare, Path]) -> None:
    page = render(*made)
    for name in ("verdicts", "stability"):
        assert f'<h2 id="{name}">' in page
        assert f'<a href="#{name}">' in page
    assert "flow-matching ○" in page
