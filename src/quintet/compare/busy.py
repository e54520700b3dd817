"""Whether cells had the machine to themselves: what others took of it, and what is said of verdicts that rest on it."""

from __future__ import annotations

from collections.abc import Sequence

from quintet.core.results import Advice, Busy, Compare, LedgerEntry, RecipeResult

OTHERS, OWN = 0.1, 0.9
"""A cell is flagged where others used more than this share of the cores, or itself less than this of one core."""

SHORTEST_S = 1.0
"""The processor's clock ticks every hundredth of a second: a shorter time says nothing."""


def busy(ledger: LedgerEntry, device: str) -> Busy | None:
    """How busy the machine was while a cell's clock ran; None where that was too short to tell.

    Args:
        ledger: the cell's.
        device: on a GPU the processor may well idle, so that its own time says nothing.
    """
    if ledger.wall_s < SHORTEST_S:
        return None
    others = None
    if ledger.others_s is not None and ledger.cores:
        others = ledger.others_s / (ledger.cores * ledger.wall_s)
    own = ledger.cpu_s / ledger.wall_s
    starved = device == "cpu" and own < OWN
    return Busy(others=others, own=own, flag=starved or (others or 0.0) > OTHERS)


def flagged(recipes: Sequence[RecipeResult]) -> tuple[int, int]:
    """Of some recipes' finished cells: how many were flagged, and how many there are."""
    cells = [seed for recipe in recipes for seed in recipe.seeds if seed.status == "done"]
    return sum(cell.busy is not None and cell.busy.flag for cell in cells), len(cells)


def with_remark(advice: Advice, result: Compare) -> Advice:
    """The advice, which says how many of the cells behind it ran on a busy machine, if any did.

    Times suffer always, what was learned only within a budget in seconds, memory and stability hardly.
    """
    timed = result.budget.get("unit") == "seconds"
    if advice.need != "speed" and not (timed and advice.need in ("quality", "diversity", "likelihood")):
        return advice
    named = {entry.get("recipe") for entry in advice.evidence}
    count, of = flagged([recipe for recipe in result.recipes if recipe.name in named])
    if not count:
        return advice
    return advice.model_copy(
        update={
            "en": f"{advice.en} Busy machine in {count} of {of} trainings.",
            "zh": f"{advice.zh}所依据的 {of} 次训练中，有 {count} 次进行时机器繁忙。",
        }
    )
