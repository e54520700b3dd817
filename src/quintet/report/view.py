"""View: one comparison as every section of the report sees it, and what a section is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from quintet.core.results import Compare, RecipeResult
from quintet.report import table
from quintet.report.artefacts import arrays
from quintet.report.pictures import Range, Window


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        name: its partial is html/<name>.jinja, its texts are texts/<name>.toml; with `nav.<name>` among the texts it
            gets a line in the navigation, to the element with that id.
        values: what the partial sees as `s`, beside the macros and `page`.
    """

    name: str
    values: Mapping[str, Any]


class View:
    """What sections share.

    Attributes:
        compare: without places of this machine.
        folder: the comparison's; read artefacts by `artefacts.inside` alone.
        forms: metric or cost -> how its numbers are written.
        real: held-out examples, "x" and "label", or None.
        range: of pixel values.
        window: of points, None for images.
        classes: names of the first condition's classes.
        judged: whether these are samples that were there already (`quintet evaluate`): nothing was trained here.
    """

    def __init__(self, compare: Compare, folder: Path) -> None:
        self.compare, self.folder = compare, folder
        self.forms = table.forms(compare)
        self.judged = compare.budget.get("cell") == ""
        self.shape: tuple[int, ...] = tuple(int(k) for k in compare.data.get("shape", ()))
        self.is_image = len(self.shape) == 3
        self.real = arrays(folder, "real.npz", "x")
        levels = compare.data.get("levels")
        shown = [] if self.real is None else [self.real["x"]]
        self.range = Range.of(int(levels) if levels else None, *shown)
        self.window = None if self.is_image or self.real is None else Window.of(self.real["x"])
        self.classes = self._class_names()

    @property
    def row_head(self) -> str:
        """The text over the names of rows."""
        return "table.source" if self.judged else "table.recipe"

    def state(self, recipe: RecipeResult) -> str:
        """ "" for a recipe with a finished seed, else why there is none."""
        if table.done(recipe):
            return ""
        if not recipe.seeds and not recipe.reason and recipe.status in ("done", "skipped"):
            return "waiting"
        return recipe.status if recipe.status != "done" else "failed"

    def _class_names(self) -> tuple[str, ...]:
        """The names of the first condition's classes."""
        names = self.compare.data.get("label_names") or {}
        first = next(iter(names.values()), ()) if isinstance(names, Mapping) else names
        return tuple(str(name) for name in first)

    def fits(self, x: NDArray[Any]) -> bool:
        """Whether samples look like the data."""
        return x.shape[1:] == self.shape

    @staticmethod
    def reason(recipe: RecipeResult) -> str:
        """Why a recipe has no result: its own reason, else the first seed's."""
        return recipe.reason or next((s.reason for s in recipe.seeds if s.reason), "")
