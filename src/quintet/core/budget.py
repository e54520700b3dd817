"""Budget: what one model may train for; units are always written."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from quintet.core.errors import UsageError

Unit = Literal["seconds", "steps", "examples", "flop"]

_FACTORS: dict[str, tuple[Unit, float]] = {
    "s": ("seconds", 1.0),
    "m": ("seconds", 60.0),
    "h": ("seconds", 3600.0),
    "steps": ("steps", 1.0),
    "examples": ("examples", 1.0),
    "flop": ("flop", 1.0),
}
_PATTERN = re.compile(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([a-zA-Z]+)\s*")


@dataclass(frozen=True)
class Budget:
    """An amount with its unit: seconds of wall time, optimiser steps, training examples, or training FLOPs."""

    unit: Unit
    amount: float

    def __post_init__(self) -> None:
        if not 0 < self.amount < float("inf"):
            raise UsageError("budget.amount", text=f"{self.amount:g}")
        if self.unit in ("steps", "examples") and self.amount != int(self.amount):
            raise UsageError("budget.whole", text=f"{self.amount:g}{self.unit}")

    @staticmethod
    def parse(text: str | Budget) -> Budget:
        """Read "30s", "10m", "2h", "5000steps", "200000examples", "1e15flop".

        Raises: UsageError (exit 2) for anything else, a bare number included.
        """
        if isinstance(text, Budget):
            return text
        match = _PATTERN.fullmatch(str(text))
        if match is None or match[2] not in _FACTORS:
            raise UsageError("budget.unit", text=str(text))
        unit, factor = _FACTORS[match[2]]
        return Budget(unit, float(match[1]) * factor)

    def share(self, fraction: float) -> Budget:
        """A part of it, for one stage of several; whole units stay whole."""
        amount = self.amount * fraction
        return Budget(self.unit, max(1.0, round(amount)) if self.unit in ("steps", "examples") else amount)

    def __str__(self) -> str:
        if self.unit == "seconds":
            for unit, factor in (("h", 3600), ("m", 60)):
                if self.amount >= factor and self.amount % factor == 0:
                    return f"{self.amount / factor:g}{unit}"
            return f"{self.amount:g}s"
        return f"{self.amount:g}{self.unit}" if self.unit == "flop" else f"{int(self.amount)}{self.unit}"
