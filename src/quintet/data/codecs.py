"""Codecs: the ways from raw data to what a model sees, and what each does to a likelihood.

Levels of discrete data (pixels) become centred floats, floats spread over each level's cell, or tokens; continuous
columns become standardised columns, or tokens of bins. What a codec learned from the training split is in buffers.

Sources: uniform dequantisation: Uria et al. 2013, arXiv:1306.0186; Theis et al. 2016, arXiv:1511.01844, section 3.1.
Logit: Dinh et al. 2017, "Real NVP", arXiv:1605.08803, section 4.1, in the symmetric form of its published code.
"""

from __future__ import annotations

from math import log
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from quintet.core.codec import Codec
from quintet.core.config import STRICT
from quintet.core.errors import DataError
from quintet.core.recipe import CodecConfig
from quintet.core.rng import Rng
from quintet.core.spec import DataSpec
from quintet.data.arrays import near_offset

ALPHA = 0.05
"""Share of the unit interval kept free at both ends before the logit."""


def _levels(raw: DataSpec) -> int:
    if raw.levels is None:
        raise ValueError(f"this codec reads discrete data, got a continuous {raw.kind} of shape {raw.shape}")
    return raw.levels


def _floats(raw: Tensor) -> Tensor:
    return raw if raw.is_floating_point() else raw.to(torch.float32)


def _integers(levels: Tensor, count: int) -> Tensor:
    """Nearest level in the smallest integer type; NaN becomes level 0, so look for it before decoding."""
    whole = levels.nan_to_num(nan=0.0).clamp(0, count - 1)
    return whole.to(torch.uint8 if count <= 256 else torch.int32)


class PixelCodec(Codec):
    """Levels 0..L-1 to equally spaced floats in [-1, 1], without noise.

    A density over x is no mass: `log_det` gives the mass of a level's cell where the density is flat over it,
    log P(raw) ~= log p(x) + D log(2 / (L - 1)). It is an approximation, named so in `protocol`.
    """

    def __init__(self, raw: DataSpec) -> None:
        super().__init__(raw, DataSpec(raw.kind, raw.shape, conditions=raw.conditions))
        self.levels = _levels(raw)

    def encode(self, raw: Tensor, rng: Rng | None = None) -> Tensor:
        """Raw (B, *R) levels -> (B, *R); `rng` is not used."""
        return _floats(raw) * (2 / (self.levels - 1)) - 1

    def decode(self, x: Tensor, rng: Rng | None = None) -> Tensor:
        """(B, *R) -> the nearest levels."""
        return _integers(((x + 1) * ((self.levels - 1) / 2)).round(), self.levels)

    def log_det(self, x: Tensor) -> Tensor:
        """(B,) logarithm of a cell's volume."""
        return x.new_full((len(x),), self.raw.dims * log(2 / (self.levels - 1)))

    @property
    def protocol(self) -> str:
        return f"{self.levels} levels, density at the level times the cell's width (approximation)"


class DequantizedPixelCodec(Codec):
    """Levels k to (k + u) / L with u uniform in [0, 1), then scaled to [-1, 1] or through a logit.

    log p(x) + log_det(x) is the log density of k + u on cells of width 1. Its mean over u is a lower bound of
    log P(k), tight where the density is flat over the cell. No pixel is dropped: one that is always 0 costs nothing at
    best, as its cell then holds all the mass, and counts in bits per dimension like every other.

    u keeps a distance of 2^-14 (more above 256 levels) from the ends, so that float32 never rounds into the next cell.
    """

    dequantises = True

    def __init__(self, raw: DataSpec, logit: bool) -> None:
        super().__init__(raw, DataSpec(raw.kind, raw.shape, conditions=raw.conditions))
        self.levels, self.logit = _levels(raw), logit

    def encode(self, raw: Tensor, rng: Rng | None = None) -> Tensor:
        """Raw (B, *R) levels -> (B, *R)."""
        k = _floats(raw)
        if rng is None:
            y = (k + 0.5) / self.levels
        else:
            margin = max(2**-14, self.levels * 2**-22)
            y = (k + rng.uniform(k.shape, k.dtype).to(k.device).clamp(margin, 1 - margin)) / self.levels
        return torch.logit(ALPHA + (1 - 2 * ALPHA) * y) if self.logit else 2 * y - 1

    def decode(self, x: Tensor, rng: Rng | None = None) -> Tensor:
        """(B, *R) -> the level whose cell x lies in."""
        y = (torch.sigmoid(x) - ALPHA) / (1 - 2 * ALPHA) if self.logit else (x + 1) / 2
        return _integers((y * self.levels).floor(), self.levels)

    def log_det(self, x: Tensor) -> Tensor:
        """(B,) log |dx / d(k + u)|."""
        if not self.logit:
            return x.new_full((len(x),), self.raw.dims * log(2 / self.levels))
        # x = logit(s), s = alpha + (1 - 2 alpha) (k + u) / L; dx/ds = 1 / (s (1 - s)) and -log s = softplus(-x)
        inverse = (F.softplus(x) + F.softplus(-x)).flatten(1).sum(1)
        return inverse + self.raw.dims * log((1 - 2 * ALPHA) / self.levels)

    @property
    def protocol(self) -> str:
        return f"{self.levels} levels, uniform dequantisation" + (f", logit (alpha {ALPHA})" if self.logit else "")


