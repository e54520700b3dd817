"""Config files: written, read back the same, and wrong ones refused with file and line."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from quintet import api
from quintet.core import yaml
from quintet.core.budget import Budget
from quintet.core.config import Config
from quintet.core.errors import UsageError
from quintet.core.recipe import Stage
from quintet.core.spec import DataSpec
from quintet.recipes import files
from quintet.recipes.registry import KINDS, RECIPES

SPECS = (
    DataSpec("image", (1, 8, 8), 17, {"label": 10}),
    DataSpec("image", (3, 30, 40), 256),
    DataSpec("vector", (5,), None, {"label": 2}),
    DataSpec("tokens", (20,), 40),
)
BUDGET = Budget.parse("2m")


def written(tmp_path: Path, spec: DataSpec, lang: str = "en") -> Path:
    recipes = [recipe for recipe in RECIPES.values() if recipe.unfit(spec) is None]
    path = tmp_path / "config.yaml"
    path.write_text(files.write("some/data", spec, recipes, BUDGET, seeds=2, lang=lang), encoding="utf-8")
    return path


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.kind}{spec.dims}")
@pytest.mark.parametrize("lang", ["en", "zh"])
def test_a_file_means_what_the_command_without_it_means(tmp_path: Path, spec: DataSpec, lang: str) -> None:
    found = files.read(written(tmp_path, spec, lang))
    assert (found.data, found.budget, found.seeds) == ("some/data", str(BUDGET), 2)
    assert found.recipes
    for name, recipe in found.recipes.items():
        assert recipe.family == RECIPES[name].family
        assert recipe.stages(spec, BUDGET) == RECIPES[name].stages(spec, BUDGET)


def test_every_field_of_every_config_stands_in_the_file(tmp_path: Path) -> None:
    spec = SPECS[0]
    data = yaml.read(written(tmp_path, spec)).data

    def compare(value: object, stored: object) -> None:
        if isinstance(value, Config):
            assert isinstance(stored, dict)
            assert set(stored) == {"kind", *(f.name for f in dataclasses.fields(value))}  # type: ignore[arg-type]
            for name in set(stored) - {"kind"}:
                compare(getattr(value, name), stored[name])

    for name, content in data["recipes"].items():
        for stage, stored in zip(RECIPES[name].stages(spec, BUDGET), content["stages"], strict=True):
            compare(stage, stored)


def test_fields_are_explained(tmp_path: Path) -> None:
    text = written(tmp_path, SPECS[1]).read_text(encoding="utf-8")
    for field, said in (
        ("batch", "examples per step"),
        ("share", "of the recipe's budget"),
        ("gamma", "gradient penalties"),
    ):
        assert re.search(rf"# .*{said}.*\n(\s*# .*\n)*\s*{field}:", text), field


def edited(tmp_path: Path, old: str, new: str) -> Path:
    path = tmp_path / "one.yaml"
    spec = SPECS[0]
    text = files.write("digits", spec, [RECIPES["vae"], RECIPES["latent-diffusion"]], BUDGET)
    assert text.count(old) >= 1, old
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("batch: ", "bach: ", "Did you mean: batch"),
        ("recipes:", "recipies:", "Did you mean: recipes"),
        ("family: vae", "famly: vae", "Did you mean: family"),
        ("warmup: ", "warmup: many # ", "warmup"),
        ("kind: train", "kind: trian", "unknown kind 'trian'"),
        ("budget: ", "budget: soon # ", "soon"),
        ("budget: ", "budget: 3 # ", "expected text"),
        ("data: digits", "data: 5", "expected text"),
        ("share: 0.35", "share: 0.5", "sum to 1"),
        ('needs: {"first": "autoencoder"}', 'needs: {"first": "nothing"}', "no earlier stage"),
        ("family: vae", "family: cats", "says its family"),
        ("  vae:", "  mine:\n    stages: []\n  vae:", "says its family"),
    ],
)
def test_mistakes_are_refused_with_file_and_line(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = edited(tmp_path, old, new)
    with pytest.raises(UsageError) as caught:
        files.read(path)
    message = str(caught.value)
    assert said in message
    line = int(re.search(r"one\.yaml, line (\d+)", message)[1])
    text = path.read_text(encoding="utf-8").splitlines()
    needle = new.strip().splitlines()[0].split(":")[0]
    assert any(needle in text[i] or said.startswith("sum") for i in range(max(0, line - 2), min(len(text), line + 1)))


def test_a_recipe_may_have_a_name_of_its_own_and_leave_defaults_out(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        """
data: digits
recipes:
  plain-vae:
    family: vae
    stages:
      - {kind: stage, name: model, codec: {kind: levels},
         model: {kind: vae, encoder: {kind: mlp}, decoder: {kind: mlp}, width: 4,
                 prior: {kind: standard-normal-prior}, likelihood: {kind: discretised-logistic-likelihood}},
         train: {kind: train, optimizers: {model: {kind: optimizer, lr: 1e-3}}}}
