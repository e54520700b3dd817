"""Codecs return what they were given, and their change of variables is right by integration and by autograd."""

from __future__ import annotations

from math import log

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quintet.core.config import decode, encode
from quintet.core.errors import DataError
from quintet.core.rng import Rng
from quintet.core.spec import DataSpec
from quintet.data.codecs import (
    BinsCodecConfig,
    DequantizedPixelCodecConfig,
    LevelCodecConfig,
    PixelCodecConfig,
    StandardizeCodecConfig,
)

DISCRETE = [
    PixelCodecConfig(),
    DequantizedPixelCodecConfig(),
    DequantizedPixelCodecConfig(logit=True),
    LevelCodecConfig(),
]
CONTINUOUS = [
    StandardizeCodecConfig(),
    BinsCodecConfig(bins=7),
    BinsCodecConfig(bins=16, spacing="uniform"),
]
ids = lambda config: f"{config.kind}{'-logit' if getattr(config, 'logit', False) else ''}"  # noqa: E731


def one_pixel(levels):
    return DataSpec("image", (1, 1, 1), levels=levels)


@pytest.mark.parametrize("config", DISCRETE, ids=ids)
@pytest.mark.parametrize("levels", [2, 3, 17, 256, 1024, 65_536])
def test_every_level_comes_back(config, levels):
    raw = DataSpec("image", (1, 1, levels), levels=levels, conditions={"label": 3})
    codec = config.empty(raw)
    every = torch.arange(levels).view(1, 1, 1, levels).expand(4, -1, -1, -1)
    for rng in (None, Rng(0, "encode", levels)):
        x = codec.encode(every, rng)
        assert x.shape == (4, *codec.spec.shape)
        assert dict(codec.spec.conditions) == {"label": 3}
        back = codec.decode(x)
        assert torch.equal(back.long(), every)
        assert back.dtype == (torch.uint8 if levels <= 256 else torch.int32)
        assert codec.log_det(x).shape == (4,)
    assert torch.equal(codec.encode(every.float()), codec.encode(every))


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("config", DISCRETE[1:3], ids=ids)
def test_noise_at_the_ends_of_a_cell_never_reaches_the_next(config, levels):
    class Ends(Rng):
        def uniform(self, shape, dtype=torch.float32):
            return torch.tensor([0.0, 1 - 2**-24]).expand(shape)

    codec = config.empty(DataSpec("image", (1, levels, 2), levels=levels))
    every = torch.arange(levels).view(1, 1, levels, 1).expand(-1, -1, -1, 2)
    assert torch.equal(codec.decode(codec.encode(every, Ends(0, "x"))).long(), every)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_pixels_are_centred(levels):
    codec = PixelCodecConfig().empty(one_pixel(levels))
    x = codec.encode(torch.arange(levels).view(-1, 1, 1, 1)).flatten()
    assert x[0] == -1
    assert x[-1] == pytest.approx(1, abs=1e-6)
    assert x.diff() == pytest.approx(np.full(levels - 1, 2 / (levels - 1)), abs=1e-6)


@pytest.mark.parametrize("config", [DISCRETE[0], DISCRETE[1]], ids=ids)
def test_values_outside_come_to_the_edge(config):
    codec = config.empty(one_pixel(17))
    x = torch.tensor([-9.0, 9.0, -torch.inf, torch.inf]).view(-1, 1, 1, 1)
    assert codec.decode(x).flatten().tolist() == [0, 16, 0, 16]


@pytest.mark.parametrize("logit", [False, True])
def test_dequantised_masses_sum_to_one(logit):
    """A density over x, converted through the codec and integrated over all cells, is a distribution over levels."""
    levels = 5
    codec = DequantizedPixelCodecConfig(logit=logit).empty(one_pixel(levels))
    values = (torch.arange(200_000, dtype=torch.float64) + 0.5) * levels / 200_000  # k + u
    y = values / levels
    x = (torch.logit(0.05 + 0.9 * y) if logit else 2 * y - 1).view(-1, 1, 1, 1)
    # a normal density truncated to the interval that x can reach
    base = torch.distributions.Normal(torch.tensor(0.3, dtype=torch.float64), 0.8)
    low, high = (x.new_tensor([0.05, 0.95]).logit() if logit else x.new_tensor([-1.0, 1.0])).unbind()
    log_p = base.log_prob(x.flatten()) - (base.cdf(high) - base.cdf(low)).log() + codec.log_det(x)
    mass = log_p.exp().view(levels, -1).mean(1)
    assert mass.sum().item() == pytest.approx(1, abs=1e-8)
    assert torch.equal(codec.decode(x).flatten().long(), values.floor().long())
    for k in range(levels):
        a, b = (x.new_tensor([k, k + 1]) / levels).unbind()
        a, b = ((0.05 + 0.9 * a).logit(), (0.05 + 0.9 * b).logit()) if logit else (2 * a - 1, 2 * b - 1)
        exact = (base.cdf(b) - base.cdf(a)) / (base.cdf(high) - base.cdf(low))
        assert mass[k].item() == pytest.approx(exact.item(), abs=1e-8)


