"""Equal cost from curves with a known law; the flag of a busy machine."""

from __future__ import annotations

import numpy as np
import pytest

from quintet.compare.busy import busy, flagged, with_remark
from quintet.compare.snapshots import at_equal, curve, value_at
from quintet.core.results import Advice, Busy, Compare, LedgerEntry, RecipeResult, SeedResult

SHARES = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)


def cell(seed: int, law, *, wall: float = 60.0, rate: float = 1e9, reason: str = "", **more) -> SeedResult:  # type: ignore[no-untyped-def]
    """A finished cell whose distance follows `law` of the FLOPs."""
    points = [
        {"share": s, "seconds": wall * s, "flops": wall * s * rate, "step": 1.0, "kid_pca": law(wall * s * rate)}
        for s in SHARES
    ]
    return SeedResult(seed=seed, status="done", reason=reason, curve=points, **more)


def comparison(**recipes: list[SeedResult]) -> Compare:
    rows = [RecipeResult(name=name, family="gan", status="done", seeds=seeds) for name, seeds in recipes.items()]
    budget = {"unit": "seconds"}
    return Compare(schema_=1, name="x", quintet="0", created="", data={}, budget=budget, recipes=rows)


def test_a_power_law_is_met_exactly_between_points() -> None:
    g = np.random.default_rng()
    a, b = g.uniform(0.1, 5), g.uniform(0.2, 2)
    found = [(x, a * x**-b) for x in np.geomspace(1, 64, 7)]
    for at in np.exp(g.uniform(0, np.log(64), 20)):
        assert value_at(found, at) == pytest.approx(a * at**-b)
    straight = [(x, -1 + np.log(x)) for x in (1.0, 8.0)]  # a distance may be negative: then linear in log cost
    assert value_at(straight, 2.0) == pytest.approx(-1 + np.log(2))


def test_ends_of_a_curve() -> None:
    found = [(10.0, 4.0), (20.0, 2.0)]
    assert value_at(found, 10.0) == 4
    assert value_at(found, 20.0) == 2
    assert value_at(found, 20.9) == 2  # budgets end within 5 %
    assert value_at(found, 21.1) is None
    assert value_at(found, 9.9) is None
    assert value_at([(10.0, 4.0)], 10.2) == 4


def test_the_order_at_equal_time_need_not_be_that_at_equal_flops() -> None:
    """`slow` does a tenth of the operations a second and is better for each of them."""
    result = comparison(
        fast=[cell(s, lambda f: 3e9 / f, rate=1e10) for s in range(2)],
        slow=[cell(s, lambda f: 1e9 / f, rate=1e9) for s in range(2)],
    )
    by_time, by_flops = at_equal(result, "wall_s"), at_equal(result, "flops")
    assert [s.recipe for s in by_time] == ["fast", "slow"]
    assert [s.recipe for s in by_flops] == ["slow", "fast"]
    assert {s.at for s in by_time} == {60.0}
    assert {s.at for s in by_flops} == {60e9}
    assert by_flops[1].value == pytest.approx(3 / 60)
    assert by_time[0].value == pytest.approx(3 / 600)


def test_spread_over_seeds_and_what_has_no_value() -> None:
    result = comparison(
        a=[cell(s, lambda f, s=s: (1 + s) * 1e9 / f) for s in range(3)],
        late=[cell(0, lambda f: 1e9 / f, wall=40 * 60.0)],  # its first point costs more than a's last
        failed=[SeedResult(seed=0, status="failed", curve=[{"seconds": 1.0, "flops": 1.0, "kid_pca": 1.0}])],
    )
    first, late = at_equal(result, "flops")
    assert first.recipe == "a"
    assert [first.low, first.value, first.high] == pytest.approx([1 / 60, 2 / 60, 3 / 60])
    assert (late.recipe, late.value, late.seeds) == ("late", None, {0: None})
    assert at_equal(comparison(), "flops") == []


def test_a_run_that_ended_early_limits_nobody() -> None:
    short = cell(0, lambda f: 1.0, wall=6.0, reason="ended early")
    result = comparison(a=[cell(0, lambda f: 1e9 / f)], b=[short, cell(1, lambda f: 2e9 / f)])
    found = {s.recipe: s for s in at_equal(result, "wall_s")}
    assert found["a"].at == 60
    assert found["b"].seeds == {0: None, 1: pytest.approx(2 / 60)}
    assert curve(SeedResult(seed=0, status="done", curve=[{"flops": 0.0, "kid_pca": 1.0}]), "flops") == []


def ledger(**fields: float) -> LedgerEntry:
    known = {"wall_s": 10.0, "cpu_s": 10.0, "flops": 1, "examples": 1, "steps": 1, "params": 1, "peak_bytes": 1}
    return LedgerEntry.model_validate({**known, "others_s": 0.5, "cores": 2.0, **fields})


def test_flag_of_a_busy_machine() -> None:
    quiet = busy(ledger(), "cpu")
    assert quiet == Busy(others=0.025, own=1.0, flag=False)
    assert busy(ledger(others_s=2.1), "cpu").flag  # type: ignore[union-attr]
    starved = busy(ledger(cpu_s=8.0), "cpu")
    assert starved is not None
    assert starved.flag
    assert not busy(ledger(cpu_s=8.0), "cuda").flag  # type: ignore[union-attr]
    unknown = busy(ledger().model_copy(update={"others_s": None}), "cpu")
    assert (unknown.others, unknown.flag) == (None, False)  # type: ignore[union-attr]
    assert busy(ledger(wall_s=0.5), "cpu") is None


def test_advice_names_a_busy_machine_where_the_clock_decided() -> None:
    flag = Busy(others=0.4, own=0.9, flag=True)
    result = comparison(
        a=[cell(0, lambda f: 1.0, busy=flag), cell(1, lambda f: 1.0)], b=[cell(0, lambda f: 1.0)],
        c=[cell(0, lambda f: 1.0, busy=flag)],
    )  # fmt: skip
    assert flagged(result.recipes) == (2, 4)
    behind = [{"recipe": "a"}, {"recipe": "b"}]
    advice = Advice(need="quality", recipe="a", en="A.", zh="甲。", verdict="likely", evidence=behind)
    told = with_remark(advice, result)
    assert told.en == "A. Busy machine in 1 of 3 trainings."
    assert "3 次训练中，有 1 次" in told.zh
    steps = result.model_copy(update={"budget": {"unit": "steps"}})
    assert with_remark(advice, steps) == advice
    assert with_remark(advice.model_copy(update={"need": "memory"}), result).en == "A."
    assert with_remark(advice.model_copy(update={"need": "speed"}), steps) != advice
    assert with_remark(advice.model_copy(update={"evidence": [{"recipe": "b"}]}), result).en == "A."
