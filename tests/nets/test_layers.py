"""Shared layers against their definitions: attention in both ways of computing it, RMS norm."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from quintet.core.numerics import SHORT, autocast
from quintet.core.rng import Rng
from quintet.nets.layers import attention, rms_norm


def by_hand(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool) -> torch.Tensor:
    """Position by position, in float64."""
    q, k, v = q.double(), k.double(), v.double()
    out = torch.empty_like(q)
    for i in range(q.shape[2]):
        seen = i + 1 if causal else k.shape[2]
        scores = (k[:, :, :seen] * q[:, :, i : i + 1]).sum(-1) / math.sqrt(q.shape[-1])
        out[:, :, i] = (scores.exp() / scores.exp().sum(-1, keepdim=True))[..., None].mul(v[:, :, :seen]).sum(2)
    return out


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("precision", ["float64", "bfloat16"])
def test_attention(causal: bool, precision: str) -> None:
    """In bf16 with gradients short lengths go by elementary operations, and both ways give the same gradients."""
    half = precision == "bfloat16"
    q, k, v = Rng(1, "qkv").normal((3, 2, 3, 7, 4), torch.float64).to(torch.float32 if half else torch.float64)
    exact = [part.double().requires_grad_() for part in (q, k, v)]
    by_hand(*exact, causal).square().sum().backward()  # type: ignore[arg-type]
    parts = [part.detach().clone().requires_grad_() for part in (q, k, v)]
    with autocast(torch.device("cpu"), "bfloat16" if half else "float32"):
        y = attention(*parts, causal=causal)  # type: ignore[arg-type]
    assert y.dtype == (torch.bfloat16 if half else torch.float64)
    tolerance = 0.03 if half else 1e-10
    assert torch.allclose(y.double(), by_hand(q, k, v, causal), atol=tolerance)
    y.double().square().sum().backward()
    for part, reference in zip(parts, exact, strict=True):
        assert part.grad is not None
        assert reference.grad is not None
        error = (part.grad.double() - reference.grad).norm() / reference.grad.norm()
        assert error < tolerance


def test_attention_in_long_sequences_keeps_no_table() -> None:
    """Beyond SHORT the fused kernel is used in bf16 too: its graph has no softmax of its own; so without gradients."""

    def names(length: int, gradient: bool = True) -> str:
        q = torch.zeros(1, 1, length, 4, requires_grad=True)
        with autocast(torch.device("cpu"), "bfloat16"):
            y = F.scaled_dot_product_attention(q, q, q if gradient else q.detach())  # as anybody's network calls it
        node, found = y.grad_fn, []
        while node is not None:
            found.append(node.name())
            node = node.next_functions[0][0] if node.next_functions else None
        return " ".join(found)

    assert "Softmax" in names(SHORT)
    assert "Softmax" not in names(SHORT + 1)
    assert "Softmax" not in names(SHORT, gradient=False)


def test_what_short_attention_has_not_is_left_to_torch() -> None:
    q, k, v = Rng(1, "qkv").normal((3, 2, 4, 7, 8))
    v = v.requires_grad_()
    mask = torch.ones(7, 7, dtype=torch.bool).tril()
    for options in ({"attn_mask": mask}, {"scale": 0.2}, {"attn_mask": mask, "scale": 0.2}):
        expected = F.scaled_dot_product_attention(q, k, v, **options)  # type: ignore[arg-type]
        with autocast(torch.device("cpu"), "bfloat16"):
            y = F.scaled_dot_product_attention(q, k, v, **options)  # type: ignore[arg-type]
        assert y.dtype == torch.bfloat16
        assert torch.allclose(y.float(), expected, atol=0.03)
    with autocast(torch.device("cpu"), "bfloat16"):  # double precision is not autocast's business
        assert F.scaled_dot_product_attention(q.double(), k.double(), v.double()).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rms_norm(dtype: torch.dtype) -> None:
    x = (1e3 * Rng(1, "x").normal((5, 9))).to(dtype)
    y = rms_norm(x)
    assert y.dtype == dtype
    expected = torch.stack([row / math.sqrt(sum(v * v for v in row.tolist()) / 9) for row in x.double()])
    assert torch.allclose(y.double(), expected, rtol={torch.float64: 1e-9, torch.float32: 1e-5}.get(dtype, 0.02))
    assert torch.equal(rms_norm(torch.zeros(2, 3, dtype=dtype)), torch.zeros(2, 3, dtype=dtype))