def test_a_uniform_model_gives_every_image_the_same_mass():
    """log p(x) = -D log 2 on [-1, 1]^D is log(1 / L^D) for each image, exactly."""
    raw = DataSpec("image", (3, 4, 5), levels=17)
    codec = DequantizedPixelCodecConfig().empty(raw)
    k = torch.randint(0, 17, (6, 3, 4, 5), generator=torch.Generator().manual_seed(0))
    x = codec.encode(k.double(), Rng(0, "encode"))
    assert x.dtype == torch.float64
    assert (codec.log_det(x) - 60 * log(2)).tolist() == pytest.approx([-60 * log(17)] * 6)


@pytest.mark.parametrize("config", [*DISCRETE[1:3], StandardizeCodecConfig()], ids=ids)
def test_log_det_is_the_autograd_jacobian(config):
    generator = torch.Generator().manual_seed(1)
    if config.kind == "standardize":
        raw = DataSpec("vector", (4,))
        train = torch.randn(50, 4, generator=generator) * torch.tensor([0.1, 1, 5, 40]) + 3
        codec, value = config.fit(raw, train), train[:1].double()
        jacobian = torch.autograd.functional.jacobian(codec.encode, value)
    else:
        raw = DataSpec("image", (1, 2, 2), levels=9)
        codec, value = config.empty(raw), torch.rand(1, 1, 2, 2, generator=generator, dtype=torch.float64) * 9
        jacobian = torch.autograd.functional.jacobian(lambda v: codec.encode(v - 0.5), value)  # rng None adds 0.5
    x = codec.encode(value if config.kind == "standardize" else value - 0.5)
    slope = torch.linalg.slogdet(jacobian.reshape(4, 4)).logabsdet
    assert codec.log_det(x).item() == pytest.approx(slope.item(), abs=1e-9)


def test_pixel_log_det_is_a_cells_mass():
    codec = PixelCodecConfig().empty(DataSpec("image", (1, 2, 3), levels=17))
    x = codec.encode(torch.zeros(2, 1, 2, 3))
    assert codec.log_det(x).tolist() == pytest.approx([6 * log(2 / 16)] * 2)


def test_tokens_are_in_document_order():
    raw = DataSpec("image", (3, 2, 4), levels=24)
    codec = LevelCodecConfig().empty(raw)
    x = torch.arange(24).view(1, 3, 2, 4)
    assert torch.equal(codec.encode(x), torch.arange(24)[None])
    assert codec.spec == DataSpec("tokens", (24,), levels=24)
    assert codec.log_det(codec.encode(x)).tolist() == [0.0]


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), scale=st.floats(1e-3, 1e4), offset=st.floats(-100, 100))
def test_standardised_columns(seed, scale, offset):
    x = torch.randn(300, 3, generator=torch.Generator().manual_seed(seed)) * scale + offset * scale
    codec = StandardizeCodecConfig().fit(DataSpec("vector", (3,)), x)
    z = codec.encode(x)
    assert z.mean(0).abs().max() < 1e-3
    assert (z.std(0, correction=0) - 1).abs().max() < 1e-3
    assert (codec.decode(z) - x).abs().max() <= 1e-5 * x.abs().max()


@pytest.mark.parametrize("spacing", ["quantile", "uniform"])
@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), bins=st.integers(2, 300), atoms=st.booleans())
def test_bins_are_an_exact_density(spacing, seed, bins, atoms):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(400, 2, generator=generator) * torch.tensor([1.0, 30.0]) + 2
    if atoms:  # a column that is often 0 and one of few values
        x[:200, 0] = 0
        x[:, 1] = (x[:, 1] / 20).round()
    codec = BinsCodecConfig(bins=bins, spacing=spacing).fit(DataSpec("vector", (2,)), x)
    assert codec.spec == DataSpec("tokens", (2,), levels=bins)
    assert (codec.edges.diff(dim=1) > 0).all()
    tokens = torch.arange(bins)[:, None].expand(-1, 2)
    assert torch.equal(codec.encode(codec.decode(tokens)), tokens)
    assert torch.equal(codec.encode(codec.decode(tokens, Rng(seed, "decode"))), tokens)
    inside = codec.encode(x)
    low, high = codec.edges[:, 0], codec.edges[:, -1]
    assert ((x > low) & (x < high)).all()
    assert inside.min() >= 0
    assert inside.max() < bins
    # each value lies in the cell its token names
    edges = codec.edges
    for d in range(2):
        assert (x[:, d] >= edges[d, inside[:, d]]).all()
        assert (x[:, d] < edges[d, inside[:, d] + 1]).all()
    # with any probabilities over tokens, the density exp(log p + log_det) integrates to 1 over the box
    p = torch.rand(2, bins, generator=generator).double()
    p = p / p.sum(1, keepdim=True)
    widths = edges.double().diff(dim=1)
    total = 1.0
    for d in range(2):
        alone = tokens.clone()
        alone[:, 1 - d] = 0
        log_det = codec.log_det(alone).double() + widths[1 - d, 0].log()  # the other column's part taken off
        total *= (p[d] * log_det.exp() * widths[d]).sum().item()
    assert total == pytest.approx(1, abs=1e-4)


