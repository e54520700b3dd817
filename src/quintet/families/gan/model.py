"""Generative adversarial networks: a generator draws examples in one step, a discriminator judges them.

What it is: two players over any two networks, with any adversarial loss, zero-centred gradient penalties on real and
fake examples, and labels by embedding in the generator, by projection in the discriminator and, where wanted, by a
classifier on the discriminator's features.
What it is not: a likelihood or an encoder (a GAN has neither), or a network.

Detectors, asked at every preview (`watch`):
    mode_collapse       mean distance between generated examples of one class, over the same for real ones, is small.
    duplicates          many generated examples have a near twin (birthday-paradox test).
    discriminator_overfit
                        held-out examples score nearer to generated ones than to training examples.
    discriminator_won   held-out examples score higher than generated ones in nearly all pairs.
Among the parts of the losses, beside diversity_ratio:
    win_share           share of real-fake pairs in which the real example gets the higher logit; 0.5 when they
                        cannot be told apart.
    sign_real           E sign(D(real)), the over-fitting measure r_t of Karras et al. 2020 (for losses with a
                        fixed zero; the relativistic loss leaves the zero free).
    r1_sq_norm, r2_sq_norm
                        mean squared gradient norm per example; falls to 0 where the discriminator gives no signal.

Sources: Huang et al. 2024, arXiv:2501.05441 (loss, penalties, schedules); Miyato & Koyama 2018, arXiv:1802.05637
(projection); Odena et al. 2017, arXiv:1610.09585 (auxiliary classifier); Zhao et al. 2020, arXiv:2006.10738 and
Karras et al. 2020, arXiv:2006.06676 (augmentation of both real and fake examples); Brock et al. 2019, arXiv:1809.11096
(truncation, here by scaling z); Arora et al. 2018, arXiv:1706.08224 (birthday test).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass as plain_dataclass

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from quintet.core.batch import Batch, Examples
from quintet.core.config import STRICT, Config
from quintet.core.model import Finding, HasTrace, HasWatch, Loss, Model, Player, Trace, Turn, hide
from quintet.core.numerics import full, full_precision, higher_order
from quintet.core.recipe import ModelConfig, NetworkConfig
from quintet.core.rng import Rng
from quintet.core.spec import UNCONDITIONAL, Cond, DataSpec
from quintet.families.gan.augment import Kind, augmented
from quintet.families.gan.losses import AdversarialLoss, Relativistic, cosine, gradient_penalties

SAMPLE_CHUNK = 1024
NOMINAL_BATCH = 64  # rows a step, for counting epochs: a process knows its own rows only
LEAST_DIVERSITY, MOST_DUPLICATES, MOST_OVERFIT, MOST_WINS = 0.2, 0.5, 0.5, 0.999


@dataclass(frozen=True, kw_only=True, config=STRICT)
class GANSampling(Config):
    """How the latent is drawn.

    Attributes:
        truncation: standard deviation of z; below 1 trades diversity for typicality.
    """

    kind = "gan-sampling"
    truncation: float = Field(default=1.0, gt=0, le=10)


@plain_dataclass(frozen=True)
class Fakes:
    """A step's generated batch, made once for both players.

    Attributes:
        x: (B, *E), with its graph into the generator.
        cond: the conditions both networks see, some rows hidden by label dropout.
    """

    x: Tensor
    cond: Cond


class Discriminator(nn.Module):
    """A network to a feature vector, and a linear logit whose weight is shifted by the label (projection).

    logit(x, c) = <w + sum_k V_k[c_k], leaky(f(x))> / sqrt(width): arXiv:1802.05637, eq. 3, with f's output passed
    through an activation. Without one the network's last bias would cancel between reals and fakes of one label.

    Args:
        body: (x (B, *E), {}) -> (B, width).
        width: number of features.
        conditions: name -> number of classes.
        classify: whether linear layers tell the classes from the same features (arXiv:1610.09585).
    """

    def __init__(self, body: nn.Module, width: int, conditions: Mapping[str, int], classify: bool = False) -> None:
        super().__init__()
        self.body, self.width = body, width
        self.weight = nn.Parameter(torch.randn(width))
        self.labels = nn.ModuleDict({name: nn.Embedding(n + 1, width) for name, n in sorted(conditions.items())})
        self.classes = nn.ModuleDict({name: nn.Linear(width, n) for name, n in sorted(conditions.items()) if classify})

    def forward(self, x: Tensor, cond: Cond) -> tuple[Tensor, dict[str, Tensor]]:
        """Of (B, *E) examples: (B,) logits, given the labels; and condition -> (B, classes) logits, not given them."""
        features = F.leaky_relu(full(self.body(x, {})), 0.2)  # (B, width)
        direction = self.weight  # (width,) or (B, width)
        for name, table in self.labels.items():
            assert isinstance(table, nn.Embedding)
            hidden = table.num_embeddings - 1
            label = cond.get(name)
            if label is None:
                label = torch.full((len(x),), hidden, device=x.device)
            direction = direction + table(torch.where(label == UNCONDITIONAL, hidden, label))
        logits: Tensor = (features * direction).sum(1) * self.width**-0.5
        return logits, {name: head(features) for name, head in self.classes.items()}


class GAN(Model[GANSampling], HasTrace, HasWatch):
    """See the module.

    Args:
        spec: of continuous data with about unit scale.
        generator: (z (B, latent), cond) -> (B, *spec.shape).
        discriminator: see Discriminator.
        loss: of both players.
        latent: width of z.
        gamma, gamma_end: weight of the gradient penalties (gamma / 2 each) at the start and at the end of training.
        classifier: weight of the discriminator's classification of real examples in its loss, in nats; the generator's
            loss has half of it for examples that are taken for another class. Labels are obeyed far sooner, at some
            expense of variety within a class; 0 for none.
        class_dropout: share of rows, real and fake alike, whose conditions are hidden, so that unconditional
            sampling is learned.
        augment: largest probability of each kind of change of the discriminator's input images.
        augment_kinds: which kinds, see augment.py.
        augment_epochs: epochs after which the probability is reached, from 0; 0 for a constant one. A small set is seen
            often and needs it, in a short run on a large one it would only slow the learning.
        coins: number of fair signs appended to z, with which the generator can tell separate modes apart without a
            bridge of examples between them (a continuous z has a connected image).
        bound: largest absolute output, by a tanh; None for no bound. Data with much mass at the ends of their range
            (ink on white paper) are met far sooner with one.
        noise: standard deviation of normal noise on all the discriminator's inputs, real and fake.
        penalty_every: R1 and R2 are estimated on every k-th pair, with the same expectation at less cost.
        critic_steps: turns of the discriminator for each turn of the generator.
        sampling: see GANSampling.
    """

    def __init__(
        self,
        spec: DataSpec,
        generator: nn.Module,
        discriminator: nn.Module,
        loss: AdversarialLoss,
        *,
        latent: int,
        gamma: float,
        gamma_end: float,
        class_dropout: float,
        augment: float,
        noise: float,
        coins: int,
        bound: float | None,
        sampling: GANSampling,
        classifier: float = 0.0,
        augment_kinds: Sequence[Kind] = ("shift",),
        augment_epochs: float = 0.0,
        penalty_every: int = 1,
        critic_steps: int = 1,
    ) -> None:
        super().__init__(spec, sampling)
        if spec.levels is not None:
            raise ValueError("a GAN needs continuous data, got discrete levels; choose a codec with continuous values")
        self.generator, self.discriminator, self.loss = generator, discriminator, loss
        self.latent, self.coins, self.bound = latent, coins, bound
        self.gamma, self.gamma_end = gamma, gamma_end
        self.classifier, self.class_dropout, self.noise = classifier, class_dropout, noise
        self.penalty_every, self.critic_steps = penalty_every, critic_steps
        self.augment, self.augment_kinds, self.augment_epochs = augment, tuple(augment_kinds), augment_epochs
        self.examples: int | None = None

    def players(self) -> Sequence[Player]:
        return (
            Player("discriminator", self.discriminator, self.discriminator_loss, ema=False),
            Player("generator", self.generator, self.generator_loss, every=self.critic_steps),
        )

    def prepare(self, examples: Examples) -> None:
        """How many there are: it decides when each has been seen often enough to be learned by heart."""
        self.examples = examples.examples

    def augmentation(self, step: int) -> float:
        """Probability of each kind of change: it grows as the examples are seen again and again."""
        if not self.augment_epochs:
            return self.augment
        epochs = step * NOMINAL_BATCH / self.examples if self.examples else 0.0
        return self.augment * min(1.0, epochs / self.augment_epochs)

    def shared(self, turn: Turn) -> Fakes:
        """Fakes for the batch's labels, with a graph where the generator has its turn."""
        real = turn.batch.x
        z = self._latent(len(real), turn.rng("latent")).to(real.dtype)
        cond = hide(turn.batch.cond, self.class_dropout, turn.rng("hide"))
        with torch.set_grad_enabled(turn.step % self.critic_steps == 0):
            return Fakes(self._draw(z, cond), cond)

    def discriminator_loss(self, turn: Turn) -> Loss:
        """Adversarial loss, plus gamma / 2 (R1 + R2) estimated on every k-th pair, plus the loss's own penalty.

        A sum of logits has one derivative by all inputs, so the penalties cost one double backward of their rows.
        """
        fakes, every = turn.shared, self.penalty_every
        seen = turn.rng("augment", "discriminator")  # a stream for each half: its rows are then the batch's rows
        real = self._augment(turn.batch.x, turn.step, seen("real"))
        fake = self._augment(fakes.x.detach(), turn.step, seen("fake"))
        gamma, n = cosine(self.gamma, self.gamma_end, turn.progress), len(real)
        chosen = range(-turn.rng.first % every, n, every) if gamma else range(0)  # by number in the whole batch
        logits: list[tuple[Tensor, ...]] = []
        wrong: list[Tensor] = []
        extra: list[Tensor] = []
        parts: dict[str, Tensor] = {}
        if chosen:
            some = torch.tensor(chosen, device=real.device)
            with full_precision(), higher_order():  # penalties lose their sense in half precision
                x = full(torch.cat([real[some], fake[some]])).detach().requires_grad_()
                found, named = self.discriminator(x, _twice(fakes.cond, some))
                penalties = gradient_penalties(found, x, len(some))
            logits.append(found.chunk(2))
            wrong.append(confusion(named, turn.batch.cond, some))
            extra.append(gamma / 2 * (penalties.r1 + penalties.r2) * (len(some) * every / n))  # a mean over all rows
            parts |= {"r1_sq_norm": penalties.r1, "r2_sq_norm": penalties.r2}
        if len(chosen) < n:
            rest = torch.tensor([i for i in range(n) if i not in chosen], device=real.device)
            found, named = self.discriminator(torch.cat([real[rest], fake[rest]]), _twice(fakes.cond, rest))
            logits.append(found.chunk(2))
            wrong.append(confusion(named, turn.batch.cond, rest))
        real_logit, fake_logit = (torch.cat(side) for side in zip(*logits, strict=True))
        adversarial = self.loss.discriminator(real_logit, fake_logit)
        if self.classifier:
            parts["classes_nats"] = torch.cat(wrong).mean()
            extra.append(self.classifier * parts["classes_nats"])
        with full_precision(), higher_order():
            own = self.loss.penalty(
                lambda x: self.discriminator(x, fakes.cond)[0], full(real), full(fake), turn.rng("interpolate")
            )
        if own is not None:
            extra.append(own)
            parts["own_penalty"] = own
        parts |= {
            "adversarial_nats": adversarial,
            "real_logit": real_logit.mean(),
            "fake_logit": fake_logit.mean(),
            "sign_real": real_logit.sign().mean(),
            "win_share": (real_logit > fake_logit).float().mean(),
        }
        return Loss(adversarial + sum(extra), {name: part.detach() for name, part in parts.items()})

    def generator_loss(self, turn: Turn) -> Loss:
        """Adversarial loss; the reals' logits are constants here."""
        real, fakes = turn.batch.x, turn.shared
        real_logit = real.new_zeros(len(real))
        if self.loss.paired:
            with torch.no_grad():
                seen = self._augment(real, turn.step, turn.rng("augment", "real"))
                real_logit, _ = self.discriminator(seen, fakes.cond)
        seen = self._augment(fakes.x, turn.step, turn.rng("augment", "fake"))
        fake_logit, named = self.discriminator(seen, fakes.cond)
        adversarial = total = self.loss.generator(real_logit, fake_logit)
        parts = {"diversity_ratio": diversity_ratio(real, fakes.x.detach(), turn.batch.cond)}
        if self.classifier:
            parts["classes_nats"] = confusion(named, fakes.cond).mean()
            total = adversarial + self.classifier / 2 * parts["classes_nats"]
        parts["adversarial_nats"] = adversarial
        return Loss(total, {name: part.detach() for name, part in parts.items()})

    @torch.no_grad()
    def sample(self, n: int, cond: Cond | None = None, *, rng: Rng, sampling: GANSampling | None = None) -> Tensor:
        sampling = sampling or self.sampling
        return self._generate(self._latent(n, rng("latent"), sampling.truncation), cond or {})

    def sequential_steps(self, sampling: GANSampling | None = None) -> int:
        return 1

    @torch.no_grad()
    def trace(self, n: int, frames: int, cond: Cond | None = None, *, rng: Rng) -> Trace:
        """n walks along great circles between two latents, which keeps |z| typical for a Gaussian; coins stay."""
        if frames < 1:
            raise ValueError(f"frames must be at least 1, got {frames}")
        start, end = (self._latent(n, rng("latent", name)) for name in ("start", "end"))
        (a, coins), b = start.split([self.latent, self.coins], 1), end[:, : self.latent]
        at = torch.linspace(0, 1, frames).tolist()
        walk = (torch.cat([slerp(a, b, t), coins], 1) for t in at)
        pictures = torch.stack([self._generate(z, cond or {}) for z in walk])
        return Trace("interpolate", pictures, tuple(f"{t:.0%}" for t in at))

    def watch(self, train: Batch, held_out: Batch, *, rng: Rng) -> Sequence[Finding]:
        """Mode collapse, a discriminator that knows the training data by heart, and one that wins every comparison."""
        fake = self._generate(self._latent(len(train), rng("latent")), train.cond).to(train.x.dtype)
        logits = [
            self.discriminator(x, b.cond)[0] for x, b in ((train.x, train), (held_out.x, held_out), (fake, train))
        ]
        same = torch.ones(len(held_out), len(train), dtype=torch.bool, device=fake.device)
        for name, label in train.cond.items():
            same &= held_out.cond[name][:, None] == label
        found = (
            Finding("mode_collapse", float(diversity_ratio(train.x, fake, train.cond)), LEAST_DIVERSITY, severe=True),
            Finding("duplicates", float(duplicates(train.x, fake)), MOST_DUPLICATES),
            Finding("discriminator_overfit", float(overfit(*logits)), MOST_OVERFIT),
            Finding("discriminator_won", float(wins(logits[1], logits[2], same)), MOST_WINS),
        )
        return [f for f in found if (f.value < f.limit if f.what == "mode_collapse" else f.value > f.limit)]

    def _latent(self, n: int, rng: Rng, truncation: float = 1.0) -> Tensor:
        z = rng("normal").normal((n, self.latent)) * truncation
        if not self.coins:
            return z
        return torch.cat([z, 2.0 * rng("coins").integers(0, 2, (n, self.coins)) - 1], 1)

    def _draw(self, z: Tensor, cond: Cond) -> Tensor:
        x: Tensor = full(self.generator(z, cond))
        return x if self.bound is None else self.bound * torch.tanh(x)

    def _generate(self, z: Tensor, cond: Cond) -> Tensor:
        parameter = next(self.generator.parameters())
        z = z.to(parameter.device, parameter.dtype)
        cond = {name: label.to(z.device) for name, label in cond.items()}
        parts = [
            self._draw(z[i : i + SAMPLE_CHUNK], {name: c[i : i + SAMPLE_CHUNK] for name, c in cond.items()})
            for i in range(0, len(z), SAMPLE_CHUNK)
        ]
        return torch.cat(parts) if parts else z.new_empty((0, *self.spec.shape))

    def _augment(self, x: Tensor, step: int, rng: Rng) -> Tensor:
        probability = self.augmentation(step)
        if probability:
            x = augmented(x, probability, self.augment_kinds, rng)
        if self.noise:
            x = x + self.noise * rng("noise").normal(x.shape).to(x.dtype)
        return x


