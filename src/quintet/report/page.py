"""Page: everything of a comparison folder gathered and written as report.html.

One file: pictures, charts, style and script are inside, and a content policy forbids the rest. It may be written while
cells are still missing; the same folder gives the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from quintet.core import verdicts
from quintet.core.results import SPACES, Advice, Compare, RecipeResult, SeedResult
from quintet.report import charts, table
from quintet.report.artefacts import Arrays, Log, arrays, inside, training_log
from quintet.report.pictures import COLOURS, Window, by_class, colour, grid, scatter
from quintet.report.sections import SECTIONS
from quintet.report.sections.calibration import unused
from quintet.report.view import Section, View
from quintet.report.words import catalogue, known, pair, say

_CLASSES = 12  # more columns than this and a grid is drawn in order instead
_UNITS = {
    "s": "seconds", "seconds": "seconds", "m": "minutes", "h": "hours",
    "steps": "steps", "examples": "examples", "flop": "flop",
}  # fmt: skip
_HOSTS = {"host", "hostname", "node", "user", "username"}  # never shown: the page is for others


def write_report(folder: Path, name: str = "compare.json") -> Path:
    """Write `<folder>/report.html` from `<folder>/compare.json` and the cell folders it names.

    The page is replaced in one step: a reader sees the old one or the new one.

    Args:
        name: another file of the same schema.
    Returns: the page's path.
    Raises: pydantic.ValidationError if the file does not follow the schema; OSError if the folder cannot be read or
        written.
    """
    folder = Path(folder)
    compare = Compare.model_validate_json((folder / name).read_bytes())
    page = render(compare, folder).encode("utf-8")
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=".report-", suffix=".html")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(page)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, folder / "report.html")
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return folder / "report.html"


def render(compare: Compare, folder: Path) -> str:
    """The page as text."""
    compare = _without_places(compare, folder)
    return fill("report.html.jinja", embedded=_embedded(compare), page=_Page(compare, folder))


def fill(template: str, **values: Any) -> str:
    """A page of html/<template>, with the style and the script that all pages share."""
    environment = Environment(
        loader=PackageLoader("quintet.report", "html"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(say=say, known=known, pair=pair, colour=colour)
    source = resources.files("quintet.report") / "html"
    style = (source / "style.css").read_text(encoding="utf-8")
    script = (source / "script.js").read_text(encoding="utf-8").strip()
    return environment.get_template(template).render(
        style=Markup(style),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
        colours=COLOURS,
        **values,
    )


def _without_places(compare: Compare, folder: Path) -> Compare:
    """The comparison without absolute paths of this machine or its name: the page will be shown to others."""
    places = {str(folder.resolve()): ".", str(folder.absolute()): ".", str(Path.home()): "~"}
    places = {place: short for place, short in places.items() if len(place) > 1}

    def clean(value: Any) -> Any:
        if isinstance(value, str):
            for place, short in places.items():
                value = value.replace(place, short)
            return value
        if isinstance(value, Mapping):
            return {clean(k): clean(v) for k, v in value.items()}
        if isinstance(value, list):
            return [clean(v) for v in value]
        return value

    plain = clean(compare.model_dump(mode="json", by_alias=True))
    plain["machine"] = {k: v for k, v in plain["machine"].items() if k.lower() not in _HOSTS}
    return Compare.model_validate(plain)


def _embedded(compare: Compare) -> Markup:
    """compare.json for a <script> element: no character in it can end the element."""
    text = json.dumps(compare.model_dump(mode="json", by_alias=True), ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def main_distance(compare: Compare) -> str | None:
    """The distance that tells how near samples are to real data: of the first space that holds on these data."""
    return next((name for name in SPACES if verdicts.used(compare, name) and name in compare.floor), None)


def amount(text: object) -> Markup:
    """A budget as the command line writes it ("60s", "5000steps"), in words."""
    match = re.fullmatch(r"\s*([0-9.]+(?:[eE][+-]?[0-9]+)?)\s*([a-zA-Z]+)\s*", str(text))
    if match is None or match[2] not in _UNITS:
        return Markup("{}").format(text)
    number = float(match[1])
    return say(f"unit.{_UNITS[match[2]]}", n=f"{number:,.10g}" if number < 1e7 else f"{number:.3g}")


@dataclass(frozen=True)
class Panel:
    """A picture with its head: a family's samples, or the real data.

    Attributes:
        image: data address, "" where there is none; then `absent` says why.
        heads: the classes over the columns.
    """

    name: str
    family: str
    note: Markup | str
    image: str = ""
    absent: Markup | str = ""
    heads: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        kind: "floor", "baseline", "recipe".
        state: "" or why there are no values: "failed", "diverged", "skipped", "waiting".
    """

    kind: str
    name: Markup | str
    note: Markup | str
    family: str
    cells: tuple[table.Cell, ...]
    state: str = ""
    reason: str = ""
    stability: tuple[Markup, ...] = ()


