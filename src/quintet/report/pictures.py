"""Pictures: arrays of raw data to small PNG images as data addresses.

Images are enlarged by whole factors (nearest neighbour), so that a pixel of the data stays a square. Points are drawn
with transparency on a transparent ground, so that they stand on a light and on a dark page.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Pixels = NDArray[np.uint8]

COLOURS = {
    "gan": "#d55e00",
    "vae": "#009e73",
    "flow": "#b565a7",
    "diffusion": "#2a7fc9",
    "autoregressive": "#d79b00",
    "real": "#858b92",
    "hybrid": "#6f7d3c",
}
"""One colour a family, told apart with the common colour blindnesses (after Okabe and Ito 2008), on light and dark."""


def colour(family: str) -> str:
    """The family's colour as #rrggbb; grey for a family of the user's own."""
    return COLOURS.get(family, COLOURS["real"])


def png(image: Image.Image) -> str:
    """The image as a data address."""
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


@dataclass(frozen=True)
class Range:
    """Which raw value is black and which is white."""

    low: float
    high: float

    @staticmethod
    def of(levels: int | None, *samples: NDArray[Any]) -> Range:
        """0..levels-1 for discrete data, else the range of the first array given that has one."""
        if levels:
            return Range(0.0, float(levels - 1))
        for x in samples:
            finite = x[np.isfinite(x)]
            if finite.size and finite.max() > finite.min():
                return Range(float(finite.min()), float(finite.max()))
        return Range(0.0, 1.0)

    def pixels(self, x: NDArray[Any]) -> Pixels:
        """(N, C, H, W) raw to (N, H, W, 2 or 4) bytes: grey or colour, and alpha, 0 where a value is not finite."""
        x = np.asarray(x, np.float64)
        known = np.isfinite(x).all(1)[..., None]  # (N, H, W, 1)
        scaled = (np.nan_to_num(x) - self.low) / max(self.high - self.low, 1e-12)
        body = np.round(255 * np.clip(scaled, 0, 1)).astype(np.uint8).transpose(0, 2, 3, 1)  # (N, H, W, C)
        if body.shape[-1] not in (1, 3, 4):
            body = body[..., :1]
        alpha = np.where(known, 255, 0).astype(np.uint8)
        return body if body.shape[-1] == 4 else np.concatenate([body, alpha], -1)


def grid(images: Pixels, columns: int, width: int = 640, gap: int = 2) -> str:
    """Images (N, H, W, 2 or 4) in rows of `columns`, enlarged to about `width` pixels, as a data address.

    Larger images than fit are made smaller (Lanczos).
    """
    n, height, across, channels = images.shape
    mode = "LA" if channels == 2 else "RGBA"
    cell = max(1, width // columns)
    factor = max(1, cell // across)
    size = (across * factor, height * factor)
    if across > cell:
        size = (cell, max(1, round(height * cell / across)))
    rows = -(-n // columns)
    canvas = Image.new(mode, (columns * (size[0] + gap) - gap, rows * (size[1] + gap) - gap))
    for i, pixels in enumerate(images):
        tile = Image.fromarray(np.ascontiguousarray(pixels), mode)
        tile = tile.resize(size, Image.Resampling.NEAREST if across <= cell else Image.Resampling.LANCZOS)
        canvas.paste(tile, ((i % columns) * (size[0] + gap), (i // columns) * (size[1] + gap)))
    return png(canvas)


def by_class(labels: NDArray[Any], classes: int, rows: int) -> NDArray[np.int64] | None:
    """Indices (rows * classes,) of a grid whose columns are the classes, or None where a class has too few examples.

    Within a class the order is kept, so that nothing is selected.
    """
    found = [np.flatnonzero(labels == k)[:rows] for k in range(classes)]
    if min(len(f) for f in found) < rows:
        return None
    return np.stack(found, 1).reshape(-1)


@dataclass(frozen=True)
class Window:
    """The square in which points are drawn, and the map from raw dimensions to it.

    Attributes:
        centre: (D,) subtracted first.
        axes: (D, 2) projection; the identity for two dimensions.
        middle, half: centre (2,) and half the side of the square.
    """

    centre: NDArray[np.float64]
    axes: NDArray[np.float64]
    middle: NDArray[np.float64]
    half: float

    @staticmethod
    def of(x: NDArray[Any]) -> Window:
        """Fit to points (N, D): the first two principal components where D > 2, a margin round all but stray points."""
        x = np.asarray(x, np.float64).reshape(len(x), -1)
        x = x[np.isfinite(x).all(1)]
        dims = x.shape[1]
        centre, axes = np.zeros(dims), np.eye(dims, 2)
        if dims > 2:
            centre = x.mean(0)
            axes = np.linalg.svd(x - centre, full_matrices=False)[2][:2].T
            axes = axes * np.sign(axes[np.abs(axes).argmax(0), range(axes.shape[1])])  # a sign, not the library's
        flat = (x - centre) @ axes
        low, high = np.quantile(flat, [0.005, 0.995], axis=0)
        return Window(centre, axes, (low + high) / 2, float(0.62 * max(np.max(high - low), 1e-9)))

    def place(self, x: NDArray[Any], size: int) -> NDArray[np.float64]:
        """(N, D) to pixel coordinates (N, 2) on a square of `size`; the second axis points up."""
        flat = (np.asarray(x, np.float64).reshape(len(x), -1) - self.centre) @ self.axes
        flat = (flat - self.middle) / self.half
        return np.stack([(flat[:, 0] + 1) / 2 * size, (1 - flat[:, 1]) / 2 * size], 1)


def _rgb(hex_colour: str) -> tuple[int, int, int]:
    return int(hex_colour[1:3], 16), int(hex_colour[3:5], 16), int(hex_colour[5:7], 16)


def _tinted(alpha: NDArray[np.float64], hex_colour: str) -> Image.Image:
    body = np.empty((*alpha.shape, 4), np.uint8)
    body[..., :3] = _rgb(hex_colour)
    body[..., 3] = np.round(255 * np.clip(alpha, 0, 1))
    return Image.fromarray(body, "RGBA")


def scatter(
    x: NDArray[Any],
    window: Window,
    hex_colour: str,
    size: int = 480,
    radius: float = 2.4,
    under: NDArray[Any] | None = None,
) -> str:
    """Points (N, D) as translucent dots; where they crowd, the ground disappears. Points outside are left out.

    Args:
        under: points drawn first, faint and grey.
    """
    image = _tinted(0.9 * _dots(x, window, size, radius), hex_colour)
    if under is not None:
        ground = _tinted(0.38 * _dots(under, window, size, radius), COLOURS["real"])
        image = Image.alpha_composite(ground, image)
    return png(image)


def _dots(x: NDArray[Any], window: Window, size: int, radius: float) -> NDArray[np.float64]:
    """How much of each pixel the dots cover, (size, size) in [0, 1]."""
    place = window.place(x, size)
    place = place[np.isfinite(place).all(1)]
    inside = ((place >= 0) & (place < size)).all(1)
    column, row = np.floor(place[inside]).astype(np.int64).T
    count = np.zeros((size, size))
    np.add.at(count, (row, column), 1.0)
    reach = int(np.ceil(radius + 1))
    padded = np.pad(count, reach)
    ink = np.zeros_like(count)
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            weight = float(np.clip(radius + 0.5 - np.hypot(dx, dy), 0, 1))
            if weight:
                ink += weight * padded[reach + dy : reach + dy + size, reach + dx : reach + dx + size]
    return 1 - np.exp(-ink)


def lattice_side(frames: NDArray[Any]) -> int | None:
    """k where the first or last of the frames (F, k*k, 2) is a regular k x k lattice, else None."""
    if frames.ndim != 3 or frames.shape[2] != 2:
        return None
    side = round(float(np.sqrt(frames.shape[1])))
    if side < 4 or side * side != frames.shape[1]:
        return None
    for frame in (frames[0], frames[-1]):
        mesh = np.asarray(frame, np.float64).reshape(side, side, 2)
        spread = float(np.ptp(mesh)) or 1.0
        for first, second in ((0, 1), (1, 0)):
            straight = max(np.ptp(mesh[..., 0], axis=first).max(), np.ptp(mesh[..., 1], axis=second).max())
            if straight < 1e-3 * spread:
                return side
    return None


def mesh(x: NDArray[Any], side: int, window: Window, hex_colour: str, size: int = 480) -> str:
    """A bent lattice (side*side, 2) as lines."""
    fine = 3
    ink = Image.new("L", (size * fine, size * fine))
    draw = ImageDraw.Draw(ink)
    corners = window.place(x, size * fine).reshape(side, side, 2)
    for line in (*corners, *corners.transpose(1, 0, 2)):
        if np.isfinite(line).all():
            points = [(float(a), float(b)) for a, b in np.clip(line, -9e3, 9e3)]
            draw.line(points, fill=205, width=fine + 1, joint="curve")
    shrunk = np.asarray(ink.resize((size, size), Image.Resampling.BOX), np.float64) / 255
    return png(_tinted(shrunk, hex_colour))
