"""The conformance suite: named checks that every family passes, for ours and for anybody's own.

    from quintet.testing import check_model

    check_model(lambda: MyModel(spec))                      # a function that builds an initialised model
    check_model(MyModelConfig(...), spec)                   # a config, and what the model sees
    check_model(stage, raw_spec)                            # a recipe's stage, and what the raw data look like

What it is: the contract of `core.model` as executable statements, on a few small batches, seconds a model.
What it is not: a test of quality; that a model learns is for tests with a known answer.

Source of the form: scikit-learn's estimator checks. In pytest, `checks` gives each check its own test:

    @pytest.mark.parametrize("check", checks(lambda: MyModel(spec)), ids=str)
    def test_contract(check):
        check()
"""

from __future__ import annotations

import copy
import json
import math
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from quintet.core import checkpoint
from quintet.core.batch import Batch
from quintet.core.budget import Budget
from quintet.core.errors import Interrupted
from quintet.core.ledger import Ledger
from quintet.core.model import (
    CAPABILITIES,
    HasCode,
    HasDenoiser,
    HasFill,
    HasLatent,
    HasLogProb,
    HasTrace,
    Loss,
    Model,
    Player,
    Turn,
)
from quintet.core.plan import Plan
from quintet.core.recipe import ModelConfig, OptimizerConfig, Stage, TrainConfig
from quintet.core.rng import CHUNK, Rng, layer_noise
from quintet.core.spec import UNCONDITIONAL, Cond, DataSpec
from quintet.data.batches import Batches
from quintet.data.dataset import Split
from quintet.train.loop import BatchSource, TrainState, frozen, steps
from quintet.train.run import fit

SEED = 0
BATCH = 16
EXAMPLES = 96
STEPS = 6  # of the short training behind the checks
SPREAD = 0.5  # of the noise that opens what was initialised to zero
FEW = 10
MANY = CHUNK + 6  # more than one chunk of random rows

Source = Callable[[], Model[Any]] | ModelConfig | Stage


class RandomBatches:
    """Random examples that look like a spec, each class with its own mean, as a function of the step.

    Args:
        spec: of what the model sees.
        batch: rows a step.
        seed: of the examples.
        first: global number of the first row.
    """

    def __init__(self, spec: DataSpec, batch: int = BATCH, seed: int = SEED, first: int = 0) -> None:
        self.spec, self.batch, self.seed, self.first = spec, batch, seed, first

    def __getitem__(self, step: int) -> Batch:
        rng = Rng(self.seed, "examples", step, first=self.first)
        x, cond = examples(self.spec, self.batch, rng)
        return Batch(x, torch.arange(self.first, self.first + self.batch), cond)


def examples(spec: DataSpec, n: int, rng: Rng) -> tuple[Tensor, dict[str, Tensor]]:
    """n random examples (n, *spec.shape) and their conditions; float32, or int64 levels where the spec has levels."""
    cond = {name: rng("label", name).integers(0, count, (n,)) for name, count in sorted(spec.conditions.items())}
    x = 0.5 * rng("x").normal((n, *spec.shape))
    for name, label in cond.items():
        means = Rng(SEED, "class means", name).normal((spec.conditions[name], *spec.shape))
        x = x + 0.5 * means[label]
    if spec.levels is None:
        return x, cond
    return ((x.clamp(-1, 1) + 1) / 2 * (spec.levels - 1)).round().long(), cond


