"""What every cell of a comparison is held against: judges, real-versus-real floor, ladders, baselines. Made once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from quintet.compare import executor
from quintet.compare.stored import read_stored
from quintet.core.checkpoint import write_atomically
from quintet.core.errors import ResourceError, UsageError
from quintet.core.ladders import Ladder
from quintet.core.results import Baseline, BaselineName, Estimate, Strict
from quintet.core.rng import Rng
from quintet.data.dataset import Dataset, Split
from quintet.metrics.baselines import baselines
from quintet.metrics.classify import MOST as MOST_CAS
from quintet.metrics.codecs import codecs
from quintet.metrics.evaluate import MOST, Modes, Part, Reference
from quintet.metrics.judges import Judge, RandomSpace, make_judge, train_exemplars
from quintet.metrics.judges.weights import load_judges
from quintet.metrics.ladders import LADDER_ITEMS, ladders
from quintet.metrics.memory import repeats

JUDGE_SEED = 0
OWN = "self-supervised"
SAMPLES = 1000
NEAREST_SHOWN = 8
REAL_SHOWN = 1024


class Known(Strict):
    """What reference.json holds: what a comparison's models are held against, measured once.

    Attributes:
        floor, ladders, baselines: as in compare.json.
        judge, spaces: for the protocol.
        repeats: examples that stand in the data more than once.
        codecs: bits per dimension of file formats.
        device: that measured.
    """

    schema_: Literal[1] = Field(1, alias="schema")
    floor: dict[str, Estimate]
    ladders: dict[str, Ladder]
    baselines: list[Baseline]
    judge: dict[str, Any]
    spaces: dict[str, Any]
    repeats: dict[str, int]
    codecs: dict[str, Estimate]
    device: str


NOTHING = Known(floor={}, ladders={}, baselines=[], judge={}, spaces={}, repeats={}, codecs={}, device="")
"""Before anything is measured."""


def known_path(folder: Path) -> Path:
    """Of reference.json in a comparison's folder."""
    return folder / "reference" / "reference.json"


def read_known(folder: Path) -> Known | None:
    """What is known of a comparison's reference; None before it was made.

    Raises: UsageError where another version wrote it.
    """
    path = known_path(folder)
    return read_stored(path, Known) if path.exists() else None


def write_known(folder: Path, known: Known) -> None:
    write_atomically(known_path(folder), known.model_dump_json(indent=1, by_alias=True).encode())


def make_reference(
    folder: Path,
    dataset: Dataset,
    judges: Mapping[str, Path] | None = None,
    device: str = "cpu",
    size: int | None = None,
) -> Reference:
    """The reference of a comparison, with its judges read from the folder if they were trained before.

    Args:
        folder: the comparison's; the judges live in its `reference` folder.
        dataset: opened.
        judges: weights of pretrained networks, by name.
        device: of those.
        size: samples in a set at most.
    """
    place = folder / "reference"
    part, spec = _part(dataset.judge), dataset.spec
    judge: Any = _kept(place, lambda: make_judge(part.x, part.labels, spec, classes=_classes(dataset), seed=JUDGE_SEED))
    own = None
    if isinstance(judge, Judge) and judge.task == "labels":
        own = _kept(place / OWN, lambda: train_exemplars(part.x, spec, seed=JUDGE_SEED))
    pretrained = load_judges(judges or {}, spec, device=device)
    for space in pretrained.values():
        space.store = place
    truth = dataset.truth
    modes = Modes(truth.modes, truth.scale) if truth is not None and len(truth.modes) else None
    spare = np.concatenate([dataset.validation.x, dataset.judge.x])
    return Reference(
        spec, train=_part(dataset.train), test=_part(dataset.test), judge=judge, own=own,
        random=RandomSpace(part.x, spec) if isinstance(judge, Judge) else None,
        pretrained=pretrained, spare=spare, modes=modes, size=size,
    )  # fmt: skip


def _kept(place: Path, make: Callable[[], Any]) -> Any:
    """The judge in a folder, made and saved first if there is none; coordinates are not saved."""
    if (place / Judge.FILES[1]).exists():
        return Judge.load(place)
    judge = make()
    if isinstance(judge, Judge):
        place.mkdir(parents=True, exist_ok=True)
        judge.save(place)
    return judge


