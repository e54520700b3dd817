"""One image file to one array of integers, exactly, and safely: limits first, then the header, then the pixels.

What it does: palettes, transparency, CMYK, YCbCr, LAB, 1-bit, 16-bit and float images, EXIF orientation, animated and
multi-page files. What it is not: a choice of size or channels for a data set (`assemble`).

Rules. Grey modes give one channel, others three; transparency is composited over the background, unless asked for.
Colour of 16 bits a channel is reduced to 8 by Pillow. Grey of more than 8 bits keeps its values as 16-bit integers
(floats in [0, 1] are scaled to 0..65,535); what they mean is settled for a data set as a whole (`settle`).
A file is what its content says, whatever its name says. A JPEG with further pictures behind it, as phones write, is a
JPEG of one frame.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, UnidentifiedImageError

from quintet.data.options import DataOptions

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
MOST_BYTES = 2**28
"""Of an encoded image."""
MOST_FRAMES = 10_000
MOST_STRIPS = 65_536
"""Pieces of a TIFF; Pillow makes an object for each before anything can be refused."""
DEEP = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
GREY = ("1", "L", "LA", "La", *DEEP)
WHITES = (255, 1_023, 4_095, 16_383, 65_535)
"""What white may be in images of more than 8 bits: the lowest that no value exceeds."""
ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what undoes it."""
MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"BM", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"GIF8")
REFUSED = {
    b"%PDF": "PDF", b"%!PS": "EPS", b"\xc5\xd0\xd3\xc6": "EPS", b"<svg": "SVG", b"<?xml": "SVG/XML", b"8BPS": "PSD",
    b"\0\0\1\0": "ICO",
}  # fmt: skip

Pixels = NDArray[np.uint8] | NDArray[np.uint16]


class Unusable(Exception):
    """An image that cannot be used.

    Args:
        reason: key below "bad." in the message catalogue.
        fields: of that message.
    """

    def __init__(self, reason: str, **fields: Any) -> None:
        self.reason, self.fields = reason, fields
        super().__init__(reason)


@dataclass(frozen=True)
class Header:
    """What is known of an image before its pixels are decoded.

    Attributes:
        height, width: as shown, after the EXIF orientation.
        mode, format: Pillow's names.
        grey: whether one channel says it all, in every frame.
        whole, real: the highest value of its frames of integers of more than 8 bits, and of floats; None without such.
        frames: that the file holds.
    """

    height: int
    width: int
    mode: str
    format: str
    grey: bool
    whole: int | None = None
    real: float | None = None
    frames: int = 1

    @property
    def deep(self) -> bool:
        """Whether a frame has values of more than 8 bits."""
        return self.whole is not None or self.real is not None


@dataclass(frozen=True)
class Depth:
    """What the values of grey images of more than 8 bits mean, the same for all images of a data set.

    Attributes:
        white: the value that is white.
        unit: whether floats are in [0, 1], and become 0..65,535.
    """

    white: int = WHITES[-1]
    unit: bool = True


def settle(headers: Iterable[Header], least: int = 0) -> Depth | None:
    """What deep values mean where these images are all there are; None if none has any.

    Args:
        headers: of all images.
        least: white unless a value exceeds it.
    """
    seen = list(headers)
    whole = [h.whole for h in seen if h.whole is not None]
    real = [h.real for h in seen if h.real is not None]
    if not whole and not real:
        return None
    unit = bool(real) and max(real) <= 1
    high = max([*whole, *(WHITES[-1] if unit else round(value) for value in real)])
    whites = (least, *WHITES) if least else WHITES
    return Depth(next(white for white in whites if high <= white), unit)


@dataclass(frozen=True)
class Look:
    """A header, and the (H, W, C) pixels of an image of 8 bits that is small enough to keep."""

    header: Header
    pixels: Pixels | None


def look(source: bytes | Path, options: DataOptions, small: int) -> Look:
    """Look at an image, and decode it at once if it has one frame of 8 bits and at most `small` pixels.

    Values of more than 8 bits are looked through: what they mean depends on the highest of a data set.

    Raises: Unusable with the reason.
    """
    with _opened(source, options) as image:
        header = _header(image, options)
        keep = header.height * header.width <= small and header.frames == 1 and not header.deep
        return Look(header, _pixels(_upright(image), options) if keep else None)


def decode(
    source: bytes | Path, options: DataOptions, frame: tuple[int, int] | None = None, depth: Depth = Depth()
) -> list[Pixels]:
    """Decode the first frame, or all frames if `options.frames` says so.

    Args:
        source: a file's content or its path.
        options: background, frames, channels (4 keeps transparency), policy.
        frame: (height, width) to bring it to by the policy; None keeps its size.
        depth: what values of more than 8 bits mean.
    Returns: (H, W, C) arrays, uint8 or, for frames of more than 8 bits, uint16.
    Raises: Unusable with the reason, whatever the file holds.
    """
    with _opened(source, options) as image:
        found = []
        for number in _frames(image, options):
            if not number and frame is not None and _format(image) == "JPEG":
                # the decoder itself reduces by 2, 4 or 8, to no less than twice the frame
                image.draft(image.mode, (2 * max(frame), 2 * max(frame)))
            pixels = _pixels(_upright(image), options, depth)
            found.append(pixels if frame is None else fit(pixels, frame, options, depth.white))
        return found