@dataclass(frozen=True, kw_only=True, config=STRICT)
class GANConfig(ModelConfig):
    """See GAN.

    Attributes:
        features: width of the discriminator's output before the logit.
    """

    kind = "gan"
    generator: NetworkConfig
    discriminator: NetworkConfig
    loss: AdversarialLoss = Relativistic()
    latent: int = Field(default=64, ge=1)
    coins: int = Field(default=0, ge=0)
    bound: float | None = Field(default=None, gt=0)
    features: int = Field(default=128, ge=1)
    gamma: float = Field(default=0.1, ge=0)
    gamma_end: float = Field(default=0.01, ge=0)
    classifier: float = Field(default=0.0, ge=0)
    class_dropout: float = Field(default=0.1, ge=0, lt=1)
    augment: float = Field(default=0.0, ge=0, le=1)
    augment_kinds: tuple[Kind, ...] = ("shift",)
    augment_epochs: float = Field(default=0.0, ge=0)
    penalty_every: int = Field(default=1, ge=1)
    critic_steps: int = Field(default=1, ge=1)
    noise: float = Field(default=0.0, ge=0)
    sampling: GANSampling = GANSampling()

    def build(self, spec: DataSpec) -> GAN:
        generator = self.generator.build((self.latent + self.coins,), spec.shape, spec.conditions)
        body = self.discriminator.build(spec.shape, (self.features,), {})
        return GAN(
            spec,
            generator,
            Discriminator(body, self.features, spec.conditions, classify=self.classifier > 0),
            self.loss,
            latent=self.latent,
            gamma=self.gamma,
            gamma_end=self.gamma_end,
            classifier=self.classifier if spec.conditions else 0.0,
            class_dropout=self.class_dropout if spec.conditions else 0.0,
            augment=self.augment if spec.kind == "image" else 0.0,
            noise=self.noise,
            coins=self.coins,
            bound=self.bound,
            sampling=self.sampling,
            penalty_every=self.penalty_every,
            critic_steps=self.critic_steps,
            augment_kinds=self.augment_kinds,
            augment_epochs=self.augment_epochs,
        )


