"""Ladder variational autoencoder: latents in groups, each with a prior that knows the groups above it.

What it is: p(x, z) = p(z_1) p(z_2 | z_1) ... p(x | z_1..G), and a posterior that takes the same way down, beginning
each group at its prior and adding what the encoder saw of x. The top groups carry what an example is, the lower ones
where its edges and textures lie, so that the decoder need not blur them.
What it is not: a network (see LadderNetworkConfig, which says what the two networks are asked).

Every group is expressed by its noise u, standard normal under the prior, z = mean(z above) + std(z above) u. A
divergence is then one from N(0, I), and the latent space of `encode` and `decode` is all u side by side.

Sources: Sonderby et al. 2016, arXiv:1602.02282; Kingma et al. 2016, appendix C (free bits for each group),
arXiv:1606.04934; Vahdat & Kautz 2020, section 3.2 (residual posterior), arXiv:2007.03898; Child 2021, arXiv:2011.10650.
Departures: the posterior's mean is moved in units of the prior's standard deviation, so that the divergence does not
depend on that; free bits hold for each example, not for the batch's mean, so that rows do not mix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from math import prod
from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from quintet.core.batch import Batch
from quintet.core.config import STRICT
from quintet.core.model import (
    Finding,
    HasLatent,
    HasLogProb,
    HasTrace,
    HasWatch,
    Loss,
    Model,
    Player,
    Trace,
    Turn,
    Way,
    hide,
)
from quintet.core.numerics import full
from quintet.core.recipe import LadderNetwork, LadderNetworkConfig, ModelConfig
from quintet.core.rng import Rng
from quintet.core.spec import Cond, DataSpec
from quintet.families.vae.bounds import Inference, importance, ways
from quintet.families.vae.likelihoods import Likelihood, LikelihoodConfig
from quintet.families.vae.model import ACTIVE, VaeSampling, collapse, halves, walk
from quintet.families.vae.priors import normal_kl_each, normal_log_prob


@plain_dataclass(frozen=True)
class Draws:
    """One way down with the posterior: of each group mean and log standard deviation of u, and u, each (B, d)."""

    mean: list[Tensor]
    log_std: list[Tensor]
    u: list[Tensor]


class LadderVAE(Model[VaeSampling], HasLogProb, HasLatent, HasTrace, HasWatch):
    """See the module.

    Args:
        spec: continuous data, or levels.
        network: encoder, decoder and the shapes of their groups.
        output, sampling: see their classes.
        beta: factors on the groups' KL terms, top first; the last repeats; 1 is the bound itself.
        free_bits: nats of KL that cost nothing of each group of an example, top first; the last repeats.
        kl_warmup: share of training over which the KL terms' factors rise from 0 to `beta`.
        class_dropout: share of training examples whose conditions are hidden, which trains the unconditional model.
        bound_samples: K of the importance-weighted bound that `log_prob` gives.
    """

    likelihood = "bound"

    def __init__(
        self,
        spec: DataSpec,
        network: LadderNetwork,
        output: Likelihood,
        *,
        beta: Sequence[float],
        free_bits: Sequence[float],
        kl_warmup: float,
        class_dropout: float,
        bound_samples: int,
        sampling: VaeSampling,
    ) -> None:
        super().__init__(spec, sampling)
        self.network, self.output = network, output
        self.widths = [prod(shape) for shape in network.groups]
        self.latent = DataSpec("vector", (sum(self.widths),), None, spec.conditions)
        groups = range(len(self.widths))
        self.beta, self.free_bits = ([each[min(g, len(each) - 1)] for g in groups] for each in (beta, free_bits))
        self.kl_warmup = kl_warmup
        self.class_dropout, self.bound_samples = class_dropout, bound_samples

    # training

    def players(self) -> Sequence[Player]:
        return (Player("model", self, self.loss),)

    def loss(self, turn: Turn) -> Loss:
        """Reconstruction + sum over groups of factor * max(KL, free bits), divided by the dimensions."""
        x, cond = turn.batch.x, hide(turn.batch.cond, self.class_dropout, turn.rng("hide"))
        y, draws = self.down(self.features(x, cond), cond, len(x), turn.rng("u"))
        reconstruction = -self.output.log_prob(x, y).mean()
        pairs = zip(draws.mean, draws.log_std, strict=True)
        kl = torch.stack([normal_kl_each(mean, log_std).sum(1) for mean, log_std in pairs])  # (groups, B)
        warm = min(1.0, turn.progress / self.kl_warmup) if self.kl_warmup else 1.0
        held = kl.maximum(kl.new_tensor(self.free_bits)[:, None]).mean(1)
        charge = (kl.new_tensor(self.beta) * held).sum()  # a product of vectors would be in half precision
        total = reconstruction + warm * charge
        with torch.no_grad():
            parts = {"reconstruction_nats": reconstruction.detach(), "kl_nats": kl.sum(0).mean()}
            parts |= {f"kl_nats_{group}": value for group, value in enumerate(kl.mean(1), 1)}
            active = torch.stack([(m.var(0, correction=0) > ACTIVE).sum() for m in draws.mean])
            parts["active_units"] = active.sum().to(kl.dtype)
            scale = self.output.scale()
            if scale is not None:
                parts["output_scale"] = scale
        return Loss(total / self.spec.dims, parts)

    def features(self, x: Tensor, cond: Cond) -> Sequence[Tensor]:
        """What the encoder saw, one tensor a group."""
        seen: Sequence[Tensor] = self.network.encoder(self.output.centred(x), cond)
        return seen

    def down(self, features: Sequence[Tensor], cond: Cond, n: int, rng: Rng | None) -> tuple[Tensor, Draws]:
        """The decoder's output with u ~ q in every group, or at its mean without rng, and what was drawn."""

        def pick(group: int, mean: Tensor, log_std: Tensor) -> Tensor:
            return mean if rng is None else mean + log_std.exp() * rng(group).normal(tuple(mean.shape)).to(mean)

        return self._down(features, cond, n, pick)

    def _down(
        self, features: Sequence[Tensor], cond: Cond, n: int, pick: Callable[[int, Tensor, Tensor], Tensor]
    ) -> tuple[Tensor, Draws]:
        """The same with u = pick(group, mean, log standard deviation), each (B, d)."""
        draws = Draws([], [], [])

        def draw(group: int, posterior: Tensor | None) -> Tensor:
            assert posterior is not None
            shape = tuple(posterior.shape[2:])
            mean, log_std = halves(posterior)
            u = pick(group, mean, log_std)
            for kept, value in zip((draws.mean, draws.log_std, draws.u), (mean, log_std, u), strict=True):
                kept.append(value)
            return u.reshape(-1, *shape)

        return full(self.network.decoder(features, cond, draw, n)), draws

    def watch(self, train: Batch, held_out: Batch, *, rng: Rng) -> Sequence[Finding]:
        """Posterior collapse, by the divergence of each dimension's u from its prior."""
        return collapse(self.kl_per_dimension(held_out.x, held_out.cond))

    # sampling

    def sample(self, n: int, cond: Cond | None = None, *, rng: Rng, sampling: VaeSampling | None = None) -> Tensor:
        sampling = self.sampling if sampling is None else sampling
        noise = rng("u")
        u = [sampling.temperature * self._like(noise(g).normal((n, width))) for g, width in enumerate(self.widths)]
        return self.output.sample(self._generate(u, cond), rng("output"), sampling.noise)

    def sequential_steps(self, sampling: VaeSampling | None = None) -> int:
        return 1

    def encode(self, x: Tensor, cond: Cond | None = None, *, rng: Rng | None = None) -> Tensor:
        """(B, *latent.shape): the noise of all groups, top first; without rng every group at its posterior mean."""
        cond = {} if cond is None else cond
        _, draws = self.down(self.features(x, cond), cond, len(x), rng)
        return torch.cat(draws.u, dim=1)

    def decode(self, z: Tensor, cond: Cond | None = None) -> Tensor:
        """The mean of p(x | z), rounded to a level where data have levels."""
        return self.output.round(self.output.mean(self._generate(z.split(self.widths, dim=1), cond)))

    def trace(self, n: int, frames: int, cond: Cond | None = None, *, rng: Rng) -> Trace:
        """A walk in the latent space from one draw of the prior to another, along which u stays standard normal."""
        ends = [self._like(rng(side).normal((n, *self.latent.shape))) for side in ("start", "end")]
        return walk(
            lambda at: self.decode(math.cos(at * math.pi / 2) * ends[0] + math.sin(at * math.pi / 2) * ends[1], cond),
            frames,
        )

    def _generate(self, u: Sequence[Tensor], cond: Cond | None) -> Tensor:
        def draw(group: int, posterior: Tensor | None) -> Tensor:
            return u[group].reshape(-1, *self.network.groups[group])

        return full(self.network.decoder(None, {} if cond is None else cond, draw, len(u[0])))

    def _like(self, u: Tensor) -> Tensor:
        return u.to(next(self.network.parameters()))

    # likelihood

    def log_prob(self, x: Tensor, cond: Cond | None = None, *, rng: Rng) -> Tensor:
        """log of the mean of `bound_samples` importance weights p(x, u) / q(u | x) (Burda et al. 2016, eq. 8)."""
        return self.importance_bound(x, cond, self.bound_samples, rng=rng)

    def importance_bound(self, x: Tensor, cond: Cond | None, samples: int, *, rng: Rng) -> Tensor:
        """(B,) nats, the bound with any number of samples; 1 is an estimate of the plain bound."""
        return importance(self.inference(x, {} if cond is None else cond), samples, rng)

    def inference(self, x: Tensor, cond: Cond) -> Inference:
        """The posterior of all groups' u side by side, (B, sum of widths), beside the joint density."""
        features = self.features(x, cond)

        def draw(noise: Tensor) -> Tensor:
            parts = noise.split(self.widths, dim=1)
            _, draws = self._down(features, cond, len(x), lambda g, mean, log_std: mean + log_std.exp() * parts[g])
            return torch.cat(draws.u, dim=1)

        def terms(u: Tensor) -> tuple[Tensor, Tensor]:
            parts = u.split(self.widths, dim=1)
            y, draws = self._down(features, cond, len(x), lambda g, mean, log_std: parts[g])
            log_q = normal_log_prob(u, torch.cat(draws.mean, 1), torch.cat(draws.log_std, 1))
            zero = torch.zeros_like(u)
            return log_q, self.output.log_prob(x, y) + normal_log_prob(u, zero, zero)

        _, draws = self.down(features, cond, len(x), None)
        return Inference(draw, terms, torch.cat(draws.log_std, dim=1).exp())

    def ways(self, effort: float = 1.0) -> Mapping[str, Way]:
        return ways(self.inference, effort)

    @property
    def log_prob_protocol(self) -> str:
        return f"importance-weighted bound, {self.bound_samples} samples"

    # detectors

    def kl_per_dimension(self, x: Tensor, cond: Cond | None = None) -> Tensor:
        """(latent width,) nats of KL that each latent number carries, on average over x, along the posterior means."""
        cond = {} if cond is None else cond
        _, draws = self.down(self.features(x, cond), cond, len(x), None)
        return torch.cat([normal_kl_each(m, s).mean(0) for m, s in zip(draws.mean, draws.log_std, strict=True)])


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LadderVAEConfig(ModelConfig):
    """See LadderVAE.

    Attributes:
        likelihood: of the data, given what the decoder says.
    """

    kind = "ladder-vae"
    network: LadderNetworkConfig
    likelihood: LikelihoodConfig
    beta: tuple[Annotated[float, Field(ge=0)], ...] = Field(default=(1.0,), min_length=1)
    free_bits: tuple[Annotated[float, Field(ge=0)], ...] = Field(default=(0.1,), min_length=1)
    kl_warmup: float = Field(default=0.1, ge=0, le=1)
    class_dropout: float = Field(default=0.1, ge=0, lt=1)
    bound_samples: int = Field(default=16, ge=1)
    sampling: VaeSampling = VaeSampling()

    def build(self, spec: DataSpec) -> LadderVAE:
        output = self.likelihood.build(spec)
        return LadderVAE(
            spec,
            self.network.build(spec.shape, output.outputs, spec.conditions),
            output,
            beta=self.beta,
            free_bits=self.free_bits,
            kl_warmup=self.kl_warmup,
            class_dropout=self.class_dropout,
            bound_samples=self.bound_samples,
            sampling=self.sampling,
        )
