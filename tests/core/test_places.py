"""Where a value lies among corruptions of known size."""

from __future__ import annotations

import pytest

from quintet.core.ladders import Ladder, Rung, described, place, placed


def ladder(corruption: str, strengths: list[float], values: list[float], *, ordered: bool = True) -> Ladder:
    rungs = [
        Rung(corruption=corruption, strength=s, value=v, low=v - 0.1, high=v + 0.1)
        for s, v in zip(strengths, values, strict=True)
    ]
    return Ladder(rungs=rungs, ordered={corruption: ordered})


def test_a_value_between_two_rungs_is_placed_linearly() -> None:
    found = ladder("blur", [0, 0.5, 1.0], [0.0, 1.0, 3.0])
    assert place(found, 0.5, "blur").strength == pytest.approx(0.25)
    assert place(found, 1.0, "blur").strength == pytest.approx(0.5)
    assert place(found, 2.0, "blur").strength == pytest.approx(0.75)
    assert place(found, 3.5, "blur").beyond
    assert place(found, 0.05, "blur") is None  # within the spread of real data
    assert place(found, -1.0, "blur") is None
    assert place(found, 0.5, "noise") is None


def test_falling_metrics_and_falling_strengths() -> None:
    found = ladder("levels", [256, 16, 4], [1.0, 0.8, 0.2])
    assert place(found, 0.5, "levels").strength == pytest.approx(8)  # half way in ratios
    assert place(found, 0.95, "levels") is None
    assert place(found, 1.4, "levels") is None
    assert place(found, 0.1, "levels").beyond


def test_small_reversals_are_flat_and_what_is_not_ordered_places_nothing() -> None:
    found = ladder("noise", [0, 0.1, 0.2, 0.3], [0.0, 2.0, 1.9, 4.0])
    assert place(found, 1.0, "noise").strength == pytest.approx(0.05)
    assert place(found, 3.0, "noise").strength == pytest.approx(0.25)
    assert place(ladder("noise", [0, 1], [0.0, 1.0], ordered=False), 0.5, "noise") is None


def test_words_in_both_languages() -> None:
    found = ladder("blur", [0, 0.5, 1.0], [0.0, 1.0, 3.0])
    assert placed(found, 0.8) == {"en": "as far as blur 0.4", "zh": "相当于模糊 0.4"}
    assert placed(found, 9.0)["en"] == "farther than blur 1"
    assert placed(found, 0.0)["en"] == "not told from real data"
    assert placed(found, None) == {"en": "", "zh": ""}
    assert placed(found.model_copy(update={"used": False}), 0.8) == {"en": "", "zh": ""}
    assert described("classes", 0.3, "en") == "30 % of the classes missing"
    assert described("noise", 0.025, "en") == "2.5 % noise"


def test_a_value_beyond_one_corruption_is_placed_on_the_next() -> None:
    blur, noise = ladder("blur", [0, 1], [0.0, 1.0]), ladder("noise", [0, 0.2], [0.0, 4.0])
    both = Ladder(rungs=[*blur.rungs, *noise.rungs], ordered={"blur": True, "noise": True})
    assert placed(both, 2.0)["en"] == "as far as 10 % noise"
    assert placed(both, 0.5)["en"] == "as far as blur 0.5"