""",
        encoding="utf-8",
    )
    found = files.read(path)
    (stage,) = found.find("plain-vae").stages(SPECS[0], BUDGET)
    assert stage.train.batch == 256
    with pytest.raises(UsageError, match="plain-vae"):
        found.find("gan")
    planned = api.plan_compare(config=path, out=tmp_path / "out", budget="10s", seeds=1)
    assert [recipe.name for recipe in planned.recipes] == ["plain-vae"]
    job = api.train_job("plain-vae", config=path, out=tmp_path / "run")
    assert (job.dataset.name, str(job.budget)) == ("digits", "1m")


def test_what_is_given_beside_a_file_wins(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(api.write_config("digits", ["vae"], budget="30s", seeds=2), encoding="utf-8")
    plain = api.plan_compare(config=path, out=tmp_path / "a")
    assert (str(plain.budget), plain.seeds) == ("30s", 2)
    other = api.plan_compare("toy:ring8", config=path, out=tmp_path / "b", budget="5s", seeds=1)
    assert (other.dataset.name, str(other.budget), other.seeds) == ("toy:ring8", "5s", 1)
    with pytest.raises(UsageError, match="No data"):
        api.plan_compare()


def test_every_field_of_every_kind_is_explained() -> None:
    bare = [
        f"{kind}.{field.name}"
        for kind, cls in KINDS.items()
        for field in dataclasses.fields(cls)  # type: ignore[arg-type]
        if len(files.explained(cls).get(field.name, "").split()) < 2
    ]
    assert not bare, f"write an Attributes line for each of {bare}"


def test_every_kind_and_every_field_is_explained_in_chinese_too() -> None:
    told = files.kinds()
    assert told.keys() == KINDS.keys()
    for kind, cls in KINDS.items():
        names = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        assert told[kind].get("fields", {}).keys() == names, f"kinds.toml, [{kind}]"
        assert {"en", "zh"} <= told[kind].keys()
        english, chinese = files.explained(cls), files.explained(cls, "zh")
        for name in names:
            assert re.search("[\u4e00-\u9fff]", chinese[name]) or "->" in chinese[name], f"{kind}.{name}"
            said = set(re.findall(r'"[^"]+"|`[^`]+`', english[name])) - set(
                re.findall(r'"[^"]+"|`[^`]+`', chinese[name])
            )
            assert not said, f"{kind}.{name}: the Chinese text does not speak of {said}"


def test_a_config_speaks_the_language_asked_for(tmp_path: Path) -> None:
    text = {lang: files.write("digits", SPECS[0], [RECIPES["gan"]], BUDGET, lang=lang) for lang in ("en", "zh")}
    comments = {lang: re.findall(r"# (.*)", written) for lang, written in text.items()}
    plain = {lang: [re.sub(r"\s*#.*", "", line) for line in written.splitlines()] for lang, written in text.items()}
    assert not any(re.search("[\u4e00-\u9fff]", line) for line in comments["en"])
    assert any("梯度惩罚" in line for line in comments["zh"])
    assert [line for line in plain["en"] if line] == [line for line in plain["zh"] if line]
    for line in text["zh"].splitlines():
        wide = sum(1 + ("\u2e80" <= letter <= "\uffef") for letter in line)
        assert wide <= files.WIDTH + 2 or "kind:" in line, line  # a mark may stand beyond the end


def test_a_kind_of_the_users_own_keeps_its_docstring() -> None:
    class Own(Stage):
        """Own.

        Attributes:
            name: what it is called.
        """

        kind = "own"

    assert files.explained(Own, "zh")["name"] == "what it is called."
    assert files.about(Own, "zh") == ""
