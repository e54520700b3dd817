"""Drawing tokens: restrictions against their definitions, frequencies against probabilities by chi-square."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from quintet.core.rng import Rng
from quintet.samplers.tokens import draw, generate, restrict

LOGITS = Rng(3, "logits").normal((9,), torch.float64) * 1.5


def expected(temperature: float, top_k: int | None, top_p: float) -> np.ndarray:
    """The restricted distribution, worked out level by level in numpy."""
    p = np.exp(LOGITS.numpy() / temperature)
    p /= p.sum()
    ranked = list(np.argsort(-p))[: top_k or len(p)]
    total = sum(p[i] for i in ranked)
    kept, reached = [], 0.0
    for i in ranked:
        kept.append(i)
        reached += p[i] / total
        if reached >= top_p:
            break
    out = np.zeros_like(p)
    out[kept] = p[kept] / p[kept].sum()
    return out


CASES = [(1.0, None, 1.0), (0.7, None, 1.0), (1.6, 4, 1.0), (1.0, None, 0.8), (1.3, 6, 0.7), (1.0, 1, 1.0)]


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), CASES)
def test_restricted_probabilities_and_their_frequencies(temperature, top_k, top_p):
    p = expected(temperature, top_k, top_p)
    logits = restrict(LOGITS, temperature, top_k, top_p)
    np.testing.assert_allclose(logits.softmax(-1).numpy(), p, rtol=1e-12, atol=1e-15)
    n = 20_000
    tokens = draw(logits.expand(n, -1), Rng(11, "chi").uniform((n,), torch.float64))
    counts = np.bincount(tokens.numpy(), minlength=9)
    assert counts[p == 0].sum() == 0
    if (p > 0).sum() > 1:
        assert stats.chisquare(counts[p > 0], n * p[p > 0]).pvalue > 1e-4


def test_the_chi_square_can_fail():
    n = 20_000
    tokens = draw(LOGITS.expand(n, -1), Rng(11, "chi").uniform((n,), torch.float64))
    p = expected(0.9, None, 1.0)
    assert stats.chisquare(np.bincount(tokens.numpy(), minlength=9), n * p).pvalue < 1e-4


def test_temperature_zero_takes_the_likeliest_and_ties_go_to_the_lower_level():
    logits = torch.tensor([[1.0, 3.0, 3.0, 2.0]])
    assert draw(restrict(logits, 0.0), torch.tensor([0.999])).item() == 1
    assert restrict(logits, top_k=2).isfinite().tolist() == [[False, True, True, False]]


def test_draw_inverts_the_cumulative_distribution():
    p = torch.tensor([0.0, 0.25, 0.0, 0.5, 0.25, 0.0], dtype=torch.float64)
    u = torch.tensor([0.0, 0.2499, 0.25, 0.7499, 0.75, 1 - 2**-53], dtype=torch.float64)
    assert draw(p.log().expand(6, -1), u).tolist() == [1, 1, 3, 3, 4, 4]


def test_generate_feeds_back_what_it_drew():
    """A deterministic chain: the next token is one more than the last."""
    seen = []

    def following(tokens):
        seen.append(tokens)
        wanted = torch.zeros(3, dtype=torch.int64) if tokens is None else (tokens + 1) % 5
        return torch.nn.functional.one_hot(wanted, 5).double().log()

    out = generate(following, Rng(0, "u").uniform((3, 7)))
    assert out.tolist() == [[0, 1, 2, 3, 4, 0, 1]] * 3
    assert seen[0] is None
    assert len(seen) == 7


@pytest.mark.parametrize("bad", [{"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_impossible_restrictions_are_refused(bad):
    with pytest.raises(ValueError, match="expected temperature"):
        restrict(LOGITS, **bad)
