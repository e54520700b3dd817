"""A whole comparison, small: rows, resume, failures, more seeds, Ctrl-C, the schema."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import quintet
from quintet import api
from quintet.core.budget import Budget
from quintet.core.errors import DivergedError, Interrupted, UsageError
from quintet.core.recipe import Recipe
from quintet.core.results import METRICS, Compare
from quintet.core.spec import DataSpec
from quintet.recipes.registry import RECIPES

BUDGET = "12steps"


def broken(name: str, error: BaseException | int) -> Recipe:
    """A recipe whose training fails: by an exception, or by killing its process."""
    good = RECIPES["vae"]

    def stages(spec: DataSpec, budget: Budget) -> Any:
        stage = good.stages(spec, budget)[0]

        def build(self: Any, spec: DataSpec) -> Any:
            if isinstance(error, int):
                os.kill(os.getpid(), error)
            raise error  # type: ignore[misc]

        kind = type(stage.model)
        bad = type("Bad", (kind,), {"build": build, "kind": f"vae-{name}"})
        fields = {f: getattr(stage.model, f) for f in kind.__dataclass_fields__}
        return (replace(stage, model=bad(**fields)),)

    return replace(good, name=name, stages=stages)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("runs") / "ring"
    recipes = ["vae", "flow-matching", broken("killed", signal.SIGKILL), broken("nan", DivergedError("cli.stopped"))]
    api.compare("toy:ring8", recipes, budget=BUDGET, seeds=1, out=place, threads=1)
    return place


def test_rows_and_schema(folder: Path) -> None:
    text = (folder / "compare.json").read_text(encoding="utf-8")
    result = Compare.model_validate_json(text)
    assert json.loads(text)["schema"] == 1
    rows = {row.name: row for row in result.recipes}
    assert [rows[name].status for name in rows] == ["done", "done", "failed", "diverged"]
    assert "memory" in rows["killed"].reason
    cell = rows["flow-matching"].seeds[0]
    for name in set(METRICS) - {"cas", "sharpness"}:
        estimate = cell.metrics[name]
        assert estimate.value is not None, name
        assert estimate.low is not None, name
        assert estimate.low <= estimate.value <= estimate.high, name  # type: ignore[operator]
        assert estimate.n, name
    for name in ("cas", "sharpness"):
        assert cell.metrics[name].value is None
        assert cell.metrics[name].protocol
    assert cell.ledger is not None
    batch = json.loads((folder / cell.run / "config.json").read_text())["stages"][0]["train"]["batch"]
    assert (cell.ledger.steps, cell.ledger.examples) == (12, 12 * batch)
    assert cell.ledger.flops > 0
    assert cell.ledger.params > 0
    assert {row.name for row in result.baselines} == {"bootstrap", "histograms", "mixture"}
    assert set(METRICS) - {"bits_per_dim"} <= set(result.floor)
    assert len(result.advice) == 6
    assert (folder / "report.html").stat().st_size > 50_000


def test_the_exported_json_schema_is_the_models() -> None:
    """docs/compare.schema.json; a change of the model that is not exported fails here."""
    stored = Path(__file__).parents[2] / "docs" / "compare.schema.json"
    assert json.loads(stored.read_text(encoding="utf-8")) == Compare.model_json_schema(by_alias=True)


def test_cell_folder(folder: Path) -> None:
    cell = folder / "cells" / "flow-matching-s0"
    names = {path.name for path in cell.iterdir()}
    assert {"config.json", "plan.json", "log.jsonl", "samples.png", "samples.npz", "stages", "trace.npz"} <= names
    checkpoints = cell / "stages" / "0-model" / "checkpoints"
    assert {p.name for p in (checkpoints / "00000012").iterdir()} == {
        "model.safetensors", "ema-0.safetensors", "ema-1.safetensors", "optim.safetensors", "state.json",
        "manifest.json",
    }  # fmt: skip
    assert json.loads((checkpoints / "last.json").read_text())["step"] == 12
    lines = [json.loads(line) for line in (cell / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "step"] == list(range(12))
    with np.load(cell / "samples.npz") as stored:
        assert stored["x"].shape == (1000, 2)


def test_finished_cells_are_not_done_again_and_seeds_can_be_added(folder: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in folder.glob("cells/*/samples.npz")}  # results may be levelled again
    assert len(before) == 2
    told: list[Any] = []
    again = api.compare("toy:ring8", ["vae", "flow-matching"], seeds=2, out=folder, threads=1, listen=told.append)
    started = [(e["recipe"], e["seed"]) for e in told if e["kind"] == "cell"]
    assert started == [("vae", 1), ("flow-matching", 1)]
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert [len(row.seeds) for row in again.result.recipes] == [2, 2, 1, 1]  # the other recipes' rows stay
    assert again.result.budget["cell"] == BUDGET
    summary = again.result.recipes[0].summary["kid"]
    values = [s.metrics["kid"].value for s in again.result.recipes[0].seeds]
    assert summary.value == pytest.approx(np.median(values))


def test_another_budget_or_other_data_is_refused(folder: Path) -> None:
    for data, budget in (("toy:ring8", "13steps"), ("toy:moons", BUDGET)):
        with pytest.raises(UsageError) as caught:
            api.compare(data, ["vae"], budget=budget, seeds=1, out=folder)
        assert caught.value.exit_code == 2


def test_runs_by_name_and_samples(folder: Path) -> None:
    assert api.find_run(f"{folder}:vae-s0") == folder / "cells" / "vae-s0"
    assert api.find_run(f"{folder}:best").parent == folder / "cells"
    with pytest.raises(UsageError, match="vae"):
        api.find_run(f"{folder}:gan")
    trained = quintet.load(f"{folder}:flow-matching")
    x = trained.sample(5, seed=3)
    assert x.shape == (5, 2)
    assert np.array_equal(x, trained.sample(5, seed=3))
    assert not np.array_equal(x, trained.sample(5, seed=4))
    np.testing.assert_allclose(trained.sample(70, seed=3)[:5], x, rtol=1e-4, atol=1e-5)
    assert not np.array_equal(x, trained.sample(5, seed=3, steps=1))
    with pytest.raises(UsageError, match="steps"):
        trained.sample(5, stepps=1)
    with pytest.raises(UsageError, match="label"):
        trained.sample(5, label="3")


def test_advice_from_the_comparison(folder: Path) -> None:
    found = quintet.advise(folder, ["speed"])
    assert [a.need for a in found] == ["speed"]
    assert {e["recipe"] for e in found[0].evidence} == {"vae", "flow-matching"}
    with pytest.raises(UsageError):
        quintet.advise(folder, ["beauty"])


def test_train_and_resume(tmp_path: Path) -> None:
    run = tmp_path / "run"
    quintet.train("gan", "toy:ring8", budget="6steps", out=run, threads=1)
    with pytest.raises(UsageError):  # there is a run already
        quintet.train("gan", "toy:ring8", budget="6steps", out=run, threads=1)
    with pytest.raises(UsageError, match="budget"):
        quintet.train("gan", "toy:ring8", budget="7steps", out=run, resume=True, threads=1)
    before = torch.get_num_threads()
    assert quintet.train("gan", "toy:ring8", budget="6steps", out=run, resume=True, threads=2).recipe == "gan"
    assert torch.get_num_threads() == before


def test_ctrl_c_saves_and_the_same_command_continues(tmp_path: Path) -> None:
    place = tmp_path / "x"

    def interrupt(event: Any) -> None:
        if event["kind"] == "step" and event["step"] >= 1:
            os.kill(0, signal.SIGINT)  # the terminal sends it to the whole process group

    os.setpgrp()  # this test's own group
    with pytest.raises(Interrupted) as caught:
        api.compare("toy:ring8", ["vae"], budget="3000steps", seeds=1, out=place, threads=1, listen=interrupt)
    assert caught.value.exit_code == 130
    kept = list(place.glob("cells/vae-s0/stages/*/checkpoints/0*"))
    assert kept
    assert int(kept[0].name) < 3000
    assert Compare.model_validate_json((place / "compare.json").read_text()).recipes[0].status == "skipped"


def test_short_trainings_at_other_rates_are_made_once(folder: Path) -> None:
    told: list[Any] = []

    def again() -> Compare:
        told.clear()
        recipes = ["vae", "flow-matching"]
        found = api.compare("toy:ring8", recipes, out=folder, threads=1, sensitivity=True, listen=told.append)
        return found.result

    result = again()
    started = [(e["recipe"], round(e["factor"], 2)) for e in told if e["kind"] == "rate"]
    assert started == [(name, factor) for name in ("vae", "flow-matching") for factor in (0.33, 1.0, 3.0)]
    assert not [e for e in told if e["kind"] == "cell"]  # they are no cells, and cells are not done again
    for name in ("third", "same", "triple"):
        place = folder / "cells" / f"flow-matching-rate-{name}"
        assert json.loads((place / "config.json").read_text())["budget"] == "2steps"
        assert not (place / "stages").exists()
    for row in result.recipes[:2]:
        assert [trial.status for trial in row.rates] == ["done"] * 3
        assert row.steadiness is not None
        assert row.steadiness.parts["rate"].n == 3
    assert "sensitivity" in result.protocol
    again()
    assert not [e for e in told if e["kind"] == "rate"]
