"""DINOv2's vision transformer for weights that the user has: the class token after the last norm.

What it is: ViT-L/14 (or S, B: the size follows from the tensors) with the names that its authors published; files with
the names of Hugging Face's conversion are renamed. Images go to 224 x 224 by Pillow's bicubic on bytes, as in the
protocol of FD-DINOv2, and are normalised by ImageNet's means. What it is not: ViT-g (another MLP) or the variants with
registers.

Sources: Oquab et al. 2024, arXiv:2304.07193 (network); Stein et al. 2023, arXiv:2306.04675 (FD-DINOv2).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from quintet.metrics.judges.pretrained import PretrainedSpace

SIDE, PATCH, HEAD = 224, 14, 64
MEAN, SD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PUBLISHED_WIDTH, SIZES = 1024, {384: "S", 768: "B", 1024: "L"}

RENAMED = (
    (r"^(dinov2\.)?embeddings\.(cls_token|mask_token)$", r"\2"),
    (r"^(dinov2\.)?embeddings\.position_embeddings$", "pos_embed"),
    (r"^(dinov2\.)?embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^(dinov2\.)?encoder\.layer\.(\d+)\.attention\.(?:output\.dense|o_proj)\.", r"blocks.\2.attn.proj."),
    (r"^(dinov2\.)?encoder\.layer\.(\d+)\.layer_scale(\d)\.lambda1$", r"blocks.\2.ls\3.gamma"),
    (r"^(dinov2\.)?encoder\.layer\.(\d+)\.", r"blocks.\2."),
    (r"^(dinov2\.)?layernorm\.", "norm."),
)
"""Names of Hugging Face's conversion and the published ones."""

ATTENTION = r"^(?:dinov2\.)?encoder\.layer\.(\d+)\.attention\.(?:attention\.)?([qkv])(?:uery|ey|alue|_proj)\.(\w+)$"
"""Its three attention matrices, which the authors keep as one."""


class Dinov2(PretrainedSpace):
    """The space of FD-DINOv2."""

    metric = "fd_dinov2"
    title = "DINOv2"

    def build(self, tensors: Mapping[str, Tensor]) -> nn.Module:
        named = published_names(tensors)
        width = named["cls_token"].shape[-1]
        depth = 1 + max(int(k.split(".")[1]) for k in named if k.startswith("blocks."))
        self.published = width == PUBLISHED_WIDTH
        self.title = f"DINOv2 ViT-{SIZES.get(width, '?')}/14, {width} features"
        network = VisionTransformer(width, depth, positions=named["pos_embed"].shape[1])
        network.load_state_dict({k: v for k, v in named.items() if k != "mask_token"})
        return network

    def prepare(self, images: NDArray[np.uint8]) -> Tensor:
        from PIL import Image

        channels_last = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
        sized = [Image.fromarray(x).resize((SIDE, SIDE), Image.Resampling.BICUBIC) for x in channels_last]
        x = torch.from_numpy(np.stack([np.asarray(image) for image in sized])).permute(0, 3, 1, 2).float() / 255
        return (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(SD).view(3, 1, 1)


def published_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict with the authors' names, whichever of the two it has."""
    found: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}  # joined name -> "q", "k", "v" -> tensor
    for name, tensor in tensors.items():
        part = re.match(ATTENTION, name)
        if part:
            parts.setdefault(f"blocks.{part[1]}.attn.qkv.{part[3]}", {})[part[2]] = tensor
        else:
            found[next((re.sub(old, new, name) for old, new in RENAMED if re.search(old, name)), name)] = tensor
    return found | {name: torch.cat([three[which] for which in "qkv"]) for name, three in parts.items()}


class Attention(nn.Module):
    """Multi-head self-attention with one matrix for queries, keys and values."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // HEAD
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, HEAD).permute(2, 0, 3, 1, 4)  # (B, heads, T, HEAD) each
        out: Tensor = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, d))
        return out


class Scale(nn.Module):
    """LayerScale: a factor a feature (Touvron et al. 2021, arXiv:2103.17239)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class Block(nn.Module):
    """Attention, then MLP, each after a norm, scaled and added."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width)
        self.ls1 = Scale(width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width)
        self.ls2 = Scale(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        out: Tensor = x + self.ls2(self.mlp(self.norm2(x)))
        return out


class Patches(nn.Module):
    """Patches of 14 x 14 pixels to tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, PATCH, stride=PATCH)

    def forward(self, x: Tensor) -> Tensor:
        tokens: Tensor = self.proj(x).flatten(2).transpose(1, 2)
        return tokens


class VisionTransformer(nn.Module):
    """(B, 3, H, W) normalised, sides in whole patches, to the class token (B, width).

    Args:
        width: a multiple of HEAD.
        depth: blocks.
        positions: rows of the position table: a square grid and the class token.
    """

    def __init__(self, width: int, depth: int, positions: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, positions, width))
        self.patch_embed = Patches(width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        grid = (x.shape[-2] // PATCH, x.shape[-1] // PATCH)
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), self.patch_embed(x)], dim=1) + self._positions(grid)
        for block in self.blocks:
            tokens = block(tokens)
        out: Tensor = self.norm(tokens)[:, 0]
        return out

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        """(1, 1 + h w, width): the table, stretched to another grid as the authors do."""
        side = round((self.pos_embed.shape[1] - 1) ** 0.5)
        if grid == (side, side):
            return self.pos_embed
        table = self.pos_embed[:, 1:].view(1, side, side, -1).permute(0, 3, 1, 2)
        # the authors add 0.1 against rounding, and sample at the scale so given
        factor = ((grid[0] + 0.1) / side, (grid[1] + 0.1) / side)
        table = F.interpolate(table, scale_factor=factor, mode="bicubic")
        return torch.cat([self.pos_embed[:, :1], table.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
