"""The self-supervised judge: each image of the judge split is its own class, known again through augmentations.

Its features tell images apart and ignore the augmentations; no label plays a part, so it also sees what a classifier
may forget.

Source: Dosovitskiy et al. 2014, arXiv:1406.6909 (exemplar classes).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quintet.core.spec import DataSpec
from quintet.metrics.judges.network import Judge, train_judge

EXEMPLARS = 256
"""Images of the judge split that are a class each."""


def train_exemplars(
    raw: NDArray[np.generic], spec: DataSpec, *, seed: int = 0, networks: int = 3, steps: int = 300
) -> Judge:
    """Train a judge without labels on the first EXEMPLARS images; the same arguments give the same judge.

    Args:
        raw: (N, C, H, W) raw images of the judge split.
        spec: of the raw data.
        seed, networks, steps: see `train_judge`.
    Raises: ValueError for data that are not images.
    """
    raw = raw[:EXEMPLARS]
    targets = np.arange(len(raw))
    return train_judge(raw, targets, spec, task="exemplars", seed=seed, networks=networks, steps=steps)
