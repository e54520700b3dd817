"""What each command does: call the API, say what happened."""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from quintet import api
from quintet._version import __version__
from quintet.cli.data import check_tables
from quintet.cli.main import dump
from quintet.cli.progress import Progress
from quintet.compare.cell import build
from quintet.compare.executor import one_thread
from quintet.core.budget import Budget
from quintet.core.errors import DataError, UsageError
from quintet.core.messages import say
from quintet.core.model import Model
from quintet.core.processes import leads
from quintet.core.recipe import Stage
from quintet.core.results import LIKELIHOOD_SIGNS, Baseline, Compare, Estimate, Note, RecipeResult, likelihood_kind
from quintet.core.rng import CHUNK
from quintet.data.dataset import Dataset
from quintet.metrics.judges.weights import parse_judges
from quintet.recipes.load import Trained
from quintet.recipes.registry import RECIPES
from quintet.tasks.pictures import picture

SHOWN = ("kid", "c2st", "coverage", "cas", "memorisation", "bits_per_dim")
BYTES_PER_PARAMETER = 32  # float32: weights, gradient, two moments, two averages, a checkpoint's copy


def compare(
    data: str | None,
    names: list[str],
    budget: str | None,
    within: str | None,
    seeds: int | None,
    out: Path | None,
    device: str,
    threads: int | None,
    changes: list[str],
    quiet: bool,
    as_json: bool,
    dry_run: bool,
    lang: str,
    *,
    demo: bool = False,
    options: list[str] | None = None,
    config: Path | None = None,
    sensitivity: bool | None = None,
    judges: list[str] | None = None,
) -> None:
    """`quintet compare` and `quintet demo`."""
    planned = api.plan_compare(
        data,
        names or None,
        config=config,
        options=options,
        budget=budget,
        within=within,
        seeds=seeds,
        out=out,
        device=device,
        threads=threads,
        set=changes,
        sensitivity=sensitivity,
        judges=parse_judges(judges or []),
    )
    said = Console(stderr=True, quiet=quiet or as_json)
    forecast = planned.forecast()
    _notes(said, planned.dataset, lang)
    table = Table(title=say("cli.forecast", lang), title_justify="left")
    for head in ("recipe", "family", "parameters", "memory"):
        table.add_column(say(f"cli.{head}", lang), justify="right" if head in ("parameters", "memory") else "left")
    with one_thread():
        rows = [
            _cost(recipe.name, recipe.family, job.stages(), planned.dataset)
            for recipe, job in zip(planned.recipes, planned.jobs(), strict=False)
        ]
    for row in rows:
        table.add_row(row["recipe"], row["family"], f"{row['parameters']:,}", f"{row['memory_mb']:,.0f} MB")
    said.print(table)
    for name, why in planned.unfit.items():
        said.print(say("cli.left_out", lang, recipe=name, why=why))
    total = say("cli.unknown_time", lang) if forecast.seconds is None else clock(forecast.seconds)
    said.print(
        say("cli.plan", lang, cells=forecast.cells, recipes=len(planned.recipes), seeds=forecast.seeds,
            budget=forecast.budget, total=total, out=planned.folder)
    )  # fmt: skip
    short = planned.trials()
    if short:
        said.print(say("cli.trials", lang, count=len(short), budget=short[0][0].budget))
    if dry_run:
        if as_json:
            dump({"cells": forecast.cells, "seeds": forecast.seeds, "budget": str(forecast.budget),
                  "seconds": forecast.seconds, "recipes": rows, "unfit": dict(planned.unfit)})  # fmt: skip
        return
    with Progress(said, forecast, lang) as progress:
        result = planned.run(progress, api.rewrite)
    if as_json:
        dump(result.model_dump(mode="json", by_alias=True))
        return
    show = Console(quiet=quiet)
    show.print(leaderboard(result, lang))
    for advice in result.advice:
        show.print("• " + (advice.zh if lang == "zh" else advice.en))
    show.print(say("cli.report", lang, path=planned.folder / "report.html"))
    best = next(iter(result.ranking.get("quality", [])), planned.recipes[0].name)
    show.print(say("cli.next_demo" if demo else "cli.next", lang, out=planned.folder, best=best), highlight=False)


