"""One stage from its first step to its last: calibration, the plan, budgets, logs, checkpoints, exact resume.

The only file that reads the clock for training. What it learns from the clock becomes plan events, written and synced
before they take effect; everything else is a function of the step and the plan.

Among several processes the first one reads the clock, decides, and writes; what it decides the others are told before
it takes effect. Checkpoints hold whole tensors and are read by the first process, so that they serve any number of
processes, with sharded weights or not.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from quintet.core import checkpoint
from quintet.core.batch import Examples
from quintet.core.budget import Budget
from quintet.core.errors import DivergedError, Interrupted, UsageError
from quintet.core.faults import fault
from quintet.core.ledger import FlopCounter, Ledger, synchronize
from quintet.core.meters import Meters, meters
from quintet.core.model import Model
from quintet.core.numerics import Precision, eager, has_bfloat16
from quintet.core.plan import Plan
from quintet.core.processes import ALONE, Processes
from quintet.core.recipe import TrainConfig
from quintet.train import shards
from quintet.train.ema import Ema
from quintet.train.loop import (
    BatchSource,
    Step,
    TrainState,
    averaged_parameters,
    freeze,
    frozen_parameters,
    steps,
)
from quintet.train.spikes import MOST_HELD, SpikeWatch

BEST = "best"  # folder of a stage's best preview
PREVIEWS = tuple(2.0**-k for k in range(5, 0, -1))  # shares of the budget at which a grid is drawn, and at its end
LOG_LINES = 300  # about so many log lines a run
SKIP_LIMIT, SKIP_WINDOW = 3, 50  # so many left-out updates within so many steps lead back to an earlier checkpoint
ROLLBACKS = 2  # after so many the run ends
CALIBRATION_SHARE = 0.02  # of a budget in seconds, for timing the ways to train
COMPILE_FROM = {"cpu": 600.0, "cuda": 120.0}  # seconds of budget from which compiling may pay
ROWS = 16  # of a batch that a message names
SHORTEST_END = 0.1  # share of a time budget after which the number of steps is fixed when nothing decays


class Watcher(Protocol):
    """What is told to the caller while a stage trains; of several processes, by the first one."""

    def log(self, line: Mapping[str, Any]) -> None:
        """One line for log.jsonl."""

    def plan(self, plan: Plan) -> None:
        """A plan event, to be on disk before this returns."""

    def step(self, step: int, plan: Plan, seconds: float, share: float) -> None:
        """After every step: seconds used and the share of the budget."""

    def preview(self, state: TrainState, seconds: float) -> str | None:
        """A moment for a sample grid and the model's detectors. What to end the run for as hopeless, or None."""

    def stop(self) -> bool:
        """Whether to save and stop now (Ctrl-C); every process is asked."""


@dataclass
class Clock:
    """Training time: wall and CPU seconds while not paused, on top of what earlier processes used.

    The machine's meters run with it.
    """

    wall: float = 0.0
    cpu: float = 0.0
    meters: Meters = field(default_factory=Meters)
    _since: tuple[float, float] | None = field(default=None, repr=False)

    def start(self) -> None:
        """Go on; a clock that goes already is left alone."""
        if self._since is None:
            self.meters.start()
            self._since = (time.perf_counter(), time.process_time())

    def stop(self) -> None:
        self.read()
        self._since = None
        self.meters.stop()

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
        self.stop()
        length = [0.0]
        begin = time.perf_counter()
        try:
            yield length
        finally:
            length[0] = time.perf_counter() - begin
            self.start()


