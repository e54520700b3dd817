"""Which products run in bfloat16, which do not, and that gradients reach the master weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from quintet.core.memory import halving, out_of_memory
from quintet.core.numerics import autocast, full, full_precision

CPU = torch.device("cpu")


def test_products_run_in_bfloat16_except_where_said() -> None:
    layer, x = nn.Linear(8, 8), torch.randn(4, 8)
    with autocast(CPU, "bfloat16"):
        assert layer(x).dtype == torch.bfloat16
        with full_precision():
            assert layer(x).dtype == torch.float32
            torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
        assert full(layer(x)).dtype == torch.float32
        assert layer.double()(x.double()).dtype == torch.float64
    with autocast(CPU, "float32"):
        assert layer.float()(x).dtype == torch.float32
    with full_precision():  # outside autocast it changes nothing
        assert layer(x).dtype == torch.float32


def test_a_call_without_gradient_does_not_take_it_from_a_later_one() -> None:
    layer, x = nn.Linear(8, 8), torch.randn(4, 8)
    with autocast(CPU, "bfloat16"):
        with torch.no_grad():
            layer(x)
        layer(x).float().sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32
    assert bool(layer.weight.grad.any())


def test_memory_errors_are_known_by_their_words() -> None:
    assert out_of_memory(MemoryError())
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert out_of_memory(RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: not enough memory"))
    assert out_of_memory(RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"))
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not out_of_memory(ValueError("out of memory"))


def test_a_real_allocation_that_cannot_be_had_is_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert out_of_memory(caught.value)


def test_work_is_halved_until_it_fits() -> None:
    asked: list[int] = []

    def work(size: int) -> str:
        asked.append(size)
        if size > 3:
            raise MemoryError
        return "done"

    assert halving(work, 20) == ("done", 3)
    assert asked == [20, 10, 5, 3]
    asked.clear()
    with pytest.raises(MemoryError):
        halving(work, 20, 8)
    assert asked == [20, 10, 8]
    with pytest.raises(MemoryError):
        halving(lambda size: work(size + 3), 20)
