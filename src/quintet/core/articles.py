"""What became of the articles' sentences: the schema of articles.json (version 1).

What it is: every sentence with its rule, and a verdict on each data set with the numbers. What it is not: how it is
decided (`compare/claims`) or shown (`report/articles`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Word = Literal["confirmed", "contradicted", "not decided", "not tested here"]
Kind = Literal["measured", "mathematics", "record", "open"]
"""What a sentence is decided by: numbers of a comparison, a computation, a publication, or nothing here."""


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Held(Part):
    """A sentence held against one data set; `data` is empty for what no data decide, "*" for all data sets together."""

    data: str
    verdict: Word
    evidence_en: str
    evidence_zh: str


class Sentence(Part):
    """One sentence of the articles, what decides it, and what was found."""

    key: str
    articles: list[str]
    en: str
    zh: str
    kind: Kind
    rule_en: str
    rule_zh: str
    verdict: Word
    held: list[Held]

    def split(self) -> bool:
        """Whether some data sets confirm and others contradict."""
        return {"confirmed", "contradicted"} <= {h.verdict for h in self.held}


class Source(Part):
    """A comparison that the sentences were held against."""

    data: str
    folder: str
    budget: str
    seeds: int
    recipes: list[str]
    splits: dict[str, int]
    fingerprint: str


class Articles(Part):
    """The whole file."""

    schema_: Literal[1] = Field(default=1, alias="schema")
    quintet: str
    created: str
    command: str
    machine: dict[str, Any]
    sources: list[Source]
    sentences: list[Sentence]

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


def overall(found: Sequence[Word], together: Word | None = None) -> Word:
    """One word of several data sets: what more than half of those tested say, where none says the opposite.

    One data set of several that decides by chance alone is thus not enough.

    Args:
        found: a word a data set.
        together: of one test on all data sets together, which then speaks alone.
    """
    tested = [word for word in found if word != "not tested here"]
    confirmed, contradicted = tested.count("confirmed"), tested.count("contradicted")
    if not tested:
        return "not tested here"
    if confirmed and contradicted:
        return "not decided"
    if together is not None:
        return together
    if 2 * max(confirmed, contradicted) > len(tested):
        return "confirmed" if confirmed else "contradicted"
    return "not decided"
