"""A recipe over its seeds: medians with the seeds' range, and how stable it was."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any, Literal

from quintet.core.model import CAPABILITIES
from quintet.core.recipe import Recipe
from quintet.core.results import Estimate, RecipeResult, SeedResult


def summarize(recipe: Recipe, seeds: Sequence[SeedResult]) -> RecipeResult:
    """One recipe's row of the comparison; `status` is "skipped" while no seed has ended."""
    done = [seed for seed in seeds if seed.status == "done"]
    names = sorted({name for seed in done for name in seed.metrics})
    ended = [seed for seed in seeds if seed.status != "skipped"]
    status: Literal["done", "failed", "skipped", "diverged"] = "skipped"
    if done:
        status = "done"
    elif ended:
        status = ended[-1].status
    return RecipeResult(
        name=recipe.name,
        family=recipe.family,
        status=status,
        reason="" if done or not ended else ended[-1].reason,
        seeds=list(seeds),
        summary={name: over_seeds([seed.metrics[name] for seed in done if name in seed.metrics]) for name in names},
        stability=_stability(ended, done),
        likelihood=_likelihood(done),
        capabilities=[name for name in CAPABILITIES if any(name in s.choice.get("capabilities", []) for s in done)],
    )


def over_seeds(estimates: Sequence[Estimate]) -> Estimate:
    """Median over seeds, with their range; for a single seed its own interval."""
    values = [e.value for e in estimates if e.value is not None]
    if not values:
        return Estimate(value=None, protocol=estimates[0].protocol if estimates else "no finished seed")
    if len(values) == 1:
        only = next(e for e in estimates if e.value is not None)
        return only.model_copy(update={"protocol": f"one seed; {only.protocol}"})
    first = next(e for e in estimates if e.value is not None)
    text = f"median of {len(values)} seeds, lowest and highest seed; {first.protocol}"
    return Estimate(value=median(values), low=min(values), high=max(values), n=first.n, protocol=text)


def _stability(ended: Sequence[SeedResult], done: Sequence[SeedResult]) -> dict[str, Any]:
    distances = [e.value for seed in done if (e := seed.metrics.get("kid")) is not None and e.value is not None]
    return {
        "seeds": len(ended),
        "failed": sum(seed.status == "failed" for seed in ended),
        "diverged": sum(seed.status == "diverged" for seed in ended),
        "collapsed": sum(seed.stability.collapsed for seed in ended),
        "skipped_steps": sum(seed.stability.skipped_steps for seed in ended),
        "kid_spread": max(distances) - min(distances) if len(distances) > 1 else None,
    }


def _likelihood(done: Sequence[SeedResult]) -> Literal["exact", "bound", "estimate", "undefined"]:
    for seed in done:
        kind = seed.choice.get("likelihood")
        if kind in ("exact", "bound", "estimate"):
            return kind  # type: ignore[no-any-return]
    return "undefined"
