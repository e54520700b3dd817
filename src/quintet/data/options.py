"""DataOptions: what a user may ask of a source, typed, in one place; `size=64` pairs and keyword arguments become it.

What it is not: defaults that depend on the data (the common size, the channels). Those are chosen by the source and
said in the data set's notes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Literal

from pydantic import Field, field_validator
from pydantic.dataclasses import dataclass

from quintet.core.config import STRICT, Config, make
from quintet.core.errors import UsageError

IMAGE_OPTIONS = (
    "size", "channels", "background", "frames", "policy", "levels", "allow_bad", "label", "max_pixels", "near",
    "memory_gib", "cache",
)  # fmt: skip
FILES_OPTIONS = (*IMAGE_OPTIONS, "label_file")
"""Of images that are files of their own: folders and archives."""
TABLE_OPTIONS = ("label", "columns", "drop")
LABELS = ("label", "labels", "fine_label", "class", "y", "target", "category")
"""Names of label columns, the first that there is."""

COLOURS = {"white": (255, 255, 255), "black": (0, 0, 0), "grey": (128, 128, 128), "gray": (128, 128, 128)}


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DataOptions(Config):
    """How a source is read.

    Attributes:
        size: of images, in pixels: "auto" (see `images`), "keep", a side, or "HEIGHTxWIDTH".
        channels: 1, 3 or 4; by default 1 if all images are grey, else 3. 4 keeps transparency.
        background: behind transparent pixels: white, black, grey or #rrggbb.
        frames: of animated and multi-page files: the first, or all as examples of their own.
        policy: of images of other sizes: "cover" resizes until the frame is covered and crops the centre, "fit" resizes
            until the image fits and pads with the background, "stretch" changes the aspect.
        levels: 256, or 65536 to keep 16-bit images as they are.
        allow_bad: go on where more than a tenth of the files cannot be used.
        label: column of the label (Parquet, tables, label files); "none" leaves labels out.
        label_file: of a folder or an archive: the file with the labels (`layout`); "none" takes the folders anyway.
        columns, drop: columns of a table to read, or to leave out.
        max_pixels: an image with more is refused before it is decoded.
        near: look for near duplicates.
        memory_gib: arrays beyond this size are mapped from the cache; by default 2 or a quarter of memory.
        cache: keep decoded images in the user's cache folder; a run goes on with that copy when files change (`begun`).
    """

    kind = "data"
    size: int | str = "auto"
    channels: Literal[1, 3, 4] | None = None
    background: str = "white"
    frames: Literal["first", "all"] = "first"
    policy: Literal["cover", "fit", "stretch"] = "cover"
    levels: Literal[256, 65_536] = 256
    allow_bad: bool = False
    label: str | None = None
    label_file: str | None = None
    columns: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    max_pixels: int = Field(default=89_478_485, ge=1, le=89_478_485)
    near: bool = True
    memory_gib: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    cache: bool = True

    @field_validator("size", mode="before")
    @classmethod
    def _size(cls, value: Any) -> Any:
        text = str(value)
        sides = text.lower().split("x")
        if text in ("auto", "keep"):
            return text
        if len(sides) > 2 or not all(side.isascii() and side.isdigit() and 1 <= int(side) <= 4096 for side in sides):
            raise ValueError("expected auto, keep, a side such as 64, or HEIGHTxWIDTH such as 48x64, from 1 to 4096")
        return int(sides[0]) if len(sides) == 1 else text.lower()

    @field_validator("background")
    @classmethod
    def _background(cls, value: str) -> str:
        if value not in COLOURS and not _is_hex(value):
            raise ValueError("expected white, black, grey or #rrggbb")
        return value

    @field_validator("columns", "drop", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        return tuple(name.strip() for name in value.split(",") if name.strip()) if isinstance(value, str) else value

    @property
    def frame(self) -> tuple[int, int] | None:
        """(height, width) where the user gave it."""
        if isinstance(self.size, int):
            return self.size, self.size
        if self.size in ("auto", "keep"):
            return None
        height, width = self.size.split("x")
        return int(height), int(width)

    @property
    def colour(self) -> tuple[int, int, int]:
        """The background, 0..255."""
        if self.background in COLOURS:
            return COLOURS[self.background]
        red, green, blue = bytes.fromhex(self.background[1:])
        return red, green, blue

    def only(self, names: Sequence[str], source: str) -> None:
        """See that nothing is asked for which the source does not know.

        Raises: UsageError naming the option.
        """
        for field in fields(self):
            if field.name not in names and getattr(self, field.name) != getattr(DEFAULT, field.name):
                known = ", ".join(names) or "-"
                raise UsageError("data.option_unused", option=field.name, source=source, known=known)


DEFAULT = DataOptions()


def read_options(options: DataOptions | Mapping[str, Any] | Sequence[str] | None) -> DataOptions:
    """Options from fields or "size=64" pairs.

    Raises: UsageError for an unknown option (naming the nearest) or a value that does not fit.
    """
    if options is None:
        return DEFAULT
    if isinstance(options, DataOptions):
        return options
    if not isinstance(options, Mapping):
        pairs = [text.partition("=") for text in options]
        for text, (_, equals, _) in zip(options, pairs, strict=True):
            if not equals:
                raise UsageError("config.no_equals", text=text)
        options = {name.strip().replace("-", "_"): _plain(value.strip()) for name, _, value in pairs}
    return make(DataOptions, options, "data")


def _plain(text: str) -> Any:
    """What pydantic does not turn into a number by itself: literals and an absent value."""
    if text.lower() in ("", "null"):
        return None
    return int(text) if text.isascii() and text.isdigit() and str(int(text)) == text else text


def _is_hex(text: str) -> bool:
    return len(text) == 7 and text[0] == "#" and all(c in "0123456789abcdefABCDEF" for c in text[1:])
