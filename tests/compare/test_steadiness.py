"""Which recipe surely trains less steadily: tests on seeds, by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from made_up import whole

from quintet.compare.advice import advise
from quintet.compare.stability import LEAST
from quintet.compare.steadiness import MARGIN, behind, own_score, troubled
from quintet.compare.summary import summarize
from quintet.core.results import Estimate, RecipeResult, SeedResult, Stability
from quintet.recipes.registry import find


def seed(number: int, spikes: int = 0, **fields: object) -> SeedResult:
    found = {"status": "done", "metrics": {"kid": Estimate(value=0.1, low=0.0, high=0.2)}, **fields}
    return SeedResult.model_validate({"seed": number, "stability": {"watched": 1000, "spikes": spikes}, **found})


def lost(number: int) -> SeedResult:
    return seed(number, status="diverged")


def row(name: str, seeds: Sequence[SeedResult]) -> RecipeResult:
    return summarize(find("gan"), seeds, {}).model_copy(update={"name": name})


def calm(name: str, n: int) -> RecipeResult:
    return row(name, [seed(i) for i in range(n)])


def wild(name: str, n: int) -> RecipeResult:
    return row(name, [lost(i) for i in range(n)])


def test_a_training_by_itself() -> None:
    assert own_score(seed(0)) == 1.0
    assert own_score(seed(0, spikes=10)) == pytest.approx(0.5 ** (1 / 4))  # smooth is one of four parts
    assert own_score(lost(0)) == pytest.approx(LEAST ** (1 / 3))  # there is no model that might have collapsed
    back = Stability(watched=1000, skipped_steps=20, events=[{"what": "rollback", "step": 3}], collapsed=True)
    assert own_score(seed(0, stability=back)) == pytest.approx((LEAST * 1 / (1 + 3)) ** (1 / 4))
    assert [troubled(s) for s in (seed(0, spikes=99), lost(0), seed(0, stability=back))] == [False, True, True]


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("others", [1, 4])
def test_one_that_never_finishes(n: int, others: int) -> None:
    """Fisher's p of 0 and n of n is 2 / C(2n, n), that of sign flips 2 / 2^n; the smaller doubled, from six pairs."""
    rows = [*(calm(f"calm{i}", n) for i in range(others)), wild("wild", n)]
    p = 2 * min(2 / math.comb(2 * n, n), 2.0 ** (1 - n))
    tests = math.comb(others + 1, 2)
    words = behind("calm0", rows)
    if n >= 6 and tests * p < 0.05:
        assert words == {"wild": "established"}
    else:
        assert words == ({"wild": "likely"} if n >= 3 else {})
    assert behind("wild", rows) == {}


def test_spikes_alone() -> None:
    a, b = row("a", [seed(i) for i in range(3)]), row("b", [seed(i, spikes=30) for i in range(3)])
    assert behind("a", [a, b]) == {"b": "likely"}
    near = row("near", [seed(i, spikes=2) for i in range(3)])  # 1 against .956
    assert own_score(near.seeds[0]) > 1 - MARGIN
    assert behind("a", [a, near]) == {}
    mixed = row("mixed", [seed(0), *(seed(i, spikes=30) for i in (1, 2))])
    assert behind("a", [a, mixed]) == {}
    for n, words in ((4, {}), (5, {"b": "likely"})):  # one seed of b is near a's
        pair = [row("a", [seed(i) for i in range(n)]), row("b", [seed(i, spikes=50 if i else 2) for i in range(n)])]
        assert behind("a", pair) == words
    for n, word in ((6, "likely"), (7, "established")):  # 2 * 2 / 2^n is below .05 from seven on
        pair = [row(name, [seed(i, spikes=k * (20 + i)) for i in range(n)]) for k, name in enumerate("ab")]
        assert behind("a", pair) == {"b": word}


def test_a_test_that_points_the_other_way_establishes_nothing() -> None:
    """x collapsed in six of eight, y in none (p = 0.007 against x); but y is so rough that its mean is below x's."""
    collapsed = Stability(watched=1000, collapsed=True)
    x = row("x", [*(seed(i, stability=collapsed) for i in range(6)), seed(6), seed(7)])
    y = row("y", [seed(i, spikes=163) for i in range(8)])
    ours, theirs = ([own_score(s) for s in r.seeds] for r in (x, y))
    assert sum(ours) / 8 - sum(theirs) / 8 > MARGIN
    assert behind("x", [x, y]) == {}


def test_the_advice_says_who_is_less_steady_and_who_is_not_told_apart() -> None:
    result = whole(calm("vae", 6), calm("nsf", 6), wild("gan", 6))
    ranking, found = advise(result)
    advice = next(a for a in found if a.need == "stability")
    assert ranking["stability"][-1] == "gan", "one that never finished is ranked too"
    assert advice.recipe == "vae"
    assert advice.verdict == "established"
    assert "less steady: gan (" in advice.en
    assert "established)" in advice.en
    assert "do not tell nsf from it" in advice.en
    assert "gan had trouble in 6 of 6 trainings" in advice.en
    assert "已确证）" in advice.zh
    alike = next(a for a in advise(whole(calm("vae", 6), calm("nsf", 6)))[1] if a.need == "stability")
    assert alike.verdict == "too close to call"
