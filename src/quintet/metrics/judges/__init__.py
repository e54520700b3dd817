"""Feature spaces in which samples are judged: raw data to rows of features, each space with its name for protocols.

Trained on the judge split, which no generator sees: `network` (on labels) and `selfsupervised` (without). Untrained:
`random` (random convolutional features), `spaces` (PCA, raw values, coordinates). Of others' weights, only where the
user gives them: `inception`, `dinov2`.
"""

from quintet.metrics.judges.make import make_judge
from quintet.metrics.judges.network import Judge, train_judge
from quintet.metrics.judges.random import RandomSpace
from quintet.metrics.judges.selfsupervised import train_exemplars
from quintet.metrics.judges.spaces import CoordinateSpace, PCASpace, PixelSpace, Space

__all__ = [
    "CoordinateSpace",
    "Judge",
    "PCASpace",
    "PixelSpace",
    "RandomSpace",
    "Space",
    "make_judge",
    "train_exemplars",
    "train_judge",
]
