"""Charts: figures as inline SVG that take their text, fonts and colours from the page.

Each is drawn once. Words are drawn as marks of plain ASCII which stand for a pair of texts and are exchanged for both
languages in the SVG (so matplotlib needs no Chinese font); colours are drawn as codes and exchanged for the page's CSS
variables (so one figure suits a light and a dark page).
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from quintet.core.results import Compare, Estimate, RecipeResult
from quintet.core.verdicts import floor_sd
from quintet.report import table
from quintet.report.artefacts import Log
from quintet.report.words import known, say

INK, FAINT, LINE = "#010001", "#010002", "#010003"  # exchanged for --ink, --faint, --line
MARKS = {"gan": "o", "vae": "s", "flow": "^", "diffusion": "D", "autoregressive": "v"}
_CODES = {name: f"#0200{i:02x}" for i, name in enumerate((*MARKS, "hybrid", "real"))}
_VARIABLES = {INK: "--ink", FAINT: "--faint", LINE: "--line"} | {code: f"--{name}" for name, code in _CODES.items()}
_STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "quintet", "font.size": 10, "font.family": "DejaVu Sans",
    "axes.edgecolor": LINE, "axes.labelcolor": FAINT, "axes.titlecolor": INK, "text.color": INK,
    "xtick.color": LINE, "ytick.color": LINE, "xtick.labelcolor": FAINT, "ytick.labelcolor": FAINT,
    "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.8, "axes.grid": True,
    "grid.color": LINE, "grid.linewidth": 0.5, "grid.alpha": 0.55, "axes.axisbelow": True, "axes.labelsize": 10,
    "xtick.labelsize": 9, "ytick.labelsize": 9, "figure.facecolor": "none", "axes.facecolor": "none",
    "savefig.facecolor": "none", "axes.formatter.use_mathtext": False, "legend.frameon": False,
    "xtick.minor.size": 2, "ytick.minor.size": 2, "xtick.major.size": 3.5, "ytick.major.size": 3.5,
}  # fmt: skip


@dataclass
class Drawing:
    """A figure under way and the texts its marks stand for.

    Attributes:
        name: unique on the page, prefix of the SVG's ids.
    """

    name: str
    width: float
    height: float
    texts: list[Markup | str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.figure = Figure(figsize=(self.width, self.height), layout="constrained")
        FigureCanvasSVG(self.figure)

    def word(self, text: Markup | str) -> str:
        """A mark about as wide as `text`, which it becomes; markup from `say` is allowed."""
        self.texts.append(text)
        plain = Markup("{}").format(text)
        both = re.findall(r"<span data-lang[^>]*>(.*?)</span>", plain) or [plain]
        cells = max(sum(1.9 if ord(c) > 0x2E7F else 1.05 for c in Markup(t).unescape()) for t in both)
        return f"Q{len(self.texts) - 1:03d}{'n' * max(0, round(cells) - 5)}Q"

    def svg(self) -> Markup:
        """The figure as an <svg> element for inlining."""
        file = io.BytesIO()
        self.figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Type": None, "Format": None})
        svg = file.getvalue().decode("utf-8")
        svg = svg[svg.index("<svg") :]
        svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
        svg = re.sub(
            r'<defs>\s*<style type="text/css">.*?</style>\s*</defs>', "", svg, flags=re.S
        )  # would style the page
        used = set(re.findall(r"url\(#([^)]+)\)", svg)) | set(re.findall(r'href="#([^"]+)"', svg))
        svg = re.sub(r' id="([^"]+)"', lambda m: f' id="{self.name}-{m[1]}"' if m[1] in used else "", svg)
        svg = svg.replace("url(#", f"url(#{self.name}-").replace('href="#', f'href="#{self.name}-')
        for code, variable in _VARIABLES.items():
            svg = svg.replace(code, f"var({variable})")
        svg = re.sub(r"font: (?:\w+ )?([\d.]+)px '[^\"]*?(?=[;\"])", r"font-size: \1px", svg)
        svg = re.sub(r"<!--.*?-->", "", svg, flags=re.S)
        svg = re.sub(r"Q(\d{3})n*Q", lambda m: _in_svg(self.texts[int(m[1])]), svg)
        size = f"0 0 {self.width * 72:g} {self.height * 72:g}"
        spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        head = f'<svg viewBox="{size}" role="img" {spaces}>'
        return Markup(head + svg[svg.index(">") + 1 :].strip())


def _in_svg(text: Markup | str) -> str:
    """Markup for inside an SVG text element: <span> becomes <tspan>."""
    return str(Markup("{}").format(text)).replace("<span ", "<tspan ").replace("</span>", "</tspan>")


def _plain(value: float, _: object = None) -> str:
    return f"{value:g}".replace("-", "−")


def _log_axis(axis: mpl.axis.Axis, span: float) -> None:
    axis.set_major_locator(LogLocator(subs=(1.0,) if span > 60 else (1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(_plain))
    axis.set_minor_formatter(NullFormatter())


def _scaled(e: Estimate, scale: float) -> Estimate:
    """The estimate in units of `scale`, as the table shows it."""
    if scale == 1.0:
        return e
    value, low, high = (None if v is None else v / scale for v in (e.value, e.low, e.high))
    return e.model_copy(update={"value": value, "low": low, "high": high})


def _quantity(metric: str, log: bool, scale: float = 1.0) -> Markup:
    name = known("metric", metric)
    if scale != 1.0:
        name = name + " " + say("table.thousandth")
    return say("charts.y_log", metric=name) if log else name


def _colour(family: str) -> str:
    return _CODES.get(family, _CODES["real"])


def _spread(positions: Sequence[float], gap: float) -> list[float]:
    """Move labels apart on one axis: the same order, at least `gap` between neighbours, about the same centre."""
    order = np.argsort(positions, kind="stable")
    placed = np.array(positions, float)[order]
    for _ in range(200):
        short = gap - np.diff(placed)
        if not (short > 1e-6).any():
            break
        push = np.clip(short, 0, None) / 2
        placed[:-1] -= push
        placed[1:] += push
    back = np.empty_like(placed)
    back[order] = placed
    return [float(v) for v in back]


@dataclass(frozen=True)
class _Level:
    """A horizontal line: the floor or a baseline."""

    text: Markup
    estimate: Estimate
    floor: bool


def _levels(compare: Compare, metric: str, scale: float) -> list[_Level]:
    found = []
    floor = compare.floor.get(metric)
    if floor is not None and floor.value is not None:
        found.append(_Level(say("charts.floor"), _scaled(floor, scale), True))
    for b in compare.baselines:
        e = b.metrics.get(metric)
        if e is not None and e.value is not None:
            found.append(_Level(say(f"baseline.{b.name}"), _scaled(e, scale), False))
    return found


def quality_against_sampling(compare: Compare, metric: str = "kid") -> Markup | None:
    """Each recipe's distance against its seconds for 1,000 samples, with intervals, floor and baselines.

    Returns: None where no recipe has both.
    """
    scale = table.forms(compare)[metric].scale if metric in table.metrics_of(compare) else 1.0
    points: list[tuple[RecipeResult, Estimate, Estimate]] = []
    for recipe in compare.recipes:
        e, s = table.estimate(recipe, metric), table.over_seeds(recipe, "sampling")
        if e is not None and e.value is not None and s is not None and s.value:
            points.append((recipe, _scaled(e, scale), s))
    if not points:
        return None
    with mpl.rc_context(_STYLE):
        drawing = Drawing("cost", 10.4, 4.3)
        axes = drawing.figure.add_subplot()
        front = compare.fronts.get("sampling", ()) if metric == "kid" else ()
        for recipe, e, s in points:
            _point(axes, recipe, e, s)
            if recipe.name in front:
                axes.plot(
                    [s.value or 0.0], [e.value or 0.0], "o", markersize=15, fillstyle="none", color=FAINT, zorder=3
                )
        tops = [e.high if e.high is not None else e.value or 0.0 for _, e, _ in points]
        lows = [e.low if e.low is not None else e.value or 0.0 for _, e, _ in points]
        levels = _levels(compare, metric, scale)
        near = [v for x in levels if (v := x.estimate.value or 0.0) <= 1.6 * max(tops)]
        log = min(lows) > 0 and max(tops) / min(lows) > 25 and all(v > 0 for v in near)
        axes.set_xscale("log")
        costs = [v for _, _, s in points for v in (s.low or 0.0, s.high or 0.0) if v > 0]
        axes.set_xlim(min(costs) / 1.8, max(costs) * 3.2)
        _log_axis(axes.xaxis, max(costs) / min(costs))
        if log:
            axes.set_yscale("log")
            axes.set_ylim(min(*lows, *near) / 1.35, max(*tops, *near) * 1.5)
            _log_axis(axes.yaxis, max(tops) / min(lows))
        else:
            bottom, top = min(*lows, *near, 0.0), max(*tops, *near)
            margin = 0.07 * (top - bottom)
            axes.set_ylim(bottom - margin, top + 1.6 * margin)
            axes.yaxis.set_major_formatter(FuncFormatter(_plain))
        axes.set_xlabel(drawing.word(say("charts.x_sampling")))
        axes.set_ylabel(drawing.word(_quantity(metric, log, scale)))
        _level_lines(drawing, axes, levels)
        drawing.figure.canvas.draw()
        _name_points(drawing, axes, points)
        return drawing.svg()


def _point(axes: Axes, recipe: RecipeResult, e: Estimate, s: Estimate) -> None:
    assert e.value is not None
    assert s.value is not None
    bars = [
        [max(0.0, e.value - (e.value if e.low is None else e.low))],
        [max(0.0, (e.value if e.high is None else e.high) - e.value)],
    ]
    across = [[max(0.0, s.value - (s.low or s.value))], [max(0.0, (s.high or s.value) - s.value)]]
    axes.errorbar(
        [s.value], [e.value], yerr=bars, xerr=across, fmt=MARKS.get(recipe.family, "P"), color=_colour(recipe.family),
        markersize=8, elinewidth=1.4, capsize=2.5, zorder=4,
    )  # fmt: skip


def _level_lines(drawing: Drawing, axes: Axes, levels: Sequence[_Level]) -> None:
    """Draw the lines; their names stand in the right margin, those above the picture with an arrow and their value."""
    low, high = axes.get_ylim()
    shown: list[tuple[float, str]] = []
    for level in sorted(levels, key=lambda x: x.estimate.value or 0.0):
        value = level.estimate.value or 0.0
        word: Markup | str = level.text
        if low < value < high:
            if level.floor and level.estimate.low is not None and level.estimate.high is not None:
                axes.axhspan(level.estimate.low, level.estimate.high, color=FAINT, alpha=0.16, linewidth=0)
            axes.axhline(value, color=FAINT, linewidth=1.1, linestyle="-" if level.floor else (0, (4, 3)), zorder=1)
            fraction = axes.transAxes.inverted().transform(axes.transData.transform((1, value)))[1]
            shown.append((float(fraction), drawing.word(word)))
        else:
            arrow = "↑" if value >= high else "↓"
            text = Markup("{} {} {}").format(arrow, word, f"{value:.3g}")
            shown.append((1.0 if value >= high else 0.0, drawing.word(text)))
    for (_, word), y in zip(shown, _spread([s[0] for s in shown], 0.055), strict=True):
        axes.text(1.012, y, word, transform=axes.transAxes, color=FAINT, fontsize=9, va="center")


def _name_points(drawing: Drawing, axes: Axes, points: Sequence[tuple[RecipeResult, Estimate, Estimate]]) -> None:
    """Write each recipe's name to the right of its mark, moved up where another name stands."""
    named = [(recipe, axes.transData.transform((s.value or 0.0, e.value or 0.0))) for recipe, e, s in points]
    inverse = axes.transData.inverted()
    taken: list[tuple[float, float]] = []
    for recipe, (x, y) in sorted(named, key=lambda entry: float(entry[1][1])):
        height = float(y) + 5
        while any(abs(x - other) < 70 and abs(height - level) < 13 for other, level in taken):
            height += 2
        taken.append((float(x), height))
        right, up = inverse.transform((x + 9, height))
        axes.text(float(right), float(up), drawing.word(recipe.name), fontsize=10, color=INK, va="center", zorder=5)


