"""Latent: the wrapper around a first stage, with oracles in place of trained networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from quintet.core.batch import Batch
from quintet.core.model import HasLatent, HasTrace, Loss, Model, Player, Turn, capabilities
from quintet.core.plan import Plan
from quintet.core.recipe import OptimizerConfig, TrainConfig
from quintet.core.rng import Rng, layer_noise
from quintet.core.spec import Cond, DataSpec
from quintet.families.diffusion.model import DiffusionConfig
from quintet.families.latent import Latent, LatentConfig, TracedLatent
from quintet.nets.mlp import ResidualMLPConfig
from quintet.recipes.registry import RECIPES
from quintet.train.loop import TrainState, frozen_parameters, steps

SPEC = DataSpec("image", (1, 4, 4), conditions={"label": 3})


@dataclass(frozen=True)
class NoSampling:
    pass


class Blocks(Model[NoSampling], HasLatent):
    """A first stage that is known exactly: each 2 x 2 square of pixels is four channels, scaled and shifted."""

    def __init__(self) -> None:
        super().__init__(SPEC, NoSampling())
        self.scale = nn.Parameter(torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None, None])
        self.latent = DataSpec("image", (4, 2, 2), conditions=SPEC.conditions)
        self.asked = 0

    def players(self) -> Sequence[Player]:
        return (Player("model", self, lambda turn: Loss(self.scale.sum())),)

    def sample(self, n: int, cond: Cond | None = None, *, rng: Rng, sampling: NoSampling | None = None) -> Tensor:
        return self.decode(rng("z").normal((n, *self.latent.shape)))

    def sequential_steps(self, sampling: NoSampling | None = None) -> int:
        return 1

    def encode(self, x: Tensor, cond: Cond | None = None, *, rng: Rng | None = None) -> Tensor:
        self.asked += len(x)
        return nn.functional.pixel_unshuffle(x, 2) * self.scale + 5

    def decode(self, z: Tensor, cond: Cond | None = None) -> Tensor:
        return nn.functional.pixel_shuffle((z - 5) / self.scale, 2)


class Rows:
    """A training split of 300 images in memory."""

    first, examples, augmented = 0, 300, False

    def __init__(self) -> None:
        self.x = Rng(5, "rows").normal((self.examples, *SPEC.shape))
        self.label = Rng(5, "labels").integers(0, 3, (self.examples,))

    def take(self, start: int, stop: int) -> Batch:
        index = torch.arange(start, min(stop, self.examples))
        return Batch(self.x[index], index, {"label": self.label[index]})

    def __getitem__(self, step: int) -> Batch:
        index = Rng(6, "order", step).integers(0, self.examples, (16,))
        return Batch(self.x[index], index, {"label": self.label[index]})


class Augmented(Rows):
    augmented = True


INNER = DiffusionConfig(network=ResidualMLPConfig(width=16, depth=1, hidden=16, context=16))


def wrapped() -> Latent:
    first = Blocks()
    with layer_noise(Rng(0, "init")):
        return TracedLatent(SPEC, first, INNER.build(first.latent))


def test_latents_get_zero_mean_and_unit_variance_of_each_channel() -> None:
    model, rows = wrapped(), Rows()
    model.prepare(rows)
    turn = Turn(0, 0.0, rows.take(0, 300), Rng(0, "turn"))
    z = model._encoded(turn).batch.x
    assert z.mean((0, 2, 3)).abs().max() < 1e-4
    assert (z.std((0, 2, 3)) - 1).abs().max() < 0.01
    assert model.from_scaled(z).sub(rows.x).abs().max() < 1e-4


def test_latents_are_computed_once_and_only_where_examples_stay_the_same() -> None:
    for source, expected in ((Rows(), 0), (Augmented(), 48)):
        model = wrapped()
        model.prepare(source)
        assert isinstance(model.first, Blocks)
        before = model.first.asked
        for step in range(3):
            turn = Turn(step, 0.0, source[step], Rng(0, "turn", step))
            known = model._encoded(turn).batch.x
            raw = nn.functional.pixel_unshuffle(source[step].x, 2) * model.first.scale + 5
            direct = (raw - model.mean) / model.deviation
            assert (known - direct).abs().max() < 1e-5
        assert model.first.asked - before == expected


def test_latents_are_computed_in_smaller_parts_where_memory_does_not_suffice() -> None:
    class Small(Blocks):
        def encode(self, x: Tensor, cond: Cond | None = None, *, rng: Rng | None = None) -> Tensor:
            assert not self.training
            if len(x) > 50:
                raise MemoryError
            return super().encode(x, cond, rng=rng)

    model, whole, rows = wrapped(), wrapped(), Rows()
    model.first = Small()
    for each in (model, whole):
        each.prepare(rows)
    assert model.first.asked == 300
    assert model.first.training
    assert torch.allclose(model.mean, whole.mean)
    assert torch.allclose(model.deviation, whole.deviation)
    turns = [Turn(0, 0.0, rows.take(0, 40), Rng(0, "turn"))] * 2
    assert torch.allclose(*(m._encoded(turn).batch.x for m, turn in zip((model, whole), turns, strict=True)))


def test_the_inner_model_learns_and_the_first_stage_stays() -> None:
    model, rows = wrapped(), Rows()
    model.prepare(rows)
    config = TrainConfig(batch=16, optimizers={"model": OptimizerConfig(lr=1e-2)}, decay=0.0, ema=(0.1,))
    state = TrainState.start(model, config, Plan.start(8, 0.0, flops_per_step=1.0, threads=1))
    assert set(frozen_parameters(model)) == {"first.scale"}
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for _ in steps(model, rows, state, config, 0):
        pass
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed
    assert all(name.startswith("inner.") for name in changed)


def test_samples_are_the_inner_model_s_decoded() -> None:
    model, rows = wrapped(), Rows()
    model.prepare(rows)
    model.eval()
    cond = {"label": torch.tensor([0, 1, 2, 0])}
    with torch.no_grad():
        inner = model.inner.sample(4, cond, rng=Rng(3, "s"))
        expected = model.decode(inner * model.deviation + model.mean)
        assert torch.equal(model.sample(4, cond, rng=Rng(3, "s")), expected)
        shown = model.trace(4, 3, cond, rng=Rng(3, "t"))
    assert shown.frames.shape == (3, 4, 1, 4, 4)
    assert model.sequential_steps() == model.inner.sequential_steps() + 1


def test_capabilities_are_those_of_what_is_wrapped() -> None:
    assert set(capabilities(wrapped())) >= {"latent", "trace"}
    assert "log_prob" not in capabilities(wrapped())
    assert not issubclass(Latent, HasTrace)


def test_what_has_no_latents_is_refused() -> None:
    inner = INNER.build(SPEC)
    with pytest.raises(ValueError, match="has none"):
        Latent(SPEC, inner, inner)
    with pytest.raises(ValueError, match="latents are"):
        Latent(SPEC, Blocks(), inner)


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 21, 34), (3, 64, 64)])
def test_latent_diffusion_fits_images_of_any_size(shape: tuple[int, ...]) -> None:
    from quintet.core.budget import Budget

    raw = DataSpec("image", shape, 256, {"label": 4})
    first, second = RECIPES["latent-diffusion"].stages(raw, Budget.parse("1m"))
    assert first.share + second.share == pytest.approx(1)
    assert isinstance(second.model, LatentConfig)
    spec = replace(raw, levels=None)
    with layer_noise(Rng(0, "init")):
        model = second.model.build(spec).eval()
    assert model.latent.dims <= raw.dims / 2
    x = torch.randn(2, *shape)
    with torch.no_grad():
        assert model.decode(model.encode(x)).shape == x.shape
        assert model.sample(2, {"label": torch.tensor([1, -1])}, rng=Rng(0, "s")).shape == x.shape
