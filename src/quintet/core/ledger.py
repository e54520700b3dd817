"""Ledger: what a model cost: seconds, FLOPs, examples, memory, energy.

FLOPs are counted by our own dispatch mode on real training steps, so that double backward and forward-mode derivatives
are counted as they happen. Formulas come from torch's registry, with ours for what it lacks: attention on a CPU and
recurrent layers. One multiply-add is two FLOPs; causal attention counts as full; element-wise operators count nothing.
An operator with attention, rnn or conv in its name and no formula is an error, never a silent zero.
"""

from __future__ import annotations

import re
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from pydantic import ConfigDict
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from quintet.core.meters import Meters
from quintet.core.results import LedgerEntry

_MUST_HAVE_FORMULA = re.compile(r"attention|rnn|lstm_layer|gru_layer|conv(?!ert)")
_FREE = frozenset({"_thnn_fused_lstm_cell", "_thnn_fused_gru_cell"})  # element-wise; their matrices are separate


def _attention(q: Any, k: Any, v: Any) -> int:
    batch, heads, t, d = q.shape
    s, dv = k.shape[-2], v.shape[-1]
    return int(2 * batch * heads * t * s * (d + dv))


def _attention_cpu(q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> int:
    return _attention(q, k, v)


def _attention_cpu_backward(grad: Any, q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> int:
    # scores again, then the gradients of v, of the scores, of q and of k: five products against the forward's two
    batch, heads, t, d = q.shape
    s, dv = k.shape[-2], v.shape[-1]
    return int(2 * batch * heads * t * s * (3 * d + 2 * dv))


def _rnn_layer(x: Any, w_input: Any, w_hidden: Any, *args: Any, **kwargs: Any) -> int:
    return int(2 * x.shape[0] * x.shape[1] * (w_input.numel() + w_hidden.numel()))


def _rnn_layer_backward(x: Any, w_input: Any, w_hidden: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * _rnn_layer(x, w_input, w_hidden)


def _cudnn_rnn(x: Any, weights: Any, *args: Any, **kwargs: Any) -> int:
    return int(2 * x.shape[0] * x.shape[1] * sum(w.numel() for w in weights if w.ndim == 2))


def _cudnn_rnn_backward(x: Any, weights: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * _cudnn_rnn(x, weights)


def _matrix_vector(matrix: Any, vector: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * int(matrix.numel())


def _add_matrix_vector(bias: Any, matrix: Any, vector: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * int(matrix.numel())


_OURS: dict[str, Callable[..., int]] = {
    "_scaled_dot_product_flash_attention_for_cpu": _attention_cpu,
    "_scaled_dot_product_flash_attention_for_cpu_backward": _attention_cpu_backward,
    "mkldnn_rnn_layer": _rnn_layer,
    "mkldnn_rnn_layer_backward": _rnn_layer_backward,
    "_cudnn_rnn": _cudnn_rnn,
    "_cudnn_rnn_backward": _cudnn_rnn_backward,
    "mv": _matrix_vector,
    "addmv": _add_matrix_vector,
}


class FlopCounter(TorchDispatchMode):
    """Counts the FLOPs of everything that runs inside `with FlopCounter() as counter`.

    Attributes:
        by_operator: operator name -> FLOPs.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.by_operator: Counter[str] = Counter()

    @property
    def total(self) -> int:
        return sum(self.by_operator.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        packet = func._overloadpacket
        name = packet.__name__
        if name in _OURS:
            self.by_operator[name] += _OURS[name](*args, **kwargs)
        elif packet in flop_registry:
            self.by_operator[name] += int(flop_registry[packet](*args, **kwargs, out_val=out))
        elif name not in _FREE and _MUST_HAVE_FORMULA.search(name):
            raise NotImplementedError(f"no FLOP formula for operator {packet}; add it to core/ledger.py")
        return out


class Ledger(LedgerEntry):
    """Running totals of one model's training: an entry that is still being written."""

    model_config = ConfigDict(frozen=False)

    def meter(self, meters: Meters) -> None:
        """Add what meters rose by."""
        for name, rise in meters.totals.items():
            setattr(self, name, (getattr(self, name) or 0.0) + rise)
        self.cores = meters.cores
        self.energy = meters.missing.get("energy_j") or meters.energy


class Stopwatch:
    """Wall and CPU seconds of a block: `with Stopwatch() as watch: ...; watch.wall`. Waits for a GPU.

    Args:
        meters: run during the block too.
    """

    wall = cpu = 0.0

    def __init__(self, meters: Meters | None = None) -> None:
        self.meters = meters or Meters()

    def __enter__(self) -> Stopwatch:
        synchronize()
        self.meters.start()
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *exc: object) -> None:
        synchronize()
        self.wall = time.perf_counter() - self._wall
        self.cpu = time.process_time() - self._cpu
        self.meters.stop()


def peak_memory() -> int:
    """Most bytes this process ever held resident, or the GPU's peak where one is in use."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def synchronize() -> None:
    """Wait for a GPU to finish what it was given."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
