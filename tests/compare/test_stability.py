"""The stability score and its parts by hand, and the short trainings at other learning rates."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from quintet.compare.cell import CellJob
from quintet.compare.forecast import trial_budget
from quintet.compare.rates import RATES, rate_jobs
from quintet.compare.stability import LEAST, count_spikes, failure_rate, logged, score
from quintet.core.budget import Budget
from quintet.core.results import Estimate, RateTrial, SeedResult, Stability
from quintet.data.sources import open_dataset
from quintet.recipes.registry import find

FLOOR = {
    "kid": Estimate(value=0.0, low=-0.00196, high=0.00196),  # standard deviation 0.001
    "kid_pca": Estimate(value=0.0, low=-0.00196, high=0.00196),
}


def cell(seed: int, value: float = 0.01, **stability: object) -> SeedResult:
    return SeedResult(
        seed=seed, status="done", metrics={"kid": Estimate(value=value)},
        stability=Stability.model_validate({"watched": 1000, **stability}), curve=[{"step": 100.0}],
    )  # fmt: skip


def trials(third: float | None, same: float | None, triple: float | None) -> list[RateTrial]:
    return [
        RateTrial(factor=factor, status="diverged" if value is None else "done", kid_pca=Estimate(value=value))
        for factor, value in zip((1 / 3, 1.0, 3.0), (third, same, triple), strict=True)
    ]


def test_a_steady_recipe_scores_one() -> None:
    found = score([cell(0), cell(1)], trials(0.009, 0.009, 0.009), FLOOR)
    assert found is not None
    assert found.value == pytest.approx(1.0)
    assert {name: part.value for name, part in found.parts.items()} == dict.fromkeys(
        ("finished", "smooth", "unbroken", "covered", "seeds", "rate"), pytest.approx(1.0)
    )


def test_each_part_by_hand() -> None:
    rollback, severe = {"what": "rollback", "step": 3}, {"what": "mode_collapse", "step": 60, "severe": True}
    early = {"what": "mode_collapse", "step": 10, "severe": True}
    seeds = [
        cell(0, 0.010, spikes=20, events=[early]),
        cell(1, 0.020, skipped_steps=6, events=[rollback]),
        cell(2, 0.030, events=[severe]),
        SeedResult(seed=3, status="diverged"),
    ]
    found = score(seeds, trials(0.019, 0.009, 0.029), FLOOR)
    assert found is not None
    parts = {name: part.value for name, part in found.parts.items()}
    expected = {
        "finished": 3 / 4,
        "smooth": 1 / (1 + (1000 * 20 / 3000) / 10),
        "unbroken": 1 / (1 + (6 + 10) / 4 / 10),
        "covered": 2 / 3,  # the early finding counts for nothing
        "seeds": 1 / (1 + (0.010 / 0.001) / 10),  # standard deviation 0.01 of 0.01, 0.02, 0.03
        "rate": (0.009 + 0.001) / (0.029 + 0.001),
    }
    assert parts == pytest.approx(expected, rel=1e-5)
    assert found.value == pytest.approx(math.prod(expected.values()) ** (1 / 6), rel=1e-5)
    assert found.parts["rate"].measured == pytest.approx(3.0, rel=1e-5)
    assert found.parts["finished"].n == 4


def test_what_is_missing_is_said_and_left_out() -> None:
    found = score([cell(0, watched=0)], [], FLOOR, rates="short")
    assert found is not None
    reasons = {name: part.reason for name, part in found.parts.items() if part.value is None}
    assert reasons == {"smooth": "short_log", "seeds": "one_seed", "rate": "short"}
    assert found.value == pytest.approx(1.0)
    waiting = score([cell(0)], trials(0.01, 0.01, 0.01)[:2], FLOOR)
    assert waiting is not None
    assert waiting.parts["rate"].reason == "not_yet"
    assert score([SeedResult(seed=0, status="skipped")], [], FLOOR) is None


def test_a_lost_training_at_another_rate_counts_as_the_least() -> None:
    found = score([cell(0), cell(1)], trials(0.01, 0.01, None), FLOOR)
    assert found is not None
    assert (found.parts["rate"].value, found.parts["rate"].reason) == (0.0, "lost")
    assert found.value == pytest.approx(LEAST ** (1 / 6))
    base = score([cell(0), cell(1)], trials(0.01, None, 0.01), FLOOR)
    assert base is not None
    assert (base.parts["rate"].value, base.parts["rate"].reason) == (None, "no_base")


def test_two_models_at_the_floor_are_alike_at_any_rate() -> None:
    found = score([cell(0), cell(1)], trials(-0.0004, 0.0, -0.0002), FLOOR)
    assert found is not None
    assert found.parts["rate"].value == 1.0


def test_no_distance_at_the_other_rates_is_the_best_there_is() -> None:
    for floor in ({}, {"kid_pca": Estimate(value=None)}):
        found = score([cell(0), cell(1)], trials(-0.1, 0.01, -0.2), floor)
        assert found is not None
        assert (found.parts["rate"].value, found.parts["rate"].measured) == (1.0, 0.0)


def test_nothing_but_failures() -> None:
    found = score([SeedResult(seed=s, status="failed") for s in range(2)], [], FLOOR)
    assert found is not None
    assert found.parts["finished"].value == 0.0
    assert found.parts["covered"].reason == "none_done"
    rate = failure_rate([cell(0), SeedResult(seed=1, status="failed"), SeedResult(seed=2, status="skipped")])
    assert rate is not None
    assert (rate.value, rate.n) == (0.5, 2)
    assert rate.low == pytest.approx(1 - 0.975**0.5)  # of two trainings at least one fails with probability 0.025
    assert failure_rate([]) is None


def test_spikes_of_a_log(tmp_path: Path) -> None:
    """The last total of each stage counts: a stage that went back to a checkpoint has told smaller ones since."""
    told = [("a", 3, 100), ("a", 1, 60), ("b", 4, 70), ("b", 5, 90)]
    lines: list[dict[str, object]] = [
        {"kind": "spikes", "stage": stage, "step": 1, "found": found, "judged": judged} for stage, found, judged in told
    ]
    lines.insert(3, {"kind": "step", "stage": "b", "step": 9})
    assert count_spikes(lines) == (1 + 5, 60 + 90)
    assert count_spikes([]) == (0, 0)
    (tmp_path / "log.jsonl").write_text('{"kind": "step"}\n{"kind": "st', encoding="utf-8")
    assert logged(tmp_path / "log.jsonl") == [{"kind": "step"}]
    assert logged(tmp_path / "none.jsonl") == []


def test_budget_of_a_short_training() -> None:
    assert trial_budget(Budget.parse("12s")) is None
    assert trial_budget(Budget.parse("16s")) == Budget("seconds", 2.0)
    assert trial_budget(Budget.parse("80steps")) == Budget("steps", 10)


@pytest.mark.parametrize("recipe", ["gan", "vae", "nsf", "flow-matching", "gpt"])
def test_short_trainings_differ_in_nothing_but_the_rates(recipe: str, tmp_path: Path) -> None:
    """Networks are those of the whole budget, and what the user changed stays changed."""
    dataset = open_dataset("digits")
    job = CellJob(tmp_path / "cells" / "x-s0", find(recipe), dataset, Budget.parse("60m"), 0, (("train.batch", "32"),))
    full = job.stages()
    found = rate_jobs(job)
    assert [made.folder.name for made in found.values()] == [f"{recipe}-rate-{name}" for name in RATES]
    for name, made in found.items():
        assert made.budget == Budget("seconds", 450.0)
        for ours, theirs in zip(made.stages(), full, strict=True):
            assert (ours.model, ours.codec, ours.train.batch, ours.train.warmup) == (
                theirs.model, theirs.codec, 32, theirs.train.warmup,
            )  # fmt: skip
            for player, optimizer in theirs.train.optimizers.items():
                scaled = ours.train.optimizers[player]
                assert scaled.lr == pytest.approx(RATES[name] * optimizer.lr)
                assert scaled.matrix_lr == pytest.approx(RATES[name] * optimizer.matrix_lr)
                assert (scaled.betas, scaled.clip, scaled.method) == (optimizer.betas, optimizer.clip, optimizer.method)
    assert rate_jobs(CellJob(tmp_path, find(recipe), dataset, Budget.parse("12s"), 0)) == {}
