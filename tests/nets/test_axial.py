"""Attention along the axes of a grid: against a loop over pixels, causality by gradient, the cached form."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from quintet.core.rng import Rng, layer_noise
from quintet.nets.axial import AxialAttention

GRIDS = [(4, 5), (1, 6), (5, 1)]


def randomised(width: int = 12, heads: int = 4) -> AxialAttention:
    """Every parameter matters (the last product starts at zero otherwise)."""
    with layer_noise(Rng(0, "init")):
        layer = AxialAttention(width, heads).double()
        for p in layer.parameters():
            nn.init.normal_(p, std=0.5)
    return layer


def pixels(grid: tuple[int, int], n: int = 3, width: int = 12):
    return Rng(1, "h").normal((n, *grid, width), torch.float64)


@pytest.mark.parametrize("grid", GRIDS)
def test_against_a_loop(grid):
    """By hand, pixel by pixel: a softmax over the column for the first heads, over the row for the others."""
    layer, h = randomised(), pixels(grid)
    q, k, v = layer.qkv(h).unflatten(-1, (3, 4, 3)).unbind(-3)  # each (n, R, C, 4, 3)
    q, k = ((u - u.mean(-1, keepdim=True)) / (u.var(-1, correction=0, keepdim=True) + 1e-5).sqrt() for u in (q, k))
    expected = torch.zeros_like(h)
    for n in range(len(h)):
        for row in range(grid[0]):
            for column in range(grid[1]):
                heads = []
                for head in range(4):
                    if head < 2:
                        seen = [(r, column) for r in range(row + 1)]
                    else:
                        seen = [(row, c) for c in range(column + 1)]
                    sharp = float(layer.sharpness[head].detach().exp()) / math.sqrt(3)
                    scores = torch.stack([sharp * q[n, row, column, head] @ k[n, r, c, head] for r, c in seen])
                    weights = scores.exp() / scores.exp().sum()
                    heads.append(sum(w * v[n, r, c, head] for w, (r, c) in zip(weights, seen, strict=True)))
                expected[n, row, column] = layer.merge.weight @ torch.cat(heads)
    torch.testing.assert_close(layer(h), expected, rtol=1e-10, atol=1e-10)


def test_gradient_reaches_the_pixels_above_and_to_the_left_and_no_other():
    layer, h = randomised(), pixels((4, 5)).requires_grad_(True)
    out = layer(h)
    for row in range(4):
        for column in range(5):
            (gradient,) = torch.autograd.grad(out[:, row, column].sum(), h, retain_graph=True)
            reach = gradient.abs().amax((0, 3)) > 0
            expected = torch.zeros(4, 5, dtype=torch.bool)
            expected[: row + 1, column] = True
            expected[row, : column + 1] = True
            assert torch.equal(reach, expected)


@pytest.mark.parametrize("grid", GRIDS)
def test_cached_form_equals_the_full_one(grid):
    layer, h = randomised(), pixels(grid)
    whole = layer(h)
    sight = layer.start(3, *grid)
    for row in range(grid[0]):
        for column in range(grid[1]):
            one = layer.at(h[:, row, column], sight, row, column)
            torch.testing.assert_close(one, whole[:, row, column], rtol=1e-10, atol=1e-10)


def test_it_runs_in_half_precision_and_starts_at_nothing():
    assert AxialAttention(12, 2)(torch.randn(2, 3, 4, 12)).abs().max() == 0
    layer, h = randomised().float(), F.layer_norm(pixels((4, 5)).float(), (12,))
    whole = layer(h)
    with torch.autocast("cpu", torch.bfloat16):
        half = layer(h)
    assert half.dtype == torch.bfloat16
    assert (half.float() - whole).norm() < 0.05 * whole.norm()


@pytest.mark.parametrize("heads", [0, 1, 3, 8])
def test_heads_that_do_not_fit_are_refused(heads):
    with pytest.raises(ValueError, match="even number of heads"):
        AxialAttention(12, heads)
