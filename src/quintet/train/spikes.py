"""Spikes: jumps of every player's loss and gradient norm, sought at every step of a training.

Losses stay on their device until many are read at once, so that watching waits for no step. What counts as a jump says
`core.statistics.spikes`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from quintet.core.statistics import WINDOW, spikes
from quintet.train.loop import Step

MOST_HELD = 512
"""Steps after which what is held is due to be read."""


class SpikeWatch:
    """Counts jumps; its state goes through JSON, and may be stored at any step without changing a count.

    Attributes:
        found: jumps so far.
        judged: values that were held against those before them; the first few of a series cannot be.
        held: steps that were noted and not yet read.
    """

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        state = state or {"found": 0, "judged": 0, "before": {}}
        self.found, self.judged, self.held = int(state["found"]), int(state["judged"]), 0
        self._before: dict[str, list[float]] = {name: list(values) for name, values in state["before"].items()}
        self._losses: defaultdict[str, list[Tensor]] = defaultdict(list)
        self._norms: defaultdict[str, list[float]] = defaultdict(list)

    def note(self, step: Step) -> None:
        """Hold a step's values."""
        self.held += 1
        for player, loss in step.losses.items():
            self._losses[player].append(loss.total.detach())
            self._norms[player].append(step.grad_norms[player])

    def read(self) -> None:
        """Judge what is held; values that are not finite are none (their updates are left out, and told elsewhere)."""
        for player, losses in self._losses.items():
            self._judge(f"{player} loss", torch.stack(losses).tolist())
            self._judge(f"{player} norm", self._norms[player])
        self.held = 0
        self._losses.clear()
        self._norms.clear()

    def to_json(self) -> dict[str, Any]:
        """The state, after `read`."""
        return {"found": self.found, "judged": self.judged, "before": self._before}

    def _judge(self, series: str, values: list[float]) -> None:
        values = self._before.get(series, []) + [value for value in values if math.isfinite(value)]
        found, judged = spikes(values)
        self.found, self.judged = self.found + found, self.judged + judged
        self._before[series] = values[-WINDOW:]
