"""Each check of the suite fails on a model that breaks what it checks, and only for that reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from oracles import NoSampling, TinyDuel
from quintet.core.model import (
    HasCode,
    HasDenoiser,
    HasFill,
    HasLatent,
    HasLogProb,
    HasTrace,
    Loss,
    Model,
    Player,
    Trace,
    Turn,
    Way,
)
from quintet.core.rng import Rng
from quintet.core.spec import Cond, DataSpec
from quintet.testing import CHECKS, check_model, checks, subject

SPEC = DataSpec("vector", (3,), conditions={"label": 2})


class Gaussian(Model[NoSampling], HasLogProb, HasLatent, HasDenoiser, HasFill, HasTrace):
    """x = mean[label] + exp(log_std) z, with independent columns: every capability in closed form."""

    likelihood: ClassVar[Any] = "exact"

    def __init__(self) -> None:
        super().__init__(SPEC, NoSampling())
        self.net = nn.ParameterDict({"mean": torch.randn(3, 3), "log_std": torch.zeros(3)})
        self.latent = replace(SPEC, conditions={})

    def mean(self, n: int, cond: Cond | None) -> Tensor:
        unknown = set(cond or {}) - {"label"}
        if unknown:
            raise ValueError(f"unknown conditions {sorted(unknown)}")
        label = (cond or {}).get("label", torch.full((n,), -1))
        return self.net["mean"][torch.where(label < 0, 2, label)]

    def players(self) -> Sequence[Player]:
        return (Player("model", self.net, self.loss),)

    def loss(self, turn: Turn) -> Loss:
        hidden = turn.rng("hide").uniform((len(turn.batch),)) < 0.3
        cond = {k: torch.where(hidden, -1, v) for k, v in turn.batch.cond.items()}
        total = -self.log_prob(turn.batch.x, cond, rng=turn.rng).mean()
        return Loss(total, {"nats": total.detach()})

    def sample(self, n: int, cond: Cond | None = None, *, rng: Rng, sampling: Any = None) -> Tensor:
        return self.decode(rng("z").normal((n, 3)), cond)

    def sequential_steps(self, sampling: Any = None) -> int:
        return 1

    def log_prob(self, x: Tensor, cond: Cond | None = None, *, rng: Rng) -> Tensor:
        z = self.encode(x, cond)
        return (-0.5 * z.square() - 0.9189385 - self.net["log_std"]).sum(1)

    @property
    def log_prob_protocol(self) -> str:
        return "exact"

    def encode(self, x: Tensor, cond: Cond | None = None, *, rng: Rng | None = None) -> Tensor:
        return (x - self.mean(len(x), cond)) / self.net["log_std"].exp()

    def decode(self, z: Tensor, cond: Cond | None = None) -> Tensor:
        return self.mean(len(z), cond) + self.net["log_std"].exp() * z

    def denoiser(self, cond: Cond | None = None, guidance: float = 1.0) -> Callable[[Tensor, Tensor], Tensor]:
        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            noise = torch.as_tensor(sigma).expand(len(x)).square()[:, None]
            width = (2 * self.net["log_std"]).exp()
            given, free = ((noise * self.mean(len(x), c) + width * x) / (noise + width) for c in (cond, None))
            return free + guidance * (given - free)

        return denoise

    def fill(self, x: Tensor, known: Tensor, cond: Cond | None = None, *, rng: Rng) -> Tensor:
        return torch.where(known, x, self.sample(len(x), cond, rng=rng))

    def trace(self, n: int, frames: int, cond: Cond | None = None, *, rng: Rng) -> Trace:
        z = rng("z").normal((n, 3))
        at = torch.linspace(0, 1, frames).tolist()
        return Trace("flow", torch.stack([torch.lerp(z, self.decode(z, cond), a) for a in at]), tuple(map(str, at)))


class Coins(Model[NoSampling], HasLogProb, HasCode):
    """Four values of three levels, independent given the label; each of them can be coded."""

    likelihood: ClassVar[Any] = "exact"
    log_prob_protocol = "exact"

    def __init__(self) -> None:
        super().__init__(DataSpec("tokens", (4,), 3, {"label": 2}), NoSampling())
        self.net = nn.ParameterDict({"logits": torch.randn(3, 4, 3)})  # label or none, value, level

    def logits(self, n: int, cond: Cond | None) -> Tensor:
        if set(cond or {}) - {"label"}:
            raise ValueError("unknown conditions")
        label = (cond or {}).get("label", torch.full((n,), -1))
        return self.net["logits"][torch.where(label < 0, 2, label)]

    def players(self) -> Sequence[Player]:
        return (Player("model", self.net, self.loss),)

    def loss(self, turn: Turn) -> Loss:
        hidden = turn.rng("hide").uniform((len(turn.batch),)) < 0.3
        cond = {k: torch.where(hidden, -1, v) for k, v in turn.batch.cond.items()}
        return Loss(-self.log_prob(turn.batch.x, cond, rng=turn.rng).mean())

    def sample(self, n: int, cond: Cond | None = None, *, rng: Rng, sampling: Any = None) -> Tensor:
        mass = self.logits(n, cond).softmax(2).cumsum(2)
        return (mass[:, :, :2] <= rng("u").uniform((n, 4))[:, :, None]).sum(2)

    def sequential_steps(self, sampling: Any = None) -> int:
        return 4

    def log_prob(self, x: Tensor, cond: Cond | None = None, *, rng: Rng) -> Tensor:
        return self.logits(len(x), cond).log_softmax(2).gather(2, x[:, :, None]).sum((1, 2))

    def read(self, x: Tensor) -> Tensor:
        return x.flip(1)

    def place(self, tokens: Tensor) -> Tensor:
        return tokens.flip(1)

    def following(self, n: int, cond: Cond | None, guidance: float) -> Callable[[Tensor | None], Tensor]:
        steps = iter(self.logits(n, cond).flip(1).unbind(1))
        return lambda before: next(steps)


class CodesAnotherModel(Coins):
    def following(self, n: int, cond: Cond | None, guidance: float) -> Callable[[Tensor | None], Tensor]:
        return super().following(n, None, guidance)


class CodesByChance(Coins):
    def following(self, n: int, cond: Cond | None, guidance: float) -> Callable[[Tensor | None], Tensor]:
        inside = super().following(n, cond, guidance)
        return lambda before: inside(before) + 1e-6 * torch.randn(())


class LosesItsPlace(Coins):
    def place(self, tokens: Tensor) -> Tensor:
        return tokens


class SameNames(Gaussian):
    def players(self) -> Sequence[Player]:
        return (*super().players(), *super().players())


class VectorLoss(Gaussian):
    def loss(self, turn: Turn) -> Loss:
        return Loss(-self.log_prob(turn.batch.x, turn.batch.cond, rng=turn.rng))


class NanLoss(Gaussian):
    def loss(self, turn: Turn) -> Loss:
        return Loss(super().loss(turn).total * float("nan"))


class GlobalNoise(Gaussian):
    def loss(self, turn: Turn) -> Loss:
        return Loss(super().loss(turn).total + torch.randn(()))


class Unused(Gaussian):
    def __init__(self) -> None:
        super().__init__()
        self.net["idle"] = torch.ones(2)


class LeakyDuel(TinyDuel):
    """The critic's loss reaches the generator through a fake that was not detached."""

    def _critic_loss(self, turn: Turn) -> Loss:
        return Loss(self.critic(turn.shared).mean() - self.critic(turn.batch.x).mean())