@contextmanager
def _opened(source: bytes | Path, options: DataOptions) -> Iterator[Image.Image]:
    """A lazily opened image; any failure inside becomes Unusable."""
    try:
        size = len(source) if isinstance(source, bytes) else source.stat().st_size
        if size == 0:
            raise Unusable("zero")
        if size > MOST_BYTES:
            raise Unusable("large", mib=MOST_BYTES >> 20)
        with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as stream:
            start = stream.read(16)
            if start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
                _check_strips(stream, start)
            stream.seek(0)
            try:
                image = Image.open(stream, formats=FORMATS)
            except UnidentifiedImageError as error:
                other = next((name for magic, name in REFUSED.items() if start.lstrip().startswith(magic)), None)
                if start.startswith(MAGIC):
                    raise Unusable("header") from error
                raise Unusable("format" if other else "no_image", format=other) from error
            with image:
                yield image
    except Unusable:
        raise
    except Image.DecompressionBombError as error:
        raise Unusable("bomb", most=options.max_pixels) from error
    except PermissionError as error:
        raise Unusable("permission") from error
    except MemoryError as error:
        raise Unusable("memory") from error
    except Exception as error:  # damaged files make Pillow and its libraries fail in every way there is
        text = " ".join(str(error).split()) or type(error).__name__
        raise Unusable("truncated" if "truncated" in text.lower() else "broken", why=text[:200]) from error


def _header(image: Image.Image, options: DataOptions) -> Header:
    _check_size(*image.size, options)
    width, height = image.size
    # Pillow turns a TIFF upright itself, and gives its size as turned
    if image.format != "TIFF" and _orientation(image) >= 5:
        width, height = height, width
    mode, grey, whole, real, frames = _mode(image), True, list[int](), list[float](), 0
    for number in _frames(image, options):
        frames = number + 1
        neutral = len(set(options.colour)) == 1 or not image.has_transparency_data
        grey = grey and image.mode in GREY and (neutral or options.channels == 4)
        if image.mode in DEEP:
            image.load()
            values, clear = _values(image)
            high = float(values.max(where=~clear, initial=0))
            if values.dtype.kind == "f":
                real.append(high)
            else:
                whole.append(int(high))
    highest = max(whole, default=None), max(real, default=None)
    return Header(height, width, mode, _format(image), grey, *highest, frames)


def _frames(image: Image.Image, options: DataOptions) -> Iterator[int]:
    """The numbers of the frames that count, the image turned to each in its turn.

    Raises: Unusable for too many frames, or one that is too large.
    """
    count = int(getattr(image, "n_frames", 1)) if options.frames == "all" and _format(image) != "JPEG" else 1
    if count > MOST_FRAMES:
        raise Unusable("frames", frames=count, most=MOST_FRAMES)
    for number in range(count):
        if number:
            image.seek(number)
        _check_size(*image.size, options)
        yield number


def _format(image: Image.Image) -> str:
    """Pillow's name; MPO, a JPEG with further pictures behind it (a depth map, the other eye), is JPEG."""
    return "JPEG" if image.format == "MPO" else image.format or "?"


def _mode(image: Image.Image) -> str:
    return f"{image.mode}+transparency" if "transparency" in image.info else image.mode


def _check_size(width: int, height: int, options: DataOptions) -> None:
    if width < 1 or height < 1:
        raise Unusable("empty")
    if width * height > options.max_pixels:
        raise Unusable("bomb", most=options.max_pixels)


def _check_strips(stream: Any, start: bytes) -> None:
    """Refuse a TIFF of too many pieces from its first directory alone."""
    order = "<" if start[:2] == b"II" else ">"
    big = struct.unpack(order + "H", start[2:4])[0] == 43
    offset = struct.unpack(order + ("Q" if big else "I"), start[8:16] if big else start[4:8])[0]
    stream.seek(offset)
    head = stream.read(8 if big else 2)
    if len(head) < (8 if big else 2):
        return  # truncated: Pillow says so
    entries = min(struct.unpack(order + ("Q" if big else "H"), head)[0], 65_535)
    length = 20 if big else 12
    table = stream.read(entries * length)
    for at in range(0, len(table) - length + 1, length):
        tag, _, count = struct.unpack(order + ("HHQ" if big else "HHI"), table[at : at + (12 if big else 8)])
        if tag in (273, 279, 324, 325) and count > MOST_STRIPS:
            raise Unusable("strips", count=count, most=MOST_STRIPS)


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # broken metadata do not make the pixels wrong
        return 1
    return value if value in TURNS else 1