class LevelCodec(Codec):
    """Levels as int64, exact both ways.

    Args:
        raw: the raw spec.
        flat: tokens in document order (images: channel, row, column), or the raw shape kept, for networks over images.
    """

    def __init__(self, raw: DataSpec, flat: bool = True) -> None:
        kind, shape = ("tokens", (raw.dims,)) if flat else (raw.kind, raw.shape)
        super().__init__(raw, DataSpec(kind, shape, levels=_levels(raw), conditions=raw.conditions))
        self.levels = _levels(raw)

    def encode(self, raw: Tensor, rng: Rng | None = None) -> Tensor:
        """Raw (B, *R) levels -> (B, *spec.shape) int64; `rng` is not used."""
        return raw.to(torch.int64).reshape(-1, *self.spec.shape)

    def decode(self, x: Tensor, rng: Rng | None = None) -> Tensor:
        """(B, *spec.shape) -> raw (B, *R)."""
        return _integers(x, self.levels).reshape(-1, *self.raw.shape)

    def log_det(self, x: Tensor) -> Tensor:
        """(B,) zeros: a token's probability is the level's."""
        return torch.zeros(len(x), device=x.device)

    @property
    def protocol(self) -> str:
        return f"{self.levels} levels, exact"


class StandardizeCodec(Codec):
    """Columns to mean 0 and standard deviation 1 over the training split.

    Buffers: mean, std, each (D,) float32.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, raw: DataSpec) -> None:
        super().__init__(raw, DataSpec(raw.kind, raw.shape, conditions=raw.conditions))
        self.register_buffer("mean", torch.zeros(raw.shape))
        self.register_buffer("std", torch.ones(raw.shape))

    def encode(self, raw: Tensor, rng: Rng | None = None) -> Tensor:
        """Raw (B, D) -> (B, D); `rng` is not used."""
        x = _floats(raw)
        return (x - self.mean.to(x.dtype)) / self.std.to(x.dtype)

    def decode(self, x: Tensor, rng: Rng | None = None) -> Tensor:
        """(B, D) -> raw (B, D), the nearest levels where the raw data have levels."""
        raw = x * self.std.to(x.dtype) + self.mean.to(x.dtype)
        return raw if self.raw.levels is None else _integers(raw.round(), self.raw.levels)

    def log_det(self, x: Tensor) -> Tensor:
        """(B,) minus the sum of log standard deviations."""
        return -self.std.to(x.dtype).log().sum().expand(len(x))

    @property
    def protocol(self) -> str:
        if self.raw.levels is not None:
            return f"{self.raw.levels} levels read as continuous, columns standardised (density, no mass)"
        return "continuous, columns standardised"


class BinsCodec(Codec):
    """Columns to tokens, one a column: the number of the bin the value lies in.

    The model's density is uniform within each bin. Bins are open at both ends for `encode`: a value below the first
    edge or above the last takes the edge bin and is credited with that bin's density, though the density there is 0.
    The outermost edges lie half a mean bin width beyond the training data to make this rare.

    Buffers: edges (D, bins + 1) float32, strictly increasing.
    """

    edges: Tensor

    def __init__(self, raw: DataSpec, bins: int, spacing: str) -> None:
        if raw.kind != "vector":
            raise ValueError(f"bins are for vectors, got a {raw.kind} of shape {raw.shape}")
        super().__init__(raw, DataSpec("tokens", raw.shape, levels=bins, conditions=raw.conditions))
        self.bins, self.spacing = bins, spacing
        self.register_buffer("edges", torch.zeros(raw.dims, bins + 1))

    def encode(self, raw: Tensor, rng: Rng | None = None) -> Tensor:
        """Raw (B, D) -> (B, D) int64; a value on an edge belongs to the bin above; `rng` is not used."""
        columns = _floats(raw).to(self.edges.dtype).T.contiguous()  # (D, B)
        return torch.searchsorted(self.edges[:, 1:-1].contiguous(), columns, right=True).T.contiguous()

    def decode(self, x: Tensor, rng: Rng | None = None) -> Tensor:
        """(B, D) -> the bins' centres, or a uniform draw within each bin with `rng`."""
        low, high = self._bounds(x)
        share = 0.5 if rng is None else rng.uniform(x.shape).to(x.device)
        value = torch.minimum(low + share * (high - low), torch.nextafter(high, low))
        return value if self.raw.levels is None else _integers(value.round(), self.raw.levels)

    def log_det(self, x: Tensor) -> Tensor:
        """(B,) minus the sum of the logarithms of the bins' widths; values outside count as inside the edge bin."""
        low, high = self._bounds(x)
        return -(high - low).log().sum(1)

    @property
    def protocol(self) -> str:
        return f"{self.bins} {self.spacing} bins a column, uniform within a bin"

    def _bounds(self, x: Tensor) -> tuple[Tensor, Tensor]:
        tokens = x.clamp(0, self.bins - 1).T.contiguous()  # (D, B)
        return self.edges.gather(1, tokens).T, self.edges.gather(1, tokens + 1).T


