"""`quintet check`: what it prints in both languages, the report it writes, its exit codes; --data on other commands."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

import quintet
from quintet.cli.main import run


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.setenv("QUINTET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("QUINTET_LANG", "en")
    folder = tmp_path / "photos"
    for label in ("[red]cat", "dog"):
        (folder / label).mkdir(parents=True)
        for i in range(20):
            x = np.random.default_rng(i + 50 * len(label)).integers(0, 256, (9 + i % 3, 11, 3)).astype(np.uint8)
            Image.fromarray(x).save(folder / label / f"{i}.png")
    (folder / "dog" / "zero[b].png").write_bytes(b"")
    return folder


def call(capsys, *words):
    with pytest.raises(SystemExit) as ended:
        run([str(word) for word in words])
    out = capsys.readouterr()
    return int(ended.value.code or 0), out.out, out.err


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_check_prints_and_writes(capsys, photos, tmp_path, lang):
    code, out, err = call(capsys, "check", photos, "-o", tmp_path / "r.json", "--lang", lang)
    assert (code, err) == (0, "")
    for needle in ("[red]cat", "dog/zero[b].png", "3×8×8", "10x11", "PNG"):
        assert needle in out
    assert any("\u4e00" <= letter <= "\u9fff" for letter in out) == (lang == "zh")
    report = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert report["usable"]
    assert report["labels"]["label"].keys() == {"[red]cat", "dog"}
    assert sum(report["splits"].values()) == 40
    assert report["found"]["listed"][0]["reason"] == "zero"


def test_json_options_and_python_agree(capsys, photos, tmp_path):
    words = ("check", photos, "--data", "size=12x16", "--data", "channels=1", "--json", "-o", tmp_path / "r.json")
    code, out, _ = call(capsys, *words)
    assert code == 0
    report = json.loads(out)
    assert report["shape"] == [1, 12, 16]
    assert report == quintet.check(photos, options={"size": "12x16", "channels": 1})


def test_unusable_data_exit_3_with_a_report(capsys, photos, tmp_path):
    for i in range(9):
        (photos / "dog" / f"text{i}.jpg").write_text("no picture")
    code, out, err = call(capsys, "check", photos, "-o", tmp_path / "r.json")
    assert code == 3
    assert "text8.jpg" in out
    assert "allow_bad" in err
    report = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert not report["usable"]
    assert report["found"]["bad"] == 10
    assert call(capsys, "check", photos, "-o", tmp_path / "r.json", "--data", "allow_bad=true")[0] == 0
    assert call(capsys, "check", photos, "--data", "sise=3")[0] == 2
    assert call(capsys, "check", tmp_path / "absent.csv", "-q", "-o", tmp_path / "r.json")[0] == 3


def test_options_reach_train_and_compare(capsys, photos):
    words = (photos, "--data", "size=16", "--budget", "5steps", "--dry-run")
    for command in (("compare", *words, "--recipes", "gan"), ("train", "gan", *words)):
        code, _, err = call(capsys, *command)
        assert code == 0
        assert "3×16×16" in err


def test_data_that_changed_are_noticed_when_a_run_goes_on(capsys, photos, tmp_path):
    words = ("train", "gan", photos, "--budget", "2steps", "-o", tmp_path / "run")
    assert call(capsys, *words)[0] == 0
    (photos / "dog" / "3.png").unlink()
    code, _, err = call(capsys, *words, "--resume")
    assert code == 0
    assert "1 removed, 0 replaced, 0 added" in err
    for more in (("--data", "cache=false"), ("--rescan",)):  # without a copy; a training that is finished
        code, _, err = call(capsys, *words, "--resume", *more)
        assert code == 2
        assert "removed" in err


@pytest.mark.filterwarnings("error::UserWarning", "error::RuntimeWarning")
@pytest.mark.parametrize("recipe", ["gan", "vae", "glow"])
def test_one_image_trains_with_a_warning_and_no_metrics(capsys, photos, tmp_path, recipe):
    one = tmp_path / "one"
    one.mkdir()
    (photos / "dog" / "3.png").rename(one / "3.png")
    words = ("train", recipe, one, "--data", "size=8", "--budget", "2steps", "-o", tmp_path / "run")
    code, _, err = call(capsys, *words)
    assert code == 0
    assert "too few to hold any out" in err
    result = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))
    assert all(estimate["value"] is None for estimate in result["metrics"].values())
    code, _, err = call(capsys, "compare", one, "--data", "size=8", "--recipes", recipe, "--budget", "2steps")
    assert code == 3
    assert "quintet train" in err
