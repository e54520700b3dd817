"""The code of the documents: where the blocks are, and how one of them is run small.

Python blocks of a page run one after another in one folder with common names, as a reader would type them. A block
with a title is written to the file of that name. Lines of bash blocks are commands of ours, make, torchrun or pip.

What runs is what stands on the page, but small:
    trainings       4 steps instead of any budget, one seed, one thread; `compare` without named recipes trains two.
                    Where a page trains the same model a second way, that run gets a folder of its own.
    judging         64 samples; judge networks and baselines are trained for 4 steps, once for each data set: later
                    comparisons of it find them made; no report.html is drawn.
    pictures        of 8 pixels, where an option says more.
    commands        `train` and `compare` are planned (`--dry-run`, with the budget of the page), unless a later line of
                    the page needs what they leave behind; all others run. /shared is the current folder.
A block below the comment `<!-- not run: REASON -->` is not run; the tests count those.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch._dynamo  # noqa: F401  # takes every forked training a second otherwise
import yaml
from PIL import Image

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
LANGUAGES = {"bash", "python", "yaml", "text", "json", "math"}
FENCE = re.compile(
    r"^(?P<pad> *)```(?P<lang>\w*)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<code>.*?)^(?P=pad)```$", re.S | re.M
)
SKIP = re.compile(r"<!-- not run: (?P<why>.+?) -->\s*$")
RECIPES, BUDGET, SAMPLES, NETWORK_STEPS = ("gan", "gpt"), "4steps", 64, 4
TRAINING = ("train", "compare")
PLANNED = (*TRAINING, "demo", "articles")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: relative to the repository.
        line: of the opening fence.
        lang, title, code: as written.
        skip: why it is not run, or None.
    """

    page: str
    line: int
    lang: str
    title: str | None
    code: str
    skip: str | None


def pages(lang: str = "en") -> list[str]:
    """Paths of the documents of one language, relative to the repository."""
    chinese = sorted((DOCS / "zh").rglob("*.md"))
    english = sorted(path for path in DOCS.rglob("*.md") if DOCS / "zh" not in path.parents)
    readme = {"en": ROOT / "README.md", "zh": ROOT / "README.zh-CN.md"}[lang]
    return [str(path.relative_to(ROOT)) for path in (readme, *(english if lang == "en" else chinese))]


def twin(page: str) -> str:
    """The Chinese page of an English one."""
    return "README.zh-CN.md" if page == "README.md" else page.replace("docs/", "docs/zh/", 1)


