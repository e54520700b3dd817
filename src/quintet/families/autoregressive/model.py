"""Autoregressive models: the chain rule, one categorical distribution a value, in a fixed order.

What it is: log p(x | c) = sum_i log p(x_i | x_1 .. x_{i-1}, c), made of a causal network over tokens, an output
distribution, an order and a token sampler. Training sees all positions at once; sampling goes one by one.
What it is not: a network, or a model of continuous values: the recipe's codec turns those into levels.

Sources: Larochelle & Murray 2011 (NADE); van den Oord et al. 2016, arXiv:1601.06759; Ho & Salimans 2022 (class
dropout and guidance), arXiv:2207.12598; Gordon et al. 1993 (particle filter, for `fill`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from math import prod
from typing import Any, Protocol, cast

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from quintet.core.batch import Batch
from quintet.core.config import STRICT, Config
from quintet.core.model import (
    Finding,
    HasCode,
    HasFill,
    HasLogProb,
    HasTrace,
    HasWatch,
    Loss,
    Model,
    Player,
    Trace,
    Turn,
    hide,
)
from quintet.core.numerics import full
from quintet.core.recipe import ModelConfig, TokenNetworkConfig
from quintet.core.rng import Rng
from quintet.core.spec import UNCONDITIONAL, Cond, DataSpec
from quintet.families.autoregressive.orders import OrderName, order
from quintet.families.autoregressive.outputs import OutputConfig
from quintet.samplers.tokens import Next, draw, generate, restrict

MOST_LOGITS = 2**24
"""Logits held at once where a likelihood is only evaluated: 64 MiB."""

FILLED = 1024
"""Rows of the cache that `fill` has at once."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TokenSampling(Config):
    """How each value is drawn from the logits.

    Attributes:
        temperature: divides the logits; 1 is the model's distribution, 0 always takes the likeliest level.
        top_k: only the likeliest so many levels; None for all.
        top_p: only the smallest set of likeliest levels with this much probability.
        guidance: 1 = plain conditional, 0 = unconditional, above 1 exaggerates the condition at twice the cost.
    """

    kind = "token-sampling"
    temperature: float = Field(default=1.0, ge=0, le=100, allow_inf_nan=False)
    top_k: int | None = Field(default=None, ge=1)
    top_p: float = Field(default=1.0, gt=0, le=1)
    guidance: float = Field(default=1.0, ge=-100, le=100, allow_inf_nan=False)

    def adjust(self, logits: Tensor) -> Tensor:
        return restrict(logits, self.temperature, self.top_k, self.top_p)


class Cache(Protocol):
    """What a network remembers of the positions drawn so far."""

    def reorder(self, rows: Tensor) -> None: ...


class TokenNetwork(Protocol):
    """What `TokenNetworkConfig.build` returns; see there."""

    def __call__(self, tokens: Tensor, cond: Cond) -> Tensor: ...

    def start(self, n: int, cond: Cond) -> Cache: ...

    def next(self, cache: Cache, tokens: Tensor | None) -> Tensor: ...


