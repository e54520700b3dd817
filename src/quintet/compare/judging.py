"""Samples from anywhere, judged as a comparison judges its own: same real data, judges, floor, baselines and protocol.

What it is: `quintet evaluate` for runs, and for folders, archives, arrays and tables that any other tool made, one
source or several in one table. What it is not: training, or how foreign samples are read (`data/given`).

A folder of results holds evaluation.json (the schema of compare.json, one row a source), report.html, the reference,
which is made once and used again, and `sources/<name>` with each source's samples.
"""

from __future__ import annotations

import datetime
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quintet._version import __version__
from quintet.compare import executor
from quintet.compare.drawing import draw
from quintet.compare.likelihood import likelihoods
from quintet.compare.reference import (
    check_judges,
    describe,
    level_reference,
    make_reference,
    nearest_pairs,
    read_known,
    samples_for,
    write_reference,
)
from quintet.compare.run import Listener, machine
from quintet.compare.stored import read_stored
from quintet.compare.summary import summarize
from quintet.core import checkpoint
from quintet.core.errors import ResourceError, UsageError
from quintet.core.lock import locked
from quintet.core.messages import LANGUAGES, say
from quintet.core.model import HasLogProb
from quintet.core.recipe import Recipe
from quintet.core.results import Compare, Estimate, SamplingCost, SeedResult
from quintet.core.rng import Rng
from quintet.data.dataset import Dataset
from quintet.data.given import Given
from quintet.recipes.load import CONFIG, RESULT, load
from quintet.tasks.generate import proportional_labels
from quintet.tasks.pictures import picture

FILE = "evaluation.json"
FULL = "reference-full.json"
EXTERNAL = "external"
SAMPLING_S, LATENCY_S, LIKELIHOOD_S = 120.0, 30.0, 60.0
"""Of one run, at most about."""


@dataclass(frozen=True)
class Judged:
    """One source to judge.

    Attributes:
        name: of its row.
        run: a run's folder, where it is one; samples are drawn from it.
        given: samples that are there already.
        notes: how they were read, by language.
    """

    name: str
    run: Path | None = None
    given: Given | None = None
    notes: tuple[Mapping[str, str], ...] = ()


