"""The processes of one training: who this one is, which rows it takes, and the few words that pass between them.

Started by `torchrun`, all processes run the same program, each on its rows of every batch. What only one may do (read
the clock, decide, write the run folder, draw previews) the first one does and tells the others. Words are JSON, tensors
are bytes: nothing received is ever unpickled. Words have a group of their own over gloo, whose patience lasts while the
first process draws or writes; gradients go through torch's default group, nccl between GPUs.

What it is not: torch's launcher. A process that dies takes all down with it (torchrun sees to that), and the training
is resumed from its last checkpoint.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from quintet.core.errors import ResourceError, UsageError

PATIENCE = timedelta(days=1)  # how long the others wait for the first one's previews and choices


@dataclass(frozen=True)
class Processes:
    """One process among those that train together; by default it is alone.

    Attributes:
        rank: its number, from 0.
        count: of all.
        words: the group for what is said, None where there is but one.
    """

    rank: int = 0
    count: int = 1
    words: dist.ProcessGroup | None = None

    @property
    def first(self) -> bool:
        """Whether it is the one that decides and writes."""
        return self.rank == 0

    def rows(self, batch: int) -> tuple[int, int]:
        """First row and number of rows of a global batch that this process takes.

        Raises: UsageError if the batch cannot be divided equally.
        """
        if batch % self.count:
            nearest = max(1, round(batch / self.count)) * self.count
            raise UsageError("processes.batch", batch=batch, count=self.count, nearest=nearest)
        rows = batch // self.count
        return self.rank * rows, rows

    def tell(self, value: Any) -> Any:
        """The first process's value (JSON-ready), on every process."""
        if self.count == 1:
            return value
        data = json.dumps(value).encode() if self.first else b""
        size = torch.tensor([len(data)])
        dist.broadcast(size, 0, group=self.words)
        text = torch.frombuffer(bytearray(data), dtype=torch.uint8) if self.first else _bytes(int(size))
        dist.broadcast(text, 0, group=self.words)
        return json.loads(text.numpy().tobytes())

    def gather(self, value: Any) -> list[Any]:
        """Every process's value (JSON-ready), in order of rank, on every process."""
        if self.count == 1:
            return [value]
        data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.count)]
        dist.all_gather(sizes, torch.tensor([len(data)]), group=self.words)
        longest = max(int(size) for size in sizes)
        padded = torch.cat([data, torch.zeros(longest - len(data), dtype=torch.uint8)])
        texts = [_bytes(longest) for _ in range(self.count)]
        dist.all_gather(texts, padded, group=self.words)
        return [json.loads(text[: int(size)].numpy().tobytes()) for text, size in zip(texts, sizes, strict=True)]

    def either(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether it is set on any process."""
        if self.count == 1:
            return flags
        found = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self.words)
        return tuple(bool(flag) for flag in found.tolist())

    def wait(self) -> None:
        """Until all processes have come here."""
        self.either(False)

    def share(self, tensors: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """The first process's tensors, on every process; those that were received lie in the CPU's memory."""
        if self.count == 1 or self.first:
            assert tensors is not None
        if self.count == 1:
            return dict(tensors or {})
        known = {k: (list(t.shape), str(t.dtype).removeprefix("torch.")) for k, t in (tensors or {}).items()}
        found: dict[str, Tensor] = {}
        for name, (shape, dtype) in self.tell(known).items():
            if self.first and tensors is not None:
                found[name] = tensors[name]
                value = tensors[name].detach().cpu().contiguous()
            else:
                found[name] = value = torch.empty(shape, dtype=getattr(torch, dtype))
            if value.numel():
                dist.broadcast(value.view(-1).view(torch.uint8), 0, group=self.words)
        return found

    def mean(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Scalars averaged over processes, in float32, on their device."""
        if self.count == 1 or not values:
            return list(values)
        stacked = torch.stack([value.detach().float() for value in values])
        dist.all_reduce(stacked)
        return list((stacked / self.count).unbind())


ALONE = Processes()


def launched() -> int:
    """How many processes the environment says there are, as torchrun sets it; 1 where it says nothing."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def here() -> int:
    """How many of them are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if launched() > 1 else 1


def leads() -> bool:
    """Whether this is the process that speaks to the user."""
    return launched() == 1 or os.environ["RANK"] == "0"


@contextmanager
def joined(device: str) -> Iterator[Processes]:
    """Meet the other processes; inside the block they train together. Alone, nothing happens.

    Args:
        device: "cuda" gives each process of a machine its own GPU.
    Raises: UsageError where a machine has more processes than GPUs; ResourceError if another process has ended.
    """
    if launched() == 1:
        yield ALONE
        return
    if device == "cuda":
        number, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if number >= gpus:
            raise UsageError("processes.gpus", count=here(), gpus=gpus)
        torch.cuda.set_device(number)
    try:
        dist.init_process_group("nccl" if device == "cuda" else "gloo")
        words = dist.new_group(backend="gloo", timeout=PATIENCE)
        yield Processes(dist.get_rank(), dist.get_world_size(), words)
    except RuntimeError as error:
        if not _lost(error):
            raise
        raise ResourceError("processes.lost", rank=os.environ["RANK"]) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _lost(error: RuntimeError) -> bool:
    """Whether an error says that the connection to another process is gone."""
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower()


def _bytes(size: int) -> Tensor:
    return torch.empty(size, dtype=torch.uint8)
