"""A cell: one recipe, one seed, one budget. Trains all stages, chooses the average, evaluates, leaves a run folder.

`quintet train` and `quintet compare` write the same folder through the same functions.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from quintet._version import __version__
from quintet.compare.busy import busy
from quintet.compare.drawing import draw
from quintet.compare.likelihood import NATS, likelihoods
from quintet.compare.reference import nearest_pairs
from quintet.compare.stability import count_spikes
from quintet.compare.stored import read_stored
from quintet.core import checkpoint, config
from quintet.core.batch import Batch
from quintet.core.budget import Budget
from quintet.core.codec import Codec
from quintet.core.errors import DivergedError, UsageError
from quintet.core.ledger import Ledger, Stopwatch, peak_memory
from quintet.core.lock import locked
from quintet.core.memory import halving, out_of_memory
from quintet.core.messages import say
from quintet.core.meters import meters
from quintet.core.model import Finding, HasLatent, HasLogProb, HasTrace, HasWatch, Model, round_trip_error
from quintet.core.plan import Plan
from quintet.core.processes import ALONE, Processes
from quintet.core.recipe import Recipe, Stage
from quintet.core.results import Estimate, LedgerEntry, SeedResult, Stability
from quintet.core.rng import CHUNK, Rng, layer_noise
from quintet.data.batches import Batches
from quintet.data.begun import hold
from quintet.data.dataset import Dataset
from quintet.metrics.evaluate import Reference, pca_space
from quintet.metrics.judges import PCASpace
from quintet.recipes.load import CONFIG, LOG, PLAN, RESULT, TRAINING, load, stage_folder
from quintet.recipes.registry import KINDS, add_kinds
from quintet.tasks.generate import Generated, generate, proportional_labels, to_raw
from quintet.tasks.pictures import picture
from quintet.train.calibrate import warm_up
from quintet.train.loop import TrainState, frozen_parameters
from quintet.train.run import BEST, fit, restore_best

CHOICE = "choice.json"  # of a stage
CHOICE_SHARE = 0.05  # of a budget in seconds, kept for the choice of the average
CHOICE_SAMPLES = 512
PREVIEW_SAMPLES = 2 * CHUNK
SNAPSHOTS = (1 / 8, 1 / 4, 1 / 2)  # shares of the budget at which, and at its end, a preview draws more samples
SNAPSHOT_SAMPLES, SNAPSHOT_SHARE = 512, 0.01  # so many, within this share of a budget in seconds
WATCHED, LEAST_WATCHED = 256, 32  # examples of each split that detectors see, and where memory does not suffice
HOPELESS = 3  # previews in a row with a severe finding, the last in the second half of the budget, end a run
INVERTED, INVERSE_TOLERANCE = 256, 0.01
TRACE_ITEMS, TRACE_FRAMES, TRACE_POINTS = 8, 9, 1024

SPENT = {"seconds": "wall_s", "flops": "flops", "examples": "examples"}
"""What a point of the curve has cost -> the ledger's name of it."""

DECIDED = ("memory", "no_compiler", "not_compiled", "end_fixed", "cut", "hopeless")
"""Events of decisions in the stored plan, which a resumed run does not take again."""

Report = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class CellJob:
    """What is to be trained where.

    Attributes:
        folder: of the cell.
        recipe: its name, family and stages.
        dataset: opened.
        budget: for all stages together.
        seed: of initialisation, order, noise and sampling.
        overrides: ("train.batch", "128") pairs that change every stage's config.
        device: "cpu" or "cuda".
        threads: torch threads.
    """

    folder: Path
    recipe: Recipe
    dataset: Dataset
    budget: Budget
    seed: int
    overrides: tuple[tuple[str, str], ...] = ()
    device: str = "cpu"
    threads: int = 1

    def stages(self) -> tuple[Stage, ...]:
        """The resolved configs.

        Raises: UsageError if the recipe does not fit the data, or an override names no field.
        """
        reason = self.recipe.unfit(self.dataset.spec)
        if reason is not None:
            raise UsageError("recipe.unfit", recipe=self.recipe.name, why=reason)
        stages = self.recipe.stages(self.dataset.spec, self.budget)
        for path, text in self.overrides:
            stages = tuple(config.override(stage, path, text, stage.name, KINDS) for stage in stages)
        add_kinds(config.classes(stages))  # a recipe of the user's own may hold classes of their own
        return stages

    def config(self) -> dict[str, Any]:
        """The resolved config, as config.json holds it."""
        return {
            "schema": 1,
            "quintet": __version__,
            "recipe": self.recipe.name,
            "family": self.recipe.family,
            "seed": self.seed,
            "budget": str(self.budget),
            "data": {
                "name": self.dataset.name,
                "fingerprint": self.dataset.fingerprint,
                "spec": self.dataset.spec.to_json(),
                "label_names": {name: list(values) for name, values in self.dataset.names.items()},
            },
            "stages": config.encode(self.stages()),
        }