class Subject:
    """A model under examination: how to build it, what to train it on, and copies of it that checks share.

    Args:
        build: returns an initialised model; torch's global generator is seeded around it.
        batches: the step's batch in the model's space; by default random ones that look like the model's spec.
        train: optimisers and averages; by default AdamW for every player.
        tolerance: largest error, relative to 1 + |value|, between two ways to one result.
    """

    def __init__(
        self,
        build: Callable[[], Model[Any]],
        batches: BatchSource | None = None,
        train: TrainConfig | None = None,
        tolerance: float = 1e-3,
    ) -> None:
        self.build, self.tolerance = build, tolerance
        self._batches, self._train = batches, train

    def fresh(self, seed: int = SEED) -> Model[Any]:
        """The initialised model, the same at every call with one seed."""
        with layer_noise(Rng(seed, "init")):
            return self.build()

    @cached_property
    def capabilities(self) -> tuple[str, ...]:
        model = self.fresh()
        return tuple(name for name, kind in CAPABILITIES.items() if isinstance(model, kind))

    @cached_property
    def spec(self) -> DataSpec:
        return self.fresh().spec

    @cached_property
    def batches(self) -> BatchSource:
        return RandomBatches(self.spec) if self._batches is None else self._batches

    @cached_property
    def train(self) -> TrainConfig:
        if self._train is not None:
            return self._train
        names = [player.name for player in self.fresh().players()]
        return TrainConfig(batch=BATCH, optimizers={name: OptimizerConfig() for name in names}, warmup=0)

    @cached_property
    def plan(self) -> Plan:
        return _plan(STEPS * _period(self.fresh()))

    @cached_property
    def _trained(self) -> Model[Any]:
        model = self.fresh()
        for _ in steps(model, self.batches, TrainState.start(model, self.train, self.plan), self.train, SEED):
            pass
        return model

    def trained(self) -> Model[Any]:
        """A copy of the model after a few steps, in evaluation mode."""
        return copy.deepcopy(self._trained).eval()

    def opened(self) -> Model[Any]:
        """A trained copy with noise on every parameter, so that nothing stands at the zero it was initialised to."""
        model = self.trained()
        with torch.no_grad():
            for i, p in enumerate(model.parameters()):
                scale = SPREAD * max(p[0].numel() if p.ndim > 1 else 1, 1) ** -0.5  # by the fan in
                p.add_(scale * Rng(SEED, "open", i).normal((p.numel(),)).view_as(p).to(p.dtype))
        return model

    def cond(self, n: int) -> dict[str, Tensor]:
        """n conditions that go through the classes in turn."""
        return {name: torch.arange(n) % count for name, count in self.spec.conditions.items()}

    def data(self, n: int) -> tuple[Tensor, dict[str, Tensor]]:
        """n examples as the model sees them, from as many batches as it takes."""
        found: list[Batch] = []
        while sum(len(batch) for batch in found) < n:
            found.append(self.batches[len(found)])
        cond = {name: torch.cat([b.cond[name] for b in found])[:n] for name in found[0].cond}
        return torch.cat([b.x for b in found])[:n], cond

    def turn(self, step: int) -> Turn:
        """The loop's turn at a step, without `shared`."""
        rng = Rng(SEED, "train", step, first=self.batches.first)
        return Turn(step, self.plan.progress(step), self.batches[step], rng)


def subject(
    what: Source | Subject,
    spec: DataSpec | None = None,
    *,
    batches: BatchSource | None = None,
    train: TrainConfig | None = None,
) -> Subject:
    """Make anything that `check_model` takes ready for the checks.

    Args:
        what: a function that builds an initialised model, a model's config, or a recipe's stage.
        spec: for a config, of what the model sees; for a stage, of the raw data, which are then made up.
        batches: in the model's space, instead of made-up ones.
        train: how to train, instead of AdamW for every player or the stage's own.
    Raises: ValueError if a config or a stage comes without a spec.
    """
    if isinstance(what, Subject):
        return what
    if isinstance(what, (ModelConfig, Stage)) and spec is None:
        raise ValueError(f"a {type(what).__name__} needs the spec of the data it is built for")
    if isinstance(what, ModelConfig):
        assert spec is not None
        config, seen = what, spec
        return Subject(lambda: config.build(seen), batches, train)
    if isinstance(what, Stage):
        assert spec is not None
        stage, split = what, raw_split(spec)
        codec = stage.codec.fit(spec, torch.from_numpy(split.x))
        train = replace(stage.train, batch=BATCH) if train is None else train
        batches = Batches(split, codec, train.batch, SEED, augment=train.augment) if batches is None else batches
        return Subject(lambda: stage.model.build(codec.spec), batches, train)
    return Subject(what, batches, train)


def raw_split(spec: DataSpec, n: int = EXAMPLES) -> Split:
    """n made-up raw examples with their labels, as a data source would hand them over."""
    x, cond = examples(spec, n, Rng(SEED, "raw"))
    kind: type[np.generic] = np.float32
    if spec.levels is not None:
        kind = np.uint8 if spec.levels <= 256 else np.uint16
    return Split(x.numpy().astype(kind), {name: label.numpy() for name, label in cond.items()})


@dataclass(frozen=True)
class Check:
    """One named check, bound to its subject; call it."""

    name: str
    subject: Subject

    def __call__(self) -> None:
        """Raises: AssertionError naming the check, what was expected and what came."""
        try:
            CHECKS[self.name](self.subject)
        except AssertionError as error:
            raise AssertionError(f"{self.name}: {error}") from error
        except Exception as error:
            raise AssertionError(f"{self.name}: expected no error, got {type(error).__name__}: {error}") from error

    def __str__(self) -> str:
        return self.name


