"""Folders of another version: a message that says what, where and what to do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from quintet import api
from quintet.compare.reference import NOTHING, known_path, read_known, write_known
from quintet.compare.run import COMPARE, read
from quintet.core.errors import UsageError
from quintet.core.results import Estimate


def test_a_reference_goes_to_the_disk_and_back(tmp_path: Path) -> None:
    assert read_known(tmp_path) is None
    known_path(tmp_path).parent.mkdir()
    known = NOTHING.model_copy(update={"floor": {"kid": Estimate(value=0.1)}, "device": "cpu"})
    write_known(tmp_path, known)
    assert read_known(tmp_path) == known


@pytest.mark.parametrize(("change", "what"), [({"ladders": None}, "ladders"), ({"newer": 1}, "newer")])
def test_a_reference_of_another_version_is_refused_before_anything_is_trained(
    tmp_path: Path, change: dict[str, object], what: str
) -> None:
    path = known_path(tmp_path)
    path.parent.mkdir()
    stored = {**NOTHING.model_dump(mode="json", by_alias=True), **change}
    path.write_text(json.dumps({name: value for name, value in stored.items() if value is not None}), encoding="utf-8")
    for call in (api.plan_compare, api.evaluate):
        arguments = ("toy:ring8",) if call is api.plan_compare else (np.ones((30, 2), np.float32), "toy:ring8")
        with pytest.raises(UsageError, match=what) as found:
            call(*arguments, out=tmp_path)
        assert str(path) in str(found.value)
        assert "--out" in str(found.value)
        assert found.value.exit_code == 2


def test_a_comparison_that_is_there_but_cannot_be_read_is_not_called_absent(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No comparison"):
        read(tmp_path)
    (tmp_path / COMPARE).write_text('{"schema": 7}', encoding="utf-8")
    with pytest.raises(UsageError, match="does not fit this version"):
        read(tmp_path)
    (tmp_path / COMPARE).write_text('{"schema": 1', encoding="utf-8")
    with pytest.raises(UsageError, match=r"compare\.json"):
        read(tmp_path)
