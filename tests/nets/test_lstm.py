"""The recurrent network: against a cell written by hand, causality, cache."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from quintet.core.ledger import FlopCounter
from quintet.core.rng import Rng, layer_noise
from quintet.nets.lstm import Lstm, LstmConfig

CONFIG = LstmConfig(width=10, depth=2, reach=1, waves=2, dropout=0.2)
GRIDS = [(3, 4), (12,), (2, 3, 2)]


def randomised(grid: tuple[int, ...], conditions=None, config: LstmConfig = CONFIG) -> Lstm:
    """A network in eval mode whose every parameter matters (outputs start at zero otherwise)."""
    with layer_noise(Rng(0, "init")):
        net = config.build(12, 7, conditions or {}, grid=grid, outputs=5).double().eval()
        for p in net.parameters():
            nn.init.normal_(p, std=0.4)
    return net


def tokens(n: int, length: int = 12, seed: int = 1):
    return Rng(seed, "tokens").integers(0, 7, (n, length))


def test_layers_are_the_cell_of_the_papers():
    """Gates and memory written out: i, f, o by sigmoids, candidate and output by tanh."""
    net = randomised((12,), {"label": 3})
    x, cond = tokens(4), {"label": torch.tensor([0, 1, 2, -1])}
    h = net.entry(x, cond)  # (B, T, W)
    parameters = dict(net.layers.named_parameters())
    for layer in range(2):
        w_x, w_h, b_x, b_h = (
            parameters[f"{n}_l{layer}"].detach() for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        state = cell = torch.zeros(4, 10, dtype=torch.float64)
        out = []
        for t in range(12):
            i, f, g, o = (h[:, t] @ w_x.T + b_x + state @ w_h.T + b_h).chunk(4, 1)
            cell = 1 / (1 + (-f).exp()) * cell + 1 / (1 + (-i).exp()) * g.tanh()
            state = 1 / (1 + (-o).exp()) * cell.tanh()
            out.append(state)
        h = torch.stack(out, 1)
    torch.testing.assert_close(net(x, cond), net.leave(F.layer_norm(h, (10,))), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("grid", GRIDS)
def test_outputs_depend_on_every_earlier_token_and_on_no_later_one(grid):
    net = randomised(grid)
    x = tokens(3)
    base = net(x, {})
    for j in range(12):
        other = x.clone()
        other[:, j] = (other[:, j] + 3) % 7
        change = (net(other, {}) - base).abs().amax((0, 2))
        assert change[: j + 1].max() == 0
        assert j == 11 or change[j + 1 :].min() > 0


def test_gradient_to_the_embedded_tokens_is_zero_at_and_after_the_position():
    net = randomised((3, 4))
    seen: list[torch.Tensor] = []

    def keep(module, args, result):
        seen.append(result.detach().requires_grad_(True))
        return seen[-1]

    handle = net.entry.token.register_forward_hook(keep)
    out = net(tokens(2), {})
    handle.remove()
    for i in range(12):
        (gradient,) = torch.autograd.grad(out[:, i].sum(), seen[0], retain_graph=True)
        reach = gradient.abs().amax((0, 2))  # row j holds the embedding of token j - 1
        assert reach[: i + 1].min() > 0
        assert i == 11 or reach[i + 1 :].max() == 0


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_cached_form_equals_the_full_one(grid, dtype, tolerance):
    net = randomised(grid, {"label": 4}).to(dtype)
    x, cond = tokens(5), {"label": torch.tensor([0, 1, 2, 3, -1])}
    full = net(x, cond)
    cache = net.start(5, cond)
    steps = [net.next(cache, x[:, i - 1] if i else None) for i in range(12)]
    torch.testing.assert_close(torch.stack(steps, 1), full, rtol=tolerance, atol=tolerance)


def test_reordered_cache_continues_the_chosen_rows():
    net = randomised((3, 4))
    x, rows = tokens(4), torch.tensor([2, 2, 0, 3])
    cache = net.start(4, {})
    for i in range(6):
        net.next(cache, x[:, i - 1] if i else None)
    cache.reorder(rows)
    moved = torch.cat([x[rows, :5], tokens(4, 7, seed=5)], 1)
    expected = net(moved, {})
    for i in range(6, 12):
        torch.testing.assert_close(net.next(cache, moved[:, i - 1]), expected[:, i], rtol=1e-10, atol=1e-10)


def test_untrained_network_gives_zeros_and_every_parameter_can_learn():
    net = CONFIG.build(12, 7, {"label": 4}, grid=(3, 4), outputs=5)
    assert net(tokens(3), {}).abs().max() == 0
    assert net.layers.bias_ih_l0[10:20].eq(1).all()
    net = randomised((3, 4), {"label": 4}).train()
    net(tokens(64), {"label": Rng(0, "y").integers(-1, 4, (64,))}).square().sum().backward()
    for name, p in net.named_parameters():
        assert p.grad is not None, name
        assert p.grad.abs().max() > 0, name


def test_the_ledger_counts_the_recurrence():
    net = CONFIG.build(12, 7, {}, grid=(12,), outputs=5)
    with FlopCounter() as counter:
        net(tokens(6), {}).sum().backward()
    inside = sum(p.numel() for p in net.layers.parameters() if p.ndim == 2)
    ends = net.entry.look.weight.numel() + net.leave.weight.numel()
    # forward and both gradients of every product; the entry's inputs need none
    assert counter.total == pytest.approx(6 * 6 * 12 * (inside + ends), rel=0.1)