def build(
    stage: Stage, dataset: Dataset, seed: int, earlier: Mapping[str, Model[Any]] | None = None
) -> tuple[Model[Any], Codec]:
    """A stage's fitted codec and its model, initialised by the seed and by the trained models of earlier stages."""
    codec = stage.codec.fit(dataset.spec, torch.from_numpy(dataset.train.x))
    with layer_noise(Rng(seed, "init", stage.name)):
        model = stage.model.build(codec.spec)
    for part, name in stage.needs.items():
        model.get_submodule(part).load_state_dict((earlier or {})[name].state_dict())
    return model, codec


def train_cell(
    job: CellJob,
    report: Report,
    stop: Callable[[], bool],
    *,
    resume: bool = True,
    strict: bool = False,
    rescan: bool = False,
    processes: Processes = ALONE,
) -> None:
    """Train all stages of a cell and choose the average, continuing an earlier process's work if `resume`.

    Args:
        strict: refuse to resume where that would not be bit for bit.
        rescan: resume with data that have changed since, of the same shape and classes.
        processes: that train it together; the first one alone reads and writes the folder.
    Raises: BusyError if another process holds the folder; UsageError if it holds another run; whatever `fit` raises.
    """
    torch.set_num_threads(job.threads)
    with locked(job.folder) if processes.first else nullcontext():
        warm_up()
        if processes.first:
            _claim(job.folder, job.config(), resume, rescan and not strict)
            hold(job.dataset, job.folder)
        if processes.tell((job.folder / TRAINING).exists()):
            return
        stages, dataset = job.stages(), job.dataset
        ledger, base = Ledger(), 0 if job.device == "cuda" else peak_memory()
        space = pca_space(dataset.train.x, dataset.spec)
        validation = space.features(dataset.validation.x)
        rows = {stage.name: processes.rows(stage.train.batch) for stage in stages}
        choice: dict[str, Any] | None = None
        curve: list[dict[str, float]] = []
        earlier: dict[str, Model[Any]] = {}
        for index, stage in enumerate(stages):
            folder = stage_folder(job.folder, index, stage)
            if processes.first:
                for place in (folder, folder / BEST):
                    checkpoint.sweep(place)
            model, codec = build(stage, dataset, job.seed, earlier)
            model.to(job.device)
            codec.to(job.device)
            torch.set_num_threads(job.threads)  # the stage before may have been faster with fewer
            first, count = rows[stage.name]
            batches = Batches(
                dataset.train, codec, stage.train.batch, job.seed, augment=stage.train.augment, first=first, rows=count,
                device=job.device,
            )  # fmt: skip
            kind = _Watcher if processes.first else _Follower
            spent = {name: float(getattr(ledger, of)) for name, of in SPENT.items()}
            spent["share"] = sum(before.share for before in stages[:index])
            watcher = kind(job, stage, index, model, codec, space, validation, report, stop, spent)
            budget = job.budget.share(stage.share)
            timed = budget.unit == "seconds"
            reserve = CHOICE_SHARE * budget.amount if timed else 0.0
            plan = watcher.stored_plan()
            if resume and plan is not None and processes.first:
                _trim_log(job.folder / LOG, folder)
            fitted = fit(
                model,
                batches,
                stage.train,
                budget,
                seed=job.seed,
                folder=folder,
                ledger=ledger,
                watcher=watcher,
                plan=plan if resume else None,
                parts={"codec": codec},
                examples=batches,
                resume=resume,
                reserve_s=reserve,
                processes=processes,
                strict=strict,
            )
            curve = watcher.curve()
            with Stopwatch(meters(job.device, processes.count)) as watch:
                choice = _stored(folder / CHOICE) if resume and processes.first else None
                if choice is None and processes.first:
                    best = folder / BEST if watcher.troubled() else None
                    limit_s = reserve if timed else None
                    choice = _choose(job, fitted.state, model, codec, space, validation, limit_s, best)
                    checkpoint.write_atomically(folder / CHOICE, json.dumps(choice, indent=1).encode())
                    if choice["best"] is not None:
                        kept = {"what": "best_kept", "of": choice["best"]}
                        watcher.log({"kind": "event", "step": fitted.state.step, **kept})
            ledger.wall_s += watch.wall
            ledger.cpu_s += watch.cpu
            ledger.meter(watch.meters)
            if choice is not None:
                fitted.state.ema.keep(choice["average"])
                if choice["best"] is not None:
                    restore_best(folder, model, choice["best"])
            if processes.count > 1:
                model.load_state_dict(processes.share(model.state_dict()))
            earlier[stage.name] = model
        if not processes.first:
            return
        ledger.peak_bytes = max(0, peak_memory() - base)
        ledger.tuning_trials = job.recipe.tuning_trials
        done = {"schema": 1, "choice": choice, "ledger": ledger.model_dump(), "curve": curve}
        checkpoint.write_atomically(job.folder / TRAINING, json.dumps(done, indent=1).encode())


