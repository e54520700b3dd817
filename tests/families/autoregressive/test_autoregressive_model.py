"""The autoregressive model against enumeration, a Markov chain of known entropy, and exact conditionals."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from quintet.core.batch import Batch
from quintet.core.config import decode, encode
from quintet.core.model import Turn, capabilities, hide
from quintet.core.rng import Rng, layer_noise
from quintet.core.spec import DataSpec
from quintet.families.autoregressive.model import Autoregressive, AutoregressiveConfig, TokenSampling
from quintet.families.autoregressive.orders import Order, order
from quintet.families.autoregressive.outputs import Categorical, LogisticMixture
from quintet.nets.local import LocalConfig
from quintet.nets.lstm import LstmConfig
from quintet.nets.transformer import TransformerConfig

NETWORK = TransformerConfig(width=16, depth=2, heads=2, hidden=24, reach=1, waves=1, dropout=0.1)
LOCAL = LocalConfig(width=8, depth=1, hidden=8, head=8, window=(2, 3), first=(2, 3), heads=2, every=1, waves=1)
TINY = DataSpec("image", (1, 2, 2), 3, {"label": 2})
OUTPUTS = [Categorical(), LogisticMixture(components=3)]


def build(spec: DataSpec, *, seed: int = 0, std: float = 0.4, **fields) -> Autoregressive:
    """A model in eval mode and float64 with random weights everywhere."""
    config = AutoregressiveConfig(**{"network": NETWORK, "output": Categorical(), **fields})
    with layer_noise(Rng(seed, "init")):
        model = config.build(spec).double().eval()
        for p in model.parameters():
            nn.init.normal_(p, std=std)
    assert isinstance(model, Autoregressive)
    return model


def everything(spec: DataSpec) -> torch.Tensor:
    rows = list(itertools.product(range(spec.levels or 0), repeat=spec.dims))
    return torch.tensor(rows).view(-1, *spec.shape)


def log_prob(model, x, cond=None):
    with torch.no_grad():
        return model.log_prob(x, cond, rng=Rng(0, "unused"))


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize(("network", "way"), [(NETWORK, "rows"), (NETWORK, "columns"), (LOCAL, "pixels")])
@pytest.mark.parametrize("label", [None, 0, 1])
def test_probabilities_of_all_examples_sum_to_one(output, network, way, label):
    model = build(TINY, output=output, network=network, order=way)
    x = everything(TINY)
    cond = None if label is None else {"label": torch.full((len(x),), label)}
    p = log_prob(model, x, cond).exp()
    assert p.sum().item() == pytest.approx(1, abs=1e-12)
    assert p.max() > 3 * p.min()  # not the uniform distribution, where this would be empty


def test_log_prob_is_the_sum_of_what_sampling_draws_from():
    """The chain rule: the cached one-by-one logits give the same number as one pass."""
    model = build(TINY, order="columns")
    x, label = everything(TINY), torch.arange(81) % 2
    following = model.following(81, {"label": label}, 1.0)
    tokens, total = model.read(x), torch.zeros(81, dtype=torch.float64)
    with torch.no_grad():
        for i in range(4):
            logits = following(tokens[:, i - 1] if i else None)
            total += logits.log_softmax(-1).gather(1, tokens[:, i, None])[:, 0]
    torch.testing.assert_close(total, log_prob(model, x, {"label": label}), rtol=1e-10, atol=1e-10)


def test_likelihood_of_a_colour_image_is_the_sum_of_what_sampling_draws_from():
    """Channels of a pixel one after another, rows in raster order, through the local network's cache."""
    spec = DataSpec("image", (3, 3, 4), 5, {"label": 2})
    model = build(spec, network=LOCAL, order="pixels", grid=spec.shape)
    x, label = Rng(0, "x").integers(0, 5, (7, 3, 3, 4)), torch.arange(7) % 2
    tokens = model.read(x)
    assert torch.equal(tokens[:, :6], torch.cat([x[:, :, 0, 0], x[:, :, 0, 1]], 1))
    assert torch.equal(model.place(tokens), x)
    following = model.following(7, {"label": label}, 1.0)
    total = torch.zeros(7, dtype=torch.float64)
    with torch.no_grad():
        for i in range(36):
            logits = following(tokens[:, i - 1] if i else None)
            total += logits.log_softmax(-1).gather(1, tokens[:, i, None])[:, 0]
    torch.testing.assert_close(total, log_prob(model, x, {"label": label}), rtol=1e-10, atol=1e-10)


