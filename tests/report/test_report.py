"""The report: whole, safe, complete in both languages, and honest about what is missing."""

from __future__ import annotations

import json
import re
import shutil
import string
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from fake_comparison import HOSTILE, build
from pydantic import ValidationError

from quintet.core.results import Compare
from quintet.report import write_report
from quintet.report.artefacts import training_log
from quintet.report.words import catalogue, known, pair, say

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
VOID = {"area", "base", "br", "col", "hr", "img", "input", "link", "meta", "path", "circle", "rect", "use"}


class Page(HTMLParser):
    """Every element with its attributes, the text of elements by id, and the pairs of languages."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.unbalanced: list[str] = []
        self.scripts: list[tuple[str, str]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {k: v or "" for k, v in attrs}))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append((dict(attrs).get("type") or "", ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {k: v or "" for k, v in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            kind, text = self.scripts[-1]
            self.scripts[-1] = (kind, text + data)
        elif not self.open or self.open[-1] != "style":
            self.text.append(data)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Build a fake comparison once for each set of arguments and write its report."""
    kept: dict[str, Path] = {}

    def make(kind: str = "images", **options: bool | int) -> Path:
        key = f"{kind}{sorted(options.items())}"
        if key not in kept:
            folder = tmp_path_factory.mktemp("comparison")
            build(folder, kind, **options)  # type: ignore[arg-type]
            kept[key] = write_report(folder)
        return kept[key]

    return make


