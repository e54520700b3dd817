"""Features of a convolutional net with random weights: no data, no labels and no training, and all textures alike.

What it is: three stages of 3x3 convolutions whose weights are drawn from a fixed seed; the activations of each stage
are averaged over the quarters of the image, standardised and turned to leading components on the judge split. What it
is not: good at content; a win here alone means little, a loss here says that textures differ.

Sources: Naeem et al. 2020, section 3.3, arXiv:2002.09797 (random embeddings for evaluation); He et al. 2015,
arXiv:1502.01852 (the scale of the weights).
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from quintet.core.rng import Rng
from quintet.core.spec import DataSpec
from quintet.metrics.distances import Kernel, Polynomial
from quintet.metrics.judges.network import BATCH, JudgeNet, value_range
from quintet.metrics.judges.spaces import leading
from quintet.metrics.sizes import Array

WIDTHS = (16, 32, 64)
MOST = 1000
LEAST = 0.1  # a rectified feature that is all but dead on these items explodes on others


class RandomSpace:
    """Random convolutional features of images.

    Args:
        raw: (N, C, H, W) raw images of the judge split, for means, scales and components; of more than MOST the first.
        spec: of the raw data.
        seed: of the weights.
    """

    def __init__(self, raw: NDArray[np.generic], spec: DataSpec, *, seed: int = 0) -> None:
        if spec.kind != "image" or raw.ndim != 4:
            raise ValueError(f"random convolutional features need images (N, C, H, W), got {raw.shape}")
        rng = Rng(seed, "random-features")
        ends = (spec.shape[0], *WIDTHS)
        self.weights = [
            rng("stage", i).normal((b, a, 3, 3)) * math.sqrt(2 / (9 * a)) for i, (a, b) in enumerate(pairwise(ends))
        ]
        self.stride = -(-max(spec.shape[1:]) // JudgeNet.STEM)
        self.low, self.high = value_range(raw, spec)
        self.kernel: Kernel = Polynomial()
        found = self._activations(raw[:MOST])
        self.mean: Array = found.mean(axis=0)
        self.axes: Array = leading(found, least=LEAST)
        self.name = f"random convolutional features, {self.axes.shape[1]} components"

    def features(self, raw: NDArray[np.generic]) -> Array:
        """(N, C, H, W) raw to (N, d)."""
        result: Array = (self._activations(raw) - self.mean) @ self.axes
        return result

    def to_json(self) -> dict[str, Any]:
        return {"kind": "random", "name": self.name, "widths": list(WIDTHS)}

    def _activations(self, raw: NDArray[np.generic]) -> Array:
        x = torch.from_numpy(np.asarray(raw, np.float32))
        x = (x - self.low) * (2 / (self.high - self.low)) - 1
        with torch.no_grad():
            parts = [self._pooled(part) for part in x.split(BATCH)]
        result: Array = torch.cat(parts).double().numpy()
        return result

    def _pooled(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] to (B, 4 * sum of WIDTHS)."""
        found = []
        for i, weight in enumerate(self.weights):
            x = F.relu(F.conv2d(x, weight, stride=self.stride if i == 0 else 2, padding=1))
            found.append(F.adaptive_avg_pool2d(x, 2).flatten(1))
        return torch.cat(found, dim=1)