@dataclass(frozen=True)
class Fitted:
    """A trained stage: the final state, and what its run used; of sharded weights whole on the first process alone."""

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
    processes: Processes = ALONE,
    strict: bool = False,
) -> Fitted:
    """Train one stage within its budget, or finish what an earlier process began.

    Args:
        model: freshly initialised; holds the trained parameters afterwards.
        batches: the step's batch, of several processes this one's rows.
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
        processes: that train together. The folder, `plan` and `resume` are the first one's.
        strict: refuse to resume where that would not be bit for bit.
    Raises: DivergedError after repeated non-finite gradients; ResourceError where one example does not fit into memory;
        UsageError for bfloat16 where there is none, and by `strict`; Interrupted after saving on request.
    """
    if config.shard and config.compile == "on":
        raise UsageError("processes.shard_compile")
    place = folder / "checkpoints"
    found: checkpoint.Checkpoint | None = None
    if processes.first and resume and plan is not None:  # a checkpoint without its plan cannot be replayed
        found = checkpoint.newest(place, lambda key, fields: watcher.log(_event(0, key, **fields)))
    sharding = config.shard and processes.count > 1
    here = _circumstances(processes, sharding, next(model.parameters()).device)
    if found is not None:
        changes = _changes(found.state["circumstances"], here)
        if changes and strict:
            raise UsageError("processes.strict", path=folder.parent.parent, changes=changes)
        if changes:
            watcher.log(_event(found.step, "resumed_otherwise", changes=changes))
    stored, resumed = processes.tell((None if plan is None else plan.to_json(), found is not None))
    plan = None if stored is None else Plan.from_json(stored)
    clock, parts = Clock(meters=meters(next(model.parameters()).device, processes.count)), parts or {}
    if plan is None:
        clock.start()
    elif plan.threads_each < torch.get_num_threads():
        torch.set_num_threads(plan.threads_each)
    if examples is not None:
        model.prepare(examples)
    if processes.count > 1:  # processors may differ in the last bit of what was just computed
        model.load_state_dict(processes.share(model.state_dict()))
    if config.shard and not sharding:
        watcher.log(_event(0, "not_sharded"))
    whole = model
    if sharding:
        freeze(model)
        whole, model = model, copy.deepcopy(model)
        share = shards.shard(model, processes)
        watcher.log(_event(0, "sharded", percent=round(100 * share), count=processes.count))
        whole.to("cpu")
    if plan is None:
        plan, notes = calibrate(
            model, batches, config, budget, seed=seed, reserve_s=reserve_s, clock=clock, processes=processes
        )
        watcher.plan(plan)
        watcher.log(_chosen(plan))
        for note in notes:
            watcher.log(_event(0, note, micro=plan.micro(0)))
    state = TrainState.start(model, config, plan, processes)
    skips, watch = deque[int](maxlen=SKIP_LIMIT), SpikeWatch()
    if resumed:
        told = _restore(found, model, parts, state, processes)
        if processes.first:
            clock.wall, clock.cpu, clock.meters.totals = told["wall_s"], told["cpu_s"], dict(told["meters"])
        skips.extend(told["skips"])
        watch = SpikeWatch(told["spikes"])
    run = _Run(
        model, batches, config, budget, seed, place, watcher, parts, state, clock, ledger, reserve_s, skips, watch,
        processes, here, whole,
    )  # fmt: skip
    wanted = plan.compile and not sharding
    with _compiled(model, wanted) as compiled:
        if wanted and not compiled:
            watcher.log(_event(state.step, "no_compiler"))
        run.go(checkpoint_s, checkpoint_steps)
    clock.stop()
    ledger.wall_s += clock.wall
    ledger.cpu_s += sum(processes.gather(clock.cpu))
    ledger.meter(replace(clock.meters, totals=_metered(clock, processes)))
    done = state.step + state.plan.lost
    ledger.steps += done
    ledger.examples += done * config.batch
    ledger.flops += done * state.plan.flops_per_step
    ledger.params += sum(p.numel() for player in whole.players() for p in player.module.parameters())
    return Fitted(run.whole_state(state.ema.widths), clock.wall)


def _circumstances(processes: Processes, sharding: bool, device: torch.device) -> dict[str, Any]:
    """What the last bits of a training depend on, beside its config."""
    return {
        "processes": processes.count,
        "sharded": sharding,
        "threads": torch.get_num_threads(),
        "device": device.type,
        "torch": torch.__version__,
    }


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What a resumed training does not have as before, in words; nothing where it goes on bit for bit.

    More threads than before are no change: they are not used.
    """
    same = {**now, "threads": min(before["threads"], now["threads"])}
    return ", ".join(f"{name} {value} → {same[name]}" for name, value in before.items() if value != same[name])


def warm_up() -> None:
    """Take one step of a model of one number: torch imports parts of itself then, which is no model's training time."""
    lone = nn.Linear(1, 1)
    optimizer = torch.optim.AdamW(lone.parameters(), fused=True)
    with FlopCounter():
        lone(torch.zeros(1, 1)).sum().backward()
        optimizer.step()


