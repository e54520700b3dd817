"""The causal network over pixels: causality, cache, windows against a loop, all values of a pixel."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from quintet.core.rng import Rng, layer_noise
from quintet.nets.local import CausalConv, LocalConfig, LocalNetwork

CONFIG = LocalConfig(
    width=12, depth=2, hidden=10, head=9, window=(2, 3), first=(3, 5), heads=2, every=2, waves=2, dropout=0.3
)
GRIDS = [(4, 5, 1), (3, 4, 3), (5, 1, 2), (1, 6, 1)]


def randomised(grid: tuple[int, int, int], conditions=None, config: LocalConfig = CONFIG) -> LocalNetwork:
    """A network in eval mode whose every parameter matters (outputs start at zero otherwise)."""
    with layer_noise(Rng(0, "init")):
        net = config.build(grid[0] * grid[1] * grid[2], 7, conditions or {}, grid=grid, outputs=5).double().eval()
        for p in net.parameters():
            nn.init.normal_(p, std=0.4)
    return net


def tokens(n: int, length: int, seed: int = 1):
    return Rng(seed, "tokens").integers(0, 7, (n, length))


@pytest.mark.parametrize("grid", GRIDS)
def test_outputs_depend_on_earlier_values_within_the_windows_and_on_no_later_one(grid):
    net = randomised(grid)
    x = tokens(3, net.length)
    base = net(x, {})
    for j in range(net.length):
        other = x.clone()
        other[:, j] = (other[:, j] + 3) % 7
        change = (net(other, {}) - base).abs().amax((0, 2))
        assert change[: j + 1].max() == 0
        row, column, value = (int(k) for k in torch.unravel_index(torch.tensor(j), grid))
        later = change.view(grid)
        assert value == grid[2] - 1 or later[row, column, value + 1 :].min() > 0  # of the same pixel
        assert column == grid[1] - 1 or later[row, column + 1].min() > 0  # to the right
        assert row == grid[0] - 1 or later[row + 1, max(column - 1, 0) : column + 2].min() > 0  # below


def test_gradient_of_outputs_to_the_levels_features_is_zero_at_and_after_the_value():
    net = randomised((3, 4, 2))
    x = tokens(2, net.length)
    for name in ("entry", "head"):
        seen: list[torch.Tensor] = []

        def keep(module, args, seen=seen):
            seen.append(args[0].detach().requires_grad_(True))
            return (seen[-1],)

        handles = [layer.register_forward_pre_hook(keep) for layer in ([net.look] if name == "entry" else net.given)]
        out = net(x, {}).view(2, 3, 4, 2, 5)
        for handle in handles:
            handle.remove()
        for row in range(3):
            for column in range(4):
                (gradient,) = torch.autograd.grad(out[:, row, column].sum(), seen[0], retain_graph=True)
                reach = gradient.abs().amax((0, 3)).flatten()
                here = row * 4 + column
                if name == "entry":  # a pixel's trunk sees earlier pixels alone
                    assert reach[here:].max() == 0
                    assert here == 0 or reach[:here].max() > 0
                else:  # a head sees the earlier values of its own pixel
                    assert reach[here] > 0
                    assert torch.cat([reach[:here], reach[here + 1 :]]).max() == 0


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_cached_form_equals_the_full_one(grid, dtype, tolerance):
    net = randomised(grid, {"label": 4}).to(dtype)
    x, cond = tokens(5, net.length), {"label": torch.tensor([0, 1, 2, 3, -1])}
    full = net(x, cond)
    cache = net.start(5, cond)
    steps = [net.next(cache, x[:, i - 1] if i else None) for i in range(net.length)]
    torch.testing.assert_close(torch.stack(steps, 1), full, rtol=tolerance, atol=tolerance)


def test_reordered_cache_continues_the_chosen_rows():
    net = randomised((3, 4, 2), {"label": 3})
    x, rows, label = tokens(4, 24), torch.tensor([2, 2, 0, 3]), torch.tensor([0, 1, 2, -1])
    cache = net.start(4, {"label": label})
    for i in range(14):
        net.next(cache, x[:, i - 1] if i else None)
    cache.reorder(rows)
    moved = torch.cat([x[rows, :13], tokens(4, 11, seed=5)], 1)
    expected = net(moved, {"label": label[rows]})
    for i in range(14, 24):
        torch.testing.assert_close(net.next(cache, moved[:, i - 1]), expected[:, i], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("itself", [False, True])
def test_causal_convolution_against_a_loop(itself):
    conv = CausalConv(2, 3, 3, 5, itself=itself).double()
    h = Rng(0, "h").normal((2, 4, 6, 2), torch.float64)
    found = conv(h)
    weight = conv.weight.view(3, -1, 2)
    for row in range(4):
        for column in range(6):
            expected, k = torch.zeros(2, 3, dtype=torch.float64), 0
            for dy in (-2, -1, 0):
                for dx in (-2, -1, 0, 1, 2):
                    if (dy, dx) > (0, 0 if itself else -1):
                        continue
                    if row + dy >= 0 and 0 <= column + dx < 6:
                        expected = expected + h[:, row + dy, column + dx] @ weight[:, k].T
                    k += 1
            assert k == conv.seen
            torch.testing.assert_close(found[:, row, column], expected, rtol=1e-10, atol=1e-10)


def test_items_do_not_see_each_other_and_the_condition_matters_everywhere():
    net = randomised((3, 4, 2), {"label": 4})
    x, y = tokens(6, 24), torch.tensor([0, 1, 2, 3, 0, 1])
    together = net(x, {"label": y})
    for i in range(6):
        torch.testing.assert_close(net(x[i : i + 1], {"label": y[i : i + 1]})[0], together[i], rtol=1e-10, atol=1e-10)
    without = net(x, {})
    torch.testing.assert_close(net(x, {"label": torch.full((6,), -1)}), without)
    assert (together - without).abs().amax((0, 2)).min() > 0


def test_untrained_network_gives_zeros_and_every_parameter_can_learn():
    net = CONFIG.build(24, 7, {"label": 4}, grid=(3, 4, 2), outputs=5)
    assert net(tokens(3, 24), {}).abs().max() == 0
    net = randomised((3, 4, 2), {"label": 4}).train()
    net(tokens(64, 24), {"label": Rng(0, "y").integers(-1, 4, (64,))}).square().sum().backward()
    for name, p in net.named_parameters():
        assert p.grad is not None, name
        assert p.grad.abs().max() > 0, name


def test_it_runs_in_half_precision():
    net = randomised((3, 4, 2)).float()
    x = tokens(3, 24)
    with torch.no_grad():
        whole = net(x, {})
        with torch.autocast("cpu", torch.bfloat16):
            half = net(x, {})
    assert half.dtype == torch.bfloat16
    assert (half.float() - whole).norm() < 0.05 * whole.norm()


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="grid"):
        CONFIG.build(24, 7, {}, grid=(4, 6), outputs=5)
    with pytest.raises(ValueError, match="odd number"):
        LocalConfig(window=(3, 4))
    net = CONFIG.build(24, 7, {}, grid=(3, 4, 2), outputs=5)
    with pytest.raises(ValueError, match=r"\(B, 24\)"):
        net(tokens(2, 23), {})
    with pytest.raises(ValueError, match="value 0"):
        net.next(net.start(2, {}), torch.tensor([0, 1]))
