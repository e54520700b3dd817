"""What lossless codecs that know nothing of the data make of them, in bits per value: PNG, WebP, LZMA.

What it is: the scale on which a model's coded bytes are read. Images are measured one by one and as one sheet of all of
them, so that neither headers nor their absence flatter anybody; LZMA reads the bytes of all examples in a row.
What it is not: a model's likelihood.

Sources: PNG (ISO/IEC 15948) and WebP through Pillow, at their strongest settings; LZMA2 through Python's lzma.
"""

from __future__ import annotations

import io
import lzma
import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from quintet.core.results import Estimate
from quintet.core.spec import DataSpec

MOST = 64
"""Examples measured at most, the first ones of the test split; models code as many."""

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
FORMATS = {
    "png": {"format": "PNG", "optimize": True},
    "webp": {"format": "WEBP", "lossless": True, "quality": 100, "method": 6, "exact": True},
}


def codecs(x: NDArray[np.generic], spec: DataSpec) -> dict[str, Estimate]:
    """Bits per value of each codec that reads such data; {} for continuous ones.

    Args:
        x: (N, *spec.shape) levels; the first MOST are measured.
        spec: of the raw data.
    Returns: "png", "webp" (each image a file), "png_sheet", "webp_sheet" (all in one), "lzma" (all bytes).
    """
    if spec.levels is None or not len(x):
        return {}
    x = np.asarray(x[:MOST])
    wide = np.ascontiguousarray(x.astype("<u1" if spec.levels <= 256 else "<u2"))
    packed = len(lzma.compress(wide.tobytes(), lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "preset": 9}]))
    found = {"lzma": _bits(packed, x, "LZMA2, all examples in a row, no header")}
    if spec.kind == "image" and spec.shape[0] in MODES and spec.levels <= 256:
        sheet = _sheet(x)
        for name, options in FORMATS.items():
            sizes = [_size(image, options) for image in _images(x)]
            found[name] = _bits(sum(sizes), x, f"lossless {name.upper()}, each image a file")
            found[f"{name}_sheet"] = _bits(_size(sheet, options), x, f"lossless {name.upper()}, all images in one")
    return found


def _bits(size: int, x: NDArray[np.generic], what: str) -> Estimate:
    return Estimate(value=8 * size / x.size, n=len(x), protocol=f"{what}; {size} bytes, {len(x)} examples")


def _images(x: NDArray[np.generic]) -> Iterator[Image.Image]:
    """(N, C, H, W) levels as pictures whose values are the levels themselves."""
    for one in np.moveaxis(x.astype(np.uint8), 1, -1):
        yield Image.fromarray(one[:, :, 0] if one.shape[-1] == 1 else np.ascontiguousarray(one))


def _sheet(x: NDArray[np.generic]) -> Image.Image:
    """All images side by side in about a square; what is left over is level 0."""
    n, channels, height, width = x.shape
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    padded = np.zeros((rows * columns, channels, height, width), x.dtype)
    padded[:n] = x
    grid = padded.reshape(rows, columns, channels, height, width).transpose(2, 0, 3, 1, 4)
    return next(_images(grid.reshape(1, channels, rows * height, columns * width)))


def _size(image: Image.Image, options: dict[str, object]) -> int:
    file = io.BytesIO()
    image.save(file, **options)  # type: ignore[arg-type]
    return file.tell()
