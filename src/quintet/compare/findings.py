"""How a sentence about families is decided: tests that look at one comparison, each with its rule in words.

What it is: one small class a kind of test. A test says "confirmed" or "contradicted" only where the numbers are sure,
and "not decided" otherwise; None where what it speaks of is not in the comparison. What it is not: the sentences
(`claims`), or what is decided by mathematics (`derivations`).

Pairs are named here, before anything is measured, so that each test stands at 5 % by itself; where a family is held
against all others, the rivals are tested together. How often chance decides: `benchmarks/articles_verdicts.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any, ClassVar, Literal

from scipy.stats import fisher_exact

from quintet.compare.steadiness import troubled
from quintet.core.articles import Kind, Word
from quintet.core.messages import LANGUAGES, say
from quintet.core.results import Compare, RecipeResult, SeedResult
from quintet.core.statistics import exact_interval
from quintet.core.verdicts import (
    LEVEL,
    PAIRS_FOR_A_GUESS,
    SURE,
    Verdict,
    Way,
    middle,
    ranked,
    scores,
    settled,
    surpassed,
    used,
)

Text = Mapping[str, str]
TROUBLE_LIMIT = 0.1
"""A way of training is called unstable where surely more than this share of its runs go wrong."""
SOFT = 0.8
"""High-frequency power relative to real images, below which samples are called blurry."""
DEQUANTISED = "dequantisation"
"""In the protocol of a likelihood that is exact for levels spread over cells, and a bound for the levels themselves."""
SAME = 1.1
"""Costs within this factor of each other are the same."""


@dataclass(frozen=True)
class Finding:
    """A verdict on a sentence, with its evidence in every language."""

    word: Word
    text: Text


def finding(word: Word, key: str, **fields: Any) -> Finding:
    """A finding with the message `evidence.<key>`; fields that are texts are said in the same language."""
    return Finding(word, spoken(f"evidence.{key}", **fields))


def spoken(key: str, **fields: Any) -> dict[str, str]:
    """A message in every language."""
    return {
        lang: say(key, lang, **{k: v[lang] if isinstance(v, Mapping) else v for k, v in fields.items()})
        for lang in LANGUAGES
    }


@dataclass(frozen=True)
class Who:
    """Who speaks for a name in a sentence: settled before anything is measured, never by the numbers compared.

    Attributes:
        families: whose finished recipes may speak; the one nearest to the validation split does.
        first: recipes that speak before all others, the first one present.
        alone: nobody else speaks.
    """

    families: tuple[str, ...]
    first: tuple[str, ...] = ()
    alone: bool = False

    def find(self, result: Compare) -> RecipeResult | None:
        """The speaker, if it has finished."""
        done = {r.name: r for r in result.recipes if r.status == "done" and r.family in self.families}
        for name in self.first:
            if name in done:
                return done[name]
        if self.alone or not done:
            return None
        return min(done.values(), key=_validation)

    def tried(self, result: Compare) -> list[RecipeResult]:
        """The recipes whose trainings count: those named first if present, else all of the families."""
        tried = [r for r in result.recipes if r.family in self.families and r.seeds]
        return [r for r in tried if r.name in self.first] or ([] if self.alone else tried)

    @property
    def name(self) -> Text:
        if self.first:
            return dict.fromkeys(LANGUAGES, self.first[0])
        names = [spoken(f"rule.family_{name}") for name in self.families]
        return {"en": ", ".join(n["en"] for n in names), "zh": "、".join(n["zh"] for n in names)}

    @property
    def names(self) -> Text:
        """All whose trainings count."""
        return {"en": ", ".join(self.first), "zh": "、".join(self.first)} if self.first else self.name


class Check(ABC):
    """What decides a sentence."""

    kind: ClassVar[Kind] = "measured"

    @abstractmethod
    def __call__(self, result: Compare) -> Finding | None:
        """The finding on one comparison; None where it does not have what the sentence speaks of."""

    @property
    @abstractmethod
    def rule(self) -> Text:
        """When the sentence counts as confirmed and when as contradicted."""

    def together(self, results: Sequence[Compare]) -> Finding | None:
        """The finding on several comparisons as one, where that says more than each by itself."""
        return None


@dataclass(frozen=True)
class Better(Check):
    """One speaker is better than another in one metric or cost."""

    better: Who
    worse: Who
    metric: str
    way: Way | None = None

    def __call__(self, result: Compare) -> Finding | None:
        a, b = self.better.find(result), self.worse.find(result)
        if a is None or b is None or not scores(a, self.metric, self.way) or not scores(b, self.metric, self.way):
            return None
        forth, back = (settled(result, *pair, self.metric, self.way) for pair in ((a, b), (b, a)))
        word: Word = "confirmed" if forth.word in SURE else "contradicted" if back.word in SURE else "not decided"
        return finding(
            word, "pair", metric=_metric(self.metric), a=a.name, x=values(a, self.metric), b=b.name,
            y=values(b, self.metric), test=_test(forth, back),
        )  # fmt: skip

    @property
    def rule(self) -> Text:
        return spoken("rule.better", a=self.better.name, b=self.worse.name, metric=_metric(self.metric))


@dataclass(frozen=True)
class First(Check):
    """A family is better than every other in one metric."""

    who: Who
    others: tuple[Who, ...]
    metric: str

    def __call__(self, result: Compare) -> Finding | None:
        ours = self.who.find(result)
        rivals = [r for r in (who.find(result) for who in self.others) if r is not None and scores(r, self.metric)]
        if ours is None or not scores(ours, self.metric) or not rivals:
            return None
        word: Word = "not decided"
        if all(settled(result, ours, rival, self.metric).word in SURE for rival in rivals):
            word = "confirmed"
        elif surpassed(result, ours, rivals, self.metric):
            word = "contradicted"
        order = ranked([ours, *rivals], self.metric)
        return finding(
            word, "order", metric=_metric(self.metric), rows=_listed(order, partial(values, metric=self.metric))
        )

    @property
    def rule(self) -> Text:
        return spoken("rule.first", a=self.who.name, metric=_metric(self.metric))


@dataclass(frozen=True)
class Trouble(Check):
    """How many trainings had trouble: surely more, or surely fewer, than one in ten."""

    who: Who
    expected: bool

    def __call__(self, result: Compare) -> Finding | None:
        return self.together([result])

    def together(self, results: Sequence[Compare]) -> Finding | None:
        bad, runs = _counted(self.who, results)
        if not runs:
            return None
        low, high = exact_interval(bad, runs, 0.9)  # each end at 5 %
        often, seldom = low > TROUBLE_LIMIT, high < TROUBLE_LIMIT
        word: Word = "not decided"
        if often or seldom:
            word = "confirmed" if often == self.expected else "contradicted"
        names = ", ".join(dict.fromkeys(r.name for result in results for r in self.who.tried(result)))
        return finding(word, "trouble", names=names, bad=bad, runs=runs, low=f"{low:.0%}", high=f"{high:.0%}")

    @property
    def rule(self) -> Text:
        key = f"rule.trouble_{'often' if self.expected else 'seldom'}"
        return spoken(key, a=self.who.names, runs=runs_without_trouble())


@dataclass(frozen=True)
class MoreTrouble(Check):
    """Trainings of one speaker have trouble more often than another's."""

    more: Who
    less: Who

    def __call__(self, result: Compare) -> Finding | None:
        return self.together([result])

    def together(self, results: Sequence[Compare]) -> Finding | None:
        both = [result for result in results if self.more.tried(result) and self.less.tried(result)]
        (bad, runs), (bad_less, runs_less) = _counted(self.more, both), _counted(self.less, both)
        if not runs or not runs_less:
            return None
        p = float(fisher_exact([[bad, runs - bad], [bad_less, runs_less - bad_less]]).pvalue)
        ahead = bad / runs - bad_less / runs_less
        word: Word = "not decided" if p >= LEVEL else "confirmed" if ahead > 0 else "contradicted"
        names, names_less = (
            ", ".join(dict.fromkeys(r.name for result in both for r in who.tried(result)))
            for who in (self.more, self.less)
        )
        return finding(
            word, "more_trouble", a=names, bad=bad, runs=runs, b=names_less, bad_b=bad_less, runs_b=runs_less,
            p=f"{p:.2g}",
        )  # fmt: skip

    @property
    def rule(self) -> Text:
        return spoken("rule.more_trouble", a=self.more.names, b=self.less.names)