def body(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", ["images", "points"])
@pytest.mark.parametrize("hostile", [False, True])
def test_page_is_well_formed_and_loads_nothing(made: Callable[..., Path], kind: str, hostile: bool) -> None:
    text = body(made(kind, hostile=hostile))
    page = Page(text)
    assert page.unbalanced == []
    assert page.open == []
    for tag, attributes in page.elements:
        assert tag not in {"link", "iframe", "object", "embed", "base", "audio", "video"}
        for name, value in attributes.items():
            assert not name.startswith("on"), f"{tag} has a handler {name}={value}"
            if name in {"src", "href", "xlink:href", "srcset", "action", "poster", "data"}:
                assert value.startswith(("#", "data:image/png;base64,")), f"{tag} {name}={value[:60]}"
    style = re.search(r"<style>(.*?)</style>", text, re.S)
    assert style is not None
    assert "url(" not in style[1]
    assert "@import" not in style[1]
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for target in re.findall(r'(?:href="#|url\(#)([^")]+)', text):
        assert target in ids


def test_hostile_names_stay_text(made: Callable[..., Path]) -> None:
    path = made(hostile=True)
    page = Page(body(path))
    assert [kind for kind, _ in page.scripts] == ["application/json", ""]
    assert "alert(2)" not in page.scripts[1][1]
    assert not [a for tag, a in page.elements if tag == "img" and not a["src"].startswith("data:")]
    shown = "".join(page.text)
    for name in HOSTILE[:2]:
        assert name in shown  # as text, whole
    assert "49" not in shown.split("toy")[0][:200]  # {{ 7*7 }} in a name is no template


def test_embedded_json_is_the_comparison(made: Callable[..., Path]) -> None:
    path = made(hostile=True)
    embedded = Page(body(path)).scripts[0][1]
    assert "<" not in embedded
    there = Compare.model_validate_json((path.parent / "compare.json").read_bytes())
    assert Compare.model_validate(json.loads(embedded)) == there


@pytest.mark.parametrize("kind", ["images", "points"])
def test_every_text_stands_in_both_languages(made: Callable[..., Path], kind: str) -> None:
    text = body(made(kind))
    order = re.findall(r'data-lang="(en|zh)"', text)
    assert len(order) > 200
    assert order == ["en", "zh"] * (len(order) // 2)
    assert re.search(r"Q\d{3}n*Q", text) is None  # every mark in a chart was exchanged
    assert "#0200" not in text.split("</style>")[1]
    assert "#0100" not in text.split("</style>")[1]


def test_catalogue_is_complete() -> None:
    fields = string.Formatter()
    for key, texts in catalogue().items():
        assert set(texts) == {"en", "zh"}, key
        en, zh = ({name for _, name, _, _ in fields.parse(texts[code]) if name} for code in ("en", "zh"))
        assert en == zh, key
        assert texts["en"].strip(), key
        assert texts["zh"].strip(), key
        assert not re.search(r"[，。；：（）]", texts["en"]), key
        if re.search(r"[\u4e00-\u9fff]", texts["zh"]):
            assert not re.search(r"[\u4e00-\u9fff] ?[,;:(]", texts["zh"]), (
                f"{key}: half-width punctuation after Chinese"
            )


def test_every_key_is_used() -> None:
    folder = Path(__file__).parents[2] / "src" / "quintet" / "report"
    source = "".join(p.read_text(encoding="utf-8") for p in (*folder.rglob("*.py"), *folder.glob("html/*.jinja")))
    open_sections = {
        "answer",
        "entry",
        "need",
        "family",
        "baseline",
        "verdict",
        "status",
        "unit",
        "nav",
        "metric",
        "stability",
        "steadiness",
        "calibration",
        "ledgers",
        "generation",
        "likelihood",
        "articles",
        "event",
        "protocol",
    }
    built = {"copies.near", "copies.far", "copies.quotient"}
    built |= {"charts.x_flops_log", "charts.x_seconds_log"}
    built |= {f"verdicts.front_{name}" for name in ("sampling", "training", "likelihood")}
    for key in catalogue():
        assert key.split(".")[0] in open_sections or f'"{key}"' in source or key in built, key


def test_words_escape_and_fill() -> None:
    assert "<b>" in say("table.lead")
    assert "&lt;i&gt;" in say("pictures.seed", seed="<i>")
    assert pair("same", "same") == "same"
    assert known("need", "<x>") == "&lt;x&gt;"
    with pytest.raises(KeyError):
        say("table.nothing")


def test_same_input_same_bytes_but_for_the_date(tmp_path: Path) -> None:
    for name, created in (("a", "2026-01-01T00:00:00Z"), ("b", "2026-01-01T00:00:00Z"), ("c", "2027-02-03T04:05:06Z")):
        build(tmp_path / name, created=created, seeds=1)
        write_report(tmp_path / name)
    a, b, c = ((tmp_path / name / "report.html").read_text(encoding="utf-8") for name in "abc")
    assert a == b
    assert a != c
    assert a == c.replace("2027-02-03T04:05:06Z", "2026-01-01T00:00:00Z")


def test_failed_recipe_is_a_row_with_its_reason(made: Callable[..., Path]) -> None:
    text = body(made())
    row = re.search(r'<tr class="recipe">\s*<th scope="row">[^\n]*nsf.*?</tr>', text, re.S)
    assert row is not None
    assert "out of memory" in row[0]
    assert "failed" in row[0]
    assert text.count("two returns to a checkpoint did not help") >= 1  # the diverged seed of the other


def test_waiting_recipes(tmp_path: Path) -> None:
    build(tmp_path, waiting=3, failed=False)
    text = body(write_report(tmp_path))
    assert "6 of 15 cells are finished" in text
    assert "共 15 次训练，已完成 6 次" in text
    assert text.count("Not trained yet") == 3


def test_nothing_finished_yet(tmp_path: Path) -> None:
    build(tmp_path, waiting=5)
    compare = json.loads((tmp_path / "compare.json").read_text(encoding="utf-8"))
    compare |= {"baselines": [], "floor": {}, "advice": [], "claims": [], "ranking": {}}
    (tmp_path / "compare.json").write_text(json.dumps(compare), encoding="utf-8")
    (tmp_path / "real.npz").unlink()
    text = body(write_report(tmp_path))
    assert "0 of 15 cells are finished" in text
    assert "There is not enough evidence for advice yet." in text


def test_missing_and_broken_artefacts_are_tolerated(tmp_path: Path) -> None:
    build(tmp_path, seeds=1)
    for k, path in enumerate(sorted(tmp_path.rglob("*.npz"))):
        if k % 3 == 0:
            path.unlink()
        elif k % 3 == 1:
            path.write_bytes(path.read_bytes()[:100])
        else:
            np.savez(path, unrelated=np.zeros(3))
    for path in tmp_path.rglob("log.jsonl"):
        path.write_bytes(path.read_bytes()[:-20] + b'\n[1]\n{"kind": "step", "model": {"total": NaN}}\n\xff')
    page = Page(body(write_report(tmp_path)))
    assert page.unbalanced == []
    assert "no sample file was kept" in "".join(page.text)


def test_a_pickled_array_is_not_loaded(tmp_path: Path) -> None:
    build(tmp_path, seeds=1)
    evil = np.array([{"x": 1}], dtype=object)
    np.savez(tmp_path / "cells" / "gan-s0" / "samples.npz", x=evil)
    write_report(tmp_path)  # does not unpickle, does not fail


def test_null_metric_says_why(made: Callable[..., Path]) -> None:
    text = body(made("points"))
    assert "CAS: not available, needs labels." in text
    assert "CAS：无此数值（needs labels）。" in text
    images = body(made())
    assert "a GAN has no likelihood" in images
    assert "undefined" in images


def test_run_folders_outside_are_not_read(tmp_path: Path) -> None:
    folder = tmp_path / "comparison"
    build(folder, seeds=1)
    shutil.copytree(folder / "cells" / "gan-s0", tmp_path / "outside")
    compare = json.loads((folder / "compare.json").read_text(encoding="utf-8"))
    for seed in compare["recipes"][0]["seeds"]:
        seed["run"] = "../outside"
    (folder / "compare.json").write_text(json.dumps(compare), encoding="utf-8")
    assert "no sample file was kept" in body(write_report(folder))


def test_no_paths_or_hosts_of_this_machine(tmp_path: Path) -> None:
    build(tmp_path, seeds=1)
    compare = json.loads((tmp_path / "compare.json").read_text(encoding="utf-8"))
    compare["recipes"][2]["reason"] = f"cannot write {tmp_path.resolve()}/cells/x and {Path.home()}/y"
    compare["machine"]["hostname"] = "secret-host"
    (tmp_path / "compare.json").write_text(json.dumps(compare), encoding="utf-8")
    text = body(write_report(tmp_path))
    assert str(tmp_path.resolve()) not in text
    assert f"{Path.home()}/" not in text
    assert "secret-host" not in text


def test_schema_is_enforced_and_the_old_page_kept(tmp_path: Path) -> None:
    build(tmp_path, seeds=1)
    before = body(write_report(tmp_path))
    (tmp_path / "compare.json").write_text('{"schema": 2}', encoding="utf-8")
    with pytest.raises(ValidationError):
        write_report(tmp_path)
    assert body(tmp_path / "report.html") == before
    assert not list(tmp_path.glob(".report-*"))


def test_failed_write_leaves_the_old_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(tmp_path, seeds=1)
    before = body(write_report(tmp_path))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("quintet.report.page.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_report(tmp_path)
    assert body(tmp_path / "report.html") == before
    assert not list(tmp_path.glob(".report-*"))


def test_copy_alarm_is_the_metric_s_finding(made: Callable[..., Path]) -> None:
    for kind in ("images", "points"):
        text = body(made(kind))
        assert text.count(">Copy alarm<") == 1  # the bootstrap row, and no model
        assert text.count(">No copy alarm<") == 4


def test_only_trouble_is_marked_in_training_curves(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    lines = [
        {"kind": "step", "seconds": 1.0, "step": 0, "model": {"total": 2.0}, "lr": {"model": 1.0}},
        {"kind": "event", "step": 0, "what": "end_fixed", "steps": 5},
        {"kind": "event", "step": 1, "what": "skipped", "players": ["model"]},
        {"kind": "step", "seconds": 2.0, "step": 1, "model": {"total": None}, "grad_norm": {"model": None}},
        {"kind": "event", "step": 2, "what": "cut", "seconds": 3.0},
    ]
    log.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    found = training_log(tmp_path)
    assert [(e.seconds, e.what) for e in found.events] == [(1.0, "skipped")]
    assert list(found.losses) == ["model"]
    assert found.losses["model"][1].tolist() == [2.0]


def test_charts_give_no_warning(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    build(tmp_path, "points", failed=False)
    write_report(tmp_path)
    assert [str(w.message) for w in recwarn] == []


def _browse(path: Path, fragment: str, home: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    assert CHROMIUM is not None
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
        "--disable-dev-shm-usage", f"--user-data-dir={home}", "--enable-logging=stderr", "--virtual-time-budget=3000",
        *flags, "--dump-dom", f"{path.as_uri()}#{fragment}",
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium to load the page")
@pytest.mark.parametrize("hostile", [False, True])
def test_chromium_shows_the_page_in_both_languages(made: Callable[..., Path], tmp_path: Path, hostile: bool) -> None:
    """The page is driven by a frame of our own around it: language by address, by click, sorting, console errors."""
    source = made(hostile=hostile)
    driver = """
    <script>
    addEventListener("error", (e) => { document.title = "ERROR " + e.message; });
    addEventListener("DOMContentLoaded", () => {
      const log = [];
      const seen = (code) => [...document.querySelectorAll(`[data-lang=${code}]`)]
        .filter((e) => !e.closest("template") && getComputedStyle(e).display !== "none").length;
      const note = (what) => log.push([what, document.documentElement.lang, seen("en"), seen("zh")].join(" "));
      note("start");
      document.querySelector("[data-set=zh]").click(); note("zh");
      document.querySelector("[data-set=en]").click(); note("en");
      const table = document.querySelector("table.sortable");
      const names = () => [...table.tBodies[0].rows].map((r) => r.cells[0].textContent.trim()).join("|");
      const before = names(); table.tHead.rows[0].cells[1].click(); const after = names();
      log.push("sorted " + (before !== after));
      const cell = document.querySelector(".has-more"); cell.dispatchEvent(new MouseEvent("mouseenter"));
      log.push("more " + (!document.getElementById("more").hidden));
      const out = document.createElement("pre"); out.id = "driven"; out.textContent = log.join("\\n");
      document.body.append(out);
    });
    </script>"""
    text = body(source)
    # The driver needs leave to run, so the copy under test has no policy; the page as written is loaded below.
    copy = tmp_path / "driven.html"
    copy.write_text(
        re.sub(r"<meta http-equiv=\"Content-Security-Policy\"[^>]*>", lambda _: driver, text, count=1), encoding="utf-8"
    )
    found = _browse(copy, "en", tmp_path / "home1").stdout
    log = re.search(r'<pre id="driven">(.*?)</pre>', found, re.S)
    assert log is not None, found[:300]
    lines = [line.split() for line in log[1].splitlines()]
    assert "<title>ERROR" not in found
    for what, language, hidden in (("start", "en", 3), ("zh", "zh-CN", 2), ("en", "en", 3)):
        line = next(row for row in lines if row[0] == what)
        assert line[1] == language
        assert int(line[5 - hidden]) > 100  # the language chosen is shown
        assert int(line[hidden]) == 0  # the other is not
    assert ["sorted", "true"] in lines
    assert ["more", "true"] in lines

    whole = _browse(source, "zh", tmp_path / "home2")
    assert '<html lang="zh-CN"' in whole.stdout
    assert "CONSOLE" not in whole.stderr, whole.stderr
    assert "alert" not in whole.stderr
