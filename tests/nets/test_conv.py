"""Convolutional networks: shapes of any size, double backward, initialisation, conditions, no mixing of examples."""

from __future__ import annotations

import pytest
import torch

from quintet.nets.conv import ConvConfig, from_patches, pyramid, to_patches


def test_pyramid_halves_and_rounds_up():
    assert pyramid((28, 28), 4) == ((28, 28), (14, 14), (7, 7), (4, 4))
    assert pyramid((8, 5), 4) == ((8, 5), (4, 3))
    assert pyramid((3, 3), 4) == ((3, 3),)


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (7, 5), (1, 9)])
@pytest.mark.parametrize("time", [False, True])
def test_both_directions(size, time):
    made = ConvConfig(channels=(3, 5), blocks=2)
    encoder = made.build((2, *size), (6,), {"label": 4}, time=time)
    decoder = made.build((6,), (2, *size), {"label": 4}, time=time)
    t = torch.rand(3) if time else None
    v = encoder(torch.randn(3, 2, *size), {"label": torch.tensor([0, 3, -1])}, t)
    assert v.shape == (3, 6)
    assert decoder(v, {}, t).shape == (3, 2, *size)


@pytest.mark.parametrize(("inputs", "outputs"), [((3,), (4,)), ((1, 8, 8), (1, 8, 8))])
def test_neither_vector_to_vector_nor_image_to_image(inputs, outputs):
    with pytest.raises(ValueError, match="image to a vector"):
        ConvConfig().build(inputs, outputs, {})


def perturbed(network):
    """Float64 and away from the zeros it starts with."""
    network = network.double()
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return network


def test_double_backward():
    encoder = perturbed(ConvConfig(channels=(2, 3)).build((1, 7, 6), (2,), {"label": 2}))
    x = torch.randn(2, 1, 7, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: encoder(x, {"label": torch.tensor([0, 1])}), (x,))


def test_double_backward_of_the_decoder():
    decoder = perturbed(ConvConfig(channels=(2, 3)).build((3,), (1, 7, 6), {}))
    z = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda z: decoder(z, {}), (z,))


def test_penalty_gradient_against_finite_differences():
    encoder = perturbed(ConvConfig(channels=(3, 4)).build((1, 8, 8), (1,), {}))
    x = torch.randn(4, 1, 8, 8, dtype=torch.float64, requires_grad=True)

    def penalty():
        (slope,) = torch.autograd.grad(encoder(x, {}).sum(), x, create_graph=True)
        return slope.square().sum()

    penalty().backward()
    for p in encoder.parameters():
        direction = torch.randn_like(p)
        values = []
        for sign in (1, -1):
            p.data += sign * 1e-6 * direction
            values.append(penalty().item())
            p.data -= sign * 1e-6 * direction
        slope = (values[0] - values[1]) / 2e-6
        expected = (p.grad * direction).sum().item() if p.grad is not None else 0.0
        assert slope == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_examples_do_not_mix():
    encoder = perturbed(ConvConfig(channels=(4, 4)).build((1, 8, 8), (3,), {"label": 2}))
    x = torch.randn(5, 1, 8, 8, dtype=torch.float64)
    label = torch.tensor([0, 1, 0, 1, -1])
    together = encoder(x, {"label": label})
    alone = torch.cat([encoder(x[i : i + 1], {"label": label[i : i + 1]}) for i in range(5)])
    assert torch.allclose(together, alone, atol=1e-12)


def test_scale_is_kept_at_the_start():
    """Without normalisation, unit input must give output of order one at any depth."""
    for blocks in (1, 6):
        encoder = ConvConfig(channels=(32, 32), blocks=blocks).build((1, 16, 16), (64,), {})
        decoder = ConvConfig(channels=(32, 32), blocks=blocks).build((16,), (1, 16, 16), {})
        down, up = encoder(torch.randn(64, 1, 16, 16), {}).std(), decoder(torch.randn(64, 16), {}).std()
        assert 0.05 < down < 5
        assert 0.05 < up < 5


def test_conditions_and_time_reach_every_parameter():
    for inputs, outputs in (((1, 8, 8), (3,)), ((3,), (1, 8, 8))):
        network = perturbed(ConvConfig(channels=(3, 4)).build(inputs, outputs, {"label": 2}, time=True))
        x = torch.randn(6, *inputs, dtype=torch.float64)
        network(x, {"label": torch.tensor([0, 1, 0, 1, -1, -1])}, torch.rand(6).double()).square().sum().backward()
        for name, p in network.named_parameters():
            assert p.grad is not None, name
            assert p.grad.abs().sum() > 0, name
    with pytest.raises(ValueError, match="needs t"):
        network(x, {})


def test_patches_go_there_and_back():
    for size, side in (((6, 4), 2), ((7, 5), 2), ((5, 9), 3), ((4, 4), 1)):
        x = torch.randn(2, 3, *size)
        y = to_patches(x, side)
        assert y.shape == (2, 3 * side**2, -(-size[0] // side), -(-size[1] // side))
        assert torch.equal(from_patches(y, side, size), x)


def test_patched_networks_start_without_a_chequered_pattern():
    config = ConvConfig(channels=(4, 5), patch=2)
    decoder = config.build((3,), (2, 9, 7), {})
    y = decoder(torch.randn(2, 3), {})
    assert y.shape == (2, 2, 9, 7)
    assert torch.equal(y[:, :, 0:8:2, 0:6:2], y[:, :, 1:8:2, 1:6:2])
    assert config.build((2, 9, 7), (3,), {})(y, {}).shape == (2, 3)