@dataclass(frozen=True)
class Sharpness(Check):
    """The power of samples in high frequencies, relative to real images: blurry or sharp, by every one of two seeds."""

    who: Who
    blurry: bool

    def __call__(self, result: Compare) -> Finding | None:
        recipe = self.who.find(result)
        found = [] if recipe is None else [e for s in _done(recipe) if (e := s.metrics.get("sharpness")) is not None]
        known = [(e.value, e.low, e.high) for e in found if None not in (e.value, e.low, e.high)]
        if recipe is None or not known:
            return None
        if not used(result, "sharpness"):
            return finding("not decided", "sharpness_unused", a=recipe.name)
        soft, crisp = all(high < SOFT for _, _, high in known), all(low > SOFT for _, low, _ in known)  # type: ignore[operator]
        word: Word = "not decided"
        if (soft or crisp) and len(known) >= PAIRS_FOR_A_GUESS:
            word = "confirmed" if soft == self.blurry else "contradicted"
        return finding(word, "sharpness", a=recipe.name, values=", ".join(f"{value:.2f}" for value, _, _ in known))

    @property
    def rule(self) -> Text:
        return spoken("rule.blurry" if self.blurry else "rule.sharp", a=self.who.name, limit=f"{SOFT:g}")


@dataclass(frozen=True)
class Density(Check):
    """Whether a family computes likelihoods: exactly, or (expected "none") not at all."""

    who: Who
    expected: Literal["exact", "none"]

    def __call__(self, result: Compare) -> Finding | None:
        recipe = self.who.find(result)
        if recipe is None:
            return None
        if recipe.likelihood == "undefined":
            return finding("contradicted" if self.expected == "exact" else "confirmed", "no_density", a=recipe.name)
        kind = spoken(f"evidence.kind_{recipe.likelihood}")
        value = middle(recipe, "bits_per_dim")
        if value is None:
            return finding("not decided", "density_lost", a=recipe.name, kind=kind)
        told = [e.protocol for s in _done(recipe) if (e := s.metrics.get("bits_per_dim")) is not None]
        word: Word = "contradicted"
        if self.expected == "exact" and recipe.likelihood == "exact":
            word = "confirmed"
        elif self.expected == "exact" and any(DEQUANTISED in protocol for protocol in told):
            word, kind = "not decided", spoken("evidence.kind_dequantised")
        return finding(word, "density", a=recipe.name, value=f"{value:.3f}", kind=kind)

    @property
    def rule(self) -> Text:
        return spoken(f"rule.density_{self.expected}", a=self.who.name)


