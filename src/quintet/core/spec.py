"""What a model's data look like, said once: shape, levels, conditions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from types import MappingProxyType
from typing import Any, Literal

from torch import Tensor

Cond = Mapping[str, Tensor]
"""Condition name -> (B,) int64. An absent name, or -1 in a row, means unconditional in that field."""

UNCONDITIONAL = -1

Kind = Literal["image", "vector", "tokens"]


@dataclass(frozen=True)
class DataSpec:
    """The event shape and value set of one example.

    Attributes:
        kind: "image" (C, H, W), "vector" (D,) or "tokens" (T,).
        shape: the event shape, without the batch axis.
        levels: None for continuous values; L for integers 0..L-1.
        conditions: name -> number of classes, of each label that comes with the data.
    """

    kind: Kind
    shape: tuple[int, ...]
    levels: int | None = None
    conditions: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rank = {"image": 3, "vector": 1, "tokens": 1}[self.kind]
        if len(self.shape) != rank or any(int(n) < 1 for n in self.shape):
            raise ValueError(f"a {self.kind} has {rank} positive axes, got shape {tuple(self.shape)}")
        if self.levels is not None and self.levels < 2:
            raise ValueError(f"levels must be at least 2, got {self.levels}")
        if self.kind == "tokens" and self.levels is None:
            raise ValueError("tokens need their number of levels")
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        object.__setattr__(self, "conditions", MappingProxyType(dict(self.conditions)))

    def __reduce__(self) -> Any:  # a mapping proxy does not copy by itself
        return DataSpec, (self.kind, self.shape, self.levels, dict(self.conditions))

    @property
    def dims(self) -> int:
        """Number of values in one example."""
        return prod(self.shape)

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "shape": list(self.shape),
            "levels": self.levels,
            "conditions": dict(self.conditions),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> DataSpec:
        return DataSpec(data["kind"], tuple(data["shape"]), data["levels"], data["conditions"])