def checks(
    what: Source | Subject,
    spec: DataSpec | None = None,
    *,
    only: Collection[str] | None = None,
    skip: Collection[str] = (),
    batches: BatchSource | None = None,
    train: TrainConfig | None = None,
) -> Iterator[Check]:
    """The checks that apply, in order; those of a capability come where the model has it.

    Args: as `check_model`.
    Raises: ValueError for an unknown name in `only` or `skip`.
    """
    unknown = sorted({*(only or ()), *skip} - set(CHECKS))
    if unknown:
        raise ValueError(f"unknown checks {unknown}; known are {list(CHECKS)}")
    under = subject(what, spec, batches=batches, train=train)
    for name in CHECKS:
        wanted = (only is None or name in only) and name not in skip
        if wanted and (name not in CAPABILITIES or name in under.capabilities):
            yield Check(name, under)


def check_model(
    what: Source | Subject,
    spec: DataSpec | None = None,
    *,
    only: Collection[str] | None = None,
    skip: Collection[str] = (),
    batches: BatchSource | None = None,
    train: TrainConfig | None = None,
) -> None:
    """Run the conformance checks on a model.

    Args:
        what: a function that builds an initialised model, a `ModelConfig`, or a recipe's `Stage`.
        spec: for a config, of what the model sees; for a stage, of the raw data.
        only, skip: names of CHECKS to run or to leave out.
        batches: `batches[step]` is a small batch in the model's space; random ones by default.
        train: the players' optimisers; AdamW, or the stage's own, by default.
    Raises: AssertionError with a line for each check that failed; ValueError for an unknown name.
    """
    failures = []
    for check in checks(what, spec, only=only, skip=skip, batches=batches, train=train):
        try:
            check()
        except AssertionError as error:
            failures.append(error)
    if failures:
        raise AssertionError("\n".join(str(error) for error in failures)) from failures[0]


# players and their losses


def _players(subject: Subject) -> None:
    """Players have names of their own, parameters to change, and optimisers."""
    model = subject.fresh()
    players = list(model.players())
    _expect(len(players) > 0, "at least one player", "none")
    names = [player.name for player in players]
    _expect(len(set(names)) == len(names), "players with different names", names)
    inside = {id(p) for p in model.parameters()}
    for player in players:
        own = list(player.module.parameters())
        _expect(any(p.requires_grad for p in own), f"trainable parameters in player {player.name!r}", "none")
        _expect(all(id(p) in inside for p in own), f"player {player.name!r} to train parts of the model", "others")
        _expect(player.every >= 1, f"player {player.name!r} to take a turn every 1 or more steps", player.every)
    _expect(set(subject.train.optimizers) == set(names), f"optimizers for {names}", sorted(subject.train.optimizers))


def _loss(subject: Subject) -> None:
    """Every loss is a finite scalar with a gradient, and its parts are scalars."""
    for model_of in (subject.fresh, subject.trained):
        for player, loss in _losses(subject, model_of().train()):
            total = loss.total
            _expect(total.ndim == 0, f"a scalar loss of {player.name!r}", f"shape {tuple(total.shape)}")
            _expect(bool(total.isfinite()), f"a finite loss of {player.name!r}", total.item())
            _expect(total.requires_grad, f"a loss of {player.name!r} with a gradient", "a constant")
            for name, part in loss.parts.items():
                _expect(part.ndim == 0, f"a scalar part {name!r}", f"shape {tuple(part.shape)}")
                _expect(bool(part.isfinite()), f"a finite part {name!r}", part.item())


def _randomness(subject: Subject) -> None:
    """Losses draw from the turn's rng alone: the same turn gives the same loss.

    In evaluation mode, so that dropout, which the loop seeds, plays no part.
    """
    model = subject.opened()
    before = torch.default_generator.get_state()
    first = {player.name: loss.total.item() for player, loss in _losses(subject, model)}
    same = {player.name: loss.total.item() for player, loss in _losses(subject, model)}
    _expect(first == same, f"the same losses from the same turn, {first}", same)
    touched = not torch.equal(before, torch.default_generator.get_state())
    _expect(not touched, "losses that leave torch's global generator alone", "draws from it")


