"""Judges by name whose weights the user gives: `--judge inception=FILE`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from quintet.core.errors import UsageError
from quintet.core.spec import DataSpec
from quintet.metrics.judges.dinov2 import Dinov2
from quintet.metrics.judges.inception import Inception
from quintet.metrics.judges.pretrained import PretrainedSpace

NETWORKS: dict[str, type[PretrainedSpace]] = {"inception": Inception, "dinov2": Dinov2}


def parse_judges(texts: tuple[str, ...] | list[str]) -> dict[str, Path]:
    """ "NAME=FILE" texts to name -> file.

    Raises: UsageError for another form or an unknown name.
    """
    found = {}
    for text in texts:
        name, sign, path = text.partition("=")
        if not sign or not path:
            raise UsageError("judge.form", text=text)
        found[_known(name.strip())] = Path(path.strip())
    return found


def load_judges(paths: Mapping[str, Path], spec: DataSpec, *, device: str = "cpu") -> dict[str, PretrainedSpace]:
    """The spaces of the files given, by name.

    Raises: UsageError for an unknown name, a file that does not fit, or data that are not images with levels.
    """
    return {_known(name): NETWORKS[name](Path(path), spec, device=device) for name, path in paths.items()}


def _known(name: str) -> str:
    if name not in NETWORKS:
        raise UsageError("judge.unknown", name=name, known=", ".join(NETWORKS))
    return name
