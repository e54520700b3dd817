"""`quintet compress` and `quintet decompress` as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import quintet
from quintet.cli.main import run


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        run(list(words))
    out = capsys.readouterr()
    return int(ended.value.code or 0), out.out, out.err


def test_there_and_back(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUINTET_LANG", "en")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    levels = np.random.default_rng(0).integers(0, 3, (60, 1, 3, 3), dtype=np.uint8)
    np.savez("small.npz", x=levels)
    quintet.train("gpt", "small.npz", budget="3steps", out="run", threads=1)
    code, out, err = call(capsys, "compress", "run", "small.npz", "-n", "4", "-o", "few.qtz", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    data = quintet.open_dataset("small.npz")
    parts = [part.x[:4] for part in (data.train, data.validation, data.judge, data.test)]
    assert found["count"] == sum(map(len, parts))
    assert found["bytes"] == Path("few.qtz").stat().st_size
    assert found["raw_bytes"] == 9 * found["count"]
    assert found["bits_per_dim"] > found["values_bits_per_dim"] > 0.9 * found["model_bits_per_dim"] > 1
    code, out, _ = call(capsys, "decompress", "few.qtz", "-o", "back.npz")
    assert code == 0
    assert "back.npz" in out
    with np.load("back.npz") as stored:
        assert np.array_equal(stored["x"], np.concatenate(parts))
        assert stored["parts"].tolist() == list(map(len, parts))
    Path("run").rename("moved")
    for words, status, says in (
        (["decompress", "few.qtz"], 2, "--run"),
        (["decompress", "small.npz", "--run", "moved"], 3, "no file that"),
        (["decompress", "nothing.qtz"], 3, "nothing.qtz"),
        (["compress", "moved", "digits"], 2, "trained on"),
        (["compress", "moved", "small.npz", "--part", "rest"], 2, "rest"),
    ):
        code, _, err = call(capsys, *words)
        assert code == status, words
        assert says in err
        assert "Traceback" not in err
    assert call(capsys, "decompress", "few.qtz", "--run", "moved", "-o", "again.npz", "--quiet")[:2] == (0, "")
    code, out, _ = call(capsys, "compress", "moved", "small.npz", "--part", "test", "-o", "t.qtz", "--lang", "zh")
    assert code == 0
    assert "比特" in out
