"""Counter-based randomness: every draw is a function of (seed, purpose, counters, row), never of what was drawn before.

What it is: a key that names a stream. `Rng(7, "train", 12)("noise").normal((256, 64))` gives the same numbers in any
process, on any day, after any resume, and row i of it does not depend on how many rows are asked for.
What it is not: a running generator. There is no state to save, so a resumed run needs only its step number.

Rows (the first axis of every draw) come in chunks of 64, each chunk from its own key. A batch that starts at row
`first` (the second process's half of a global batch, the next batch of a long sampling run) therefore draws exactly
the rows that one large batch would have drawn there.

Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3" (Philox, through numpy).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CHUNK = 64

MANY = 2**18
"""Numbers of one draw from which its chunks are shared among torch's threads, about a millisecond of work."""

_Draw = Callable[[np.random.Generator, NDArray[Any]], object]
"""Fills a block of rows from a generator, in order, so that fewer rows are the beginning of more."""


class Rng:
    """A named stream of random numbers.

    Args:
        seed: the user's seed, any int.
        purpose: what the numbers are for ("train", "sample", "init", "order").
        counters: ints or strings that complete the name (step, epoch, index, "noise").
        first: the row number of the first row drawn; see the module's docstring.
        device: where drawn tensors are put. Numbers are drawn on the CPU, so that all devices begin equal.
    """

    __slots__ = ("device", "first", "key")

    def __init__(
        self,
        seed: int,
        purpose: str,
        *counters: int | str,
        first: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.key: tuple[int | str, ...] = (int(seed), purpose, *counters)
        self.first = first
        self.device = torch.device(device)

    def __call__(self, *counters: int | str) -> Rng:
        """The stream with a longer name: `rng("noise")`, `rng("layer", 3)`."""
        return self._with(self.key + counters, self.first)

    def at(self, first: int) -> Rng:
        """The same stream, whose row 0 is row `first` of this one."""
        if first < 0:
            raise ValueError(f"first must be >= 0, got {first}")
        return self._with(self.key, self.first + first)

    def on(self, device: torch.device | str) -> Rng:
        """The same stream with its tensors put on `device`."""
        new = self._with(self.key, self.first)
        new.device = torch.device(device)
        return new

    def normal(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal numbers, shape (rows, ...)."""
        kind = _numpy(dtype)
        return self._rows(shape, kind, lambda g, block: g.standard_normal(dtype=kind, out=block))

    def uniform(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Numbers uniform in [0, 1), shape (rows, ...)."""
        kind = _numpy(dtype)
        return self._rows(shape, kind, lambda g, block: g.random(dtype=kind, out=block))

    def integers(self, low: int, high: int, shape: Sequence[int]) -> Tensor:
        """int64 uniform in {low, ..., high - 1}, shape (rows, ...)."""

        def draw(generator: np.random.Generator, block: NDArray[Any]) -> None:
            block[...] = generator.integers(low, high, block.shape, dtype=np.int64)

        return self._rows(shape, np.int64, draw)

    def permutation(self, n: int) -> NDArray[np.int64]:
        """A random order of 0..n-1, (n,) int64; it has no rows, `first` plays no part."""
        return self.numpy().permutation(n)

    def numpy(self) -> np.random.Generator:
        """A numpy generator at the start of this stream, for draws without rows."""
        return np.random.Generator(np.random.Philox(key=self._philox_key(())))

    def integer(self) -> int:
        """One int in [0, 2^63), for a library that wants a seed."""
        return self._philox_key(()) >> 65

    def _with(self, key: tuple[int | str, ...], first: int) -> Rng:
        new = object.__new__(Rng)
        new.key, new.first, new.device = key, first, self.device
        return new

    def _philox_key(self, more: tuple[int, ...]) -> int:
        text = "\0".join(f"{type(part).__name__}:{part}" for part in (*self.key, *more))
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")

    def _rows(self, shape: Sequence[int], kind: Any, draw: _Draw) -> Tensor:
        if not len(shape):
            raise ValueError("shape needs at least one axis (rows)")
        stop = self.first + int(shape[0])
        start = self.first - self.first % CHUNK  # a chunk is drawn from its first row
        drawn = np.empty((stop - start, *shape[1:]), kind)

        def fill(rows: range) -> None:
            philox = np.random.Philox(key=0)
            generator = np.random.Generator(philox)
            for row in rows:
                philox.state = _start(self._philox_key((row // CHUNK,)))
                draw(generator, drawn[row - start : row - start + CHUNK])

        threads = torch.get_num_threads()
        if drawn.size < MANY or threads == 1:
            fill(range(start, stop, CHUNK))
        else:  # the pool ends with the draw: a forked process would find its threads gone
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(fill, (range(start + i * CHUNK, stop, threads * CHUNK) for i in range(threads))))
        return torch.from_numpy(drawn[self.first - start :]).to(self.device)


@contextmanager
def layer_noise(rng: Rng) -> Iterator[Callable[[], bool]]:
    """Make torch's global generator a function of `rng` inside the block (initialisation, dropout), restored after.

    The only place that touches torch's global state. What it gives says whether the block has drawn from it.
    """
    cuda = rng.device.type == "cuda"
    before = torch.default_generator.get_state()
    before_cuda = torch.cuda.get_rng_state(rng.device) if cuda else None
    seed = rng.integer()
    torch.default_generator.manual_seed(seed)
    if cuda:
        torch.cuda.manual_seed(seed)
    fresh = torch.default_generator.get_state()
    try:
        yield lambda: not torch.equal(torch.default_generator.get_state(), fresh)
    finally:
        torch.default_generator.set_state(before)
        if before_cuda is not None:
            torch.cuda.set_rng_state(before_cuda, rng.device)


def _start(key: int) -> Any:
    """The state of Philox(key=key), in a tenth of the time that a new generator takes."""
    words = np.array([key & (2**64 - 1), key >> 64], np.uint64)
    nothing = np.zeros(4, np.uint64)
    unused = {"buffer": nothing, "buffer_pos": 4, "has_uint32": 0, "uinteger": 0}
    return {"bit_generator": "Philox", "state": {"counter": nothing, "key": words}, **unused}


def _numpy(dtype: torch.dtype) -> Any:
    if dtype == torch.float32:
        return np.float32
    if dtype == torch.float64:
        return np.float64
    raise ValueError(f"random numbers are drawn in float32 or float64, got {dtype}; convert after drawing")
