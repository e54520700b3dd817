"""Causal networks over real vectors: nothing leaks from later places, and the cached form says the same."""

import pytest
import torch

from quintet.nets.causal import CausalTransformerConfig
from quintet.nets.made import MADEConfig

CONDITIONS = {"label": 3}
CASES = {
    "made": (MADEConfig(width=70, depth=3), 7, 1, (1, 7)),
    "made-groups": (MADEConfig(width=64, depth=2), 4, 3, (2, 2)),
    "made-more-inputs-than-units": (MADEConfig(width=5, depth=2), 9, 1, (1, 9)),
    "made-one": (MADEConfig(width=8, depth=1), 1, 1, (1, 1)),
    "transformer": (CausalTransformerConfig(width=8, depth=2, heads=2, hidden=16), 6, 4, (2, 3)),
    "transformer-line": (CausalTransformerConfig(width=8, depth=1, heads=1, hidden=16), 5, 1, (1, 5)),
}


@pytest.fixture(params=CASES)
def case(request):
    """Network in float64 with random weights, x (4, T, P), cond."""
    config, length, size, grid = CASES[request.param]
    torch.manual_seed(0)
    network = config.build(length, size, CONDITIONS, grid=grid, outputs=5).double().eval()
    with torch.no_grad():
        for p in network.parameters():
            p += 0.5 * torch.randn_like(p)
    return network, torch.randn(4, length, size).double(), {"label": torch.tensor([0, 1, 2, -1])}


def test_outputs_depend_on_earlier_places_and_the_label_alone(case):
    network, x, cond = case
    length = x.shape[1]
    one = {"label": cond["label"][:1]}
    jacobian = torch.autograd.functional.jacobian(lambda v: network(v[None], one)[0], x[0])  # (T, 5, T, P)
    seen = (jacobian != 0).any(1).any(-1)  # (T, T)
    assert not seen.triu(0).any()
    if length > 1:
        assert seen[-1, :-1].any()
    other = network(x, {"label": (cond["label"] + 2) % 3})
    assert (other != network(x, cond)).any(-1).any(0).all()  # the first place too


@torch.no_grad()
def test_the_cached_form_says_the_same(case):
    network, x, cond = case
    expected = network(x, cond)
    for given, wanted in ((cond, expected), ({}, network(x, {}))):
        cache = network.start(len(x), given)
        for i in range(x.shape[1]):
            out = network.next(cache, x[:, i - 1] if i else None)
            assert (out - wanted[:, i]).abs().max() < 1e-12


def test_a_grid_must_hold_the_places():
    with pytest.raises(ValueError, match="grid"):
        CausalTransformerConfig().build(7, 1, {}, grid=(2, 3), outputs=2)
    with pytest.raises(ValueError, match="heads"):
        CausalTransformerConfig(width=10, heads=4).build(6, 1, {}, grid=(2, 3), outputs=2)
