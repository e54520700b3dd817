"""One stage from its first step to its last: calibration, the plan, budgets, logs, checkpoints, exact resume.

The only file that reads the clock for training. What it learns from the clock becomes plan events, written and synced
before they take effect; everything else is a function of the step and the plan.
"""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from quintet.core import checkpoint
from quintet.core.batch import Examples
from quintet.core.budget import Budget
from quintet.core.errors import DivergedError, Interrupted
from quintet.core.faults import fault
from quintet.core.ledger import FlopCounter, Ledger
from quintet.core.model import Model
from quintet.core.plan import Plan
from quintet.core.recipe import TrainConfig
from quintet.train.loop import BatchSource, Step, TrainState, frozen_parameters, steps

PREVIEWS = tuple(2.0**-k for k in range(5, 0, -1))  # shares of the budget at which a grid is drawn, and at its end
LOG_LINES = 300  # about so many log lines a run
SKIP_LIMIT, SKIP_WINDOW = 3, 50  # so many left-out updates within so many steps end the run
SHORTEST_END = 0.1  # share of a time budget after which the number of steps is fixed when nothing decays


class Watcher(Protocol):
    """What is told to the caller while a stage trains."""

    def log(self, line: Mapping[str, Any]) -> None:
        """One line for log.jsonl."""

    def plan(self, plan: Plan) -> None:
        """A plan event, to be on disk before this returns."""

    def step(self, step: int, plan: Plan, seconds: float, share: float) -> None:
        """After every step: seconds used and the share of the budget."""

    def preview(self, state: TrainState, seconds: float) -> None:
        """A moment for a sample grid."""

    def stop(self) -> bool:
        """Whether to save and stop now (Ctrl-C)."""


@dataclass
class Clock:
    """Training time: wall and CPU seconds while not paused, on top of what earlier processes used."""

    wall: float = 0.0
    cpu: float = 0.0
    _since: tuple[float, float] | None = field(default=None, repr=False)

    def start(self) -> None:
        self._since = (time.perf_counter(), time.process_time())

    def read(self) -> float:
        """Wall seconds so far."""
        if self._since is not None:
            wall, cpu = time.perf_counter(), time.process_time()
            self.wall += wall - self._since[0]
            self.cpu += cpu - self._since[1]
            self._since = (wall, cpu)
        return self.wall

    @contextmanager
    def paused(self) -> Iterator[list[float]]:
        """Time inside the block does not count; the list gets its length in seconds."""
        self.read()
        self._since, length = None, [0.0]
        begin = time.perf_counter()
        try:
            yield length
        finally:
            length[0] = time.perf_counter() - begin
            self.start()


@dataclass(frozen=True)
class Fitted:
    """A trained stage: the final state, and what its run used."""

    state: TrainState
    seconds: float


