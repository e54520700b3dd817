"""Spaces of pretrained networks whose weights the user gives as a file, by the published protocols.

What it is: the one way from `--judge NAME=FILE` to features. What it is not: a download; nothing is fetched, and only
safetensors are read, as other formats can run code.
"""

from __future__ import annotations

import hashlib
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from quintet.core.checkpoint import write_atomically
from quintet.core.errors import UsageError
from quintet.core.rng import Rng, layer_noise
from quintet.core.spec import DataSpec
from quintet.metrics.distances import Kernel, Polynomial
from quintet.metrics.sizes import Array

PUBLISHED = 50_000
"""Samples that published figures rest on; the real side is then the whole training set."""


class PretrainedSpace(ABC):
    """Features of a network with given weights.

    Args:
        path: a safetensors file with the published names.
        spec: of the raw data: images of 1 or 3 channels with levels.
        device: "cpu" or "cuda".

    Attributes:
        metric: what the Fréchet distance in this space is called.
        published: whether this is the network of the published figures.
        store: folder in which features of real items are kept; None keeps none.
        hash: SHA-256 of the file.
    Raises: UsageError for a file that is missing, unreadable or holds other tensors, and for other data.
    """

    metric: str
    title: str
    published = True
    store: Path | None = None
    batch = 32

    def __init__(self, path: Path, spec: DataSpec, *, device: str = "cpu") -> None:
        if spec.kind != "image" or spec.levels is None or spec.shape[0] not in (1, 3):
            raise UsageError("judge.data", name=self.title)
        self.spec, self.device = spec, device
        tensors = read_weights(path)
        self.hash = hashlib.sha256(path.read_bytes()).hexdigest()
        try:
            with layer_noise(Rng(0, "load")):  # building draws weights that are replaced at once
                self.network = self.build(tensors)
        except (KeyError, RuntimeError, ValueError) as error:
            raise UsageError("judge.weights", path=path, name=self.title, why=str(error).splitlines()[0]) from error
        self.network.eval().requires_grad_(False).to(device)
        self.kernel: Kernel = Polynomial()

    @property
    def name(self) -> str:
        return f"{self.title}, weights {self.hash[:12]}"

    @abstractmethod
    def build(self, tensors: Mapping[str, Tensor]) -> nn.Module:
        """The network with these weights; it maps what `prepare` gives to (B, d)."""

    @abstractmethod
    def prepare(self, images: NDArray[np.uint8]) -> Tensor:
        """(B, 3, H, W) in 0..255 to the network's input."""

    def features(self, raw: NDArray[np.generic]) -> Array:
        """(N, C, H, W) raw to (N, d), in batches; row i depends on item i alone."""
        parts = []
        with torch.inference_mode():
            for i in range(0, len(raw), self.batch):
                x = self.prepare(rgb(raw[i : i + self.batch], self.spec))
                parts.append(self.network(x.to(self.device)).double().cpu().numpy())
        return np.concatenate(parts) if parts else np.empty((0, 0))

    def seconds_each(self, raw: NDArray[np.generic], least_s: float = 1.0) -> float:
        """Seconds that an item's features take here, from some items after a first one that warms up.

        Args:
            raw: (N, C, H, W), N at least 2.
            least_s: no further items are timed after so many seconds.
        """
        self.features(raw[:1])
        few = self.batch if self.device == "cuda" else 4
        done, begin = 0, time.perf_counter()
        while done == 0 or (done < len(raw) and time.perf_counter() - begin < least_s):
            done += len(self.features(raw[done : done + few]))
        return (time.perf_counter() - begin) / done

    def remembered(self, raw: NDArray[np.generic]) -> Array:
        """`features` of real items, kept in `store` (if set) under the hash of weights and items."""
        if self.store is None:
            return self.features(raw)
        from safetensors.numpy import load_file, save

        key = hashlib.sha256(self.hash.encode() + np.ascontiguousarray(raw).tobytes()).hexdigest()[:16]
        path = self.store / f"{self.metric}-{key}.safetensors"
        if not path.exists():
            self.store.mkdir(parents=True, exist_ok=True)
            write_atomically(path, save({"features": self.features(raw).astype(np.float32)}))
        known: Array = load_file(path)["features"].astype(np.float64)
        return known

    def comparable(self, n: int, real: int, train: int) -> str:
        """Whether a distance of n samples to `real` of `train` items may stand beside published ones, for protocols."""
        lacks = [] if self.published else ["another size of the network"]
        if n < PUBLISHED:
            lacks.append(f"{n:,} samples instead of {PUBLISHED:,}, which biases it upward")
        if real < train:
            lacks.append(f"{real:,} of {train:,} training items")
        if self.spec.shape[0] != 3:
            lacks.append("grey images repeated three times")
        return f"not comparable with published values: {'; '.join(lacks)}" if lacks else "by the published protocol"

    def to_json(self) -> dict[str, Any]:
        return {"kind": "pretrained", "name": self.name, "sha256": self.hash}


def read_weights(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, in float32.

    Raises: UsageError if it is missing or of another format.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise UsageError("judge.missing", path=path)
    try:
        return {
            name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in load_file(path).items()
        }
    except (SafetensorError, OSError, ValueError) as error:
        raise UsageError("judge.format", path=path) from error


def rgb(raw: NDArray[np.generic], spec: DataSpec) -> NDArray[np.uint8]:
    """(B, C, H, W) with levels to (B, 3, H, W) in 0..255; grey images are repeated three times, as is usual."""
    assert spec.levels is not None
    scaled = np.rint(np.asarray(raw, np.float64) * (255 / (spec.levels - 1)))
    images = np.clip(scaled, 0, 255).astype(np.uint8)
    return np.repeat(images, 3, axis=1) if images.shape[1] == 1 else images