def test_likelihood_in_parts_is_the_likelihood(monkeypatch):
    model = build(TINY)
    x, label = everything(TINY), torch.arange(81) % 2
    whole = log_prob(model, x, {"label": label})
    monkeypatch.setattr("quintet.families.autoregressive.model.MOST_LOGITS", 4 * 3 * 10)  # ten examples at once
    torch.testing.assert_close(log_prob(model, x, {"label": label}), whole, rtol=1e-12, atol=1e-12)
    assert log_prob(model, x[:0]).shape == (0,)


def chi_square(samples: torch.Tensor, p: np.ndarray, spec: DataSpec) -> float:
    """p-value of sampled examples against their probabilities, rare examples pooled."""
    powers = (spec.levels or 0) ** torch.arange(spec.dims - 1, -1, -1)
    counts = np.bincount((samples.flatten(1) * powers).sum(1).numpy(), minlength=len(p))
    expected = p * len(samples)
    rare = expected < 5
    if rare.any():
        counts = np.append(counts[~rare], counts[rare].sum())
        expected = np.append(expected[~rare], expected[rare].sum())
        if expected[-1] < 1e-9:
            assert counts[-1] == 0
            counts, expected = counts[:-1], expected[:-1]
    return float(stats.chisquare(counts, expected * counts.sum() / expected.sum()).pvalue)


@pytest.mark.parametrize("fields", [{}, {"temperature": 0.6}, {"top_k": 2}, {"top_p": 0.6}, {"guidance": 2.5}])
def test_samples_have_the_frequencies_of_the_model(fields):
    """Against a distribution built step by step from the model's own conditionals, restricted by hand."""
    model, sampling = build(TINY, std=0.5), TokenSampling(**fields)
    x = everything(TINY)
    given, free = ({"label": torch.full((81,), v)} for v in (1, -1))
    tokens = model.read(x)
    with torch.no_grad():
        raw = [model.output.logits(model.network(tokens, c), 3).log_softmax(-1).numpy() for c in (given, free)]
    g = sampling.guidance
    q = np.exp((raw[1] + g * (raw[0] - raw[1])) / sampling.temperature)
    q /= q.sum(-1, keepdims=True)
    for row in q.reshape(-1, 3):
        ranked = np.argsort(-row)
        kept = ranked[: sampling.top_k or 3]
        if sampling.top_p < 1:
            kept = ranked[: int(np.searchsorted(np.cumsum(row[ranked]), sampling.top_p)) + 1]
        mask = np.isin(np.arange(3), kept)
        row[:] = np.where(mask, row, 0) / row[mask].sum()
    p = np.take_along_axis(q, tokens.numpy()[..., None], -1)[..., 0].prod(1)
    assert p.sum() == pytest.approx(1, abs=1e-9)
    n = 8000
    with torch.no_grad():
        samples = model.sample(n, {"label": torch.ones(n, dtype=torch.int64)}, rng=Rng(5, "s"), sampling=sampling)
    assert chi_square(samples, p, TINY) > 1e-4
    assert chi_square(samples, np.full(81, 1 / 81), TINY) < 1e-4


