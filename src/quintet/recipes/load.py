"""From a cell's folder back to a model: the one way from disk to memory. Nothing is unpickled."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from quintet.core import config
from quintet.core.codec import Codec
from quintet.core.errors import ResourceError, UsageError
from quintet.core.model import Model, capabilities
from quintet.core.plan import Plan
from quintet.core.recipe import Stage
from quintet.core.rng import Rng
from quintet.core.spec import DataSpec
from quintet.recipes.registry import KINDS
from quintet.tasks.generate import generate
from quintet.train.run import restore, restore_best

CONFIG, TRAINING, RESULT, PLAN, LOG = "config.json", "training.json", "result.json", "plan.json", "log.jsonl"


@dataclass(frozen=True)
class Trained:
    """A trained model, ready for use.

    Attributes:
        folder: where it came from.
        config: the resolved config of its run.
        model, codec: of the last stage, with the chosen average in place.
        names: condition name -> the classes' names.
    """

    folder: Path
    config: Mapping[str, Any]
    model: Model[Any]
    codec: Codec
    names: Mapping[str, tuple[str, ...]]

    @property
    def recipe(self) -> str:
        return str(self.config["recipe"])

    @property
    def spec(self) -> DataSpec:
        """Of the raw data."""
        return self.codec.raw

    @property
    def capabilities(self) -> tuple[str, ...]:
        return capabilities(self.model)

    def sample(self, n: int = 16, *, label: str | int | None = None, seed: int = 0, **choices: Any) -> NDArray[Any]:
        """Draw raw examples.

        Args:
            n: how many.
            label: a class's name or number for all of them; by default classes in turn, each as often.
            seed: same seed, same samples.
            choices: the family's own sampling fields (steps, solver, guidance, temperature, top_k, truncation, ...).
        Returns: (n, *spec.shape), integers for discrete data, float32 otherwise.
        Raises: UsageError for an unknown label or sampling field, naming the known ones.
        """
        if n < 1:
            raise UsageError("sample.count", n=n)
        chosen = self.sampling(choices)
        try:
            made = generate(self.model, self.codec, n, self.labels(n, label), rng=Rng(seed, "sample"), sampling=chosen)
        except ArithmeticError as error:  # an adaptive solver that cannot reach its tolerance
            raise UsageError("sample.solver", why=error) from error
        return made.x

    def labels(self, n: int, label: str | int | None = None) -> dict[str, NDArray[np.int64]]:
        """Conditions for n items: one class for all, or the classes in turn."""
        conditions = self.model.spec.conditions
        if not conditions:
            if label is not None:
                raise UsageError("sample.no_labels", recipe=self.recipe)
            return {}
        field, classes = next(iter(conditions.items()))
        if label is None:
            every = {name: np.arange(count, dtype=np.int64) for name, count in conditions.items()}
            return {name: np.resize(values, n) for name, values in every.items()}
        names = self.names.get(field, tuple(str(i) for i in range(classes)))
        text = str(label)
        if text in names:
            index = names.index(text)
        elif text.isdigit() and int(text) < classes:
            index = int(text)
        else:
            raise UsageError("sample.label", label=label, known=", ".join(names[:20]))
        return {field: np.full(n, index, dtype=np.int64)}

    def sampling(self, choices: Mapping[str, Any]) -> Any:
        """The model's sampling config with some fields replaced."""
        if not choices:
            return None
        current = self.model.sampling
        fields = {f.name: getattr(current, f.name) for f in dataclasses.fields(current)}
        if isinstance(current, config.Selective):
            fields = current.carried(choices)
        return config.make(type(current), {**fields, **choices}, "sampling")


def read_config(folder: Path) -> dict[str, Any]:
    """A run's config.json.

    Raises: UsageError (exit 2) if the folder is no run.
    """
    try:
        return dict(json.loads((folder / CONFIG).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UsageError("load.no_run", path=folder) from error


def stage_folder(folder: Path, index: int, stage: Stage) -> Path:
    return folder / "stages" / f"{index}-{stage.name}"


def _last_step(folder: Path, stage: Stage) -> int:
    """At which a finished stage ended, by its plan."""
    try:
        stages = json.loads((folder / PLAN).read_text(encoding="utf-8"))["stages"]
        return Plan.from_json(stages[stage.name]).steps
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResourceError("load.no_plan", path=folder / PLAN, why=error) from error


def load(folder: str | Path, device: str = "cpu") -> Trained:
    """Load a finished run.

    Args:
        folder: a cell's folder.
        device: where the model goes.
    Raises: UsageError if the folder is no finished run; ResourceError if what its result was measured with is damaged.
    """
    folder = Path(folder)
    stored = read_config(folder)
    stages = [config.decode(stage, KINDS, "stage") for stage in stored["stages"]]
    raw = DataSpec.from_json(stored["data"]["spec"])
    training = folder / TRAINING
    if not training.exists():
        raise UsageError("load.unfinished", path=folder)
    choice = json.loads(training.read_text(encoding="utf-8"))["choice"]
    index, stage = len(stages) - 1, stages[-1]
    codec = stage.codec.empty(raw)
    model = stage.model.build(codec.spec)
    place = stage_folder(folder, index, stage)
    restore(place, model, {"codec": codec}, choice.get("average"), _last_step(folder, stage))
    if choice.get("best") is not None:
        restore_best(place, model, choice["best"])
    model.to(torch.device(device))
    codec.to(torch.device(device))
    model.eval()
    names = {name: tuple(values) for name, values in stored["data"]["label_names"].items()}
    return Trained(folder, stored, model, codec, names)
