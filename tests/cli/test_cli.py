"""The command line as a user meets it: help, wrong calls, exit codes, JSON, both languages, no traceback."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from quintet.cli.main import run
from quintet.recipes.registry import RECIPES

COMMANDS = ("demo", "compare", "train", "sample", "advise", "check", "config", "recipes", "doctor")


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        run(list(words))
    out = capsys.readouterr()
    return int(ended.value.code or 0), out.out, out.err


@pytest.fixture(autouse=True)
def english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUINTET_LANG", "en")
    monkeypatch.setenv("COLUMNS", "200")


@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_in_both_languages(capsys: pytest.CaptureFixture[str], command: str, lang: str) -> None:
    code, out, err = call(capsys, *([command] if command else []), "--help", "--lang", lang)
    assert (code, err) == (0, "")
    has_chinese = any("\u4e00" <= letter <= "\u9fff" for letter in out)
    assert has_chinese == (lang == "zh")


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["nonsense"], 2, "nonsense"),
        (["compare"], 2, "DATA"),
        (["compare", "digits", "--budget", "30"], 2, "30s"),
        (["compare", "digits", "--budget", "3s", "--within", "5m"], 2, "--within"),
        (["compare", "digits", "--recipes", "gann"], 2, "gan"),
        (["compare", "no/such/file.npz"], 3, "no/such/file.npz"),
        (["compare", "toy:rign8"], 3, "ring8"),
        (["train", "flow", "digits"], 2, "flow-matching"),
        (["train", "vae", "toy:ring8", "--set", "train.bacth=3", "--dry-run"], 2, "batch"),
        (["train", "vae", "toy:ring8", "--device", "tpu"], 2, "tpu"),
        (["sample", "nowhere"], 2, "nowhere"),
        (["sample", "nowhere:best"], 2, "nowhere"),
        (["advise", "nowhere"], 2, "nowhere"),
        (["advise", "--need", "beauty"], 2, "quality"),
        (["demo", "--lang", "fr"], 2, "fr"),
    ],
)
def test_a_users_error_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], code: int,
    says: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    got, _, err = call(capsys, *words)
    assert got == code
    assert says in err
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())  # nothing was written


def test_no_arguments_show_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, err = call(capsys)
    assert "compare" in out + err


def test_version_recipes_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "--version")[1].startswith("quintet ")
    code, out, _ = call(capsys, "recipes", "digits", "--json")
    rows = {row["recipe"]: row for row in json.loads(out)}
    assert code == 0
    assert set(rows) == set(RECIPES)
    assert all(row["parameters"] > 0 for row in rows.values())
    code, out, _ = call(capsys, "doctor", "--json")
    assert (code, json.loads(out)["problems"]) == (0, [])
    assert "torch" in call(capsys, "doctor", "--lang", "zh")[1]


def test_dry_run_plans_and_writes_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = call(capsys, "compare", "digits", "--within", "30m", "--dry-run", "--json")
    plan = json.loads(out)
    assert code == 0
    assert plan["cells"] == 5 * plan["seeds"]
    assert plan["seconds"] <= 1800
    assert {row["recipe"] for row in plan["recipes"]} == {"gan", "vae", "nsf", "flow-matching", "gpt"}
    code, out, _ = call(capsys, "train", "gpt", "digits", "--dry-run", "--json", "--set", "train.batch=8")
    assert (code, json.loads(out)["recipe"]) == (0, "gpt")
    assert not list(tmp_path.iterdir())


def test_train_then_sample(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng().integers(0, 5, (200, 8, 8)).astype(np.uint8)
    np.savez("data.npz", x=x, y=np.resize(["cat", "<b>dog</b>"], 200))
    code, out, err = call(capsys, "train", "vae", "data.npz", "--budget", "4steps", "-o", "run", "--threads", "1")
    assert code == 0, err
    assert "quintet sample run" in out
    code, out, _ = call(capsys, "sample", "run", "-n", "3", "--label", "cat", "-o", "made", "--json")
    assert code == 0
    assert json.loads(out)["n"] == 3
    assert {p.name for p in Path("made").iterdir()} == {
        "grid.png",
        "samples.npz",
        "00000.png",
        "00001.png",
        "00002.png",
    }
    with np.load("made/samples.npz") as stored:
        assert stored["x"].shape == (3, 1, 8, 8)
        assert stored["x"].max() <= 4
    for name in ("x.png", "x.npy", "x.csv"):
        assert call(capsys, "sample", "run", "-n", "2", "-o", name)[0] == 0
        assert Path(name).stat().st_size > 0
    assert call(capsys, "sample", "run", "--label", "horse")[0] == 2
    code, _, err = call(capsys, "sample", "run", "--stepps", "3")
    assert code == 2
    assert "stepps" in err
    assert call(capsys, "sample", "run", "-n", "0")[0] == 2
    code, _, err = call(capsys, "train", "vae", "data.npz", "--budget", "4steps", "-o", "run")
    assert code == 2
    assert "--resume" in err


def test_piped_into_a_reader_that_stops() -> None:
    code = f"{sys.executable} -m quintet.cli.main recipes --json | head -c 5"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", code], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
