"""Number formats: which parts of a computation may run in half precision and which may not.

Master weights, gradients, optimiser state and averages are float32. With bfloat16 the large products (linear layers,
convolutions, attention) inside networks run in bfloat16 under torch's autocast while a loss is computed. What loses its
sense there (penalties, log-determinants, likelihoods) runs inside `full_precision()`, on inputs made float32 by `full`.

Source: Micikevicius et al. 2018, arXiv:1710.03740; Kalamkar et al. 2019 (bfloat16 needs no loss scaling),
arXiv:1905.12322.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

Precision = Literal["float32", "bfloat16"]


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
    return torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=False)


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


@contextmanager
def higher_order() -> Iterator[None]:
    """For losses that differentiate twice or use forward mode, which flash attention and compiled networks have not.

    Attention runs by its elementary operations, compiled networks run uncompiled.
    """
    with sdpa_kernel(SDPBackend.MATH), eager():
        yield


def eager() -> AbstractContextManager[object]:
    """Compiled networks run uncompiled inside the block."""
    if "torch._dynamo" not in sys.modules:  # nothing was compiled, and the import takes seconds
        return nullcontext()
    stance: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return stance
