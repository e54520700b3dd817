"""Inception v3 as the FID uses it, for weights that the user has: 2,048 features of the last pooling.

What it is: the network of 2015-12-05 whose weights TensorFlow published and pytorch-fid and torch-fidelity converted,
with their tensor names. The one in torchvision is another: here average pooling does not count padding, the last
block pools by maximum, and there are 1,008 classes. Images are resized to 299 x 299 as TensorFlow 1 did (bilinear,
without half-pixel centres and antialiasing) and brought to (x - 128) / 128.

Sources: Szegedy et al. 2016, arXiv:1512.00567 (network); Heusel et al. 2017, arXiv:1706.08500 (FID).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from quintet.metrics.judges.pretrained import PretrainedSpace

SIDE = 299
Size = int | tuple[int, int]


class Inception(PretrainedSpace):
    """The space of the FID."""

    metric = "fid"
    title = "Inception v3 (2015-12-05), 2048 features"

    def build(self, tensors: Mapping[str, Tensor]) -> nn.Module:
        network = InceptionV3()
        network.load_state_dict({k: v for k, v in tensors.items() if not k.startswith(("fc.", "AuxLogits."))})
        return network.to(memory_format=torch.channels_last)  # type: ignore[no-any-return, call-overload]

    def prepare(self, images: NDArray[np.uint8]) -> Tensor:
        return (resize(torch.from_numpy(images).float(), SIDE) - 128) / 128


def resize(x: Tensor, side: int) -> Tensor:
    """Bilinear as TensorFlow 1: output pixel i lies at i * size / side of the input, edges continued; (B, C, H, W)."""
    rows, columns = (_weights(size, side).to(x) for size in x.shape[-2:])
    return rows @ x @ columns.T


def _weights(size: int, side: int) -> Tensor:
    """(side, size): each row the two weights of an output pixel."""
    at = torch.arange(side, dtype=torch.float32) * (size / side)
    low = at.floor().long().clamp(max=size - 1)
    high, part = (low + 1).clamp(max=size - 1), at - low
    weights = torch.zeros(side, size)
    every = torch.arange(side)
    weights[every, low] = 1 - part
    weights[every, high] += part
    return weights


class BasicConv2d(nn.Module):
    """Convolution, normalisation by stored statistics, ReLU."""

    def __init__(self, inputs: int, outputs: int, size: Size, stride: int = 1, padding: Size = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


def _average(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def _chain(x: Tensor, *layers: nn.Module) -> Tensor:
    for layer in layers:
        x = layer(x)
    return x


class BlockA(nn.Module):
    """35 x 35: 1x1, 5x5, double 3x3, pool."""

    def __init__(self, inputs: int, pool: int) -> None:
        super().__init__()
        self.branch1x1 = BasicConv2d(inputs, 64, 1)
        self.branch5x5_1 = BasicConv2d(inputs, 48, 1)
        self.branch5x5_2 = BasicConv2d(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = BasicConv2d(inputs, 64, 1)
        self.branch3x3dbl_2 = BasicConv2d(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = BasicConv2d(96, 96, 3, padding=1)
        self.branch_pool = BasicConv2d(inputs, pool, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(
            [
                self.branch1x1(x),
                _chain(x, self.branch5x5_1, self.branch5x5_2),
                _chain(x, self.branch3x3dbl_1, self.branch3x3dbl_2, self.branch3x3dbl_3),
                self.branch_pool(_average(x)),
            ],
            dim=1,
        )


class BlockB(nn.Module):
    """35 x 35 to 17 x 17."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3 = BasicConv2d(inputs, 384, 3, stride=2)
        self.branch3x3dbl_1 = BasicConv2d(inputs, 64, 1)
        self.branch3x3dbl_2 = BasicConv2d(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = BasicConv2d(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        double = _chain(x, self.branch3x3dbl_1, self.branch3x3dbl_2, self.branch3x3dbl_3)
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, 2)], dim=1)


