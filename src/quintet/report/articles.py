"""The articles, settled, as a page (articles.html) and as Markdown in either language. No model code.

What it is: articles.json shown sentence by sentence, in the order of what decides them. What it is not: a verdict; all
of them are in the file.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from markupsafe import Markup

from quintet.core.articles import Articles, Kind, Sentence, Source
from quintet.core.checkpoint import write_atomically
from quintet.report.page import fill
from quintet.report.words import catalogue, say

KINDS: tuple[Kind, ...] = ("measured", "mathematics", "record", "open")
WORDS = {"confirmed": "confirmed", "contradicted": "contradicted", "not decided": "undecided"}
ARTICLES = ("000", "001", "002", "003", "004")
BAR = r"\|"  # within a table of Markdown
FILES = {"en": "articles.md", "zh": "articles.zh.md"}


def write_articles(settled: Articles, folder: Path) -> Path:
    """Write articles.html and the Markdown of both languages into a folder; returns the page's path."""
    page = folder / "articles.html"
    write_atomically(page, fill("articles.jinja", page=_Page(settled)).encode())
    for lang, name in FILES.items():
        write_atomically(folder / name, markdown(settled, lang).encode())
    return page


class _Page:
    """What the template asks for."""

    def __init__(self, settled: Articles) -> None:
        self.settled = settled
        self.title = catalogue()["articles.title"]["en"]

    @property
    def kinds(self) -> list[Kind]:
        return [kind for kind in KINDS if self.of(kind)]

    def of(self, kind: Kind) -> list[Sentence]:
        return [sentence for sentence in self.settled.sentences if sentence.kind == kind]

    @property
    def articles(self) -> list[Markup]:
        return [say(f"articles.article_{number}") for number in ARTICLES]

    @property
    def count(self) -> Markup:
        return say("articles.count", **counts(self.settled))

    @property
    def sources(self) -> list[Markup]:
        return [say("articles.source", **_source(source)) for source in self.settled.sources]

    @property
    def machine(self) -> Markup:
        return say("articles.machine", **_machine(self.settled))

    @staticmethod
    def word(verdict: str) -> Markup:
        return say(f"verdict.{WORDS.get(verdict, 'untested')}")

    @staticmethod
    def place(data: str) -> Markup | str:
        return say("articles.together") if data == "*" else data

    @staticmethod
    def origin(sentence: Sentence) -> Markup:
        return say("articles.from", list=", ".join(sentence.articles))


def counts(settled: Articles) -> dict[str, int]:
    """How many sentences have which verdict."""
    found = Counter(sentence.verdict for sentence in settled.sentences)
    return {
        "confirmed": found["confirmed"],
        "contradicted": found["contradicted"],
        "undecided": found["not decided"],
        "untested": found["not tested here"],
        "split": sum(sentence.split() for sentence in settled.sentences),
    }


def markdown(settled: Articles, lang: str) -> str:
    """The page as Markdown in one language: tables of verdicts, and each sentence with its rule and its numbers."""
    words = _Words(lang)
    lines = [f"# {words('title')}", "", words("lead"), "", f"**{words('count', **counts(settled))}**", ""]
    lines += [words("limits"), "", words("surely"), "", f"## {words('named')}", ""]
    lines += [f"- {words(f'article_{number}')}" for number in ARTICLES]
    lines += ["", f"## {words('sources')}", ""]
    lines += [f"- {words('source', **_source(source))}" for source in settled.sources]
    lines += ["", words("machine", **_machine(settled)), ""]
    for kind in KINDS:
        rows = [sentence for sentence in settled.sentences if sentence.kind == kind]
        lines += _kind(kind, rows, words) if rows else []
    return "\n".join(lines).rstrip() + "\n"


class _Words:
    """The texts of the articles' page as Markdown, in one language."""

    def __init__(self, lang: str) -> None:
        self.lang, self.colon = lang, ": " if lang == "en" else "："

    def __call__(self, key: str, **fields: object) -> str:
        text = catalogue()[f"articles.{key}"][self.lang].format(**fields)
        return re.sub("</?code>", "`", re.sub("</?b>", "**", text))

    def of(self, thing: object, name: str) -> str:
        """A field that comes in both languages."""
        return str(getattr(thing, f"{name}_{self.lang}" if name else self.lang))

    def verdict(self, word: str) -> str:
        return catalogue()[f"verdict.{WORDS.get(word, 'untested')}"][self.lang]

    def overall(self, sentence: Sentence) -> str:
        """The sentence's verdict; where data sets disagree, what each says."""
        if not sentence.split():
            return self.verdict(sentence.verdict)
        each = [f"{held.data} {self.verdict(held.verdict)}" for held in sentence.held if held.data != "*"]
        return f"{self('split')} ({'; '.join(each)})" if self.lang == "en" else f"{self('split')}（{'；'.join(each)}）"


def _kind(kind: Kind, rows: list[Sentence], words: _Words) -> list[str]:
    """One section: its table of verdicts, then each sentence by itself."""
    lines = [f"## {words(kind)}", ""]
    lines += [words("mathematics_lead"), ""] if kind == "mathematics" else []
    lines += [f"| {words('sentence')} | {words('verdict')} |", "|---|---|"]
    lines += [f"| {words.of(s, '').replace('|', BAR)} | {words.overall(s)} |" for s in rows]
    lines.append("")
    for s in rows:
        origin = words("from", list=", ".join(s.articles))
        lines += [f"### {words.of(s, '')}", "", f"**{words.overall(s)}** · {origin}", ""]
        lines += [f"{words('rule')}{words.colon}{words.of(s, 'rule')}", ""] if kind != "open" else []
        for held in s.held:
            name = words("together") if held.data == "*" else held.data
            head = f"{name} — {words.verdict(held.verdict)}{words.colon}" if name else ""
            lines.append(f"- {head}{words.of(held, 'evidence')}")
        lines.append("")
    return lines


def _source(source: Source) -> dict[str, object]:
    return {
        "data": source.data,
        "recipes": ", ".join(source.recipes),
        "budget": source.budget,
        "seeds": source.seeds,
        "train": f"{source.splits['train']:,}",
        "test": f"{source.splits['test']:,}",
    }


def _machine(settled: Articles) -> dict[str, object]:
    return {
        "processor": settled.machine["processor"],
        "threads": settled.machine["threads"],
        "version": settled.quintet,
        "created": settled.created[:10],
        "command": settled.command,
    }
