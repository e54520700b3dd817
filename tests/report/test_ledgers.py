"""The sections on costs and on memorisation: counts, missing meters, busy cells, equal cost, repeats in the data."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from fake_comparison import build

from quintet.compare.snapshots import COSTS, at_equal
from quintet.core.results import Busy, Compare, Estimate, RecipeResult, SeedResult
from quintet.report.page import render
from quintet.report.sections.ledgers import ledgers
from quintet.report.sections.memorisation import memorisation, repeats
from quintet.report.view import View


def with_counts(seed: SeedResult, rate: float, **fields: Any) -> SeedResult:
    """A cell of the fake comparison with everything that a trained one has."""
    if seed.ledger is None:
        return seed
    curve = [
        {**point, "share": point["seconds"] / 60, "flops": rate * point["seconds"], "examples": 1.0, "n": 128.0}
        for point in seed.curve
    ]
    near = Estimate(value=-0.4, low=-1.1, high=0.3, n=1000, protocol="mean z over 10 regions")
    metrics = {**seed.metrics, "c_t": near, "authenticity": Estimate(value=0.58, protocol="share of samples")}
    return seed.model_copy(
        update={
            "curve": curve,
            "metrics": metrics,
            "ledger": seed.ledger.model_copy(update={"others_s": 1.0, "cores": 2.0, **fields}),
            "busy": Busy(others=0.31, own=0.97, flag=True)
            if seed.seed == 1
            else Busy(others=0.01, own=1.0, flag=False),
        }
    )


@pytest.fixture
def found(tmp_path: Path) -> tuple[Compare, Path]:
    compare = build(tmp_path / "x", failed=False)
    recipes: list[RecipeResult] = [
        recipe.model_copy(update={"seeds": [with_counts(seed, 1e9 * (1 + i)) for seed in recipe.seeds]})
        for i, recipe in enumerate(compare.recipes)
    ]
    data = {**compare.data, "repeats": {"train": 12, "across": 3}}
    compare = compare.model_copy(update={"recipes": recipes, "data": data})
    compare = compare.model_copy(update={"equal": {cost: at_equal(compare, cost) for cost in COSTS}})
    return compare, tmp_path / "x"


def plain(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page))


def test_bills_and_why_some_counts_are_missing(found: tuple[Compare, Path]) -> None:
    compare, folder = found
    section = ledgers(View(compare, folder))
    assert section is not None
    values = section.values
    assert values["columns"] == ["wall", "processor", "flops", "examples", "memory", "apart", "trials"]
    bill = dict(zip(values["columns"], values["bills"][1].counts, strict=True))
    assert bill["flops"][0] == "8.2 T"
    assert bill["trials"] == ("0", "")
    assert bill["processor"] == ("118", "")
    assert values["bills"][1].others == "1 %"
    assert (values["bills"][1].busy, values["bills"][1].cells) == (1, 3)
    text = plain(render(compare, folder))
    assert "this machine shows no power meter" in text
    assert "GPU seconds: none" in text
    assert "others 31 %, itself 0.97 processor seconds a second" in text
    assert "能耗：无法获得" in text


def test_energy_where_it_was_counted(found: tuple[Compare, Path]) -> None:
    compare, folder = found
    seeds = [
        with_counts(seed, 1e9, energy_j=1500.0 * (1 + seed.seed), energy="processor", gpu_s=2.0)
        for seed in compare.recipes[0].seeds
    ]
    row = compare.recipes[0].model_copy(update={"seeds": seeds})
    compare = compare.model_copy(update={"recipes": [row, *compare.recipes[1:]]})
    section = ledgers(View(compare, folder))
    assert section is not None
    bill = dict(zip(section.values["columns"], section.values["bills"][0].counts, strict=True))
    assert bill["energy"] == ("3 kJ", "[1.5 kJ, 4.5 kJ]")
    assert bill["gpu"] == ("2.00", "")
    assert "other processes' share is in it" in render(compare, folder).replace("&#39;", "'")


def test_order_at_equal_cost(found: tuple[Compare, Path]) -> None:
    compare, folder = found
    section = ledgers(View(compare, folder))
    assert section is not None
    places = {place.name: place for place in section.values["places"]}
    best = compare.equal["flops"][0]
    assert places[best.recipe].ranks[1][0] == "1"
    assert section.values["at"] == ["60 s", "60 GFLOP"]
    expected = [0.0115 + 0.3 * math.exp(-t / 9) for t in (8, 16, 32, 60)]
    assert [float(text) for text in places["gan"].snapshots] == pytest.approx(expected, rel=0.05)
    page = render(compare, folder)
    assert "training FLOP (log scale)" in page
    assert 'id="ledgers"' in page
    assert 'href="#ledgers"' in page


def test_without_any_ledger_there_is_no_section(found: tuple[Compare, Path]) -> None:
    compare, folder = found
    waiting = [recipe.model_copy(update={"seeds": []}) for recipe in compare.recipes]
    assert ledgers(View(compare.model_copy(update={"recipes": waiting}), folder)) is None
    render(compare.model_copy(update={"recipes": waiting, "equal": {}}), folder)


def test_memorisation_and_repeats(found: tuple[Compare, Path]) -> None:
    compare, folder = found
    section = memorisation(View(compare, folder))
    assert section is not None
    assert [column.key for column in section.values["columns"]] == ["copies", "c_t", "authenticity"]
    texts = [plain(text) for text in repeats(View(compare, folder))]
    assert len(texts) == 1
    assert "12 training examples (1.3 %)" in texts[0]
    assert "3 test examples" in texts[0]
    report = {"found": {"near": 40, "across": {"copies": 5, "near": 0}}}
    (folder / "data_report.json").write_text(json.dumps(report))
    texts = [plain(text) for text in repeats(View(compare, folder))]
    assert "40 pictures have a near duplicate" in texts[1]
    assert "5 exact copies, 0 near" in texts[2]
    (folder / "data_report.json").write_text("cut off {")
    assert len(repeats(View(compare, folder))) == 1
