"""Codec: raw data <-> what a model sees. Metrics see only raw data; likelihoods are converted through the codec."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from quintet.core.rng import Rng
from quintet.core.spec import DataSpec


class Codec(nn.Module, ABC):
    """An invertible reading of raw data, fitted on the training split; what it learned lives in buffers.

    Raw images are (B, C, H, W) integers 0..levels-1 in any integer or float dtype, raw vectors (B, D) float.

    Attributes:
        raw: the raw data's spec.
        spec: the spec of what `encode` returns.
        dequantises: whether `encode` spreads levels over their cells, so that an exact density of x is a bound of the
            levels' probability.
    """

    raw: DataSpec
    spec: DataSpec
    dequantises: ClassVar[bool] = False

    def __init__(self, raw: DataSpec, spec: DataSpec) -> None:
        super().__init__()
        self.raw, self.spec = raw, spec

    @abstractmethod
    def encode(self, raw: Tensor, rng: Rng | None = None) -> Tensor:
        """Raw (B, *R) to model (B, *E).

        Args:
            raw: raw examples.
            rng: draws dequantisation noise where the codec has any; None takes the centre of each cell.
        """

    @abstractmethod
    def decode(self, x: Tensor, rng: Rng | None = None) -> Tensor:
        """Model (B, *E) to raw (B, *R); integers are the nearest level, the edge level for values outside.

        Args:
            x: encoded examples.
            rng: draws the value within its cell where the codec merged values into cells; None takes the centre.
        """

    @abstractmethod
    def log_det(self, x: Tensor) -> Tensor:
        """(B,) nats to add: log p(raw) = log p(x) + log_det(x).

        For a dequantising codec the sum is a lower bound of log P(raw) in expectation over the noise;
        for tokens of a continuous value it is the log density of the uniform cell.
        """

    @property
    @abstractmethod
    def protocol(self) -> str:
        """How a likelihood passes through, in a few words for the report: "17 levels, uniform dequantisation"."""