class TrainableTeacher(Gaussian):
    """A part outside every player that gathers gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = nn.Linear(3, 1)

    def loss(self, turn: Turn) -> Loss:
        return Loss(super().loss(turn).total + self.teacher(self.net["mean"]).mean())


class Idle(Gaussian):
    def loss(self, turn: Turn) -> Loss:
        return Loss(0.0 * super().loss(turn).total)


class WrongShape(Gaussian):
    def sample(self, n: int, cond: Cond | None = None, *, rng: Rng, sampling: Any = None) -> Tensor:
        return super().sample(n, cond, rng=rng).unsqueeze(1)


class NotFinite(Gaussian):
    def sample(self, n: int, cond: Cond | None = None, *, rng: Rng, sampling: Any = None) -> Tensor:
        return super().sample(n, cond, rng=rng) / 0


class IgnoresRng(Gaussian):
    def sample(self, n: int, cond: Cond | None = None, *, rng: Rng, sampling: Any = None) -> Tensor:
        return super().sample(n, cond, rng=Rng(0, "fixed"))


class TorchNoise(Gaussian):
    def sample(self, n: int, cond: Cond | None = None, *, rng: Rng, sampling: Any = None) -> Tensor:
        return self.decode(torch.randn(n, 3), cond)


class BatchStatistics(Gaussian):
    def sample(self, n: int, cond: Cond | None = None, *, rng: Rng, sampling: Any = None) -> Tensor:
        x = super().sample(n, cond, rng=rng)
        return x - 0.1 * x.mean(0)


class NoOffset(Gaussian):
    """Draws its noise from a key without rows, so that `rng.at` has no effect."""

    def sample(self, n: int, cond: Cond | None = None, *, rng: Rng, sampling: Any = None) -> Tensor:
        z = torch.from_numpy(rng("z").numpy().standard_normal((n, 3))).float()
        return self.decode(z, cond)


class Counts(Gaussian):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def sample(self, n: int, cond: Cond | None = None, *, rng: Rng, sampling: Any = None) -> Tensor:
        self.calls += 1
        return super().sample(n, cond, rng=rng)


class StaysInEval(Gaussian):
    def sample(self, n: int, cond: Cond | None = None, *, rng: Rng, sampling: Any = None) -> Tensor:
        self.eval()
        return super().sample(n, cond, rng=rng)


class IgnoresUnknown(Gaussian):
    def mean(self, n: int, cond: Cond | None) -> Tensor:
        return super().mean(n, {k: v for k, v in (cond or {}).items() if k == "label"})


class IgnoresLabels(Gaussian):
    def mean(self, n: int, cond: Cond | None) -> Tensor:
        return super().mean(n, {k: torch.zeros_like(v) for k, v in (cond or {}).items()})


class MinusOneIsALabel(Gaussian):
    def mean(self, n: int, cond: Cond | None) -> Tensor:
        return super().mean(n, {k: v.clamp(min=0) if k == "label" else v for k, v in (cond or {}).items()})


class NoSteps(Gaussian):
    def sequential_steps(self, sampling: Any = None) -> int:
        return 0


class HiddenState(Gaussian):
    """A number made at initialisation that is neither a parameter nor a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = float(torch.randn(()))

    def sample(self, n: int, cond: Cond | None = None, *, rng: Rng, sampling: Any = None) -> Tensor:
        return super().sample(n, cond, rng=rng) + self.shift