@dataclass(frozen=True)
class Steps(Check):
    """How many network evaluations of a sample wait for each other: between `least` and `most`."""

    who: Who
    least: int = 0
    most: int | None = None

    def __call__(self, result: Compare) -> Finding | None:
        recipe = self.who.find(result)
        steps = None if recipe is None else middle(recipe, "sequential_steps")
        if recipe is None or steps is None:
            return None
        holds = self.least <= steps and (self.most is None or steps <= self.most)
        return finding("confirmed" if holds else "contradicted", "steps", a=recipe.name, steps=f"{steps:.0f}")

    @property
    def rule(self) -> Text:
        if self.most is None:
            return spoken("rule.steps_least", a=self.who.name, n=self.least)
        return spoken("rule.steps_most", a=self.who.name, n=self.most)


@dataclass(frozen=True)
class StepAValue(Check):
    """A sample takes one network evaluation for each of its values, one after another."""

    who: Who

    def __call__(self, result: Compare) -> Finding | None:
        recipe = self.who.find(result)
        steps = None if recipe is None else middle(recipe, "sequential_steps")
        if recipe is None or steps is None:
            return None
        dims = 1
        for size in result.data.get("shape", ()):
            dims *= int(size)
        word: Word = "confirmed" if steps == dims else "contradicted"
        return finding(word, "step_a_value", a=recipe.name, steps=f"{steps:.0f}", dims=dims)

    @property
    def rule(self) -> Text:
        return spoken("rule.step_a_value", a=self.who.name)


@dataclass(frozen=True)
class Invertible(Check):
    """A latent code for every example that leads back to it exactly."""

    who: Who

    def __call__(self, result: Compare) -> Finding | None:
        recipe = self.who.find(result)
        if recipe is None:
            return None
        lost = [s for s in _done(recipe) if any(e.get("what") == "not_invertible" for e in s.stability.events)]
        holds = "latent" in recipe.capabilities and not lost
        have = [r.name for r in result.recipes if r.status == "done" and "latent" in r.capabilities]
        names = ", ".join(have) or "–"
        return finding("confirmed" if holds else "contradicted", "invertible", a=recipe.name, lost=len(lost),
                       runs=len(_done(recipe)), names=names)  # fmt: skip

    @property
    def rule(self) -> Text:
        return spoken("rule.invertible", a=self.who.name)


