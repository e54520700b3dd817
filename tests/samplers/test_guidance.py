"""The scale has one meaning: 1 = plain conditional, 0 = unconditional, linear between and beyond."""

from __future__ import annotations

import torch
from torch import Tensor

from quintet.core.spec import Cond
from quintet.samplers.guidance import guided

calls: list[int] = []


def predict(x: Tensor, t: Tensor, cond: Cond) -> Tensor:
    """The label's square (0 where there is none) times x, plus t."""
    calls.append(len(x))
    label = cond.get("label", torch.full((len(x),), -1))
    return torch.where(label < 0, 0, label**2)[:, None] * x + t[:, None]


def test_scale() -> None:
    g = torch.Generator().manual_seed(1)
    x, t = torch.randn((6, 3), generator=g), torch.rand(6, generator=g)
    cond = {"label": torch.tensor([0, 1, 2, 3, -1, 2])}
    plain, without = predict(x, t, cond), predict(x, t, {})
    for scale in (-0.5, 0.0, 0.3, 1.0, 2.5):
        expected = without + scale * (plain - without)
        torch.testing.assert_close(guided(predict, cond, scale)(x, t), expected)
    # rows without a label, and no labels at all, are unconditional at every scale
    torch.testing.assert_close(guided(predict, cond, 4.0)(x, t)[4], without[4])
    torch.testing.assert_close(guided(predict, None, 4.0)(x, t), without)
    torch.testing.assert_close(guided(predict, {}, 1.0)(x, t), without)


def test_cost() -> None:
    x, t, cond = torch.zeros(5, 2), torch.zeros(5), {"label": torch.ones(5, dtype=torch.int64)}
    for scale, rows in ((0.0, [5]), (1.0, [5]), (3.0, [10])):
        calls.clear()
        guided(predict, cond, scale)(x, t)
        assert calls == rows


def test_two_fields() -> None:
    def both(x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        known = sum((value >= 0).to(x.dtype) for value in cond.values()) if cond else torch.zeros(len(x))
        return x * known[:, None]

    x, t = torch.ones(2, 1), torch.zeros(2)
    cond = {"a": torch.tensor([0, 1]), "b": torch.tensor([0, -1])}
    torch.testing.assert_close(guided(both, cond, 2.0)(x, t).flatten(), torch.tensor([4.0, 2.0]))


def test_interval() -> None:
    """Outside the interval the scale is 1, by row where times are tensors, by the step where they are numbers."""
    x, t, cond = torch.ones(4, 2), torch.tensor([0.1, 0.4, 0.6, 0.9]), {"label": torch.full((4,), 2)}
    found = guided(predict, cond, 3.0, lambda t: (t > 0.3) & (t < 0.7))(x, t)
    plain, strong = guided(predict, cond, 1.0)(x, t), guided(predict, cond, 3.0)(x, t)
    inside = torch.tensor([False, True, True, False])[:, None]
    torch.testing.assert_close(found, torch.where(inside, strong, plain))

    def by_step(x: Tensor, i: int, cond: Cond) -> Tensor:
        return predict(x, torch.full((len(x),), float(i)), cond)

    calls.clear()
    step = guided(by_step, cond, 0.0, [False, True].__getitem__)
    torch.testing.assert_close(step(x, 0), predict(x, torch.zeros(4), cond))
    torch.testing.assert_close(step(x, 1), predict(x, torch.ones(4), {}))
    assert calls[0] == 4
