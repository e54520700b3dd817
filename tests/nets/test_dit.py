"""The DiT: rotations by relative place, normalised queries and keys, what reaches what, number formats, compilation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from quintet.core.rng import Rng, layer_noise
from quintet.nets.dit import DiT, DiTBlock, DiTConfig, rotate, rotation
from quintet.train.optim import hidden_matrices

TINY = DiTConfig(patch=2, width=16, depth=2, heads=2, hidden=24, context=8)


def build(config: DiTConfig, shape: tuple[int, int, int], *, std: float = 0.3) -> DiT:
    """With every parameter away from the zeros it starts with."""
    with layer_noise(Rng(0, "init")):
        network = config.build(shape, shape, {"label": 3}, time=True)
        for p in network.parameters():
            nn.init.normal_(p, std=std)
    assert isinstance(network, DiT)
    return network


def test_rotated_products_depend_on_relative_places_alone() -> None:
    rows, columns, width = 4, 5, 8
    cos, sin = (table.double() for table in rotation(rows, columns, width))
    q, k = Rng(1, "qk").normal((2, 1, 1, 1, width)).double()
    turned_q, turned_k = (rotate(v.expand(1, rows * columns, 1, width), cos, sin)[0, :, 0] for v in (q, k))
    products = (turned_q @ turned_k.T).reshape(rows, columns, rows, columns)
    for dr in range(-2, 3):
        for dc in range(-2, 3):
            same = [
                products[r, c, r + dr, c + dc]
                for r in range(rows)
                for c in range(columns)
                if 0 <= r + dr < rows and 0 <= c + dc < columns
            ]
            assert torch.stack(same).std() < 1e-6
    assert products[0, 0, 0, 1] != pytest.approx(products[0, 0, 1, 0].item(), abs=1e-3)  # axes differ
    assert products[0, 0, 0, 1] != pytest.approx(products[0, 1, 0, 0].item(), abs=1e-3)  # and directions
    assert torch.allclose(turned_q.norm(dim=-1), q.norm().expand(rows * columns))


def test_rotation_refuses_odd_widths() -> None:
    with pytest.raises(ValueError, match="divisible by 4"):
        rotation(2, 2, 6)


def test_queries_and_keys_are_normalised() -> None:
    """Larger query and key weights leave a block's output as it is; larger value weights do not."""
    block = DiTBlock(16, 2, 24, 0.0).double()
    h = Rng(1, "h").normal((2, 6, 16)).double()
    modulation = [m.double() for m in Rng(2, "m").normal((6, 2, 1, 16))]
    cos, sin = (table.double() for table in rotation(2, 3, 8))
    before = block(h, modulation, cos, sin)
    with torch.no_grad():
        block.split.weight[:32] *= 50
    assert torch.allclose(block(h, modulation, cos, sin), before, atol=1e-3)
    with torch.no_grad():
        block.split.weight[32:] *= 2
    assert not torch.allclose(block(h, modulation, cos, sin), before, atol=1e-3)


@pytest.mark.parametrize(("shape", "patch"), [((1, 8, 8), 2), ((3, 7, 5), 2), ((2, 9, 6), 4), ((1, 2, 9), 4)])
def test_any_size_and_gradients_reach_all(shape: tuple[int, int, int], patch: int) -> None:
    config = DiTConfig(patch=patch, width=16, depth=2, heads=2, hidden=24, context=8)
    network = build(config, shape)
    x = Rng(1, "x").normal((5, *shape))
    y = network(x, {"label": torch.tensor([0, 1, 2, -1, 0])}, torch.linspace(0, 1, 5))
    assert y.shape == x.shape
    y.square().mean().backward()
    for name, p in network.named_parameters():
        assert p.grad is not None, name
        assert p.grad.abs().sum() > 0, name


def test_starts_at_zero_and_learns_from_the_first_step() -> None:
    network = TINY.build((1, 6, 6), (2, 6, 6), {}, time=True)
    x, t = torch.ones(2, 1, 6, 6), torch.zeros(2)
    assert not network(x, {}, t).any()
    network(x, {}, t).sum().backward()
    assert network.leave.weight.grad.abs().sum() > 0  # type: ignore[union-attr]


def test_refusals() -> None:
    with pytest.raises(ValueError, match="images of one size"):
        TINY.build((4,), (4,), {})
    with pytest.raises(ValueError, match="heads"):
        DiTConfig(width=16, heads=3).build((1, 8, 8), (1, 8, 8), {})
    with pytest.raises(ValueError, match="divisible by 4"):
        DiTConfig(width=12, heads=2).build((1, 8, 8), (1, 8, 8), {})


