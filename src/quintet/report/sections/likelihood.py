"""Likelihood: every model's number, its other ways to it, what a coder makes of it, and other codecs, on one scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from quintet.core.results import LIKELIHOOD_SIGNS, SHARED_BITS, Baseline, Estimate, RecipeResult, likelihood_kind
from quintet.report import table
from quintet.report.view import Section, View
from quintet.report.words import known, say

WAYS = ("elbo", "iw", "ais", "vlb", "ode")
READINGS = {
    "uniform dequantisation": "uniform", "levels, exact": "levels", "approximation": "approximate",
    "within a bin": "bins", "standardised": "density", "density": "density", "levels": "levels",
}  # fmt: skip
"""What a protocol says of how values are read -> its text; the first that is found counts."""

FORM = table.Column("bits_per_dim", "low", 1.0, 3)


@dataclass(frozen=True)
class Number:
    """One value as it is written.

    Attributes:
        label: of which way, "" where the column says it.
        kind: "exact", "bound", "estimate", or "size" of a file.
        missing: why there is no value, else "".
        at: place on the scale, 0 to 100.
    """

    label: Markup | str
    kind: str
    text: str = ""
    interval: str = ""
    n: int | None = None
    protocol: str = ""
    missing: str = ""
    value: float | None = None
    at: float | None = None


@dataclass(frozen=True)
class Row:
    """A model, a baseline or a codec; `reading` says how it reads values, `note` what it is."""

    group: str
    name: Markup | str
    family: str
    note: Markup | str
    reading: Markup | str
    own: Number | None
    first: Number | None
    ways: tuple[Number, ...]
    coded: Number | None
    file: Number | None
    shared: Number | None = None  # where comparisons take other examples than the model's own number

    @property
    def place(self) -> float:
        """What the row is sorted by."""
        value = next((n.value for n in (self.own, self.file) if n is not None and n.value is not None), None)
        return float("inf") if value is None else value

    @property
    def numbers(self) -> tuple[Number, ...]:
        return tuple(n for n in (self.own, *self.ways, self.coded, self.file) if n is not None)


def likelihood(view: View) -> Section | None:
    """One row each, from the fewest bits to the most; nothing where no recipe has a likelihood."""
    recipes = [recipe for recipe in view.compare.recipes if not view.state(recipe)]
    rows = [_recipe(recipe) for recipe in recipes]
    if not any(row.own is not None and row.own.value is not None for row in rows):
        return None
    rows += [row for b in view.compare.baselines if (row := _baseline(b)) is not None]
    rows += [_codec(name, Estimate.model_validate(e)) for name, e in _codecs(view).items()]
    truth = view.compare.data.get("entropy_bits_per_dim")
    if truth is not None:
        own = Number("", "exact", FORM.text(truth), value=float(truth))
        name, note = say("likelihood.truth"), say("likelihood.truth_note")
        rows.append(Row("baseline", name, "real", note, "", own, None, (), None, None))
    rows.sort(key=lambda row: row.place)
    placed, ends = _placed(rows)
    return Section(
        "likelihood",
        {
            "rows": placed,
            "ends": [FORM.text(end) for end in ends],
            "named": [name for name in WAYS if any(_has(recipe, f"bits_per_dim_{name}") for recipe in recipes)],
            "coded": any(row.coded is not None for row in placed),
            "shared": max((row.shared.n or 0 for row in rows if row.shared is not None), default=0),
            "codecs": bool(_codecs(view)),
            "density": view.compare.data.get("levels") is None,
        },
    )


def _codecs(view: View) -> Mapping[str, object]:
    found = view.compare.data.get("codecs")
    return found if isinstance(found, Mapping) else {}


def _has(recipe: RecipeResult, metric: str) -> bool:
    return table.estimate(recipe, metric) is not None


def _recipe(recipe: RecipeResult) -> Row:
    def number(metric: str, label: Markup | str = "", kind: str = "") -> Number | None:
        e = table.estimate(recipe, metric)
        if e is None:
            return None
        said = next((s.metrics[metric].protocol for s in table.done(recipe) if metric in s.metrics), e.protocol)
        return _number(e, said, label, kind)

    own, shared = number("bits_per_dim"), number(SHARED_BITS)
    ways = [number(f"bits_per_dim_{name}", known("likelihood", f"way_{name}")) for name in WAYS]
    return Row(
        "recipe",
        recipe.name,
        recipe.family,
        known("family", recipe.family),
        "" if own is None else _reading(own.protocol),
        own,
        number("bits_per_dim_first"),
        tuple(way for way in ways if way is not None),
        number("coded_bits_per_dim", kind="size"),
        number("file_bits_per_dim", kind="size"),
        shared if own is not None and shared is not None and shared.n != own.n else None,
    )


def _baseline(row: Baseline) -> Row | None:
    e = row.metrics.get("bits_per_dim")
    if e is None or e.value is None:
        return None
    own = _number(e, e.protocol)
    name, note = say(f"baseline.{row.name}"), say(f"baseline.{row.name}_note")
    return Row("baseline", name, "baseline", note, _reading(e.protocol), own, None, (), None, None)


def _codec(name: str, e: Estimate) -> Row:
    file = _number(e, e.protocol, kind="size")
    note = known("likelihood", f"codec_{name}_note")
    return Row("codec", known("likelihood", f"codec_{name}"), "baseline", note, "", None, None, (), None, file)


def _number(e: Estimate, protocol: str, label: Markup | str = "", kind: str = "") -> Number:
    """An estimate whose protocol opens with its kind, unless that is given."""
    kind = kind or likelihood_kind(protocol)
    if e.value is None:
        return Number(label, kind, missing=protocol or e.protocol)
    text = LIKELIHOOD_SIGNS.get(kind, "") + FORM.text(e.value)
    return Number(label, kind, text, FORM.interval(e.low, e.high), e.n, protocol, value=e.value)


def _reading(protocol: str) -> Markup | str:
    return next((say(f"likelihood.read_{name}") for words, name in READINGS.items() if words in protocol), "")


def _placed(rows: Sequence[Row]) -> tuple[list[Row], tuple[float, float]]:
    """The rows with every number's place on the scale, and the scale's ends; what is far off stands at its end."""
    values = sorted(n.value for row in rows for n in row.numbers if n.value is not None)
    middle = [n.value for row in rows if row.group == "recipe" for n in row.numbers if n.value is not None]
    low, high = values[0], min(values[-1], max(middle) + 0.6 * (max(middle) - values[0]) + 0.05)
    width = max(high - low, 1e-9)

    def put(n: Number | None) -> Number | None:
        if n is None or n.value is None:
            return n
        at = 100 * min(1.0, (n.value - low) / width)
        return replace(n, at=round(at, 1))

    done = []
    for row in rows:
        ways = tuple(p for way in row.ways if (p := put(way)) is not None)
        done.append(replace(row, own=put(row.own), ways=ways, coded=put(row.coded), file=put(row.file)))
    return done, (low, high)