def _columns(x: Tensor) -> Tensor:
    """(N, D) float64, no column constant; of a column's values only those that float32 keeps apart count."""
    columns = _floats(x).to(torch.float64)
    low, high = columns.amin(0), columns.amax(0)
    coarse = (high - low) <= 1e-6 * torch.maximum(low.abs(), high.abs())
    constant = high == low
    if constant.any():
        numbers = constant.nonzero().flatten().tolist()
        named = ", ".join(map(str, numbers[:10])) + (", ..." if len(numbers) > 10 else "")
        raise DataError("data.constant_columns", columns=named, count=len(numbers))
    if coarse.any():
        d = int(coarse.nonzero()[0])
        ends = float(low[d]), float(high[d])
        fields = dict(zip(("low", "high", "offset"), (f"{v:.15g}" for v in (*ends, near_offset(*ends))), strict=True))
        raise DataError("data.coarse_column", where="x", column=d, **fields)
    return columns


def _quantile_edges(column: Tensor, bins: int, low: float, high: float) -> Tensor:
    """`bins` + 1 edges; where repeated values make quantiles coincide, the widest bins are halved instead."""
    inner = np.quantile(column.numpy(force=True), np.linspace(0, 1, bins + 1)[1:-1])
    least = (high - low) * 1e-6
    edges = [low]
    for edge in inner.tolist():
        if edge - edges[-1] > least and high - edge > least:
            edges.append(edge)
    edges.append(high)
    while len(edges) < bins + 1:
        widest = max(range(len(edges) - 1), key=lambda i: edges[i + 1] - edges[i])
        edges.insert(widest + 1, (edges[widest] + edges[widest + 1]) / 2)
    return torch.tensor(edges, dtype=column.dtype)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PixelCodecConfig(CodecConfig):
    """See PixelCodec."""

    kind = "pixels"

    def fit(self, raw: DataSpec, x: Tensor) -> Codec:
        return PixelCodec(raw)

    def empty(self, raw: DataSpec) -> Codec:
        return PixelCodec(raw)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DequantizedPixelCodecConfig(CodecConfig):
    """See DequantizedPixelCodec.

    Attributes:
        logit: map the unit interval to the whole line.
    """

    kind = "dequantized-pixels"
    logit: bool = False

    def fit(self, raw: DataSpec, x: Tensor) -> Codec:
        return DequantizedPixelCodec(raw, self.logit)

    def empty(self, raw: DataSpec) -> Codec:
        return DequantizedPixelCodec(raw, self.logit)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LevelCodecConfig(CodecConfig):
    """See LevelCodec.

    Attributes:
        flat: tokens in document order (images: channel, row, column), else the raw shape, for networks over images.
    """

    kind = "levels"
    flat: bool = True

    def fit(self, raw: DataSpec, x: Tensor) -> Codec:
        return LevelCodec(raw, self.flat)

    def empty(self, raw: DataSpec) -> Codec:
        return LevelCodec(raw, self.flat)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class StandardizeCodecConfig(CodecConfig):
    """See StandardizeCodec."""

    kind = "standardize"

    def fit(self, raw: DataSpec, x: Tensor) -> Codec:
        """Raises: DataError naming constant columns."""
        columns = _columns(x)
        codec = StandardizeCodec(raw)
        codec.mean.copy_(columns.mean(0))
        codec.std.copy_(columns.std(0, correction=0))
        return codec

    def empty(self, raw: DataSpec) -> Codec:
        return StandardizeCodec(raw)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BinsCodecConfig(CodecConfig):
    """See BinsCodec.

    Attributes:
        bins: of each column.
        spacing: "quantile" puts equally many training values into each bin, "uniform" makes bins equally wide.
    """

    kind = "bins"
    bins: int = Field(default=64, ge=2, le=65_536)
    spacing: Literal["quantile", "uniform"] = "quantile"

    def fit(self, raw: DataSpec, x: Tensor) -> Codec:
        """Raises: DataError naming constant columns, or one whose bins float32 cannot tell apart."""
        columns = _columns(x)
        codec = BinsCodec(raw, self.bins, self.spacing)
        for d, column in enumerate(columns.T):
            low, high = float(column.min()), float(column.max())
            margin = (high - low) / (2 * self.bins)
            if self.spacing == "uniform":
                edges = torch.linspace(low - margin, high + margin, self.bins + 1, dtype=column.dtype)
            else:
                edges = _quantile_edges(column, self.bins, low - margin, high + margin)
            codec.edges[d] = edges
            if (codec.edges[d].diff() <= 0).any():
                raise DataError("data.narrow_column", column=d, low=f"{low:g}", high=f"{high:g}", bins=self.bins)
        return codec

    def empty(self, raw: DataSpec) -> Codec:
        return BinsCodec(raw, self.bins, self.spacing)
