"""The articles, settled: a comparison fixed before it was run, and every sentence held against it.

What is fixed here: the data sets, the recipes, the budgets, the number of seeds, two measurements beside the usual
ones, and (in `claims`) the test that decides each sentence. What it is not: a new way of training or judging; the
comparisons are those of `quintet compare`, one folder a data set.

Beside the usual metrics of a cell:
    kid_four_steps      of diffusion models: KID of samples drawn by four steps of the first-order solver (Euler's for a
                        velocity, DDIM for the chain) on an even grid of times.
    kid_drift           of images: KID of the lower half of the rows minus that of the upper half, on pixels. Models
                        that write row by row should get worse on the way, if errors accumulate.
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from quintet._version import __version__
from quintet.compare import executor
from quintet.compare.claims import CLAIMS, UNTESTED
from quintet.compare.findings import Check, Finding, spoken
from quintet.compare.reference import make_reference
from quintet.compare.run import Comparison, Listener, machine, plan
from quintet.core.articles import Articles, Held, Sentence, Source, overall
from quintet.core.budget import Budget
from quintet.core.checkpoint import write_atomically
from quintet.core.errors import ResourceError, UsageError
from quintet.core.messages import say
from quintet.core.recipe import Recipe, Stage
from quintet.core.results import Compare, Estimate, SeedResult
from quintet.core.rng import Rng
from quintet.core.spec import DataSpec
from quintet.data.dataset import Dataset
from quintet.families.diffusion.model import Diffusion
from quintet.families.diffusion.sampling import SolverName
from quintet.families.gan.losses import NonSaturating
from quintet.families.gan.model import GANConfig
from quintet.metrics.distances import kid
from quintet.metrics.evaluate import Reference
from quintet.nets.unet import UNetConfig
from quintet.recipes import flow_matching
from quintet.recipes.load import RESULT, load
from quintet.recipes.registry import RECIPES
from quintet.tasks.generate import generate, proportional_labels

FILE = "articles.json"
SEEDS = 6
"""Pairs that an exact sign-flip test at 5 % needs."""

BUDGETS = {"digits": "10s", "toy:grid25": "5s", "toy:spirals": "5s"}
"""The data sets by default and what a model trains for; grid25 has 25 separate modes, spirals thin curved arms."""

OTHER_BUDGET = "3m"
"""For data that are not in the table."""

ROWS: tuple[tuple[str, ...], ...] = (
    ("gan",), ("classic-gan",), ("vae",), ("nsf", "tarflow"), ("flow-matching",), ("ddpm",), ("gpt",),
)  # fmt: skip
"""Recipes for all data: of each row the first that fits."""
IMAGE_ROWS: tuple[tuple[str, ...], ...] = (("lstm",), ("unet",), ("dit",))
LARGE_ROWS: tuple[tuple[str, ...], ...] = (("latent-diffusion",),)
LARGE = 256
"""Values of an image above which flow-matching is a U-Net by itself, and a latent space pays."""

STEPS = 4
FEW_SAMPLES = 500


def classic_stages(spec: DataSpec, budget: Budget) -> tuple[Stage, ...]:
    """The networks of `gan` under the loss of 2014: no penalties, no augmentation, nothing that keeps modes apart.

    Goodfellow et al. 2014, arXiv:1406.2661, section 3 (the non-saturating form); Adam as in Radford et al. 2016,
    arXiv:1511.06434, at dcgan's rate.
    """
    (stage,) = RECIPES["gan"].stages(spec, budget)
    assert isinstance(stage.model, GANConfig)
    model = replace(
        stage.model, loss=NonSaturating(), gamma=0.0, gamma_end=0.0, classifier=0.0, augment=0.0, noise=0.0, coins=0
    )
    optimizers = {
        name: replace(each, lr=5e-4, betas=(0.5, 0.999), beta2_end=None)
        for name, each in stage.train.optimizers.items()
    }
    return (replace(stage, model=model, train=replace(stage.train, optimizers=optimizers)),)


CLASSIC_GAN = Recipe(
    name="classic-gan",
    family="gan",
    stages=classic_stages,
    summary={
        "en": "the networks of gan under the adversarial loss of 2014, as the articles describe GANs",
        "zh": "沿用 gan 的网络，采用 2014 年的对抗损失，即文章所描述的 GAN",
    },
    unfit=RECIPES["gan"].unfit,
)


def unet_stages(spec: DataSpec, budget: Budget) -> tuple[Stage, ...]:
    """flow-matching's stage for small images with a U-Net in place of its mixer, of about dit's size."""
    (stage,) = flow_matching.stages(spec, budget)
    network = UNetConfig(patch=1, channels=(32, 64), heads=2)
    return (replace(stage, model=flow_matching.matching(spec, network, network.patch)),)


UNET = Recipe(
    name="unet",
    family="diffusion",
    stages=unet_stages,
    summary={
        "en": "flow matching of small images by a U-Net, to hold against dit",
        "zh": "用 U-Net 对小图像做流匹配，与 dit 对照",
    },
    unfit=lambda spec: say("articles.no_unet") if spec.kind != "image" or _large(spec) else RECIPES["dit"].unfit(spec),
)


def recipes_for(spec: DataSpec) -> list[Recipe]:
    """What is compared on such data."""
    rows = ROWS + (IMAGE_ROWS if spec.kind == "image" else ()) + (LARGE_ROWS if _large(spec) else ())
    known = {**RECIPES, CLASSIC_GAN.name: CLASSIC_GAN, UNET.name: UNET}
    fitting = ([known[name] for name in row if known[name].unfit(spec) is None] for row in rows)
    return [found[0] for found in fitting if found]


def plan_one(
    folder: Path, dataset: Dataset, *, budget: str | None, seeds: int, device: str, threads: int | None
) -> Comparison:
    """The comparison on one data set, in a folder of its own below `folder`."""
    return plan(
        folder / place(dataset.name), dataset, recipes_for(dataset.spec),
        budget=Budget.parse(budget or BUDGETS.get(dataset.name, OTHER_BUDGET)), within=None, seeds=seeds,
        device=device, threads=threads, sensitivity=False,
    )  # fmt: skip


def place(name: str) -> str:
    """A data set's name as a folder's."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "data"