class BlockC(nn.Module):
    """17 x 17: factorised 7x7."""

    def __init__(self, inputs: int, narrow: int) -> None:
        super().__init__()
        row, column = ((1, 7), (0, 3)), ((7, 1), (3, 0))
        self.branch1x1 = BasicConv2d(inputs, 192, 1)
        self.branch7x7_1 = BasicConv2d(inputs, narrow, 1)
        self.branch7x7_2 = _across(narrow, narrow, row)
        self.branch7x7_3 = _across(narrow, 192, column)
        self.branch7x7dbl_1 = BasicConv2d(inputs, narrow, 1)
        self.branch7x7dbl_2 = _across(narrow, narrow, column)
        self.branch7x7dbl_3 = _across(narrow, narrow, row)
        self.branch7x7dbl_4 = _across(narrow, narrow, column)
        self.branch7x7dbl_5 = _across(narrow, 192, row)
        self.branch_pool = BasicConv2d(inputs, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        double = _chain(
            x, self.branch7x7dbl_1, self.branch7x7dbl_2, self.branch7x7dbl_3, self.branch7x7dbl_4, self.branch7x7dbl_5
        )
        single = _chain(x, self.branch7x7_1, self.branch7x7_2, self.branch7x7_3)
        return torch.cat([self.branch1x1(x), single, double, self.branch_pool(_average(x))], dim=1)


class BlockD(nn.Module):
    """17 x 17 to 8 x 8."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3_1 = BasicConv2d(inputs, 192, 1)
        self.branch3x3_2 = BasicConv2d(192, 320, 3, stride=2)
        self.branch7x7x3_1 = BasicConv2d(inputs, 192, 1)
        self.branch7x7x3_2 = _across(192, 192, ((1, 7), (0, 3)))
        self.branch7x7x3_3 = _across(192, 192, ((7, 1), (3, 0)))
        self.branch7x7x3_4 = BasicConv2d(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        single = _chain(x, self.branch3x3_1, self.branch3x3_2)
        long = _chain(x, self.branch7x7x3_1, self.branch7x7x3_2, self.branch7x7x3_3, self.branch7x7x3_4)
        return torch.cat([single, long, F.max_pool2d(x, 3, 2)], dim=1)


class BlockE(nn.Module):
    """8 x 8: the 3x3 branches end in two factors side by side; the last block pools by maximum."""

    def __init__(self, inputs: int, *, maximum: bool) -> None:
        super().__init__()
        row, column = ((1, 3), (0, 1)), ((3, 1), (1, 0))
        self.maximum = maximum
        self.branch1x1 = BasicConv2d(inputs, 320, 1)
        self.branch3x3_1 = BasicConv2d(inputs, 384, 1)
        self.branch3x3_2a = _across(384, 384, row)
        self.branch3x3_2b = _across(384, 384, column)
        self.branch3x3dbl_1 = BasicConv2d(inputs, 448, 1)
        self.branch3x3dbl_2 = BasicConv2d(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = _across(384, 384, row)
        self.branch3x3dbl_3b = _across(384, 384, column)
        self.branch_pool = BasicConv2d(inputs, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch3x3_1(x)
        double = _chain(x, self.branch3x3dbl_1, self.branch3x3dbl_2)
        pooled = F.max_pool2d(x, 3, stride=1, padding=1) if self.maximum else _average(x)
        return torch.cat(
            [
                self.branch1x1(x),
                self.branch3x3_2a(single),
                self.branch3x3_2b(single),
                self.branch3x3dbl_3a(double),
                self.branch3x3dbl_3b(double),
                self.branch_pool(pooled),
            ],
            dim=1,
        )


def _across(inputs: int, outputs: int, way: Sequence[tuple[int, int]]) -> BasicConv2d:
    size, padding = way
    return BasicConv2d(inputs, outputs, size, padding=padding)


class InceptionV3(nn.Module):
    """(B, 3, 299, 299) in [-1, 1] to (B, 2048); parts bear the published names."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = BasicConv2d(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = BasicConv2d(32, 32, 3)
        self.Conv2d_2b_3x3 = BasicConv2d(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = BasicConv2d(64, 80, 1)
        self.Conv2d_4a_3x3 = BasicConv2d(80, 192, 3)
        self.Mixed_5b = BlockA(192, 32)
        self.Mixed_5c = BlockA(256, 64)
        self.Mixed_5d = BlockA(288, 64)
        self.Mixed_6a = BlockB(288)
        self.Mixed_6b = BlockC(768, 128)
        self.Mixed_6c = BlockC(768, 160)
        self.Mixed_6d = BlockC(768, 160)
        self.Mixed_6e = BlockC(768, 192)
        self.Mixed_7a = BlockD(768)
        self.Mixed_7b = BlockE(1280, maximum=False)
        self.Mixed_7c = BlockE(2048, maximum=True)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(_chain(x, self.Conv2d_1a_3x3, self.Conv2d_2a_3x3, self.Conv2d_2b_3x3), 3, 2)
        x = F.max_pool2d(_chain(x, self.Conv2d_3b_1x1, self.Conv2d_4a_3x3), 3, 2)  # (B, 192, 35, 35)
        x = _chain(x, self.Mixed_5b, self.Mixed_5c, self.Mixed_5d, self.Mixed_6a)  # (B, 768, 17, 17)
        x = _chain(x, self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e, self.Mixed_7a)  # (B, 1280, 8, 8)
        return _chain(x, self.Mixed_7b, self.Mixed_7c).mean(dim=(2, 3))
