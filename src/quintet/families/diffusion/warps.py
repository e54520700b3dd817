"""Augmentation that does not leak: a training image is warped in one of some known ways, and the network is told so.

What it is: a fixed table of small rotations, stretches and shifts. Sampling asks for the unwarped image by naming no
warp, so samples keep the data's own geometry, while the network has seen many more images than there are.
What it is not: the data's augmentation (`train.augment`), whose images are taken for real ones.

Source: Karras et al. 2022, appendix F.2, arXiv:2206.00364; a table instead of continuous parameters, so that the warp
can be a condition like any label.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from quintet.core.config import STRICT, Config
from quintet.core.rng import Rng
from quintet.core.spec import UNCONDITIONAL, DataSpec

CONDITION = "_warp"
"""The network's condition that names the warp; absent or -1 is none."""


class Warps(nn.Module):
    """A table of affine maps of the image plane, drawn once and the same in every run.

    Args:
        share: of the images that are warped.
        count: rows of the table.
        rotation: largest angle in radians.
        stretch: largest logarithm of the factor along each axis.
        shift: largest move along each axis, as a share of the image's width or height.
    """

    maps: Tensor

    def __init__(self, share: float, count: int, rotation: float, stretch: float, shift: float) -> None:
        super().__init__()
        self.share, self.count = share, count
        u = 2 * torch.from_numpy(Rng(0, "warps").numpy().random((count, 5))).float() - 1
        angle, sx, sy = rotation * u[:, 0], torch.exp(stretch * u[:, 1]), torch.exp(stretch * u[:, 2])
        move = 2 * shift * u[:, 3:]  # the plane goes from -1 to 1
        rows = [angle.cos() * sx, -angle.sin() * sy, move[:, 0], angle.sin() * sx, angle.cos() * sy, move[:, 1]]
        self.register_buffer("maps", torch.stack(rows, 1).reshape(count, 2, 3), persistent=False)

    def forward(self, x: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W), some of them warped, and the (B,) int64 numbers of their warps, -1 for none.

        Pixels between pixels are interpolated linearly, those outside repeat the edge.
        """
        n = len(x)
        which = rng("which").integers(0, self.count, (n,))
        which = torch.where(rng("share").uniform((n,)) < self.share, which, UNCONDITIONAL)
        maps = self.maps[which.clamp_min(0)].to(x.dtype)  # a fixed shape, whichever rows are warped
        grid = F.affine_grid(maps, list(x.shape), align_corners=False)
        warped = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
        out = torch.where((which >= 0)[:, None, None, None], warped, x)
        return out, which


@dataclass(frozen=True, kw_only=True, config=STRICT)
class WarpConfig(Config):
    """See Warps."""

    kind = "warps"
    share: float = Field(default=0.5, ge=0, le=1)
    count: int = Field(default=32, ge=1)
    rotation: float = Field(default=0.2, ge=0, le=math.pi)
    stretch: float = Field(default=0.1, ge=0, le=1)
    shift: float = Field(default=0.125, ge=0, le=1)

    def build(self, spec: DataSpec) -> Warps:
        """Raises: ValueError for data that are no images."""
        if spec.kind != "image":
            raise ValueError(f"warps are for images, got a {spec.kind}")
        return Warps(self.share, self.count, self.rotation, self.stretch, self.shift)
