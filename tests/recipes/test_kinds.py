"""Config classes from outside: found in a recipe's stages, known from then on, never mixed up."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic.dataclasses import dataclass

from quintet.core.budget import Budget
from quintet.core.config import STRICT, Config, classes, decode, encode
from quintet.core.errors import UsageError
from quintet.core.recipe import OptimizerConfig, Stage, TrainConfig
from quintet.core.spec import DataSpec
from quintet.recipes.registry import KINDS, RECIPES, add_kinds

IMAGES = DataSpec("image", (1, 8, 8), 17, {"label": 10})


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Part(Config):
    kind = "test-part"
    size: int = 3


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Whole(Config):
    kind = "test-whole"
    parts: tuple[Part, ...] = ()
    named: dict[str, OptimizerConfig]


WHOLE = Whole(parts=(Part(), Part(size=4)), named={"model": OptimizerConfig(lr=0.5)})


@pytest.fixture(autouse=True)
def kinds(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = dict(KINDS)
    yield
    KINDS.clear()
    KINDS.update(before)


def test_classes_are_found_in_fields_tuples_and_dicts() -> None:
    assert classes(WHOLE) == {Whole, Part, OptimizerConfig}
    assert classes(({"a": (Part(),)}, 3, "text", None)) == {Part}
    stages = RECIPES["latent-diffusion"].stages(DataSpec("image", (1, 32, 32), 256), Budget.parse("60s"))
    found = classes(stages)
    assert {Stage, TrainConfig, OptimizerConfig} < found
    assert found <= set(KINDS.values())


def test_a_run_with_classes_from_outside_is_read_once_they_are_known() -> None:
    stored = encode(WHOLE)
    with pytest.raises(UsageError, match="test-"):
        decode(stored, KINDS)
    add_kinds(classes(WHOLE))
    assert decode(stored, KINDS) == WHOLE


def test_a_class_without_a_kind_of_its_own_is_its_parent_s() -> None:
    variant = type("Variant", (Part,), {})
    add_kinds([Part, variant])
    assert KINDS["test-part"] is Part


def test_a_class_that_was_defined_again_replaces_itself_and_another_one_is_refused() -> None:
    def define(name: str, kind: str) -> Any:
        return type(name, (Config,), {"kind": kind, "__module__": "notebook", "__qualname__": name})

    first, again = define("Mine", "test-mine"), define("Mine", "test-mine")
    add_kinds([first])
    add_kinds([again])
    assert KINDS["test-mine"] is again
    with pytest.raises(UsageError, match="test-mine"):
        add_kinds([define("Other", "test-mine")])
    with pytest.raises(UsageError, match="'gan'"):
        add_kinds([define("MyGAN", "gan")])
