"""The report's sections that are made apart from the page: one module a section.

A section is a function of the `View` (the comparison, its folder and what sections share) that returns a `Section` (its
name, and the values that its partial html/<name>.jinja sees as `s`), or None where there is nothing to show. Its texts
are texts/<name>.toml.
"""

from __future__ import annotations

from collections.abc import Callable

from quintet.report.sections.answer import answer
from quintet.report.sections.calibration import calibration
from quintet.report.sections.copies import copies
from quintet.report.sections.generation import generation
from quintet.report.sections.ledgers import ledgers
from quintet.report.sections.likelihood import likelihood
from quintet.report.sections.memorisation import memorisation
from quintet.report.sections.stability import stability
from quintet.report.sections.verdicts import verdicts
from quintet.report.view import Section, View

SECTIONS: tuple[tuple[str, Callable[[View], Section | None]], ...] = (
    ("head", answer),
    ("table", calibration),
    ("table", likelihood),
    ("table", verdicts),
    ("table", stability),
    ("table", ledgers),
    ("charts", generation),
    ("charts", copies),
    ("charts", memorisation),
)
"""(the part of the page behind which it stands: "head", "table", "charts" or "claims"; the section), in order."""
