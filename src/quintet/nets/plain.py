"""A plain convolutional network from image to image of one size: 3x3, 1x1, 3x3, as in Glow's couplings.

What it is not: a network that sees far (see unet); a flow's many couplings see far together.

Source: Kingma & Dhariwal 2018, section 4 and appendix B, arXiv:1807.03039; Salimans & Kingma 2016 (weights as a length
and a direction), arXiv:1602.07868, as in Dinh et al. 2017: no weight can then grow into a map that float32 does not
invert. Departure: the label's embedding is added after the first convolution.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from quintet.core.config import STRICT
from quintet.core.recipe import NetworkConfig
from quintet.core.spec import Cond
from quintet.nets.layers import ConditionEmbedding, edge


class DirectedConv(nn.Conv2d):
    """A convolution whose filters have a learned length of their own; `length` is that at the start."""

    def __init__(self, inputs: int, outputs: int, size: int, length: float) -> None:
        super().__init__(inputs, outputs, size, padding=size // 2)
        self.length = nn.Parameter(torch.full((outputs, 1, 1, 1), length))
        assert self.bias is not None
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        norm = self.weight.square().sum((1, 2, 3), keepdim=True).sqrt()
        out: Tensor = self._conv_forward(x, self.weight * (self.length / norm), self.bias)
        return out


class PlainConv(nn.Module):
    """Convolutions 3x3, 1x1 and 3x3, the last zero at the start, channels-last."""

    def __init__(
        self, inputs: tuple[int, ...], outputs: tuple[int, ...], conditions: Mapping[str, int], *, width: int
    ) -> None:
        super().__init__()
        if len(inputs) != 3 or inputs[1:] != outputs[1:]:
            raise ValueError(f"a plain convolution maps images to images of one size, got {inputs} to {outputs}")
        self.enter = edge(DirectedConv(inputs[0], width, 3, 1.0))
        self.middle = DirectedConv(width, width, 1, 1.0)
        self.leave = edge(DirectedConv(width, outputs[0], 3, 0.0))
        self.embed = ConditionEmbedding(conditions, width)

    def forward(self, x: Tensor, cond: Cond) -> Tensor:
        """x (B, *inputs) -> (B, *outputs)."""
        h = self.enter(x.contiguous(memory_format=torch.channels_last))
        c = self.embed(cond, x)
        if c is not None:
            h = h + c[:, :, None, None]
        out: Tensor = self.leave(F.relu(self.middle(F.relu(h))))
        return out


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PlainConvConfig(NetworkConfig):
    """See PlainConv.

    Attributes:
        width: channels of the hidden layers.
    """

    kind = "plain-conv"
    width: int = Field(default=128, ge=1)

    def build(
        self,
        inputs: tuple[int, ...],
        outputs: tuple[int, ...],
        conditions: Mapping[str, int],
        *,
        time: bool = False,
    ) -> nn.Module:
        """Raises: ValueError if the sizes differ or a time is asked for."""
        if time:
            raise ValueError("a plain convolution takes no time")
        network = PlainConv(inputs, outputs, conditions, width=self.width)
        return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
