"""Made-up comparisons: recipes with given values a seed, and nothing behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from quintet.core.results import Compare, Estimate, LedgerEntry, RecipeResult, SamplingCost, SeedResult, Stability


def recipe(
    name: str,
    family: str,
    metrics: Mapping[str, Sequence[float]],
    *,
    costs: Mapping[str, Any] | None = None,
    collapsed: int = 0,
    width: float = 0.001,
    **fields: Any,
) -> RecipeResult:
    """A recipe whose seed i has the i-th value of every metric, with an interval of +- width.

    Args:
        costs: of a sample: seconds_per_1000, sequential_steps, latency_s; and peak_bytes, flops.
        collapsed: how many seeds collapsed.
        fields: of RecipeResult.
    """
    costs = costs or {}
    seeds = []
    for i in range(len(next(iter(metrics.values())))):
        found = {k: Estimate(value=v[i], low=v[i] - width, high=v[i] + width, n=100) for k, v in metrics.items()}
        seeds.append(
            SeedResult(
                seed=i,
                status="done",
                metrics=found,
                ledger=LedgerEntry(
                    wall_s=1, cpu_s=1, flops=costs.get("flops", 1e6), examples=1000, steps=1, params=1,
                    peak_bytes=costs.get("peak_bytes", 10_000_000),
                ),
                sampling=SamplingCost(
                    seconds_per_1000=costs.get("seconds_per_1000", 1.0) * (1 + 0.01 * i),
                    nfe=1,
                    sequential_steps=costs.get("sequential_steps", 1),
                    latency_s=costs.get("latency_s"),
                ),
                stability=Stability(collapsed=i < collapsed),
            )
        )  # fmt: skip
    return RecipeResult(name=name, family=family, status="done", seeds=seeds, **fields)


def whole(*recipes: RecipeResult, name: str = "digits", shape: Sequence[int] = (1, 8, 8)) -> Compare:
    """A comparison of these recipes."""
    return Compare(
        name="x", quintet="0", created="2026-01-01T00:00:00",
        data={"name": name, "shape": list(shape), "splits": {"train": 927, "test": 500}, "fingerprint": "f"},
        budget={"cell": "10s", "unit": "seconds", "amount": 10.0, "seeds": 6}, recipes=list(recipes),
    )  # fmt: skip
