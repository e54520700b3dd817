"""quintet articles: what is fixed, the added measurements against known answers, verdicts over data sets, the pages."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from made_up import recipe, whole

from quintet import api
from quintet.compare import articles
from quintet.compare.articles import BUDGETS, CLASSIC_GAN, FILE, drift, hold, recipes_for
from quintet.compare.cell import build
from quintet.compare.claims import CLAIMS
from quintet.core.articles import Articles, Sentence, Source, overall
from quintet.core.budget import Budget
from quintet.core.rng import Rng
from quintet.core.spec import DataSpec
from quintet.data.sources import open_dataset
from quintet.families.gan.losses import NonSaturating
from quintet.families.gan.model import GANConfig
from quintet.recipes.registry import KINDS, RECIPES
from quintet.report.articles import counts, markdown, write_articles
from quintet.tasks.generate import generate

SIX = np.arange(6) * 0.001


def test_the_classic_gan_is_the_same_network_under_the_loss_of_2014() -> None:
    for spec in (DataSpec("vector", (2,)), DataSpec("image", (1, 8, 8), 17, {"label": 10})):
        (classic,) = CLASSIC_GAN.stages(spec, Budget("seconds", 5))
        (modern,) = RECIPES["gan"].stages(spec, Budget("seconds", 5))
        assert isinstance(classic.model, GANConfig)
        assert isinstance(modern.model, GANConfig)
        assert (classic.model.generator, classic.model.discriminator) == (
            modern.model.generator,
            modern.model.discriminator,
        )
        assert classic.model.loss == NonSaturating()
        extras = (classic.model.gamma, classic.model.gamma_end, classic.model.augment, classic.model.noise)
        assert not any(extras)
        assert not classic.model.coins
        assert type(classic.model).kind in KINDS


def test_what_is_compared_fits_the_data() -> None:
    digits, vector = DataSpec("image", (1, 8, 8), 17, {"label": 10}), DataSpec("vector", (2,))
    clothes = DataSpec("image", (1, 28, 28), 256, {"label": 10})
    for spec in (digits, vector, clothes):
        names = [recipe.name for recipe in recipes_for(spec)]
        assert all(recipe.unfit(spec) is None for recipe in recipes_for(spec))
        assert {"gan", "classic-gan", "vae", "flow-matching", "ddpm", "gpt"} <= set(names)
        assert ("unet" in names) == (spec is digits)
        assert ("dit" in names) == ("lstm" in names) == (spec.kind == "image")
    assert "latent-diffusion" in [recipe.name for recipe in recipes_for(clothes)]


def test_the_unet_of_small_images_is_of_about_dits_size() -> None:
    digits, sizes = open_dataset("digits"), []
    for each in (articles.UNET, RECIPES["dit"]):
        (stage,) = each.stages(digits.spec, Budget("seconds", 10))
        model, codec = build(stage, digits, 0)
        assert generate(model, codec, 2, rng=Rng(0, "test")).x.shape == (2, 1, 8, 8)
        sizes.append(sum(p.numel() for p in model.parameters()))
    assert 0.5 < sizes[0] / sizes[1] < 2


def test_drift_finds_the_half_that_is_worse() -> None:
    rng = np.random.default_rng()
    real = rng.integers(0, 17, (300, 1, 8, 8))
    same, noisy = rng.integers(0, 17, (300, 1, 8, 8)), rng.integers(0, 17, (300, 1, 8, 8))
    noisy[:, :, 4:] = noisy[:, :, 4:] // 4
    even, lower, upper = (drift(x, real) for x in (same, noisy, noisy[:, :, ::-1]))
    assert even.value == pytest.approx(0, abs=0.05)
    assert lower.value > 0.1  # type: ignore[operator]
    assert upper.value == pytest.approx(-lower.value, rel=0.1)  # type: ignore[operator]
    assert lower.low > 0 > upper.high  # type: ignore[operator]


@pytest.mark.parametrize(
    ("words", "word"),
    [
        (["confirmed", "confirmed"], "confirmed"),
        (["confirmed", "not decided"], "not decided"),
        (["confirmed", "confirmed", "not decided"], "confirmed"),
        (["contradicted", "not decided", "contradicted"], "contradicted"),
        (["confirmed", "not decided", "not decided"], "not decided"),
        (["confirmed", "confirmed", "contradicted"], "not decided"),
        (["confirmed", "not tested here"], "confirmed"),
        (["contradicted"], "contradicted"),
        (["confirmed", "contradicted"], "not decided"),
        (["not decided", "not tested here"], "not decided"),
        (["not tested here"], "not tested here"),
        ([], "not tested here"),
    ],
)
def test_one_word_of_several_data_sets(words: list, word: str) -> None:
    assert overall(words) == word


def test_one_test_on_all_data_sets_speaks_alone_unless_they_disagree() -> None:
    assert overall(["confirmed", "not decided", "not decided"], "confirmed") == "confirmed"
    assert overall(["confirmed", "confirmed", "not decided"], "not decided") == "not decided"
    assert overall(["confirmed", "contradicted"], "confirmed") == "not decided"


def rows(gan: float, vae: float) -> list:
    return [recipe("gan", "gan", {"kid": gan + SIX}), recipe("vae", "vae", {"kid": vae + SIX})]


def settled() -> Articles:
    """Two made-up data sets on which GAN and VAE change places."""
    results = [whole(*rows(0.1, 0.3), name="digits"), whole(*rows(0.3, 0.1), name="toy:x", shape=(2,))]
    sources = [
        Source(data=r.data["name"], folder="f", budget="10s", seeds=6, recipes=["gan", "vae"],
               splits={"train": 10, "test": 5}, fingerprint="f") for r in results
    ]  # fmt: skip
    return Articles(
        quintet="0", created="2026-01-01T00:00:00", command="quintet articles", sources=sources,
        machine={"processor": "P <b>", "threads": 1}, sentences=hold(results),
    )  # fmt: skip


def sentence(key: str) -> Sentence:
    return next(s for s in settled().sentences if s.key == key)


def test_data_sets_that_disagree_are_told_apart() -> None:
    found = sentence("gan-over-vae")
    assert [(h.data, h.verdict) for h in found.held] == [("digits", "confirmed"), ("toy:x", "contradicted")]
    assert found.split()
    assert found.verdict == "not decided"
    assert not sentence("gan-unstable").split()
    assert sentence("gan-unstable").held[-1].data == "*"
    assert "12 trainings" in sentence("gan-unstable").held[-1].evidence_en
    assert [h.data for h in sentence("diffusion-loss").held] == [""]
    assert [h.data for h in sentence("diffusion-quality").held] == [""], "no diffusion model anywhere: not tested"
    assert sum(counts(settled())[k] for k in ("confirmed", "contradicted", "undecided", "untested")) == len(CLAIMS)


def test_the_pages_hold_every_sentence_in_both_languages(tmp_path: Path) -> None:
    page = write_articles(settled(), tmp_path).read_text(encoding="utf-8")
    assert "P &lt;b&gt;" in page
    for found in settled().sentences:
        assert f'id="{found.key}"' in page
    for lang, name in (("en", "articles.md"), ("zh", "articles.zh.md")):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert text == markdown(settled(), lang)
        for found in settled().sentences:
            assert text.count(f"### {found.en if lang == 'en' else found.zh}\n") == 1
        assert not re.search(r"\{[a-z_]+\}", text)
    assert "depends on the data (digits confirmed; toy:x contradicted)" in markdown(settled(), "en")
    assert "因数据而异（digits 证实；toy:x 不成立）" in markdown(settled(), "zh")


def test_the_whole_command_on_little_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two recipes for a few steps: comparisons, the added measurements, the file, and nothing twice."""
    monkeypatch.setattr(articles, "ROWS", (("vae",), ("flow-matching",)))
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "small.npz", x=rng.normal(size=(300, 2)).astype(np.float32))
    how = {"seeds": 1, "budget": "10steps", "threads": 1, "device": "cpu"}
    found = api.articles(tmp_path / "out", [str(tmp_path / "small.npz")], **how)  # type: ignore[arg-type]
    assert Articles.model_validate_json((tmp_path / "out" / FILE).read_text()) == found
    cells = list((tmp_path / "out").glob("*/cells/*/result.json"))
    assert len(cells) == 2
    metrics = {path.parent.name: json.loads(path.read_text())["metrics"] for path in cells}
    assert metrics["flow-matching-s0"]["kid_four_steps"]["value"] is not None
    assert "kid_four_steps" not in metrics["vae-s0"]
    before = {path: path.stat().st_mtime_ns for path in cells}
    api.articles(tmp_path / "out", [str(tmp_path / "small.npz")], **how)  # type: ignore[arg-type]
    assert {path: path.stat().st_mtime_ns for path in cells} == before
    page = (next((tmp_path / "out").glob("*/report.html"))).read_text(encoding="utf-8")
    assert "kid_four_steps" in page


def test_the_preset_is_what_the_docs_say() -> None:
    assert BUDGETS == {"digits": "10s", "toy:grid25": "5s", "toy:spirals": "5s"}
    assert articles.SEEDS == 6
    for name in BUDGETS:
        assert open_dataset(name).spec.dims > 0
