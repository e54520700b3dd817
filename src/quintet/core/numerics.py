"""Number formats: which parts of a computation may run in half precision and which may not.

Master weights, gradients, optimiser state and averages are float32. With bfloat16 the large products (linear layers,
convolutions, attention) inside networks run in bfloat16 under torch's autocast while a loss is computed. What loses its
sense there (penalties, log-determinants, likelihoods) runs inside `full_precision()`, on inputs made float32 by `full`.

Source: Micikevicius et al. 2018, arXiv:1710.03740; Kalamkar et al. 2019 (bfloat16 needs no loss scaling),
arXiv:1905.12322.
"""

from __future__ import annotations

import math
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

Precision = Literal["float32", "bfloat16"]

SHORT = 256
"""Up to this length attention's elementary operations are faster in bfloat16 on a CPU: the flash kernel's backward pass
takes 6 times as long at 49 positions (128 examples, 4 heads of 32), 1.6 times at 256, as long at 512."""


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices itself."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Networks run in `precision` inside the block.

    Casts of weights are not cached: a cast made without gradient would be taken up by a later call with gradient.
    """
    if precision == "float32":
        return nullcontext()
    if device.type == "cpu":
        _short_attention()
    return torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=False)


@cache
def _short_attention() -> torch.library.Library:
    """From now on attention under autocast on a CPU is computed by `_attention`, in anybody's network.

    It takes the place of torch's own rule for this operator, which casts and leaves the rest to the flash kernel. A
    third of a small U-Net's step goes away.
    """
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():  # that a rule is replaced is what we want
        warnings.simplefilter("ignore")
        library.impl("scaled_dot_product_attention", _attention, "AutocastCPU", allow_override=True)
    return library


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """torch's scaled_dot_product_attention in autocast's precision, whose backward pass is fast for short sequences."""
    dtype = torch.get_autocast_dtype("cpu")
    with torch.autocast("cpu", enabled=False):
        if q.is_floating_point() and q.dtype != torch.float64:
            q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
        plain = attn_mask is None and not dropout_p and scale is None and not enable_gqa and q.ndim == v.ndim == 4
        if plain and v.requires_grad and q.shape[2] * k.shape[2] <= SHORT**2:
            return _elementary(q, k, v, is_causal)
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )


def _elementary(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """softmax(q k^T / sqrt(D)) v, with all as (B, H, T or S, D)."""
    heads = q.shape[:2]
    q, k, v = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
    if causal:
        mask = torch.full((q.shape[1], k.shape[1]), -math.inf, dtype=q.dtype, device=q.device).triu(1)
        scores = torch.baddbmm(mask, q, k.mT, alpha=q.shape[-1] ** -0.5)
    else:
        scores = torch.baddbmm(q.new_zeros(()), q, k.mT, beta=0, alpha=q.shape[-1] ** -0.5)
    mixed: Tensor = torch.bmm(scores.softmax(-1), v)
    return mixed.reshape(*heads, *mixed.shape[1:])


@contextmanager
def full_precision() -> Iterator[None]:
    """Inside the block nothing is cast to half precision; inputs that came in half precision stay so, see `full`."""
    with ExitStack() as stack:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


def full(x: Tensor) -> Tensor:
    """x itself, or as float32 where it is in half precision."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class _Switch:
    """A choice that torch keeps for a whole process: the first thread to enter makes it, the last to leave ends it."""

    def __init__(self) -> None:
        self._lock, self._inside, self._choice = threading.Lock(), 0, ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._choice.enter_context(sdpa_kernel(SDPBackend.MATH))
                self._choice.enter_context(eager())
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._choice.close()


_elementary_and_eager = _Switch()


def higher_order() -> AbstractContextManager[None]:
    """For losses that differentiate twice or use forward mode, which flash attention and compiled networks have not.

    Attention runs by its elementary operations, compiled networks run uncompiled.
    """
    return _elementary_and_eager


def eager() -> AbstractContextManager[object]:
    """Compiled networks run uncompiled inside the block."""
    if "torch._dynamo" not in sys.modules:  # nothing was compiled, and the import takes seconds
        return nullcontext()
    stance: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return stance
