"""The causal Transformer: causality, cache, neighbourhoods, attention against a naive softmax."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from quintet.core.rng import Rng, layer_noise
from quintet.nets.entry import level_features, neighbours
from quintet.nets.layers import attention
from quintet.nets.transformer import Transformer, TransformerConfig


def randomised(config: TransformerConfig, length: int, grid: tuple[int, ...], conditions=None, seed: int = 0):
    """A network in eval mode whose every parameter matters (projections start at zero otherwise)."""
    with layer_noise(Rng(seed, "init")):
        net = config.build(length, 7, conditions or {}, grid=grid, outputs=5).double().eval()
        for p in net.parameters():
            nn.init.normal_(p, std=0.3)
    return net


CONFIG = TransformerConfig(width=24, depth=2, heads=3, hidden=40, reach=2, waves=3, dropout=0.3)
GRIDS = [(1, 3, 4), (12,), (2, 3, 2)]


def tokens(n: int, length: int, seed: int = 1):
    return Rng(seed, "tokens").integers(0, 7, (n, length))


@pytest.mark.parametrize("grid", GRIDS)
def test_outputs_depend_on_every_earlier_token_and_on_no_later_one(grid):
    """By gradient through the embedded tokens, and by changing each token in turn (values seen as numbers too)."""
    net = randomised(CONFIG, 12, grid)
    x = tokens(3, 12)
    base = net(x, {})
    for j in range(12):
        other = x.clone()
        other[:, j] = (other[:, j] + 3) % 7
        change = (net(other, {}) - base).abs().amax((0, 2))
        assert change[: j + 1].max() == 0
        assert j == 11 or change[j + 1 :].min() > 0


@pytest.mark.parametrize("grid", GRIDS)
def test_gradient_of_outputs_to_embeddings_is_zero_at_and_after_the_position(grid):
    net = randomised(CONFIG, 12, grid)
    embedded: list[torch.Tensor] = []

    def keep(module, args, result):
        result = result.detach().requires_grad_(True)
        embedded.append(result)
        return result

    handle = net.entry.token.register_forward_hook(keep)
    out = net(tokens(2, 12), {})
    handle.remove()
    for i in range(12):
        (gradient,) = torch.autograd.grad(out[:, i].sum(), embedded[0], retain_graph=True)
        reach = gradient.abs().amax((0, 2))  # row j holds the embedding of token j - 1
        assert reach[: i + 1].min() > 0
        assert i == 11 or reach[i + 1 :].max() == 0


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_cached_form_equals_the_full_one(grid, dtype, tolerance):
    net = randomised(CONFIG, 12, grid, {"label": 4}).to(dtype)
    x, cond = tokens(5, 12), {"label": torch.tensor([0, 1, 2, 3, -1])}
    full = net(x, cond)
    cache = net.start(5, cond)
    steps = [net.next(cache, x[:, i - 1] if i else None) for i in range(12)]
    torch.testing.assert_close(torch.stack(steps, 1), full, rtol=tolerance, atol=tolerance)


def test_items_do_not_see_each_other():
    net = randomised(CONFIG, 12, (3, 4), {"label": 4})
    x, y = tokens(6, 12), torch.tensor([0, 1, 2, 3, 0, 1])
    together = net(x, {"label": y})
    for i in range(6):
        torch.testing.assert_close(net(x[i : i + 1], {"label": y[i : i + 1]})[0], together[i], rtol=1e-10, atol=1e-10)


def test_reordered_cache_continues_the_chosen_rows():
    net = randomised(CONFIG, 12, (3, 4))
    x, rows = tokens(4, 12), torch.tensor([2, 2, 0, 3])
    cache = net.start(4, {})
    for i in range(6):
        net.next(cache, x[:, i - 1] if i else None)
    cache.reorder(rows)
    moved = torch.cat([x[rows, :5], tokens(4, 7, seed=5)], 1)
    expected = net(moved, {})
    for i in range(6, 12):
        torch.testing.assert_close(net.next(cache, moved[:, i - 1]), expected[:, i], rtol=1e-10, atol=1e-10)


def test_absent_condition_is_the_unconditional_one_and_the_condition_matters_everywhere():
    net = randomised(CONFIG, 12, (3, 4), {"label": 4})
    x = tokens(2, 12)
    without = net(x, {})
    torch.testing.assert_close(net(x, {"label": torch.tensor([-1, -1])}), without)
    assert (net(x, {"label": torch.tensor([1, 1])}) - without).abs().amax((0, 2)).min() > 0


def test_untrained_network_gives_zeros_and_every_parameter_can_learn():
    net = CONFIG.build(12, 7, {"label": 4}, grid=(3, 4), outputs=5)
    assert net(tokens(3, 12), {}).abs().max() == 0
    net = randomised(CONFIG, 12, (3, 4), {"label": 4}).train()
    net(tokens(64, 12), {"label": Rng(0, "y").integers(-1, 4, (64,))}).square().sum().backward()
    for name, p in net.named_parameters():
        assert p.grad is not None, name
        assert p.grad.abs().max() > 0, name


def test_neighbours_are_the_earlier_cells_within_reach():
    table = neighbours((4, 5), 2)
    places = list(itertools.product(range(4), range(5)))
    for i, (r, c) in enumerate(places):
        expected = {j for j, (s, d) in enumerate(places) if j < i and abs(r - s) <= 2 and abs(c - d) <= 2}
        assert set(table[i].tolist()) - {20} == expected
        assert len(set(table[i].tolist()) - {20}) == (table[i] != 20).sum()


def test_level_features_are_smooth_and_tell_every_level_and_the_outside_apart():
    table = level_features(17, 2).double()
    apart = torch.cdist(table, table) + torch.eye(18) * 9
    assert apart.min() > 0.05
    assert table[-1].abs().max() == 0
    steps = (table[1:17] - table[:16]).norm(dim=1)
    assert steps.max() < 0.2 * (table[:17].amax(0) - table[:17].amin(0)).norm()


@pytest.mark.parametrize("causal", [True, False])
def test_attention_is_a_softmax_of_scaled_products(causal):
    q, k, v = (Rng(i, "attention").normal((2, 3, 6, 4), torch.float64) for i in range(3))
    expected = torch.zeros_like(v)
    for b, h, i in itertools.product(range(2), range(3), range(6)):
        seen = range(i + 1) if causal else range(6)
        weight = [math.exp(float(q[b, h, i] @ k[b, h, j]) / 2) for j in seen]
        expected[b, h, i] = sum(w * v[b, h, j] for w, j in zip(weight, seen, strict=True)) / sum(weight)
    torch.testing.assert_close(attention(q, k, v, causal=causal), expected, rtol=1e-12, atol=1e-12)


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="does not hold"):
        CONFIG.build(12, 7, {}, grid=(3, 5), outputs=5)
    with pytest.raises(ValueError, match="heads"):
        TransformerConfig(width=10, heads=3).build(12, 7, {}, grid=(12,), outputs=5)
    net = CONFIG.build(12, 7, {}, grid=(12,), outputs=5)
    assert isinstance(net, Transformer)
    with pytest.raises(ValueError, match=r"\(B, 12\)"):
        net(tokens(2, 11), {})
    cache = net.start(2, {})
    with pytest.raises(ValueError, match="position 0"):
        net.next(cache, torch.tensor([0, 1]))