@torch.no_grad()
def diversity_ratio(real: Tensor, fake: Tensor, cond: Cond) -> Tensor:
    """Mean distance of generated neighbours over that of real ones, scalar.

    Rows are put in the order of their first label and each is compared with the next one of its class, so that a
    generator with one picture a class is caught too, at a cost linear in the batch.

    Args:
        real, fake: (B, *E), row i of both with label i.
    Returns: 1 where no two rows have the same label.
    """
    if len(real) < 2:
        return torch.ones((), device=real.device)
    same = torch.ones(len(real) - 1, device=real.device)
    if cond:
        label, order = next(iter(cond.values())).sort(stable=True)
        real, fake, same = real[order], fake[order], (label[1:] == label[:-1]).float()
    apart = [(x[1:] - x[:-1]).flatten(1).norm(dim=1) for x in (real, fake)]
    ratio: Tensor = (apart[1] * same).sum() / (apart[0] * same).sum().clamp_min(1e-12)
    return torch.where(same.any(), ratio, 1.0)


@torch.no_grad()
def duplicates(real: Tensor, fake: Tensor) -> Tensor:
    """Share of generated examples with a near twin among the generated ones, scalar in [0, 1].

    Near is closer than half the median distance between a real example and its nearest real neighbour, so
    that the birthday-paradox test counts pairs that look the same (Arora et al. 2018, arXiv:1706.08224).

    Args:
        real, fake: (B, *E).
    """

    def nearest(x: Tensor) -> Tensor:
        apart = torch.cdist(x.flatten(1).double(), x.flatten(1).double(), compute_mode="donot_use_mm_for_euclid_dist")
        return apart.fill_diagonal_(torch.inf).amin(1)

    if len(real) < 2:
        return real.new_zeros(())
    return (nearest(fake) < nearest(real).median() / 2).double().mean()


