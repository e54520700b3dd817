"""The ladder's networks: shapes of any size, one way down for both uses, conditions, no mixing of examples."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from quintet.core.recipe import LadderNetwork
from quintet.nets.ladder import LadderConfig

IMAGE = LadderConfig(width=3, latents=(1, 2), channels=(5, 6), rungs=(1, 2), blocks=(1, 2), smallest=4, patch=2)
VECTOR = LadderConfig(width=3, latents=(2, 4), channels=(7,), blocks=(2,))


def perturbed(ladder: LadderNetwork) -> LadderNetwork:
    """Float64 and away from the zeros it starts with."""
    ladder = ladder.double()
    with torch.no_grad():
        for p in ladder.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return ladder


class Recorder:
    """Hands out given noise, or the posterior's mean, and keeps what it was asked."""

    def __init__(self, noise: list[Tensor] | None = None) -> None:
        self.noise, self.asked = noise, []

    def __call__(self, group: int, posterior: Tensor | None) -> Tensor:
        assert group == len(self.asked)
        self.asked.append(posterior)
        if self.noise is not None:
            return self.noise[group]
        assert posterior is not None
        return posterior[:, 0]


@pytest.mark.parametrize("size", [(28, 28), (8, 8), (4, 4), (9, 7), (1, 5)])
def test_images_of_any_size(size):
    ladder = IMAGE.build((2, *size), (6, *size), {"label": 3})
    cond = {"label": torch.tensor([0, 2, -1])}
    features = ladder.encoder(torch.randn(3, 2, *size), {})
    assert len(features) == len(ladder.groups) >= 2
    draw = Recorder()
    assert ladder.decoder(features, cond, draw, 3).shape == (3, 6, *size)
    for group, posterior in zip(ladder.groups, draw.asked, strict=True):
        assert posterior.shape == (3, 2, *group)
    top, *below = ladder.groups
    assert top == (3,)
    assert all(a[1] <= b[1] and a[2] <= b[2] for a, b in pairwise(below))


def test_vectors():
    ladder = VECTOR.build((5,), (10,), {})
    assert ladder.groups == ((3,), (4,), (2,))
    draw = Recorder()
    assert ladder.decoder(ladder.encoder(torch.randn(4, 5), {}), {}, draw, 4).shape == (4, 10)
    assert [tuple(q.shape) for q in draw.asked] == [(4, 2, 3), (4, 2, 4), (4, 2, 2)]


def test_unlike_inputs_and_outputs_are_refused():
    for inputs, outputs in (((3,), (3, 4, 4)), ((1, 8, 8), (1, 4, 4))):
        with pytest.raises(ValueError, match="images to images"):
            IMAGE.build(inputs, outputs, {})


@pytest.mark.parametrize(("config", "event"), [(IMAGE, (2, 6, 6)), (VECTOR, (5,))], ids=["image", "vector"])
def test_one_way_down(config, event):
    """Without features the decoder is the generator: the same noise gives the same output as with them."""
    ladder = perturbed(config.build(event, event, {"label": 2}))
    cond = {"label": torch.tensor([0, 1, -1])}
    noise = [torch.randn(3, *group, dtype=torch.float64) for group in ladder.groups]
    features = ladder.encoder(torch.randn(3, *event, dtype=torch.float64), cond)
    seen, blind = Recorder(noise), Recorder(noise)
    with_features, without = ladder.decoder(features, cond, seen, 3), ladder.decoder(None, cond, blind, 3)
    assert torch.equal(with_features, without)
    assert all(q is None for q in blind.asked)
    # a group's posterior knows the noise of the groups above it and not of those below
    for group in range(len(noise)):
        moved = [n + 1 if g == group else n for g, n in enumerate(noise)]
        again = Recorder(moved)
        assert not torch.allclose(ladder.decoder(features, cond, again, 3), with_features)
        for g, (a, b) in enumerate(zip(seen.asked, again.asked, strict=True)):
            assert torch.equal(a, b) == (g <= group)


@pytest.mark.parametrize(("config", "event"), [(IMAGE, (2, 6, 6)), (VECTOR, (5,))], ids=["image", "vector"])
def test_every_parameter_is_reached_and_examples_do_not_mix(config, event):
    ladder = perturbed(config.build(event, event, {"label": 2}))
    cond = {"label": torch.tensor([0, 1, -1, 0])}
    x = torch.randn(4, *event, dtype=torch.float64)
    y = ladder.decoder(ladder.encoder(x, cond), cond, Recorder(), 4)
    y.square().sum().backward()
    for name, p in ladder.named_parameters():
        if "posterior" not in name:
            assert p.grad is not None, name
            assert p.grad.abs().sum() > 0, name
    for i in range(4):
        one = {"label": cond["label"][i : i + 1]}
        alone = ladder.decoder(ladder.encoder(x[i : i + 1], one), one, Recorder(), 1)
        assert torch.allclose(alone[0], y[i], atol=1e-10)


def test_autocast_keeps_shapes_and_stays_near():
    ladder = IMAGE.build((1, 8, 8), (2, 8, 8), {})
    x = torch.randn(4, 1, 8, 8)
    noise = [torch.randn(4, *group) for group in ladder.groups]
    exact = ladder.decoder(ladder.encoder(x, {}), {}, Recorder(noise), 4)
    with torch.autocast("cpu", torch.bfloat16):
        rough = ladder.decoder(ladder.encoder(x, {}), {}, Recorder(noise), 4)
    assert (exact - rough.float()).abs().max() < 0.1 * (1 + exact.abs().max())
