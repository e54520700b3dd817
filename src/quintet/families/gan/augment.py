"""Augmentation of the discriminator's inputs: the same random shifts for real and generated images.

What it is: a differentiable change that both kinds of input undergo, so that a discriminator with few real images
cannot learn them by heart. With a probability below 1 the unshifted distribution stays identifiable and the shifts do
not leak into generated images.
What it is not: augmentation of the data set (the recipe's `augment`), which changes what is modelled.

Sources: Zhao et al. 2020, arXiv:2006.10738; Karras et al. 2020, section 2.2, arXiv:2006.06676.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quintet.core.rng import Rng


def shifted(x: Tensor, probability: float, rng: Rng, share: float = 0.125) -> Tensor:
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
