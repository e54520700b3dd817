"""Variational autoencoder: an encoder q(z | x), a prior p(z), a decoder p(x | z), trained on a lower bound of log p(x).

What it is: one vector of latent variables, a network on either side, any of the priors and decoder distributions
beside it, all given the labels; the bound with KL warm-up and free bits, and its importance-weighted tightening.
What it is not: a network; nor an autoencoder for another model's first stage (those weigh the terms differently).

Sources: Kingma & Welling 2014, arXiv:1312.6114; Burda et al. 2016 (importance-weighted bound), arXiv:1509.00519; Kingma
et al. 2016, appendix C (free bits), arXiv:1606.04934; Sonderby et al. 2016 (KL warm-up), arXiv:1602.02282.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from quintet.core.batch import Batch
from quintet.core.config import STRICT, Config
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
from quintet.core.recipe import ModelConfig, NetworkConfig
from quintet.core.rng import Rng
from quintet.core.spec import Cond, DataSpec
from quintet.families.vae.bounds import Inference, importance, ways
from quintet.families.vae.likelihoods import Likelihood, LikelihoodConfig
from quintet.families.vae.priors import Prior, PriorConfig, normal_log_prob

ACTIVE = 0.01
"""A latent unit is active if the variance of its posterior mean over examples exceeds this (Burda et al. 2016, 5.2)."""

COLLAPSED = 0.01
"""Nats. The posterior has collapsed if no latent dimension holds more than this about an example."""


def collapse(held: Tensor) -> list[Finding]:
    """The finding, if there is one.

    Args:
        held: (d,) nats which each latent dimension holds about an example, on average.
    """
    most = float(held.max())
    return [Finding("posterior_collapse", most, COLLAPSED, severe=True)] if most < COLLAPSED else []


def halves(posterior: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log standard deviation, each (B, d), from a network's (B, 2, ...)."""
    mean, log_std = full(posterior).flatten(2).unbind(1)
    return mean, log_std.clamp(-7.0, 3.0)


def walk(place: Callable[[float], Tensor], frames: int) -> Trace:
    """A trace of what is seen at `frames` places from 0 to 1.

    Raises: ValueError for fewer than two frames.
    """
    if frames < 2:
        raise ValueError(f"a trace needs at least two frames, got {frames}")
    at = torch.linspace(0, 1, frames).tolist()
    return Trace("walk", torch.stack([place(a) for a in at]), tuple(f"{a:.2f}" for a in at))


@dataclass(frozen=True, kw_only=True, config=STRICT)
class VaeSampling(Config):
    """How a latent becomes a datum.

    Attributes:
        noise: temperature of the draw from p(x | z). At 1 every dimension gets noise of its own; at 0 nothing is drawn
            and the likeliest component's centre is shown, so that all variety comes from z.
        temperature: factor on the spread of z about its prior component's mean; below 1 safer and less various.
    """

    kind = "vae-sampling"
    noise: float = Field(default=1.0, ge=0, le=1)
    temperature: float = Field(default=1.0, ge=0, le=2)


