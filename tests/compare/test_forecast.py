"""The cell budget solved from the whole time."""

from __future__ import annotations

import pytest

from quintet.compare.forecast import TRIALS, JudgeTime, evaluation_limit_s, forecast, solve
from quintet.core.budget import Budget
from quintet.core.errors import UsageError


@pytest.mark.parametrize("within", ["4m", "10m", "20m", "30m", "2h", "10h"])
@pytest.mark.parametrize("recipes", [1, 5])
@pytest.mark.parametrize("sensitivity", [False, True])
def test_the_whole_fits_and_is_used(within: str, recipes: int, sensitivity: bool) -> None:
    whole = Budget.parse(within)
    found = solve(recipes, None, whole, dims=64, sensitivity=sensitivity)
    assert found.seconds is not None
    assert found.seconds <= whole.amount
    assert found.seconds > 0.6 * whole.amount
    trials = TRIALS * recipes * sensitivity
    more = forecast(recipes, found.seeds, Budget("seconds", found.budget.amount + 1.5), dims=64, trials=trials)
    assert more.seconds is not None
    assert more.seconds > whole.amount


def test_seeds_are_kept_when_given_and_fewer_when_time_is_short() -> None:
    assert solve(5, None, Budget.parse("30m"), dims=64).seeds == 3
    assert solve(5, None, Budget.parse("4m"), dims=64).seeds == 1
    assert solve(5, 6, Budget.parse("60m"), dims=64).seeds == 6


def test_too_short_says_what_is_needed() -> None:
    with pytest.raises(UsageError, match=r"at least \d+s"):
        solve(5, None, Budget.parse("30s"), dims=64)
    with pytest.raises(UsageError):
        solve(5, None, Budget.parse("100steps"), dims=64)


def test_evaluation_limit() -> None:
    assert evaluation_limit_s(Budget.parse("12s")) == 20
    assert evaluation_limit_s(Budget.parse("2m")) == 60
    assert evaluation_limit_s(Budget.parse("100steps")) == 20


def test_short_trainings_are_reckoned_where_the_budget_leaves_enough_for_them() -> None:
    def seconds(budget: str, trials: int) -> float:
        found = forecast(5, 2, Budget.parse(budget), dims=64, trials=trials).seconds
        assert found is not None
        return found

    assert seconds("12s", 15) == seconds("12s", 0)  # the demo's budget: an eighth of it is too short
    assert seconds("80s", 15) >= seconds("80s", 0) + 15 * 10
    assert forecast(5, 2, Budget.parse("80steps"), dims=64, trials=15).seconds is None


def test_networks_of_the_users_weights_are_reckoned() -> None:
    slow = JudgeTime(reference_s=600.0, cell_s=120.0)
    whole = Budget.parse("2h")
    plain, judged = (solve(5, 3, whole, dims=64, judges=time) for time in (JudgeTime(), slow))
    assert plain.seconds is not None
    assert judged.seconds is not None
    assert judged.seconds <= whole.amount
    freed = 15 * 1.5 * (plain.budget.amount - judged.budget.amount)  # a cell's evaluation has half its budget
    assert freed == pytest.approx(600 + 15 * 120, abs=2 * 15 * 1.5)
    with pytest.raises(UsageError, match=r"at least \d\d\d\ds"):
        solve(5, 3, Budget.parse("30m"), dims=64, judges=slow)