def evaluate_cell(job: CellJob, reference: Reference | None, n: int, limit_s: float, report: Report) -> SeedResult:
    """Sample, measure, and write what the report shows.

    Args:
        job: a trained cell.
        reference: real data and feature spaces; None leaves the quality metrics out.
        n: samples to draw; fewer if sampling would take more than 40 % of the limit.
        limit_s: for sampling and likelihood together, about.
    """
    begin = time.perf_counter()
    report({"kind": "phase", "phase": "evaluate"})
    torch.set_num_threads(job.threads)
    trained = load(job.folder, job.device)
    model, codec, dataset = trained.model, trained.codec, job.dataset
    training = json.loads((job.folder / TRAINING).read_text(encoding="utf-8"))
    labels = proportional_labels(dataset.train.labels, n, job.seed)
    drawn = draw(
        model, codec, n, labels,
        seed=job.seed, threads=job.threads, limit_s=0.4 * limit_s, latency_limit_s=0.1 * limit_s,
    )  # fmt: skip
    made = drawn.made
    lost = sum(not np.isfinite(item).all() for item in made.x)
    if lost and reference is not None:
        raise DivergedError("evaluate.not_finite", lost=lost, n=len(made))
    metrics: dict[str, Estimate] = {}
    if reference is not None:
        asked = next(iter(made.labels.values()), None)
        metrics = reference.evaluate(made.x, asked, seed=job.seed)
        metrics |= reconstruction(model, codec, reference)
    draw_s = None if reference is None else drawn.chunk_s
    metrics |= likelihoods(trained, dataset, job.seed, 0.3 * limit_s, draw_s, keep=job.folder / NATS)
    _write_samples(job.folder, made, dataset)
    _write_trace(job.folder, model, codec, made, job.seed)
    if reference is not None:
        _write_nearest(job.folder, reference, made)
    ledger = LedgerEntry(**{**training["ledger"], "evaluation_s": time.perf_counter() - begin})
    stability = _stability(job.folder, metrics, reference, lost_inverse(model, codec, dataset))
    result = SeedResult(
        seed=job.seed,
        status="done",
        reason=_ended_early(stability),
        metrics=metrics,
        ledger=ledger,
        sampling=drawn.cost,
        stability=stability,
        choice={
            **training["choice"],
            "samples": len(made),
            "capabilities": list(trained.capabilities),
            "likelihood": model.likelihood if isinstance(model, HasLogProb) else "undefined",
        },
        curve=training["curve"],
        busy=busy(ledger, job.device),
        run=f"cells/{job.folder.name}",
    )
    checkpoint.write_atomically(job.folder / RESULT, result.model_dump_json(indent=1).encode())
    return result


def remeasure(job: CellJob, reference: Reference, n: int) -> None:
    """Measure a finished cell again on its first n samples, so that every family is judged on the same number."""
    torch.set_num_threads(job.threads)
    path = job.folder / RESULT
    result = read_stored(path, SeedResult)
    with np.load(job.folder / "samples.npz") as stored:
        x = stored["x"][:n]
        asked = next((stored[name][:n] for name in job.dataset.spec.conditions if name in stored), None)
    metrics = {**result.metrics, **reference.evaluate(x, asked, seed=job.seed)}
    result = result.model_copy(update={"metrics": metrics, "choice": {**result.choice, "samples": n}})
    checkpoint.write_atomically(path, result.model_dump_json(indent=1).encode())


