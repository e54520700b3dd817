"""Verdict rules, rankings and advice on made-up comparisons."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from scipy import stats

from quintet.compare.advice import NEEDS, advise, advise_by_need
from quintet.core.ladders import Ladder
from quintet.core.results import Compare, Estimate, LedgerEntry, RecipeResult, SamplingCost, SeedResult, Stability
from quintet.core.verdicts import (
    compare,
    floor_sd,
    holm,
    joint_sign_flip,
    leader,
    pairs_needed,
    ranked,
    settled,
    sign_flip,
    spaces,
    standings,
    surpassed,
)


def seed_result(seed: int, width: float = 0.01, **values: float) -> SeedResult:
    metrics = {k: Estimate(value=v, low=v - width, high=v + width, n=100) for k, v in values.items()}
    return SeedResult(
        seed=seed,
        status="done",
        metrics=metrics,
        ledger=LedgerEntry(wall_s=1, cpu_s=1, flops=1, examples=1, steps=1, params=1, peak_bytes=10_000_000),
        sampling=SamplingCost(seconds_per_1000=1.0, nfe=1, sequential_steps=1),
    )


def recipe(name: str, family: str, values: list[float], metric: str = "kid", width: float = 0.01) -> RecipeResult:
    seeds = [seed_result(i, width, **{metric: v}) for i, v in enumerate(values)]
    stability: dict[str, Any] = {"seeds": len(seeds), "failed": 0, "diverged": 0, "collapsed": 0, "kid_spread": 0.1}
    return RecipeResult(name=name, family=family, status="done", seeds=seeds, stability=stability)


FLOOR = Estimate(value=0.0, low=-0.0196, high=0.0196, n=100)  # standard deviation 0.01


def test_few_seeds_are_at_most_likely() -> None:
    a, b = recipe("a", "gan", [0.1, 0.12, 0.11]), recipe("b", "vae", [0.3, 0.31, 0.29])
    assert compare(a, b, "kid", FLOOR).word == "likely"
    assert compare(b, a, "kid", FLOOR).word == "too close to call"


@pytest.mark.parametrize(
    ("ours", "theirs", "width"),
    [
        ([0.1, 0.35, 0.11], [0.3, 0.31, 0.29], 0.01),  # a seed of A is worse than a seed of B
        ([0.1, 0.12, 0.11], [0.13, 0.14, 0.15], 0.01),  # intervals overlap
        ([0.1, 0.1, 0.1], [0.105, 0.105, 0.105], 0.001),  # the gap is within the floor's standard deviation
    ],
)
def test_each_condition_of_likely_is_needed(ours: list[float], theirs: list[float], width: float) -> None:
    a, b = recipe("a", "gan", ours, width=width), recipe("b", "vae", theirs, width=width)
    assert compare(a, b, "kid", FLOOR).word == "too close to call"


def test_six_pairs_can_establish() -> None:
    a, b = recipe("a", "gan", [0.1] * 6), recipe("b", "vae", [0.3, 0.2, 0.25, 0.31, 0.2, 0.4])
    verdict = compare(a, b, "kid", FLOOR)
    assert verdict.word == "established"
    assert verdict.p == pytest.approx(2 / 64)
    five = compare(recipe("a", "gan", [0.1] * 5), recipe("b", "vae", [0.3] * 5), "kid", FLOOR)
    assert five.word == "likely"


def test_holm_takes_six_pairs_against_four_families_back() -> None:
    """2/64 for each of four comparisons is not below 0.05 after Holm, and what is left is "likely"; ten pairs are."""
    for pairs, word in ((6, "likely"), (7, "likely"), (8, "established"), (10, "established")):
        rows = [recipe("a", "gan", [0.1] * pairs)] + [recipe(f"b{i}", "vae", [0.3] * pairs) for i in range(4)]
        assert leader(whole(*rows), "kid")[1] == word  # type: ignore[index]
        assert pairs_needed(4) == 8


def test_sign_flip_is_exact() -> None:
    rng = np.random.default_rng()
    d = rng.normal(0.3, 1, 8)
    ours = sign_flip(d)
    reference = np.mean([abs(np.dot(s, d)) >= abs(d.sum()) - 1e-12 for s in itertools.product((-1, 1), repeat=8)])
    assert ours == pytest.approx(reference)
    theirs = stats.permutation_test((d,), np.sum, permutation_type="samples", n_resamples=np.inf).pvalue
    assert ours == pytest.approx(theirs)


def test_a_joint_sign_flip_is_exact() -> None:
    """By enumeration: signs of seeds, shared by all columns; a seed that a column lacks adds nothing to it."""
    rng = np.random.default_rng()
    d = rng.normal(0.3, [1.0, 0.1, 5.0], (7, 3))
    d[2, 1] = 0.0
    columns = [{seed: d[seed, k] for seed in range(7) if d[seed, k]} for k in range(3)]
    norms = np.sqrt((d**2).sum(0))
    largest = [max(np.dot(s, d[:, k]) / norms[k] for k in range(3)) for s in itertools.product((-1, 1), repeat=7)]
    expected = [np.mean([value >= d[:, k].sum() / norms[k] - 1e-9 for value in largest]) for k in range(3)]
    assert joint_sign_flip(columns) == pytest.approx(expected)
    assert joint_sign_flip([{seed: abs(x) for seed, x in columns[0].items()}]) == [pytest.approx(2.0**-7)]
    assert joint_sign_flip([]) == []
    many = rng.normal(0.3, 1, 16)  # random flips: half of the p of both sides, where the sum is above zero
    many *= np.sign(many.sum())
    assert joint_sign_flip([dict(enumerate(many))])[0] == pytest.approx(sign_flip(many) / 2, abs=0.02)


def test_being_surpassed_by_any_of_several_rivals_takes_more_than_by_one() -> None:
    """Against one rival all six differences say so, 2/64; beside it one that goes both ways would reach as far."""
    ours = recipe("ours", "gan", [5.0, 0.1, 0.1, 0.1, 0.1, 0.1], width=0.001)
    ahead = recipe("ahead", "vae", [0.0] * 6, width=0.001)
    noise = recipe("noise", "flow", [4.0, 1.1, -0.9, 1.1, -0.9, 1.1], width=0.001)
    result = whole(ours, ahead, noise)
    assert settled(result, ahead, ours, "kid").word == "established"
    assert surpassed(result, ours, [ahead], "kid")
    assert not surpassed(result, ours, [ahead, noise], "kid")
    level = recipe("level", "gan", [1.0, 1.1, 1.2, 1.3, 1.4, 1.5])
    far = recipe("far", "flow", [9.0, 9.2, 9.1, 9.5, 9.3, 9.4])
    assert surpassed(whole(level, ahead, far), level, [ahead, far], "kid"), "one that is far worse takes nothing away"
    pair = recipe("ours", "gan", [0.3, 0.31]), recipe("ahead", "vae", [0.1, 0.11])
    assert surpassed(whole(*pair), pair[0], [pair[1]], "kid"), "too few seeds for a test: likely"


def test_holm_against_a_hand_computation() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_metrics_with_an_ideal_value_and_higher_is_better() -> None:
    near, far = recipe("near", "gan", [0.55] * 2, "c2st"), recipe("far", "vae", [0.40] * 2, "c2st")
    assert [r.name for r in ranked([far, near], "c2st")] == ["near", "far"]
    high, low = recipe("high", "gan", [0.9] * 2, "coverage"), recipe("low", "vae", [0.5] * 2, "coverage")
    assert [r.name for r in ranked([low, high], "coverage")] == ["high", "low"]
    assert compare(high, low, "coverage").word == "likely"
    assert floor_sd(FLOOR) == pytest.approx(0.01, rel=1e-3)
    assert floor_sd(None) == 0


def whole(*recipes: RecipeResult) -> Compare:
    return Compare(
        name="x", quintet="0", created="2026-01-01T00:00:00", data={"name": "d"}, budget={"cell": "1s"},
        floor={"kid": FLOOR}, recipes=list(recipes),
    )  # fmt: skip


def test_every_need_gets_a_sentence_in_both_languages() -> None:
    result = whole(recipe("gan", "gan", [0.1, 0.1]), recipe("vae", "vae", [0.3, 0.3]))
    ranking, advice = advise(result)
    assert [a.need for a in advice] == list(NEEDS)
    assert ranking["quality"] == ["gan", "vae"]
    quality = advice[0]
    assert (quality.recipe, quality.verdict) == ("gan", "likely")
    assert "0.1000" in quality.en
    assert "0.1000" in quality.zh
    assert quality.evidence[0]["value"] == pytest.approx(0.1)
    literature = advise_by_need(None, ["speed"])
    assert literature[0].verdict == "no evidence"
    assert advise(whole())[1] == []


def test_the_word_is_about_the_rival_that_the_sentence_names() -> None:
    eight = np.arange(8) * 0.001
    first, second = recipe("a", "gan", list(0.1 + eight)), recipe("b", "vae", list(0.5 + eight))
    wild = recipe("c", "flow", [0.0, 0.0, 9.0, 9.0, 9.0, 9.0, 0.0, 9.0])
    found = leader(whole(first, second, wild), "kid")
    assert found is not None
    assert (found.recipe.name, found.word, found.rival.name) == ("a", "too close to call", "c")  # type: ignore[union-attr]
    advice = advise_by_need(whole(first, second, wild), ["quality"])[0]
    assert "a (KID 0.1035) and c (KID 9.0000) are too close to call" in advice.en
    assert "c（KID 为 9.0000）难分高下" in advice.zh
    twice = [[0.1, 0.11], [0.3, 0.31], [0.5, 0.51]]
    rows = [
        spaced(n, kid=v, kid_pixels=p) for n, v, p in zip("abc", twice, (twice[1], twice[2], twice[0]), strict=True)
    ]
    mixed = advise_by_need(whole(*rows), ["quality"])[0]
    assert mixed.verdict == "mixed"
    assert "a (KID 0.1050) before c (KID 0.5050), but not in every space" in mixed.en


def test_a_single_survivor_neither_vetoes_nor_leads() -> None:
    eight = np.arange(8) * 0.001
    first, second = recipe("a", "gan", list(0.1 + eight)), recipe("b", "vae", list(0.5 + eight))
    for value in (9.0, 0.0):
        lone = recipe("c", "flow", [value])
        lost = [SeedResult(seed=i, status="diverged") for i in range(1, 8)]
        lone = lone.model_copy(update={"seeds": [*lone.seeds, *lost]})
        found = leader(whole(first, second, lone), "kid")
        assert found is not None
        assert (found.recipe.name, found.word) == ("a", "established")
        assert [r.name for r in found.alone] == ["c"]
        advice = advise_by_need(whole(first, second, lone), ["quality"])[0]
        assert advice.verdict == "established"
        assert "Too few seeds to judge c." in advice.en
        assert "c 的种子太少" in advice.zh
        assert {e["recipe"]: e["seeds"] for e in advice.evidence} == {"a": 8, "b": 8, "c": 1}, "the scored seeds"
        only = advise_by_need(whole(first, lone), ["quality"])[0]
        assert (only.recipe, only.verdict) == ("a", "too close to call")
        assert "only a (KID 0.1035) has several seeds" in only.en
    one_each = leader(whole(recipe("a", "gan", [0.1]), recipe("b", "vae", [0.5])), "kid")
    assert one_each is not None
    assert (one_each.word, one_each.alone) == ("too close to call", ())


def test_stability_of_failed_seeds() -> None:
    failed = SeedResult(seed=2, status="diverged", stability=Stability(diverged=True))
    row = recipe("gan", "gan", [0.1, 0.1])
    row = row.model_copy(
        update={"seeds": [*row.seeds, failed], "stability": {**row.stability, "seeds": 3, "diverged": 1}}
    )
    advice = {a.need: a for a in advise(whole(row, recipe("vae", "vae", [0.2, 0.2])))[1]}["stability"]
    assert advice.recipe == "vae"
    assert "1 of 3" in advice.en


def test_one_seed_is_no_evidence() -> None:
    assert compare(recipe("a", "gan", [0.1]), recipe("b", "vae", [0.9]), "kid", FLOOR).word == "too close to call"


def spaced(name: str, **values: list[float]) -> RecipeResult:
    """A recipe with values a seed in several spaces; tight intervals."""
    count = len(next(iter(values.values())))
    seeds = [seed_result(i, 0.001, **{space: row[i] for space, row in values.items()}) for i in range(count)]
    return RecipeResult(name=name, family="gan", status="done", seeds=seeds)


BETTER_ROW, WORSE_ROW, BETWEEN = [0.1, 0.11], [0.3, 0.31], [0.1, 0.31]


def test_a_win_counts_where_no_space_reverses_it() -> None:
    a = spaced("a", kid=BETTER_ROW, kid_pca=BETTER_ROW, kid_pixels=BETTER_ROW)
    for pca, pixels, word in (
        (WORSE_ROW, WORSE_ROW, "likely"),
        ([0.1, 0.12], WORSE_ROW, "likely"),  # too close in one space, but in the same order
        (WORSE_ROW, [0.0, 0.1], "mixed"),  # the reverse in one space, sure or not
        (WORSE_ROW, [0.01, 0.02], "mixed"),
    ):
        b = spaced("b", kid=WORSE_ROW, kid_pca=pca, kid_pixels=pixels)
        result = whole(a, b)
        assert settled(result, a, b, "kid").word == word
        assert leader(result, "kid")[:2] == (a, word)  # type: ignore[index]
        assert [(v.better, v.word) for v in standings(result, "kid")] == [("a", word)]
        assert settled(result, b, a, "kid").word == ("mixed" if word == "mixed" else "too close to call")


def test_a_win_outside_the_main_space_is_mixed() -> None:
    a = spaced("a", kid=BETWEEN, kid_pixels=BETTER_ROW)
    b = spaced("b", kid=[0.2, 0.29], kid_pixels=WORSE_ROW)
    assert settled(whole(a, b), a, b, "kid").word == "mixed"
    close = spaced("c", kid=[0.2, 0.29], kid_pixels=BETWEEN)
    assert settled(whole(a, close), a, close, "kid").word == "too close to call"


def test_spaces_are_those_all_have_and_whose_ladder_holds() -> None:
    a, b = spaced("a", kid=BETTER_ROW, kid_pca=BETTER_ROW), spaced("b", kid=WORSE_ROW, kid_pca=[0.05, 0.06])
    lone = spaced("c", kid=WORSE_ROW)
    result = whole(a, b, lone)
    assert spaces(result, "kid", [a, b]) == ["kid", "kid_pca"]
    assert spaces(result, "kid", [a, lone]) == ["kid"]
    assert spaces(result, "coverage", []) == ["coverage"]
    failed = Ladder(rungs=[], ordered={}, used=False, reason="x")
    without = result.model_copy(update={"ladders": {"kid_pca": failed}})
    assert settled(result, a, b, "kid").word == "mixed"
    assert settled(without, a, b, "kid").word == "likely"
    only_pca = whole(a, b).model_copy(update={"ladders": {"kid": failed}})
    assert leader(only_pca, "kid")[:2] == (b, "likely")  # type: ignore[index]  # what is left decides
    nothing = whole(a, b).model_copy(update={"ladders": {"kid": failed, "kid_pca": failed}})
    assert leader(nothing, "kid") is None
    assert standings(nothing, "kid") == []
    assert settled(nothing, a, b, "kid").word == "too close to call"


def test_standings_correct_over_all_pairs() -> None:
    """Three recipes far apart, p = 2/2^n for each of three pairs: 3 x 2/64 > 0.05 with six seeds, eight establish."""
    for pairs, word in ((6, "likely"), (8, "established")):
        rows = [recipe(name, "gan", [level] * pairs) for name, level in (("a", 0.1), ("b", 0.3), ("c", 0.5))]
        found = standings(whole(*rows), "kid")
        assert [(v.better, v.worse) for v in found] == [("a", "b"), ("a", "c"), ("b", "c")]
        assert {v.word for v in found} == {word}
        assert found[0].adjusted == pytest.approx(3 * 2 / 2**pairs)


def test_the_mean_must_point_the_same_way_as_the_median() -> None:
    """A is better on most seeds, but on one so much worse that the test is about B."""
    a = recipe("a", "gan", [0.10] * 5 + [9.0] * 3, width=0.5)
    b = recipe("b", "vae", [0.11] * 8, width=0.5)
    assert compare(a, b, "kid").word == "too close to call"


def made_up(rng: np.random.Generator, seeds: int, effect: float = 0.0) -> Compare:
    """Five recipes, equal but for the first, which is better by `effect` standard deviations between seeds."""
    values = rng.normal(size=(5, seeds)) + rng.normal(size=(1, seeds))
    values[0] -= effect
    return whole(*(recipe(name, "gan", row.tolist()) for name, row in zip("abcde", values, strict=True)))


@pytest.mark.parametrize("seeds", [6, 8, 10])
def test_false_established_is_rare_and_would_not_be_without_the_correction(seeds: int) -> None:
    """Equal recipes: at most 5 % of comparisons have any established pair, or an established best one."""
    repeats = 150
    pair = best = uncorrected = 0
    for i in range(repeats):
        result = made_up(np.random.default_rng([i, seeds]), seeds)
        words = {v.word for v in standings(result, "kid")}
        found = leader(result, "kid")
        pair += "established" in words
        best += found is not None and found.word == "established"
        rows = result.recipes
        uncorrected += any(compare(a, b, "kid").word == "established" for a in rows for b in rows if a is not b)
    allowed = stats.binom.ppf(0.9999, repeats, 0.05)
    assert pair <= allowed
    assert best <= allowed
    assert uncorrected > allowed  # so that the check can fail


def test_a_large_difference_is_established() -> None:
    """Three standard deviations and ten seeds: nearly always; at six seeds among five recipes never."""
    found = [leader(made_up(np.random.default_rng([i, 7]), 10, effect=3.0), "kid") for i in range(40)]
    assert sum(f is not None and f.word == "established" and f.recipe.name == "a" for f in found) >= 36
    few = [leader(made_up(np.random.default_rng([i, 8]), 6, effect=3.0), "kid") for i in range(40)]
    assert all(f is not None and f.word != "established" for f in few)
