"""Advice within limits: what is left out and why, what speaks against a recommendation, what to measure next."""

from __future__ import annotations

import numpy as np
import pytest
from made_up import recipe, whole

from quintet.compare.advice import NEEDS, advise
from quintet.compare.constraints import ABILITIES, Limits, advise_within, read_limits, sift
from quintet.compare.summary import summarize
from quintet.core.errors import UsageError
from quintet.core.results import Compare, RecipeResult, SeedResult
from quintet.recipes.registry import find

TWO, SIX = np.arange(2) * 0.001, np.arange(6) * 0.001


def compared(seeds: np.ndarray = TWO) -> Compare:
    """Diffusion best and slow, a GAN quick, a VAE between; far apart."""
    return whole(
        recipe("gan", "gan", {"kid": 0.3 + seeds}, costs={"latency_s": 0.001, "seconds_per_1000": 0.01}, collapsed=1),
        recipe("vae", "vae", {"kid": 0.2 + seeds, "bits_per_dim": 2 + seeds}, likelihood="bound",
               capabilities=["log_prob", "latent"], costs={"latency_s": 0.002, "peak_bytes": 900_000_000}),
        recipe("flow-matching", "diffusion", {"kid": 0.1 + seeds, "bits_per_dim": 2.1 + seeds}, likelihood="estimate",
               capabilities=["log_prob", "denoiser"], costs={"latency_s": 0.2, "seconds_per_1000": 30.0}),
    )  # fmt: skip


def test_limits_as_a_user_writes_them() -> None:
    read = read_limits("50ms", "1.5GB", ["latent"], 5000)
    assert read == Limits(0.05, 1.5e9, ("latent",), 5000)
    assert read_limits("2 s", "500MiB") == Limits(2.0, 500 * 2**20)
    assert read_limits(0.5, 10_000.0) == Limits(0.5, 10_000.0)
    for wrong in ({"latency": "fast"}, {"latency": "0ms"}, {"memory": "500"}, {"abilities": ["flight"]},
                  {"data_size": 0}):  # fmt: skip
        with pytest.raises(UsageError):
            read_limits(**wrong)  # type: ignore[arg-type]


def test_without_limits_nothing_finished_is_left_out() -> None:
    kept, left_out = sift(compared(), Limits())
    assert len(kept) == 3
    assert not left_out
    for advice, bare in zip(advise_within(compared(), NEEDS, Limits()), advise_within(compared(), NEEDS, Limits()),
                            strict=True):  # fmt: skip
        assert advice == bare


@pytest.mark.parametrize(
    ("limits", "best"),
    [
        (Limits(), "flow-matching"),
        (Limits(latency_s=0.05), "vae"),
        (Limits(latency_s=0.05, memory_bytes=500e6), "gan"),
        (Limits(abilities=("latent",)), "vae"),
        (Limits(abilities=("inpainting",)), "flow-matching"),
        (Limits(abilities=("exact-likelihood",)), None),
        (Limits(latency_s=1e-4), None),
    ],
)
def test_the_best_of_those_that_keep_to_the_limits(limits: Limits, best: str | None) -> None:
    (advice,) = advise_within(compared(), ["quality"], limits, "runs/x")
    assert advice.recipe == best
    assert len(advice.left_out) == 3 - len(sift(compared(), limits)[0])
    if best is None:
        assert advice.verdict == "no evidence"
        assert advice.further


def test_reasons_why_something_is_left_out_have_their_numbers() -> None:
    _, left_out = sift(compared(), Limits(latency_s=0.05, memory_bytes=500e6, abilities=("latent",)))
    gan, vae, diffusion = (note.en for note in left_out)
    assert gan == "gan: no latent code for a given example"
    assert "900 MB" in vae
    assert "500 MB" in vae
    assert "200 ms" in diffusion
    assert "no latent code" in diffusion


def test_doubts_and_what_to_measure_next() -> None:
    (advice,) = advise_within(compared(), ["quality"], Limits(data_size=50_000), "runs/x")
    doubts = " ".join(note.en for note in advice.doubts)
    assert "2 seeds" in doubts
    assert "slowest" in doubts
    assert "50,000" in doubts
    further = " ".join(note.en for note in advice.further)
    assert "quintet compare digits --recipes flow-matching,vae --seeds 7 --out runs/x" in further
    (gan,) = advise_within(compared(), ["quality"], Limits(latency_s=0.0015), "runs/x")
    assert "1 of its 2 trainings" in " ".join(note.en for note in gan.doubts)


