"""The verbs: what `import quintet` offers, and what the command line calls."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from quintet.compare import run as comparison
from quintet.compare.advice import NEEDS, advise_by_need
from quintet.compare.cell import CellJob, evaluate_cell, train_cell
from quintet.compare.forecast import evaluation_limit_s
from quintet.core.budget import Budget
from quintet.core.errors import DataError, UsageError
from quintet.core.interrupt import graceful
from quintet.core.processes import joined, launched
from quintet.core.recipe import Recipe
from quintet.core.results import Advice, Compare, SeedResult
from quintet.data.dataset import Dataset
from quintet.data.options import DEFAULT, DataOptions, read_options
from quintet.data.report import describe_data, describe_failure, write_data_report
from quintet.data.sources import open_dataset
from quintet.recipes import files
from quintet.recipes.load import Trained
from quintet.recipes.load import load as load_cell
from quintet.recipes.registry import RECIPES, defaults, find
from quintet.report.page import write_report

TRAIN_BUDGET = "60s"

Listener = Callable[[Mapping[str, Any]], None]
Options = DataOptions | Mapping[str, Any] | Sequence[str] | None


def quiet(event: Mapping[str, Any]) -> None:
    """A listener that says nothing."""


@dataclass(frozen=True)
class Comparison:
    """A finished (or interrupted) comparison.

    Attributes:
        folder: with compare.json, report.html and the cells.
        result: what compare.json holds.
    """

    folder: Path
    result: Compare

    @property
    def report(self) -> Path:
        return self.folder / "report.html"

    @property
    def best(self) -> Trained:
        """The recipe that ranks first in quality, its best seed on validation data."""
        return load(f"{self.folder}:best")

    def __getitem__(self, recipe: str) -> Trained:
        """A recipe's best seed on validation data."""
        return load(f"{self.folder}:{recipe}")


def plan_compare(
    data: Any = None,
    recipes: Sequence[str | Recipe] | None = None,
    *,
    config: str | Path | None = None,
    options: Options = None,
    budget: str | Budget | None = None,
    within: str | Budget | None = None,
    seeds: int | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    threads: int | None = None,
    set: Sequence[str] = (),
) -> comparison.Comparison:
    """Settle what `compare` would do, without doing it; see there."""
    if launched() > 1:
        raise UsageError("processes.compare", count=launched())
    file = read_config(config)
    dataset = _open(data, options, file)
    if budget is None and within is None:
        budget, within = file.budget, file.within
    seeds = file.seeds if seeds is None else seeds
    chosen = [_find(item, file) for item in (recipes or list(file.recipes) or defaults(dataset.spec))]
    folder = Path(out) if out is not None else Path("runs") / slug(dataset.name)
    return comparison.plan(
        folder,
        dataset,
        chosen,
        budget=Budget.parse(budget) if budget is not None else None,
        within=Budget.parse(within) if within is not None else None,
        seeds=seeds,
        device=pick_device(device),
        threads=threads,
        overrides=overrides(set),
    )


def compare(
    data: Any = None,
    recipes: Sequence[str | Recipe] | None = None,
    *,
    config: str | Path | None = None,
    options: Options = None,
    budget: str | Budget | None = None,
    within: str | Budget | None = None,
    seeds: int | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    threads: int | None = None,
    set: Sequence[str] = (),
    listen: Listener = quiet,
) -> Comparison:
    """Train a recipe of every family for the same budget, judge them, and write the report.

    Args:
        data: whatever `open_dataset` opens: "digits", a folder of images, a file, arrays, an opened dataset.
        config: a file that `write_config` made; what is given here beside it wins.
        options: how to read it: DataOptions, fields, or pairs such as "size=64".
        recipes: names, or recipes of your own; by default one of each family.
        budget: what one model trains for ("30s", "5000steps", ...).
        within: the time of the whole call instead, by default 20 minutes.
        seeds: trainings of each recipe; by default 3 if the time allows.
        out: folder, by default runs/<data>. What is finished there is not done again.
        device: "auto", "cpu" or "cuda".
        threads: torch threads of a cell, by default the machine's cores, at most 8.
        set: config overrides such as "train.batch=128", for every recipe.
        listen: told about progress.
    Raises: QuintetError with a message for the user; Interrupted after Ctrl-C, with everything saved.
    """
    planned = plan_compare(
        data, recipes, config=config, options=options, budget=budget, within=within, seeds=seeds, out=out,
        device=device, threads=threads, set=set,
    )  # fmt: skip
    result = planned.run(listen, rewrite)
    return Comparison(planned.folder, result)


