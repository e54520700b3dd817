"""Samples as a picture: a grid of images, or points in the plane."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from quintet.core.spec import DataSpec

SIDE = 512  # pixels of a picture's longer side, about


def picture(x: NDArray[Any], spec: DataSpec) -> Image.Image:
    """Raw examples (n, *spec.shape) as one picture.

    Images are laid out row by row and enlarged by a whole factor; of vectors the first two columns are drawn as points.
    """
    if spec.kind == "image":
        return _grid(to_uint8(x, spec), gap=1)
    return _points(np.asarray(x, dtype=np.float64))


def to_uint8(x: NDArray[Any], spec: DataSpec) -> NDArray[np.uint8]:
    """Raw images (n, C, H, W) to (n, H, W, C) with values 0..255."""
    top = (spec.levels or 256) - 1
    scaled = np.rint(np.asarray(x, dtype=np.float64) * (255 / top)).clip(0, 255).astype(np.uint8)
    return np.ascontiguousarray(scaled.transpose(0, 2, 3, 1))


def _grid(images: NDArray[np.uint8], gap: int) -> Image.Image:
    n, height, width, channels = images.shape
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, channels), 128, dtype=np.uint8)
    for i, image in enumerate(images):
        top, left = (i // columns) * (height + gap), (i % columns) * (width + gap)
        sheet[top : top + height, left : left + width] = image
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
    drawn = Image.fromarray(sheet[:, :, 0] if channels == 1 else sheet, mode)
    factor = max(1, SIDE // max(sheet.shape[:2]))
    return drawn.resize((drawn.width * factor, drawn.height * factor), Image.Resampling.NEAREST)


def _points(x: NDArray[np.float64]) -> Image.Image:
    plane = x[:, :2] if x.shape[1] > 1 else np.stack([x[:, 0], np.zeros(len(x))], axis=1)
    plane = plane[np.isfinite(plane).all(axis=1)]
    half = 1.05 * np.quantile(np.abs(plane), 0.999) if len(plane) else 1.0
    counts, _, _ = np.histogram2d(plane[:, 1], plane[:, 0], bins=SIDE // 4, range=[[-half, half], [-half, half]])
    shade = 255 - 255 * np.minimum(1, counts / max(1.0, np.quantile(counts[counts > 0], 0.95) if len(plane) else 1))
    drawn = Image.fromarray(shade[::-1].astype(np.uint8), "L")
    return drawn.resize((SIDE, SIDE), Image.Resampling.NEAREST)
