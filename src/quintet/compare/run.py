"""The main job: plan cells, run them one after another in forked workers, judge them, advise, and say so after each.

Cells go round-robin: seed 0 of every recipe, then seed 1. compare.json is rewritten after each, so that stopping at any
time leaves a valid comparison; finished cells are never done again.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quintet._version import __version__
from quintet.compare import executor
from quintet.compare.advice import advise
from quintet.compare.cell import CellJob, evaluate_cell, remeasure, train_cell
from quintet.compare.claims import claims
from quintet.compare.forecast import FREE, Forecast, JudgeTime, evaluation_limit_s, forecast, solve, trial_budget
from quintet.compare.likelihood import share
from quintet.compare.rates import RATE, RATES, rate_jobs, read_trials, run_trial, write_trial
from quintet.compare.reference import (
    NOTHING,
    SAMPLES,
    Known,
    check_judges,
    describe,
    judge_items,
    judge_seconds,
    known_path,
    level_reference,
    make_reference,
    read_known,
    samples_for,
    write_reference,
)
from quintet.compare.snapshots import COSTS, at_equal
from quintet.compare.stability import count_spikes, logged
from quintet.compare.standing import standing
from quintet.compare.stored import read_stored
from quintet.compare.summary import summarize
from quintet.core import checkpoint
from quintet.core.budget import Budget
from quintet.core.config import classes
from quintet.core.errors import DataError, Interrupted, ResourceError, UsageError
from quintet.core.interrupt import graceful
from quintet.core.lock import locked
from quintet.core.memory import release
from quintet.core.messages import LANGUAGES, say
from quintet.core.processes import here
from quintet.core.recipe import Recipe
from quintet.core.results import Compare, RateTrial, RecipeResult, SeedResult
from quintet.data.begun import hold
from quintet.data.dataset import Dataset
from quintet.data.report import FILE as DATA_REPORT
from quintet.data.report import describe_data, write_data_report
from quintet.recipes.load import CONFIG, LOG, RESULT
from quintet.recipes.registry import add_kinds
from quintet.train.calibrate import warm_up

COMPARE = "compare.json"
WITHIN = Budget("seconds", 20 * 60.0)  # when neither a budget nor a time is given

Listener = Callable[[Mapping[str, Any]], None]


@dataclass
class Comparison:
    """A planned comparison.

    Attributes:
        folder: where it lives.
        dataset: opened.
        recipes: that fit the data.
        unfit: recipe -> why it was left out, of those asked for.
        seeds: 0..seeds-1 of each recipe.
        budget: of a cell.
        device: "cpu" or "cuda".
        threads: torch threads of a cell.
        samples: per cell for the evaluation, the same for every family.
        overrides: config changes for every recipe.
        sensitivity: whether each recipe is also trained shortly at other learning rates.
        judges: weights of pretrained networks to judge with, by name.
        judge_time: what those take.
        kept: rows of an earlier command with other recipes in the same folder; they stay.
        created: ISO time in UTC.
    """

    folder: Path
    dataset: Dataset
    recipes: Sequence[Recipe]
    unfit: Mapping[str, str]
    seeds: int
    budget: Budget
    device: str = "cpu"
    threads: int = 1
    samples: int = SAMPLES
    overrides: tuple[tuple[str, str], ...] = ()
    sensitivity: bool = False
    judges: Mapping[str, Path] = field(default_factory=dict)
    judge_time: JudgeTime = FREE
    kept: list[RecipeResult] = field(default_factory=list)
    created: str = field(default_factory=lambda: datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))

    def jobs(self) -> list[CellJob]:
        """All cells, round-robin."""
        return [
            CellJob(
                self.folder / "cells" / f"{recipe.name}-s{seed}",
                recipe,
                self.dataset,
                self.budget,
                seed,
                self.overrides,
                self.device,
                self.threads,
            )
            for seed in range(self.seeds)
            for recipe in self.recipes
        ]

    def todo(self) -> list[CellJob]:
        """Cells without a result."""
        return [job for job in self.jobs() if not (job.folder / RESULT).exists()]

    def trials(self) -> list[tuple[CellJob, float]]:
        """Short trainings at other learning rates that are to be made, and their factors."""
        if not self.sensitivity:
            return []
        first = [job for job in self.jobs()[: len(self.recipes)] if not _lost(job)]
        found = [(job, RATES[name]) for cell in first for name, job in rate_jobs(cell).items()]
        return [(job, factor) for job, factor in found if not (job.folder / RATE).exists()]

    def forecast(self) -> Forecast:
        done = len(self.jobs()) - len(self.todo())
        left = len(self.trials())
        return forecast(
            len(self.recipes), self.seeds, self.budget, done, dims=self.dataset.spec.dims, trials=left,
            judges=self.judge_time,
        )  # fmt: skip

    def run(self, listen: Listener, rewrite: Callable[[Path], None] = lambda folder: None) -> Compare:
        """Do what is not done yet.

        Args:
            listen: told about cells, steps, phases and events as dicts with a "kind".
            rewrite: called with the folder whenever compare.json has changed (the report).
        Returns: the comparison as compare.json holds it.
        Raises: Interrupted after a Ctrl-C, with everything saved.
        """
        start = executor.run if executor.can_fork() else executor.run_here
        with executor.one_thread(), locked(self.folder), graceful() as stop:
            warm_up()
            self._claim()
            hold(self.dataset, self.folder)
            write_data_report(describe_data(self.dataset), self.folder / DATA_REPORT)
            release()  # what reading the data took: a cell's memory is what it needs beyond this
            if not known_path(self.folder).exists():
                listen({"kind": "reference"})
                out = start(
                    lambda report: write_reference(
                        self.folder, self.dataset, self.samples, self.threads, self.device, report, self.judges
                    ),
                    listen,
                    self.folder / "reference-error.txt",
                )
                if not out.done and not stop():
                    raise ResourceError("compare.reference", why=out.reason())
            result = self.write(rewrite)
            for job in self.todo():
                if stop():
                    break
                listen({"kind": "cell", "recipe": job.recipe.name, "seed": job.seed, "left": len(self.todo())})
                out = start(
                    lambda report, job=job: self._cell(job, report, stop),  # type: ignore[misc]
                    listen,
                    job.folder / "error.txt",
                )
                if not out.done and out.code != 130:
                    self._failed(job, out)
                self._level(start, listen)
                result = self.write(rewrite)
                reason = {lang: "" if out.done else out.reason(lang) for lang in LANGUAGES}
                ended = {"recipe": job.recipe.name, "seed": job.seed, "ok": out.done, "reason": reason}
                listen({"kind": "cell-done", **ended})
            trials = self.trials()
            for job, factor in trials:
                if stop():
                    break
                listen({"kind": "rate", "recipe": job.recipe.name, "factor": factor})
                out = start(
                    lambda report, job=job, factor=factor: run_trial(job, factor, report, stop),  # type: ignore[misc]
                    listen,
                    job.folder / "error.txt",
                )
                if not out.done and out.code != 130:
                    status = "diverged" if out.code == 5 else "failed"
                    write_trial(job.folder, RateTrial(factor=factor, status=status, reason=out.reason()))
            if trials:
                result = self.write(rewrite)
            if stop():
                raise Interrupted("compare.interrupted", path=self.folder)
            return result

    def write(self, rewrite: Callable[[Path], None] = lambda folder: None) -> Compare:
        """Gather what is finished into compare.json."""
        cells: dict[str, list[SeedResult]] = {recipe.name: [] for recipe in self.recipes}
        for job in self.jobs():
            path = job.folder / RESULT
            if path.exists():
                cells[job.recipe.name].append(read_stored(path, SeedResult))
        known = read_known(self.folder) or NOTHING
        result = Compare(
            name=self.folder.name,
            quintet=__version__,
            created=self.created,
            data={
                **describe(self.dataset),
                "repeats": known.repeats,
                "codecs": {name: e.model_dump() for name, e in known.codecs.items()},
            },
            budget={
                "cell": str(self.budget),
                "unit": self.budget.unit,
                "amount": self.budget.amount,
                "seeds": self.seeds,
            },
            protocol=self._protocol(known),
            machine=machine(self.threads, known.device or self.device),
            floor=known.floor,
            ladders=known.ladders,
            recipes=[
                *(self._summary(recipe, cells[recipe.name], known) for recipe in self.recipes),
                *(self._summary(row, self._kept_cells(row), known) for row in self.kept),
            ],
            baselines=known.baselines,
        )
        result = result.model_copy(update=standing(result))
        result = result.model_copy(update={"equal": {cost: at_equal(result, cost) for cost in COSTS}})
        ranking, advice = advise(result)
        result = result.model_copy(update={"ranking": ranking, "advice": advice})
        result = result.model_copy(update={"claims": claims(result)})
        text = result.model_dump_json(indent=1, by_alias=True)
        checkpoint.write_atomically(self.folder / COMPARE, text.encode())
        rewrite(self.folder)
        return result

    def _kept_cells(self, row: RecipeResult) -> list[SeedResult]:
        """The cells of an earlier command, as they have been measured last."""
        paths = [(self._kept_folder(row, cell) / RESULT, cell) for cell in row.seeds]
        return [read_stored(path, SeedResult) if path.exists() else cell for path, cell in paths]

    def _kept_folder(self, row: RecipeResult, cell: SeedResult) -> Path:
        return self.folder / "cells" / f"{row.name}-s{cell.seed}"

    def _finished(self) -> list[tuple[CellJob, SeedResult]]:
        """All finished cells, those of earlier commands too, whose recipes are not known here."""
        jobs = self.jobs()
        for row in self.kept:
            jobs += [replace(jobs[0], folder=self._kept_folder(row, cell), seed=cell.seed) for cell in row.seeds]
        found = [(job, read_stored(job.folder / RESULT, SeedResult)) for job in jobs if (job.folder / RESULT).exists()]
        return [(job, cell) for job, cell in found if cell.status == "done"]

    def _summary(self, recipe: Recipe | RecipeResult, cells: Sequence[SeedResult], known: Known) -> RecipeResult:
        no_trials = "" if self.sensitivity else "off"
        if trial_budget(self.budget) is None:
            no_trials = "short"
        return summarize(recipe, cells, known.floor, read_trials(self.folder / "cells", recipe.name), no_trials)

    def _cell(self, job: CellJob, report: Listener, stop: Callable[[], bool]) -> None:
        train_cell(job, report, stop)
        reference = make_reference(self.folder, self.dataset, self.judges, self.device)
        evaluate_cell(job, reference, self.samples, evaluation_limit_s(self.budget), report)

    def _level(self, start: Callable[..., executor.Outcome], listen: Listener) -> None:
        """Judge all finished cells on as many samples as the slowest sampler made within its time.

        Their likelihoods are compared on as many test examples as the slowest had time for.
        """
        done = [(job, cell.choice["samples"]) for job, cell in self._finished()]
        least = min((n for _, n in done), default=self.samples)
        for job, n in done:
            if n > least:
                listen({"kind": "phase", "phase": "level"})
                start(
                    lambda report, job=job: remeasure(
                        job, make_reference(self.folder, self.dataset, self.judges, self.device), least
                    ),
                    listen,
                )
        if done:
            start(lambda report: level_reference(self.folder, self.dataset, least, self.judges, self.device), listen)
            share([job.folder for job, _ in done], self.dataset.spec.dims, len(self.dataset.test))

    def _failed(self, job: CellJob, out: executor.Outcome) -> None:
        """A failed cell is a row with its reason; the same command tries it again only in a fresh folder."""
        status = "diverged" if out.code == 5 else "failed"
        lines = logged(job.folder / LOG)
        events = [line for line in lines if line["kind"] == "event"]
        jumps, watched = count_spikes(lines)
        row = SeedResult.model_validate(
            {
                "seed": job.seed,
                "status": status,
                "reason": out.reason(),
                "stability": {
                    "diverged": status == "diverged",
                    "skipped_steps": sum(event["what"] == "skipped" for event in events),
                    "spikes": jumps,
                    "watched": watched,
                    "events": events,
                },
                "run": f"cells/{job.folder.name}",
            }
        )
        job.folder.mkdir(parents=True, exist_ok=True)
        checkpoint.write_atomically(job.folder / RESULT, row.model_dump_json(indent=1).encode())

    def _claim(self) -> None:
        """See that the folder holds this comparison or none."""
        path = self.folder / COMPARE
        if not path.exists():
            return
        held = json.loads(path.read_text(encoding="utf-8"))
        self.created = held["created"]
        mine = {recipe.name for recipe in self.recipes}
        self.kept = [row for row in read(self.folder).recipes if row.name not in mine and row.seeds]
        for job in self.jobs():
            config = job.folder / CONFIG
            if config.exists() and json.loads(config.read_text(encoding="utf-8"))["stages"] != job.config()["stages"]:
                raise UsageError("compare.other", path=self.folder, what=f"config: {job.recipe.name}")
        for what, now in (("data", self.dataset.fingerprint), ("budget", str(self.budget))):
            before = held["data"]["fingerprint"] if what == "data" else held["budget"]["cell"]
            if before != now:
                if what == "data":
                    raise UsageError("data.changed", path=self.folder)
                raise UsageError("compare.other", path=self.folder, what=what)

    def _protocol(self, known: Known) -> dict[str, Any]:
        keys = ["samples", "budget", "choices", "tuning", "summary", "verdicts"]
        keys += ["sensitivity"] if self.sensitivity and trial_budget(self.budget) is not None else []
        spent = ", ".join(f"{recipe.name} {recipe.tuning_trials}" for recipe in self.recipes if recipe.tuning_trials)
        texts: dict[str, Any] = {}
        for key in keys:
            texts[key] = {}
            for lang in LANGUAGES:
                trials = say("protocol.trials", lang, spent=spent) if spent else say("protocol.no_trials", lang)
                texts[key][lang] = say(f"protocol.{key}", lang, n=self.samples, trials=trials)
        return {
            **texts,
            "left_out": dict(self.unfit),
            "spaces": known.spaces,
            "judge": known.judge,
        }


def _lost(job: CellJob) -> bool:
    """Whether a cell has ended without a model."""
    path = job.folder / RESULT
    return path.exists() and json.loads(path.read_text(encoding="utf-8"))["status"] != "done"


def plan(
    folder: Path,
    dataset: Dataset,
    recipes: Sequence[Recipe],
    *,
    budget: Budget | None,
    within: Budget | None,
    seeds: int | None,
    device: str,
    threads: int | None = None,
    samples: int | None = None,
    overrides: tuple[tuple[str, str], ...] = (),
    sensitivity: bool | None = None,
    judges: Mapping[str, Path] | None = None,
) -> Comparison:
    """Settle what a comparison does.

    Args:
        sensitivity: whether to train recipes shortly at other learning rates; by default where the budget is a time.
        judges: weights of pretrained networks to judge with, by name.
    Raises: UsageError if both a budget and a time are given, if nothing fits the data, or if the time is too short.
    """
    if budget is not None and within is not None:
        raise UsageError("compare.both")
    if seeds is not None and seeds < 1:
        raise UsageError("compare.seeds", n=seeds)
    if not len(dataset.test):
        raise DataError("compare.too_few", data=dataset.name, count=len(dataset.train))
    unfit = {recipe.name: why for recipe in recipes if (why := recipe.unfit(dataset.spec)) is not None}
    check_judges(folder, dataset, judges or {})
    fitting = [recipe for recipe in recipes if recipe.name not in unfit]
    if not fitting:
        raise UsageError("compare.nothing_fits", data=dataset.name)
    held, dims = _held_budget(folder, dataset) if budget is None else None, dataset.spec.dims
    threads, samples = threads or default_threads(), samples or samples_for(dataset)
    each = judge_seconds(judges or {}, dataset, device, threads)
    judge_time = JudgeTime(each * judge_items(dataset, samples), each * samples)
    if budget is None and held is not None:  # continuing: the same cells, never others
        settled = forecast(len(fitting), seeds or held[1], held[0], dims=dims, judges=judge_time)
    elif budget is not None:
        settled = forecast(len(fitting), seeds or 3, budget, dims=dims, judges=judge_time)
    else:
        settled = solve(
            len(fitting), seeds, within or WITHIN, dims=dims, sensitivity=sensitivity is not False, judges=judge_time
        )  # fmt: skip
    for recipe in fitting:  # a user's own: this process will read its runs; if it cannot be built, its cell says why
        with suppress(Exception):
            add_kinds(classes(recipe.stages(dataset.spec, settled.budget)))
    return Comparison(
        folder,
        dataset,
        fitting,
        unfit,
        settled.seeds,
        settled.budget,
        device,
        threads,
        samples,
        overrides,
        settled.budget.unit == "seconds" if sensitivity is None else sensitivity,
        dict(judges or {}),
        judge_time,
    )


def default_threads() -> int:
    """This process's share of the machine's cores, at most 8: the models of small budgets do not gain from more."""
    return max(1, min(8, (os.cpu_count() or 1) // here()))


def read(folder: Path) -> Compare:
    """The comparison in a folder.

    Raises: UsageError (exit 2) if there is none, or if another version wrote it.
    """
    path = folder / COMPARE
    if not path.is_file():
        raise UsageError("compare.none", path=folder)
    return read_stored(path, Compare)


def machine(threads: int, device: str) -> dict[str, Any]:
    """What the numbers depend on; no host or user name."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "device": device,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "quintet": __version__,
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _held_budget(folder: Path, dataset: Dataset) -> tuple[Budget, int] | None:
    path = folder / COMPARE
    if not path.exists():
        return None
    held = json.loads(path.read_text(encoding="utf-8"))
    if held["data"]["fingerprint"] != dataset.fingerprint:
        raise UsageError("data.changed", path=folder)
    return Budget.parse(held["budget"]["cell"]), int(held["budget"]["seeds"])
