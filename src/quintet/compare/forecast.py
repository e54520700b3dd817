"""The forecast: how a comparison's time is spent, said before it begins; the cell budget solved from the whole time."""

from __future__ import annotations

import math
from dataclasses import dataclass

from quintet.core.budget import Budget
from quintet.core.errors import UsageError

REFERENCE_S, LARGE_REFERENCE_S = 25.0, 120.0  # judge network, floors and baselines; of larger examples
LARGE = 256  # values an example
CELL_EXTRA_S = 3.0  # start, previews and checkpoints of a cell
EVALUATION_LEAST_S = 20.0
SHORTEST_CELL_S = 5.0


def evaluation_limit_s(budget: Budget) -> float:
    """Evaluation of a cell takes at most this: half its budget, and at least 20 s are allowed."""
    return max(EVALUATION_LEAST_S, budget.amount / 2) if budget.unit == "seconds" else EVALUATION_LEAST_S


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
    """What the judge, the floor and the baselines take, about; dims: values an example."""
    return LARGE_REFERENCE_S if dims > LARGE else REFERENCE_S


def forecast(recipes: int, seeds: int, budget: Budget, finished: int = 0, *, dims: int) -> Forecast:
    """With a given cell budget; dims: values an example."""
    cells = recipes * seeds - finished
    seconds = None
    if budget.unit == "seconds":
        seconds = reference_s(dims) + cells * _cell_s(budget.amount)
    return Forecast(cells, budget, seeds, seconds)


def solve(recipes: int, seeds: int | None, within: Budget, *, dims: int) -> Forecast:
    """The largest cell budget, in whole seconds, with which the whole command fits.

    Seeds are given, or 3 where that leaves 30 s a cell, else 2, else 1.
    Raises: UsageError if even the shortest cells do not fit.
    """
    if within.unit != "seconds":
        raise UsageError("compare.within_unit", text=str(within))
    choices = (seeds,) if seeds is not None else (3, 2, 1)
    for count in choices:
        each = (within.amount - reference_s(dims)) / (recipes * count) - CELL_EXTRA_S
        # training b plus evaluation max(20, b / 2) must fit into `each`
        budget = each - EVALUATION_LEAST_S if each < 3 * EVALUATION_LEAST_S else each / 1.5
        enough = 30.0 if count > 1 and seeds is None else SHORTEST_CELL_S
        if budget >= enough:
            return forecast(recipes, count, Budget("seconds", float(math.floor(budget))), dims=dims)
    shortest = reference_s(dims) + recipes * (seeds or 1) * _cell_s(SHORTEST_CELL_S)
    raise UsageError("compare.within_short", text=str(within), shortest=f"{math.ceil(shortest)}s")


def _cell_s(budget_s: float) -> float:
    return budget_s + max(EVALUATION_LEAST_S, budget_s / 2) + CELL_EXTRA_S
