"""What evaluation draws: the number of threads that is faster, for the samples and their latency alike."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from quintet.compare import drawing
from quintet.core.rng import CHUNK
from quintet.core.threads import using_threads
from quintet.tasks.generate import Generated


class Sampler(nn.Module):
    sampling = SimpleNamespace(guidance=1.0)

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def sequential_steps(self):
        return 3


@pytest.fixture
def draws(monkeypatch):
    """(n, threads) of each draw; a draw takes as long as `seconds` says of them."""
    seen = []

    def generate(model, codec, n, labels, **_):
        seen.append((n, torch.get_num_threads()))
        return Generated(np.zeros((n, 2)), labels, draws.seconds(*seen[-1]))

    monkeypatch.setattr(drawing, "generate", generate)
    draws = SimpleNamespace(seen=seen, seconds=None)
    return draws


@pytest.mark.parametrize(("one", "two", "expected"), [(1.0, 2.0, 1), (2.0, 1.0, 2)])
def test_the_faster_number_of_threads_draws_and_those_before_come_back(draws, one, two, expected):
    draws.seconds = lambda n, threads: (one if threads == 1 else two) * n / 1000
    with using_threads(2):
        drawn = drawing.draw(Sampler(), None, 500, {}, seed=0, threads=2, limit_s=20, latency_limit_s=1)
        assert torch.get_num_threads() == 2
    assert {threads for n, threads in draws.seen if n in (500, 1)} == {expected}
    assert drawn.cost.seconds_per_1000 == pytest.approx(min(one, two))
    assert drawn.cost.sequential_steps == 3


def test_nothing_is_tried_with_one_thread_or_where_a_chunk_takes_long(draws):
    draws.seconds = lambda n, threads: 0.1 * n
    for threads, limit_s in ((1, 1000.0), (2, 1.0)):
        draws.seen.clear()
        drawing.draw(Sampler(), None, 100, {}, seed=0, threads=threads, limit_s=limit_s, latency_limit_s=1)
        assert [d for d in draws.seen if d[0] == CHUNK] == [(CHUNK, threads)]
        assert {d[1] for d in draws.seen} == {threads}