def reconstruction(model: Model[Any], codec: Codec, reference: Reference) -> dict[str, Estimate]:
    """The reconstruction floor of a model that encodes with loss; nothing for others."""
    exact = isinstance(model, HasLogProb) and model.likelihood == "exact"
    if exact or not isinstance(model, HasLatent) or codec.raw.kind != "image":
        return {}
    raw = reference.shown.x[: reference.size]
    device = next(model.parameters()).device
    parts, done, size = list[NDArray[Any]](), 0, CHUNK

    def decoded(most: int) -> NDArray[Any]:
        x = codec.encode(torch.from_numpy(np.ascontiguousarray(raw[done : done + most])).to(device))
        return to_raw(codec, model.decode(model.encode(x)))

    with torch.inference_mode():
        while done < len(raw):
            part, size = halving(decoded, size)
            parts.append(part)
            done += len(part)
    return reference.reconstruction(np.concatenate(parts))


def lost_inverse(model: Model[Any], codec: Codec, dataset: Dataset) -> list[dict[str, Any]]:
    """An event if a model whose latents are exact does not find its way back on test examples."""
    exact = isinstance(model, HasLatent) and isinstance(model, HasLogProb) and model.likelihood == "exact"
    if not exact or not len(dataset.test):
        return []
    device = next(model.parameters()).device
    x = codec.encode(torch.from_numpy(dataset.test.x[:INVERTED]).to(device))
    cond = {name: torch.from_numpy(value[:INVERTED]).to(device) for name, value in dataset.test.labels.items()}

    def largest(size: int) -> float:
        assert isinstance(model, HasLatent)
        parts = (slice(i, i + size) for i in range(0, len(x), size))
        return max(
            float(round_trip_error(model, x[part], {name: value[part] for name, value in cond.items()}).max())
            for part in parts
        )

    with torch.no_grad():
        error, _ = halving(largest, INVERTED)
    if error <= INVERSE_TOLERANCE:
        return []
    value, limit = min(error, 1e30), INVERSE_TOLERANCE
    return [{"kind": "event", "step": 0, "what": "not_invertible", "value": value, "limit": limit, "severe": False}]