def settle(
    folder: Path, planned: Sequence[Comparison], command: str, listen: Listener, rewrite: Callable[[Path], None],
) -> Articles:  # fmt: skip
    """Run what is planned, measure what the sentences ask for beside it, and hold every sentence against the results.

    articles.json is written after each data set; what is finished is not done again.

    Args:
        folder: of articles.json.
        command: what was called, for the record.
        listen: told about progress.
        rewrite: called with a comparison's folder (the report).
    Raises: Interrupted after Ctrl-C, with everything saved.
    """
    if not planned:
        raise UsageError("articles.no_data")
    done: list[tuple[Comparison, Compare]] = []
    for one in planned:
        one.run(listen, rewrite)
        _measure_more(one, listen)
        done.append((one, one.write(rewrite)))
        result = Articles(
            quintet=__version__,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            command=command,
            machine=machine(one.threads, one.device),
            sources=[source(comparison, found) for comparison, found in done],
            sentences=hold([found for _, found in done]),
        )
        write_atomically(folder / FILE, result.model_dump_json(indent=1, by_alias=True).encode())
    return result


def source(comparison: Comparison, result: Compare) -> Source:
    """A comparison as articles.json names it."""
    return Source(
        data=result.data["name"],
        folder=comparison.folder.name,
        budget=result.budget["cell"],
        seeds=comparison.seeds,
        recipes=[recipe.name for recipe in result.recipes],
        splits=result.data["splits"],
        fingerprint=result.data["fingerprint"],
    )


def hold(results: Sequence[Compare]) -> list[Sentence]:
    """Every sentence held against every comparison."""
    return [_sentence(key, articles, check, results) for key, articles, check in CLAIMS]


def _sentence(key: str, articles: Sequence[str], check: Check, results: Sequence[Compare]) -> Sentence:
    held: list[Held] = []
    if check.kind != "measured":
        found = check(results[0])
        assert found is not None
        held.append(_held("", found))
    else:
        named = [(result.data["name"], check(result)) for result in results]
        held += [_held(name, found) for name, found in named if found is not None]
        together = check.together(results) if len(held) > 1 else None
        held += [_held("*", together)] if together is not None else []
        held = held or [_held("", UNTESTED)]
    each, pooled = [h.verdict for h in held if h.data != "*"], [h.verdict for h in held if h.data == "*"]
    text, rule = spoken(f"claim.{key}"), check.rule
    return Sentence(
        key=key, articles=list(articles), en=text["en"], zh=text["zh"], kind=check.kind, rule_en=rule["en"],
        rule_zh=rule["zh"], verdict=overall(each, *pooled), held=held,
    )  # fmt: skip


