"""The counter-based generator: names, rows, chunks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from quintet.core.rng import Rng, layer_noise


@given(seed=st.integers(0, 2**40), first=st.integers(0, 300), rows=st.integers(1, 200))
def test_rows_do_not_depend_on_the_batch(seed: int, first: int, rows: int) -> None:
    whole = Rng(seed, "noise")("x").normal((first + rows, 2))
    part = Rng(seed, "noise").at(first)("x").normal((rows, 2))
    assert torch.equal(whole[first:], part)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("first", [0, 70])
def test_rows_are_those_of_a_generator_for_each_chunk(
    threads: int, first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the definition, one chunk after the other, however many threads share them."""
    before = torch.get_num_threads()
    monkeypatch.setattr("quintet.core.rng.MANY", 100)
    rng, whole = Rng(3, "noise").at(first), range(-(-(first + 150) // 64))

    def generators() -> list[np.random.Generator]:
        return [np.random.Generator(np.random.Philox(key=rng._philox_key((chunk,)))) for chunk in whole]

    try:
        torch.set_num_threads(threads)
        normal, uniform, whole_numbers = rng.normal((150, 3)), rng.uniform((150,)), rng.integers(0, 9, (150, 2))
    finally:
        torch.set_num_threads(before)
    rows = slice(first, first + 150)
    expected = np.concatenate([g.standard_normal((64, 3), dtype=np.float32) for g in generators()])[rows]
    assert np.array_equal(normal.numpy(), expected)
    assert np.array_equal(uniform.numpy(), np.concatenate([g.random(64, dtype=np.float32) for g in generators()])[rows])
    assert np.array_equal(
        whole_numbers.numpy(), np.concatenate([g.integers(0, 9, (64, 2)) for g in generators()])[rows]
    )


def test_every_part_of_the_name_matters() -> None:
    draws = [
        Rng(0, "a").normal((64,)),
        Rng(1, "a").normal((64,)),
        Rng(0, "b").normal((64,)),
        Rng(0, "a", 0).normal((64,)),
        Rng(0, "a", "0").normal((64,)),
        Rng(0, "a")(1).normal((64,)),
        Rng(0, "a", 1, 1).normal((64,)),
        Rng(0, "a", 11).normal((64,)),
    ]
    for i, x in enumerate(draws):
        for y in draws[:i]:
            assert not torch.equal(x, y)
    assert torch.equal(Rng(0, "a")(3, "b").normal((5,)), Rng(0, "a", 3, "b").normal((5,)))


def test_streams_are_normal_uniform_and_independent() -> None:
    x = torch.stack([Rng(5, "s", k).normal((1000,), dtype=torch.float64) for k in range(40)]).numpy()
    assert stats.kstest(x.ravel(), "norm").pvalue > 1e-4
    correlation = np.corrcoef(x)[np.triu_indices(40, 1)]
    assert np.abs(correlation).max() < 5 / np.sqrt(1000)
    u = Rng(5, "u").uniform((20_000,)).numpy()
    assert stats.kstest(u, "uniform").pvalue > 1e-4
    counts = np.bincount(Rng(5, "i").integers(0, 7, (7000,)).numpy(), minlength=7)
    assert stats.chisquare(counts).pvalue > 1e-4
    assert sorted(Rng(5, "p").permutation(100)) == list(range(100))


def test_layer_noise_is_a_function_of_its_stream_and_leaves_no_trace() -> None:
    torch.rand(1)
    before = torch.random.get_rng_state()
    draws = []
    for key in (1, 1, 2):
        with layer_noise(Rng(0, "layers", key)):
            draws.append(torch.rand(8))
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_wrong_requests() -> None:
    with pytest.raises(ValueError, match="at least one axis"):
        Rng(0, "a").normal(())
    with pytest.raises(ValueError, match="float32 or float64"):
        Rng(0, "a").normal((2,), dtype=torch.float16)
    with pytest.raises(ValueError, match=">= 0"):
        Rng(0, "a").at(-1)
