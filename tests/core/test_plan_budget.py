"""Budgets with units, and plans as functions of the step."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quintet.core.budget import Budget
from quintet.core.errors import UsageError
from quintet.core.plan import Plan


@pytest.mark.parametrize(
    ("text", "unit", "amount"),
    [("30s", "seconds", 30), ("10m", "seconds", 600), ("2h", "seconds", 7200), ("1.5m", "seconds", 90),
     ("5000steps", "steps", 5000), ("200000examples", "examples", 200_000), ("1e15flop", "flop", 1e15)],
)  # fmt: skip
def test_units(text: str, unit: str, amount: float) -> None:
    budget = Budget.parse(text)
    assert (budget.unit, budget.amount) == (unit, amount)
    assert Budget.parse(str(budget)) == budget


@pytest.mark.parametrize("text", ["30", "s", "-3s", "0s", "1e999s", "nan s", "10 parsecs", "", "1.5steps", "3 S"])
def test_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        Budget.parse(text)
    assert caught.value.exit_code == 2
    assert caught.value.text("zh") != caught.value.text("en")


def test_shares_keep_whole_units_whole() -> None:
    assert Budget.parse("100steps").share(0.333).amount == 33
    assert Budget.parse("1s").share(0.25).amount == 0.25


@given(steps=st.integers(1, 500), decay=st.floats(0, 1), warmup=st.integers(0, 50))
def test_closed_plan(steps: int, decay: float, warmup: int) -> None:
    plan = Plan.start(steps, decay, flops_per_step=1.0, threads=1)
    progress = [plan.progress(step) for step in range(steps)]
    assert progress == sorted(progress)
    assert all(0 <= p < 1 for p in progress)
    scales = [plan.lr_scale(step, warmup) for step in range(steps)]
    assert all(0 < s <= 1 for s in scales)
    decaying = scales[max(plan.events[0].decay_start, min(warmup, steps)) :]
    assert decaying == sorted(decaying, reverse=True)
    assert plan.over(steps)
    assert not plan.over(steps - 1)


@given(guess=st.integers(2, 300), at=st.integers(1, 400), more=st.integers(1, 300), decay=st.floats(0.1, 0.9))
def test_open_plan_then_its_end(guess: int, at: int, more: int, decay: float) -> None:
    start = Plan.start(guess, decay, flops_per_step=1.0, threads=1, open=True)
    assert not start.over(10**9)
    assert all(start.lr_scale(step, 0) == 1 for step in range(at))
    plan = start.with_end(at, at + more, decay=True)
    progress = [plan.progress(step) for step in range(at + more)]
    assert progress == sorted(progress)
    assert progress[:at] == [start.progress(step) for step in range(at)]  # the past is not rewritten
    assert plan.lr_scale(at, 0) == 1
    assert plan.lr_scale(at + more - 1, 0) == pytest.approx(1 / more)
    cut = plan.with_cut(at + (more + 1) // 2)
    assert cut.over(at + (more + 1) // 2)
    assert Plan.from_json(json.loads(json.dumps(cut.to_json()))) == cut