def overfit(train: Tensor, held_out: Tensor, fake: Tensor) -> Tensor:
    """How far held-out examples score below training examples, as a share of the way to generated ones, scalar.

    rho = (D(train) - D(held out)) / (D(train) - D(fake)) in means: 0 for a fair discriminator, 1 for one that takes
    held-out examples for generated ones. 0 where the numerator is within three standard errors of 0.

    Args:
        train, held_out, fake: logits, (B,) each; 0 too where one example leaves the error unknown.
    """
    if min(len(train), len(held_out)) < 2:
        return train.new_zeros(())
    gap, whole = train.mean() - held_out.mean(), train.mean() - fake.mean()
    error = (train.var() / len(train) + held_out.var() / len(held_out)).sqrt()
    return torch.where((gap > 3 * error) & (whole > 0), gap / whole.clamp_min(1e-12), 0.0)


def wins(real: Tensor, fake: Tensor, same: Tensor) -> Tensor:
    """Share of pairs in which the real example has the higher logit (the area under the ROC curve), scalar.

    Args:
        real: (A,) logits. fake: (B,) logits.
        same: (A, B) bool, which pairs count; those of one label, since a label's logits have a zero of their own.
    """
    return ((real[:, None] > fake) & same).sum() / same.sum().clamp_min(1)


def slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Spherical interpolation of rows (B, D), with lengths interpolated linearly; linear where rows are (anti)parallel.

    Source: Shoemake 1985, "Animating rotation with quaternion curves".
    """
    length_a, length_b = a.norm(dim=1, keepdim=True), b.norm(dim=1, keepdim=True)
    u, v = a / length_a.clamp_min(1e-12), b / length_b.clamp_min(1e-12)
    angle = (u * v).sum(1, keepdim=True).clamp(-1, 1).arccos()
    sine = angle.sin()
    flat = sine < 1e-4
    safe = torch.where(flat, 1.0, sine)
    direction = (((1 - t) * angle).sin() * u + (t * angle).sin() * v) / safe
    return torch.where(flat, (1 - t) * a + t * b, direction * ((1 - t) * length_a + t * length_b))


def confusion(classes: Mapping[str, Tensor], cond: Cond, rows: Tensor | None = None) -> Tensor:
    """Cross-entropy of labels, summed over conditions, (B,) nats; 0 where a label is hidden.

    Args:
        classes: condition -> (A, number of classes) logits, of which the first B rows count.
        cond: condition -> labels.
        rows: (B,) of the labels; None for all.
    """
    found = torch.zeros(())
    for name, logits in classes.items():
        label = cond[name] if rows is None else cond[name][rows]
        first = full(logits[: len(label)])
        found = found + F.cross_entropy(first, label, reduction="none", ignore_index=UNCONDITIONAL)
    return found


def _twice(cond: Cond, rows: Tensor) -> Cond:
    return {name: torch.cat([label[rows], label[rows]]) for name, label in cond.items()}