def train(
    recipe: str,
    data: str | None,
    budget: str | None,
    seed: int,
    out: Path | None,
    resume: bool,
    device: str,
    threads: int | None,
    changes: list[str],
    quiet: bool,
    as_json: bool,
    dry_run: bool,
    lang: str,
    *,
    options: list[str] | None = None,
    config: Path | None = None,
    strict: bool = False,
    rescan: bool = False,
) -> None:
    """`quintet train`; of several processes the first one speaks."""
    job = api.train_job(
        recipe,
        data,
        config=config,
        options=options,
        budget=budget,
        seed=seed,
        out=out,
        rescan=rescan,
        device=device,
        threads=threads,
        set=changes,
    )
    said = Console(stderr=True, quiet=quiet or as_json or not leads())
    _notes(said, job.dataset, lang)
    cost = _cost(job.recipe.name, job.recipe.family, job.stages(), job.dataset)
    said.print(
        say("cli.train_plan", lang, recipe=recipe, data=job.dataset.name, budget=job.budget, out=job.folder,
            parameters=f"{cost['parameters']:,}", memory=f"{cost['memory_mb']:,.0f}")
    )  # fmt: skip
    if dry_run:
        if as_json and leads():
            dump({**cost, "budget": str(job.budget), "out": str(job.folder)})
        return
    resume = resume or strict or rescan
    if resume and not (job.folder / "stages").exists():
        said.print(say("cli.resume_from_start", lang, path=job.folder))
    with Progress(said, None, lang) as progress:
        trained = api.train(
            job.recipe, job.dataset, budget=job.budget, seed=seed, out=job.folder, resume=resume,
            strict_resume=strict, rescan=rescan, device=device, threads=threads, set=changes, listen=progress,
        )  # fmt: skip
    if not leads():
        return
    if as_json:
        dump({"run": str(job.folder), "recipe": trained.recipe, "capabilities": list(trained.capabilities)})
        return
    Console(quiet=quiet).print(say("cli.trained", lang, path=job.folder), highlight=False)


def sample(
    run: str,
    n: int,
    label: str | None,
    seed: int,
    out: Path | None,
    device: str,
    extra: list[str],
    quiet: bool,
    as_json: bool,
    dry_run: bool,
    lang: str,
) -> None:
    """`quintet sample`: a folder gets pictures and samples.npz; a file ending in .png, .npz, .npy or .csv just that."""
    trained = api.load(run, device)
    choices = _choices(extra)
    trained.sampling(choices)  # a wrong field is an error before anything is drawn
    target = out or Path(f"{trained.recipe}-samples")
    if dry_run:
        steps = trained.model.sequential_steps(trained.sampling(choices))
        dump({"recipe": trained.recipe, "n": n, "sequential_steps": steps, "out": str(target)})
        return
    x = trained.sample(n, label=label, seed=seed, **choices)
    written = _write(x, trained, target)
    if as_json:
        dump({"recipe": trained.recipe, "n": n, "shape": list(x.shape), "files": [str(path) for path in written]})
        return
    Console(quiet=quiet).print(say("cli.sampled", lang, n=n, path=target), highlight=False)


def advise(
    where: Path | None,
    need: list[str],
    needs: list[str],
    max_latency: str | None,
    max_memory: str | None,
    data_size: int | None,
    as_json: bool,
    lang: str,
) -> None:
    """`quintet advise`."""
    found = api.advise(
        where, need, max_latency=max_latency, max_memory=max_memory, needs=needs, data_size=data_size
    )  # fmt: skip
    if as_json:
        dump([advice.model_dump(mode="json") for advice in found])
        return
    show = Console()
    if where is None:
        show.print(say("cli.literature", lang))
    for advice in found:
        verdict = say(f"verdict.{advice.verdict.replace(' ', '_')}", lang)
        text = advice.zh if lang == "zh" else advice.en
        show.print(f"[bold]{say(f'need.{advice.need}', lang)}[/bold] ({verdict}): {text}", highlight=False)
        for part in ("reasons", "doubts", "further"):
            _bullets(show, say(f"advise.{part}", lang), getattr(advice, part), lang)
    _bullets(show, say("advise.left_out", lang), found[0].left_out, lang)  # the same for every need


def _bullets(show: Console, title: str, notes: Sequence[Note], lang: str) -> None:
    """Sentences below a title, indented; nothing without sentences."""
    if notes:
        show.print(f"  {title}", highlight=False)
    for each in notes:
        show.print(Padding(f"- {each.zh if lang == 'zh' else each.en}", (0, 0, 0, 4)), highlight=False, markup=False)