@dataclass
class Judging:
    """A planned evaluation.

    Attributes:
        folder: of the results.
        dataset: the real data.
        sources: what is judged.
        samples: drawn from a run, and at most taken of any source.
        device, threads: for runs and judges.
        judges: weights of pretrained networks, by name.
    """

    folder: Path
    dataset: Dataset
    sources: Sequence[Judged]
    samples: int
    device: str = "cpu"
    threads: int = 1
    judges: Mapping[str, Path] = field(default_factory=dict)

    def run(self, listen: Listener, rewrite: Callable[[Path], None] = lambda folder: None) -> Compare:
        """Judge all sources on the same number of samples.

        Args:
            listen: told about progress.
            rewrite: called with the folder when evaluation.json is written (the report).
        Returns: one row a source, as evaluation.json holds them.
        """
        start = executor.run if executor.can_fork() else executor.run_here
        with executor.one_thread(), locked(self.folder):
            self._reference(start, listen)
            for source in self.sources:
                listen({"kind": "cell", "recipe": source.name, "seed": 0, "left": 0})
                self._must(start(lambda report, source=source: self._gather(source), listen))  # type: ignore[misc]
            least = min(self._held(source) for source in self.sources)
            for source in self.sources:
                listen({"kind": "phase", "phase": "evaluate"})
                self._must(start(lambda report, source=source: self._judge(source, least), listen))  # type: ignore[misc]
            self._must(
                start(
                    lambda report: level_reference(self.folder, self.dataset, least, self.judges, self.device), listen
                )
            )
            result = self._write(least)
            rewrite(self.folder)
        return result

    def _reference(self, start: Callable[..., executor.Outcome], listen: Listener) -> None:
        """Make the reference, or take what is there if it is of the same data and judges."""
        place = self.folder / "reference"
        held = self.folder / FILE
        if held.exists():
            stored = json.loads(held.read_text(encoding="utf-8"))
            if stored["data"]["fingerprint"] != self.dataset.fingerprint:
                raise UsageError("data.changed", path=self.folder)
        if (place / FULL).exists():  # an earlier evaluation may have levelled it to fewer samples
            shutil.copyfile(place / FULL, place / "reference.json")
        check_judges(self.folder, self.dataset, self.judges)
        if (place / "reference.json").exists():
            return
        listen({"kind": "reference"})
        made = start(
            lambda report: write_reference(
                self.folder, self.dataset, samples_for(self.dataset), self.threads, self.device, report, self.judges
            ),
            listen,
            self.folder / "reference-error.txt",
        )
        if not made.done:
            raise ResourceError("compare.reference", why=made.reason())
        shutil.copyfile(place / "reference.json", place / FULL)

    @staticmethod
    def _must(out: executor.Outcome) -> None:
        if not out.done:
            raise ResourceError("evaluate.failed", why=out.reason())

    def _place(self, source: Judged) -> Path:
        return self.folder / "sources" / source.name

    def _gather(self, source: Judged) -> None:
        """Write a source's samples, drawing them from a run."""
        torch.set_num_threads(self.threads)
        place, field_name = self._place(source), next(iter(self.dataset.spec.conditions), "label")
        if place.exists():
            shutil.rmtree(place)
        place.mkdir(parents=True)
        known: dict[str, Any] = {}
        if source.given is not None:
            rows = Rng(0, "given", "rows").permutation(len(source.given.x))[: self.samples]
            x = source.given.x[rows]
            labels = None if source.given.labels is None else source.given.labels[rows]
        else:
            x, labels, known = self._draw(source)
        extra = {} if labels is None else {field_name: labels}
        np.savez_compressed(place / "samples.npz", x=x, allow_pickle=False, **extra)
        shown = x[:64] if self.dataset.spec.kind == "image" else x
        picture(shown, self.dataset.spec).save(place / "samples.png")
        checkpoint.write_atomically(place / "source.json", json.dumps({"n": len(x), **known}).encode())

    def _draw(self, source: Judged) -> tuple[Any, Any, dict[str, Any]]:
        """Samples of a run as a comparison draws them, and what is known of their cost and likelihood."""
        assert source.run is not None
        trained = load(source.run, self.device)
        model, codec = trained.model, trained.codec
        seed = int(trained.config["seed"])
        labels = proportional_labels(self.dataset.train.labels, self.samples, seed)
        drawn = draw(
            model, codec, self.samples, labels,
            seed=seed, threads=self.threads, limit_s=SAMPLING_S, latency_limit_s=LATENCY_S,
        )  # fmt: skip
        made, trace = drawn.made, source.run / "trace.npz"
        if trace.exists():  # how it generates, for the report
            shutil.copyfile(trace, self._place(source) / trace.name)
        known = {
            "metrics": {k: e.model_dump() for k, e in likelihoods(trained, self.dataset, seed, LIKELIHOOD_S).items()},
            "sampling": drawn.cost.model_dump(),
            "capabilities": list(trained.capabilities),
            "likelihood": model.likelihood if isinstance(model, HasLogProb) else "undefined",
            "family": trained.config["family"],
            "seed": seed,
        }
        return made.x, next(iter(made.labels.values()), None), known

    def _known(self, source: Judged) -> dict[str, Any]:
        return dict(json.loads((self._place(source) / "source.json").read_text(encoding="utf-8")))

    def _held(self, source: Judged) -> int:
        return int(self._known(source)["n"])

    def _judge(self, source: Judged, n: int) -> None:
        """Measure a source on its first n samples."""
        torch.set_num_threads(self.threads)
        place, known = self._place(source), self._known(source)
        reference = make_reference(self.folder, self.dataset, self.judges, self.device)
        with np.load(place / "samples.npz") as stored:
            x = stored["x"][:n]
            labels = next((stored[name][:n] for name in self.dataset.spec.conditions if name in stored), None)
        metrics = reference.evaluate(x, labels, seed=int(known.get("seed", 0)))
        metrics |= {name: Estimate.model_validate(value) for name, value in known.get("metrics", {}).items()}
        np.savez_compressed(place / "nearest.npz", allow_pickle=False, **nearest_pairs(reference, x))
        result = SeedResult(
            seed=int(known.get("seed", 0)),
            status="done",
            metrics=metrics,
            sampling=SamplingCost.model_validate(known["sampling"]) if "sampling" in known else None,
            choice={
                "samples": n,
                "capabilities": known.get("capabilities", []),
                "likelihood": known.get("likelihood", "undefined"),
            },
            run=f"sources/{source.name}",
        )
        checkpoint.write_atomically(place / RESULT, result.model_dump_json(indent=1).encode())

    def _write(self, n: int) -> Compare:
        """Gather all sources into evaluation.json."""
        known = read_known(self.folder)
        assert known is not None
        rows = []
        for source in self.sources:
            cell = read_stored(self._place(source) / RESULT, SeedResult)
            row = summarize(_row(source.name, self._known(source).get("family", EXTERNAL)), [cell], known.floor)
            rows.append(row.model_copy(update={"failure": None, "steadiness": None}))  # nothing was trained here
        read = [source for source in self.sources if source.notes]
        notes = {
            lang: " · ".join(f"{s.name}: {'; '.join(text[lang] for text in s.notes)}" for s in read)
            for lang in LANGUAGES
        }
        result = Compare(
            name=self.folder.name,
            quintet=__version__,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            data=describe(self.dataset),
            budget={"cell": "", "seeds": 1},
            protocol={
                "samples": {lang: say("evaluate.protocol", lang, n=n) for lang in LANGUAGES},
                "sources": notes if read else {},
                "spaces": known.spaces,
                "judge": known.judge,
            },
            machine=machine(self.threads, known.device),
            floor=known.floor,
            ladders=known.ladders,
            recipes=rows,
            baselines=known.baselines,
        )
        checkpoint.write_atomically(self.folder / FILE, result.model_dump_json(indent=1, by_alias=True).encode())
        return result


def is_run(path: Path) -> bool:
    """Whether a folder is a run."""
    return (path / CONFIG).exists()


def check_run(path: Path, dataset: Dataset) -> str:
    """A run's recipe, after seeing that it models such data.

    Raises: UsageError if it was trained on data of another shape or other levels.
    """
    trained = load(path)
    own, spec = trained.spec, dataset.spec
    if (own.kind, own.shape, own.levels) != (spec.kind, spec.shape, spec.levels):
        shapes = {"own": f"{own.kind} {own.shape}, {own.levels}", "data": f"{spec.kind} {spec.shape}, {spec.levels}"}
        raise UsageError("evaluate.other_data", path=path, **shapes)
    return trained.recipe


def named(names: Sequence[str]) -> list[str]:
    """Names that can be folders, each different: a second "x" becomes "x-2"."""
    found: list[str] = []
    for name in names:
        plain = "".join(c if c.isalnum() or c in "._-" else "-" for c in name).strip("-.") or "samples"
        count = 2
        unique = plain
        while unique in found:
            unique, count = f"{plain}-{count}", count + 1
        found.append(unique)
    return found


def _row(name: str, family: str) -> Recipe:
    """What `summarize` asks for of a row that no recipe made."""
    return Recipe(name=name, family=family, stages=lambda spec, budget: (), summary={})  # type: ignore[arg-type]
