"""The sections of verdicts and stability: what stands in them for a made-up comparison."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_comparison import build

from quintet.core.results import SHARED_BITS, Compare, Estimate
from quintet.report.page import render
from quintet.report.sections.answer import answer
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
    assert "too few steps" in str(unmeasured.reason)
    assert rows["gan"].count == len(PARTS) - 1


def test_both_stand_on_the_page_and_the_front_is_marked(made: tuple[Compare, Path]) -> None:
    page = render(*made)
    for name in ("verdicts", "stability"):
        assert f'<h2 id="{name}">' in page
        assert f'<a href="#{name}">' in page
    assert "flow-matching ○" in page


def test_the_first_screen_names_the_best_the_next_and_how_sure_that_is(made: tuple[Compare, Path]) -> None:
    compare, folder = made
    section = answer(View(compare, folder))
    assert section is not None
    rows = {row.need: row for row in section.values["rows"]}
    for advice in compare.advice:
        ranked = [entry["recipe"] for entry in advice.evidence if "recipe" in entry]
        if advice.need in rows and len(ranked) > 1:
            row = rows[advice.need]
            assert row.first.recipes[0][0] == ranked[0]
            assert row.verdict == advice.verdict
            shown = [name for name, _ in row.first.recipes]
            assert row.second is None or row.second.recipes[0][0] == ranked[len(shown)]
    page = render(*made)
    assert page.index('class="answer"') < page.index('id="pictures"')


@pytest.mark.parametrize(("seeds", "said"), [(1, "One seed each"), (2, "2 seeds each"), (6, "6 seeds each")])
def test_the_first_screen_says_what_the_seeds_can_tell(made: tuple[Compare, Path], seeds: int, said: str) -> None:
    compare, folder = made
    recipe = next(r for r in compare.recipes if r.name == "flow-matching")
    one = recipe.seeds[0].model_copy(update={"status": "done"})
    several = [one.model_copy(update={"seed": seed}) for seed in range(seeds)]
    evidence = [{"recipe": "flow-matching", "metric": "kid", "value": 0.01}]
    advice = compare.advice[0].model_copy(update={"evidence": evidence, "verdict": "likely"})
    section = answer(
        View(
            compare.model_copy(update={"recipes": [recipe.model_copy(update={"seeds": several})], "advice": [advice]}),
            folder,
        )
    )
    assert section is not None
    assert said in str(section.values["sure"])
    assert section.values["rows"][0].second is None


def test_equal_values_stand_together(made: tuple[Compare, Path]) -> None:
    compare, folder = made
    evidence = [{"recipe": name, "score": score} for name, score in (("vae", 1.0), ("gpt", 1.0), ("gan", 0.9))]
    advice = compare.advice[0].model_copy(update={"need": "stability", "evidence": evidence, "verdict": "likely"})
    section = answer(View(compare.model_copy(update={"advice": [advice]}), folder))
    assert section is not None
    row = section.values["rows"][0]
    assert [name for name, _ in row.first.recipes] == ["vae", "gpt"]
    assert (row.first.value, row.second.value) == ("1.00", "0.90")


def test_a_likelihood_stands_with_the_interval_of_the_examples_that_models_are_compared_on(
    made: tuple[Compare, Path],
) -> None:
    compare, folder = made
    shared = Estimate(value=2.5, low=2.25, high=2.75, n=80, protocol="exact")
    recipes = [
        r.model_copy(update={"summary": {**r.summary, SHARED_BITS: shared}}) if r.name == "gpt" else r
        for r in compare.recipes
    ]
    evidence = [{"recipe": "gpt", "metric": "bits_per_dim", "value": 2.5}]
    advice = compare.advice[0].model_copy(update={"need": "likelihood", "evidence": evidence, "verdict": "likely"})
    section = answer(View(compare.model_copy(update={"recipes": recipes, "advice": [advice]}), folder))
    assert section is not None
    (row,) = section.values["rows"]
    assert "2.5" in row.first.value
    assert "2.25" in row.first.interval
    assert "2.75" in row.first.interval
