"""One stage from its first step to its last: the plan, budgets, logs, checkpoints, exact resume.

What it and the calibration before it learn from the clock becomes plan events, written and synced before they take
effect; everything else is a function of the step and the plan.

Among several processes the first one reads the clock, decides, and writes; what it decides the others are told before
it takes effect. Checkpoints hold whole tensors and are read by the first process, so that they serve any number of
processes, with sharded weights or not.
"""

from __future__ import annotations

import copy
import json
import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from quintet.core import checkpoint
from quintet.core.batch import Examples
from quintet.core.budget import Budget
from quintet.core.errors import DivergedError, Interrupted, UsageError
from quintet.core.faults import fault
from quintet.core.ledger import Ledger
from quintet.core.meters import meters
from quintet.core.model import Model
from quintet.core.numerics import eager
from quintet.core.plan import Plan
from quintet.core.processes import ALONE, Processes
from quintet.core.recipe import TrainConfig
from quintet.train import shards
from quintet.train.calibrate import SHORTEST_END, calibrate, compiled_networks
from quintet.train.clock import Clock
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
ROWS = 16  # of a batch that a message names


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
    Raises: DivergedError after repeated non-finite gradients; ResourceError where one example does not fit into memory,
        a file cannot be written or frozen parts are lost; UsageError for bfloat16 where there is none, and by `strict`;
        Interrupted after saving on request.
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
    with compiled_networks(model, wanted) as compiled:
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


def restore(folder: Path, model: Model[Any], parts: Mapping[str, nn.Module], average: int | None, step: int) -> None:
    """Load a finished stage for use.

    Args:
        folder: the stage's folder.
        model, parts: built from the stored config; filled in.
        average: which average to put into the sampled parameters; None keeps the live ones.
        step: at which the stage ended; an earlier checkpoint holds other weights than those that were measured.
    Raises: ResourceError if the checkpoint of that step, or what it needs, is absent or damaged.
    """
    found = checkpoint.at(folder / "checkpoints", step)
    _load_modules(found.tensors("model") | _frozen(found, model), model, parts)
    if average is not None:
        model.load_state_dict(found.tensors(f"ema-{average}"), strict=False)


def restore_best(folder: Path, model: Model[Any], step: int) -> None:
    """Put the weights of a stage's best preview into a model that holds its last ones.

    Raises: ResourceError if those of that step are absent or damaged.
    """
    found = checkpoint.at(folder / BEST, step, "checkpoint.best_lost")
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
                watcher.log(_event(step.step, "memory", micro=state.plan.events[-1].micro))
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
        weights |= processes.share(None if found is None else _frozen(found, model))
    _load_modules(weights, model, parts)
    stored = tensors("optim")
    for name, optimizer in state.optimizers.items():
        optimizer.load({k.removeprefix(f"{name}/"): v for k, v in stored.items() if k.startswith(f"{name}/")})
    for i in range(len(state.ema.widths)):
        state.ema.load(i, tensors(f"ema-{i}"))
    state.ema.updates = told["ema_updates"]
    state.step = told["step"]
    return told


def _frozen(found: checkpoint.Checkpoint, model: Model[Any]) -> dict[str, Tensor]:
    """The frozen parts; where their file is lost, those that the model was built with, if they are the same."""
    digest, folder = found.state["frozen"], found.path.parent.parent
    return {} if digest is None else checkpoint.load_once(folder, digest, frozen_parameters(model))


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