class VAE(Model[VaeSampling], HasLogProb, HasLatent, HasTrace, HasWatch):
    """See the module.

    Args:
        spec: continuous data, or levels.
        encoder: (x (B, *E) real, cond) -> (B, 2 width), mean and log standard deviation of q.
        decoder: (z (B, width), cond) -> (B, *likelihood.outputs).
        prior, likelihood, sampling: see their classes.
        beta: factor on the KL term; 1 is the bound itself.
        free_bits: nats of KL of an example that cost nothing; each for itself, so that rows do not mix.
        kl_warmup: share of training over which the KL term's factor rises from 0 to `beta`.
        class_dropout: share of training examples whose conditions are hidden, which trains the unconditional model.
        bound_samples: K of the importance-weighted bound that `log_prob` gives.
    """

    likelihood = "bound"

    def __init__(
        self,
        spec: DataSpec,
        encoder: nn.Module,
        decoder: nn.Module,
        prior: Prior,
        output: Likelihood,
        *,
        beta: float,
        free_bits: float,
        kl_warmup: float,
        class_dropout: float,
        bound_samples: int,
        sampling: VaeSampling,
    ) -> None:
        super().__init__(spec, sampling)
        self.encoder, self.decoder, self.prior, self.output = encoder, decoder, prior, output
        self.latent = DataSpec("vector", (prior.width,), None, spec.conditions)
        self.beta, self.free_bits, self.kl_warmup = beta, free_bits, kl_warmup
        self.class_dropout, self.bound_samples = class_dropout, bound_samples

    # training

    def players(self) -> Sequence[Player]:
        return (Player("model", self, self.loss),)

    def loss(self, turn: Turn) -> Loss:
        """Reconstruction + factor * max(KL, free bits), divided by the dimensions so that its size does not grow."""
        x, cond = turn.batch.x, hide(turn.batch.cond, self.class_dropout, turn.rng("hide"))
        mean, log_std = self.posterior(x, cond)
        z = mean + log_std.exp() * turn.rng("z").normal(tuple(mean.shape)).to(mean)
        reconstruction = -self.output.log_prob(x, full(self.decoder(z, cond))).mean()
        kl = self.prior.kl(mean, log_std, z, cond)  # (B,)
        warm = min(1.0, turn.progress / self.kl_warmup) if self.kl_warmup else 1.0
        total = reconstruction + warm * self.beta * kl.clamp(min=self.free_bits).mean()
        with torch.no_grad():
            parts = {
                "reconstruction_nats": reconstruction.detach(),
                "kl_nats": kl.detach().mean(),
                "active_units": (mean.var(0, correction=0) > ACTIVE).sum().to(mean.dtype),
            }
            scale = self.output.scale()
            if scale is not None:
                parts["output_scale"] = scale
        return Loss(total / self.spec.dims, parts)

    def posterior(self, x: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of q(z | x), both (B, width)."""
        return halves(self.encoder(self.output.centred(x), cond).unflatten(1, (2, -1)))

    def watch(self, train: Batch, held_out: Batch, *, rng: Rng) -> Sequence[Finding]:
        """Posterior collapse, by the divergence of q(z | x) from the Gaussian with the moments of q over all x.

        It is below the divergence from any prior with independent Gaussian dimensions, and needs none.
        """
        if len(held_out) < 2:
            return ()  # one example has no moments
        mean, log_std = self.posterior(held_out.x, held_out.cond)
        together = mean.var(0, correction=0) + (2 * log_std).exp().mean(0)
        return collapse((together.log() / 2 - log_std).mean(0))

    # sampling

    def sample(self, n: int, cond: Cond | None = None, *, rng: Rng, sampling: VaeSampling | None = None) -> Tensor:
        sampling = self.sampling if sampling is None else sampling
        cond = {} if cond is None else cond
        z = self._like(self.prior.sample(n, cond, rng("prior"), sampling.temperature))
        return self.output.sample(self.decoder(z, cond), rng("output"), sampling.noise)

    def sequential_steps(self, sampling: VaeSampling | None = None) -> int:
        return 1

    def encode(self, x: Tensor, cond: Cond | None = None, *, rng: Rng | None = None) -> Tensor:
        mean, log_std = self.posterior(x, {} if cond is None else cond)
        if rng is None:
            return mean
        return mean + log_std.exp() * rng("z").normal(tuple(mean.shape)).to(mean)

    def decode(self, z: Tensor, cond: Cond | None = None) -> Tensor:
        """The mean of p(x | z), rounded to a level where data have levels."""
        return self.output.round(self.output.mean(self.decoder(z, {} if cond is None else cond)))

    def trace(self, n: int, frames: int, cond: Cond | None = None, *, rng: Rng) -> Trace:
        """A straight walk in the latent space from one draw of the prior to another."""
        given = {} if cond is None else cond
        start, end = (self._like(self.prior.sample(n, given, rng(side))) for side in ("start", "end"))
        return walk(lambda at: self.decode(start + at * (end - start), given), frames)

    def _like(self, z: Tensor) -> Tensor:
        return z.to(next(self.decoder.parameters()))

    # likelihood

    def elbo(self, x: Tensor, cond: Cond | None = None, *, rng: Rng) -> Tensor:
        """(B,) nats: log p(x | z) - KL(q(z | x) || p(z)) at one z ~ q(z | x)."""
        cond = {} if cond is None else cond
        mean, log_std = self.posterior(x, cond)
        z = mean + log_std.exp() * rng("z").normal(tuple(mean.shape)).to(mean)
        return self.output.log_prob(x, self.decoder(z, cond)) - self.prior.kl(mean, log_std, z, cond)

    def log_prob(self, x: Tensor, cond: Cond | None = None, *, rng: Rng) -> Tensor:
        """log of the mean of `bound_samples` importance weights p(x, z) / q(z | x), z ~ q(z | x).

        Source: Burda et al. 2016, eq. 8.
        """
        return self.importance_bound(x, cond, self.bound_samples, rng=rng)

    def importance_bound(self, x: Tensor, cond: Cond | None, samples: int, *, rng: Rng) -> Tensor:
        """(B,) nats, the bound with any number of samples; 1 is an estimate of the plain bound."""
        return importance(self.inference(x, {} if cond is None else cond), samples, rng)

    def inference(self, x: Tensor, cond: Cond) -> Inference:
        """The posterior of z beside the joint density, for the bounds."""
        mean, log_std = self.posterior(x, cond)

        def terms(z: Tensor) -> tuple[Tensor, Tensor]:
            joint = self.output.log_prob(x, full(self.decoder(z, cond))) + self.prior.log_prob(z, cond)
            return normal_log_prob(z, mean, log_std), joint

        return Inference(lambda noise: mean + log_std.exp() * noise, terms, log_std.exp())

    def ways(self, effort: float = 1.0) -> Mapping[str, Way]:
        return ways(self.inference, effort)

    @property
    def log_prob_protocol(self) -> str:
        return f"importance-weighted bound, {self.bound_samples} samples"

    # detectors

    def kl_per_dimension(self, x: Tensor, cond: Cond | None = None) -> Tensor:
        """(width,) nats of KL that each latent number carries by itself, on average over x; 0 is collapse."""
        cond = {} if cond is None else cond
        return self.prior.marginal_kl(*self.posterior(x, cond), cond).mean(0)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class VAEConfig(ModelConfig):
    """See VAE.

    Attributes:
        width: of the latent vector.
    """

    kind = "vae"
    encoder: NetworkConfig
    decoder: NetworkConfig
    width: int = Field(default=16, ge=1)
    prior: PriorConfig
    likelihood: LikelihoodConfig
    beta: float = Field(default=1.0, ge=0)
    free_bits: float = Field(default=0.1, ge=0)
    kl_warmup: float = Field(default=0.2, ge=0, le=1)
    class_dropout: float = Field(default=0.1, ge=0, lt=1)
    bound_samples: int = Field(default=64, ge=1)
    sampling: VaeSampling = VaeSampling()

    def build(self, spec: DataSpec) -> VAE:
        output = self.likelihood.build(spec)
        return VAE(
            spec,
            self.encoder.build(spec.shape, (2 * self.width,), spec.conditions),
            self.decoder.build((self.width,), output.outputs, spec.conditions),
            self.prior.build(self.width, spec.conditions),
            output,
            beta=self.beta,
            free_bits=self.free_bits,
            kl_warmup=self.kl_warmup,
            class_dropout=self.class_dropout,
            bound_samples=self.bound_samples,
            sampling=self.sampling,
        )
