"""Configs: strict, round-tripping, with errors that name the nearest field."""

from __future__ import annotations

import json

import pytest
from pydantic.dataclasses import dataclass

from quintet.core import config
from quintet.core.config import STRICT, Config
from quintet.core.errors import UsageError
from quintet.core.recipe import OptimizerConfig, TrainConfig


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Inner(Config):
    kind = "inner"
    width: int = 3
    rates: tuple[float, ...] = (0.1, 0.2)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Outer(Config):
    kind = "outer"
    part: Config
    table: dict[str, Inner]
    note: str | None = None


KINDS: dict[str, type[Config]] = {"inner": Inner, "outer": Outer}
VALUE = Outer(part=Inner(width=5), table={"a": Inner()})


def test_round_trip_through_json() -> None:
    data = json.loads(json.dumps(config.encode(VALUE)))
    assert data["part"] == {"kind": "inner", "width": 5, "rates": [0.1, 0.2]}
    assert config.decode(data, KINDS) == VALUE


def test_override() -> None:
    changed = config.override(VALUE, "part.width", "7")
    assert changed.part.width == 7
    assert VALUE.part.width == 5
    assert config.override(VALUE, "table.a.rates", "[1, 2]").table["a"].rates == (1.0, 2.0)
    assert config.override(VALUE, "note", "hello").note == "hello"
    assert config.override(VALUE, "table.a.rates.1", "9").table["a"].rates == (0.1, 9.0)


@pytest.mark.parametrize(
    ("path", "text", "says"),
    [("part.widht", "7", "width"), ("part.width", "seven", "width"), ("note.x", "1", "note"), ("prat", "1", "part"),
     ("table.b.width", "1", "a"), ("table.a.rates.5", "1", "0..1")],
)  # fmt: skip
def test_wrong_overrides_name_what_is_known(path: str, text: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        config.override(VALUE, path, text)
    assert says in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [
        (OptimizerConfig, "clip", -1.0), (OptimizerConfig, "clip", 0.0), (OptimizerConfig, "clip", float("nan")),
        (OptimizerConfig, "betas", (0.9, 1.0)), (OptimizerConfig, "beta2_end", 1.0), (TrainConfig, "ema", (0.3,)),
        (TrainConfig, "ema", (0.1, 0.0)),
    ],
)  # fmt: skip
def test_training_refuses_numbers_that_cannot_train(config: type, field: str, value: object) -> None:
    more = {"optimizers": {}} if config is TrainConfig else {}
    with pytest.raises(ValueError, match=field):
        config(**more, **{field: value})


def test_unknown_kind() -> None:
    with pytest.raises(UsageError, match="inner, outer"):
        config.decode({"kind": "iner"}, KINDS)


def test_only_plain_values() -> None:
    with pytest.raises(TypeError, match="object"):
        config.encode({"x": object()})


def test_override_of_a_whole_part() -> None:
    changed = config.override(VALUE, "part", '{"kind": "inner", "width": 9}', kinds=KINDS)
    assert changed.part == Inner(width=9)
    with pytest.raises(UsageError, match="inner, outer"):
        config.override(VALUE, "part", '{"kind": "iner"}', kinds=KINDS)
