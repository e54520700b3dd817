"""The verbs: what `import quintet` offers, and what the command line calls."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from quintet.compare import articles as articles_of
from quintet.compare import run as comparison
from quintet.compare.advice import NEEDS
from quintet.compare.cell import CellJob, evaluate_cell, train_cell
from quintet.compare.constraints import advise_within, read_limits
from quintet.compare.forecast import evaluation_limit_s
from quintet.compare.judging import FILE as EVALUATION
from quintet.compare.judging import Judged, Judging, check_run, is_run, named
from quintet.compare.likelihood import identify
from quintet.compare.reference import samples_for
from quintet.core.articles import Articles
from quintet.core.budget import Budget
from quintet.core.checkpoint import write_atomically
from quintet.core.config import Config
from quintet.core.errors import DataError, UsageError
from quintet.core.interrupt import graceful
from quintet.core.processes import joined, launched
from quintet.core.recipe import Recipe
from quintet.core.results import Advice, Compare, SeedResult
from quintet.core.threads import using_threads
from quintet.data.begun import as_begun
from quintet.data.dataset import Dataset
from quintet.data.given import RANGES, Values, read_given
from quintet.data.options import DEFAULT, DataOptions, read_options
from quintet.data.report import describe_data, describe_failure, write_data_report
from quintet.data.sources import open_dataset
from quintet.recipes import files
from quintet.recipes.load import CONFIG, Trained
from quintet.recipes.load import load as load_cell
from quintet.recipes.registry import RECIPES, add_kinds, defaults, find
from quintet.report.articles import write_articles
from quintet.report.page import write_report
from quintet.tasks.compress import PARTS, Compressed, read_head
from quintet.tasks.compress import compress as compress_examples
from quintet.tasks.compress import decompress as decompress_examples
from quintet.tasks.generate import BATCH

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
    sensitivity: bool | None = None,
    judges: Mapping[str, str | Path] | None = None,
) -> comparison.Comparison:
    """Settle what `compare` would do, without doing it; see there."""
    if launched() > 1:
        raise UsageError("processes.compare", count=launched())
    file = read_config(config)
    dataset = _open(data, options, file)
    if budget is None and within is None:
        budget, within = file.budget, file.within
    seeds = file.seeds if seeds is None else seeds
    folder = Path(out) if out is not None else Path("runs") / slug(dataset.name)
    dataset = as_begun(dataset, folder / comparison.COMPARE)
    chosen = [_find(item, file) for item in (recipes or list(file.recipes) or defaults(dataset.spec))]
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
        sensitivity=sensitivity,
        judges={name: Path(path) for name, path in (judges or {}).items()},
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
    sensitivity: bool | None = None,
    judges: Mapping[str, str | Path] | None = None,
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
        sensitivity: whether each recipe is also trained shortly at a third and three times its learning rates, for
            the stability score; by default where the budget is a time that leaves enough for it.
        judges: "inception" or "dinov2" -> a safetensors file with its weights, for FID and FD-DINOv2 by the published
            protocols; on one core a thousand images take two minutes with Inception, half an hour with DINOv2.
        listen: told about progress.
    Raises: QuintetError with a message for the user; Interrupted after Ctrl-C, with everything saved.
    """
    planned = plan_compare(
        data, recipes, config=config, options=options, budget=budget, within=within, seeds=seeds, out=out,
        device=device, threads=threads, set=set, sensitivity=sensitivity, judges=judges,
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
    rescan: bool = False,
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
        rescan: continue what is there with images that were added, removed or replaced since, not with those it was
            begun with.
        device, threads, set, listen: as for `compare`.
    Raises: Interrupted after Ctrl-C, with everything saved; DivergedError; BusyError.
    """
    job = train_job(
        recipe, data, config=config, options=options, budget=budget, seed=seed, out=out, rescan=rescan, device=device,
        threads=threads, set=set,
    )  # fmt: skip
    with using_threads(torch.get_num_threads()), graceful() as stop, joined(job.device) as processes:
        train_cell(
            job, listen, stop, resume=resume or strict_resume or rescan, strict=strict_resume, rescan=rescan,
            processes=processes,
        )  # fmt: skip
        if processes.first:
            evaluate_cell(job, None, 64, evaluation_limit_s(job.budget), listen)
        processes.wait()
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
    rescan: bool = False,
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
    dataset = dataset if rescan else as_begun(dataset, folder / CONFIG)
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


def load(run: str | Path, device: str = "auto", *, kinds: Sequence[type[Config]] = ()) -> Trained:
    """Load a trained model.

    Args:
        run: a cell's folder, "runs/x:gan" (the best seed on validation data), "runs/x:gan-s1", "runs/x:best".
        device: where the model goes.
        kinds: config classes of your own that the run holds, where this process has not trained it.
    Raises: UsageError (exit 2) if there is no such run.
    """
    add_kinds(kinds)
    return load_cell(find_run(run), pick_device(device))


def compress(
    run: str | Path,
    data: Any,
    out: str | Path | None = None,
    *,
    part: str = "all",
    count: int | None = None,
    options: Options = None,
) -> Compressed:
    """Compress data without loss by the probabilities of a trained model, on the CPU.

    Args:
        run: as for `load`; an autoregressive model (gpt, lstm) over levels or tokens.
        data, options: as for `compare`, of the shape, levels and classes that the model was trained on.
        out: the file to write, if any.
        part: "train", "validation", "judge", "test", or "all" of them in that order.
        count: only the first so many of each part.
    Raises: UsageError where the model or the data do not suit.
    """
    trained, dataset = load(run, "cpu"), open_dataset(data, options)
    if part != "all" and part not in PARTS:
        raise UsageError("compress.part", part=part)
    spec, known = dataset.spec, trained.spec
    if (spec.shape, spec.levels) != (known.shape, known.levels):
        raise UsageError(
            "compress.other_data", data=dataset.name, shape=spec.shape, levels=spec.levels, known_shape=known.shape,
            known_levels=known.levels,
        )  # fmt: skip
    if spec.conditions and (spec.conditions, dict(dataset.names)) != (known.conditions, dict(trained.names)):
        raise UsageError("compress.names", data=dataset.name)
    splits = [getattr(dataset, name) for name in PARTS]
    sizes = [len(split.x[:count]) if part in ("all", name) else 0 for name, split in zip(PARTS, splits, strict=True)]
    taken = list(zip(splits, sizes, strict=True))
    made = compress_examples(
        trained.model,
        trained.codec,
        np.concatenate([split.x[:size] for split, size in taken]),
        {name: np.concatenate([split.labels[name][:size] for split, size in taken]) for name in spec.conditions},
        identity=identify(trained),
        parts=(sizes[0], sizes[1], sizes[2], sizes[3]),
        batch=BATCH,
        run=str(run),
    )
    if out is not None:
        write_atomically(Path(out), made.data)
    return made


def decompress(
    file: str | Path, out: str | Path | None = None, *, run: str | Path | None = None
) -> dict[str, NDArray[Any]]:
    """Give back what `compress` took, bit for bit.

    Args:
        file: that `compress` wrote.
        out: an .npz to write, if any.
        run: the model; by default where it was when the file was written.
    Returns: "x" (N, *shape), the labels by their names, and "parts", how many are of train, validation, judge, test.
    Raises: UsageError for the wrong model; DataError for a damaged file, or where the result differs from what went in.
    """
    data = Path(file).read_bytes()
    head, _ = read_head(data)
    if run is None and not find_run(head.run).exists():
        raise UsageError("compress.no_run", run=head.run)
    trained = load(head.run if run is None else run, "cpu")
    x, labels = decompress_examples(data, trained.model, trained.codec, identity=identify(trained))
    found = {"x": x, **labels, "parts": np.array(head.parts)}
    if out is not None:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(out, allow_pickle=False, **found)
    return found


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


def advise(
    where: str | Path | None = None,
    need: Sequence[str] = (),
    *,
    max_latency: str | float | None = None,
    max_memory: str | float | None = None,
    needs: Sequence[str] = (),
    data_size: int | None = None,
) -> list[Advice]:
    """Which recipe for which need: from a comparison's measurements, or from the literature where there are none.

    Args:
        where: a comparison's folder; None for the literature alone.
        need: what to rank by: some of quality, diversity, speed, likelihood, stability, memory; all by default.
        max_latency: time of one sample by itself, such as "50ms" or seconds; slower recipes are left out.
        max_memory: growth of memory in training and evaluation, such as "500MB" or bytes.
        needs: what the model must be able to do: likelihood, exact-likelihood, latent, inpainting, compression.
        data_size: training examples that there will be.
    Raises: UsageError for an unknown need or a limit that cannot be read.
    """
    unknown = [name for name in need if name not in NEEDS]
    if unknown:
        raise UsageError("advise.need", need=unknown[0], known=", ".join(NEEDS))
    limits = read_limits(max_latency, max_memory, needs, data_size)
    result = comparison.read(Path(where)) if where is not None else None
    return advise_within(result, tuple(need) or NEEDS, limits, str(where or ""))


def plan_articles(
    out: str | Path = "runs/articles",
    data: Sequence[str] = (),
    *,
    seeds: int = articles_of.SEEDS,
    budget: str | None = None,
    device: str = "auto",
    threads: int | None = None,
) -> list[comparison.Comparison]:
    """Settle what `articles` would do, without doing it; see there."""
    device = pick_device(device)
    return [
        articles_of.plan_one(
            Path(out), open_dataset(name), budget=budget, seeds=seeds, device=device, threads=threads
        )
        for name in data or articles_of.BUDGETS
    ]  # fmt: skip


def articles(
    out: str | Path = "runs/articles",
    data: Sequence[str] = (),
    *,
    seeds: int = articles_of.SEEDS,
    budget: str | None = None,
    device: str = "auto",
    threads: int | None = None,
    listen: Listener = quiet,
) -> Articles:
    """Hold the sentences of five articles on generative models against models of all families.

    Args:
        out: folder of articles.json, articles.html, their Markdown and one comparison a data set. What is finished
            there is not done again.
        data: data sets, by default digits and two toys.
        seeds: trainings of each recipe; an exact test needs six.
        budget: of one model on every data set, by default 10s on digits, 5s on the toys, 3m on others.
        device, threads, listen: as for `compare`.
    Raises: Interrupted after Ctrl-C, with everything saved.
    """
    planned = plan_articles(out, data, seeds=seeds, budget=budget, device=device, threads=threads)
    names = ",".join(data or articles_of.BUDGETS)
    command = f"quintet articles --data {names} --seeds {seeds}" + (f" --budget {budget}" if budget else "")
    settled = articles_of.settle(Path(out), planned, command, listen, rewrite)
    write_articles(settled, Path(out))
    return settled


def plan_evaluate(
    sources: Any,
    data: Any,
    *,
    options: Options = None,
    labels: Any = None,
    values: Values = "auto",
    resize: bool = False,
    samples: int | None = None,
    judges: Mapping[str, str | Path] | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    threads: int | None = None,
) -> Judging:
    """Settle what `evaluate` would do, after reading all samples; see there."""
    dataset = open_dataset(data, options)
    if not len(dataset.test):
        raise DataError("compare.too_few", data=dataset.name, count=len(dataset.train))
    if values not in ("auto", *RANGES):
        raise UsageError("given.values", text=values)
    several = sources if isinstance(sources, list) else [sources]
    labelled = not isinstance(labels, str) or labels != "none"
    if labels is not None and labelled and len(several) > 1:
        raise UsageError("evaluate.one_source")
    read = read_options(options)
    look = replace(read, size="auto", levels=256) if dataset.spec.kind == "image" else read
    found = [_source(each, dataset, labels=labels, values=values, resize=resize, options=look) for each in several]
    names = named([source.name for source in found])
    return Judging(
        Path(out) if out is not None else Path("runs") / f"{slug(dataset.name)}-evaluation",
        dataset,
        [replace(source, name=name) for source, name in zip(found, names, strict=True)],
        samples or samples_for(dataset),
        pick_device(device),
        threads or comparison.default_threads(),
        {name: Path(path) for name, path in (judges or {}).items()},
    )


def evaluate(
    sources: Any,
    data: Any,
    *,
    options: Options = None,
    labels: Any = None,
    values: Values = "auto",
    resize: bool = False,
    samples: int | None = None,
    judges: Mapping[str, str | Path] | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    threads: int | None = None,
    listen: Listener = quiet,
) -> Compare:
    """Judge samples from anywhere as a comparison judges its own.

    Args:
        sources: one, or a list of them: a run ("runs/x:gan" or its folder); a folder or archive of images (sub-folders
            are labels); a .npz, .npy, .csv, .tsv or .parquet file; an array; a tuple (x, labels).
        data: the real data, as for `compare`.
        options: how to read them; of images also the policy of `resize`.
        labels: of a single source, one a sample, or a file with them; "none" leaves labels out.
        values: how numbers are read: "own" (the data's units), "unit" (0 to 1), "signed" (-1 to 1), "bytes" (0 to 255);
            by default by a rule that the notes tell.
        resize: bring images of another size to the data's own; without it another size is an error.
        samples: drawn from a run, and at most taken of a source; by default as many as `compare` takes.
        judges, device, threads, listen: as for `compare`.
        out: folder of evaluation.json, report.html and the reference, which later calls use again; by default
            runs/<data>-evaluation.
    Returns: one row a source, with floor and baselines: the schema of compare.json.
    Raises: DataError for samples that do not match the data, saying what to do.
    """
    planned = plan_evaluate(
        sources, data, options=options, labels=labels, values=values, resize=resize, samples=samples, judges=judges,
        out=out, device=device, threads=threads,
    )  # fmt: skip
    return planned.run(listen, rewrite_evaluation)


def rewrite_evaluation(folder: Path) -> None:
    """Write the report of an evaluation's folder."""
    write_report(folder, EVALUATION)


def _source(source: Any, dataset: Dataset, **how: Any) -> Judged:
    """A run or samples, read."""
    if isinstance(source, (str, Path)):
        folder = find_run(source)
        if is_run(folder):
            recipe = check_run(folder, dataset)
            return Judged(recipe if ":" in str(source) else folder.name, run=folder)
    given = read_given(source, dataset, **how)
    return Judged(given.name, given=given, notes=given.notes)


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
    "articles",
    "check",
    "compare",
    "compress",
    "decompress",
    "demo",
    "evaluate",
    "load",
    "open_dataset",
    "recipes",
    "sample",
    "train",
    "write_config",
]
