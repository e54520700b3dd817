"""Strided networks: any size, double backward, no mixing of rows, a smooth start, every parameter reached."""

from __future__ import annotations

import pytest
import torch

from quintet.nets.strided import StridedConfig

SMALL = StridedConfig(channels=(4, 6), blocks=(1, 0))


def perturbed(network):
    """Float64 and away from the zeros it starts with."""
    network = network.double()
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return network


@pytest.mark.parametrize("size", [(4, 4), (8, 8), (28, 28), (7, 5), (1, 9), (64, 48)])
@pytest.mark.parametrize("time", [False, True])
def test_both_directions(size, time):
    encoder = SMALL.build((2, *size), (3, 2), {"label": 4}, time=time)
    decoder = SMALL.build((3, 2), (2, *size), {"label": 4}, time=time)
    t = torch.rand(3) if time else None
    v = encoder(torch.randn(3, 2, *size), {"label": torch.tensor([0, 3, -1])}, t)
    assert v.shape == (3, 3, 2)
    assert decoder(v, {}, t).shape == (3, 2, *size)


@pytest.mark.parametrize(("inputs", "outputs"), [((3,), (4,)), ((1, 8, 8), (1, 8, 8))])
def test_neither_vector_to_vector_nor_image_to_image(inputs, outputs):
    with pytest.raises(ValueError, match="image to a vector"):
        SMALL.build(inputs, outputs, {})


def test_double_backward_of_both():
    encoder = perturbed(SMALL.build((1, 7, 6), (2,), {"label": 2}))
    decoder = perturbed(SMALL.build((3,), (1, 7, 6), {}))
    label = {"label": torch.tensor([0, 1])}
    x = torch.randn(2, 1, 7, 6, dtype=torch.float64, requires_grad=True)
    z = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: encoder(x, label), (x,))
    assert torch.autograd.gradgradcheck(lambda z: decoder(z, {}), (z,))


def test_rows_do_not_mix():
    label = torch.tensor([0, 1, 0, 1, -1])
    for inputs, outputs in (((1, 9, 8), (3,)), ((3,), (1, 9, 8))):
        network = perturbed(SMALL.build(inputs, outputs, {"label": 2}))
        x = torch.randn(5, *inputs, dtype=torch.float64)
        together = network(x, {"label": label})
        alone = torch.cat([network(x[i : i + 1], {"label": label[i : i + 1]}) for i in range(5)])
        assert torch.allclose(together, alone, atol=1e-12)


def test_scale_is_kept_at_the_start():
    made = StridedConfig(channels=(32, 64))
    up = made.build((16,), (1, 16, 16), {})(torch.randn(64, 16), {})
    down = made.build((1, 16, 16), (64,), {})(torch.randn(64, 1, 16, 16), {})
    assert 0.2 < up.std() < 5
    assert 0.2 < down.std() < 5


def test_conditions_and_time_reach_every_parameter():
    for inputs, outputs in (((1, 8, 8), (3,)), ((3,), (1, 8, 8))):
        network = perturbed(SMALL.build(inputs, outputs, {"label": 2}, time=True))
        x = torch.randn(6, *inputs, dtype=torch.float64)
        network(x, {"label": torch.tensor([0, 1, 0, 1, -1, -1])}, torch.rand(6).double()).square().sum().backward()
        for name, p in network.named_parameters():
            assert p.grad is not None, name
            assert p.grad.abs().sum() > 0, name


@pytest.mark.parametrize("size", [(28, 28), (7, 10), (9, 4)])
def test_gradients_keep_channels_last(size):
    """A gradient in another order makes an activation's backward pass up to seventy times as slow."""
    for inputs, outputs in (((2, *size), (3,)), ((3,), (2, *size))):
        network = SMALL.build(inputs, outputs, {})
        seen: list[torch.Tensor | None] = []
        for layer in network.modules():
            if isinstance(layer, torch.nn.Conv2d):
                layer.register_full_backward_hook(lambda _, wrt, given, seen=seen: seen.extend([*wrt, *given]))
        network(torch.randn(4, *inputs, requires_grad=True), {}).square().sum().backward()
        pictures = [g for g in seen if g is not None and g.ndim == 4]
        assert len(pictures) > 2
        assert all(g.is_contiguous(memory_format=torch.channels_last) for g in pictures)