class _Watcher:
    """Writes a stage's plan, log and previews, and passes progress on."""

    def __init__(
        self,
        job: CellJob,
        stage: Stage,
        index: int,
        model: Model[Any],
        codec: Codec,
        space: PCASpace,
        validation: NDArray[Any],
        report: Report,
        stop: Callable[[], bool],
        spent: Mapping[str, float],
    ) -> None:
        self.spent = spent  # by earlier stages
        self.job, self.stage, self.index, self.model, self.codec = job, stage, index, model, codec
        self.space, self.validation, self.report, self.stop = space, validation, report, stop
        self.folder = stage_folder(job.folder, index, stage)
        self._told = self._share = 0.0

    def stored_plan(self) -> Plan | None:
        stored = self._plans().get(self.stage.name)
        return Plan.from_json(stored) if stored is not None else None

    def _plans(self) -> dict[str, Any]:
        path = self.job.folder / PLAN
        return dict(json.loads(path.read_text(encoding="utf-8"))["stages"]) if path.exists() else {}

    def plan(self, plan: Plan) -> None:
        stages = {**self._plans(), self.stage.name: plan.to_json()}
        text = json.dumps({"schema": 1, "stages": stages}, indent=1)
        checkpoint.write_atomically(self.job.folder / PLAN, text.encode())

    def log(self, line: Mapping[str, Any]) -> None:
        log = self.job.folder / LOG
        with checkpoint.writing(log), log.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"stage": self.stage.name, **line}, allow_nan=False) + "\n")
        if line["kind"] == "event":
            self.report(dict(line))

    def step(self, step: int, plan: Plan, seconds: float, share: float) -> None:
        now, self._share = time.monotonic(), share
        if now - self._told > 0.2 or share >= 1:
            self._told = now
            self.report({"kind": "step", "step": step, "steps": plan.steps, "seconds": seconds, "share": share})

    def curve(self) -> list[dict[str, float]]:
        """The previews' points, of earlier processes too; costs and shares are those of all stages so far."""
        names = ("share", "seconds", "flops", "examples", "step", "n", "kid_pca", "low", "high")
        points = [{name: line[name] for name in names if name in line} for line in self._lines("preview")]
        for point in points:
            point["share"] *= self.stage.share
            for name, before in self.spent.items():
                point[name] += before
        return points

    def troubled(self) -> bool:
        """Whether something went so wrong that earlier weights may be better than the last ones."""
        return any(line.get("severe") or line["what"] == "rollback" for line in self._lines("event"))

    def _lines(self, kind: str) -> list[dict[str, Any]]:
        log = self.job.folder / LOG
        if not log.exists():
            return []
        lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines() if _complete(line)]
        return [line for line in lines if line["kind"] == kind and line["stage"] == self.stage.name]

    def preview(self, state: TrainState, seconds: float) -> str | None:
        findings = self._watch(state.step)
        severe = [finding.what for finding in findings if finding.severe]
        earlier = self._lines("preview")
        over, reached = state.plan.over(state.step), earlier[-1]["share"] if earlier else 0.0
        made = self._drawn(state, over or any(reached < share <= self._share for share in SNAPSHOTS))
        found = self.space.distance(made.x, self.validation)
        distance, done = found.value, state.step + state.plan.lost
        point: dict[str, float] = {
            "step": state.step,
            "seconds": round(seconds, 3),
            "share": round(self._share, 4),
            "flops": done * state.plan.flops_per_step,
            "examples": done * self.stage.train.batch,
            "n": len(made),
        }
        if distance is not None and found.low is not None and found.high is not None:
            point |= {"kid_pca": distance, "low": found.low, "high": found.high}
            if all(distance < line.get("kid_pca", float("inf")) for line in earlier):
                self._keep(state, distance)
        self.log({"kind": "preview", **point, "severe": severe})
        for finding in findings:
            told = {"what": finding.what, "value": finding.value, "limit": finding.limit, "severe": finding.severe}
            self.log({"kind": "event", "step": state.step - 1, "seconds": point["seconds"], **told})
        folder = self.job.folder / "previews"
        with checkpoint.writing(folder):
            folder.mkdir(exist_ok=True)
            picture(made.x[:CHUNK], self.job.dataset.spec).save(folder / f"{self.index}-{state.step:08d}.png")
        self.report({"kind": "preview", "step": state.step, "seconds": seconds, "kid_pca": distance})
        last = [*(line["severe"] for line in earlier), severe][-HOPELESS:]
        return severe[0] if self._share >= 0.5 and len(last) == HOPELESS and all(last) else None

    def _drawn(self, state: TrainState, snapshot: bool) -> Generated:
        """Samples of the first average; of a snapshot as many as a hundredth of a budget in seconds allows."""
        budget, seed = self.job.budget, self.job.seed
        many = snapshot and budget.unit == "seconds"
        n = SNAPSHOT_SAMPLES if many else PREVIEW_SAMPLES
        labels = proportional_labels(self.job.dataset.train.labels, n, seed)
        limit_s = SNAPSHOT_SHARE * budget.amount if many else None
        rng = Rng(seed, "preview")
        with state.ema.applied(0):
            return generate(self.model, self.codec, n, labels, rng=rng, batch=PREVIEW_SAMPLES, limit_s=limit_s)

    def _watch(self, step: int) -> list[Finding]:
        """What the model's own detectors find now; nothing without held-out examples, which they all need.

        Where memory does not suffice they see fewer examples, and are left out where LEAST_WATCHED are too many.
        """
        dataset, rng, model = self.job.dataset, Rng(self.job.seed, "watch", step), self.model
        if not isinstance(model, HasWatch) or not len(dataset.validation):
            return []

        def watched(n: int) -> Sequence[Finding]:
            train, held_out = (
                self._batch(split.x[:n], split.labels, rng("encode", name))
                for name, split in (("train", dataset.train), ("validation", dataset.validation))
            )
            return model.watch(train, held_out, rng=rng("model").on(self.job.device))

        self.model.eval()
        try:
            with torch.no_grad():
                found, _ = halving(watched, WATCHED, LEAST_WATCHED)
        except Exception as error:
            if not out_of_memory(error):
                raise
            self.log({"kind": "event", "step": step - 1, "what": "not_watched"})
            return []
        return [replace(f, value=float(np.nan_to_num(f.value, nan=1e30, posinf=1e30, neginf=-1e30))) for f in found]

    def _batch(self, x: NDArray[Any], labels: Mapping[str, NDArray[np.int64]], rng: Rng) -> Batch:
        n, device = len(x), self.job.device
        cond = {name: torch.from_numpy(np.asarray(value[:n])).to(device) for name, value in labels.items()}
        raw = torch.from_numpy(np.asarray(x[:n])).to(device)
        return Batch(self.codec.encode(raw, rng.on(device)), torch.arange(n, device=device), cond)

    def _keep(self, state: TrainState, distance: float) -> None:
        """Store the average as the best so far."""
        fixed = frozen_parameters(self.model)
        with state.ema.applied(0):
            tensors = {name: value.clone() for name, value in self.model.state_dict().items() if name not in fixed}
        checkpoint.save(self.folder / BEST, state.step, {"model": tensors}, {"kid_pca": distance}, keep=1)