def quality_against_time(compare: Compare, cost: Literal["seconds", "flops"] = "seconds") -> Markup | None:
    """KID in PCA space along training, one line a seed.

    Args:
        cost: what the horizontal axis shows.
    Returns: None where no seed has a curve.
    """
    curves: list[tuple[RecipeResult, int, NDArray[np.float64]]] = []
    for recipe in compare.recipes:
        for seed in recipe.seeds:
            pairs = [(p[cost], p["kid_pca"]) for p in seed.curve if cost in p and "kid_pca" in p]
            kept = [p for p in pairs if np.isfinite(p).all() and p[0] > 0]
            if kept:
                curves.append((recipe, seed.seed, np.array(sorted(kept))))
    if not curves:
        return None
    with mpl.rc_context(_STYLE):
        drawing = Drawing("time" if cost == "seconds" else cost, 10.4, 4.0)
        axes = drawing.figure.add_subplot()
        values = np.concatenate([c[:, 1] for _, _, c in curves])
        positive = values[values > 0]
        log = positive.size > 0 and positive.max() / positive.min() > 12
        floor = compare.floor.get("kid_pca")
        bottom = -np.inf
        if log:  # an unbiased distance may fall to zero and below: such points stand on the lower edge
            bottom = max(float(positive.min()) / 1.3, floor_sd(floor) / 2)
        spent = np.concatenate([c[:, 0] for _, _, c in curves])
        ends: list[tuple[RecipeResult, float]] = []
        for recipe in compare.recipes:
            mine = [c for r, _, c in curves if r is recipe]
            for curve in mine:
                axes.plot(
                    curve[:, 0], np.maximum(curve[:, 1], bottom), color=_colour(recipe.family),
                    linewidth=1.5, alpha=0.85, marker=MARKS.get(recipe.family, "P"), markersize=3.5,
                )  # fmt: skip
            if mine:
                ends.append((recipe, float(np.median([max(c[-1, 1], bottom) for c in mine]))))
        axes.set_xscale("log")
        _log_axis(axes.xaxis, spent.max() / spent.min())
        if cost == "flops":
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: table.with_prefix(value)))
        if log:
            axes.set_yscale("log")
            axes.set_ylim(bottom / 1.25, None)
            _log_axis(axes.yaxis, float(positive.max() / bottom))
        else:
            axes.yaxis.set_major_formatter(FuncFormatter(_plain))
        axes.set_xlabel(drawing.word(say(f"charts.x_{cost}_log")))
        axes.set_ylabel(drawing.word(_quantity("kid_pca", log)))
        if floor is not None and floor.value is not None and axes.get_ylim()[0] < floor.value:
            axes.axhline(floor.value, color=FAINT, linewidth=1.1)
        drawing.figure.canvas.draw()
        heights = [float(axes.transAxes.inverted().transform(axes.transData.transform((1, v)))[1]) for _, v in ends]
        front = compare.fronts.get("training", ())
        for (recipe, _), y in zip(ends, _spread(heights, 0.06), strict=True):
            name = f"{recipe.name} ○" if recipe.name in front else recipe.name
            axes.text(1.012, y, drawing.word(name), transform=axes.transAxes, va="center", color=_colour(recipe.family))
        return drawing.svg()