def _gradients(subject: Subject) -> None:
    """A player's loss reaches all of its trainable parameters and none of the others."""
    reached: dict[str, set[str]] = {player.name: set() for player in subject.fresh().players()}
    for model_of in (subject.fresh, subject.trained, subject.opened):
        model = model_of().train()
        names = {id(p): name for name, p in model.named_parameters()}
        for step in range(3):
            for player, loss in _losses(subject, model, step=subject.plan.steps // 2 + step):
                own = {id(p) for p in player.module.parameters() if p.requires_grad}
                try:
                    with frozen(_opponents(player, model)):
                        loss.total.backward()
                except RuntimeError as error:  # "backward through the graph a second time", as a rule
                    why = (
                        f"the loss of {player.name!r} to go backward, and to leave the graph of shared() to the others"
                    )
                    raise AssertionError(f"expected {why}, got {error}") from error
                got = {id(p) for p in model.parameters() if p.grad is not None and bool((p.grad != 0).any())}
                foreign = sorted(names[i] for i in got - own)
                _expect(not foreign, f"no gradient of {player.name!r} outside its parameters", f"some in {foreign}")
                reached[player.name] |= {names[i] for i in got}
    for player in model.players():
        wanted = {names[id(p)] for p in player.module.parameters() if p.requires_grad}
        missed = sorted(wanted - reached[player.name])
        _expect(not missed, f"a gradient of {player.name!r} in all its parameters", f"none in {missed}")


def _training(subject: Subject) -> None:
    """A few steps change the parameters of every player and leave everything finite."""
    model, start = subject.trained(), dict(subject.fresh().named_parameters())
    names = {id(p): name for name, p in model.named_parameters()}
    for player in model.players():
        own = [(names[id(p)], p) for p in player.module.parameters() if p.requires_grad]
        changed = any(not torch.equal(p, start[name]) for name, p in own)
        _expect(changed, f"parameters of {player.name!r} to change by training", "no change")
    broken = sorted(name for name, value in model.state_dict().items() if not bool(value.isfinite().all()))
    _expect(not broken, "finite values after training", f"others in {broken}")


# sampling


def _sample(subject: Subject) -> None:
    """Samples have the spec's shape, type and range, and are finite."""
    spec, cond = subject.spec, subject.cond(FEW)
    for model_of in (subject.fresh, subject.trained):
        for n, given in ((FEW, cond), (1, None)):
            x = _draw(model_of().eval(), n, given)
            wanted = (n, *spec.shape)
            _expect(tuple(x.shape) == wanted, f"samples of shape {wanted}", tuple(x.shape))
            _in_range(x, spec)


def _same_rng(subject: Subject) -> None:
    """The same rng gives the same samples, bit for bit, another rng others."""
    model, cond = subject.opened(), subject.cond(FEW)
    first = _draw(model, FEW, cond)
    _expect(torch.equal(first, _draw(model, FEW, cond)), "the same samples from the same rng", "others")
    _expect(not torch.equal(first, _draw(model, FEW, cond, seed=2)), "other samples from another rng", "the same")


def _batch(subject: Subject) -> None:
    """Item i depends on its own noise and condition alone, whatever the batch, and `rng.at` continues a batch."""
    model, cond = subject.opened(), subject.cond(MANY)
    whole = _draw(model, MANY, cond)
    few = _draw(model, FEW, {name: label[:FEW] for name, label in cond.items()})
    _close(few, whole[:FEW], subject.tolerance, f"the first {FEW} of {MANY} samples equal to {FEW} alone")
    late = {name: label[-FEW:] for name, label in cond.items()}
    rest = _draw(model, FEW, late, first=MANY - FEW)
    _close(rest, whole[-FEW:], subject.tolerance, f"rng.at({MANY - FEW}) to give items {MANY - FEW} and on")
    apart = whole[0] != whole[math.lcm(*subject.spec.conditions.values())]  # items of one condition
    _expect(bool(apart.any()), "different items of one condition", "equal ones")


def _state(subject: Subject) -> None:
    """Sampling leaves nothing behind: weights, buffers, modes, gradients and torch's global generator."""
    model = subject.trained()
    for training in (False, True):
        model.train(training)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        modes = {name: module.training for name, module in model.named_modules()}
        trainable = {name: p.requires_grad for name, p in model.named_parameters()}
        generator = torch.default_generator.get_state()
        x = model.sample(FEW, subject.cond(FEW), rng=Rng(1, "check"))
        with torch.inference_mode():
            model.sample(FEW, subject.cond(FEW), rng=Rng(1, "check"))
        after = model.state_dict()
        changed = sorted(set(before) ^ set(after)) or sorted(k for k in before if not torch.equal(before[k], after[k]))
        _expect(not changed, "sampling to leave weights and buffers as they were", f"changes in {changed}")
        kept = modes == {name: module.training for name, module in model.named_modules()}
        _expect(kept, f"training={training} to stay so", "a change")
        kept = trainable == {name: p.requires_grad for name, p in model.named_parameters()}
        _expect(kept, "requires_grad to stay as it was", "a change")
        _expect(all(p.grad is None for p in model.parameters()), "no gradients after sampling", "some")
        if not training:  # dropout of a model in training mode draws there
            kept = torch.equal(generator, torch.default_generator.get_state())
            _expect(kept, "sampling to leave torch's global generator alone", "draws from it")
        del x


def _conditions(subject: Subject) -> None:
    """Every label is accepted and matters; absent and -1 are the same; an unknown name is refused."""
    model, spec = subject.opened(), subject.spec
    _raises(ValueError, "an unknown condition", lambda: _draw(model, 2, {"no such name": torch.zeros(2).long()}))
    free = _draw(model, MANY)
    _close(_draw(model, MANY, {}), free, 0, "an empty condition to be unconditional")
    everything = {name: torch.full((MANY,), UNCONDITIONAL) for name in spec.conditions}
    for name, count in spec.conditions.items():
        hidden = torch.full((MANY,), UNCONDITIONAL)
        what = f"-1 in {name!r} to mean the same as its absence"
        _close(_draw(model, MANY, {name: hidden}), free, subject.tolerance, what)
        drawn = [_draw(model, MANY, {name: torch.full((MANY,), label)}) for label in range(count)]
        for label, x in enumerate(drawn):
            _in_range(x, spec)
            other = drawn[label - 1]
            _expect(
                count == 1 or not torch.equal(x, other),
                f"{name}={label} and {name}={(label - 1) % count} to differ",
                "the same",
            )
        mixed = torch.arange(MANY) % (count + 1) - 1
        x = _draw(model, MANY, {**everything, name: mixed})
        wanted = torch.stack([free if label < 0 else drawn[label] for label in range(-1, count)])[
            mixed + 1, torch.arange(MANY)
        ]
        _close(x, wanted, subject.tolerance, f"each row's own {name!r}, -1 among them, to count")


def _sequential_steps(subject: Subject) -> None:
    """The number of evaluations that wait for each other is a positive int, stated for any sampling choices."""
    model = subject.trained()
    for count in (model.sequential_steps(), model.sequential_steps(model.sampling)):
        _expect(type(count) is int and count >= 1, "a positive int", repr(count))
    _expect(model.sequential_steps() == model.sequential_steps(model.sampling), "the model's own choices", "others")


# storage


def _weights(subject: Subject) -> None:
    """Weights saved and loaded into a model initialised otherwise reproduce the samples, bit for bit."""
    model, cond = subject.opened(), subject.cond(FEW)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(Path(folder), 1, {"model": model.state_dict()}, {})
        found = checkpoint.newest(Path(folder))
        assert found is not None
        other = subject.fresh(seed=SEED + 1)
        other.load_state_dict(found.tensors("model"))
    same = torch.equal(_draw(other.eval(), FEW, cond), _draw(model, FEW, cond))
    _expect(same, "the same samples after saving and loading", "others: state outside state_dict()")


def _resume(subject: Subject) -> None:
    """Training interrupted and resumed ends with the same bits as uninterrupted."""
    with tempfile.TemporaryDirectory() as folder:
        whole = _fitted(subject, Path(folder) / "whole", None)
        for stop in (1, subject.plan.steps // 2):
            place = Path(folder) / f"from-{stop}"
            _fitted(subject, place, stop)
            resumed = _fitted(subject, place, None)
            differing = sorted(name for name in whole if whole[name] != resumed.get(name))
            _expect(not differing, f"the same bits after a resume from step {stop}", f"others in {differing}")


# capabilities


def _log_prob(subject: Subject) -> None:
    """Finite nats for each example, whatever the batch, of a declared kind."""
    model = subject.opened()
    assert isinstance(model, HasLogProb)
    kinds = ("exact", "bound", "estimate")
    _expect(model.likelihood in kinds, f"likelihood in {kinds}", repr(model.likelihood))
    protocol = model.log_prob_protocol
    _expect(isinstance(protocol, str) and bool(protocol), "a few words as log_prob_protocol", repr(protocol))
    x, cond = subject.data(2 * FEW)
    rng = Rng(1, "check")
    with torch.no_grad():
        whole = model.log_prob(x, cond, rng=rng)
        again = model.log_prob(x, cond, rng=rng)
        few = model.log_prob(x[:FEW], {k: v[:FEW] for k, v in cond.items()}, rng=rng)
        rest = model.log_prob(x[FEW:], {k: v[FEW:] for k, v in cond.items()}, rng=rng.at(FEW))
        free = model.log_prob(x, rng=rng)
    for value in (whole, free):
        _expect(tuple(value.shape) == (len(x),), f"log_prob of shape {(len(x),)}", tuple(value.shape))
        _expect(value.is_floating_point(), "log_prob as floats", value.dtype)
        _expect(bool(value.isfinite().all()), "finite log_prob of data", value)
    _expect(torch.equal(whole, again), "the same log_prob from the same rng", "another")
    _close(few, whole[:FEW], subject.tolerance, f"log_prob of {FEW} of {2 * FEW} equal to that of {FEW} alone")
    _close(rest, whole[FEW:], subject.tolerance, f"rng.at({FEW}) to continue the noise of log_prob")
    if cond:
        _expect(not torch.equal(whole, free), "conditions to count in log_prob", "the unconditional value")
    full = model.ways()
    part = model.ways(1 / 64)
    _expect(set(full) == set(part), f"the ways {sorted(full)} at any effort", sorted(part))
    for name, way in part.items():
        _expect(name.isidentifier(), "ways with short names", repr(name))
        _expect(way.likelihood in kinds, f"{name}: likelihood in {kinds}", repr(way.likelihood))
        _expect(bool(way.protocol), f"{name}: a few words as protocol", repr(way.protocol))
        with torch.no_grad():
            whole = way.log_prob(x, cond, rng)
            few = way.log_prob(x[:FEW], {k: v[:FEW] for k, v in cond.items()}, rng)
            rest = way.log_prob(x[FEW:], {k: v[FEW:] for k, v in cond.items()}, rng.at(FEW))
        _expect(tuple(whole.shape) == (len(x),), f"{name}: shape {(len(x),)}", tuple(whole.shape))
        _expect(bool(whole.isfinite().all()), f"{name}: finite nats of data", whole)
        _close(torch.cat([few, rest]), whole, 10 * subject.tolerance, f"{name}: nats that do not depend on the batch")


def _latent(subject: Subject) -> None:
    """Codes and decoded data have their shapes; without rng the code is fixed; an exact model gives the data back."""
    model = subject.opened()
    assert isinstance(model, HasLatent)
    x, cond = subject.data(FEW)
    with torch.no_grad():
        z = model.encode(x, cond)
        back = model.decode(z, cond)
        again = model.encode(x, cond)
        noisy = [model.encode(x, cond, rng=Rng(1, "check")) for _ in range(2)]
    wanted = (FEW, *model.latent.shape)
    for code in (z, *noisy):
        _expect(tuple(code.shape) == wanted, f"codes of shape {wanted}", tuple(code.shape))
        _expect(bool(code.isfinite().all()), "finite codes", code)
    _expect(tuple(back.shape) == tuple(x.shape), f"decoded data of shape {tuple(x.shape)}", tuple(back.shape))
    _in_range(back, subject.spec)
    _expect(torch.equal(z, again), "one code without rng", "different ones")
    _expect(torch.equal(*noisy), "the same code from the same rng", "different ones")
    if isinstance(model, HasLogProb) and model.likelihood == "exact":
        _close(back, x, subject.tolerance, "decode(encode(x)) to be x where the likelihood is exact")


def _denoiser(subject: Subject) -> None:
    """Clean data of the right shape for one sigma or one each, the guidance scale with its usual meaning."""
    model = subject.opened()
    assert isinstance(model, HasDenoiser)
    x, cond = subject.data(FEW)
    noisy = x + 0.5 * Rng(1, "check").normal(tuple(x.shape))
    with torch.no_grad():
        clean = model.denoiser(cond)(noisy, torch.tensor(0.5))
        each = model.denoiser(cond)(noisy, torch.full((FEW,), 0.5))
        free = model.denoiser()(noisy, torch.tensor(0.5))
        zero = model.denoiser(cond, guidance=0.0)(noisy, torch.tensor(0.5))
        twice = model.denoiser(cond, guidance=2.0)(noisy, torch.tensor(0.5))
    _expect(tuple(clean.shape) == tuple(x.shape), f"clean data of shape {tuple(x.shape)}", tuple(clean.shape))
    _expect(bool(clean.isfinite().all()), "finite clean data", clean)
    _close(each, clean, subject.tolerance, "a sigma for each item to mean the same as one for all")
    _close(zero, free, subject.tolerance, "guidance 0 to be unconditional")
    _close(twice, 2 * clean - free, 10 * subject.tolerance, "guidance 2 to go twice as far from the unconditional")


def _fill(subject: Subject) -> None:
    """Known values stay, unknown ones are drawn in range, whatever stood in their place, by the rng alone."""
    model, spec = subject.opened(), subject.spec
    assert isinstance(model, HasFill)
    n = 4
    x, cond = subject.data(n)
    known = Rng(1, "mask").uniform((n, *spec.shape)) < 0.5
    other = x.roll(1, 0)
    rng = Rng(1, "check")
    with torch.no_grad():
        filled = model.fill(x, known, cond, rng=rng)
        again = model.fill(torch.where(known, x, other), known, cond, rng=rng)
        whole = model.fill(x, torch.ones_like(known), cond, rng=rng)
        drawn = [model.fill(x, torch.zeros_like(known), cond, rng=Rng(seed, "check")) for seed in (1, 2)]
    _expect(tuple(filled.shape) == tuple(x.shape), f"filled data of shape {tuple(x.shape)}", tuple(filled.shape))
    _expect(torch.equal(filled[known], x[known]), "known values to stay", "others")
    _expect(torch.equal(filled, again), "values that are not known to play no part", "another result")
    _expect(torch.equal(whole, x), "an example whose values are all known to stay", "another")
    _expect(not torch.equal(*drawn), "other values from another rng", "the same")
    for value in (filled, *drawn):
        _in_range(value, spec)


def _code(subject: Subject) -> None:
    """Values in order and back, and predictions of them that are repeated to the bit and add up to log_prob."""
    model = subject.opened()
    assert isinstance(model, HasCode)
    _expect(model.spec.levels is not None, "levels to be coded", model.spec)
    x, cond = subject.data(FEW)
    tokens = model.read(x)
    _expect(tuple(tokens.shape) == (FEW, model.spec.dims), f"{(FEW, model.spec.dims)} values", tuple(tokens.shape))
    _expect(torch.equal(model.place(tokens), x), "place(read(x)) to be x", "another")

    def predictions() -> Tensor:
        with torch.no_grad():
            following = model.following(FEW, cond, 1.0)
            return torch.stack([following(tokens[:, i - 1] if i else None) for i in range(tokens.shape[1])], 1)

    logits = predictions()
    _expect(torch.equal(logits, predictions()), "the same predictions, bit for bit", "others")
    if isinstance(model, HasLogProb):
        with torch.no_grad():
            whole = model.log_prob(x, cond, rng=Rng(1, "check"))
        added = logits.log_softmax(-1).gather(2, tokens[:, :, None])[..., 0].sum(1)
        _close(added, whole, 10 * subject.tolerance, "the predictions to add up to log_prob")


def _trace(subject: Subject) -> None:
    """Frames with the spec's shape, each with a label, finite, by the rng alone."""
    model = subject.trained()
    assert isinstance(model, HasTrace)
    n, frames = 3, 4
    with torch.no_grad():
        trace, again = (model.trace(n, frames, subject.cond(n), rng=Rng(1, "check")) for _ in range(2))
        model.trace(n, frames, rng=Rng(1, "check"))
    wanted = (frames, n, *subject.spec.shape)
    _expect(tuple(trace.frames.shape) == wanted, f"frames of shape {wanted}", tuple(trace.frames.shape))
    _expect(bool(trace.frames.isfinite().all()), "finite frames", trace.frames)
    _expect(len(trace.at) == frames and all(trace.at), f"{frames} labels", trace.at)
    _expect(torch.equal(trace.frames, again.frames), "the same frames from the same rng", "others")
    _expect(not torch.equal(trace.frames[0], trace.frames[-1]), "the last frame to differ from the first", "the same")


CHECKS: Mapping[str, Callable[[Subject], None]] = {
    "players": _players,
    "loss": _loss,
    "randomness": _randomness,
    "gradients": _gradients,
    "training": _training,
    "sample": _sample,
    "same_rng": _same_rng,
    "batch": _batch,
    "state": _state,
    "conditions": _conditions,
    "sequential_steps": _sequential_steps,
    "weights": _weights,
    "resume": _resume,
    "log_prob": _log_prob,
    "latent": _latent,
    "denoiser": _denoiser,
    "fill": _fill,
    "code": _code,
    "trace": _trace,
}
"""Every check by its name, in order; those named as a capability apply to models that have it."""


# what the checks share


def _expect(holds: bool, expected: str, got: object) -> None:
    if not holds:
        raise AssertionError(f"expected {expected}, got {got}")


def _raises(kind: type[Exception], what: str, call: Callable[[], object]) -> None:
    try:
        call()
    except kind:
        return
    raise AssertionError(f"expected {what} to raise {kind.__name__}, got no error")


def _close(got: Tensor, wanted: Tensor, tolerance: float, what: str) -> None:
    """Floats agree within the tolerance; of whole numbers, which a rounding may tip over, nine rows in ten agree."""
    if got.is_floating_point():
        error = float(((got - wanted).abs() / (1 + wanted.abs())).max())
        _expect(error <= tolerance, what, f"a relative difference of {error:.2g} (allowed {tolerance:g})")
    else:
        share = float((got == wanted).flatten(1).all(1).float().mean())
        _expect(share >= (0.9 if tolerance else 1), what, f"{share:.0%} equal rows")


def _in_range(x: Tensor, spec: DataSpec) -> None:
    if spec.levels is None:
        _expect(x.is_floating_point(), "floats", x.dtype)
        _expect(bool(x.isfinite().all()), "finite values", f"{int((~x.isfinite()).sum())} others")
    else:
        _expect(x.dtype == torch.int64, "levels as int64", x.dtype)
        low, high = int(x.min()), int(x.max())
        _expect(low >= 0 and high < spec.levels, f"levels within 0..{spec.levels - 1}", f"{low}..{high}")


def _draw(model: Model[Any], n: int, cond: Cond | None = None, *, seed: int = 1, first: int = 0) -> Tensor:
    with torch.no_grad():
        return model.sample(n, cond, rng=Rng(seed, "check").at(first))


def _losses(subject: Subject, model: Model[Any], step: int = 0) -> Iterator[tuple[Player, Loss]]:
    """Each player's loss at a step as in the loop, `shared` made once; the caller goes backward."""
    noise = nullcontext if not model.training else lambda: layer_noise(Rng(SEED, "layers", step))
    turn = subject.turn(step)
    with noise():
        turn = replace(turn, shared=model.shared(turn))
    for player in model.players():
        model.zero_grad(set_to_none=True)
        with noise(), frozen(_opponents(player, model)):
            loss = player.loss(turn)
        yield player, loss
    model.zero_grad(set_to_none=True)


def _opponents(player: Player, model: Model[Any]) -> Sequence[nn.Parameter]:
    own = {id(p) for p in player.module.parameters()}
    theirs = [p for other in model.players() for p in other.module.parameters()]
    return [p for p in theirs if id(p) not in own and p.requires_grad]


def _period(model: Model[Any]) -> int:
    return math.lcm(*(player.every for player in model.players()))


def _plan(count: int) -> Plan:
    return Plan.start(count, 0.3, flops_per_step=1.0, threads=torch.get_num_threads())


class _Silent:
    """A watcher that keeps nothing, and asks to stop after some steps if it should."""

    def __init__(self, stop_after: int | None) -> None:
        self.stop_after, self.done = stop_after, 0

    def log(self, line: Mapping[str, Any]) -> None:
        json.dumps(line, allow_nan=False)  # what the log file would do

    def plan(self, plan: Plan) -> None:
        return None

    def step(self, step: int, plan: Plan, seconds: float, share: float) -> None:
        self.done = step

    def preview(self, state: TrainState, seconds: float) -> None:
        return None

    def stop(self) -> bool:
        return self.stop_after is not None and self.done >= self.stop_after


def _fitted(subject: Subject, folder: Path, stop_after: int | None) -> dict[str, str]:
    """Train in a folder, on from what is there, and return the SHA-256 of the last checkpoint's tensor files."""
    budget = Budget("steps", subject.plan.steps)
    try:
        fit(
            subject.fresh(), subject.batches, subject.train, budget,
            seed=SEED, folder=folder, ledger=Ledger(), watcher=_Silent(stop_after), plan=subject.plan,
            checkpoint_steps=subject.plan.steps,
        )  # fmt: skip
    except Interrupted:
        assert stop_after is not None
    found = checkpoint.newest(folder / "checkpoints")
    assert found is not None
    files = json.loads((found.path / checkpoint.MANIFEST).read_text(encoding="utf-8"))["files"]
    return {name: entry["sha256"] for name, entry in files.items() if name != checkpoint.STATE}