def test_time_and_conditions_matter_and_rows_are_their_own() -> None:
    network = build(TINY, (1, 8, 8)).double()
    x = Rng(1, "x").normal((1, 1, 8, 8)).double().expand(4, -1, -1, -1)
    label, t = torch.tensor([0, 1, -1, 0]), torch.tensor([0.2, 0.2, 0.2, 0.7]).double()
    y = network(x, {"label": label}, t)
    for i in range(1, 4):
        assert (y[i] - y[0]).abs().max() > 1e-3
    assert torch.allclose(network(x[:1], {}, t[:1]), y[2:3])
    alone = torch.cat([network(x[i : i + 1], {"label": label[i : i + 1]}, t[i : i + 1]) for i in range(4)])
    assert torch.allclose(alone, y, atol=1e-12)


def test_places_enter_by_their_tables_alone() -> None:
    """Exchanging two patches, with what the network holds of their places, exchanges them in the output."""
    network = build(TINY, (1, 4, 6)).double()
    x = Rng(1, "x").normal((1, 1, 4, 6)).double()
    t = torch.full((1,), 0.5).double()

    def exchanged(image: torch.Tensor) -> torch.Tensor:
        out = image.clone()  # patches 0 (row 0, column 0) and 5 (row 1, column 2)
        out[..., :2, :2], out[..., 2:, 4:] = image[..., 2:, 4:], image[..., :2, :2]
        return out

    expected = exchanged(network(x, {}, t))
    assert not torch.allclose(network(exchanged(x), {}, t), expected, atol=1e-3)
    order = torch.tensor([5, 1, 2, 3, 4, 0])
    with torch.no_grad():
        network.place.copy_(network.place[order])
        network.cos, network.sin = network.cos[order], network.sin[order]
    assert torch.allclose(network(exchanged(x), {}, t), expected, atol=1e-10)


def test_with_closed_gates_a_patch_sees_itself_alone() -> None:
    network = build(TINY, (1, 6, 4))
    x = Rng(1, "x").normal((1, 1, 6, 4)).requires_grad_()

    def reached() -> torch.Tensor:
        y = network(x, {}, torch.zeros(1))
        (grad,) = torch.autograd.grad(y[0, 0, 2:4, 0:2].sum(), x)
        return grad[0, 0] != 0

    assert reached().all()
    for p in (network.modulate.weight, network.modulate.bias, network.offsets):
        nn.init.zeros_(p)
    own = torch.zeros(6, 4, dtype=torch.bool)
    own[2:4, 0:2] = True
    assert torch.equal(reached(), own)


def test_gradient_against_finite_differences() -> None:
    network = build(DiTConfig(patch=2, width=8, depth=1, heads=1, hidden=8, context=4), (1, 4, 3)).double()
    x = Rng(1, "x").normal((2, 1, 4, 3)).double().requires_grad_()
    t = torch.tensor([0.3, 0.9]).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x, t: network(x, {"label": torch.tensor([1, -1])}, t), (x, t))


def test_muon_gets_the_matrices_of_the_blocks() -> None:
    network = build(TINY, (1, 8, 8))
    matrices = {id(m) for m in hidden_matrices(network)}
    for block in network.blocks:
        assert {id(p) for p in block.parameters()} <= matrices
    for layer in (network.enter, network.modulate, network.leave):
        assert id(layer.weight) not in matrices


def test_bfloat16_is_near_float32() -> None:
    network = build(TINY, (1, 8, 8), std=0.2)
    x, t = Rng(1, "x").normal((8, 1, 8, 8)), torch.linspace(0, 1, 8)
    found = []
    for enabled in (False, True):
        network.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            y = network(x, {"label": torch.arange(8) % 3}, t)
        assert y.dtype == (torch.bfloat16 if enabled else torch.float32)
        (y.float() - x).square().mean().backward()
        found.append((y.detach().float(), torch.cat([p.grad.flatten() for p in network.parameters()])))  # type: ignore[union-attr]
    for full, half in zip(*found, strict=True):
        assert (full - half).norm() < 0.1 * full.norm()


@pytest.mark.slow
def test_compiled_equals_eager() -> None:
    network = build(TINY, (1, 8, 7), std=0.1)
    x, t, cond = Rng(1, "x").normal((4, 1, 8, 7)), torch.linspace(0, 1, 4), {"label": torch.tensor([0, 1, 2, -1])}
    compiled = torch.compile(network, fullgraph=True)
    assert torch.allclose(compiled(x, cond, t), network(x, cond, t), atol=1e-4)