def check_judges(folder: Path, dataset: Dataset, judges: Mapping[str, Path]) -> None:
    """See that given weights can be read, and that a comparison begun in the folder had the same.

    Raises: UsageError, also where another version wrote the reference.
    """
    given = {name: space.hash for name, space in load_judges(judges, dataset.spec).items()}
    known = read_known(folder)
    if known is None:
        return
    held = {name: space["sha256"] for name, space in known.spaces.get("pretrained", {}).items()}
    changed = [name for name in {*given, *held} if given.get(name) != held.get(name)]
    if changed:
        raise UsageError("judge.changed", path=folder, name=", ".join(sorted(changed)))


def judge_seconds(judges: Mapping[str, Path], dataset: Dataset, device: str, threads: int) -> float:
    """Seconds that the user's networks take for the features of one item, all together; measured in a worker.

    Raises: ResourceError where they cannot be run here.
    """
    if not judges:
        return 0.0
    told: list[Mapping[str, Any]] = []

    def measure(report: Callable[[Mapping[str, Any]], None]) -> None:
        torch.set_num_threads(threads)
        spaces = load_judges(judges, dataset.spec, device=device).values()
        report({"kind": "judges", "seconds": sum(space.seconds_each(dataset.train.x) for space in spaces)})

    start = executor.run if executor.can_fork() else executor.run_here
    with executor.one_thread():
        out = start(measure, told.append)
    if not out.done:
        raise ResourceError("compare.reference", why=out.reason())
    return float(told[-1]["seconds"])


def judge_items(dataset: Dataset, samples: int) -> int:
    """Items whose features the reference of a comparison takes: floor, ladder, baselines and what they are held to."""
    test, train = min(len(dataset.test), MOST), len(dataset.train)
    return test + min(test, train) + LADDER_ITEMS + min(samples, train) + len(get_args(BaselineName)) * samples


def write_reference(
    folder: Path,
    dataset: Dataset,
    samples: int,
    threads: int,
    device: str,
    report: Callable[[Mapping[str, Any]], None],
    judges: Mapping[str, Path] | None = None,
) -> None:
    """Train the judges, measure floor, ladders and baselines, and write them with real examples for the report.

    Runs in a worker, which may also ask for the GPU's name: the parent must not start CUDA, or it could not fork.
    """
    torch.set_num_threads(threads)
    report({"kind": "phase", "phase": "judge"})
    reference = make_reference(folder, dataset, judges, device)
    place = folder / "reference"
    place.mkdir(parents=True, exist_ok=True)
    report({"kind": "phase", "phase": "floor"})
    floor = reference.floor()
    steps = ladders(reference, floor)
    report({"kind": "phase", "phase": "baselines"})
    train, test = _part(dataset.train), _part(dataset.test)
    rows = []
    for model in baselines(dataset.spec, train.x, train.labels):
        name = model.name
        rng = Rng(0, "baseline", name)
        drawn = model.sample(samples, rng=rng("sample"))
        bits = {"bits_per_dim": model.bits(test.x, test.labels, rng=rng("bits"))}
        if drawn is None:  # too slow to draw from: a likelihood alone
            rows.append(Baseline(name=name, metrics=bits))
            continue
        found = {**reference.evaluate(drawn.x, drawn.labels, seed=0), **bits}
        cell = place / name
        cell.mkdir(exist_ok=True)
        extra = {} if drawn.labels is None else {"label": drawn.labels}
        np.savez_compressed(cell / "samples.npz", x=drawn.x, allow_pickle=False, **extra)
        np.savez_compressed(cell / "nearest.npz", allow_pickle=False, **nearest_pairs(reference, drawn.x))
        rows.append(Baseline(name=name, metrics=found, run=f"reference/{name}"))
    shown = _part(dataset.test)
    real = {"x": shown.x[:REAL_SHOWN]}
    if shown.labels is not None:
        real["label"] = shown.labels[:REAL_SHOWN]
    np.savez_compressed(folder / "real.npz", allow_pickle=False, **real)
    known = Known(
        floor=floor,
        ladders=steps,
        baselines=rows,
        judge=reference.judge.to_json(),
        spaces={**reference.to_json(), "set_most": reference.size},
        repeats=repeats(train.x, test.x),
        codecs=codecs(test.x, dataset.spec),
        device=torch.cuda.get_device_name() if device == "cuda" else "cpu",
    )
    write_known(folder, known)