def rewrite(folder: Path) -> None:
    """Write the report of a comparison's folder."""
    write_report(folder)


def train(
    recipe: str | Recipe,
    data: Any = None,
    *,
    config: str | Path | None = None,
    options: Options = None,
    budget: str | Budget | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    strict_resume: bool = False,
    device: str = "auto",
    threads: int | None = None,
    set: Sequence[str] = (),
    listen: Listener = quiet,
) -> Trained:
    """Train one model; started by torchrun, in all its processes together.

    Args:
        recipe: a name or a recipe.
        data, config, options: as for `compare`.
        budget: with its unit, by default 60s.
        seed: of everything random.
        out: the run's folder, by default runs/<data>-<recipe>-s<seed>.
        resume: continue what is there, from its newest undamaged checkpoint (from step 0 if there is none).
        strict_resume: the same, but refuse where the run would not continue bit for bit (another number of processes
            or threads, another kind of device or version of torch).
        device, threads, set, listen: as for `compare`.
    Raises: Interrupted after Ctrl-C, with everything saved; DivergedError; BusyError.
    """
    job = train_job(
        recipe, data, config=config, options=options, budget=budget, seed=seed, out=out, device=device, threads=threads,
        set=set,
    )  # fmt: skip
    before = torch.get_num_threads()
    try:
        with graceful() as stop, joined(job.device) as processes:
            train_cell(job, listen, stop, resume=resume or strict_resume, strict=strict_resume, processes=processes)
            if processes.first:
                evaluate_cell(job, None, 64, evaluation_limit_s(job.budget), listen)
            processes.wait()
    finally:
        torch.set_num_threads(before)
    return load_cell(job.folder, job.device)


def train_job(
    recipe: str | Recipe,
    data: Any = None,
    *,
    config: str | Path | None = None,
    options: Options = None,
    budget: str | Budget | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    device: str = "auto",
    threads: int | None = None,
    set: Sequence[str] = (),
) -> CellJob:
    """Settle what `train` would do; see there."""
    file = read_config(config)
    chosen = _find(recipe, file)
    dataset = _open(data, options, file)
    budget = budget or file.budget or TRAIN_BUDGET
    folder = Path(out) if out is not None else Path("runs") / f"{slug(dataset.name)}-{chosen.name}-s{seed}"
    return CellJob(
        folder,
        chosen,
        dataset,
        Budget.parse(budget),
        seed,
        overrides(set),
        pick_device(device),
        threads or comparison.default_threads(),
    )


def read_config(path: str | Path | None) -> files.ConfigFile:
    """What a config file says; of none, nothing.

    Raises: UsageError with the line of whatever is wrong.
    """
    return files.NOTHING if path is None else files.read(Path(path))


def write_config(
    data: Any,
    recipes: Sequence[str | Recipe] | None = None,
    *,
    options: Options = None,
    budget: str | Budget = TRAIN_BUDGET,
    seeds: int | None = None,
    lang: str = "en",
) -> str:
    """A commented config file for these data: every field of every recipe, as `compare` and `train` would have them.

    Args:
        data, options: as for `compare`.
        recipes: by default one of each family that fits.
        budget: of one model; sizes of networks follow it.
        seeds: of each recipe, where the file is to say it.
        lang: of its head.
    """
    dataset = open_dataset(data, options)
    chosen = [item if isinstance(item, Recipe) else find(item) for item in (recipes or defaults(dataset.spec))]
    fitting = [recipe for recipe in chosen if recipe.unfit(dataset.spec) is None]
    read = read_options(options)
    given = {f.name: getattr(read, f.name) for f in fields(read) if getattr(read, f.name) != getattr(DEFAULT, f.name)}
    return files.write(str(data), dataset.spec, fitting, Budget.parse(budget), options=given, seeds=seeds, lang=lang)


def _find(recipe: str | Recipe, file: files.ConfigFile) -> Recipe:
    if isinstance(recipe, Recipe):
        return recipe
    return file.find(recipe) if file.recipes else find(recipe)