class _Follower(_Watcher):
    """Of a process that is not the first: it passes on a request to stop, and says and writes nothing."""

    def stored_plan(self) -> Plan | None:
        return None

    def plan(self, plan: Plan) -> None: ...

    def log(self, line: Mapping[str, Any]) -> None: ...

    def curve(self) -> list[dict[str, float]]:
        return []

    def preview(self, state: TrainState, seconds: float) -> str | None:
        return None


def _choose(
    job: CellJob,
    state: TrainState,
    model: Model[Any],
    codec: Codec,
    space: PCASpace,
    validation: NDArray[Any],
    limit_s: float | None,
    best: Path | None,
) -> dict[str, Any]:
    """The average whose samples are nearest to the validation split in PCA space, by one rule for every family.

    Within the time kept for it: a first chunk is timed, and as many samples are drawn as fit, for each width the same.
    In a run that went wrong the weights of the best preview, below `best`, are a candidate too.
    """
    widths = state.ema.widths
    stored = checkpoint.newest(best) if best is not None else None
    if len(widths) == 1 and stored is None:
        return {"average": 0, "width": widths[0], "kid_pca": {}, "n": 0, "best": None}
    n = CHOICE_SAMPLES
    labels = proportional_labels(job.dataset.train.labels, n, job.seed + 1)
    rng = Rng(job.seed, "choice")
    if limit_s is not None:
        first = generate(model, codec, CHUNK, {k: v[:CHUNK] for k, v in labels.items()}, rng=rng)
        fitting = int(0.8 * limit_s / max(first.seconds, 1e-6) / (len(widths) + (stored is not None))) * CHUNK
        n = max(CHUNK, min(n, fitting))

    def score() -> float:
        made = generate(model, codec, n, {k: v[:n] for k, v in labels.items()}, rng=rng)
        value = space.distance(made.x, validation).value
        return float("inf") if value is None else value

    scores: dict[str, float] = {}
    for which, width in enumerate(widths):
        with state.ema.applied(which):
            scores[f"{width:g}"] = score()
    chosen = min(range(len(widths)), key=lambda which: scores[f"{widths[which]:g}"])
    step = None
    if stored is not None:
        last = {name: value.clone() for name, value in model.state_dict().items()}
        model.load_state_dict(stored.tensors("model"), strict=False)
        scores["best"] = score()
        model.load_state_dict(last)
        step = stored.step if scores["best"] < scores[f"{widths[chosen]:g}"] else None
    return {
        "average": chosen,
        "width": widths[chosen],
        "kid_pca": {name: (None if value == float("inf") else value) for name, value in scores.items()},
        "n": n,
        "best": step,
    }


def _stored(path: Path) -> dict[str, Any] | None:
    """What an earlier process chose; choosing again could draw another number of samples and choose otherwise."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


def _claim(folder: Path, wanted: dict[str, Any], resume: bool, rescan: bool = False) -> None:
    """Make the folder this run's, or see that it is already."""
    path = folder / CONFIG
    if path.exists() and resume:
        held = json.loads(path.read_text(encoding="utf-8"))
        for key in ("recipe", "seed", "budget", "stages"):
            if _settled(held.get(key)) != _settled(wanted[key]):
                raise UsageError("cell.other_config", path=folder, what=key)
        before, now = held["data"], wanted["data"]
        if before["fingerprint"] != now["fingerprint"]:
            if not rescan or (folder / TRAINING).exists():
                raise UsageError("data.changed_run", path=folder)
            if any(before[key] != now[key] for key in ("spec", "label_names")):
                raise UsageError("data.changed_shape", path=folder)
            earlier = [*before.get("earlier", []), before["fingerprint"]]
            held = {**held, "data": {**now, "earlier": earlier}}
            checkpoint.write_atomically(path, json.dumps(held, indent=1).encode())
        return
    if path.exists():
        raise UsageError("cell.exists", path=folder)
    checkpoint.write_atomically(path, json.dumps(wanted, indent=1).encode())


