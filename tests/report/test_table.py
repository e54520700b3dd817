"""The numbers' form, and the rule for what may be called the best."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from quintet.core.results import Compare, Estimate, LedgerEntry, RecipeResult, SamplingCost, SeedResult
from quintet.report import table


def recipe(
    name: str, values: Sequence[float], spread: float = 0.01, metric: str = "kid", **status: str
) -> RecipeResult:
    seeds = [
        SeedResult(
            seed=i,
            status="done",
            metrics={metric: Estimate(value=v, low=v - spread, high=v + spread, n=500)},
            ledger=LedgerEntry(wall_s=10 + i, cpu_s=1, flops=1e9, examples=1, steps=5, params=10, peak_bytes=2**20),
            sampling=SamplingCost(seconds_per_1000=0.5, nfe=1, sequential_steps=1),
        )
        for i, v in enumerate(values)
    ]
    median = Estimate(value=float(np.median(values)), low=min(values), high=max(values), n=500)
    return RecipeResult(name=name, family="gan", status="done", seeds=seeds, summary={metric: median})


FLOOR = Estimate(value=0.0, low=-0.0196, high=0.0196)  # standard deviation 0.01


def best(rows: list[RecipeResult], better: table.Better, floor: Estimate = FLOOR) -> tuple[str, str] | None:
    whole = Compare(
        name="x", quintet="0", created="2026-01-01T00:00:00", data={}, budget={}, floor={"kid": floor}, recipes=rows
    )
    return table.best(whole, "kid", better)


def test_clear_lead_is_likely() -> None:
    found = best([recipe("a", [0.1, 0.11, 0.12]), recipe("b", [0.2, 0.21, 0.22])], "low")
    assert found == ("a", "likely")


def test_direction_and_ideal_value() -> None:
    pair = [recipe("a", [0.1, 0.11]), recipe("b", [0.2, 0.21])]
    assert best(pair, "high") == ("b", "likely")
    assert best(pair, 0.19) == ("b", "likely")
    assert best(pair, 0.155) is None  # one below, one above, as far
    assert best(pair, None) is None


@pytest.mark.parametrize(
    ("second", "spread", "floor"),
    [
        ([0.2, 0.115], 0.001, FLOOR),  # one seed does not beat the other's worst
        ([0.2, 0.21], 0.06, FLOOR),  # sample-level intervals overlap
        ([0.2, 0.21], 0.001, Estimate(value=0.0, low=-0.4, high=0.4)),  # the gap is within the floor's spread
    ],
)
def test_anything_less_is_too_close_to_call(second: list[float], spread: float, floor: Estimate) -> None:
    first = recipe("a", [0.1, 0.12], spread)
    assert best([first, recipe("b", second, spread)], "low", floor) is None


def test_every_other_must_be_beaten() -> None:
    three = [recipe("a", [0.1, 0.11]), recipe("b", [0.2, 0.21]), recipe("c", [0.105, 0.115])]
    assert best(three, "low") is None


def test_six_pairs_establish_and_holm_corrects() -> None:
    good = recipe("a", [0.10, 0.11, 0.12, 0.10, 0.11, 0.12], 0.5)  # intervals overlap: not by the rule for "likely"
    bad = recipe("b", [0.20, 0.21, 0.22, 0.20, 0.21, 0.22], 0.5)
    assert best([good, bad], "low") == ("a", "established")  # p = 2 / 64
    worse = [recipe(n, [0.3, 0.31, 0.32, 0.3, 0.31, 0.32], 0.5) for n in "cd"]
    assert best([good, bad, *worse], "low") is None  # 3 x 2 / 64 > 0.05


def test_single_seed_shows_its_own_interval() -> None:
    one = recipe("a", [0.1])
    assert table.estimate(one, "kid") == one.seeds[0].metrics["kid"]


def test_costs_are_medians_over_finished_seeds() -> None:
    found = table.over_seeds(recipe("a", [1, 2, 3]), "training")
    assert found is not None
    assert (found.value, found.low, found.high) == (11.0, 10.0, 12.0)
    lost = RecipeResult(name="x", family="gan", status="failed", seeds=[SeedResult(seed=0, status="failed")])
    assert table.over_seeds(lost, "training") is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (0.00614, "0.00614"), (12.34, "12.3"), (1240.4, "1,240"), (100.0, "100"), (60, "60.0"),
        (-0.5, "−0.500"), (1e-7, "1.00e−07"),
    ],
)  # fmt: skip
def test_significant_digits(value: float, text: str) -> None:
    assert table.significant(value) == text


def test_column_form_follows_the_intervals() -> None:
    form = table.column("c2st", [Estimate(value=0.652, low=0.636, high=0.668)])
    assert form.text(0.652) == "0.652"
    tiny = table.column("kid", [Estimate(value=0.0032, low=0.0028, high=0.0036)])
    assert (tiny.scale, tiny.text(0.0032), tiny.interval(-0.0028, 0.0036)) == (1e-3, "3.20", "[−2.80, 3.60]")
    whole = table.column("modes", [Estimate(value=10, low=9, high=10)])
    assert whole.text(10) == "10"
    assert whole.interval(10, 10) == ""
    assert table.column("params", ()).text(310_000) == "310 k"
    assert table.column("memory", ()).text(3e9) == "3.00 GB"


def test_no_value_is_a_dash_and_never_nan() -> None:
    form = table.column("kid", [])
    assert form.text(None) == "–"
    assert form.text(float("nan")) == "–"
    assert table.metric_cell(form, Estimate(value=None, protocol="why")).missing == "why"
