"""Strict YAML: what it reads as what, and what it refuses, each with its line."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from quintet.core.errors import UsageError
from quintet.core.yaml import LARGEST, read


def document(tmp_path: Path, text: str | bytes):
    path = tmp_path / "config.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read(path)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4), ("1E3", 1000.0), (".5", 0.5), ("-7", -7), ("3", 3), ("+2", 2), ("0", 0), ("1.", 1.0),
        ("true", True), ("false", False), ("null", None), ("~", None), ("", None),
        ("on", "on"), ("no", "no"), ("yes", "yes"), ("True", "True"), ("NO", "NO"), ("0x10", "0x10"),
        ("1_000", "1_000"), ("12:30:00", "12:30:00"), ("2026-11-21", "2026-11-21"), ("3m", "3m"), ("1,5", "1,5"),
        ("'3'", "3"), ('"true"', "true"), ("[1, a, 2.5]", [1, "a", 2.5]), ("{a: 1}", {"a": 1}), (".inf", float("inf")),
    ],
)  # fmt: skip
def test_values_are_those_of_the_core_schema(tmp_path: Path, text: str, value: object) -> None:
    found = document(tmp_path, f"key: {text}").data["key"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, "second time"),
        ("a: &x 1\nb: *x\n", 1, "anchors"),
        ("a: 1\nb: !!python/object/apply:os.system [ls]\n", 2, "tags"),
        ("a:\n\t- 1\n", 2, "tab"),
        ("a: 1\nsize: 08\n", 2, "begins with a zero"),
        ("a: [1, 2\nb: 3\n", 2, ""),
        ("a: 1\n<<: {b: 2}\n", 2, "plain word"),
        ("? [1, 2]\n: 3\n", 1, "plain word"),
        ("a: 1\n---\nb: 2\n", 2, ""),
    ],
)
def test_what_is_more_than_plain_data_is_refused_with_its_line(tmp_path: Path, text: str, line: int, word: str) -> None:
    with pytest.raises(UsageError) as caught:
        document(tmp_path, text)
    assert f"line {line}" in str(caught.value)
    assert word in str(caught.value)


@pytest.mark.parametrize("text", ["", "# nothing\n", "\n\n", "null"])
def test_an_empty_file_says_how_to_get_a_full_one(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match="quintet config DATA"):
        document(tmp_path, text)


def test_bombs_are_refused_at_once(tmp_path: Path) -> None:
    laughs = "a: &a [x, x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)}, *{chr(97 + i)}]\n" for i in range(9)
    )
    begin = time.perf_counter()
    for text in (laughs, "[" * 3000, "a: " * 400, b"x: " + b"y" * LARGEST, b"a: \xff\xfe"):
        with pytest.raises(UsageError):
            document(tmp_path, text)
    assert time.perf_counter() - begin < 30  # not a measurement: an exponential expansion would never end


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"absent\.yaml"):
        read(tmp_path / "absent.yaml")


def test_lines_are_known_for_every_place(tmp_path: Path) -> None:
    found = document(tmp_path, "a: 1\nb:\n  - c: 2\n    d: 3\n  - e: 4\n")
    assert found.lines["b[0].d"] == 4
    assert found.lines["b[1].e"] == 5
    assert found.line("b[0].d.unknown[3].x") == 4
    assert found.line("nowhere") == 1
