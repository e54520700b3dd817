"""Augmentations: changes of an image that keep it a plausible image of the same class.

Each is a function of the raw images (B, C, H, W) and of uniform numbers (B, `draws`), row for row, so that an item's
change depends on nothing but its own numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from quintet.core.errors import UsageError
from quintet.core.spec import DataSpec


@dataclass(frozen=True)
class Augmentation:
    """A change of images, and how many uniform numbers an item needs for it."""

    draws: int
    apply: Callable[[Tensor, Tensor], Tensor]
    smallest: int = 1


def shift(x: Tensor, u: Tensor) -> Tensor:
    """Move each image by up to an eighth of its height and width, repeating the edge.

    Args:
        x: (B, C, H, W), any dtype.
        u: (B, 2) in [0, 1).
    """
    moved = []
    for size, draw in zip(x.shape[2:], u.T, strict=True):
        most = size // 8
        by = (draw * (2 * most + 1)).to(torch.int64) - most  # (B,) in {-most, ..., most}
        moved.append((torch.arange(size, device=x.device) - by[:, None]).clamp(0, size - 1))  # (B, size)
    rows, columns = moved
    item = torch.arange(len(x), device=x.device)[:, None, None]
    # advanced indices around a slice put the channel last
    return x[item, :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


def flip(x: Tensor, u: Tensor) -> Tensor:
    """Mirror left and right with probability 1/2.

    Args:
        x: (B, C, H, W), any dtype.
        u: (B, 1) in [0, 1).
    """
    return torch.where((u < 0.5)[:, :, None, None], x.flip(3), x)


AUGMENTATIONS: dict[str, Augmentation] = {
    "shift": Augmentation(2, shift, smallest=8),
    "flip": Augmentation(1, flip),
}


def augmentation(name: str, raw: DataSpec) -> Augmentation:
    """The augmentation of that name, for such data.

    Raises: UsageError for an unknown name, or data it cannot change.
    """
    if name not in AUGMENTATIONS:
        raise UsageError("data.unknown_augment", name=name, known=", ".join(AUGMENTATIONS))
    found = AUGMENTATIONS[name]
    if raw.kind != "image" or min(raw.shape[1:]) < found.smallest:
        raise UsageError("data.augment_unfit", name=name, size=found.smallest, shape=raw.shape)
    return found
