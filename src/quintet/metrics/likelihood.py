"""Bits per dimension from nats per example.

bits/dim = -(log p(x) + log_det) / (D ln 2), D the number of values of a raw example. Exact values, bounds and estimates
are different quantities; the kind opens every protocol, with the levels and the dequantisation that the codec names.

Source: Theis et al. 2016, arXiv:1511.01844 (uniform dequantisation bounds the discrete likelihood).
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from quintet.core.results import Estimate
from quintet.metrics.sizes import normal, too_few, unavailable

Kind = Literal["exact", "bound", "estimate"]


def bits_per_dim(nats: NDArray[np.generic], dims: int, *, kind: Kind, protocol: str = "") -> Estimate:
    """Mean bits per dimension over examples, with a normal 95 % interval over them.

    Args:
        nats: (N,) log probability of each raw example (through the codec).
        dims: values in a raw example.
        kind: what `nats` are; for "bound" the true bits/dim is at most the value.
        protocol: levels, dequantisation, samples.
    """
    missing = too_few("bits_per_dim", len(nats))
    if missing:
        return missing
    bits = -np.asarray(nats, np.float64) / (dims * math.log(2))
    sign = {"exact": "exact", "bound": "bound: at most", "estimate": "estimate"}[kind]
    if not np.isfinite(bits).all():
        lost = int((~np.isfinite(bits)).sum())
        return unavailable(f"{sign}; not finite for {lost} of {len(bits)} examples; {protocol}", len(bits))
    text = f"{sign}; {dims} dimensions, {len(bits)} examples" + (f"; {protocol}" if protocol else "")
    return normal(float(bits.mean()), float(bits.std(ddof=1)) / math.sqrt(len(bits)), len(bits), text)


def undefined(why: str = "the model has no likelihood") -> Estimate:
    """The null result of a family without a likelihood (a GAN)."""
    return unavailable(f"undefined: {why}")
