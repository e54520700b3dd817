"""A recipe over its seeds: medians with the interval of a bootstrap of seeds and samples, and how stable it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, Literal

from quintet.compare.stability import failure_rate, score
from quintet.core.model import CAPABILITIES
from quintet.core.recipe import Recipe
from quintet.core.results import Estimate, RateTrial, RecipeResult, SeedResult
from quintet.core.rng import Rng
from quintet.core.statistics import median_interval
from quintet.core.verdicts import Z95


def summarize(
    recipe: Recipe | RecipeResult,
    seeds: Sequence[SeedResult],
    floor: Mapping[str, Estimate],
    trials: Sequence[RateTrial] = (),
    no_trials: str = "",
) -> RecipeResult:
    """One recipe's row of the comparison; `status` is "skipped" while no seed has ended.

    Args:
        floor: of the comparison.
        trials: short trainings at other learning rates.
        no_trials: the reason's key where there are none to come.
    """
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
        summary={name: over_seeds([s.metrics[name] for s in done if name in s.metrics], name) for name in names},
        stability=_stability(ended, done),
        failure=failure_rate(ended),
        steadiness=score(ended, trials, floor, rates=no_trials),
        rates=list(trials),
        likelihood=_likelihood(done),
        capabilities=[name for name in CAPABILITIES if any(name in s.choice.get("capabilities", []) for s in done)],
    )


def over_seeds(estimates: Sequence[Estimate], name: str) -> Estimate:
    """Median over seeds with the 95 % interval of a bootstrap of seeds and samples; for a single seed its own interval.

    Args:
        name: of the metric, which names the resamples.
    """
    known = [(e.value, e) for e in estimates if e.value is not None]
    if not known:
        return Estimate(value=None, protocol=estimates[0].protocol if estimates else "no finished seed")
    first = known[0][1]
    if len(known) == 1:
        return first.model_copy(update={"protocol": f"one seed; {first.protocol}"})
    errors = [0.0 if e.low is None or e.high is None else (e.high - e.low) / (2 * Z95) for _, e in known]
    values = [value for value, _ in known]
    low, high = median_interval(values, errors, Rng(0, "bootstrap", name).numpy())
    text = f"median of {len(known)} seeds, 95 % by a bootstrap of seeds and samples; {first.protocol}"
    return Estimate(value=median(values), low=low, high=high, n=first.n, protocol=text)


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