class Remembers(Gaussian):
    """A loss that depends on how often it was asked."""

    asked = 0

    def loss(self, turn: Turn) -> Loss:
        self.asked += 1
        loss = super().loss(turn)
        return Loss(loss.total * (1 + 0.5 * (self.asked % 2)) + self.net["mean"].sum() * (self.asked % 3))


class LogProbOfBatch(Gaussian):
    def log_prob(self, x: Tensor, cond: Cond | None = None, *, rng: Rng) -> Tensor:
        value = super().log_prob(x, cond, rng=rng)
        return value - value.mean()


class LogProbScalar(Gaussian):
    def log_prob(self, x: Tensor, cond: Cond | None = None, *, rng: Rng) -> Tensor:
        return super().log_prob(x, cond, rng=rng).mean()


class UnknownLikelihood(Gaussian):
    likelihood: ClassVar[Any] = "rough"


def _way(log_prob: Callable[[Tensor, Cond, Rng], Tensor], name: str = "iw") -> dict[str, Way]:
    return {name: Way("bound", "a way", log_prob)}


class WayOfBatch(Gaussian):
    def ways(self, effort: float = 1.0) -> dict[str, Way]:
        return _way(lambda x, cond, rng: x.flatten(1).sum(1) - x.mean())


class WayWithoutRows(Gaussian):
    def ways(self, effort: float = 1.0) -> dict[str, Way]:
        return _way(lambda x, cond, rng: x.flatten(1).sum(1) + Rng(0, "fixed").normal((len(x),)))


class WayThatVanishes(Gaussian):
    def ways(self, effort: float = 1.0) -> dict[str, Way]:
        return _way(lambda x, cond, rng: x.flatten(1).sum(1)) if effort == 1 else {}


class NotInverse(Gaussian):
    def decode(self, z: Tensor, cond: Cond | None = None) -> Tensor:
        return super().decode(z, cond) + 0.01


class GuidanceIgnored(Gaussian):
    def denoiser(self, cond: Cond | None = None, guidance: float = 1.0) -> Callable[[Tensor, Tensor], Tensor]:
        return super().denoiser(cond)


class Forgets(Gaussian):
    def fill(self, x: Tensor, known: Tensor, cond: Cond | None = None, *, rng: Rng) -> Tensor:
        return self.sample(len(x), cond, rng=rng)


class Peeks(Gaussian):
    def fill(self, x: Tensor, known: Tensor, cond: Cond | None = None, *, rng: Rng) -> Tensor:
        return torch.where(known, x, x + self.sample(len(x), cond, rng=rng))


