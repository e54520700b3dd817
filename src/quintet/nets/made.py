"""A masked perceptron whose outputs at i depend on inputs before i (MADE), with a cached form for sampling.

Every hidden unit has a degree m and sees the inputs before m; units are sorted by degree, the same for every layer, so
that the masks are staircases. The cached form computes, for each new input, only the units that just became known and
one row of outputs: D steps cost together what one evaluation costs, not D of them.

Sources: Germain et al. 2015, arXiv:1502.03509; Papamakarios et al. 2017 (in a flow), arXiv:1705.07057. Departure:
degrees begin at 0 (units that see the label alone), so that the first output depends on the label too.

Shapes: B examples, T inputs in groups of P values, H hidden units.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass as plain_dataclass
from typing import cast

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from quintet.core.config import STRICT
from quintet.core.recipe import CausalNetworkConfig
from quintet.core.spec import Cond
from quintet.nets.layers import ConditionEmbedding, edge, zero


class MaskedLinear(nn.Linear):
    """A linear layer whose weights outside the mask are zero."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__(mask.shape[1], mask.shape[0])
        self.register_buffer("mask", mask.to(torch.get_default_dtype()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.mask, self.bias)


@plain_dataclass
class MadeCache:
    """What sampling keeps between inputs.

    Attributes:
        x: (n, T P), known inputs, zeros elsewhere.
        hidden: each layer's activations, (n, H), filled up to the units of degree `at`.
        context: (n, H), the condition's part of the first layer.
        weights: masked weights of all layers.
        at: inputs done.
    """

    x: Tensor
    hidden: list[Tensor]
    context: Tensor
    weights: list[Tensor]
    at: int = 0


class MADE(nn.Module):
    """See the module's docstring. With fewer units than inputs, some inputs are seen together by the next unit."""

    def __init__(
        self,
        length: int,
        size: int,
        outputs: int,
        conditions: Mapping[str, int],
        *,
        width: int,
        depth: int,
        zero_output: bool,
    ) -> None:
        super().__init__()
        self.length, self.size, self.width, self.outputs = length, size, width, outputs
        degree = torch.arange(width) * length // width  # 0..length - 1, sorted
        place = torch.arange(length).repeat_interleave(size)
        self.known = [int((degree <= i).sum()) for i in range(length)]  # units that see nothing from input i on
        self.enter = edge(MaskedLinear(degree[:, None] > place))
        self.hidden = nn.ModuleList(MaskedLinear(degree[:, None] >= degree) for _ in range(depth - 1))
        rows = torch.arange(length).repeat(outputs)  # one output of all inputs side by side: splines read them so
        leave = edge(MaskedLinear(rows[:, None] >= degree))
        self.leave = cast(MaskedLinear, zero(leave)) if zero_output else leave
        self.embed = ConditionEmbedding(conditions, width)

    def forward(self, x: Tensor, cond: Cond) -> Tensor:
        """(B, T, P) -> (B, T, outputs), where outputs at i depend on inputs before i and the condition alone."""
        h = self.enter(x.flatten(1))
        c = self.embed(cond, x)
        if c is not None:
            h = h + c
        for layer in self.hidden:
            h = layer(h.relu_())
        out: Tensor = self.leave(h.relu_())
        return out.view(len(x), self.outputs, self.length).mT

    def start(self, n: int, cond: Cond) -> MadeCache:
        """An empty cache for n examples."""
        weight = self.enter.weight
        x = weight.new_zeros(n, self.length * self.size)
        context = self.embed(cond, x)
        if context is None:
            context = weight.new_zeros(1, self.width)
        layers = [cast(MaskedLinear, layer) for layer in (self.enter, *self.hidden, self.leave)]
        hidden = [weight.new_zeros(n, self.width) for _ in layers[1:]]
        return MadeCache(x, hidden, context, [layer.weight * layer.mask for layer in layers])

    def next(self, cache: MadeCache, token: Tensor | None) -> Tensor:
        """Outputs at the next input, what `forward` gives there.

        Args:
            cache: from `start`; moved on by one input.
            token: (n, P), the input before; None at the first.
        Returns: (n, outputs).
        """
        i = cache.at
        seen = i * self.size
        if token is not None:
            cache.x[:, seen - self.size : seen] = token
        first, last = (self.known[i - 1] if i else 0), self.known[i]
        if last > first:
            new = slice(first, last)
            for k, h in enumerate(cache.hidden):
                layer = self.enter if k == 0 else self.hidden[k - 1]
                given = cache.x[:, :seen] if k == 0 else cache.hidden[k - 1][:, :last]
                weight = cache.weights[k][new, : given.shape[1]]
                u = F.linear(given, weight, layer.bias[new])  # type: ignore[index]
                h[:, new] = F.relu(u + cache.context[:, new] if k == 0 else u)
        row = slice(i, None, self.length)
        cache.at += 1
        return F.linear(cache.hidden[-1][:, :last], cache.weights[-1][row, :last], self.leave.bias[row])


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MADEConfig(CausalNetworkConfig):
    """See MADE.

    Attributes:
        width: units of a hidden layer.
        depth: number of hidden layers.
        zero_output: begin with an output of zero, whatever the input.
    """

    kind = "made"
    width: int = Field(default=128, ge=1)
    depth: int = Field(default=2, ge=1)
    zero_output: bool = True

    def build(
        self, length: int, size: int, conditions: Mapping[str, int], *, grid: tuple[int, int], outputs: int
    ) -> nn.Module:
        return MADE(length, size, outputs, conditions, width=self.width, depth=self.depth, zero_output=self.zero_output)