def _settled(config: Any) -> Any:
    """A resolved config without what may change between the parts of a run: how its weights are spread."""
    if isinstance(config, dict):
        return {key: _settled(value) for key, value in config.items() if key != "shard"}
    return [_settled(value) for value in config] if isinstance(config, list) else config


def _trim_log(log: Path, folder: Path) -> None:
    """Drop log lines of steps that a resumed run will do again; what is before the last rollback is history."""
    found = checkpoint.newest(folder / "checkpoints")
    if not log.exists():
        return
    step = found.step if found is not None else 0
    lines = log.read_text(encoding="utf-8").splitlines()
    parsed = [(line, json.loads(line)) for line in lines if _complete(line)]
    rollbacks = [i for i, (_, told) in enumerate(parsed) if told.get("what") == "rollback"]
    history = rollbacks[-1] + 1 if rollbacks else 0
    kept = [line for i, (line, told) in enumerate(parsed) if i < history or _before(told, step)]
    checkpoint.write_atomically(log, "".join(line + "\n" for line in kept).encode())


def _before(line: Mapping[str, Any], step: int) -> bool:
    """Whether a log line belongs to the steps before `step`, or tells of what the stored plan decided once for all.

    A preview is numbered by the next step.
    """
    if line["kind"] == "plan" or line.get("what") in DECIDED:
        return True
    return bool(line["step"] < step or (line["kind"] == "preview" and line["step"] == step))


def _complete(line: str) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False  # the process was killed while writing it
    return True


def _ended_early(stability: Stability) -> str:
    """Why a finished cell stopped before its budget was used, or nothing."""
    ended = [event for event in stability.events if event["what"] == "hopeless"]
    return "; ".join(say("event.hopeless", "en", **event) for event in ended)


def _write_samples(folder: Path, made: Generated, dataset: Dataset) -> None:
    labels = {name: value.astype(np.int64) for name, value in made.labels.items()}
    with checkpoint.writing(folder):
        np.savez_compressed(folder / "samples.npz", x=made.x, allow_pickle=False, **labels)
        picture(made.x[:CHUNK] if dataset.spec.kind == "image" else made.x, dataset.spec).save(folder / "samples.png")


def _write_trace(folder: Path, model: Model[Any], codec: Codec, made: Generated, seed: int) -> None:
    if not isinstance(model, HasTrace):
        return
    n = TRACE_ITEMS if codec.raw.kind == "image" else TRACE_POINTS
    device = next(model.parameters()).device
    cond = {k: torch.from_numpy(np.resize(np.sort(v[:n]), n)).to(device) for k, v in made.labels.items()}
    with torch.no_grad():
        trace = model.trace(n, TRACE_FRAMES, cond, rng=Rng(seed, "trace", device=device))
    frames = np.stack([to_raw(codec, frame) for frame in trace.frames])
    with checkpoint.writing(folder):
        np.savez_compressed(folder / "trace.npz", frames=frames, at=np.array(trace.at), kind=np.array(trace.kind))


def _write_nearest(folder: Path, reference: Reference, made: Generated) -> None:
    pairs = nearest_pairs(reference, made.x)
    with checkpoint.writing(folder):
        np.savez_compressed(folder / "nearest.npz", allow_pickle=False, **pairs)


def _stability(
    folder: Path, metrics: Mapping[str, Estimate], reference: Reference | None, more: list[dict[str, Any]]
) -> Stability:
    """Events from the log, and whether the samples cover less than half of the modes (of real recall without modes)."""
    log = folder / LOG
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines() if _complete(line)]
    events = [line for line in lines if line["kind"] == "event"]
    skipped = sum(event["what"] == "skipped" for event in events)
    known = None if reference is None else reference.known_modes
    found = metrics.get("recall" if known is None else "modes")
    collapsed = found is not None and found.value is not None and found.value < 0.5 * (known or 0.2)
    jumps, watched = count_spikes(lines)
    return Stability(collapsed=collapsed, skipped_steps=skipped, spikes=jumps, watched=watched, events=events + more)
