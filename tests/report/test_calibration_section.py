"""The section on calibration: models placed on ladders, and metrics that are not used."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fake_comparison import build

from quintet.core.ladders import Ladder, Rung
from quintet.core.results import Compare
from quintet.report import table
from quintet.report.page import render
from quintet.report.sections.calibration import calibration, unused
from quintet.report.view import View


def ladder(values: dict[str, list[float]], *, missed: str = "") -> Ladder:
    """Clean data and three rungs of each corruption, 0.1, 0.3 and 0.5 strong."""
    rungs = [
        Rung(corruption=name, strength=strength, value=value, low=value - 1e-6, high=value + 1e-6)
        for name, row in values.items()
        for strength, value in zip((0.0, 0.1, 0.3, 0.5), row, strict=True)
    ]
    ordered = {name: name != missed for name in values}
    must = ["blur", "noise"]
    return Ladder(rungs=rungs, ordered=ordered, must=must, used=not missed, reason=f"does not order {missed}")


@pytest.fixture
def found(tmp_path: Path) -> tuple[Compare, Path]:
    compare = build(tmp_path / "x", failed=False)
    steps = [0.0, 0.5, 5.0, 50.0]
    ladders = {
        "kid": ladder({"blur": steps, "noise": [v / 2 for v in steps]}),
        "fd": ladder({"blur": steps, "noise": steps}, missed="noise"),
    }
    return compare.model_copy(update={"ladders": ladders}), tmp_path / "x"


def test_models_and_baselines_are_placed(found: tuple[Compare, Path]) -> None:
    compare, folder = found
    section = calibration(View(compare, folder))
    assert section is not None
    assert section.values["metrics"] == ["kid"]  # fd is not used
    row = next(row for row in section.values["rows"] if row.name == compare.recipes[0].name)
    value = table.estimate(compare.recipes[0], "kid").value
    expected = 0.1 * value / 0.5 if value <= 0.5 else None
    assert expected is not None
    assert f"as far as blur {expected:.2g}" in row.spots[0].words
    assert "相当于模糊" in row.spots[0].words
    assert "above the floor" in row.spots[0].excess
    seen = {row.metric: row.seen for row in section.values["checked"]}
    assert seen["kid"] == ("yes", "yes")
    assert seen["fd"] == ("yes", "missed")


def test_what_is_not_used_is_said_and_grey(found: tuple[Compare, Path]) -> None:
    compare, folder = found
    assert unused(compare, "kid") is None
    assert unused(compare, "precision") is None
    page = render(compare, folder)
    assert page.count('id="calibration"') == 1
    text = re.sub(r"<[^>]*>", "", page)
    assert "not used: blind to degrees of noise" in text
    assert "不采用：看不出噪声的轻重" in text
    assert re.search(r'<td data-sort="[^"]*" class="[^"]*unused', page)


def test_nothing_without_ladders(tmp_path: Path) -> None:
    compare = build(tmp_path / "y", failed=False)
    assert calibration(View(compare, tmp_path / "y")) is None
    assert 'id="calibration"' not in render(compare, tmp_path / "y")