@dataclass(frozen=True)
class Training:
    """The training curves of one recipe."""

    name: str
    family: str
    chart: Markup | None
    players: tuple[str, ...]
    events: tuple[Markup, ...]


class _Page(View):
    """What the template asks for of the sections that it holds itself."""

    def __init__(self, compare: Compare, folder: Path) -> None:
        super().__init__(compare, folder)
        self._sections = [(place, found) for place, build in SECTIONS if (found := build(self)) is not None]

    def sections(self, place: str) -> list[Section]:
        """The sections that stand behind `place`."""
        return [section for at, section in self._sections if at == place]

    @property
    def navigation(self) -> list[str]:
        """Elements that the head links to, in the page's order."""
        more = {
            place: [s.name for s in self.sections(place) if self.has_text(f"nav.{s.name}")]
            for place in ("table", "charts", "claims")
        }
        charts = [] if self.judged and self.sampling_chart is None else ["charts"]
        tail = ["protocol"] if self.judged else ["claims", *more["claims"], "advice", "protocol"]
        return ["pictures", "table", *more["table"], *charts, *more["charts"], *tail]

    # -- 1. headline

    @property
    def title(self) -> str:
        return str(self.compare.data.get("name") or self.compare.name)

    @property
    def failed(self) -> list[RecipeResult]:
        return [r for r in self.compare.recipes if r.status in ("failed", "diverged") and not table.done(r)]

    @property
    def progress(self) -> tuple[int, int]:
        """Cells that ended, and all that were asked for (as many as the recipe with most seeds, or the budget says)."""
        seeds = self.compare.budget.get("seeds")
        wanted = len(seeds) if isinstance(seeds, list) else int(seeds) if isinstance(seeds, int) else 0
        wanted = max([wanted, *(len(r.seeds) for r in self.compare.recipes)], default=0)
        ended = sum(len(r.seeds) for r in self.compare.recipes)
        skipped = sum(
            self.state(r) == "skipped" or (not r.seeds and r.status == "failed") for r in self.compare.recipes
        )
        return ended, wanted * (len(self.compare.recipes) - skipped)

    @property
    def facts(self) -> list[tuple[Markup, list[Markup | str]]]:
        """Data, budget, seeds, models: the four lines under the title; of given samples, data and how many they are."""
        data, splits = self.compare.data, self.compare.data.get("splits", {})
        n = f"{splits.get('train', 0):,}"
        levels = data.get("levels")
        what: list[Markup | str] = []
        if self.is_image:
            channels, height, width = self.shape
            what.append(
                say("head.images", n=n, size=f"{width} × {height}" + (f" × {channels}" if channels > 1 else ""))
            )
            if levels:
                what.append(say("head.levels" if channels == 1 else "head.channel_levels", levels=levels))
        elif len(self.shape) == 1:
            what.append(say("head.vectors", n=n, dims=self.shape[0]))
        else:
            what.append(say("head.examples", n=n))
        if self.classes:
            what.append(say("head.classes", n=len(self.classes)))
        if self.judged:
            n = f"{max((s.choice.get('samples', 0) for r in self.compare.recipes for s in r.seeds), default=0):,}"
            sources = say("head.sources", n=len(self.compare.recipes))
            return [(say("head.data"), what), (say("head.judged"), [sources, say("head.samples_each", n=n)])]
        budget = self.compare.budget
        cell = budget.get("cell") or budget.get("text") or f"{budget.get('amount', '')}{budget.get('unit', '')}"
        money: list[Markup | str] = [say("head.each", amount=amount(cell))]
        if budget.get("within"):
            money.append(say("head.within", amount=amount(budget["within"])))
        counts = sorted({len(r.seeds) for r in self.compare.recipes if r.seeds}) or [0]
        seeds = say("head.seeds_each", n=counts[0])
        if len(counts) > 1:
            seeds = say("head.seeds_uneven", low=counts[0], high=counts[-1])
        seeds_of = [seed for recipe in self.compare.recipes for seed in recipe.seeds]
        done = sum(seed.status == "done" for seed in seeds_of)
        failed = sum(seed.status in ("failed", "diverged") for seed in seeds_of)
        models = say("head.done" if failed else "head.done_all", done=done, failed=failed)
        return [
            (say("head.data"), what),
            (say("head.budget"), money),
            (say("head.seeds"), [seeds]),
            (say("head.models"), [models]),
        ]

    @property
    def nearest(self) -> Markup | None:
        """Given samples by their distance to the real data, the nearest first; None where no distance is used."""
        metric = main_distance(self.compare)
        found = [] if metric is None else verdicts.ranked(self.compare.recipes, metric)
        if metric is None or not found:
            return None
        form, floor = self.forms[metric], self.compare.floor.get(metric)
        unit = " " + say("table.thousandth") if form.scale != 1.0 else Markup("")
        parts = []
        for recipe in found:
            e = table.estimate(recipe, metric)
            if e is not None and e.value is not None:
                parts.append(f"{recipe.name} {form.text(e.value)} {form.interval(e.low, e.high)}".strip())
        real = "–" if floor is None else f"{form.text(floor.value)} {form.interval(floor.low, floor.high)}".strip()
        return say("head.nearest", metric=known("metric", metric) + unit, order=" · ".join(parts), floor=real)

    @staticmethod
    def verdict(text: str) -> Markup:
        """A verdict in both languages."""
        short = {
            "too close to call": "close",
            "no evidence": "none",
            "not tested here": "untested",
            "not decided": "undecided",
        }
        return say(f"verdict.{short.get(text, text)}")

    # -- 2. pictures

    @property
    def pictures_lead(self) -> Markup:
        if self.is_image:
            return say("pictures.lead_classes" if self._ordered else "pictures.lead_images")
        flat = len(self.shape) == 1 and self.shape[0] <= 2
        return say("pictures.lead_points" if flat else "pictures.lead_projected", n=self._shown_points)

    @property
    def _ordered(self) -> bool:
        return 1 < len(self.classes) <= _CLASSES

    @property
    def _shown_points(self) -> int:
        return 1000 if self.real is None else min(1000, len(self.real["x"]))

    def _layout(self) -> tuple[int, int]:
        """Columns and rows of a grid of images."""
        columns = len(self.classes) if self._ordered else 10
        if self.is_image and self.shape[2] > 64:
            columns = columns if self._ordered else max(4, 640 // self.shape[2])
        return columns, max(2, min(10, columns) if self._ordered else columns)

    def _picture(self, found: Arrays, hex_colour: str) -> tuple[str, tuple[str, ...]]:
        """Samples as one picture, and the heads of its columns."""
        x = found["x"]
        if not self.is_image:
            window = self.window or Window.of(x)
            under = None if self.real is None or self.real is found else self.real["x"][: self._shown_points]
            return scatter(x[: self._shown_points], window, hex_colour, under=under), ()
        columns, rows = self._layout()
        if self._ordered and "label" in found:
            order = by_class(found["label"], columns, rows)
            if order is not None:
                return grid(self.range.pixels(x[order]), columns), self.classes
        return grid(self.range.pixels(x[: columns * rows]), columns), ()

    @property
    def panels(self) -> list[Panel]:
        """Real data, then each recipe."""
        found = []
        if self.real is not None:
            image, heads = self._picture(self.real, COLOURS["real"])
            found.append(Panel("", "real", say("pictures.held_out"), image, heads=heads))
        for recipe in self.compare.recipes:
            found.append(self._panel(recipe))
        return found

    def _panel(self, recipe: RecipeResult) -> Panel:
        state = self.state(recipe)
        if state == "waiting":
            return Panel(recipe.name, recipe.family, "", absent=say("pictures.waiting"))
        if state:
            reason = self.reason(recipe) or say("table.no_reason")
            return Panel(recipe.name, recipe.family, known("status", state), absent=say("pictures.none", reason=reason))
        for seed in table.done(recipe):
            samples = arrays(inside(self.folder, seed.run), "samples.npz", "x")
            if samples is not None and self.fits(samples["x"]):
                image, heads = self._picture(samples, colour(recipe.family))
                note = "" if self.judged else say("pictures.seed", seed=seed.seed)
                return Panel(recipe.name, recipe.family, note, image, heads=heads)
        absent = say("pictures.none", reason=say("pictures.missing"))
        return Panel(recipe.name, recipe.family, "", absent=absent)

    @property
    def baseline_panels(self) -> list[Panel]:
        found = []
        for b in self.compare.baselines:
            samples = arrays(inside(self.folder, b.run), "samples.npz", "x")
            if samples is not None and self.fits(samples["x"]):
                image, heads = self._picture(samples, COLOURS["real"])
                found.append(Panel(b.name, "baseline", say(f"baseline.{b.name}_note"), image, heads=heads))
        return found

    # -- 3. table

    @property
    def quality_columns(self) -> list[table.Column]:
        return self._columns(table.QUALITY)

    @property
    def diversity_columns(self) -> list[table.Column]:
        return self._columns(table.DIVERSITY)

    @property
    def reconstruction_columns(self) -> list[table.Column]:
        found = self._columns(table.RECONSTRUCTION)
        return [form for form in found if any(table.estimate(r, form.key) for r in self.compare.recipes)]

    @property
    def cost_columns(self) -> list[table.Column]:
        found = self._columns(table.COSTS)
        if self.judged:  # of given samples hardly any cost is known
            found = [form for form in found if any(table.over_seeds(r, form.key) for r in self.compare.recipes)]
        return found

    @property
    def more_columns(self) -> list[table.Column]:
        return self._columns(
            sorted(
                set(self.forms)
                - {*table.QUALITY, *table.DIVERSITY, *table.MEMORY, *table.LIKELIHOOD}
                - {*table.RECONSTRUCTION, *table.COSTS}
            )
        )

    def _columns(self, keys: Sequence[str]) -> list[table.Column]:
        """Those of the columns which some recipe has a value for."""
        return [self.forms[key] for key in keys if key in self.forms and table.absent(self.compare, key) is None]

    @property
    def absent_columns(self) -> list[tuple[str, str]]:
        """Metrics that no recipe has, and why."""
        return [
            (m, reason)
            for m in table.metrics_of(self.compare)
            if m not in table.LIKELIHOOD and (reason := table.absent(self.compare, m)) is not None
        ]

    def rows(self, columns: Sequence[table.Column]) -> list[Row]:
        """Floor, baselines, recipes."""
        keys = {c.key for c in columns}
        marked = {c.key: table.best(self.compare, c.key, c.better) for c in columns}
        found = []
        if keys & set(self.compare.floor):
            cells = tuple(table.metric_cell(c, self.compare.floor.get(c.key)) for c in columns)
            found.append(Row("floor", say("baseline.floor"), say("baseline.floor_note"), "real", cells))
        for b in self.compare.baselines:
            if keys & set(b.metrics):
                cells = tuple(table.metric_cell(c, b.metrics.get(c.key)) for c in columns)
                name, note = say(f"baseline.{b.name}"), say(f"baseline.{b.name}_note")
                found.append(Row("baseline", name, note, "baseline", cells))
        for recipe in self.compare.recipes:
            if keys <= set(table.RECONSTRUCTION) and not any(table.estimate(recipe, key) for key in keys):
                continue  # nothing is encoded
            cells = tuple(self._recipe_cell(c, recipe, marked.get(c.key)) for c in columns)
            note, state = known("family", recipe.family), self.state(recipe)
            found.append(
                Row("recipe", recipe.name, note, recipe.family, cells, state, self.reason(recipe), self._events(recipe))
            )
        return found

    def _recipe_cell(self, form: table.Column, recipe: RecipeResult, marked: tuple[str, str] | None) -> table.Cell:
        best = marked[1] if marked is not None and marked[0] == recipe.name else ""
        if form.key in table.COSTS:
            return table.cost_cell(form, recipe, best)
        return table.metric_cell(form, table.estimate(recipe, form.key), recipe, best)

    def likelihood(self, name: str) -> str:
        """What kind of likelihood a recipe has: "exact", "bound", "estimate", "undefined"."""
        recipe = next(recipe for recipe in self.compare.recipes if recipe.name == name)
        said = next((s.metrics["bits_per_dim"].protocol for s in table.done(recipe) if "bits_per_dim" in s.metrics), "")
        spread = recipe.likelihood == "exact" and said.startswith("bound")  # an exact density, levels spread over cells
        return "bound" if spread else recipe.likelihood

    @staticmethod
    def _events(recipe: RecipeResult) -> tuple[Markup, ...]:
        """What went wrong in training, in words; "no event" where nothing did."""
        counts = {
            "diverged": sum(s.stability.diverged or s.status == "diverged" for s in recipe.seeds),
            "collapsed": sum(s.stability.collapsed for s in recipe.seeds),
            "failed": sum(s.status == "failed" for s in recipe.seeds),
            "skipped": sum(s.stability.skipped_steps for s in recipe.seeds),
        }
        found = [say(f"stability.{key}", n=n) for key, n in counts.items() if n]
        return tuple(found) or (say("stability.clean"),)

    @staticmethod
    def clean_seeds(name: str, recipes: Sequence[RecipeResult]) -> tuple[int, int]:
        """Seeds that finished without divergence or collapse, and all."""
        recipe = next(r for r in recipes if r.name == name)
        good = [s for s in table.done(recipe) if not (s.stability.diverged or s.stability.collapsed)]
        return len(good), len(recipe.seeds)

    # -- 4. charts

    @cached_property
    def sampling_chart(self) -> Markup | None:
        return charts.quality_against_sampling(self.compare)

    @property
    def time_chart(self) -> Markup | None:
        return charts.quality_against_time(self.compare)

    @property
    def training(self) -> list[Training]:
        found = []
        for i, recipe in enumerate(self.compare.recipes):
            logs: list[tuple[int, Log]] = []
            for seed in recipe.seeds:
                place = inside(self.folder, seed.run)
                if place is not None:
                    logs.append((seed.seed, training_log(place)))
            if not logs:
                continue
            players = tuple(dict.fromkeys(p for _, log in logs for p in log.losses))
            events = tuple(
                say("pictures.seed", seed=seed)
                + " · "
                + say("charts.event", seconds=f"{e.seconds:.3g}", text=e.text or known("event", e.what))
                for seed, log in logs
                for e in log.events
            )
            chart = charts.training_curves(f"training{i}", recipe.family, logs)
            found.append(Training(recipe.name, recipe.family, chart, players, events[:6]))
        return found

    # -- 8. advice

    def evidence(self, advice: Advice) -> Markup:
        """The numbers behind a piece of advice: "C2ST gpt 0.615 [0.594, 0.636] · gan 0.7"; one metric is named once."""
        metrics = {str(entry.get("metric", "")) for entry in advice.evidence}
        one = next(iter(metrics)) if len(metrics) == 1 else ""
        parts = [self._evidence(entry, named=not one) for entry in advice.evidence]
        if one and parts:
            form = self._form(one)
            unit = " " + say("table.thousandth") if form.scale != 1.0 else ""
            parts[0] = known("metric", form.key) + unit + " " + parts[0]
        return Markup(" · ").join(part for part in parts if part)

    def _form(self, metric: str) -> table.Column:
        own = {"seconds_per_1000": "sampling", "peak_bytes": "memory", "sequential_steps": "sequential"}
        key = own.get(metric, metric)
        return self.forms.get(key, table.Column(key, None))

    def _evidence(self, entry: Mapping[str, Any], *, named: bool) -> Markup:
        if "en" in entry and "zh" in entry:
            return pair(str(entry["en"]), str(entry["zh"]))
        parts: list[Markup] = []
        if "recipe" in entry:
            parts.append(Markup("<b>{}</b>").format(entry["recipe"]))
        form, value = self._form(str(entry.get("metric", ""))), entry.get("value")
        if named and form.key:
            parts.append(known("metric", form.key))
        if isinstance(value, int | float):
            interval = form.interval(entry.get("low"), entry.get("high"))
            parts.append(Markup("{} <small>{}</small>").format(form.text(value), interval))
        else:  # counts, of which zeros say nothing
            counts = {k: v for k, v in entry.items() if k not in ("metric", "recipe", "low", "high", "n") and v}
            notes = [Markup("{} {}").format(known("entry", k), self.plain(v)) for k, v in counts.items()]
            parts.append(Markup(", ").join(notes))
        return Markup(" ").join(parts)

    def order(self, need: str) -> list[str]:
        """The ranking by a need, where its evidence does not show it already."""
        ranking = self.compare.ranking.get(need, [])
        shown = [[e.get("recipe") for e in a.evidence] for a in self.compare.advice if a.need == need]
        return [] if ranking in shown else ranking

    # -- 9. protocol

    def plain(self, value: Any) -> Markup:
        """A free-form value as text: numbers short, pairs in both languages, lists with commas."""
        if isinstance(value, Mapping):
            if set(value) == {"en", "zh"}:
                return pair(str(value["en"]), str(value["zh"]))
            if "name" in value:  # a feature space: what it is called, and what tells how good it is
                told = {k: value[k] for k in ("features", "accuracy") if value.get(k) is not None}
                return Markup("; ").join([Markup("{}").format(value["name"]), *([self.plain(told)] if told else [])])
            return Markup("; ").join(self._entry(str(k), v) for k, v in value.items())
        if isinstance(value, list | tuple):
            return Markup(", ").join(self.plain(v) for v in value)
        if isinstance(value, bool) or value is None:
            return Markup("{}").format({True: "✓", False: "✗", None: "–"}[value])
        if isinstance(value, int):
            return Markup("{}").format(f"{value:,}")
        if isinstance(value, str):
            return amount(value)
        if isinstance(value, float):
            return Markup("{}").format(f"{value:,.6g}")
        return Markup("{}").format(value)

    def _entry(self, key: str, value: Any) -> Markup:
        if isinstance(value, Mapping) and "name" in value:
            return self.plain(value)
        return Markup("{} {}").format(known("entry", key), self.plain(value))

    def entries(self, found: Mapping[str, Any]) -> list[tuple[Markup, Markup]]:
        """A free-form dict as (name, value) lines."""
        return [(known("entry", k), self.plain(v)) for k, v in found.items() if v is not None and v not in ({}, [], "")]

    @property
    def budget_entries(self) -> list[tuple[Markup, Markup]]:
        """The budget; where it is written as a text, its parts are left out."""
        budget = {} if self.judged else self.compare.budget
        return self.entries({k: v for k, v in budget.items() if "cell" not in budget or k not in ("unit", "amount")})

    @property
    def measuring_entries(self) -> list[tuple[Markup, Markup]]:
        """The protocol but for the verdict rules, which stand apart, and the judge where it is among the spaces."""
        protocol = dict(self.compare.protocol)
        protocol.pop("verdicts", None)
        if "judge" in protocol.get("spaces", {}):
            protocol.pop("judge", None)
        return self.entries(protocol)

    @property
    def data_entries(self) -> list[tuple[Markup, Markup]]:
        data = dict(self.compare.data)
        found = []
        for key in ("name", "kind", "shape", "levels", "splits", "label_names", "fingerprint", "notes"):
            value = data.pop(key, None)
            if value in (None, {}, [], ""):
                continue
            if key == "splits":
                text = Markup(" · ").join(
                    Markup("{} {}").format(known("protocol", k), f"{n:,}") for k, n in value.items()
                )
            elif key == "shape":
                text = Markup(" × ").join(str(k) for k in value)
            elif key == "fingerprint":
                text = Markup("<code>{}</code>").format(str(value)[:16])
            elif key == "notes":
                text = Markup(" ").join(self.plain(note) for note in value)
            else:
                text = self.plain(value)
            found.append((known("protocol", "labels" if key == "label_names" else key), text))
        data.pop("conditions", None)  # the labels say it
        return found + self.entries(data)

    @property
    def seed_columns(self) -> list[table.Column]:
        metrics = [m for m in table.metrics_of(self.compare) if table.absent(self.compare, m) is None]
        return [self.forms[m] for m in (*metrics, *table.COSTS)]

    def seed_cell(self, form: table.Column, seed: SeedResult) -> table.Cell:
        if form.key in table.COSTS:
            value = table.cost(seed, form.key)
            return table.Cell(missing="") if value is None else table.Cell(form.text(value), sort=value)
        return table.metric_cell(form, seed.metrics.get(form.key))

    @staticmethod
    def better(form: table.Column) -> Markup | str:
        """Which way is better, in words."""
        if form.better is None:
            return ""
        if isinstance(form.better, str):
            return say("table.lower" if form.better == "low" else "table.higher")
        return say("table.ideal", value=f"{form.better:g}")

    def unused(self, metric: str) -> Markup | None:
        """Which corruptions a metric that is not used on this data does not order."""
        return unused(self.compare, metric)

    @property
    def needs(self) -> list[str]:
        """Every need with advice or a ranking, in the order of the advice."""
        return list(dict.fromkeys([*(a.need for a in self.compare.advice), *self.compare.ranking]))

    @staticmethod
    def has_text(key: str) -> bool:
        return key in catalogue()
