"""The forecast: how a comparison's time is spent, said before it begins; the cell budget solved from the whole time."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass

from quintet.core.budget import Budget
from quintet.core.errors import UsageError

REFERENCE_S, LARGE_REFERENCE_S = 30.0, 150.0  # judges, floor, ladders and baselines; of larger examples
LARGE = 256  # values an example
CELL_EXTRA_S = 3.0  # start, previews and checkpoints of a cell
EVALUATION_LEAST_S = 20.0
SHORTEST_CELL_S = 5.0
TRIALS = 3  # short trainings a recipe, at other learning rates
TRIAL_SHARE, SHORTEST_TRIAL_S = 1 / 8, 2.0  # of a cell's budget; a shorter training tells nothing
TRIAL_EXTRA_S = 4.0  # start, calibration and samples of one


def evaluation_limit_s(budget: Budget) -> float:
    """Evaluation of a cell takes at most this: half its budget, and at least 20 s are allowed."""
    return max(EVALUATION_LEAST_S, budget.amount / 2) if budget.unit == "seconds" else EVALUATION_LEAST_S


def trial_budget(budget: Budget) -> Budget | None:
    """Of a short training at another learning rate; None where it would be too short to tell anything."""
    share = budget.share(TRIAL_SHARE)
    return None if budget.unit == "seconds" and share.amount < SHORTEST_TRIAL_S else share


@dataclass(frozen=True)
class Forecast:
    """What a comparison will do.

    Attributes:
        cells: recipes times seeds that are not finished yet.
        budget: of each.
        seeds: per recipe.
        seconds: of the whole command, at most about; None where the budget is not in seconds.
    """

    cells: int
    budget: Budget
    seeds: int
    seconds: float | None


def reference_s(dims: int) -> float:
    """What judges, floor, ladders and baselines take, about; dims: values an example."""
    return LARGE_REFERENCE_S if dims > LARGE else REFERENCE_S


@dataclass(frozen=True)
class JudgeTime:
    """Seconds that networks of the user's weights take: for the reference, and for each cell."""

    reference_s: float = 0.0
    cell_s: float = 0.0


FREE = JudgeTime()


def forecast(
    recipes: int,
    seeds: int,
    budget: Budget,
    finished: int = 0,
    *,
    dims: int,
    trials: int = 0,
    judges: JudgeTime = FREE,
) -> Forecast:
    """With a given cell budget.

    Args:
        finished: cells that are done.
        dims: values an example.
        trials: short trainings that are to be made, if the budget leaves enough for them.
        judges: what the user's weights add.
    """
    cells = recipes * seeds - finished
    seconds = None
    if budget.unit == "seconds":
        short = trial_budget(budget)
        each = 0.0 if short is None else short.amount + TRIAL_EXTRA_S
        seconds = reference_s(dims) + judges.reference_s + trials * each
        seconds += cells * (_cell_s(budget.amount) + judges.cell_s)
    return Forecast(cells, budget, seeds, seconds)


def solve(
    recipes: int,
    seeds: int | None,
    within: Budget,
    *,
    dims: int,
    sensitivity: bool = False,
    judges: JudgeTime = FREE,
) -> Forecast:
    """The largest cell budget, in whole seconds, with which the whole command fits.

    Seeds are given, or 3 where that leaves 30 s a cell, else 2, else 1; `sensitivity` adds the short trainings.
    Raises: UsageError if even the shortest cells do not fit.
    """
    if within.unit != "seconds":
        raise UsageError("compare.within_unit", text=str(within))
    choices = (seeds,) if seeds is not None else (3, 2, 1)
    trials = TRIALS * recipes * sensitivity
    for count in choices:

        def whole(seconds: int, count: int = count) -> Forecast:
            budget = Budget("seconds", float(seconds))
            return forecast(recipes, count, budget, dims=dims, trials=trials, judges=judges)

        fitting = bisect_right(
            range(1, math.ceil(within.amount) + 1), within.amount, key=lambda s: whole(s).seconds or 0.0
        )
        enough = 30.0 if count > 1 and seeds is None else SHORTEST_CELL_S
        if fitting >= enough:
            return whole(fitting)
    shortest = reference_s(dims) + judges.reference_s
    shortest += recipes * (seeds or 1) * (_cell_s(SHORTEST_CELL_S) + judges.cell_s)
    raise UsageError("compare.within_short", text=str(within), shortest=f"{math.ceil(shortest)}s")


def _cell_s(budget_s: float) -> float:
    return budget_s + max(EVALUATION_LEAST_S, budget_s / 2) + CELL_EXTRA_S