@dataclass(frozen=True)
class CostlyChain(Check):
    """Training through a chain of many steps costs more for each example than training without a chain."""

    chain: Who
    plain: Who

    def __call__(self, result: Compare) -> Finding | None:
        a, b = self.chain.find(result), self.plain.find(result)
        x, y = (_flops_an_example(r) for r in (a, b))
        if a is None or b is None or x is None or y is None:
            return None
        word: Word = "confirmed" if x > SAME * y else "contradicted"
        return finding(
            word, "chain", a=a.name, x=f"{x / 1e6:,.1f}", b=b.name, y=f"{y / 1e6:,.1f}", ratio=f"{x / y:.2f}"
        )

    @property
    def rule(self) -> Text:
        return spoken("rule.chain", a=self.chain.name, b=self.plain.name, factor=f"{SAME:g}")


@dataclass(frozen=True)
class Open(Check):
    """A sentence that no number here speaks about; the message `open.<key>` says why."""

    key: str
    kind: ClassVar[Kind] = "open"

    def __call__(self, result: Compare) -> Finding:
        return Finding("not tested here", spoken(f"open.{self.key}"))

    @property
    def rule(self) -> Text:
        return spoken("rule.open")


@dataclass(frozen=True)
class Record(Check):
    """A sentence about history, held against the publication that it speaks of: `record.<key>`."""

    key: str
    word: Word
    kind: ClassVar[Kind] = "record"

    def __call__(self, result: Compare) -> Finding:
        return Finding(self.word, spoken(f"record.{self.key}"))

    @property
    def rule(self) -> Text:
        return spoken("rule.record")


def values(recipe: RecipeResult, metric: str) -> str:
    """A recipe's median over seeds with the lowest and the highest, in the metric's own unit."""
    found = [score.value for score in scores(recipe, metric, "low")]
    if len(found) == 1:
        return f"{found[0]:.3g}"
    return f"{median(found):.3g} [{min(found):.3g}, {max(found):.3g}]"


def _validation(recipe: RecipeResult) -> float:
    """Median over seeds of the distance to validation data by which a run's weights were chosen."""
    found = [[v for v in s.choice.get("kid_pca", {}).values() if v is not None] for s in _done(recipe)]
    return float(median([min(values) for values in found if values] or [float("inf")]))


def _metric(name: str) -> dict[str, str]:
    return spoken(f"rule.metric_{name}")


def _test(forth: Verdict, back: Verdict) -> dict[str, str]:
    """What the pairs of seeds say."""
    key = "test_mixed" if "mixed" in (forth.word, back.word) else "test_few" if forth.p is None else "test_pairs"
    return spoken(f"evidence.{key}", n=forth.pairs, p="–" if forth.p is None else f"{forth.p:.2g}")


def _listed(order: Sequence[RecipeResult], value: Any) -> dict[str, str]:
    parts = [f"{r.name} {value(r)}" for r in order]
    return {"en": ", ".join(parts), "zh": "，".join(parts)}


def _done(recipe: RecipeResult) -> list[SeedResult]:
    return [seed for seed in recipe.seeds if seed.status == "done"]


def runs_without_trouble() -> int:
    """How many runs, all without trouble, show that surely fewer than TROUBLE_LIMIT have any."""
    return next(n for n in range(1, 1000) if exact_interval(0, n, 0.9)[1] < TROUBLE_LIMIT)


def _counted(who: Who, results: Sequence[Compare]) -> tuple[int, int]:
    """Trainings that had trouble, and all that ended."""
    ended = [seed for seed in _trained(who, results) if seed.status != "skipped"]
    return sum(map(troubled, ended)), len(ended)


def _trained(who: Who, results: Sequence[Compare]) -> Iterator[SeedResult]:
    for result in results:
        for recipe in who.tried(result):
            yield from recipe.seeds


def _flops_an_example(recipe: RecipeResult | None) -> float | None:
    found = [] if recipe is None else [s.ledger for s in _done(recipe) if s.ledger is not None]
    costs = [ledger.flops / ledger.examples for ledger in found if ledger.examples]
    return median(costs) if costs else None