def test_bins_by_hand():
    x = torch.linspace(0, 1, 101)[:, None]
    codec = BinsCodecConfig(bins=4, spacing="uniform").fit(DataSpec("vector", (1,)), x)
    assert codec.edges[0].tolist() == pytest.approx([-0.125, 0.1875, 0.5, 0.8125, 1.125])
    assert codec.encode(torch.tensor([[-5.0], [0.5], [0.49], [7.0]])).flatten().tolist() == [0, 2, 1, 3]
    assert codec.decode(torch.tensor([[1]])).item() == pytest.approx(0.34375)
    assert codec.log_det(torch.tensor([[1], [2]])).tolist() == pytest.approx([-log(0.3125)] * 2)


def test_quantile_bins_hold_equal_shares():
    x = torch.randn(8000, 1, generator=torch.Generator().manual_seed(2)).exp()
    codec = BinsCodecConfig(bins=8).fit(DataSpec("vector", (1,)), x)
    share = torch.bincount(codec.encode(x).flatten(), minlength=8)
    assert (share - 1000).abs().max() <= 2


def test_decoding_with_noise_is_uniform_in_the_cell():
    from scipy.stats import kstest

    x = torch.linspace(0, 1, 101)[:, None]
    codec = BinsCodecConfig(bins=4, spacing="uniform").fit(DataSpec("vector", (1,)), x)
    drawn = codec.decode(torch.full((4000, 1), 2), Rng(11, "decode")).flatten().double()
    assert kstest((drawn - 0.5) / 0.3125, "uniform").pvalue > 1e-6


@pytest.mark.parametrize("config", [StandardizeCodecConfig(), BinsCodecConfig(bins=4)], ids=ids)
def test_constant_columns_are_named(config):
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(3))
    x[:, 1], x[:, 3] = 0, 1e6
    with pytest.raises(DataError) as caught:
        config.fit(DataSpec("vector", (4,)), x)
    assert caught.value.exit_code == 3
    for lang in ("en", "zh"):
        assert "1, 3" in caught.value.text(lang)


@pytest.mark.parametrize("config", [StandardizeCodecConfig(), BinsCodecConfig(bins=4)], ids=ids)
def test_a_column_that_varies_less_than_float32_can_say_is_not_called_constant(config):
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(3))
    x[:, 1] = 1.7e9 + torch.arange(50) // 5 * 128
    with pytest.raises(DataError) as caught:
        config.fit(DataSpec("vector", (2,)), x)
    assert caught.value.key == "data.coarse_column"
    assert "column 1" in caught.value.text("en")


def test_a_column_too_narrow_for_its_bins_is_refused():
    x = 1 + torch.linspace(0, 3e-6, 40)[:, None]
    with pytest.raises(DataError) as caught:
        BinsCodecConfig(bins=200).fit(DataSpec("vector", (1,)), x)
    assert caught.value.key == "data.narrow_column"


@pytest.mark.parametrize("config", [*DISCRETE, *CONTINUOUS], ids=ids)
def test_state_and_config_round_trip(config):
    generator = torch.Generator().manual_seed(4)
    if config in DISCRETE:
        raw = DataSpec("image", (1, 3, 3), levels=17)
        x = torch.randint(0, 17, (40, 1, 3, 3), generator=generator, dtype=torch.uint8)
    else:
        raw, x = DataSpec("vector", (3,)), torch.randn(40, 3, generator=generator) * 9 - 4
    fitted, empty = config.fit(raw, x), config.empty(raw)
    empty.load_state_dict(fitted.state_dict())
    rng = Rng(5, "encode")
    assert torch.equal(empty.encode(x, rng), fitted.encode(x, rng))
    assert torch.equal(empty.log_det(empty.encode(x, rng)), fitted.log_det(fitted.encode(x, rng)))
    assert decode(encode(config), {config.kind: type(config)}) == config
    assert fitted.protocol == empty.protocol
    assert not list(fitted.parameters())


@pytest.mark.parametrize("config", DISCRETE, ids=ids)
def test_discrete_vectors_pass_too(config):
    raw = DataSpec("vector", (6,), levels=3)
    codec = config.empty(raw)
    x = torch.randint(0, 3, (20, 6), generator=torch.Generator().manual_seed(6))
    assert torch.equal(codec.decode(codec.encode(x, Rng(0, "encode"))).long(), x)


@pytest.mark.parametrize("config", DISCRETE, ids=ids)
def test_continuous_data_have_no_levels(config):
    with pytest.raises(ValueError, match="discrete"):
        config.empty(DataSpec("vector", (2,)))


def test_bins_are_for_vectors():
    with pytest.raises(ValueError, match="vectors"):
        BinsCodecConfig().empty(DataSpec("image", (1, 2, 2), levels=4))
