"""The main judge that fits the data."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quintet.core.spec import DataSpec
from quintet.metrics.judges.network import Judge, train_judge
from quintet.metrics.judges.selfsupervised import train_exemplars
from quintet.metrics.judges.spaces import CoordinateSpace


def make_judge(
    raw: NDArray[np.generic],
    labels: NDArray[np.int64] | None,
    spec: DataSpec,
    *,
    classes: int | None = None,
    seed: int = 0,
) -> Judge | CoordinateSpace:
    """A network for images, trained on labels or, without any, on exemplars; standardised coordinates for vectors."""
    if spec.kind == "image" and raw.ndim == 4:
        if labels is None:
            return train_exemplars(raw, spec, seed=seed)
        return train_judge(raw, labels, spec, classes=classes, seed=seed)
    number = int(classes or (int(labels.max()) + 1 if labels is not None and len(labels) else 0))
    return CoordinateSpace(raw, labels, number)