def fit(
    model: Model[Any],
    batches: BatchSource,
    config: TrainConfig,
    budget: Budget,
    *,
    seed: int,
    folder: Path,
    ledger: Ledger,
    watcher: Watcher,
    plan: Plan | None = None,
    parts: Mapping[str, nn.Module] | None = None,
    examples: Examples | None = None,
    resume: bool = True,
    reserve_s: float = 0.0,
    checkpoint_s: float = 30.0,
    checkpoint_steps: int | None = None,
) -> Fitted:
    """Train one stage within its budget, or finish what an earlier process began.

    Args:
        model: freshly initialised; holds the trained parameters afterwards.
        batches: the step's batch.
        config: optimisers, batch size, schedules.
        budget: of this stage.
        seed: of all training noise.
        folder: the stage's folder; checkpoints go below it.
        ledger: added to in place.
        watcher: told about steps, logs, plans and previews.
        plan: of an earlier process; without it one is made by calibration.
        parts: modules stored with the model ("codec"), restored with it.
        examples: shown to `model.prepare`.
        resume: whether to use a checkpoint that is there.
        reserve_s: of a budget in seconds, kept for the choice of the average after training.
        checkpoint_s: seconds between checkpoints.
        checkpoint_steps: steps between checkpoints, instead of seconds.
    Raises: DivergedError after repeated non-finite gradients; Interrupted after saving on request.
    """
    place = folder / "checkpoints"
    found = checkpoint.newest(place, lambda key, fields: watcher.log(_event(0, key, **fields))) if resume else None
    clock = Clock()
    if plan is None or found is None:
        found = None  # a checkpoint without its plan cannot be replayed
    if plan is not None and plan.threads != torch.get_num_threads():
        allowed = torch.get_num_threads()
        torch.set_num_threads(min(plan.threads, allowed))
        if plan.threads > allowed:
            watcher.log(_event(0, "threads_changed", before=plan.threads, now=allowed))
    if found is not None and plan is not None:
        if examples is not None:
            model.prepare(examples)
        state = TrainState.start(model, config, plan)
        _restore(found, model, parts or {}, state)
        clock.wall, clock.cpu = found.state["wall_s"], found.state["cpu_s"]
    elif plan is not None:
        if examples is not None:
            model.prepare(examples)
        state = TrainState.start(model, config, plan)
    else:
        clock.start()
        if examples is not None:
            model.prepare(examples)
        plan = calibrate(model, batches, config, budget, seed=seed, reserve_s=reserve_s, clock=clock)
        watcher.plan(plan)
        state = TrainState.start(model, config, plan)
    _Run(model, batches, config, budget, seed, place, watcher, parts or {}, state, clock, ledger, reserve_s).go(
        checkpoint_s, checkpoint_steps
    )
    ledger.wall_s += clock.wall
    ledger.cpu_s += clock.cpu
    ledger.steps += state.step
    ledger.examples += state.step * config.batch
    ledger.flops += state.step * state.plan.flops_per_step
    ledger.params += sum(p.numel() for player in model.players() for p in player.module.parameters())
    return Fitted(state, clock.wall)


def warm_up() -> None:
    """Take one step of a model of one number: torch imports parts of itself then, which is no model's training time."""
    lone = nn.Linear(1, 1)
    optimizer = torch.optim.AdamW(lone.parameters(), fused=True)
    with FlopCounter():
        lone(torch.zeros(1, 1)).sum().backward()
        optimizer.step()


def calibrate(
    model: Model[Any],
    batches: BatchSource,
    config: TrainConfig,
    budget: Budget,
    *,
    seed: int,
    reserve_s: float = 0.0,
    clock: Clock | None = None,
) -> Plan:
    """Run some steps, count and time them, put the model back, and return the plan that the budget allows.

    FLOPs are counted over one period of the players' turns. A budget in seconds is timed, with one thread and with all
    that torch may use: small networks are often faster with one, and the plan keeps the faster number.
    """
    clock = clock or Clock()
    clock.start()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    threads = torch.get_num_threads()
    state = TrainState.start(model, config, Plan.start(10**9, 0.0, flops_per_step=0.0, threads=threads))
    run = steps(model, batches, state, config, seed)
    period = math.lcm(*(player.every for player in model.players()))
    with FlopCounter() as counter:
        for _ in range(period):
            next(run)
    flops = counter.total / period
    seconds = 0.0
    if budget.unit == "seconds":
        threads, seconds = _fastest(run, threads, 0.02 * budget.amount)
    model.load_state_dict(before)
    timed = budget.unit == "seconds"
    if timed:
        planned = max(1.0, budget.amount - reserve_s - clock.read()) / max(seconds, 1e-9)
    elif budget.unit == "flop":
        planned = budget.amount / max(flops, 1.0)
    else:
        planned = math.ceil(budget.amount / (config.batch if budget.unit == "examples" else 1))
    return Plan.start(
        max(1, int(planned)),
        max(config.decay, SHORTEST_END) if timed else config.decay,
        flops_per_step=flops,
        threads=threads,
        open=timed,
    )