def level_reference(
    folder: Path, dataset: Dataset, samples: int, judges: Mapping[str, Path] | None = None, device: str = "cpu"
) -> None:
    """Measure the floor and the baselines again with as many examples as the models were judged on.

    A classifier learns more from more examples and a Fréchet distance falls with their number, so that both may be
    compared only at one number of them. Where models have fewer samples than a set of the reference, or again as many,
    everything is measured again in sets of their number, and the ladders move with the floor: what a metric sees on
    these data was told by the larger sets. Otherwise CAS alone is measured again.

    Args:
        judges, device: as for `make_reference`.
    """
    known = read_known(folder)
    if known is None:
        return
    classified = min(samples, len(dataset.train), MOST_CAS)
    if known.spaces["cas_size"] == classified and known.spaces["set_size"] == min(samples, known.spaces["set_most"]):
        return
    reference = make_reference(folder, dataset, judges, device, size=samples)
    floor, steps, again = dict(known.floor), known.ladders, reference.size != known.spaces["set_size"]
    if again:
        floor = reference.floor()
        steps = {metric: _moved(ladder, known.floor.get(metric), floor.get(metric)) for metric, ladder in steps.items()}
    floor["cas"] = reference.real_cas(classified)
    rows = []
    for row in known.baselines:
        place = folder / row.run / "samples.npz"
        if row.run and place.exists():
            with np.load(place) as stored:
                x, labels = stored["x"][:samples], stored["label"][:samples] if "label" in stored.files else None
                found = reference.evaluate(x, labels, seed=0) if again else {}
                found["cas"] = reference.cas(x, labels, classified)
            rows.append(row.model_copy(update={"metrics": {**row.metrics, **found}}))
        else:
            rows.append(row)
    spaces = {**known.spaces, "cas_size": classified, "set_size": reference.size}
    update = {"floor": floor, "ladders": steps, "baselines": rows, "spaces": spaces}
    write_known(folder, known.model_copy(update=update))


def _moved(ladder: Ladder, before: Estimate | None, now: Estimate | None) -> Ladder:
    if before is None or now is None or before.value is None or now.value is None:
        return ladder
    return ladder.moved(now.value - before.value)


def samples_for(dataset: Dataset) -> int:
    """How many samples a model is judged on: 1,000, and 2,000 where as many labelled training items make a fair CAS."""
    return 2 * SAMPLES if dataset.train.labels and len(dataset.train) >= 2 * SAMPLES else SAMPLES


def nearest_pairs(reference: Reference, samples: NDArray[Any], shown: int = NEAREST_SHOWN) -> dict[str, NDArray[Any]]:
    """Samples beside their nearest training items, with the distances to those and to the nearest held-out items.

    Half of the pairs are the samples nearest to any training item, the other half are the first ones. Samples that are
    not finite have no neighbours.
    Returns: sample, train (m, *raw); distance, held_out (m,), Euclidean on raw values brought to [-1, 1].
    """
    samples = samples[[bool(np.isfinite(item).all()) for item in samples]]
    found = reference.nearest_train(samples)[:, 0]
    raw = reference.pixels.features(samples)
    distance = np.linalg.norm(raw - reference.train_raw[found], axis=1)
    closest = np.argsort(distance, kind="stable")[: shown // 2]
    rest = [i for i in range(len(samples)) if i not in set(closest.tolist())][: shown - len(closest)]
    rows = np.array([*closest, *rest], dtype=np.int64)
    gaps = np.linalg.norm(raw[rows][:, None] - reference.test_views.raw[None], axis=2).min(axis=1)
    return {
        "sample": samples[rows],
        "train": np.asarray(reference.searched.x)[found[rows]],
        "distance": distance[rows],
        "held_out": gaps,
    }


def describe(dataset: Dataset) -> dict[str, Any]:
    """The data as compare.json names them."""
    spec = dataset.spec
    return {
        "name": dataset.name,
        "kind": spec.kind,
        "shape": list(spec.shape),
        "levels": spec.levels,
        "conditions": dict(spec.conditions),
        "splits": {
            "train": len(dataset.train),
            "validation": len(dataset.validation),
            "judge": len(dataset.judge),
            "test": len(dataset.test),
        },
        "fingerprint": dataset.fingerprint,
        "label_names": {name: list(values) for name, values in dataset.names.items()},
        "notes": [dict(note) for note in dataset.notes],
        "entropy_bits_per_dim": (
            None if dataset.truth is None else dataset.truth.entropy() / (spec.dims * float(np.log(2)))
        ),
    }


def _part(split: Split) -> Part:
    labels = next(iter(split.labels.values()), None)
    return Part(split.x, labels)


def _classes(dataset: Dataset) -> int | None:
    return next(iter(dataset.spec.conditions.values()), None)