def config(
    data: str,
    names: list[str],
    every: bool,
    budget: str,
    seeds: int | None,
    options: list[str] | None,
    out: Path | None,
    lang: str,
) -> None:
    """`quintet config`."""
    chosen = list(RECIPES) if every else names or None
    text = api.write_config(data, chosen, options=options, budget=budget, seeds=seeds, lang=lang)
    if out is None:
        print(text, end="")
        return
    if out.exists():
        raise UsageError("file.exists", path=out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    Console(stderr=True).print(say("file.written", lang, path=out), highlight=False)


def recipes(data: str | None, as_json: bool, lang: str) -> None:
    """`quintet recipes`."""
    dataset = api.open_dataset(data) if data is not None else None
    rows: list[dict[str, Any]] = []
    for recipe in RECIPES.values():
        row: dict[str, Any] = {"recipe": recipe.name, "family": recipe.family, "summary": dict(recipe.summary)}
        if dataset is not None:
            why = recipe.unfit(dataset.spec)
            row["unfit"] = why
            if why is None:
                row |= _cost(recipe.name, recipe.family, recipe.stages(dataset.spec, Budget("seconds", 60)), dataset)
        rows.append(row)
    if as_json:
        dump(rows)
        return
    table, show = Table(box=box.SIMPLE_HEAD, padding=0), Console()
    for head in ("recipe", "family"):
        table.add_column(say(f"cli.{head}", lang), no_wrap=True)
    if dataset is not None:
        table.add_column(say("cli.parameters", lang), no_wrap=True, justify="right")
    table.add_column(say("cli.summary", lang), overflow="fold")
    for row in rows:
        size = [] if dataset is None else [f"{row['parameters']:,}" if row["unfit"] is None else "–"]
        table.add_row(row["recipe"], row["family"], *size, row["summary"][lang])
    show.print(table)
    for row in rows:
        if row.get("unfit"):
            show.print(say("cli.unfit", lang, recipe=row["recipe"], why=row["unfit"]), style="dim", highlight=False)


def check(data: str, options: list[str] | None, out: Path, quiet: bool, as_json: bool, lang: str) -> int:
    """`quintet check`: what was found, and data_report.json. Returns the exit code, 3 for data that cannot be used."""
    report = api.check(data, options=options, out=out)
    if as_json:
        dump(report)
    elif not quiet:
        show = Console()
        for part in check_tables(report, lang):
            show.print(part)
        show.print(say("cli.check_written", lang, path=out), highlight=False, markup=False)
    if not report["usable"]:
        if not as_json:
            print(report["problem"][lang], file=sys.stderr)
        return DataError.exit_code
    return 0


def doctor(as_json: bool, lang: str) -> int:
    """`quintet doctor`: versions, device, threads, disk, and what is wrong. Returns the exit code."""
    import os

    import torch

    free = shutil.disk_usage(Path.cwd()).free
    facts = {
        "quintet": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "torch": torch.__version__,
        "numpy": np.__version__,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "free_disk_gb": round(free / 1e9, 1),
        "writable": os.access(Path.cwd(), os.W_OK),
    }
    problems = []
    if tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2]) < (2, 10):
        problems.append("doctor.torch_old")
    if free < 1e9:
        problems.append("doctor.disk_low")
    if not facts["writable"]:
        problems.append("doctor.not_writable")
    if as_json:
        dump({**facts, "problems": problems})
        return 4 if problems else 0
    show = Console()
    table = Table(show_header=False)
    for name, value in facts.items():
        table.add_row(say(f"doctor.{name}", lang), say("doctor.none", lang) if value is None else str(value))
    show.print(table)
    for key in problems:
        show.print(f"[red]✗[/red] {say(key, lang)}")
    if not problems:
        show.print(f"[green]✓[/green] {say('doctor.fine', lang)}")
    return 4 if problems else 0


def leaderboard(result: Compare, lang: str) -> Table:
    """The comparison as a table for the terminal."""
    title = say("cli.leaderboard", lang, data=result.data["name"], budget=result.budget["cell"])
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=0)  # fits into 80 columns
    table.add_column(say("cli.recipe", lang), overflow="fold")
    for name in (*SHOWN, "seconds_per_1000"):
        table.add_column(say(f"metric.{name}", lang), justify="right", overflow="fold")
    lost = []
    table.add_row(say("cli.floor", lang), *(number(result.floor.get(name)) for name in SHOWN), "", style="dim")
    for recipe in result.recipes:
        if recipe.status != "done":
            table.add_row(recipe.name, say(f"cli.{recipe.status}", lang))
            lost += [f"{recipe.name}: {recipe.reason}"] if recipe.reason else []
            continue
        costs = sorted(s.sampling.seconds_per_1000 for s in recipe.seeds if s.sampling is not None)
        cells = [_sign(recipe, name) + number(recipe.summary.get(name)) for name in SHOWN]
        table.add_row(recipe.name, *cells, f"{costs[len(costs) // 2]:.2f}" if costs else "")
    for row in result.baselines:
        cells = [_sign(row, name) + number(row.metrics.get(name)) for name in SHOWN]
        table.add_row(say(f"baseline.{row.name}", lang), *cells, "", style="dim")
    table.caption, table.caption_justify = "\n".join(lost) or None, "left"
    return table


