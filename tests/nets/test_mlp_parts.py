"""The plain MLP's choices: activation, its initial scale, and sines and cosines of the input."""

from __future__ import annotations

import math

import pytest
import torch

from quintet.nets.mlp import MLPConfig, waves


def test_waves_are_the_stated_functions():
    x = torch.randn(5, 3, dtype=torch.float64)
    found = waves(x, 2)
    assert found.shape == (5, 15)
    assert torch.equal(found[:, :3], x)
    for d in range(3):
        for k in range(2):
            angle = 2**k * math.pi * x[:, d]
            column = 3 + 2 * d + k
            assert torch.allclose(found[:, column], angle.sin())
            assert torch.allclose(found[:, column + 6], angle.cos())
    assert waves(x, 0) is x


@pytest.mark.parametrize("depth", [1, 8])
def test_leaky_network_keeps_its_scale_at_any_depth(depth):
    network = MLPConfig(width=256, depth=depth, activation="leaky-relu").build((32,), (64,), {})
    seen = []
    network.leave.register_forward_pre_hook(lambda layer, args: seen.append(args[0]))
    network(torch.randn(512, 32), {})
    assert 0.4 < seen[0].square().mean().sqrt() < 1.6


def test_leaky_relu_in_place_leaves_gradients_as_they_are():
    """Of the parameters, and of a penalty on the input's gradient, against the layers written out."""
    torch.manual_seed(0)
    network = MLPConfig(width=9, depth=3, activation="leaky-relu").build((4,), (2,), {}).double()
    x = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)

    def written_out():
        h = network.enter(x)
        for layer in network.hidden:
            h = layer(torch.where(h > 0, h, 0.2 * h))
        return network.leave(torch.where(h > 0, h, 0.2 * h))

    def gradients(y):
        (of_x,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        total = y.sum() + of_x.square().sum()
        return torch.autograd.grad(total, [x, *network.parameters()])

    for found, expected in zip(gradients(network(x, {})), gradients(written_out()), strict=True):
        assert torch.allclose(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("activation", ["silu", "leaky-relu"])
def test_double_backward(activation):
    network = MLPConfig(width=6, depth=2, activation=activation, octaves=2).build((3,), (2,), {"label": 2}).double()
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: network(x, {"label": torch.tensor([0, 1, -1, 0])}), (x,))
