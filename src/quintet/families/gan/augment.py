"""Augmentation of the discriminator's inputs: the same kinds of random changes for real and generated images.

What it is: differentiable changes that both kinds of input undergo, so that a discriminator with few real images
cannot learn them by heart. With a probability below 1 the unchanged distribution stays identifiable and the changes do
not leak into generated images. Each kind is drawn by itself, row by row.
What it is not: augmentation of the data set (the recipe's `augment`), which changes what is modelled.

Sources: Zhao et al. 2020 (DiffAugment: translation, colour, cutout), arXiv:2006.10738; Karras et al. 2020, section 2.2,
arXiv:2006.06676.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from quintet.core.rng import Rng

Kind = Literal["shift", "colour", "cutout"]


def augmented(x: Tensor, probability: float | Tensor, kinds: Sequence[Kind], rng: Rng) -> Tensor:
    """Each kind of change in turn, each applied to an image with the given probability.

    Args:
        x: (B, C, H, W).
        probability: 0 to 1, a scalar.
    Returns: (B, C, H, W), differentiable in x.
    """
    for kind in kinds:
        x = KINDS[kind](x, probability, rng(kind))
    return x


def shifted(x: Tensor, probability: float | Tensor, rng: Rng, share: float = 0.125) -> Tensor:
    """Shift whole images by whole pixels, filling with the border's values.

    Args:
        x: (B, C, H, W).
        probability: that an image is shifted at all, 0 to 1.
        share: largest shift in each direction as a share of the size, at least one pixel.
    Returns: (B, C, H, W), differentiable in x.
    """
    n, _, height, width = x.shape
    draw = rng.uniform((n, 3))
    apply = draw[:, 2] < probability

    def index(u: Tensor, size: int) -> Tensor:  # (B, size), source pixel of each target pixel
        reach = max(1, round(size * share))
        move = ((u * (2 * reach + 1)).long() - reach) * apply
        return (torch.arange(size, device=x.device) + move[:, None]).clamp(0, size - 1)

    rows, columns = index(draw[:, 0], height), index(draw[:, 1], width)
    item = torch.arange(n, device=x.device)[:, None, None]
    return x.movedim(1, -1)[item, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


def recoloured(x: Tensor, probability: float | Tensor, rng: Rng) -> Tensor:
    """Brightness by up to 0.5 (of a range of 2), contrast and saturation by a factor of 1/2 to 3/2.

    Contrast is about the image's mean, saturation about each pixel's mean over channels.
    """
    draw = rng.uniform((len(x), 4)).to(x.dtype)[:, :, None, None, None]  # (B, 4, 1, 1, 1)
    apply = draw[:, 3] < probability
    brightness, contrast, saturation = draw[:, 0] - 0.5, draw[:, 1] + 0.5, draw[:, 2] + 0.5
    grey = x.mean(1, keepdim=True)
    changed = grey + (x - grey) * saturation
    middle = changed.mean((1, 2, 3), keepdim=True)
    changed = middle + (changed - middle) * contrast + brightness
    return torch.where(apply, changed, x)


def cut(x: Tensor, probability: float | Tensor, rng: Rng, share: float = 0.5) -> Tensor:
    """Set a rectangle of `share` of each side to 0 (mid-grey), its centre uniform over the image."""
    n, _, height, width = x.shape
    draw = rng.uniform((n, 3))

    def inside(u: Tensor, size: int) -> Tensor:  # (B, size)
        half = max(1, round(size * share)) / 2
        return (torch.arange(size, device=x.device) + 0.5 - u[:, None] * size).abs() < half

    apply = draw[:, 2] < probability
    hidden = inside(draw[:, 0], height)[:, :, None] & inside(draw[:, 1], width)[:, None, :] & apply[:, None, None]
    return x.masked_fill(hidden[:, None], 0.0)


KINDS: Mapping[Kind, Callable[[Tensor, float | Tensor, Rng], Tensor]] = {
    "shift": shifted,
    "colour": recoloured,
    "cutout": cut,
}
