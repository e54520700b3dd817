"""quintet evaluate: samples from anywhere beside runs, one protocol, one reference."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from quintet import api
from quintet.compare.judging import FILE, named
from quintet.core.errors import UsageError
from quintet.core.results import Compare

RNG = np.random.default_rng(5)


def real(n: int) -> np.ndarray:
    """Two clusters in the plane."""
    return (RNG.normal(size=(n, 2)) * 0.3 + RNG.choice([-2.0, 2.0], size=(n, 1))).astype(np.float32)


DATA = {"x": real(800)}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluation")


@pytest.fixture(scope="module")
def judged(place: Path) -> Compare:
    """Fresh real data, one cluster alone, and a run of a few steps, in one table."""
    api.train("vae", DATA, budget="30steps", out=place / "run", threads=1, device="cpu")
    np.save(place / "good.npy", real(300))
    np.savetxt(place / "half.csv", np.abs(real(200)), delimiter=",")
    sources = [str(place / "good.npy"), str(place / "half.csv"), str(place / "run")]
    return api.evaluate(sources, DATA, out=place / "out", threads=1, device="cpu")


def test_real_data_pass_and_a_lost_mode_does_not(judged: Compare, place: Path) -> None:
    rows = {row.name: row.summary for row in judged.recipes}
    assert list(rows) == ["good", "half", "run"]
    floor = judged.floor["kid"]
    assert floor.high is not None
    kid = {name: row["kid"].value for name, row in rows.items()}
    assert kid["good"] < 3 * abs(floor.high) + 0.01  # type: ignore[operator]
    assert kid["half"] > 10 * kid["good"]  # type: ignore[operator]
    assert rows["half"]["coverage"].value < 0.7 < rows["good"]["coverage"].value  # type: ignore[operator]
    assert rows["run"]["bits_per_dim"].value is not None
    assert "bits_per_dim" not in rows["good"]
    sampling = {row.name: row.seeds[0].sampling for row in judged.recipes}
    assert sampling["good"] is None
    cost = sampling["run"]
    assert cost is not None
    assert cost.sequential_steps == 1
    assert cost.latency_s is not None
    assert 0 < cost.latency_s < 10 * cost.seconds_per_1000, "one by itself takes more than its share of a batch"
    assert {row.seeds[0].choice["samples"] for row in judged.recipes} == {200}, "all on the same number"


def test_the_results_are_on_disk(judged: Compare, place: Path) -> None:
    folder = place / "out"
    assert Compare.model_validate_json((folder / FILE).read_text()) == judged
    page = (folder / "report.html").read_text()
    assert all(name in page for name in ("good", "half", "run"))
    assert "Samples judged against real data" in page
    assert "nearest to real data first: good" in page
    for title in ("Which one for which need", "Cost and stability", "Reconstruction floor", "Training set"):
        assert (title in page) == (title == "Training set"), title
    with np.load(folder / "sources" / "good" / "samples.npz") as stored:
        assert len(stored["x"]) == 300
    assert json.loads(judged.model_dump_json())["protocol"]["sources"]["en"].count("half: ") == 1


def test_the_reference_is_made_once(judged: Compare, place: Path) -> None:
    """A second evaluation takes it as it is, and gives the same samples the same numbers."""
    made = (place / "out" / "reference" / "reference-full.json").stat().st_mtime_ns
    again = api.evaluate(np.load(place / "good.npy")[:250], DATA, out=place / "out", threads=1, device="cpu")
    assert (place / "out" / "reference" / "reference-full.json").stat().st_mtime_ns == made
    assert again.floor == judged.floor
    assert again.recipes[0].family == "external"
    assert again.recipes[0].seeds[0].choice["samples"] == 250
    with pytest.raises(UsageError):
        api.evaluate(np.load(place / "good.npy"), {"x": real(400)}, out=place / "out", threads=1, device="cpu")


def test_wrong_calls(judged: Compare, place: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="trained on"):
        api.plan_evaluate(str(place / "run"), {"x": np.pad(real(400), ((0, 0), (0, 1)), mode="reflect")})
    with pytest.raises(UsageError):
        api.plan_evaluate([real(30), real(30)], DATA, labels=np.zeros(30))
    with pytest.raises(UsageError):
        api.plan_evaluate(real(30), DATA, values="loud")  # type: ignore[arg-type]


def test_names_are_folders_and_differ() -> None:
    assert named(["a", "a", "b/c", "..", "a"]) == ["a", "a-2", "b-c", "samples", "a-3"]
