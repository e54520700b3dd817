"""The report's sections that are made apart from the page: one module a section.

A section is a function of the `View` (the comparison, its folder and what sections share) that returns a `Section` (its
name, and the values that its partial html/<name>.jinja sees as `s`), or None where there is nothing to show. Its texts
are texts/<name>.toml.
"""

from __future__ import annotations

from collections.abc import Callable

from quintet.report.sections.copies import copies
from quintet.report.sections.generation import generation
from quintet.report.view import Section, View

SECTIONS: tuple[tuple[str, Callable[[View], Section | None]], ...] = (
    ("charts", generation),
    ("charts", copies),
)
"""(the part of the page behind which it stands: "table", "charts" or "claims"; the section), in order."""
