"""Ranks, the agreement of spaces and Pareto fronts of made-up comparisons."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from quintet.compare.standing import agreement, fronts, rank_shares, standing
from quintet.compare.summary import over_seeds
from quintet.core.results import Compare, Estimate, RecipeResult, SamplingCost, SeedResult

SEEDS = 2


def recipe(
    name: str, kid: float, seconds: float, curve: Sequence[float] = (), bits: float | None = None, **more: float
) -> RecipeResult:
    """Two seeds, a hundredth apart in everything; `curve` is at seconds 1, 2, ..."""
    seeds = []
    for i in range(SEEDS):
        values = {"kid": kid, **more, **({} if bits is None else {"bits_per_dim": bits})}
        metrics = {k: Estimate(value=v * (1 + 0.01 * i), low=v * 0.99, high=v * 1.02) for k, v in values.items()}
        points = [
            {"seconds": float(t + 1), "step": float(t), "kid_pca": v * (1 + 0.01 * i)} for t, v in enumerate(curve)
        ]
        cost = SamplingCost(seconds_per_1000=seconds * (1 + 0.01 * i), nfe=1, sequential_steps=1)
        seeds.append(SeedResult(seed=i, status="done", metrics=metrics, sampling=cost, curve=points))
    return RecipeResult(name=name, family="gan", status="done", seeds=seeds)


def whole(*recipes: RecipeResult) -> Compare:
    return Compare(name="x", quintet="0", created="2026-01-01T00:00:00", data={}, budget={}, recipes=list(recipes))


def test_only_what_is_surely_beaten_in_both_leaves_the_front() -> None:
    best, quick, between, poor = (
        recipe("best", 0.1, 10), recipe("quick", 0.5, 0.1), recipe("between", 0.2, 1), recipe("poor", 0.6, 12)
    )  # fmt: skip
    close = recipe("close", 0.1005, 11)  # slower than the best, and no better: but not surely worse
    found = standing(whole(best, quick, between, poor, close))["fronts"]
    assert set(found["sampling"]) == {"best", "quick", "between", "close"}
    assert "likelihood" not in found  # nobody has one
    assert "training" not in found


def test_the_front_of_likelihood_is_of_those_who_have_one() -> None:
    rows = [
        recipe("a", 0.1, 1, bits=3.0),
        recipe("b", 0.2, 1, bits=2.0),
        recipe("c", 0.3, 1, bits=4.0),
        recipe("d", 0.05, 1),
    ]
    assert standing(whole(*rows))["fronts"]["likelihood"] == ["a", "b"]


def test_a_quick_learner_is_on_the_front_of_training() -> None:
    slow = recipe("slow", 0.1, 1, curve=[0.9, 0.5, 0.1])
    quick = recipe("quick", 0.3, 1, curve=[0.4, 0.35, 0.3])
    never = recipe("never", 0.6, 1, curve=[0.95, 0.8, 0.6])
    result = whole(slow, quick, never)
    assert standing(result)["fronts"]["training"] == ["slow", "quick"]
    wide = result.model_copy(update={"floor": {"kid_pca": Estimate(value=0.0, low=-4.0, high=4.0)}})
    assert fronts(wide, {})["training"] == ["slow", "quick", "never"]  # no gap is larger than the floor's spread


def test_one_seed_leaves_every_one_on_the_front() -> None:
    rows = [recipe("a", 0.1, 1, [0.1, 0.1]), recipe("b", 0.5, 5, [0.5, 0.5])]
    lone = [row.model_copy(update={"seeds": row.seeds[:1]}) for row in rows]
    found = standing(whole(*lone))["fronts"]
    assert set(found["sampling"]) == {"a", "b"}
    assert "training" not in found


def test_ranks_are_firm_where_seeds_agree() -> None:
    found = rank_shares(whole(recipe("c", 0.5, 1), recipe("a", 0.1, 1), recipe("b", 0.3, 1)), "kid")
    assert [(r.recipe, r.rank) for r in found] == [("a", 1), ("b", 2), ("c", 3)]
    assert all(r.kept == 1.0 and r.low == r.high == r.rank for r in found)
    twins = rank_shares(whole(recipe("a", 0.1, 1), recipe("b", 0.1, 1)), "kid")
    assert all(0.2 < r.kept < 0.8 and (r.low, r.high) == (1, 2) for r in twins)
    assert sum(r.expected for r in twins) == pytest.approx(3)
    assert rank_shares(whole(recipe("a", 0.1, 1)), "kid") == []
    assert rank_shares(whole(), "kid") == []


def test_ranks_pair_seeds_by_their_number() -> None:
    """b is behind a on every seed both have; its seed 0 was lost, so that lists side by side would pair others."""

    def row(name: str, values: Sequence[float | None]) -> RecipeResult:
        seeds = [
            SeedResult(seed=i, status="diverged") if v is None
            else SeedResult(seed=i, status="done", metrics={"kid": Estimate(value=v, low=v, high=v)})
            for i, v in enumerate(values)
        ]  # fmt: skip
        return RecipeResult(name=name, family="gan", status="done", seeds=seeds)

    found = rank_shares(
        whole(row("a", [0.0, 50.0, 40.0, 30.0, 20.0, 10.0]), row("b", [None, 51, 41, 31, 21, 11])), "kid"
    )
    assert [(r.recipe, r.kept) for r in found] == [("a", 1.0), ("b", 1.0)]


def test_agreement_of_spaces() -> None:
    rows = [
        recipe("a", 0.1, 1, kid_pca=0.1, kid_pixels=0.3),
        recipe("b", 0.2, 1, kid_pca=0.2, kid_pixels=0.2),
        recipe("c", 0.3, 1, kid_pca=0.3, kid_pixels=0.1),
    ]
    found = agreement(whole(*rows))
    assert found is not None
    assert found.spaces == ["kid", "kid_pca", "kid_pixels"]
    assert found.tau == [[1, 1, -1], [1, 1, -1], [-1, -1, 1]]
    assert found.orders["kid_pixels"] == ["c", "b", "a"]
    words = {(v.better, v.worse): v.word for v in standing(whole(*rows))["verdicts"]["kid"]}
    assert set(words.values()) == {"mixed"}
    assert agreement(whole(rows[0])) is None
    assert agreement(whole(recipe("a", 0.1, 1), recipe("b", 0.2, 1))) is None


def test_the_summary_of_seeds() -> None:
    seeds = [Estimate(value=v, low=v - 0.2, high=v + 0.2, n=500, protocol="p") for v in (1.0, 2.0, 4.0)]
    found = over_seeds(seeds, "kid")
    assert (found.value, found.n) == (2.0, 500)
    assert found.low is not None
    assert found.high is not None
    assert 0.5 < found.low < 1.05
    assert 3.95 < found.high < 4.5
    assert "bootstrap" in found.protocol
    assert over_seeds(seeds, "kid") == found  # the same resamples each time
    assert over_seeds(seeds[:1], "kid").low == seeds[0].low
    assert over_seeds([Estimate(value=None, protocol="why")], "cas") == Estimate(value=None, protocol="why")