def _sign(row: RecipeResult | Baseline, name: str) -> str:
    """What stands before a number of bits that is a bound or an estimate."""
    if name != "bits_per_dim":
        return ""
    made = [row] if isinstance(row, Baseline) else row.seeds
    said = [one.metrics[name] for one in made if name in one.metrics and one.metrics[name].value is not None]
    return LIKELIHOOD_SIGNS[likelihood_kind(said[0].protocol)] if said else ""


def number(estimate: Estimate | None) -> str:
    """A value, and below it half of its interval."""
    if estimate is None or estimate.value is None:
        return "–"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3g}"
    return f"{estimate.value:.3f}\n±{(estimate.high - estimate.low) / 2:.3f}"


def clock(seconds: float) -> str:
    """Seconds as "1 h 05 min", "12 min" or "40 s"."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _notes(said: Console, dataset: Dataset, lang: str) -> None:
    sizes = (len(dataset.train), len(dataset.validation), len(dataset.judge), len(dataset.test))
    levels = say("cli.levels", lang, n=dataset.spec.levels) if dataset.spec.levels else say("cli.continuous", lang)
    said.print(
        say("cli.data", lang, name=dataset.name, kind=say(f"kind.{dataset.spec.kind}", lang), levels=levels,
            shape="×".join(map(str, dataset.spec.shape)), sizes=" / ".join(map(str, sizes)))
    )  # fmt: skip
    for note in dataset.notes:
        said.print("  " + note[lang])


def _cost(name: str, family: str, stages: Sequence[Stage], dataset: Dataset) -> dict[str, Any]:
    """Parameters of all players and a forecast of memory for them, from models that are built and thrown away."""
    parameters = 0
    earlier: dict[str, Model[Any]] = {}
    for stage in stages:
        model, _ = build(stage, dataset, 0, earlier)
        parameters += sum(p.numel() for p in model.parameters())
        earlier[stage.name] = model
    data = dataset.train.x.nbytes / 1e6
    return {
        "recipe": name,
        "family": family,
        "parameters": parameters,
        "memory_mb": parameters * BYTES_PER_PARAMETER / 1e6 + data,
        "precision": stages[-1].train.precision,
        "compile": stages[-1].train.compile,
    }


def _choices(extra: list[str]) -> dict[str, Any]:
    """`--steps 8 --solver heun` or `--steps=8` to fields, for whatever the family knows."""
    import json

    fields: dict[str, Any] = {}
    i = 0
    while i < len(extra):
        word = extra[i]
        if not word.startswith("--"):
            raise UsageError("sample.stray", word=word)
        key, inline, value = word[2:].partition("=")
        if not inline:
            if i + 1 >= len(extra):
                raise UsageError("sample.no_value", word=word)
            i += 1
            value = extra[i]
        try:
            fields[key.replace("-", "_")] = json.loads(value)
        except json.JSONDecodeError:
            fields[key.replace("-", "_")] = value
        i += 1
    return fields


def _write(x: np.ndarray[Any, Any], trained: Trained, target: Path) -> list[Path]:
    suffix = target.suffix.lower()
    if suffix in (".png", ".npz", ".npy", ".csv"):
        target.parent.mkdir(parents=True, exist_ok=True)
        if suffix == ".png":
            picture(x, trained.spec).save(target)
        elif suffix == ".npz":
            np.savez_compressed(target, x=x)
        elif suffix == ".npy":
            np.save(target, x)
        else:
            np.savetxt(target, x.reshape(len(x), -1), delimiter=",", fmt="%.7g")
        return [target]
    target.mkdir(parents=True, exist_ok=True)
    picture(x[:CHUNK] if trained.spec.kind == "image" else x, trained.spec).save(target / "grid.png")
    np.savez_compressed(target / "samples.npz", x=x)
    written = [target / "grid.png", target / "samples.npz"]
    if trained.spec.kind == "image":
        from PIL import Image

        from quintet.tasks.pictures import to_uint8

        for i, image in enumerate(to_uint8(x, trained.spec)):
            path = target / f"{i:05d}.png"
            Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(path)
            written.append(path)
    return written
