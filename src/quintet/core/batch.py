"""One training batch: encoded examples, their conditions, and where they came from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from quintet.core.spec import Cond


@dataclass(frozen=True)
class Batch:
    """What every player sees in a step.

    Attributes:
        x: (B, *E), encoded by the recipe's codec.
        cond: condition name -> (B,) int64.
        index: (B,) int64, row of each example in the training split.
    """

    x: Tensor
    index: Tensor
    cond: Cond = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.x)


class Examples(Protocol):
    """The training split as a model sees it, row by row: encoded without noise and without augmentation."""

    @property
    def examples(self) -> int:
        """Number of rows."""
        ...

    @property
    def augmented(self) -> bool:
        """Whether training batches show other versions of these rows."""
        ...

    def take(self, start: int, stop: int) -> Batch:
        """Rows start to stop - 1."""
        ...