class TooFewFrames(Gaussian):
    def trace(self, n: int, frames: int, cond: Cond | None = None, *, rng: Rng) -> Trace:
        return super().trace(n, frames - 1, cond, rng=rng)


BROKEN: tuple[tuple[str, type[Model[Any]], str], ...] = (
    ("players", SameNames, "different names"),
    ("loss", VectorLoss, "scalar loss"),
    ("loss", NanLoss, "finite loss"),
    ("randomness", GlobalNoise, "same losses"),
    ("gradients", Unused, "net.idle"),
    ("gradients", LeakyDuel, "to the others"),
    ("gradients", TrainableTeacher, "outside its parameters"),
    ("training", Idle, "change by training"),
    ("sample", WrongShape, "shape"),
    ("sample", NotFinite, "finite"),
    ("same_rng", IgnoresRng, "other samples"),
    ("same_rng", TorchNoise, "same samples"),
    ("batch", BatchStatistics, "first 10"),
    ("batch", NoOffset, "rng.at"),
    ("state", Counts, "calls"),
    ("state", StaysInEval, "stay so"),
    ("state", TorchNoise, "global generator"),
    ("conditions", IgnoresUnknown, "unknown condition"),
    ("conditions", IgnoresLabels, "same as its absence"),
    ("conditions", MinusOneIsALabel, "same as its absence"),
    ("sequential_steps", NoSteps, "positive int"),
    ("weights", HiddenState, "outside state_dict"),
    ("resume", Remembers, "same bits"),
    ("log_prob", LogProbOfBatch, "alone"),
    ("log_prob", LogProbScalar, "shape"),
    ("log_prob", UnknownLikelihood, "likelihood"),
    ("log_prob", WayOfBatch, "depend on the batch"),
    ("log_prob", WayWithoutRows, "depend on the batch"),
    ("log_prob", WayThatVanishes, "any effort"),
    ("code", CodesAnotherModel, "add up"),
    ("code", CodesByChance, "bit for bit"),
    ("code", LosesItsPlace, "place"),
    ("latent", NotInverse, "decode"),
    ("denoiser", GuidanceIgnored, "guidance 0"),
    ("fill", Forgets, "known values"),
    ("fill", Peeks, "play no part"),
    ("trace", TooFewFrames, "frames"),
)


def test_sound_models_pass() -> None:
    check_model(Gaussian)
    check_model(Coins)
    check_model(TinyDuel, skip=["conditions"])  # it takes no notice of them, unknown ones included


@pytest.mark.parametrize(("name", "model", "words"), BROKEN, ids=lambda v: v.__name__ if isinstance(v, type) else "")
def test_the_check_finds_it(name: str, model: type[Model[Any]], words: str) -> None:
    with pytest.raises(AssertionError, match=f"(?s)^{name}: expected.*{words}"):
        check_model(model, only=[name])


def test_every_check_has_a_model_that_fails_it() -> None:
    assert {name for name, _, _ in BROKEN} == set(CHECKS)


def test_all_failures_are_told_at_once() -> None:
    with pytest.raises(AssertionError) as caught:
        check_model(TorchNoise, skip=["resume"])
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == [
        "same_rng",
        "batch",
        "state",
        "conditions",
        "weights",
        "fill",
    ]


def test_checks_of_a_capability_come_with_it() -> None:
    assert [check.name for check in checks(Gaussian)] == [name for name in CHECKS if name != "code"]
    assert "code" in {check.name for check in checks(Coins)}
    assert {str(check) for check in checks(TinyDuel)} == set(CHECKS) - {
        "log_prob",
        "latent",
        "denoiser",
        "fill",
        "code",
        "trace",
    }
    assert [check.name for check in checks(TinyDuel, only=["loss", "batch"], skip=["loss"])] == ["batch"]


def test_wrong_names_and_a_missing_spec_are_refused() -> None:
    with pytest.raises(ValueError, match="smaple"):
        check_model(Gaussian, only=["smaple"])
    from quintet.core.budget import Budget
    from quintet.recipes.registry import RECIPES

    (stage,) = RECIPES["nsf"].stages(SPEC, Budget.parse("1s"))
    with pytest.raises(ValueError, match="spec"):
        subject(stage.model)


def test_a_models_config_can_be_checked() -> None:
    from quintet.core.budget import Budget
    from quintet.recipes.registry import RECIPES

    (stage,) = RECIPES["gan"].stages(SPEC, Budget.parse("1s"))
    check_model(stage.model, SPEC, only=["players", "sample", "conditions"])
