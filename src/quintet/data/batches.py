"""Batches: which examples a step sees, in which order, with which noise: functions of counters alone.

`batches[step]` can be asked in any order and by any process. The examples of all steps form one long line of epochs,
each a permutation of the training split; batch `step` is its `step`-th piece and may cross from one epoch into the
next. There is no worker and no state: the data are integers in memory, gathered by index and then encoded.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from quintet.core.batch import Batch
from quintet.core.codec import Codec
from quintet.core.rng import Rng
from quintet.data.augment import augmentation
from quintet.data.dataset import Split, gather

KEPT = 2
"""Epochs whose permutation is kept: a batch crosses from one into the next."""


class Batches:
    """The training batches of a run.

    Args:
        split: the training split.
        codec: encodes gathered examples; moved nowhere, it must live on `device`.
        batch: examples a step, over all processes.
        seed: the run's seed; order, augmentation and dequantisation noise have a stream each.
        augment: kind of augmentation, applied to raw data before encoding, or None.
        first, rows: the rows of the global batch which this process takes; all by default.
        device: where batches are put.
    Raises: ValueError for an empty split or rows outside the batch; UsageError for an augmentation that does not fit.
    """

    def __init__(
        self,
        split: Split,
        codec: Codec,
        batch: int,
        seed: int,
        *,
        augment: str | None = None,
        first: int = 0,
        rows: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        rows = batch - first if rows is None else rows
        if not len(split):
            raise ValueError("batches need at least one example")
        if batch < 1 or first < 0 or rows < 1 or first + rows > batch:
            raise ValueError(f"rows {first}..{first + rows - 1} are not within a batch of {batch}")
        self.codec, self.batch, self.seed, self.first, self.rows = codec, batch, seed, first, rows
        self.device = torch.device(device)
        self.augment = augmentation(augment, codec.raw) if augment else None
        # data mapped from a file stay there: only gathered rows come into memory, or to the device
        self._x = split.tensor() if split.mapped else split.tensor().to(self.device)
        self._labels = {name: torch.from_numpy(y).to(self.device) for name, y in split.labels.items()}
        self._orders: dict[int, Tensor] = {}
        self._draws: dict[int, Tensor] = {}

    @property
    def examples(self) -> int:
        """Number of examples in an epoch."""
        return len(self._x)

    @property
    def augmented(self) -> bool:
        """Whether batches show other versions of the examples."""
        return self.augment is not None

    def take(self, start: int, stop: int) -> Batch:
        """Examples start to stop - 1, encoded without noise and without augmentation."""
        index = torch.arange(start, min(stop, self.examples), device=self.device)
        cond = {name: values[index] for name, values in self._labels.items()}
        return Batch(self.codec.encode(self._rows(index)), index, cond)

    def epoch(self, step: int) -> float:
        """Epochs seen before `step`."""
        return step * self.batch / self.examples

    def __getitem__(self, step: int) -> Batch:
        """Batch `step`, rows `first` to `first + rows` of it.

        Raises: IndexError for a negative step.
        """
        if step < 0:
            raise IndexError(f"steps count from 0, got {step}")
        pieces, draws = [], []
        position = step * self.batch + self.first
        stop = position + self.rows
        while position < stop:
            epoch, start = divmod(position, self.examples)
            end = min(self.examples, start + stop - position)
            piece = self._order(epoch)[start:end]
            pieces.append(piece)
            if self.augment:
                draws.append(self._draw(epoch)[piece])
            position += end - start
        index = (pieces[0] if len(pieces) == 1 else torch.cat(pieces)).to(self.device)
        raw = self._rows(index)
        if self.augment:
            raw = self.augment.apply(raw, torch.cat(draws).to(self.device))
        noise = Rng(self.seed, "encode", step, first=self.first, device=self.device)
        return Batch(
            x=self.codec.encode(raw, noise),
            index=index,
            cond={name: labels[index] for name, labels in self._labels.items()},
        )

    def _rows(self, index: Tensor) -> Tensor:
        return gather(self._x, index.to(self._x.device)).to(self.device)

    def _order(self, epoch: int) -> Tensor:
        """(N,) int64, on the CPU."""
        if epoch not in self._orders:
            order = Rng(self.seed, "order", epoch).permutation(self.examples)
            _keep(self._orders, epoch, torch.from_numpy(order.astype(np.int64, copy=False)))
        return self._orders[epoch]

    def _draw(self, epoch: int) -> Tensor:
        """(N, draws) uniform numbers of an epoch, row i for example i, on the CPU."""
        assert self.augment is not None
        if epoch not in self._draws:
            numbers = Rng(self.seed, "augment", epoch).uniform((self.examples, self.augment.draws))
            _keep(self._draws, epoch, numbers)
        return self._draws[epoch]


def _keep(cache: dict[int, Tensor], epoch: int, value: Tensor) -> None:
    while len(cache) >= KEPT:
        del cache[min(cache) if epoch > min(cache) else max(cache)]
    cache[epoch] = value
