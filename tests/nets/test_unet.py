"""The U-Net: any size, nothing at the start, what reaches what, moves with the image, number formats, compilation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from quintet.core.rng import Rng, layer_noise
from quintet.nets.unet import UNet, UNetConfig

TINY = UNetConfig(channels=(8, 12), blocks=2, heads=2, context=8)


def build(config: UNetConfig, shape: tuple[int, int, int], *, std: float = 0.3) -> nn.Module:
    """With every parameter away from the zeros it starts with."""
    with layer_noise(Rng(0, "init")):
        network = config.build(shape, shape, {"label": 3}, time=True)
        for p in network.parameters():
            nn.init.normal_(p, std=std)
    return network


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 7, 5), (2, 9, 16), (1, 1, 3)])
@pytest.mark.parametrize("patch", [1, 2, 3])
def test_any_size_and_gradients_reach_all(shape: tuple[int, int, int], patch: int) -> None:
    network = build(UNetConfig(patch=patch, channels=(8, 12, 16), heads=2, context=8), shape)
    x = Rng(1, "x").normal((4, *shape))
    y = network(x, {"label": torch.tensor([0, 1, 2, -1])}, torch.linspace(0, 1, 4))
    assert y.shape == x.shape
    y.square().mean().backward()
    for name, p in network.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
        if shape != (1, 1, 3):  # where a single pixel is left there is nothing to attend to
            assert p.grad.abs().sum() > 0, name


def test_outputs_may_have_other_channels_and_start_at_zero() -> None:
    network = TINY.build((3, 6, 5), (6, 6, 5), {}, time=True)
    y = network(torch.ones(2, 3, 6, 5), {}, torch.zeros(2))
    assert y.shape == (2, 6, 6, 5)
    assert not y.any()


def test_refusals() -> None:
    with pytest.raises(ValueError, match="images of one size"):
        TINY.build((1, 8, 8), (1, 4, 4), {})
    with pytest.raises(ValueError, match="heads"):
        UNetConfig(channels=(6,), heads=4).build((1, 8, 8), (1, 8, 8), {})
    network = build(TINY, (1, 8, 8))
    with pytest.raises(ValueError, match="needs t"):
        network(torch.zeros(1, 1, 8, 8), {})
    with pytest.raises(ValueError, match="unknown conditions"):
        network(torch.zeros(1, 1, 8, 8), {"colour": torch.zeros(1)}, torch.zeros(1))


def test_time_and_conditions_matter_and_rows_are_their_own() -> None:
    network = build(TINY, (1, 8, 8)).double()
    x = Rng(1, "x").normal((1, 1, 8, 8)).double().expand(4, -1, -1, -1)
    label, t = torch.tensor([0, 1, -1, 0]), torch.tensor([0.2, 0.2, 0.2, 0.7]).double()
    y = network(x, {"label": label}, t)
    for i in range(1, 4):
        assert (y[i] - y[0]).abs().max() > 1e-3
    assert torch.allclose(network(x[:1], {}, t[:1]), y[2:3])  # an absent condition is the hidden one
    alone = torch.cat([network(x[i : i + 1], {"label": label[i : i + 1]}, t[i : i + 1]) for i in range(4)])
    assert torch.allclose(alone, y, atol=1e-12)


def test_far_from_the_border_the_answer_moves_with_the_image() -> None:
    """Without attention and places, a shift by patch 2^(sizes - 1) pixels shifts the output, far from the border."""
    config = UNetConfig(patch=2, channels=(4, 6), blocks=1, attention=0, context=4)
    network = build(config, (1, 96, 96), std=0.2).double()
    assert isinstance(network, UNet)
    nn.init.zeros_(network.place)
    x = Rng(1, "x").normal((1, 1, 100, 100)).double()
    t = torch.full((1,), 0.5).double()
    before, after = network(x[..., :96, :96], {}, t), network(x[..., 4:, 4:], {}, t)
    middle = slice(40, 56)
    assert torch.allclose(after[..., middle, middle], before[..., 44:60, 44:60], atol=1e-10)
    assert not torch.allclose(after, before, atol=1e-3)


@pytest.mark.parametrize(("attention", "everywhere"), [(0, False), (8, True)])
def test_attention_sees_the_whole_image(attention: int, everywhere: bool) -> None:
    config = UNetConfig(channels=(4,), attention=attention, heads=2, context=4)
    network = build(config, (1, 8, 8))
    x = Rng(1, "x").normal((1, 1, 8, 8)).requires_grad_()
    (grad,) = torch.autograd.grad(network(x, {}, torch.zeros(1))[0, 0, 0, 0], x)
    assert bool((grad[0, 0, 7, 7] != 0).item()) == everywhere


def test_gradient_against_finite_differences() -> None:
    network = build(UNetConfig(channels=(4, 4), heads=2, context=4), (1, 5, 4)).double()
    x = Rng(1, "x").normal((2, 1, 5, 4)).double().requires_grad_()
    t = torch.tensor([0.3, 0.9]).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x, t: network(x, {"label": torch.tensor([1, -1])}, t), (x, t))


def test_the_input_reaches_the_output_linearly() -> None:
    """With closed branches the output is an affine function of the image: no norm takes away its size."""
    network = build(TINY, (1, 8, 8)).double()
    assert isinstance(network, UNet)
    for block in (b for side in (network.falling, network.rising) for stage in side for b in stage):  # type: ignore[attr-defined]
        nn.init.zeros_(block.last.weight)
    for layer in network.attentions:
        if hasattr(layer, "merge"):
            nn.init.zeros_(layer.merge.weight)
    x, t = Rng(1, "x").normal((2, 1, 8, 8)).double(), torch.zeros(1).double()
    first, second, middle = (network(v[None], {}, t) for v in (x[0], x[1], x.mean(0)))
    assert torch.allclose(middle, (first + second) / 2)
    assert not torch.allclose(first, second)


def test_dropout_only_in_training() -> None:
    network = build(UNetConfig(channels=(8,), heads=2, context=8, dropout=0.5), (1, 8, 8))
    x, t = Rng(1, "x").normal((2, 1, 8, 8)), torch.zeros(2)
    network.train()
    with layer_noise(Rng(2, "layers")):
        assert not torch.equal(network(x, {}, t), network(x, {}, t))
    network.eval()
    assert torch.equal(network(x, {}, t), network(x, {}, t))


def test_bfloat16_is_near_float32_and_channels_stay_last() -> None:
    network = TINY.build((1, 14, 14), (1, 14, 14), {"label": 3}, time=True)
    assert isinstance(network, UNet)
    with layer_noise(Rng(0, "init")):
        for p in network.parameters():
            p.data += 0.05 * torch.randn_like(p)
    layouts = []
    for stage in (*network.falling, *network.rising):
        for block in stage:  # type: ignore[attr-defined]
            block.register_forward_hook(
                lambda m, i, o: layouts.append(o.is_contiguous(memory_format=torch.channels_last))
            )
    x, t = Rng(1, "x").normal((8, 1, 14, 14)), torch.linspace(0, 1, 8)
    grads = []
    for enabled in (False, True):
        network.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            y = network(x, {"label": torch.arange(8) % 3}, t)
        assert y.dtype == (torch.bfloat16 if enabled else torch.float32)
        (y.float() - x).square().mean().backward()
        grads.append((y.detach().float(), torch.cat([p.grad.flatten() for p in network.parameters()])))  # type: ignore[union-attr]
    assert all(layouts)
    for full, half in zip(*grads, strict=True):
        assert (full - half).norm() < 0.05 * full.norm()


@pytest.mark.slow
def test_compiled_equals_eager() -> None:
    network = build(TINY, (1, 9, 8), std=0.1)
    x, t, cond = Rng(1, "x").normal((4, 1, 9, 8)), torch.linspace(0, 1, 4), {"label": torch.tensor([0, 1, 2, -1])}
    compiled = torch.compile(network, fullgraph=True)
    assert torch.allclose(compiled(x, cond, t), network(x, cond, t), atol=1e-4)