def test_guidance_zero_is_unconditional_and_one_is_conditional():
    model = build(TINY)
    cond = {"label": torch.ones(50, dtype=torch.int64)}
    with torch.no_grad():
        free = model.sample(50, rng=Rng(1, "s"))
        assert torch.equal(free, model.sample(50, cond, rng=Rng(1, "s"), sampling=TokenSampling(guidance=0.0)))
        given = model.sample(50, cond, rng=Rng(1, "s"))
        assert not torch.equal(free, given)
        close = model.sample(50, cond, rng=Rng(1, "s"), sampling=TokenSampling(guidance=1.0 + 1e-9))
    assert torch.equal(given, close)  # through the doubled batch


def test_item_depends_on_its_row_alone():
    model = build(DataSpec("image", (1, 4, 4), 5, {"label": 3}), std=0.2)
    cond = {"label": torch.arange(90) % 3}
    with torch.no_grad():
        all_ = model.sample(90, cond, rng=Rng(2, "s"))
        some = model.sample(7, {"label": cond["label"][70:77]}, rng=Rng(2, "s").at(70))
    assert torch.equal(all_[70:77], some)
    assert all_.shape == (90, 1, 4, 4)
    assert all_.dtype == torch.int64
    assert 0 <= all_.min() <= all_.max() < 5


# a source that is known exactly

CHAIN = np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.5, 0.05, 0.45]])
FIRST = np.array([0.2, 0.5, 0.3])


def chain(n: int, length: int, seed: int) -> torch.Tensor:
    g = np.random.default_rng(seed)
    x = np.zeros((n, length), dtype=np.int64)
    for i in range(length):
        p = np.broadcast_to(FIRST, (n, 3)) if i == 0 else CHAIN[x[:, i - 1]]
        x[:, i] = (g.random(n)[:, None] > p.cumsum(1)).sum(1).clip(max=2)
    return torch.tensor(x)


RECURRENT = LstmConfig(width=16, depth=1, reach=1, waves=1, dropout=0.0)
ATTENTIVE = TransformerConfig(width=16, depth=1, heads=2, hidden=16, reach=1, waves=1, dropout=0.0)


