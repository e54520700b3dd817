"""The recipes by name, and the table of config kinds that a stored run may hold."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Iterable
from types import ModuleType

from quintet import families, nets
from quintet.core.config import Config
from quintet.core.errors import UsageError
from quintet.core.recipe import OptimizerConfig, Recipe, Stage, TrainConfig
from quintet.core.spec import DataSpec
from quintet.data import codecs
from quintet.recipes import (
    beta_vae,
    dcgan,
    ddpm,
    edm,
    flow_matching,
    fsq,
    glow,
    gpt,
    kl_ae,
    ladder_vae,
    latent_diffusion,
    nsf,
    tarflow,
    vdm,
)
from quintet.recipes import dit as dit_recipe
from quintet.recipes import gan as gan_recipe
from quintet.recipes import lstm as lstm_recipe
from quintet.recipes import vae as vae_recipe

RECIPES: dict[str, Recipe] = {
    "gan": gan_recipe.RECIPE,
    "dcgan": dcgan.RECIPE,
    "vae": vae_recipe.RECIPE,
    "ladder-vae": ladder_vae.RECIPE,
    "beta-vae": beta_vae.RECIPE,
    "kl-ae": kl_ae.RECIPE,
    "fsq": fsq.RECIPE,
    "nsf": nsf.RECIPE,
    "tarflow": tarflow.RECIPE,
    "glow": glow.RECIPE,
    "flow-matching": flow_matching.RECIPE,
    "dit": dit_recipe.RECIPE,
    "ddpm": ddpm.RECIPE,
    "edm": edm.RECIPE,
    "vdm": vdm.RECIPE,
    "latent-diffusion": latent_diffusion.RECIPE,
    "gpt": gpt.RECIPE,
    "lstm": lstm_recipe.RECIPE,
}

PREFERRED: tuple[tuple[str, ...], ...] = (
    ("gan",),
    ("vae",),
    ("nsf", "tarflow"),
    ("flow-matching",),
    ("gpt",),
)
"""What `compare` trains by default: of each family the first recipe that fits the data."""


def defaults(spec: DataSpec) -> list[str]:
    """A recipe of every family for such data; where none of a family fits, its first, which then says why."""
    return [next((name for name in row if RECIPES[name].unfit(spec) is None), row[0]) for row in PREFERRED]


def _modules(package: ModuleType) -> Iterable[ModuleType]:
    """Every module of a package, its sub-packages included."""
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        yield importlib.import_module(found.name)


def _kinds(modules: Iterable[object]) -> dict[str, type[Config]]:
    """Every concrete config class of the given modules, by its kind."""
    found: dict[str, type[Config]] = {c.kind: c for c in (OptimizerConfig, TrainConfig, Stage)}
    for module in modules:
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, Config) and "kind" in vars(value):
                assert found.get(value.kind, value) is value, f"two config classes of kind {value.kind}"
                found[value.kind] = value
    return found


KINDS: dict[str, type[Config]] = _kinds((codecs, *_modules(nets), *_modules(families)))


def add_kinds(found: Iterable[type[Config]]) -> None:
    """Make config classes from outside known to this process, so that runs which hold them can be read.

    A class that was defined again (in a notebook) takes the place of the earlier one; one without a kind of its own is
    read as the class that it derives from.

    Raises: UsageError for a kind that is another class's.
    """
    for cls in found:
        if "kind" not in vars(cls):
            continue
        known = KINDS.get(cls.kind, cls)
        if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise UsageError("recipe.kind", kind=cls.kind, mine=cls.__qualname__, known=known.__qualname__)
        KINDS[cls.kind] = cls


def find(name: str) -> Recipe:
    """A recipe by name.

    Raises: UsageError (exit 2) naming the nearest known one.
    """
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, 1, cutoff=0.0)
        raise UsageError("recipe.unknown", name=name, hint=near[0], known=", ".join(RECIPES))
    return RECIPES[name]