def lost(name: str, seeds: int) -> RecipeResult:
    """A recipe that diverged every time."""
    return summarize(find(name), [SeedResult(seed=i, status="diverged") for i in range(seeds)], {})


def test_stability_judges_those_that_never_finished() -> None:
    vae = recipe("vae", "vae", {"kid": SIX}, capabilities=["log_prob", "latent"])
    result = whole(
        summarize(find("vae"), vae.seeds, {}).model_copy(update={"capabilities": vae.capabilities}), lost("gan", 6)
    )
    stored = next(advice for advice in advise(result)[1] if advice.need == "stability")
    stability, quality = advise_within(result, ["stability", "quality"], Limits())
    assert (stability.en, stability.verdict) == (stored.en, "established")
    assert "gan had trouble in 6 of 6" in stability.en
    assert not stability.left_out
    assert [note.en for note in quality.left_out] == ["gan: no finished training"]
    (within,) = advise_within(result, ["stability"], Limits(abilities=("latent",)))
    assert [note.en for note in within.left_out] == ["gan: no latent code for a given example"]
    assert "gan" not in within.en
    (nobody,) = advise_within(whole(*result.recipes[1:], vae), ["stability"], Limits(abilities=("compression",)))
    assert nobody.recipe is None


def test_what_to_measure_next_is_about_the_rival_that_is_not_told_apart() -> None:
    rows = [recipe("gan", "gan", {"kid": 0.1 + SIX}), recipe("vae", "vae", {"kid": 0.2 + SIX})]
    wild = recipe("nsf", "flow", {"kid": [0.0, 0.0, 0.9, 0.9, 0.9, 0.9]})
    (advice,) = advise_within(whole(*rows, wild), ["quality"], Limits(), "runs/x")
    assert "--recipes gan,nsf --seeds 7" in advice.further[0].en


def test_enough_seeds_and_still_too_close_asks_for_more_budget() -> None:
    a, b = (recipe(n, n, {"kid": 0.1 + row}) for n, row in (("gan", SIX), ("vae", SIX[::-1])))
    (advice,) = advise_within(whole(a, b), ["quality"], Limits(), "runs/x")
    assert advice.verdict == "too close to call"
    assert "--budget 20s --seeds 6 --out runs/x-longer" in advice.further[0].en
    far = recipe("vae", "vae", {"kid": 0.5 + SIX})
    (sure,) = advise_within(whole(a, far), ["quality"], Limits(), "runs/x")
    assert sure.verdict == "established"
    assert not sure.further


def test_a_latency_that_was_not_measured_is_bounded_by_the_batch() -> None:
    rows = [recipe("gan", "gan", {"kid": TWO}, costs={"seconds_per_1000": s}) for s in (10.0, 100.0)]
    assert len(sift(whole(rows[0]), Limits(latency_s=0.05))[0]) == 1
    assert len(sift(whole(rows[1]), Limits(latency_s=0.05))[0]) == 0
    (advice,) = advise_within(whole(rows[0]), ["quality"], Limits(latency_s=0.05))
    assert any("not measured" in note.en for note in advice.doubts)


@pytest.mark.parametrize("ability", ABILITIES)
def test_the_literature_knows_the_limits_too(ability: str) -> None:
    for advice in advise_within(None, NEEDS, Limits(abilities=(ability,), data_size=500)):
        assert advice.verdict == "no evidence"
        assert advice.recipe is None
        assert advice.left_out
        assert advice.further
    (quick,) = advise_within(None, ["quality"], Limits(latency_s=0.01))
    assert quick.evidence[0]["family"] == "gan"
    assert any("diffusion" in note.en for note in quick.left_out)
    (none,) = advise_within(None, ["quality"], Limits(abilities=("latent", "inpainting")))
    assert none.recipe is None
    assert "loosen" in none.further[0].en


def test_everything_is_said_in_chinese_too() -> None:
    limits = Limits(0.05, 500e6, ("likelihood",), 90_000)
    for advice in (*advise_within(compared(), NEEDS, limits, "runs/x"), *advise_within(None, NEEDS, limits)):
        for note in (*advice.reasons, *advice.doubts, *advice.left_out, *advice.further):
            assert any("\u4e00" <= letter <= "\u9fff" for letter in note.zh), note