def training_curves(name: str, family: str, logs: Sequence[tuple[int, Log]]) -> Markup | None:
    """The losses of one recipe's seeds, a line style for each player, events as vertical lines.

    Returns: None where no log holds a loss.
    """
    players = list(dict.fromkeys(p for _, log in logs for p in log.losses))
    if not players:
        return None
    with mpl.rc_context(_STYLE):
        drawing = Drawing(name, 3.5, 2.1)
        axes = drawing.figure.add_subplot()
        low, high = [], []
        for _, log in logs:
            for k, player in enumerate(players):
                if player in log.losses:
                    seconds, loss = log.losses[player]
                    style = ("-", (0, (3, 1.5)), (0, (1, 1)))[k % 3]
                    axes.plot(seconds, loss, color=_colour(family), linewidth=1.0, alpha=0.75, linestyle=style)
                    low.append(float(np.quantile(loss, 0.005)))
                    high.append(float(np.quantile(loss, 0.985)))
            for event in log.events:
                axes.axvline(event.seconds, color=INK, linewidth=0.9, linestyle=(0, (1, 1.5)))
        margin = 0.08 * (max(high) - min(low)) or 1.0
        axes.set_ylim(min(low) - margin, max(high) + margin)  # a first spike must not flatten the rest
        axes.set_xlim(0, None)
        axes.yaxis.set_major_formatter(FuncFormatter(_plain))
        axes.set_xlabel(drawing.word(say("charts.x_seconds")), fontsize=9)
        return drawing.svg()
