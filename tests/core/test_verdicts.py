"""Verdict rules, rankings, advice and claims on made-up comparisons."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from scipy import stats

from quintet.compare.advice import NEEDS, advise, advise_by_need
from quintet.compare.claims import CLAIMS, claims
from quintet.core.results import Compare, Estimate, LedgerEntry, RecipeResult, SamplingCost, SeedResult, Stability
from quintet.core.verdicts import best, compare, floor_sd, holm, ranked, sign_flip


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
    """2/64 for each of four comparisons is not below 0.05 after Holm; ten pairs are."""
    for pairs, word in ((6, "too close to call"), (10, "established")):
        rows = [recipe("a", "gan", [0.1] * pairs)] + [recipe(f"b{i}", "vae", [0.3] * pairs) for i in range(4)]
        assert best(rows, "kid", FLOOR)[1] == word  # type: ignore[index]


def test_sign_flip_is_exact() -> None:
    rng = np.random.default_rng()
    d = rng.normal(0.3, 1, 8)
    ours = sign_flip(d)
    reference = np.mean([abs(np.dot(s, d)) >= abs(d.sum()) - 1e-12 for s in itertools.product((-1, 1), repeat=8)])
    assert ours == pytest.approx(reference)
    theirs = stats.permutation_test((d,), np.sum, permutation_type="samples", n_resamples=np.inf).pvalue
    assert ours == pytest.approx(theirs)


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


def test_a_collapsed_gan_supports_the_claim_of_instability() -> None:
    calm, bad = recipe("gan", "gan", [0.1] * 6), recipe("gan", "gan", [0.1] * 6)
    bad = bad.model_copy(update={"stability": {**bad.stability, "collapsed": 2}})
    for row, word in ((calm, "contradicted"), (bad, "supported")):
        verdict = {c.key: c for c in claims(whole(row))}["gan-unstable"]
        assert verdict.verdict == word
        assert "6" in verdict.evidence_en
    few = {c.key: c for c in claims(whole(recipe("gan", "gan", [0.1] * 2)))}["gan-unstable"]
    assert few.verdict == "mixed"


def test_sharpness_decides_whether_a_vae_is_blurry() -> None:
    for value, word in ((0.4, "supported"), (1.0, "contradicted"), (0.8, "mixed")):
        row = recipe("vae", "vae", [value] * 2, "sharpness", width=0.05)
        assert {c.key: c for c in claims(whole(row))}["vae-blurry"].verdict == word


def test_claims_without_their_families_are_not_tested() -> None:
    found = claims(whole())
    assert len(found) == len(CLAIMS)
    assert {c.verdict for c in found if c.key != "diffusion-loss"} == {"not tested here"}
    assert all(c.en and c.zh and c.evidence_en and c.evidence_zh for c in found)


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
