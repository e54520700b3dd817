"""The cell budget solved from the whole time."""

from __future__ import annotations

import pytest

from quintet.compare.forecast import evaluation_limit_s, forecast, solve
from quintet.core.budget import Budget
from quintet.core.errors import UsageError


@pytest.mark.parametrize("within", ["4m", "10m", "20m", "30m", "2h", "10h"])
@pytest.mark.parametrize("recipes", [1, 5])
def test_the_whole_fits_and_is_used(within: str, recipes: int) -> None:
    whole = Budget.parse(within)
    found = solve(recipes, None, whole, dims=64)
    assert found.seconds is not None
    assert found.seconds <= whole.amount
    assert found.seconds > 0.6 * whole.amount
    more = forecast(recipes, found.seeds, Budget("seconds", found.budget.amount + 1.5), dims=64)
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
