"""One suite over every registered recipe and kind of data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from quintet.core.budget import Budget
from quintet.core.spec import DataSpec
from quintet.recipes.registry import RECIPES
from quintet.testing import Check, checks

DATA = {
    "labelled-images": DataSpec("image", (1, 8, 8), levels=5, conditions={"label": 3}),
    "images": DataSpec("image", (3, 4, 4), levels=4),
    "vectors": DataSpec("vector", (2,)),
    "labelled-vectors": DataSpec("vector", (3,), conditions={"group": 2}),
}


def cases() -> Iterator[Any]:
    for name, recipe in RECIPES.items():
        for kind, spec in DATA.items():
            if recipe.unfit(spec) is not None:
                continue
            for stage in recipe.stages(spec, Budget.parse("60s")):
                for check in checks(stage, spec):
                    yield pytest.param(check, id=f"{name}-{kind}-{stage.name}-{check.name}")


@pytest.mark.parametrize("check", list(cases()))
def test_contract(check: Check) -> None:
    check()


def test_every_recipe_is_examined() -> None:
    examined = {name for name, recipe in RECIPES.items() if any(recipe.unfit(spec) is None for spec in DATA.values())}
    assert examined == set(RECIPES)
