"""The first steps of a stage: what one costs, the fastest way to compute them, and the plan that a budget allows.

Of the files that train, this one and `clock` alone look at the time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from quintet.core.budget import Budget
from quintet.core.errors import UsageError
from quintet.core.ledger import FlopCounter, synchronize
from quintet.core.model import Model
from quintet.core.numerics import Precision, has_bfloat16
from quintet.core.plan import Plan
from quintet.core.processes import ALONE, Processes
from quintet.core.recipe import TrainConfig
from quintet.train import shards
from quintet.train.clock import Clock
from quintet.train.loop import BatchSource, Step, TrainState, steps

CALIBRATION_SHARE = 0.02  # of a budget in seconds, for timing the ways to train
COMPILE_FROM = {"cpu": 600.0, "cuda": 120.0}  # seconds of budget from which compiling may pay
SHORTEST_END = 0.1  # share of a time budget after which the number of steps is fixed when nothing decays


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
    with compiled_networks(model, True) as compiled:
        if processes.either(not compiled)[0]:
            return seconds, False, ["no_compiler"]
        try:
            for _ in range(2 * period):
                next(run)
            times = [_timed(run, processes) for _ in range(5 * period)]
        except Exception:  # a compiler fails in many ways, and without it training goes on as well
            if processes.count > 1:  # the others wait within the step
                raise
            model.zero_grad(set_to_none=True)  # what a backward pass left that broke off
            return seconds, False, ["not_compiled"]
    faster = _middle(times) < 0.95 * seconds
    return (_middle(times), True, []) if must or faster else (seconds, False, [])


@contextmanager
def compiled_networks(model: Model[Any], wanted: bool) -> Iterator[bool]:
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