class Autoregressive(Model[TokenSampling], HasLogProb, HasFill, HasCode, HasTrace, HasWatch):
    """See the module.

    Args:
        spec: of discrete data, any shape; flattened, its values are the tokens.
        network: over the tokens in the order they are read.
        output: the network's numbers to logits.
        positions: (T,) the k-th value drawn lies at flat place positions[k] of an example.
        class_dropout: share of training examples whose conditions are hidden; 0 leaves unconditional use untrained.
        particles: of `fill`, per item.
    """

    likelihood = "exact"
    positions: Tensor
    places: Tensor

    def __init__(
        self,
        spec: DataSpec,
        network: nn.Module,
        *,
        output: OutputConfig,
        positions: Tensor,
        class_dropout: float,
        particles: int,
        sampling: TokenSampling,
    ) -> None:
        super().__init__(spec, sampling)
        if spec.levels is None:
            raise ValueError("an autoregressive model needs levels; the recipe's codec makes them of continuous data")
        self.network, self.output, self.levels = network, output, spec.levels
        self.class_dropout, self.particles = class_dropout, particles
        self.register_buffer("positions", positions, persistent=False)
        self.register_buffer("places", positions.argsort(), persistent=False)

    # training

    def players(self) -> Sequence[Player]:
        return (Player("model", self, self.loss),)

    def loss(self, turn: Turn) -> Loss:
        """Cross-entropy in nats per value: the negative log-likelihood divided by the number of values."""
        cond = hide(turn.batch.cond, self.class_dropout, turn.rng("hide"))
        total = -self._log_prob(turn.batch.x, cond).mean() / self.spec.dims
        return Loss(total, {"nats_per_dim": total.detach()})

    def watch(self, train: Batch, held_out: Batch, *, rng: Rng) -> Sequence[Finding]:
        """A loss on held-out data above that of guessing every level alike; not finite counts as above."""
        loss = -self.log_prob(held_out.x, held_out.cond, rng=rng).double().mean().item() / self.spec.dims
        uniform = math.log(self.levels)
        return [] if loss <= uniform else [Finding("above_uniform", loss, uniform, severe=True)]

    # likelihood

    def log_prob(self, x: Tensor, cond: Cond | None = None, *, rng: Rng) -> Tensor:
        step, cond = max(1, MOST_LOGITS // (self.spec.dims * self.levels)), cond or {}
        parts = [
            self._log_prob(x[i : i + step], {name: value[i : i + step] for name, value in cond.items()})
            for i in range(0, len(x), step)
        ]
        return torch.cat(parts) if parts else torch.zeros(0, device=x.device)

    def _log_prob(self, x: Tensor, cond: Cond) -> Tensor:
        tokens = self.read(x)
        logits = self.output.logits(full(self.network(tokens, cond)), self.levels)  # (B, T, levels)
        terms = -nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none")
        return terms.view(tokens.shape).sum(1)

    @property
    def log_prob_protocol(self) -> str:
        return "exact"

    # values and their order

    def read(self, x: Tensor) -> Tensor:
        """(B, *E) to tokens (B, T) in the order they are drawn."""
        return x.flatten(1).long()[:, self.positions]

    def place(self, tokens: Tensor) -> Tensor:
        """The inverse of `read`."""
        return tokens[:, self.places].view(len(tokens), *self.spec.shape)

    # sampling

    def sample(self, n: int, cond: Cond | None = None, *, rng: Rng, sampling: TokenSampling | None = None) -> Tensor:
        return self.place(self._draw(n, cond, rng, self.sampling if sampling is None else sampling))

    def _draw(self, n: int, cond: Cond | None, rng: Rng, sampling: TokenSampling) -> Tensor:
        uniform = rng("tokens").uniform((n, len(self.positions)), torch.float64).to(self.positions.device)
        return generate(self.following(n, cond, sampling.guidance), uniform, sampling.adjust)

    def following(self, n: int, cond: Cond | None, guidance: float) -> Next:
        """The next position's logits given the tokens so far, with a fresh cache and the condition bound.

        Source: Ho & Salimans 2022, eq. 6, on log-probabilities; their w is our scale - 1.
        """
        network = cast(TokenNetwork, self.network)
        if not cond or guidance in (0, 1):
            cache = network.start(n, cond if cond and guidance else {})
            return lambda tokens: self.output.logits(network.next(cache, tokens), self.levels)
        # -1 in a row is unconditional: both halves go through the network as one batch.
        both = {k: torch.cat([torch.full_like(v, UNCONDITIONAL), v]) for k, v in cond.items()}
        twice = network.start(2 * n, both)

        def following(tokens: Tensor | None) -> Tensor:
            raw = network.next(twice, None if tokens is None else torch.cat([tokens, tokens]))
            without, given = self.output.logits(raw, self.levels).log_softmax(-1).chunk(2)
            return without + guidance * (given - without)

        return following

    def sequential_steps(self, sampling: TokenSampling | None = None) -> int:
        return len(self.positions)

    def trace(self, n: int, frames: int, cond: Cond | None = None, *, rng: Rng) -> Trace:
        """Evenly spaced moments of drawing; values not drawn yet are level 0."""
        if frames < 2:
            raise ValueError(f"a trace needs at least two frames, got {frames}")
        tokens, length = self._draw(n, cond, rng, self.sampling), len(self.positions)
        at = [round(length * f / (frames - 1)) for f in range(frames)]
        drawn = torch.arange(length, device=tokens.device)
        seen = [self.place(torch.where(drawn < k, tokens, 0)) for k in at]
        return Trace("reveal", torch.stack(seen), tuple(f"{k}/{length}" for k in at))

    # completion

    @torch.no_grad()
    def fill(self, x: Tensor, known: Tensor, cond: Cond | None = None, *, rng: Rng) -> Tensor:
        """Draw the unknown values given the known ones, from the model's own distribution (temperature 1, guidance 1).

        Exact where the known values come first in the order: one path an item. Elsewhere a particle filter:
        `particles` copies of an item draw its unknown values in order, are weighted by the probability of each known
        value they meet, and are resampled when fewer than half of them count; one of the last ones is taken. It
        approaches the exact conditional distribution as the number of particles grows.

        Source: Gordon, Salmond & Smith 1993; systematic resampling, Kitagawa 1996.
        """
        if x.shape[1:] != self.spec.shape or known.shape != x.shape:
            raise ValueError(f"expected (B, {self.spec.shape}) values and mask, got {x.shape} and {known.shape}")
        tokens, mask = self.read(x), self.read(known).bool()
        done, first = [], 0
        while first < len(x):
            m = 1 if bool(_leading(mask[first : first + FILLED]).all()) else self.particles
            part = slice(first, first + max(1, FILLED // m))
            some = {name: value[part] for name, value in (cond or {}).items()}
            done.append(self._filter(tokens[part], mask[part], some, rng.at(first), m))
            first = part.stop
        return self.place(torch.cat(done) if done else tokens).to(x.dtype)

    def _filter(self, tokens: Tensor, mask: Tensor, cond: Cond, rng: Rng, m: int) -> Tensor:
        """Filled tokens (n, T) by m paths an item; an item that needs one path only gets the same by any m."""
        n, length = tokens.shape
        device = tokens.device
        moves = rng("tokens").uniform((n, 1, length), torch.float64).to(device)
        if m > 1:
            others = rng("tokens", "others").uniform((n, m - 1, length), torch.float64).to(device)
            moves = torch.cat([moves, others], 1)
        moves = moves.flatten(0, 1)  # (n m, T)
        offsets = rng("resample").uniform((n, length), torch.float64).to(device)
        last = torch.where(_leading(mask), 0, rng("choose").uniform((n,), torch.float64).to(device))
        network = cast(TokenNetwork, self.network)
        cache = network.start(n * m, {name: value.repeat_interleave(m) for name, value in cond.items()})
        paths = tokens.repeat_interleave(m, 0)  # (n m, T)
        weight = torch.zeros(n, m, dtype=torch.float64, device=device)  # log
        rows = torch.arange(n * m, device=device).view(n, m)
        for i in range(length):
            logits = self.output.logits(network.next(cache, paths[:, i - 1] if i else None), self.levels)
            drawn = draw(logits, moves[:, i])
            given = mask[:, i].repeat_interleave(m)
            paths[:, i] = torch.where(given, paths[:, i], drawn)
            if m == 1:
                continue
            met = logits.double().log_softmax(-1).gather(1, paths[:, i, None]).view(n, m)
            weight = weight + torch.where(mask[:, i, None], met, 0)
            share = weight.softmax(1)
            poor = 1 / share.square().sum(1) < m / 2
            if bool(poor.any()):
                points = (torch.arange(m, device=device) + offsets[:, i, None]) / m  # (n, m) in [0, 1)
                pick = torch.searchsorted(share.cumsum(1), points).clamp(max=m - 1)
                new = torch.where(poor[:, None], rows.gather(1, pick), rows).flatten()
                paths[:, : i + 1] = paths[new, : i + 1]
                cache.reorder(new)
                weight = torch.where(poor[:, None], 0.0, weight)
        return paths[rows.gather(1, draw(weight, last)[:, None])[:, 0]]


def _leading(mask: Tensor) -> Tensor:
    """(n,) whether what is known of an item, mask (n, T), comes before all that is not."""
    return (mask[:, 1:] <= mask[:, :-1]).all(1)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AutoregressiveConfig(ModelConfig):
    """See Autoregressive.

    Attributes:
        order: which value is drawn when, over the grid.
        grid: how the flattened values lie (rows and columns of an image); None takes the spec's own shape.
        network: over the tokens in the order they are read.
        output: how the network's numbers become the probabilities of the next value.
        class_dropout: share of training examples whose label is hidden; 0 leaves unconditional sampling untrained.
        particles: weighted copies of each item with which known values are filled up.
        sampling: how values are drawn unless a call says otherwise.
    """

    kind = "autoregressive"
    network: TokenNetworkConfig
    output: OutputConfig
    order: OrderName = "rows"
    grid: tuple[int, ...] | None = None
    class_dropout: float = Field(default=0.1, ge=0, lt=1)
    particles: int = Field(default=32, ge=1)
    sampling: TokenSampling = TokenSampling()

    def build(self, spec: DataSpec) -> Model[Any]:
        if spec.levels is None:
            raise ValueError("an autoregressive model needs levels; the recipe's codec makes them of continuous data")
        shape = spec.shape if self.grid is None else self.grid
        if prod(shape) != spec.dims:
            raise ValueError(f"a grid {shape} does not hold {spec.dims} values")
        way = order(self.order, shape)
        network = self.network.build(
            spec.dims, spec.levels, spec.conditions, grid=way.grid, outputs=self.output.outputs(spec.levels)
        )
        return Autoregressive(
            spec,
            network,
            output=self.output,
            positions=way.positions,
            class_dropout=self.class_dropout,
            particles=self.particles,
            sampling=self.sampling,
        )