@pytest.mark.parametrize("network", [ATTENTIVE, RECURRENT], ids=["transformer", "lstm"])
def test_cross_entropy_of_a_markov_chain_approaches_its_entropy_and_never_beats_it(network):
    length = 6
    entropy, p = -float((FIRST * np.log(FIRST)).sum()), FIRST
    for _ in range(length - 1):
        entropy += float(-(p[:, None] * CHAIN * np.log(CHAIN)).sum())
        p = p @ CHAIN
    with layer_noise(Rng(0, "init")):
        model = AutoregressiveConfig(network=network, output=Categorical()).build(DataSpec("tokens", (length,), 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    (player,) = model.players()
    for step in range(150):
        x = chain(256, length, 1000 + step)
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * (1 - step / 150)
        turn = Turn(step, step / 150, Batch(x, torch.arange(256)), Rng(0, "train", step))
        player.loss(turn).total.backward()
        optimizer.step()
        optimizer.zero_grad()
    test = log_prob(model.eval(), chain(20_000, length, 1))
    error = float(test.std()) / math.sqrt(len(test))
    excess = -float(test.mean()) - entropy
    assert -4 * error < excess < 0.02 + 4 * error
    with torch.no_grad():
        drawn = model.sample(20_000, rng=Rng(7, "s")).numpy()
    pairs = np.zeros((3, 3))
    np.add.at(pairs, (drawn[:, :-1].ravel(), drawn[:, 1:].ravel()), 1)
    np.testing.assert_allclose(pairs / pairs.sum(1, keepdims=True), CHAIN, atol=0.03)


def test_loss_is_nats_per_value_and_hides_conditions():
    spec = DataSpec("image", (1, 2, 2), 3, {"label": 2})
    x, y = everything(spec), torch.arange(81) % 2
    turn = Turn(0, 0.0, Batch(x, torch.arange(81), {"label": y}), Rng(0, "train", 0))
    never = build(spec, class_dropout=0.0)
    loss = never.loss(turn)
    expected = -log_prob(never, x, {"label": y}).mean() / 4
    torch.testing.assert_close(loss.total.detach(), expected)
    hidden = hide({"label": y}, 0.5, turn.rng("hide"))["label"]
    assert 20 < (hidden == -1).sum() < 60
    assert torch.equal(hidden[hidden != -1], y[hidden != -1])


# completion


def conditional(model, x, known) -> np.ndarray:
    """(81,) exact probabilities given the known values of one example."""
    every = everything(TINY)
    fits = ((every == x) | ~known).flatten(1).all(1)
    p = torch.where(fits, log_prob(model, every, {"label": torch.zeros(81, dtype=torch.int64)}).exp(), 0)
    return (p / p.sum()).numpy()


@pytest.mark.parametrize("known", [[1, 1, 0, 0], [0, 0, 1, 1], [0, 1, 0, 1]])
def test_filled_examples_follow_the_exact_conditional_distribution(known):
    model = build(TINY, std=0.8, particles=64)
    mask, x = torch.tensor(known, dtype=torch.bool).view(1, 2, 2), torch.tensor([2, 0, 1, 2]).view(1, 2, 2)
    p = conditional(model, x, mask)
    n = 1500
    filled = model.fill(
        x.expand(n, 1, 2, 2),
        mask.expand(n, 1, 2, 2),
        {"label": torch.zeros(n, dtype=torch.int64)},
        rng=Rng(3, "fill"),
    )
    assert (filled == x)[:, mask].all()
    assert chi_square(filled, p, TINY) > 1e-4
    # ignoring what is known and comes later gives another distribution
    if known != [1, 1, 0, 0]:
        free = model.sample(n, {"label": torch.zeros(n, dtype=torch.int64)}, rng=Rng(4, "s"))
        assert chi_square(torch.where(mask, x, free), p, TINY) < 1e-4


def test_fill_is_independent_of_the_batch_and_keeps_known_values():
    model = build(DataSpec("image", (1, 3, 3), 4, {"label": 2}), std=0.3, particles=8)
    x = Rng(0, "x").integers(0, 4, (70, 1, 3, 3))
    known = Rng(0, "known").uniform((70, 1, 3, 3)) < 0.5
    whole = model.fill(x, known, {"label": torch.arange(70) % 2}, rng=Rng(1, "fill"))
    assert torch.equal(whole[known], x[known])
    part = model.fill(x[66:], known[66:], {"label": torch.arange(66, 70) % 2}, rng=Rng(1, "fill").at(66))
    assert torch.equal(whole[66:], part)
    assert torch.equal(model.fill(x, torch.ones_like(known), rng=Rng(1, "fill")), x)
    with pytest.raises(ValueError, match="mask"):
        model.fill(x, known[:, :, :2], rng=Rng(1, "fill"))


def test_a_prompt_takes_one_path_and_the_same_beside_other_masks():
    model = build(DataSpec("image", (1, 3, 3), 4, {"label": 2}), std=0.3, particles=8)
    x, label = Rng(0, "x").integers(0, 4, (40, 1, 3, 3)), {"label": torch.arange(40) % 2}
    prompt = (torch.arange(9) < 4).view(1, 1, 3, 3).expand(40, 1, 3, 3)
    alone = model.fill(x, prompt, label, rng=Rng(1, "fill"))
    mixed = prompt.clone()
    mixed[1::2] = ~prompt[1::2]
    beside = model.fill(x, mixed, label, rng=Rng(1, "fill"))
    assert torch.equal(beside[0::2], alone[0::2])
    rows = []
    start = model.network.start
    model.network.start = lambda n, cond: rows.append(n) or start(n, cond)
    with torch.no_grad():
        free = model.fill(x, torch.zeros_like(prompt), label, rng=Rng(1, "fill"))
        assert torch.equal(free, model.sample(40, label, rng=Rng(1, "fill")))
    assert rows == [40, 40]  # as much work as sampling
    model.fill(x, mixed, label, rng=Rng(1, "fill"))
    assert sum(rows) > 8 * 40


def test_trace_reveals_the_sample_value_by_value():
    model = build(TINY, order="columns")
    with torch.no_grad():
        trace = model.trace(6, 5, rng=Rng(9, "t"))
        sample = model.sample(6, rng=Rng(9, "t"))
    assert trace.kind == "reveal"
    assert trace.frames.shape == (5, 6, 1, 2, 2)
    assert len(trace.at) == 5
    assert torch.equal(trace.frames[-1], sample)
    assert trace.frames[0].abs().sum() == 0
    # after two of four values the left column is there and the right is not
    assert torch.equal(trace.frames[2][..., 0], sample[..., 0])
    assert trace.frames[2][..., 1].abs().sum() == 0
    assert model.sequential_steps() == 4


# parts


def test_orders_are_permutations_with_an_inverse():
    assert order("rows", (2, 3)).positions.tolist() == [0, 1, 2, 3, 4, 5]
    assert order("columns", (2, 3)).positions.tolist() == [0, 3, 1, 4, 2, 5]
    assert order("columns", (2, 3)).grid == (3, 2)
    assert order("pixels", (3, 2, 2)).positions.tolist() == [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]
    assert order("pixels", (3, 2, 4)).grid == (2, 4, 3)
    assert order("columns", (5,)) == order("pixels", (5,)) == order("rows", (5,))
    assert Order((2, 2, 2), (1, 2, 0)).positions.tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    with pytest.raises(ValueError, match="permute"):
        Order((2, 3), (0, 0))
    model = build(DataSpec("image", (3, 2, 4), 4), order="columns")
    x = Rng(0, "x").integers(0, 4, (5, 3, 2, 4))
    assert torch.equal(
        model.read(x)[:, :4], torch.stack([x[:, 0, 0, 0], x[:, 0, 1, 0], x[:, 0, 0, 1], x[:, 0, 1, 1]], 1)
    )
    assert torch.equal(model.place(model.read(x)), x)


def test_logistic_mixture_is_a_difference_of_sigmoids():
    output, levels = LogisticMixture(components=2), 6
    raw = Rng(1, "raw").normal((4, 6), torch.float64) * 2
    logits = output.logits(raw, levels)
    torch.testing.assert_close(logits.exp().sum(-1), torch.ones(4, dtype=torch.float64), rtol=1e-12, atol=1e-12)
    for row, given in zip(raw.tolist(), logits.exp().tolist(), strict=True):
        weights = np.exp(row[:2]) / np.exp(row[:2]).sum()
        for level in range(levels):
            total = 0.0
            for m in range(2):
                mean = (row[2 + m] + [-1, 1][m]) * levels / 2
                scale = math.exp(output.floor + math.log1p(math.exp(row[4 + m] + math.log(levels / 4) - output.floor)))
                cdf = [
                    0.0 if e == 0 else 1.0 if e == levels else 1 / (1 + math.exp(-(e - levels / 2 - mean) / scale))
                    for e in (level, level + 1)
                ]
                total += weights[m] * (cdf[1] - cdf[0])
            assert given[level] == pytest.approx(total, rel=1e-8)


def test_config_survives_json_and_names_what_the_model_can():
    config = AutoregressiveConfig(network=NETWORK, output=LogisticMixture(), order="columns", grid=(2, 2))
    kinds = {c.kind: c for c in (AutoregressiveConfig, TransformerConfig, LogisticMixture, TokenSampling)}
    assert decode(encode(config), kinds) == config
    assert capabilities(build(TINY)) == ("log_prob", "fill", "code", "trace")
    with pytest.raises(ValueError, match="levels"):
        config.build(DataSpec("vector", (4,)))
    with pytest.raises(ValueError, match="does not hold"):
        config.build(DataSpec("tokens", (5,), 3))
