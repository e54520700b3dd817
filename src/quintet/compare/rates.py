"""Short trainings with other learning rates: how much a recipe depends on its own being right.

Three trainings a recipe of an eighth of the budget, with its own networks and a third, one and three times every peak
learning rate. They are judged on validation data in PCA space, as the choice of the average is, and no choice follows
from them: they are no tuning.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from quintet.compare.cell import CellJob, train_cell
from quintet.compare.forecast import trial_budget
from quintet.core import checkpoint
from quintet.core.recipe import OptimizerConfig, Stage
from quintet.core.results import RateTrial
from quintet.core.rng import Rng
from quintet.metrics.evaluate import pca_space
from quintet.recipes.load import load
from quintet.tasks.generate import generate, proportional_labels

RATE = "rate.json"
RATES = {"third": 1 / 3, "same": 1.0, "triple": 3.0}  # name of the folder -> factor
SAMPLES, SAMPLING_S = 256, 2.0  # drawn to judge such a training

Report = Callable[[Mapping[str, Any]], None]


def rate_jobs(job: CellJob) -> dict[str, CellJob]:
    """A cell's short trainings by name: its own configs, sizes too, with every learning rate scaled; none if too short.

    Args:
        job: the cell of seed 0.
    """
    budget = trial_budget(job.budget)
    if budget is None:
        return {}
    stages = job.stages()

    def made(name: str, factor: float) -> CellJob:
        def scaled(*_: Any) -> tuple[Stage, ...]:
            return tuple(scaled_stage(stage, factor) for stage in stages)

        recipe = replace(job.recipe, stages=scaled)
        folder = job.folder.parent / f"{job.recipe.name}-rate-{name}"
        return replace(job, folder=folder, recipe=recipe, budget=budget, overrides=())

    return {name: made(name, factor) for name, factor in RATES.items()}


def scaled_stage(stage: Stage, factor: float) -> Stage:
    """A stage with the peak learning rates of all its optimisers times a factor."""

    def scaled(one: OptimizerConfig) -> OptimizerConfig:
        return replace(one, lr=one.lr * factor, matrix_lr=one.matrix_lr * factor)

    optimizers = {name: scaled(one) for name, one in stage.train.optimizers.items()}
    return replace(stage, train=replace(stage.train, optimizers=optimizers))


def run_trial(job: CellJob, factor: float, report: Report, stop: Callable[[], bool]) -> None:
    """Train one of `rate_jobs` and leave its distance to validation data in PCA space beside it."""
    train_cell(job, report, stop)
    trained, dataset = load(job.folder, job.device), job.dataset
    labels = proportional_labels(dataset.train.labels, SAMPLES, job.seed)
    rng = Rng(job.seed, "rate")
    made = generate(trained.model, trained.codec, SAMPLES, labels, rng=rng, batch=64, limit_s=SAMPLING_S)
    space = pca_space(dataset.train.x, dataset.spec)
    distance = space.distance(made.x, space.features(dataset.validation.x))
    write_trial(job.folder, RateTrial(factor=factor, status="done", kid_pca=distance))
    shutil.rmtree(job.folder / "stages")  # its weights are of no use


def write_trial(folder: Path, trial: RateTrial) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.write_atomically(folder / RATE, trial.model_dump_json(indent=1).encode())


def read_trials(cells: Path, recipe: str) -> list[RateTrial]:
    """Those of a recipe that have ended."""
    paths = [cells / f"{recipe}-rate-{name}" / RATE for name in RATES]
    return [RateTrial.model_validate_json(path.read_text(encoding="utf-8")) for path in paths if path.exists()]