@dataclass(frozen=True)
class _Way:
    """How steps are computed: by how many threads, in how many lanes, in which precision."""

    threads: int
    lanes: int
    precision: Precision


def calibrate(
    model: Model[Any],
    batches: BatchSource,
    config: TrainConfig,
    budget: Budget,
    *,
    seed: int,
    reserve_s: float = 0.0,
    clock: Clock | None = None,
    processes: Processes = ALONE,
) -> tuple[Plan, list[str]]:
    """Run some steps, count and time them, put the model back, and return the plan that the budget allows.

    FLOPs are counted over one period of the players' turns. A budget in seconds is timed, with one thread and with all
    that torch may use, together at each operation or each on rows of its own, in float32 and in bfloat16, and compiled
    where that may pay; the plan keeps the fastest. Other budgets leave float32 and one lane on a CPU, since a choice by
    the clock would make their results depend on the moment. Of several processes all take the steps, and the first
    one's times count.

    Returns: the plan, and names of events to be logged.
    Raises: UsageError for bfloat16 where there is none; ResourceError where one example does not fit into memory.
    """
    clock = clock or Clock()
    clock.start()
    device = next(model.parameters()).device
    timed = budget.unit == "seconds"
    precisions = _precisions(model, config, device, timed)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    most = processes.tell(torch.get_num_threads())
    way, seconds = _Way(most, 1, precisions[-1]), 0.0
    notes: list[str] = []
    start = Plan.start(10**9, 0.0, flops_per_step=0.0, threads=most, precision=precisions[0])
    state = TrainState.start(model, config, start, processes)
    run = steps(model, batches, state, config, seed, processes)
    period = math.lcm(*(player.every for player in model.players()))
    while True:
        micro = state.plan.micro(state.step)
        with FlopCounter() as counter:
            for _ in range(period):
                next(run)
        if state.plan.micro(state.step) == micro:  # else memory ran out and steps were begun twice
            break
    if timed:
        together = state.noisy or micro or shards.units(model)
        ways = _ways(most, 1 if together else config.batch // processes.count, precisions, device)
        way, seconds = _fastest(run, state, ways, CALIBRATION_SHARE * budget.amount, processes)
    compiled = False
    if config.compile == "on" or (
        config.compile == "auto"
        and timed
        and budget.amount >= COMPILE_FROM.get(device.type, math.inf)
        and not shards.units(model)
    ):
        must, eager = config.compile == "on", way
        way = replace(way, lanes=1)  # generated code is for one number of rows, and has its own threads
        _take(way, state)
        seconds, compiled, notes = _try_compiled(model, run, seconds, period, must=must, processes=processes)
        if not compiled:
            way = eager
            _take(way, state)
    micro = state.plan.micro(state.step)
    flops = processes.count * counter.total / period
    model.load_state_dict(before)
    if timed:
        planned = max(1.0, budget.amount - reserve_s - clock.read()) / max(seconds, 1e-9)
    elif budget.unit == "flop":
        planned = budget.amount / max(flops, 1.0)
    else:
        planned = math.ceil(budget.amount / (config.batch if budget.unit == "examples" else 1))
    plan = Plan.start(
        max(1, int(planned)),
        max(config.decay, SHORTEST_END) if timed else config.decay,
        flops_per_step=flops,
        threads=way.threads,
        lanes=way.lanes,
        world_size=processes.count,
        precision=way.precision,
        compile=compiled,
        micro=micro,
        open=timed,
    )
    return Plan.from_json(processes.tell(plan.to_json())), notes + (["memory"] if micro else [])


def _precisions(model: Model[Any], config: TrainConfig, device: torch.device, timed: bool) -> tuple[Precision, ...]:
    """What is to be tried, the plainest first."""
    can = has_bfloat16(device) and "bfloat16" in model.precisions
    if config.precision == "bfloat16" and not can:
        raise UsageError("train.no_bfloat16", device=device.type)
    if config.precision != "auto":
        return (config.precision,)
    if not can or (device.type == "cpu" and not timed):
        return ("float32",)
    return ("float32", "bfloat16")


def _ways(most: int, rows: int, precisions: Sequence[Precision], device: torch.device) -> list[_Way]:
    """What may be tried: a CPU's threads alone, all at each operation, on rows of their own, and in groups.

    Args:
        most: threads.
        rows: that may be divided.
    """
    shapes = {(most, 1)}
    if device.type == "cpu":
        shapes |= {(1, 1)} | {(most, lanes) for lanes in (most, math.isqrt(most)) if lanes <= rows}
    return [_Way(*shape, precision) for precision in precisions for shape in sorted(shapes)]


def _fastest(
    run: Iterator[Step], state: TrainState, ways: Sequence[_Way], seconds: float, processes: Processes
) -> tuple[_Way, float]:
    """The fastest way and its seconds a step, each timed in turns; those far behind are tried but once.

    Leaves torch and the state's plan at that way. More threads, and bfloat16, must win by 5 % each.
    """
    times: dict[_Way, list[float]] = {way: [] for way in ways}
    begin, turns = time.perf_counter(), 1
    while True:
        for way, found in times.items():
            _take(way, state)
            next(run)  # the first step after a change also wakes or parks threads
            for _ in range(turns):
                found.append(_timed(run, processes))
        best = min(_middle(found) for found in times.values())
        times = {way: found for way, found in times.items() if _middle(found) < 1.5 * best}
        least, used = min(len(found) for found in times.values()), processes.tell(time.perf_counter() - begin)
        if least >= 5 and used >= seconds:
            break
        if least >= 2 and (len(times) == 1 or used >= 2 * seconds):
            break
        turns = 3 if least > 1 else 1
    handicap = {way: 1.05 ** ((way.threads > 1) + (way.precision == "bfloat16")) for way in times}
    chosen = min(times, key=lambda way: handicap[way] * _middle(times[way]))
    _take(chosen, state)
    return chosen, _middle(times[chosen])


def _timed(run: Iterator[Step], processes: Processes) -> float:
    """Seconds of a step by the first process's clock."""
    synchronize()
    start = time.perf_counter()
    next(run)
    synchronize()
    return float(processes.tell(time.perf_counter() - start))


def _take(way: _Way, state: TrainState) -> None:
    state.plan = replace(state.plan, precision=way.precision, threads=way.threads, lanes=way.lanes)
    if torch.get_num_threads() != state.plan.threads_each:
        torch.set_num_threads(state.plan.threads_each)


def _middle(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


def _try_compiled(
    model: Model[Any], run: Iterator[Step], seconds: float, period: int, *, must: bool, processes: Processes
) -> tuple[float, bool, list[str]]:
    """Compile the networks, time the steps, and keep it if they are 5 % faster, or if they must.

    Returns: seconds a step, whether to compile, events.
    """
    with _compiled(model, True) as compiled:
        if processes.either(not compiled)[0]:
            return seconds, False, ["no_compiler"]
        try:
            for _ in range(2 * period):
                next(run)
            times = [_timed(run, processes) for _ in range(5 * period)]
        except Exception:  # a compiler fails in many ways, and without it training goes on as well
            if processes.count > 1:  # the others wait within the step
                raise
            return seconds, False, ["not_compiled"]
    faster = _middle(times) < 0.95 * seconds
    return (_middle(times), True, []) if must or faster else (seconds, False, [])


@contextmanager
def _compiled(model: Model[Any], wanted: bool) -> Iterator[bool]:
    """Inside the block the model's networks are compiled, if wanted and if this machine has a compiler: whether so."""
    networks = model.networks() if wanted and has_compiler(next(model.parameters()).device) else ()
    for network in networks:
        network.compile(dynamic=False)
    try:
        yield bool(networks)
    finally:
        for network in networks:
            network._compiled_call_impl = None


def has_compiler(device: torch.device) -> bool:
    """Whether torch finds what it needs to compile for the device."""
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        return bool(has_triton())
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        return bool(get_cpp_compiler())
    except Exception:  # torch's own error type for a missing compiler differs between versions
        return False


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
    _load_modules(found.tensors("model") | _frozen(found), model, parts)
    if average is not None:
        model.load_state_dict(found.tensors(f"ema-{average}"), strict=False)
    return found.step


def restore_best(folder: Path, model: Model[Any]) -> None:
    """Put the weights of a stage's best preview into a model that holds its last ones.

    Raises: FileNotFoundError if they are absent or damaged.
    """
    found = checkpoint.newest(folder / BEST)
    if found is None:
        raise FileNotFoundError(f"no undamaged weights below {folder / BEST}")
    model.load_state_dict(found.tensors("model"), strict=False)


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
    skips: deque[int]  # steps of the latest updates left out
    watch: SpikeWatch
    processes: Processes
    circumstances: Mapping[str, Any]
    whole: Model[Any]  # the model itself, or its whole weights for previews where `model` has shards
    began: tuple[int, float] = (0, 0.0)  # step and seconds at which this process began to train, or went back to
    initial: dict[str, Tensor] | None = None  # the model at step 0, until a good checkpoint is on the disk

    def go(self, checkpoint_s: float, checkpoint_steps: int | None) -> None:
        state, watcher = self.state, self.watcher
        log_every = max(1, state.plan.events[0].steps // LOG_LINES)
        moments = [share for share in PREVIEWS if share > self.share()]
        self.clock.start()
        saved_at, last = self.clock.read(), state.step
        self.began = (last, saved_at)
        if state.step == 0:
            self.initial = {name: value.clone() for name, value in self.model.state_dict().items()}
        known, processes = state.plan, self.processes
        for step in steps(self.model, self.batches, state, self.config, self.seed, processes):
            fault("train.step")
            seconds = self.clock.read()
            if state.plan is not known:  # the loop ran out of memory
                watcher.plan(state.plan)
                watcher.log(_event(step.step, "memory", micro=state.plan.micro(step.step)))
            if processes.first:
                self.watch.note(step)
                if self.watch.held >= MOST_HELD:
                    self.tell_spikes()
                if step.step % log_every == 0 or step.skipped:
                    watcher.log(self.line(step, seconds))
            if step.skipped and self.note_skip(step):
                last, known = state.step, state.plan
                continue
            known, draw, due = state.plan, False, False
            if processes.first:
                if self.budget.unit == "seconds":
                    self.replan(seconds)
                share = self.share()
                watcher.step(state.step, state.plan, seconds, share)
                draw = state.plan.over(state.step) or (bool(moments) and share >= moments[0])
                moments = [m for m in moments if m > share]
                if checkpoint_steps is None:
                    due = seconds - saved_at >= checkpoint_s
                else:
                    due = state.step - last >= checkpoint_steps
            changed, draw, due, stop = processes.either(state.plan is not known, draw, due, watcher.stop())
            if changed:
                state.plan = Plan.from_json(processes.tell(state.plan.to_json()))
            over = state.plan.over(state.step)
            if draw:
                hopeless = self.preview(seconds)
                if hopeless is not None and not over:
                    self.change(state.plan.with_cut(state.step, "hopeless"))
                    watcher.log(_event(step.step, "hopeless", why=hopeless))
                    over = True
            known = state.plan
            if due or over or stop:
                self.save()
                saved_at, last = self.clock.read(), state.step
            if stop and not over:
                raise Interrupted("train.interrupted", path=self.place.parent.parent.parent, step=state.step)
        self.clock.read()
        unsaved = processes.first and checkpoint.newest(self.place) is None
        if processes.either(last != state.step or unsaved)[0]:
            self.save()

    def preview(self, seconds: float) -> str | None:
        """Show the state to the watcher: what to end the run for as hopeless, or None."""
        with self.clock.paused() as length, eager():
            shown = self.whole_state(self.state.ema.widths[:1])
            hopeless: str | None = self.processes.tell(self.watcher.preview(shown, seconds))
            if self.whole is not self.model:
                self.whole.to("cpu")
        self.ledger.preview_s += length[0]
        return hopeless

    def whole_state(self, widths: Sequence[float]) -> TrainState:
        """The state with whole weights in `whole` and the first averages; of use on the first process."""
        state = self.state
        if self.whole is self.model:
            return state
        self.whole.to(next(self.model.parameters()).device)
        held = self.whole.state_dict()
        for name, value in shards.whole_state(self.model):
            held[name].copy_(value)
        ema = Ema(averaged_parameters(self.whole), widths)
        for i in range(len(widths)):
            ema.load(i, dict(state.ema.tensors(i)))
        return replace(state, ema=ema)

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
                end = state.step + max(1, int(left * max(rate, 0.0)))
                self.change(state.plan.with_end(state.step, end, decay=decay > 0))
                self.watcher.log(_event(state.step, "end_fixed", steps=end))
        elif left < -0.05 * self.budget.amount and not state.plan.over(state.step):
            self.change(state.plan.with_cut(state.step))
            self.watcher.log(_event(state.step, "cut", seconds=seconds))

    def change(self, plan: Plan) -> None:
        """Put a plan into force, once it is on the disk."""
        self.watcher.plan(plan)
        self.state.plan = plan

    def note_skip(self, step: Step) -> bool:
        """Log an update that was left out, and do what follows from it: whether training went back.

        Raises: DivergedError where nothing else is left to try.
        """
        cause = next(iter(step.skipped.values()))
        rows = ", ".join(map(str, cause.rows[:ROWS])) + (", ..." if len(cause.rows) > ROWS else "")
        told = {"players": ", ".join(step.skipped), "parameter": cause.parameter, "rows": rows}
        self.watcher.log(_event(step.step, "skipped", **told))
        self.skips.append(step.step)
        often = len(self.skips) == SKIP_LIMIT and self.skips[-1] - self.skips[0] < SKIP_WINDOW
        policy, rollbacks = self.config.on_nonfinite, self.state.plan.rollbacks
        if policy == "stop" or (rollbacks >= ROLLBACKS and (often or policy == "rollback")):
            self.tell_spikes()
            raise DivergedError("train.diverged", step=step.step, rollbacks=rollbacks, **told)
        if often or policy == "rollback":
            self.roll_back(self.skips[0] if often else step.step)
            return True
        return False

    def roll_back(self, trouble: int) -> None:
        """Go back to the newest checkpoint from before step `trouble`, with half the learning rate.

        Later checkpoints are removed first: a process killed in between comes to this decision again.
        """
        state, done, found = self.state, self.state.step, None
        if self.processes.first:
            if self.initial is None:  # at least one checkpoint stays
                trouble = max(trouble, min(checkpoint.steps(self.place)))
            checkpoint.forget(self.place, trouble)
            found = checkpoint.newest(self.place)
        to = self.processes.tell(None if found is None else found.step)
        fresh = TrainState.start(self.model, self.config, state.plan, self.processes)
        self.change(state.plan.with_rollback(to or 0, done))
        state.step, state.optimizers, state.ema = to or 0, fresh.optimizers, fresh.ema
        if to is not None:
            told = _restore(found, self.model, self.parts, state, self.processes)
            self.skips, self.watch = deque(told["skips"], maxlen=SKIP_LIMIT), SpikeWatch(told["spikes"])
        else:
            assert self.initial is not None
            self.model.load_state_dict(self.initial)
            state.ema = Ema(averaged_parameters(self.model), self.config.ema)
            self.skips.clear()
            self.watch = SpikeWatch()
        self.began = (state.step, self.clock.read())
        self.watcher.log(_event(done - 1, "rollback", to=state.step, factor=state.plan.events[-1].lr))

    def tell_spikes(self) -> None:
        """Log how many jumps there were so far in this stage; those of steps that were undone went with them."""
        self.watch.read()
        told = {"found": self.watch.found, "judged": self.watch.judged}
        self.watcher.log({"kind": "spikes", "step": self.state.step - 1, **told})

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
        """Write a checkpoint of whole tensors; all processes give their rows, the first one writes."""
        state, processes = self.state, self.processes
        with self.clock.paused() as length:
            frozen = frozen_parameters(self.whole)
            weights = self._kept((k, v) for k, v in shards.whole_state(self.model) if k not in frozen)
            weights |= {f"{name}:{k}": v for name, part in self.parts.items() for k, v in part.state_dict().items()}
            optim = self._kept((f"{name}/{k}", v) for name, o in state.optimizers.items() for k, v in o.tensors())
            averages = {f"ema-{i}": self._kept(state.ema.tensors(i)) for i in range(len(state.ema.widths))}
            cpu_s = sum(processes.gather(self.clock.cpu))
            metered = _metered(self.clock, processes)
            if processes.first:
                self.tell_spikes()
                checkpoint.save(
                    self.place,
                    state.step,
                    {"model": weights, "optim": optim, **averages},
                    {
                        "seed": self.seed,
                        "wall_s": self.clock.wall,
                        "cpu_s": cpu_s,
                        "meters": metered,
                        "skips": list(self.skips),
                        "spikes": self.watch.to_json(),
                        "ema_updates": state.ema.updates,
                        "ema_widths": list(state.ema.widths),
                        "plan": state.plan.to_json(),
                        "frozen": checkpoint.save_once(self.place.parent, frozen) if frozen else None,
                        "circumstances": {**self.circumstances, "threads": torch.get_num_threads()},
                    },
                )
            processes.wait()
            if self.initial is not None and not self.skips:
                self.initial = None
        self.ledger.checkpoint_s += length[0]

    def _kept(self, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        """Gathered tensors: in the first process's host memory where they were sharded, nowhere on the others."""
        kept = {}
        for name, tensor in tensors:
            if self.processes.first:
                kept[name] = tensor if self.whole is self.model else tensor.cpu()
        return kept


def _restore(
    found: checkpoint.Checkpoint | None,
    model: Model[Any],
    parts: Mapping[str, nn.Module],
    state: TrainState,
    processes: Processes,
) -> dict[str, Any]:
    """Load a checkpoint, which the first process has found, and return its JSON part."""

    def tensors(name: str) -> dict[str, Tensor]:
        return processes.share(None if found is None else found.tensors(name))

    told: dict[str, Any] = processes.tell(None if found is None else dict(found.state))
    weights = tensors("model")
    if told["frozen"] is not None:
        weights |= processes.share(None if found is None else _frozen(found))
    _load_modules(weights, model, parts)
    stored = tensors("optim")
    for name, optimizer in state.optimizers.items():
        optimizer.load({k.removeprefix(f"{name}/"): v for k, v in stored.items() if k.startswith(f"{name}/")})
    for i in range(len(state.ema.widths)):
        state.ema.load(i, tensors(f"ema-{i}"))
    state.ema.updates = told["ema_updates"]
    state.step = told["step"]
    return told


def _frozen(found: checkpoint.Checkpoint) -> dict[str, Tensor]:
    digest = found.state["frozen"]
    return {} if digest is None else checkpoint.load_once(found.path.parent.parent, digest)


def _load_modules(tensors: Mapping[str, Tensor], model: Model[Any], parts: Mapping[str, nn.Module]) -> None:
    shards.load_state(model, {k: v for k, v in tensors.items() if ":" not in k})
    for name, part in parts.items():
        part.load_state_dict({k.removeprefix(f"{name}:"): v for k, v in tensors.items() if k.startswith(f"{name}:")})


def _metered(clock: Clock, processes: Processes) -> dict[str, float]:
    """What the meters of all processes rose by."""
    return {name: sum(processes.gather(clock.meters.totals.get(name, 0.0))) for name in clock.meters.counters}


def _chosen(plan: Plan) -> dict[str, Any]:
    """A log line of what calibration chose."""
    micro = plan.micro(0)
    chosen = {"threads": plan.threads, "lanes": plan.lanes, "precision": plan.precision, "compile": plan.compile}
    return {"kind": "plan", "step": 0, **chosen, "micro": micro}


def _event(step: int, what: str, **fields: Any) -> dict[str, Any]:
    return {"kind": "event", "step": step, "what": what, **json.loads(json.dumps(fields, default=str))}


def _number(value: Tensor | float) -> float | None:
    number = float(value.detach()) if isinstance(value, Tensor) else value
    return number if math.isfinite(number) else None