def _held(data: str, found: Finding) -> Held:
    return Held(data=data, verdict=found.word, evidence_en=found.text["en"], evidence_zh=found.text["zh"])


def _measure_more(planned: Comparison, listen: Listener) -> None:
    """Add the measurements that only these sentences ask for to the finished cells' results."""
    start = executor.run if executor.can_fork() else executor.run_here

    def work(report: Callable[[Mapping[str, Any]], None]) -> None:
        torch.set_num_threads(planned.threads)
        reference = make_reference(planned.folder, planned.dataset)
        for job in planned.jobs():
            path = job.folder / RESULT
            if path.exists():
                report({"kind": "phase", "phase": "articles"})
                _measure(path, reference, planned)

    with executor.one_thread():
        out = start(work, listen, planned.folder / "articles-error.txt")
    if not out.done:
        raise ResourceError("articles.measure", path=planned.folder, why=out.reason())


def _measure(path: Path, reference: Reference, planned: Comparison) -> None:
    result = SeedResult.model_validate_json(path.read_text(encoding="utf-8"))
    if result.status != "done":
        return
    more: dict[str, Estimate] = {}
    if "kid_four_steps" not in result.metrics:
        few = few_steps(path.parent, reference, planned.dataset, result.seed, planned.device)
        more |= {} if few is None else {"kid_four_steps": few}
    if "kid_drift" not in result.metrics and planned.dataset.spec.kind == "image":
        with np.load(path.parent / "samples.npz") as stored:
            more["kid_drift"] = drift(stored["x"], np.asarray(reference.test.x))
    if more:
        result = result.model_copy(update={"metrics": {**result.metrics, **more}})
        write_atomically(path, result.model_dump_json(indent=1).encode())


def few_steps(cell: Path, reference: Reference, dataset: Dataset, seed: int, device: str) -> Estimate | None:
    """KID in the judge's space of samples from four network evaluations; None for what is no diffusion model."""
    trained = load(cell, device)
    model = trained.model
    if not isinstance(model, Diffusion):
        return None
    solver: SolverName = "euler" if model.sampling.follows_velocity else "ddim"
    sampling = replace(model.sampling, solver=solver, steps=STEPS, warp=None, grid=None, tolerance=None)
    labels = proportional_labels(dataset.train.labels, FEW_SAMPLES, seed)
    made = generate(model, trained.codec, FEW_SAMPLES, labels, rng=Rng(seed, "four-steps"), sampling=sampling)
    judge = reference.judge
    found = kid(judge.features(made.x), reference.test_views.judge, judge.kernel, space=judge.name)
    return found.model_copy(update={"protocol": f"{STEPS} steps of {solver}, even in time; {found.protocol}"})


def drift(samples: NDArray[np.generic], real: NDArray[np.generic]) -> Estimate:
    """KID on pixels of the lower half of the rows minus that of the upper half; both (N, C, H, W)."""
    scale = float(max(samples.max(), real.max())) or 1.0
    fake, true = (2 * np.asarray(x, np.float64) / scale - 1 for x in (samples, real))
    half = fake.shape[2] // 2
    upper, lower = (
        kid(fake[:, :, rows].reshape(len(fake), -1), true[:, :, rows].reshape(len(true), -1))
        for rows in (slice(0, half), slice(fake.shape[2] - half, None))
    )
    if upper.value is None or lower.value is None:
        return Estimate(value=None, protocol=upper.protocol)
    value = lower.value - upper.value
    width = math.hypot(*(((e.high or 0.0) - (e.low or 0.0)) / 2 for e in (upper, lower)))
    protocol = f"lower minus upper half of the rows; each: {upper.protocol}"
    return Estimate(value=value, low=value - width, high=value + width, n=upper.n, protocol=protocol)


def _large(spec: DataSpec) -> bool:
    return spec.kind == "image" and spec.dims > LARGE