def _open(data: Any, options: Options, file: files.ConfigFile) -> Dataset:
    if data is None:
        data = file.data
    if data is None:
        raise UsageError("cli.no_data")
    return open_dataset(data, file.options if options is None else options)


def sample(run: str | Path, n: int = 16, **choices: Any) -> NDArray[Any]:
    """Draw n raw samples from a run; see `Trained.sample` for the choices."""
    return load(run).sample(n, **choices)


def load(run: str | Path, device: str = "auto") -> Trained:
    """Load a trained model.

    Args:
        run: a cell's folder, "runs/x:gan" (the best seed on validation data), "runs/x:gan-s1", "runs/x:best".
        device: where the model goes.
    Raises: UsageError (exit 2) if there is no such run.
    """
    return load_cell(find_run(run), pick_device(device))


def find_run(run: str | Path) -> Path:
    """The cell's folder that a run's name means."""
    text = str(run)
    if Path(text).exists() or ":" not in text:
        return Path(text)
    place, _, which = text.rpartition(":")
    result = comparison.read(Path(place))
    done = {row.name: [s for s in row.seeds if s.status == "done"] for row in result.recipes}
    known = ", ".join([*(name for name, seeds in done.items() if seeds), "best"])
    if which == "best":
        ranked = [name for name in result.ranking.get("quality", []) if done.get(name)]
        which = ranked[0] if ranked else which
    if done.get(which):
        return Path(place) / min(done[which], key=_validation_distance).run
    for seeds in done.values():
        for cell in seeds:
            if Path(cell.run).name == which:
                return Path(place) / cell.run
    raise UsageError("load.no_such_cell", path=place, which=which, known=known)


def advise(where: str | Path | None = None, need: Sequence[str] = ()) -> list[Advice]:
    """Which family for which need: from a comparison's measurements, or from the literature where there are none.

    Args:
        where: a comparison's folder; None for the literature alone.
        need: some of quality, diversity, speed, likelihood, stability, memory; all by default.
    """
    unknown = [name for name in need if name not in NEEDS]
    if unknown:
        raise UsageError("advise.need", need=unknown[0], known=", ".join(NEEDS))
    return advise_by_need(comparison.read(Path(where)) if where is not None else None, tuple(need) or NEEDS)


def check(data: Any, *, options: Options = None, out: str | Path | None = None) -> dict[str, Any]:
    """Look at data as every command would read them.

    Args:
        data, options: as for `compare`.
        out: where to write the report too, such as data_report.json.
    Returns: the report (see `quintet.data.report`); "usable" is False where a command would stop, "problem" says why.
    """
    try:
        report = describe_data(open_dataset(data, options))
    except DataError as error:
        report = describe_failure(str(data) if isinstance(data, (str, Path)) else type(data).__name__, error)
    if out is not None:
        write_data_report(report, Path(out))
    return report


def recipes() -> tuple[Recipe, ...]:
    """All registered recipes."""
    return tuple(RECIPES.values())


def demo(out: str | Path = "runs/demo", *, budget: str = "12s", seeds: int = 2, listen: Listener = quiet) -> Comparison:
    """`compare` on the embedded digits: minutes on a laptop, no network."""
    return compare("digits", budget=budget, seeds=seeds, out=out, listen=listen)


def pick_device(device: str) -> str:
    """ "auto" to what there is.

    Raises: UsageError for an unknown device, or a GPU that is not there.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device not in ("cpu", "cuda"):
        raise UsageError("device.unknown", device=device)
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("device.no_cuda")
    return device


def overrides(pairs: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Read "train.batch=128" pairs.

    Raises: UsageError for a pair without "=".
    """
    for pair in pairs:
        if "=" not in pair:
            raise UsageError("config.no_equals", text=pair)
    return tuple((pair.partition("=")[0], pair.partition("=")[2]) for pair in pairs)


def slug(name: str) -> str:
    """A data set's name as a folder name."""
    text = re.sub(r"[^\w.-]+", "-", Path(name).stem if "/" in name else name).strip("-.")
    return text or "data"


def _validation_distance(cell: SeedResult) -> float:
    values = [v for v in cell.choice.get("kid_pca", {}).values() if v is not None]
    return min(values) if values else float(np.inf)


__all__ = [
    "Comparison",
    "Dataset",
    "advise",
    "check",
    "compare",
    "demo",
    "load",
    "open_dataset",
    "recipes",
    "sample",
    "train",
    "write_config",
]
