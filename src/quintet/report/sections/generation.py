"""Generation: how each family makes a sample, as frames side by side."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from quintet.core.results import RecipeResult
from quintet.report import table
from quintet.report.artefacts import Arrays, arrays, inside
from quintet.report.pictures import Window, colour, grid, lattice_side, mesh, scatter
from quintet.report.view import Section, View

_FRAMES = 9


@dataclass(frozen=True)
class Strip:
    """How one model generates: frames side by side with their captions."""

    name: str
    family: str
    kind: str
    frames: tuple[tuple[str, str], ...]  # (data address, caption)


def generation(view: View) -> Section | None:
    """One strip a recipe that kept a trace; no section for samples alone."""
    found = []
    for recipe in view.compare.recipes:
        for seed in table.done(recipe):
            trace = arrays(inside(view.folder, seed.run), "trace.npz", "frames", "at", "kind")
            if trace is not None and trace["frames"].shape[2:] == view.shape:
                found.append(_strip(view, recipe, trace))
                break
    return Section("generation", {"strips": found}) if found or not view.judged else None


def _strip(view: View, recipe: RecipeResult, trace: Arrays) -> Strip:
    frames, at = trace["frames"], [str(text) for text in np.atleast_1d(trace["at"])]
    chosen = np.unique(np.round(np.linspace(0, len(frames) - 1, min(len(frames), _FRAMES))).astype(int))
    side = None if view.is_image else lattice_side(frames)
    pictures = []
    for k in chosen:
        if view.is_image:
            image = grid(view.range.pixels(frames[k][:2]), 1, width=200, gap=8)
        else:
            window = view.window or Window.of(frames[-1])
            image = (
                scatter(frames[k], window, colour(recipe.family), size=240)
                if side is None
                else mesh(frames[k], side, window, colour(recipe.family), size=240)
            )
        pictures.append((image, at[k] if k < len(at) else ""))
    return Strip(recipe.name, recipe.family, str(trace["kind"]), tuple(pictures))
