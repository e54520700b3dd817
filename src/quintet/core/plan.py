"""Plan: what a training run does at each step, fixed before it takes effect, so that a resume never measures again.

The clock is read in one place (train/run.py). What it learns becomes plan events. A budget in steps, examples or FLOPs
has one, made after calibration. A budget in seconds starts with an open event, whose end is an estimate; when the time
for the decay has come, a second event fixes the number of steps that still fit, and a cut ends the run early if the
machine then becomes so slow that the budget would be overrun. Running out of memory makes an event with smaller
micro-batches, divergence one with a smaller learning rate. Every schedule is a function of the step and the plan.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from quintet.core.numerics import Precision

LAST = math.nextafter(1.0, 0.0)


@dataclass(frozen=True)
class PlanEvent:
    """A decision, in force from step `at`.

    Attributes:
        at: first step it holds for.
        steps: total number of steps; an estimate while `open`.
        decay_start: first step of the learning rate's decay; `steps` where there is none.
        progress_at: progress reached at `at`; it then goes linearly to 1 at `steps`.
        open: the end is not fixed yet: the rate does not decay and progress stops short of the decay's.
        reason: "calibration", "decay", "cut", "memory", "rollback" or "hopeless", for the log.
        micro: rows that a process takes through the model at once; 0 for all of its batch.
        lr: factor on all learning rates.
        lost: steps that were done and thrown away when this event was made.
    """

    at: int
    steps: int
    decay_start: int
    progress_at: float
    open: bool
    reason: str
    micro: int = 0
    lr: float = 1.0
    lost: int = 0


@dataclass(frozen=True)
class Plan:
    """The schedule of one stage.

    Attributes:
        events: in order of `at`.
        flops_per_step: mean training FLOPs of a step, counted on real steps during calibration.
        threads: of the processor that the training uses; another number loses bit-equality.
        lanes: parts that a batch's rows are divided into, computed side by side with threads / lanes each; 1 on a GPU.
        world_size: processes it was made for.
        precision: of the products inside networks while training.
        compile: whether the networks are compiled.
    """

    events: tuple[PlanEvent, ...]
    flops_per_step: float
    threads: int
    world_size: int = 1
    precision: Precision = "float32"
    compile: bool = False
    lanes: int = 1

    @staticmethod
    def start(
        steps: int,
        decay: float,
        *,
        flops_per_step: float,
        threads: int,
        world_size: int = 1,
        precision: Precision = "float32",
        compile: bool = False,
        lanes: int = 1,
        micro: int = 0,
        open: bool = False,
    ) -> Plan:
        """A plan of `steps` steps whose last share `decay` (0..1) is the learning rate's decay."""
        if steps < 1:
            raise ValueError(f"a plan needs at least one step, got {steps}")
        decay_start = max(0, min(steps, math.ceil(steps * (1 - decay))))
        event = PlanEvent(0, steps, decay_start, 0.0, open, "calibration", micro)
        return Plan((event,), flops_per_step, threads, world_size, precision, compile, lanes)

    @property
    def threads_each(self) -> int:
        """Torch threads of a lane."""
        return max(1, self.threads // self.lanes)

    @property
    def steps(self) -> int:
        """Total steps by the newest event."""
        return self.events[-1].steps

    @property
    def open(self) -> bool:
        """Whether the number of steps is still an estimate."""
        return self.events[-1].open

    @property
    def rollbacks(self) -> int:
        """How often training went back to an earlier checkpoint, each time with half the learning rate."""
        return round(-math.log2(self.events[-1].lr))

    @property
    def lost(self) -> int:
        """Steps done and thrown away by rollbacks."""
        return sum(event.lost for event in self.events)

    def over(self, step: int) -> bool:
        """Whether there is no step `step`."""
        return not self.open and step >= self.steps

    def event(self, step: int) -> PlanEvent:
        """The event in force at a step."""
        return next(event for event in reversed(self.events) if event.at <= step)

    def micro(self, step: int) -> int:
        """Rows a process takes through the model at once; 0 for all."""
        return self.event(step).micro

    def progress(self, step: int) -> float:
        """Share of the run done before `step`, in [0, 1), non-decreasing."""
        event = self.event(step)
        if event.open:
            return min(step / event.steps, event.decay_start / event.steps, LAST)
        if step >= event.steps:
            return LAST
        done = (step - event.at) / (event.steps - event.at)
        return min(event.progress_at + (1 - event.progress_at) * done, LAST)

    def lr_scale(self, step: int, warmup: int) -> float:
        """Warm-up, stable, linear decay to 0: the factor on the learning rate, in [0, 1]."""
        event = self.event(step)
        scale = event.lr * min(1.0, (step + 1) / max(1, min(warmup, event.steps)))
        if not event.open and step >= event.decay_start:
            scale *= (event.steps - step) / max(1, event.steps - event.decay_start)
        return max(0.0, scale)

    def with_end(self, at: int, steps: int, *, decay: bool) -> Plan:
        """From step `at` the end is fixed at `steps`, and the rate decays until then if `decay`."""
        steps = max(steps, at + 1)
        return self._with(at, "decay", steps=steps, decay_start=at if decay else steps, open=False)

    def with_cut(self, at: int, reason: str = "cut") -> Plan:
        """End before step `at`: the budget is used up, or the run is "hopeless"."""
        return self._with(at, reason, steps=at, decay_start=min(self.events[-1].decay_start, at), open=False)

    def with_micro(self, at: int, micro: int) -> Plan:
        """From step `at` so many rows go through the model at once."""
        return self._with(at, "memory", micro=micro)

    def with_rollback(self, to: int, done: int) -> Plan:
        """Go on from step `to` with half the learning rate, after `done` steps; what was decided after `to` is void.

        Smaller micro-batches stay: memory has not grown.
        """
        kept = tuple(event for event in self.events if event.at <= to)
        micro, lost = self.events[-1].micro, self.lost + done - to
        before = replace(self, events=kept)
        lr = 0.5 * self.events[-1].lr
        return before._with(to, "rollback", micro=micro, lr=lr, lost=lost - before.lost)

    def _with(self, at: int, reason: str, **changes: Any) -> Plan:
        event = replace(self.events[-1], at=at, progress_at=self.progress(at), reason=reason, **{"lost": 0, **changes})
        return replace(self, events=(*self.events, event))

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"events": [asdict(event) for event in self.events]}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Plan:
        events = tuple(PlanEvent(**event) for event in data["events"])
        return Plan(**{**data, "events": events})
