"""The mixer: shapes that the patch does not divide, what reaches what, and nothing at the start."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from quintet.core.rng import Rng, layer_noise
from quintet.nets.mixer import Mixer, MixerConfig


def build(shape: tuple[int, int, int], patch: int = 2) -> nn.Module:
    with layer_noise(Rng(0, "init")):
        network = MixerConfig(patch=patch, width=8, depth=2, hidden=12, patch_hidden=6, context=8).build(
            shape, shape, {"label": 3}, time=True
        )
        for p in network.parameters():
            nn.init.normal_(p, std=0.3)
    return network


@pytest.mark.parametrize(("shape", "patch"), [((1, 8, 8), 2), ((3, 7, 5), 2), ((2, 9, 6), 4), ((1, 2, 3), 4)])
def test_any_size(shape: tuple[int, int, int], patch: int) -> None:
    network = build(shape, patch)
    x = Rng(1, "x").normal((5, *shape))
    y = network(x, {"label": torch.tensor([0, 1, 2, -1, 0])}, torch.linspace(0, 1, 5))
    assert y.shape == x.shape
    y.square().mean().backward()
    for name, p in network.named_parameters():
        assert p.grad is not None, name
        assert p.grad.abs().sum() > 0, name


def test_patches_keep_their_place() -> None:
    """With the blocks' gates shut a patch depends on its own patch of the input alone, with them open on all."""
    network = build((1, 6, 4))
    assert isinstance(network, Mixer)
    x = Rng(1, "x").normal((1, 1, 6, 4)).requires_grad_()

    def reached() -> torch.Tensor:
        y = network(x, {}, torch.zeros(1))
        (grad,) = torch.autograd.grad(y[0, 0, 2:4, 0:2].sum(), x)
        return grad[0, 0] != 0

    assert reached().all()
    nn.init.zeros_(network.modulate.weight)  # gates shut
    nn.init.zeros_(network.modulate.bias)
    own = torch.zeros(6, 4, dtype=torch.bool)
    own[2:4, 0:2] = True
    assert torch.equal(reached(), own)


def test_starts_at_zero_and_refuses_vectors() -> None:
    network = MixerConfig().build((1, 8, 8), (1, 8, 8), {}, time=True)
    assert not network(torch.ones(2, 1, 8, 8), {}, torch.zeros(2)).any()
    with pytest.raises(ValueError, match="images"):
        MixerConfig().build((4,), (4,), {}, time=True)