def blocks(page: str) -> list[Block]:
    """All fenced blocks of a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        before = text[: match.start()]
        skip = SKIP.search(before)
        code = "\n".join(line.removeprefix(match["pad"]) for line in match["code"].splitlines())
        found.append(
            Block(page, before.count("\n") + 1, match["lang"], match["title"], code, skip["why"] if skip else None)
        )
    return found


def commands(block: Block) -> list[str]:
    """The commands of a bash block, continued lines joined and comments left out."""
    lines = block.code.replace("\\\n", " ").splitlines()
    return [line for line in (re.sub(r"\s+#.*$", "", line).strip() for line in lines) if line and line[0] != "#"]


def small(patch: pytest.MonkeyPatch) -> None:
    """Make trainings and judging small, as the head of this file says."""
    from quintet import api
    from quintet.compare import cell, forecast, judging, reference, run
    from quintet.metrics import ladders
    from quintet.metrics.baselines import Local
    from quintet.metrics.judges import network

    plan, job, fit = api.plan_compare, api.train_job, network._fit

    def plan_compare(data: Any = None, recipes: Any = None, **options: Any) -> Any:
        least = {"budget": BUDGET, "within": None, "seeds": 1, "threads": 1, "sensitivity": False}
        return plan(data, list(recipes or RECIPES), **{**options, **least})

    def train_job(*words: Any, **options: Any) -> Any:
        made = job(*words, **{**options, "budget": BUDGET, "threads": 1})
        if made.folder.exists():
            made = replace(made, folder=made.folder.with_name(f"{made.folder.name}-2"))
        return made

    def few_steps(net: Any, x: Any, targets: Any, steps: int, batch: int, rng: Any) -> None:
        fit(net, x, targets, NETWORK_STEPS, batch, rng)

    def write_reference(folder: Path, dataset: Any, samples: int, *more: Any) -> None:
        kept = Path(os.environ["QUINTET_CACHE"]) / f"reference-{dataset.fingerprint}-{samples}"
        judges = next((value for value in more if isinstance(value, Mapping)), {})
        if judges or not kept.exists():
            reference.write_reference(folder, dataset, samples, *more)
        if judges:
            return
        start, end = (folder, kept) if not kept.exists() else (kept, folder)
        shutil.copytree(start / "reference", end / "reference", dirs_exist_ok=True)
        shutil.copy(start / "real.npz", end)

    patch.setattr(api, "plan_compare", plan_compare)
    patch.setattr(run, "write_reference", write_reference)
    patch.setattr(judging, "write_reference", write_reference)
    patch.setattr(api, "train_job", train_job)
    patch.setattr(api, "rewrite", lambda folder: None)
    patch.setattr(api, "rewrite_evaluation", lambda folder: None)
    patch.setattr(network, "_fit", few_steps)
    patch.setattr(Local, "STEPS", NETWORK_STEPS)
    for module, name in (
        (reference, "SAMPLES"), (ladders, "MOST"), (cell, "CHOICE_SAMPLES"), (cell, "SNAPSHOT_SAMPLES"),
        (cell, "PREVIEW_SAMPLES"),
    ):  # fmt: skip
        patch.setattr(module, name, SAMPLES)
    patch.setattr(forecast, "EVALUATION_LEAST_S", 2.0)


def read(page: str) -> int:
    """Type what a page says, in the current folder. Returns: how many blocks ran."""
    names: dict[str, Any] = {"__name__": "page"}
    found = blocks(page)
    for pattern, name, make in WORLD:
        place = Path(name)
        if any(re.search(pattern, block.code) for block in found):
            if make is samples:  # other pages write a folder of that name
                shutil.rmtree(place, ignore_errors=True)
            if not place.exists():
                make(place)
    ran = 0
    for i, block in enumerate(found):
        later = "\n".join(other.code for other in found[i + 1 :])
        if block.skip is None and block.lang in RUN:
            RUN[block.lang](block, names, later)
            ran += 1
    return ran


def run_python(block: Block, names: dict[str, Any], later: str) -> None:
    if block.title is not None:
        Path(block.title).write_text(block.code + "\n", encoding="utf-8")
        sys.modules.pop(Path(block.title).stem, None)
        return
    code = re.sub(r"(\"size\": |size=)\d+", r"\g<1>8", block.code)
    with pytest.MonkeyPatch.context() as patch:
        small(patch)
        exec(compile("\n" * block.line + code, block.page, "exec"), names)  # line numbers as on the page


def run_bash(block: Block, names: dict[str, Any], later: str) -> None:
    lines = commands(block)
    for i, line in enumerate(lines):
        rest = "\n".join([*(other for other in lines[i + 1 :] if not planned(other)), later])
        run_command(line, rest)


def run_command(line: str, rest: str) -> None:
    """One line of a shell, in this process; `rest` is what the page says after it."""
    words = shlex.split(line)
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M), line
    elif words[0] == "pip":
        asked = re.search(r"quintet\[(\w+)\]", line)
        assert asked is None or re.search(rf"^{asked[1]} = ", (ROOT / "pyproject.toml").read_text(), re.M), line
    elif words[0] == "torchrun":
        from torch.distributed.run import get_args_parser

        parsed = get_args_parser().parse_args(words[1:])
        assert parsed.module, line
        assert parsed.training_script == "quintet", line
        words = [word.removeprefix("/shared/") for word in parsed.training_script_args]
        quintet([*words, "--dry-run"], small_too=False)
    else:
        assert words[0] == "quintet", f"unknown command: {line}"
        dry = planned(line) and (words[1] not in TRAINING or "--resume" in words or not needed(words[1:], rest))
        quintet([*words[1:], *(["--dry-run"] if dry and "--dry-run" not in words else [])], small_too=not dry)


def planned(line: str) -> bool:
    """Whether a line asks for trainings."""
    words = line.split()
    return len(words) > 1 and words[0] == "quintet" and words[1] in PLANNED


def needed(words: list[str], rest: str) -> bool:
    """Whether later lines use the folder of a `train` or `compare`, which is not there yet."""
    from quintet.api import slug

    places = [words[i + 1] for i, word in enumerate(words) if word in ("--out", "-o")]
    given = [word for word in words[1:] if not word.startswith("-")]
    if places:
        place = places[0]
    elif "--config" in words:
        return False
    elif words[0] == "train":
        place = f"runs/{slug(given[1])}-{given[0]}-s0"
    else:
        place = f"runs/{slug(given[0])}"
    return not Path(place).exists() and re.search(rf"{re.escape(place)}(?![\w-])", rest) is not None


def quintet(words: list[str], *, small_too: bool) -> None:
    """Our command line, in this process."""
    from quintet.cli.main import run

    with pytest.MonkeyPatch.context() as patch:
        if small_too:
            small(patch)
            words = [re.sub(r"^size=\d+$", "size=8", word) for word in words]
        with pytest.raises(SystemExit) as ended:
            run(words)
    assert not ended.value.code, f"quintet {' '.join(words)}: exit code {ended.value.code}"


def run_yaml(block: Block, names: dict[str, Any], later: str) -> None:
    assert isinstance(yaml.safe_load(block.code), dict), f"{block.page}:{block.line}"


RUN: Mapping[str, Callable[[Block, dict[str, Any], str], None]] = {
    "python": run_python, "bash": run_bash, "yaml": run_yaml,
}  # fmt: skip


# what pages take for granted


def pictures(folder: Path, side: int = 8, count: int = 24, kinds: tuple[str, ...] = ("rose", "tulip")) -> None:
    """A folder of small colour pictures with two classes."""
    rng = np.random.default_rng(0)
    for name in kinds:
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(folder / name / f"{i}.png")


def array(path: Path) -> None:
    rng = np.random.default_rng(1)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, x=rng.integers(0, 17, (200, 8, 8)).astype(np.uint8), y=np.resize(np.arange(10), 200))


def samples(folder: Path) -> None:
    """Pictures that another tool might have made of digits, with labels."""
    rng = np.random.default_rng(2)
    for label in range(10):
        (folder / str(label)).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(folder / str(label) / f"{i}.png")


def archive(make: Callable[[Path], None], path: Path) -> None:
    """A folder that `make` fills, as a zip file."""
    made = path.with_suffix("")
    make(made)
    shutil.make_archive(str(made), "zip", made)


def comparison(folder: Path) -> None:
    quintet(["compare", "digits", "--recipes", "gan,gpt", "--out", str(folder), "--quiet"], small_too=True)


def parquet(folder: Path) -> None:
    """Small grey pictures in place of Fashion-MNIST."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(3)
    folder.mkdir(parents=True)
    rows = []
    for _ in range(60):
        held = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (12, 12), dtype=np.uint8)).save(held, "png")
        rows.append({"bytes": held.getvalue(), "path": None})
    table = pa.table({"image": rows, "label": [i % 3 for i in range(60)]})
    pq.write_table(table, folder / "train-00000.parquet")


WORLD: tuple[tuple[str, str, Callable[[Path], None]], ...] = (
    (r"\bphotos\b", "photos", pictures),
    (r"\bphotographs/", "photographs", pictures),
    (r"\bdata\.npz", "data.npz", array),
    (r"(?<![\w/])samples/", "samples", samples),
    (r"\btheirs\.npz", "theirs.npz", array),
    (r"\bours\.zip", "ours.zip", partial(archive, samples)),
    (r"\bothers\.zip", "others.zip", partial(archive, pictures)),
    (r"\bfashion_mnist\b", "data/fashion_mnist", parquet),
    (r"\bruns/digits(?![\w-])", "runs/digits", comparison),
)
"""What a page's code speaks of, where that lies, and what makes it. $QUINTET_DATA is `data`."""


def skipped() -> Iterator[Block]:
    """Blocks that no test runs."""
    for page in pages():
        yield from (block for block in blocks(page) if block.skip is not None)