def _fastest(run: Iterator[Step], most: int, seconds: float) -> tuple[int, float]:
    """(threads, seconds a step) of the fastest number of threads, each timed over at least five steps, alternating.

    Leaves torch at that number. A few more threads must win by 5 %, or the smaller number is kept.
    """
    times: dict[int, list[float]] = {count: [] for count in sorted({1, most})}
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds or len(times[1]) < 5:
        for count, found in times.items():
            torch.set_num_threads(count)
            next(run)  # the first step after a change also wakes or parks threads
            for _ in range(3):
                start = time.perf_counter()
                next(run)
                found.append(time.perf_counter() - start)
    middle = {count: sorted(found)[len(found) // 2] for count, found in times.items()}
    best = most if middle[most] < 0.95 * middle[1] else 1
    torch.set_num_threads(best)
    return best, middle[best]


def restore(folder: Path, model: Model[Any], parts: Mapping[str, nn.Module], average: int | None) -> int:
    """Load a finished stage for use.

    Args:
        folder: the stage's folder.
        model, parts: built from the stored config; filled in.
        average: which average to put into the sampled parameters; None keeps the live ones.
    Returns: the checkpoint's step.
    Raises: FileNotFoundError if there is no undamaged checkpoint.
    """
    found = checkpoint.newest(folder / "checkpoints")
    if found is None:
        raise FileNotFoundError(f"no undamaged checkpoint below {folder}")
    _load_modules(found, model, parts)
    if average is not None:
        model.load_state_dict(found.tensors(f"ema-{average}"), strict=False)
    return found.step


@dataclass
class _Run:
    """The state of `fit` while it goes."""

    model: Model[Any]
    batches: BatchSource
    config: TrainConfig
    budget: Budget
    seed: int
    place: Path
    watcher: Watcher
    parts: Mapping[str, nn.Module]
    state: TrainState
    clock: Clock
    ledger: Ledger
    reserve_s: float
    skips: deque[int] = field(default_factory=lambda: deque(maxlen=SKIP_LIMIT))
    began: tuple[int, float] = (0, 0.0)  # step and seconds at which this process began to train

    def go(self, checkpoint_s: float, checkpoint_steps: int | None) -> None:
        state, watcher = self.state, self.watcher
        log_every = max(1, state.plan.events[0].steps // LOG_LINES)
        moments = [share for share in PREVIEWS if share > self.share()]
        self.clock.start()
        saved_at, last = self.clock.read(), state.step
        self.began = (last, saved_at)
        for step in steps(self.model, self.batches, state, self.config, self.seed):
            fault("train.step")
            if step.skipped:
                self.note_skip(step)
            seconds = self.clock.read()
            if step.step % log_every == 0 or step.skipped:
                watcher.log(self.line(step, seconds))
            if self.budget.unit == "seconds":
                self.replan(seconds)
            share = self.share()
            watcher.step(state.step, state.plan, seconds, share)
            over = state.plan.over(state.step)
            if over or (moments and share >= moments[0]):
                moments = [m for m in moments if m > share]
                with self.clock.paused() as length:
                    watcher.preview(state, seconds)
                self.ledger.preview_s += length[0]
            stop = watcher.stop()
            if checkpoint_steps is None:
                due = seconds - saved_at >= checkpoint_s
            else:
                due = state.step - last >= checkpoint_steps
            if due or over or stop:
                self.save()
                saved_at, last = self.clock.read(), state.step
            if stop and not over:
                raise Interrupted("train.interrupted", path=self.place.parent.parent.parent, step=state.step)
        self.clock.read()
        if last != state.step or checkpoint.newest(self.place) is None:
            self.save()

    def available_s(self) -> float:
        return max(self.budget.amount - self.reserve_s, 0.5 * self.budget.amount)

    def share(self) -> float:
        """Of the budget, used so far."""
        if self.budget.unit == "seconds":
            return min(1.0, self.clock.wall / self.available_s())
        return self.state.step / self.state.plan.steps

    def replan(self, seconds: float) -> None:
        """Fix the end when the time for the decay has come; cut when the budget is overrun."""
        state, decay = self.state, self.config.decay
        left = self.available_s() - seconds
        if state.plan.open:
            if left <= max(decay, SHORTEST_END) * self.available_s():
                rate = (state.step - self.began[0]) / max(seconds - self.began[1], 1e-9)
                plan = state.plan.with_end(state.step, state.step + max(1, int(left * rate)), decay=decay > 0)
                self.watcher.plan(plan)
                state.plan = plan
                self.watcher.log(_event(state.step, "end_fixed", steps=plan.steps))
        elif left < -0.05 * self.budget.amount and not state.plan.over(state.step):
            plan = state.plan.with_cut(state.step)
            self.watcher.plan(plan)
            state.plan = plan
            self.watcher.log(_event(state.step, "cut", seconds=seconds))

    def note_skip(self, step: Step) -> None:
        self.skips.append(step.step)
        self.watcher.log(_event(step.step, "skipped", players=list(step.skipped)))
        if len(self.skips) == SKIP_LIMIT and self.skips[-1] - self.skips[0] < SKIP_WINDOW:
            norms = ", ".join(f"{name} {norm:g}" for name, norm in step.grad_norms.items())
            raise DivergedError("train.diverged", step=step.step, norms=norms)

    def line(self, step: Step, seconds: float) -> dict[str, Any]:
        """A log line; non-finite numbers become null, since JSON has none."""
        return {
            "kind": "step",
            "step": step.step,
            "seconds": round(seconds, 4),
            "progress": self.state.plan.progress(step.step),
            "lr": {name: self.state.optimizers[name].last_lr for name in step.losses},
            "grad_norm": {name: _number(norm) for name, norm in step.grad_norms.items()},
            **{
                name: {"total": _number(loss.total), **{k: _number(v) for k, v in loss.parts.items()}}
                for name, loss in step.losses.items()
            },
        }

    def save(self) -> None:
        state = self.state
        with self.clock.paused() as length:
            frozen = frozen_parameters(self.model)
            tensors: dict[str, Mapping[str, Tensor]] = {
                "model": {
                    **{k: v for k, v in self.model.state_dict().items() if k not in frozen},
                    **{f"{name}:{k}": v for name, part in self.parts.items() for k, v in part.state_dict().items()},
                },
                "optim": {f"{name}/{k}": v for name, opt in state.optimizers.items() for k, v in opt.tensors().items()},
                **{f"ema-{i}": state.ema.tensors(i) for i in range(len(state.ema.widths))},
            }
            checkpoint.save(
                self.place,
                state.step,
                tensors,
                {
                    "seed": self.seed,
                    "wall_s": self.clock.wall,
                    "cpu_s": self.clock.cpu,
                    "ema_updates": state.ema.updates,
                    "ema_widths": list(state.ema.widths),
                    "plan": state.plan.to_json(),
                    "frozen": checkpoint.save_once(self.place.parent, frozen) if frozen else None,
                    "torch": torch.__version__,
                },
            )
        self.ledger.checkpoint_s += length[0]


def _restore(
    found: checkpoint.Checkpoint, model: Model[Any], parts: Mapping[str, nn.Module], state: TrainState
) -> None:
    _load_modules(found, model, parts)
    stored = found.tensors("optim")
    for name, optimizer in state.optimizers.items():
        optimizer.load({k.removeprefix(f"{name}/"): v for k, v in stored.items() if k.startswith(f"{name}/")})
    for i in range(len(state.ema.widths)):
        state.ema.load(i, found.tensors(f"ema-{i}"))
    state.ema.updates = found.state["ema_updates"]
    state.step = found.step


def _load_modules(found: checkpoint.Checkpoint, model: Model[Any], parts: Mapping[str, nn.Module]) -> None:
    tensors = found.tensors("model")
    frozen = found.state["frozen"]
    kept = checkpoint.load_once(found.path.parent.parent, frozen) if frozen is not None else {}
    model.load_state_dict({k: v for k, v in tensors.items() if ":" not in k} | kept)
    for name, part in parts.items():
        part.load_state_dict({k.removeprefix(f"{name}:"): v for k, v in tensors.items() if k.startswith(f"{name}:")})


def _event(step: int, what: str, **fields: Any) -> dict[str, Any]:
    return {"kind": "event", "step": step, "what": what, **json.loads(json.dumps(fields, default=str))}


def _number(value: Tensor | float) -> float | None:
    number = float(value.detach()) if isinstance(value, Tensor) else value
    return number if math.isfinite(number) else None
