"""Output distributions: what a network's numbers at one position mean as probabilities of the levels.

What they are: maps from (..., outputs) to logits (..., levels); the model and the samplers see logits alone.

Sources: Salimans et al. 2017 (discretised mixture of logistics), section 2.1, arXiv:1701.05517.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from quintet.core.config import STRICT, Config


class OutputConfig(Config, ABC):
    """An output distribution; it has no parameters of its own, so the config is the thing itself."""

    @abstractmethod
    def outputs(self, levels: int) -> int:
        """Numbers per position that the network must give."""

    @abstractmethod
    def logits(self, raw: Tensor, levels: int) -> Tensor:
        """(..., outputs) -> (..., levels), up to a constant per position."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Categorical(OutputConfig):
    """One free logit a level.

    Attributes:
        cap: logits are squashed to (-cap, cap) by cap * tanh(logit / cap), so that no probability becomes zero; None
            leaves them as they are, which of hundreds of levels saves a tenth of a training step.
    """

    kind = "categorical"
    cap: float | None = Field(default=30.0, gt=0)

    def outputs(self, levels: int) -> int:
        return levels

    def logits(self, raw: Tensor, levels: int) -> Tensor:
        return raw if self.cap is None else self.cap * torch.tanh(raw / self.cap)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LogisticMixture(OutputConfig):
    """A mixture of logistics over [-1, 1] cut into cells, the outermost of which reach to infinity.

    Attributes:
        components: of the mixture.
        floor: the least log scale, in units of the cell's width.
    """

    kind = "logistic-mixture"
    components: int = Field(default=5, ge=1)
    floor: float = -3.0

    def outputs(self, levels: int) -> int:
        return 3 * self.components

    def logits(self, raw: Tensor, levels: int) -> Tensor:
        weight, mean, scale = raw.unflatten(-1, (3, self.components)).unbind(-2)  # (..., M)
        spread = torch.linspace(-1, 1, self.components, dtype=raw.dtype, device=raw.device)  # where the means start
        # The edges between cells, in units of a cell from the middle level.
        edges = torch.arange(levels - 1, dtype=raw.dtype, device=raw.device) - (levels - 2) / 2
        log_scale = self.floor + F.softplus(scale + torch.log(raw.new_tensor(levels / 4.0)) - self.floor)
        z = (edges - (mean + spread)[..., None] * (levels / 2)) * (-log_scale).exp()[..., None]  # (..., M, levels - 1)
        # log P(cell) from log-sigmoids: log(s(b) - s(a)) = log s(b) + log s(-a) + log(1 - exp(a - b))
        low, high = z[..., :-1], z[..., 1:]
        middle = F.logsigmoid(high) + F.logsigmoid(-low) + torch.log(-torch.expm1(low - high))
        cells = torch.cat([F.logsigmoid(z[..., :1]), middle, F.logsigmoid(-z[..., -1:])], -1)  # (..., M, levels)
        return torch.logsumexp(weight.log_softmax(-1)[..., None] + cells, -2)
