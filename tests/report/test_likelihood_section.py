"""The likelihood section: one scale, each row's kind and reading, and what is missing with its reason."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_comparison import build

from quintet.core.results import Compare, Estimate, RecipeResult, SeedResult
from quintet.report.sections.likelihood import Row, likelihood
from quintet.report.view import View


def rows(compare: Compare, folder: Path) -> list[Row]:
    section = likelihood(View(compare, folder))
    assert section is not None
    found: list[Row] = section.values["rows"]
    return found


def test_rows_stand_in_the_order_of_their_bits(tmp_path: Path) -> None:
    found = rows(build(tmp_path, failed=False), tmp_path)
    values = [row.place for row in found if row.place != float("inf")]
    assert values == sorted(values)
    names = {str(row.name) for row in found}
    assert {"vae", "nsf", "flow-matching", "gpt"} <= names
    last = found[-1]
    assert last.name == "gan"
    assert last.own is not None
    assert last.own.missing
    places = [n.at for row in found for n in row.numbers if n.at is not None]
    assert min(places) == 0
    assert max(places) == 100


def test_kinds_and_ways(tmp_path: Path) -> None:
    found = {str(row.name): row for row in rows(build(tmp_path, failed=False), tmp_path)}
    assert [way.kind for way in found["vae"].ways] == ["bound"] * 3
    assert all(way.text.startswith("≤") for way in found["vae"].ways)
    flow, slow = found["flow-matching"].ways
    assert flow.text.startswith("≤")
    assert slow.missing.startswith("not measured")
    assert slow.value is None
    coded = found["gpt"].coded
    assert coded is not None
    assert coded.kind == "size"
    assert found["gpt"].first is not None
    assert sum(row.group == "codec" for row in found.values()) == 4


def one(protocol: str) -> Row:
    metrics = {"bits_per_dim": Estimate(value=2.0, low=1.9, high=2.1, n=9, protocol=protocol)}
    seed = SeedResult(seed=0, status="done", metrics=metrics)
    recipe = RecipeResult(name="nsf", family="flow", status="done", seeds=[seed], likelihood="exact")
    data = {"name": "d", "kind": "image", "shape": [1, 8, 8], "levels": 17}
    compare = Compare(name="c", quintet="0", created="", data=data, budget={}, recipes=[recipe])
    return rows(compare, Path("nowhere"))[0]


@pytest.mark.parametrize(
    ("protocol", "sign", "reading"),
    [
        ("bound: at most; exact for spread values; 17 levels, uniform dequantisation", "≤", "uniform"),
        ("exact; exact; 17 levels, exact; given the label", "", "levels as they are"),
        ("estimate; ODE; 17 levels, density at the level times the cell's width (approximation)", "≈", "approximate"),
        ("exact; 64 quantile bins a column, uniform within a bin", "", "bins"),
        ("exact; continuous, columns standardised", "", "continuous"),
    ],
)
def test_the_protocol_says_the_kind_and_the_reading(protocol: str, sign: str, reading: str) -> None:
    row = one(protocol)
    assert row.own is not None
    assert row.own.text == f"{sign}2.000"
    assert reading in str(row.reading)


def test_nothing_to_show_without_a_likelihood(tmp_path: Path) -> None:
    compare = build(tmp_path, waiting=4)  # the GAN alone is done
    assert likelihood(View(compare, tmp_path)) is None
