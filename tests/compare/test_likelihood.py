"""A cell's likelihoods: every family states its ways on the same examples, and bytes prove what is exact."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import quintet
from quintet.compare.cell import build
from quintet.compare.likelihood import likelihoods
from quintet.core.budget import Budget
from quintet.core.errors import DataError, UsageError
from quintet.core.results import Estimate
from quintet.data.dataset import Split
from quintet.recipes.load import Trained
from quintet.recipes.registry import find


@pytest.fixture(scope="module")
def gpt(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return quintet.train("gpt", "digits", budget="12steps", out=tmp_path_factory.mktemp("runs") / "gpt", threads=1)


def untrained(name: str) -> Trained:
    data = quintet.open_dataset("digits")
    (stage,) = find(name).stages(data.spec, Budget("steps", 1))
    model, codec = build(stage, data, 0)
    return Trained(Path(), {"recipe": name, "stages": []}, model.eval(), codec, {})


def measured(trained: Trained, examples: int = 500, limit_s: float = 20.0) -> dict[str, Estimate]:
    data = quintet.open_dataset("digits")
    test = Split(data.test.x[:examples], {name: values[:examples] for name, values in data.test.labels.items()})
    return likelihoods(trained, replace(data, test=test), 0, limit_s, draw_s=0.1)


def test_an_exact_model_is_proved_by_its_bytes(gpt: Trained) -> None:
    found = measured(gpt)
    assert set(found) == {"bits_per_dim", "bits_per_dim_first", "coded_bits_per_dim", "file_bits_per_dim"}
    says, bytes_say, file = (found[n].value for n in ("bits_per_dim_first", "coded_bits_per_dim", "file_bits_per_dim"))
    assert says is not None
    assert bytes_say is not None
    assert file is not None
    assert abs(says - bytes_say) < 0.01
    assert bytes_say < file < bytes_say + 0.4  # labels and a head of less than a hundred bytes
    assert found["bits_per_dim_first"].n == found["coded_bits_per_dim"].n == 64
    assert found["bits_per_dim"].protocol.startswith("exact")
    assert "decoded again bit for bit" in found["coded_bits_per_dim"].protocol


def test_no_time_is_said(gpt: Trained) -> None:
    found = likelihoods(gpt, quintet.open_dataset("digits"), 0, 20.0, draw_s=1000.0)
    assert found["coded_bits_per_dim"].value is None
    assert "not measured" in found["coded_bits_per_dim"].protocol
    assert "bits_per_dim_first" not in found
    assert set(likelihoods(untrained("vae"), quintet.open_dataset("digits"), 0, 5.0)) == {"bits_per_dim"}


def test_every_way_on_the_same_examples() -> None:
    for name, ways in (("vae", ("elbo", "iw", "ais")), ("vdm", ("vlb", "ode")), ("nsf", ("iw",))):
        found = measured(untrained(name), 20, 30.0)
        assert set(found) == {"bits_per_dim", "bits_per_dim_first", *(f"bits_per_dim_{way}" for way in ways)}
        measured_ways = [found[f"bits_per_dim_{way}"] for way in ways if found[f"bits_per_dim_{way}"].value is not None]
        assert measured_ways
        assert {e.n for e in measured_ways} <= {found["bits_per_dim_first"].n}
        for way in ways:
            e = found[f"bits_per_dim_{way}"]
            kind = "estimate" if way == "ode" else "bound"
            assert e.protocol.startswith(kind if e.value is not None else "not measured")
        values = {way: found[f"bits_per_dim_{way}"].value for way in ways}
        first = found["bits_per_dim_first"].value
        assert first is not None
        if name == "vae" and values["iw"] is not None and values["elbo"] is not None:
            assert values["iw"] < values["elbo"]
        if name == "nsf":
            assert values["iw"] is not None
            assert values["iw"] < first + 0.01  # no worse; this density is flat over cells
            assert found["bits_per_dim"].protocol.startswith("bound: at most")
            assert "uniform dequantisation" in found["bits_per_dim"].protocol


def test_the_verbs_restore_a_data_set(gpt: Trained, tmp_path: Path) -> None:
    run, data = gpt.folder, quintet.open_dataset("digits")
    made = quintet.compress(run, "digits", tmp_path / "test.qtz", part="test")
    assert made.head.parts == (0, 0, 0, len(data.test))
    assert quintet.compress(run, "digits", count=3).head.parts == (3, 3, 3, 3)
    found = quintet.decompress(tmp_path / "test.qtz", tmp_path / "back.npz")
    assert np.array_equal(found["x"], data.test.x)
    assert np.array_equal(found["label"], data.test.labels["label"])
    with np.load(tmp_path / "back.npz") as stored:
        assert np.array_equal(stored["x"], data.test.x)
    np.savez(tmp_path / "other.npz", x=data.test.x[:40, :, :4])
    with pytest.raises(UsageError, match="trained on"):
        quintet.compress(run, tmp_path / "other.npz")
    with pytest.raises(UsageError, match="no part"):
        quintet.compress(run, "digits", part="tset")
    changed = bytearray((tmp_path / "test.qtz").read_bytes())
    changed[6] ^= 1  # a byte of the model's hash
    (tmp_path / "other.qtz").write_bytes(changed)
    with pytest.raises(UsageError, match="another model"):
        quintet.decompress(tmp_path / "other.qtz", run=run)
    (tmp_path / "no.qtz").write_bytes(b"something else altogether, long enough for a head")
    with pytest.raises(DataError, match="no file"):
        quintet.decompress(tmp_path / "no.qtz")
