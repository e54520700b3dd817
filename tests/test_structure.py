"""The house's rules as tests: who may import whom, what must not occur in the code, a fast start, one catalogue."""

from __future__ import annotations

import ast
import re
import string
import subprocess
import sys
from pathlib import Path

import pytest

from quintet.core.messages import catalogue, language, say

PACKAGE = Path(__file__).parents[1] / "src" / "quintet"
MAY_IMPORT = {
    "core": set(),
    "nets": {"core"},
    "samplers": {"core"},
    "data": {"core"},
    "train": {"core"},
    "report": {"core"},
    "families": {"core", "samplers"},
    "metrics": {"core", "nets", "train"},
    "tasks": {"core", "data", "metrics", "samplers"},
    "recipes": {"core", "nets", "samplers", "data", "train", "families", "metrics", "tasks"},
    "compare": {"core", "nets", "samplers", "data", "train", "families", "metrics", "tasks", "recipes"},
    "testing": {"core", "nets", "samplers", "data", "train", "families", "metrics", "tasks", "recipes", "compare"},
    "api": {
        "core", "nets", "samplers", "data", "train", "families", "metrics", "tasks", "recipes", "compare", "report",
    },
}  # fmt: skip


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Dotted names of our own that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return {name for name in found if name.startswith("quintet.")}


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_import_rules(path: Path) -> None:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    layer = parts[0]
    if layer in ("cli", "__init__", "__main__", "_version", "_verbs"):
        return
    allowed = MAY_IMPORT[layer] | {layer, "_version", "_verbs"}
    for name in imports(path):
        target = name.split(".")[1]
        if (PACKAGE / target).is_dir() or (PACKAGE / f"{target}.py").exists():
            assert target in allowed, f"{layer} must not import {name}"
        if layer == "families" and target == "families" and len(parts) > 2 and len(name.split(".")) > 2:
            assert name.split(".")[2] == parts[1], f"families do not import each other: {name}"


def test_nothing_imports_the_faces() -> None:
    for path in modules():
        if path.relative_to(PACKAGE).parts[0] in ("cli", "web", "__main__.py"):
            continue
        assert not {name for name in imports(path) if name.split(".")[1] in ("cli", "web")}, path


FORBIDDEN = {
    "unpickling": r"\bpickle\b|(?<!safetensors\.)torch\.load\(|allow_pickle\s*=\s*True|\bjoblib\b|\bdill\b",
    "evaluating text": r"(?<![\w.])eval\((?!\))|(?<![\w.])exec\(",
    "unsafe yaml": r"yaml\.load\(",
    "a shell": r"shell\s*=\s*True",
    "remote code": r"trust_remote_code\s*=\s*True",
    "torchvision or torchaudio": r"import torch(vision|audio)|from torch(vision|audio)",
    "machine paths": r"/(work|farm|root)/",
    "torch's global generator": r"torch\.(manual_seed|seed)\(",
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_forbidden_in_the_package(what: str) -> None:
    pattern = re.compile(FORBIDDEN[what])
    found = [
        f"{path.relative_to(PACKAGE)}:{number}: {line.strip()}"
        for path in modules()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found, found


def test_importing_quintet_does_not_import_torch() -> None:
    code = "import sys, quintet; print('torch' in sys.modules, 'pydantic' in sys.modules, quintet.__version__)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert out[:2] == ["False", "False"]


def test_help_does_not_import_torch() -> None:
    code = (
        "import sys\nfrom quintet.cli.main import run\n"
        "try:\n    run(['--help'])\nexcept SystemExit as e:\n"
        "    print(e.code, 'torch' in sys.modules, 'numpy' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "0 False False"


def fields(text: str) -> set[str]:
    return {name.split("[")[0].split(".")[0] for _, name, _, _ in string.Formatter().parse(text) if name is not None}


def test_every_message_exists_in_both_languages_with_the_same_fields() -> None:
    assert len(catalogue()) > 100
    for key, texts in catalogue().items():
        assert set(texts) == {"en", "zh"}, key
        assert fields(texts["en"]) == fields(texts["zh"]), key
        assert texts["en"].strip(), key
        assert texts["zh"].strip(), key


def test_every_message_key_in_the_code_exists() -> None:
    pattern = re.compile(r"""(?:Error|Interrupted|say)\(\s*["']([a-z_]+\.[a-z_0-9]+)["']""")
    used = {
        (match, path.name)
        for path in modules()
        if "report" not in path.parts  # the report page has its own texts
        for match in pattern.findall(path.read_text(encoding="utf-8"))
    }
    assert len(used) > 30
    assert not {pair for pair in used if pair[0] not in catalogue()}


def test_language_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("QUINTET_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    assert language() == "en"
    monkeypatch.setenv("LANG", "zh_CN.UTF-8")
    assert language() == "zh"
    monkeypatch.setenv("QUINTET_LANG", "en")
    assert language() == "en"
    assert language("zh") == "zh"
    assert say("cli.stopped", "zh") != say("cli.stopped", "en")


def test_verbs_stay_callable_after_their_subpackages_are_imported() -> None:
    code = (
        "import quintet, quintet.train.loop, quintet.compare.run, quintet.recipes.registry\n"
        "print([r.name for r in quintet.recipes()])\n"
        "print(callable(quintet.train), callable(quintet.compare), quintet.train.loop.__name__)\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "flow-matching" in out
    assert "True True quintet.train.loop" in out