def _upright(image: Image.Image) -> Image.Image:
    image.load()  # of a TIFF this also turns it and takes the tag away
    turn = TURNS.get(_orientation(image))
    if turn is None:
        return image
    turned = image.transpose(turn)
    turned.info = image.info
    return turned


def fit(pixels: Pixels, frame: tuple[int, int], options: DataOptions, white: int = WHITES[-1]) -> Pixels:
    """(H, W, C) pixels at (height, width) by the policy, resampled with Lanczos' filter; themselves if they fit.

    `white` is what it is in deep pixels: padding is measured by it, and edges do not overshoot it.
    """
    height, width = frame
    had = pixels.shape[:2]
    if had == (height, width):
        return pixels
    deep, grey = pixels.dtype == np.uint16, pixels.shape[2] == 1
    flat = pixels[:, :, 0] if grey else pixels
    image = Image.fromarray(flat.astype(np.float32) if deep else flat)
    scale_y, scale_x = height / had[0], width / had[1]
    if options.policy == "fit":
        scale = min(scale_x, scale_y)
        inner = max(1, min(width, round(had[1] * scale))), max(1, min(height, round(had[0] * scale)))
        # behind a deep image, in its units; clear behind one with transparency
        behind: Any = luma(options) * (white / 255 if deep else 1) if grey else (*options.colour, 0)[: pixels.shape[2]]
        canvas = Image.new(image.mode, (width, height), behind)
        canvas.paste(image.resize(inner, Image.Resampling.LANCZOS), ((width - inner[0]) // 2, (height - inner[1]) // 2))
        found = np.asarray(canvas)
    else:
        box = (0.0, 0.0, float(had[1]), float(had[0]))
        if options.policy == "cover":
            scale = max(scale_x, scale_y)
            w, h = min(float(had[1]), width / scale), min(float(had[0]), height / scale)
            left, top = (had[1] - w) / 2, (had[0] - h) / 2
            box = (left, top, min(left + w, float(had[1])), min(top + h, float(had[0])))
        found = np.asarray(image.resize((width, height), Image.Resampling.LANCZOS, box=box))
    if deep:
        found = np.rint(found).clip(0, white).astype(np.uint16)
    return found[:, :, None] if grey else found


def luma(options: DataOptions) -> int:
    """The background's brightness, 0..255 (Rec. 601)."""
    red, green, blue = options.colour
    return round(0.299 * red + 0.587 * green + 0.114 * blue)


def _pixels(image: Image.Image, options: DataOptions, depth: Depth = Depth()) -> Pixels:
    """(H, W, 1, 3 or 4), uint8 or uint16."""
    if image.mode in DEEP:
        return _deep(image, options, depth)
    if image.has_transparency_data:
        rgba = np.asarray(image.convert("RGBA"))
        if options.channels == 4:
            return rgba
        colours = options.colour
        if image.mode in GREY and len(set(colours)) == 1:
            return _composite(rgba[:, :, :1], rgba[:, :, 3:], colours[:1])
        return _composite(rgba[:, :, :3], rgba[:, :, 3:], colours)
    if image.mode in GREY:
        return np.asarray(image.convert("L"))[:, :, None]
    if image.mode == "LAB":
        image = _from_lab(image)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _composite(colour: Pixels, alpha: Pixels, background: tuple[int, ...]) -> Pixels:
    """colour * alpha + background * (1 - alpha), rounded."""
    a = alpha.astype(np.uint32)
    behind = np.array(background, dtype=np.uint32)
    mixed: Pixels = ((colour * a + behind * (255 - a) + 127) // 255).astype(np.uint8)
    return mixed


def _deep(image: Image.Image, options: DataOptions, depth: Depth) -> Pixels:
    """(H, W, 1) uint16 of an image of more than 8 bits."""
    values, clear = _values(image)
    if depth.unit and values.dtype.kind == "f":
        values = values.astype(np.float64).clip(0) * WHITES[-1]
        _check_range(values)
    found: NDArray[np.uint16] = np.rint(values).astype(np.uint16)
    found[clear] = round(luma(options) * depth.white / 255)
    return found[:, :, None]


def _values(image: Image.Image) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """(H, W) values of an image of more than 8 bits, integers or floats within 0..65,535, and which are clear."""
    values = np.asarray(image)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise Unusable("nonfinite")
    _check_range(values)
    clear = image.info.get("transparency")
    return values, values == clear if isinstance(clear, int) else np.zeros(values.shape, bool)


def _check_range(values: NDArray[Any]) -> None:
    low, high = float(values.min()), float(values.max())
    if round(low) < 0 or round(high) > WHITES[-1]:
        raise Unusable("range", low=f"{low:g}", high=f"{high:g}")


def _from_lab(image: Image.Image) -> Image.Image:
    """CIE L*a*b* (D50) to sRGB."""
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    turned = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
    assert turned is not None
    return turned
