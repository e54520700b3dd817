"""Adversarial losses and zero-centred gradient penalties.

What it is: each loss is an object with two scalar functions of logits, one a player. The relativistic pairing loss
compares the i-th real with the i-th fake example, so that a discriminator cannot win by calling everything fake; the
classic losses are for comparison and teaching. The penalties flatten the discriminator on real data (R1) and on
generated data (R2), for any loss; with them the relativistic game converges locally. The Wasserstein loss brings its
own penalty, without which it has no meaning.
What it is not: a training step. Who is frozen, augmentation and schedules are the model's and the loop's business.

Sources: Goodfellow et al. 2014, arXiv:1406.2661; Lim & Ye 2017 (hinge), arXiv:1705.02894; Mao et al. 2017 (least
squares), arXiv:1611.04076; Arjovsky et al. 2017 (Wasserstein), arXiv:1701.07875; Gulrajani et al. 2017 (its gradient
penalty), arXiv:1704.00028; Jolicoeur-Martineau 2019 (relativistic), arXiv:1807.00734; Mescheder et al. 2018 (R1, R2,
Dirac-GAN), arXiv:1801.04406; Huang et al. 2024 (relativistic pairing, R1 and R2), arXiv:2501.05441.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass as plain_dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from quintet.core.config import STRICT, Config
from quintet.core.rng import Rng


class AdversarialLoss(Config, ABC):
    """What the two players minimise, as functions of the discriminator's logits.

    Arguments of both are (B,) logits; row i of `real` is paired with row i of `fake`. Both return scalars.

    Attributes:
        paired: whether the generator's loss depends on the logits of real examples.
    """

    paired: ClassVar[bool] = False

    @abstractmethod
    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        """Low where the discriminator tells them apart."""

    @abstractmethod
    def generator(self, real: Tensor, fake: Tensor) -> Tensor:
        """Low where the generator has the better of it. `real` is a constant for this player."""

    def penalty(self, discriminator: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, rng: Rng) -> Tensor | None:
        """What the discriminator's loss has beside its logits' part, a scalar with a graph; None for most losses.

        Args:
            discriminator: (B, *E) -> (B,) logits.
            real, fake: (B, *E), what the discriminator saw.
            rng: one draw a row.
        """
        return None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Relativistic(AdversarialLoss):
    """Relativistic pairing: softplus(-(D(real_i) - D(fake_i))), and the same with the roles exchanged.

    Unchanged when a constant is added to all logits. Source: arXiv:2501.05441, eq. 2; arXiv:1807.00734.
    """

    kind = "relativistic"
    paired: ClassVar[bool] = True

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        return F.softplus(fake - real).mean()

    def generator(self, real: Tensor, fake: Tensor) -> Tensor:
        return F.softplus(real - fake).mean()


@dataclass(frozen=True, kw_only=True, config=STRICT)
class NonSaturating(AdversarialLoss):
    """-log sigmoid(D) on the side that should be real. Source: arXiv:1406.2661, section 3."""

    kind = "non-saturating"

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        return F.softplus(-real).mean() + F.softplus(fake).mean()

    def generator(self, real: Tensor, fake: Tensor) -> Tensor:
        return F.softplus(-fake).mean()


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Minimax(AdversarialLoss):
    """The zero-sum game of 2014: the generator minimises log(1 - sigmoid(D(fake))).

    The discriminator's optimum is log p/q, and its loss there 2 log 2 - 2 JS(p, q) nats.
    Source: arXiv:1406.2661, eq. 1.
    """

    kind = "minimax"

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        return F.softplus(-real).mean() + F.softplus(fake).mean()

    def generator(self, real: Tensor, fake: Tensor) -> Tensor:
        return -F.softplus(fake).mean()


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Hinge(AdversarialLoss):
    """Margins of 1 for the discriminator, linear for the generator. Source: arXiv:1705.02894."""

    kind = "hinge"

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()

    def generator(self, real: Tensor, fake: Tensor) -> Tensor:
        return -fake.mean()


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LeastSquares(AdversarialLoss):
    """Squared distance of the logit to 1 on real and 0 on fake examples, halved.

    The discriminator's optimum is p / (p + q). Source: arXiv:1611.04076, eq. 2 with a = 0, b = c = 1.
    """

    kind = "least-squares"

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        return ((real - 1).square().mean() + fake.square().mean()) / 2

    def generator(self, real: Tensor, fake: Tensor) -> Tensor:
        return (fake - 1).square().mean() / 2


@dataclass(frozen=True, kw_only=True, config=STRICT)
class WassersteinGP(AdversarialLoss):
    """Difference of means, for a discriminator whose slope is drawn to 1 between real and fake examples.

    At the optimum its negative is the Wasserstein-1 distance. Source: arXiv:1701.07875, eq. 2; arXiv:1704.00028, eq. 3.

    Attributes:
        weight: of the gradient penalty; lambda in the paper.
    """

    kind = "wasserstein-gp"
    weight: float = Field(default=10.0, gt=0)

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        return fake.mean() - real.mean()

    def generator(self, real: Tensor, fake: Tensor) -> Tensor:
        return -fake.mean()

    def penalty(self, discriminator: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, rng: Rng) -> Tensor | None:
        """weight E (||grad D(x)|| - 1)^2 at x uniform on the line between a real and a fake example."""
        u = rng.uniform((len(real),)).to(real).reshape(-1, *[1] * (real.ndim - 1))
        x = torch.lerp(fake, real, u).detach().requires_grad_()
        (slope,) = torch.autograd.grad(discriminator(x).sum(), x, create_graph=True)
        length = (slope.flatten(1).square().sum(1) + 1e-12).sqrt()  # a root has no slope at 0
        return self.weight * (length - 1).square().mean()


LOSSES: Mapping[str, type[AdversarialLoss]] = {
    loss.kind: loss for loss in (Relativistic, NonSaturating, Minimax, Hinge, LeastSquares, WassersteinGP)
}


@plain_dataclass(frozen=True)
class Penalties:
    """Mean squared gradient norms of D, scalars with a graph: `r1` over real rows, `r2` over fake rows."""

    r1: Tensor
    r2: Tensor


def gradient_penalties(logits: Tensor, x: Tensor, reals: int) -> Penalties:
    """E ||grad_x D(x)||^2 on the real and on the fake half of one batch.

    One derivative of the sum of logits gives every row its own gradient, since rows do not mix in a discriminator
    (one reason why it has no batch normalisation).

    Args:
        logits: (B,), computed from `x` outside autocast.
        x: (B, *E), a leaf with gradient; rows 0..reals-1 are real, the others fake.
        reals: number of real rows, 0 < reals < B.
    Raises: ValueError where a half is empty.
    Source: arXiv:1801.04406, eq. 9 and 10, without the factor gamma / 2.
    """
    if not 0 < reals < len(x):
        raise ValueError(f"both halves need rows, got {reals} real of {len(x)}")
    (slope,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
    squares = slope.flatten(1).square().sum(1)  # (B,)
    return Penalties(squares[:reals].mean(), squares[reals:].mean())


def cosine(start: float, end: float, progress: float) -> float:
    """From `start` at progress 0 to `end` at 1, along half a cosine."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))
