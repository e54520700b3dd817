"""FLOPs against closed forms: matrices, convolution, attention, recurrent layers, double backward, forward mode."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from quintet.core.ledger import FlopCounter
from quintet.core.numerics import higher_order
from quintet.nets.layers import attention


def count(work) -> int:  # type: ignore[no-untyped-def]
    with FlopCounter() as counter:
        work()
    return counter.total


def test_linear_forward_and_backward() -> None:
    layer, x = nn.Linear(7, 5), torch.randn(11, 7, requires_grad=True)
    assert count(lambda: layer(x)) == 2 * 11 * 7 * 5
    assert count(lambda: layer(x).sum().backward()) == 3 * 2 * 11 * 7 * 5


def test_first_layer_has_no_input_gradient() -> None:
    layer, x = nn.Linear(7, 5), torch.randn(11, 7)
    assert count(lambda: layer(x).sum().backward()) == 2 * 2 * 11 * 7 * 5


def test_convolution() -> None:
    layer, x = nn.Conv2d(3, 6, 3, padding=1), torch.randn(2, 3, 8, 8, requires_grad=True)
    forward = 2 * 2 * 8 * 8 * 6 * 3 * 9
    assert count(lambda: layer(x)) == forward
    assert count(lambda: layer(x).sum().backward()) == 3 * forward


@pytest.mark.parametrize("causal", [False, True])
def test_attention_by_the_flash_kernel_and_by_elementary_operations(causal: bool) -> None:
    b, h, t, d = 2, 3, 16, 8
    q, k, v = (torch.randn(b, h, t, d, requires_grad=True) for _ in range(3))
    forward = 2 * 2 * b * h * t * t * d
    assert count(lambda: attention(q, k, v, causal=causal)) == forward
    # flash computes the scores again in the backward pass: five products against two
    assert count(lambda: attention(q, k, v, causal=causal).sum().backward()) == forward + forward * 5 // 2

    def elementary() -> None:
        with higher_order():
            attention(q, k, v, causal=causal).sum().backward()

    assert count(elementary) == 3 * forward


def test_lstm() -> None:
    layers, width, inputs, b, t = 2, 4, 3, 5, 7
    lstm = nn.LSTM(inputs, width, num_layers=layers, batch_first=True)
    x = torch.randn(b, t, inputs, requires_grad=True)
    forward = 2 * b * t * 4 * width * ((inputs + width) + (width + width))
    assert count(lambda: lstm(x)) == forward
    assert count(lambda: lstm(x)[0].sum().backward()) == 3 * forward


def test_double_backward_of_a_gradient_penalty() -> None:
    """R1 of a two-layer network: each product of the first backward pass is differentiated once more."""
    b, n, m = 6, 5, 4
    first, second = nn.Linear(n, m, bias=False), nn.Linear(m, 1, bias=False)
    x = torch.randn(b, n, requires_grad=True)

    def penalty() -> None:
        out = second(torch.tanh(first(x))).sum()
        (grad,) = torch.autograd.grad(out, x, create_graph=True)
        grad.square().sum().backward(inputs=[first.weight, second.weight])

    one, two = 2 * b * n * m, 2 * b * m * 1
    # forward, grad of x (through both matrices), then the penalty's backward through that graph: the first matrix's
    # gradient product is differentiated in both arguments, its activation's path and the second matrix follow
    assert count(penalty) == pytest.approx((one + two) + (one + two) + (2 * one + 2 * two) + one, rel=0.2)
    plain = count(lambda: second(torch.tanh(first(x))).sum().backward())
    assert count(penalty) > 1.5 * plain


def test_forward_mode_derivative_of_a_product_is_three_products() -> None:
    x, w, dx, dw = torch.randn(11, 7), torch.randn(7, 5), torch.randn(11, 7), torch.randn(7, 5)
    plain = 2 * 11 * 7 * 5
    work = lambda: torch.func.jvp(torch.matmul, (x, w), (dx, dw))  # noqa: E731 - x w, dx w and x dw
    assert count(work) == 3 * plain
    torch.testing.assert_close(work()[1], dx @ w + x @ dw)


def test_an_operator_without_formula_is_an_error() -> None:
    x = torch.randn(1, 2, 8, 8)
    weight = torch.randn(2, 3, 2, 2)
    assert count(lambda: F.conv_transpose2d(x, weight)) > 0
    library = torch.library.Library("quintet_test", "DEF")
    library.define("my_attention(Tensor x) -> Tensor")
    library.impl("my_attention", lambda x: x.clone(), "CPU")
    with pytest.raises(NotImplementedError, match="my_attention"):
        count(lambda: torch.ops.quintet_test.my_attention(x))
