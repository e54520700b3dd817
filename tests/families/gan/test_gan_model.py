"""The GAN as a model: order of turns, gradients, labels, sampling, trace, detectors."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from quintet.core import config
from quintet.core.batch import Batch
from quintet.core.model import Turn, capabilities
from quintet.core.rng import Rng
from quintet.core.spec import DataSpec
from quintet.families.gan.augment import KINDS, augmented, cut, recoloured, shifted
from quintet.families.gan.losses import LOSSES, NonSaturating, WassersteinGP
from quintet.families.gan.model import GANConfig, GANSampling, diversity_ratio, slerp
from quintet.nets.conv import ConvConfig
from quintet.nets.mlp import MLPConfig
from quintet.train.loop import frozen

IMAGE = DataSpec("image", (1, 8, 8), conditions={"label": 3})
VECTOR = DataSpec("vector", (2,))
SMALL = MLPConfig(width=16, depth=2)
CONV = ConvConfig(channels=(4, 6), blocks=1)


def small(**fields):
    return GANConfig(**{"generator": SMALL, "discriminator": SMALL, "latent": 5, "features": 7, **fields})


def build(spec=IMAGE, seed=0, **fields):
    torch.manual_seed(seed)
    return small(**fields).build(spec).double()


def turn_of(model, step=0, n=12, progress=0.0):
    spec = model.spec
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(n, *spec.shape, dtype=torch.float64, generator=generator)
    cond = {name: torch.arange(n) % count for name, count in spec.conditions.items()}
    turn = Turn(step, progress, Batch(x, torch.arange(n), cond), Rng(1, "train", step))
    return replace(turn, shared=model.shared(turn))


def grads_of(model, player, turn):
    others = [p for other in model.players() if other.name != player.name for p in other.module.parameters()]
    with frozen(others):
        player.loss(turn).total.backward()
    found = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("network", [SMALL, CONV], ids=["mlp", "conv"])
@pytest.mark.parametrize("kind", sorted(LOSSES))
def test_each_player_reaches_all_and_only_its_parameters(network, kind):
    model = build(generator=network, discriminator=network, loss=LOSSES[kind](), augment=0.5)
    with torch.no_grad():
        for p in model.parameters():  # a block that starts at zero passes no gradient to what lies before it
            p.add_(0.1 * torch.randn_like(p))
    turn = turn_of(model, n=24)
    for player in model.players():  # the order of the loop, one fake batch for both
        found = grads_of(model, player, turn)
        for name, grad in found.items():
            own = name.startswith(player.name + ".")
            assert (grad is not None and grad.abs().sum() > 0) == own, (player.name, name)


def test_the_shared_fake_batch_gives_the_generator_the_same_gradient_as_a_fresh_one():
    model = build()
    discriminator, generator = model.players()
    turn = turn_of(model)
    grads_of(model, discriminator, turn)
    used = grads_of(model, generator, turn)
    fresh = grads_of(model, generator, turn_of(model))
    for name, grad in fresh.items():
        if grad is not None:
            assert torch.equal(grad, used[name])


def test_discriminator_gradient_by_finite_differences():
    """Adversarial loss and both penalties together: the double backward is right through embedding and projection."""
    model = build(gamma=1.0)
    turn = turn_of(model, n=6)
    player = model.players()[0]
    found = grads_of(model, player, turn)
    generator = torch.Generator().manual_seed(3)
    for name, p in player.module.named_parameters():
        direction = torch.randn(p.shape, generator=generator, dtype=p.dtype)
        values = []
        for sign in (1, -1):
            p.data += sign * 1e-5 * direction
            values.append(player.loss(turn).total.item())
            p.data -= sign * 1e-5 * direction
        slope = (values[0] - values[1]) / 2e-5
        assert slope == pytest.approx((found[f"discriminator.{name}"] * direction).sum().item(), rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("every", [1, 2, 3])
def test_penalties_of_every_kth_pair_are_a_mean_over_all_rows(every):
    """Rows are chosen by their number in the whole batch, so that its parts add up to it, of whatever size they are."""
    model = build(gamma=3.0, gamma_end=3.0, penalty_every=every, augment=0.5, noise=0.2)
    whole = turn_of(model, n=12)
    total = model.discriminator_loss(whole).total
    parts = []
    for start, stop in ((0, 5), (5, 6), (6, 12)):
        batch = Batch(
            whole.batch.x[start:stop],
            whole.batch.index[start:stop],
            {name: label[start:stop] for name, label in whole.batch.cond.items()},
        )
        part = replace(whole, batch=batch, rng=whole.rng.at(start), shared=None)
        part = replace(part, shared=model.shared(part))
        parts.append(model.discriminator_loss(part).total * (stop - start) / 12)
    assert torch.allclose(sum(parts), total, atol=1e-12)
    seen = model.discriminator_loss(replace(whole, progress=0.5)).parts
    left = (total - seen["adversarial_nats"]).item()
    assert left == pytest.approx(1.5 * (seen["r1_sq_norm"] + seen["r2_sq_norm"]).item())


def test_every_kth_pair_penalised_has_the_expectation_of_all():
    """Shuffling which rows are chosen averages to the penalty of all rows: here, over the three offsets."""
    full, third = build(gamma=2.0, gamma_end=2.0), build(gamma=2.0, gamma_end=2.0, penalty_every=3)
    turn = turn_of(full, n=12)
    expected = full.discriminator_loss(turn)
    want = expected.total - expected.parts["adversarial_nats"]
    found = []
    for offset in range(3):
        order = torch.arange(12).roll(offset)
        label = {name: value[order] for name, value in turn.batch.cond.items()}
        shared = replace(turn.shared, x=turn.shared.x[order], cond={n: v[order] for n, v in turn.shared.cond.items()})
        loss = third.discriminator_loss(replace(turn, batch=Batch(turn.batch.x[order], order, label), shared=shared))
        found.append(loss.total - loss.parts["adversarial_nats"])
    assert torch.allclose(sum(found) / 3, want)


def test_without_gamma_nothing_is_differentiated_twice():
    model = build(loss=NonSaturating(), gamma=0.0, gamma_end=0.0)
    loss = model.discriminator_loss(turn_of(model))
    assert loss.total.item() == pytest.approx(loss.parts["adversarial_nats"].item())
    assert "r1_sq_norm" not in loss.parts


def test_the_wasserstein_loss_brings_its_penalty():
    model = build(loss=WassersteinGP(weight=5.0), gamma=0.0, gamma_end=0.0)
    loss = model.discriminator_loss(turn_of(model))
    assert loss.parts["own_penalty"] > 0
    assert torch.allclose(loss.total, loss.parts["adversarial_nats"] + loss.parts["own_penalty"])


def test_the_generator_moves_after_so_many_turns_of_the_discriminator():
    model = build(critic_steps=3)
    assert [player.every for player in model.players()] == [1, 3]
    assert turn_of(model, step=3).shared.x.requires_grad
    assert not turn_of(model, step=4).shared.x.requires_grad


class Rows:
    """As many examples, for `prepare`."""

    augmented = False

    def __init__(self, examples: int) -> None:
        self.examples = examples


def test_augmentation_grows_with_the_epochs():
    model = build(augment=0.4, augment_epochs=20.0)
    assert model.augmentation(1000) == 0
    model.prepare(Rows(640))  # ten steps of 64 rows are an epoch
    assert [model.augmentation(step) for step in (0, 100, 200, 900)] == pytest.approx([0, 0.2, 0.4, 0.4])
    assert build(augment=0.3).augmentation(0) == 0.3


def test_gamma_follows_progress():
    model = build(gamma=4.0, gamma_end=1.0)
    totals = {}
    for progress in (0.0, 1.0):
        loss = model.players()[0].loss(turn_of(model, progress=progress))
        penalty = loss.parts["r1_sq_norm"] + loss.parts["r2_sq_norm"]
        totals[progress] = ((loss.total - loss.parts["adversarial_nats"]) / penalty).item()
    assert totals[0.0] == pytest.approx(2.0)
    assert totals[1.0] == pytest.approx(0.5)


def test_item_depends_on_its_row_alone():
    model = build()
    cond = {"label": torch.arange(70) % 3}
    many = model.sample(70, cond, rng=Rng(4, "sample"))
    few = model.sample(5, {"label": cond["label"][:5]}, rng=Rng(4, "sample"))
    tail = model.sample(6, {"label": cond["label"][64:]}, rng=Rng(4, "sample").at(64))
    assert many.shape == (70, 1, 8, 8)
    assert torch.allclose(many[:5], few, atol=1e-12)
    assert torch.allclose(many[64:], tail, atol=1e-12)
    assert not torch.allclose(many[0], many[3])
    assert not many.requires_grad
    assert model.sample(0, rng=Rng(4, "sample")).shape == (0, 1, 8, 8)


def test_long_samples_are_made_in_chunks_with_their_own_labels(monkeypatch):
    model = build()
    cond = {"label": torch.arange(50) % 3}
    whole = model.sample(50, cond, rng=Rng(4, "sample"))
    monkeypatch.setattr("quintet.families.gan.model.SAMPLE_CHUNK", 7)
    assert torch.allclose(model.sample(50, cond, rng=Rng(4, "sample")), whole, atol=1e-12)


def test_labels_change_both_players_and_minus_one_is_absence():
    model = build()
    n = 6
    zero, one = ({"label": torch.full((n,), k)} for k in (0, 1))
    none = {"label": torch.full((n,), -1)}
    a, b, c, d = (model.sample(n, cond, rng=Rng(0, "s")) for cond in (zero, one, none, None))
    assert not torch.allclose(a, b)
    assert torch.equal(c, d)
    logits = [model.discriminator(a, cond)[0] for cond in (zero, one, none, {})]
    assert logits[0].shape == (n,)
    assert not torch.allclose(logits[0], logits[1])
    assert torch.equal(logits[2], logits[3])


def test_class_dropout_hides_the_stated_share_for_both_players():
    model = build(class_dropout=0.3)
    turn = turn_of(model, n=4000)
    hidden = (turn.shared.cond["label"] == -1).double().mean().item()
    assert hidden == pytest.approx(0.3, abs=0.04)  # 5.5 standard errors
    kept = turn.shared.cond["label"] != -1
    assert torch.equal(turn.shared.cond["label"][kept], turn.batch.cond["label"][kept])


def test_a_classifier_of_real_examples_guides_both_players():
    weight, n = 0.7, 12
    model, plain = build(classifier=weight), build()
    assert not plain.discriminator.classes
    turn = turn_of(model, n=n)
    turn.batch.cond["label"][:3] = -1  # hidden: they cost nothing, and count in the mean
    told = [player.loss(turn) for player in model.players()]
    known = turn.batch.cond["label"][3:]
    _, real = model.discriminator(turn.batch.x, {})
    expected = -real["label"].log_softmax(1)[range(3, n), known].sum() / n
    assert told[0].parts["classes_nats"].item() == pytest.approx(expected.item())
    penalties = 0.5 * model.gamma * (told[0].parts["r1_sq_norm"] + told[0].parts["r2_sq_norm"])
    rest = told[0].total - told[0].parts["adversarial_nats"] - penalties
    assert rest.item() == pytest.approx(weight * expected.item())
    shown = turn.shared.cond["label"]
    _, fake = model.discriminator(turn.shared.x, {})
    expected = -fake["label"].log_softmax(1)[range(n), shown.clamp_min(0)][shown >= 0].sum() / n
    assert told[1].parts["classes_nats"].item() == pytest.approx(expected.item())
    rest = told[1].total - told[1].parts["adversarial_nats"]
    assert rest.item() == pytest.approx(weight / 2 * expected.item())


def test_truncation_scales_the_latent():
    model = build(VECTOR)
    model.generator = Recorder()
    model.sample(300, rng=Rng(0, "s"), sampling=GANSampling(truncation=0.5))
    half = model.generator.seen
    model.sample(300, rng=Rng(0, "s"))
    assert torch.allclose(half, model.generator.seen / 2)


class Recorder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, z, cond):
        self.seen = z
        return z[:, :2]


def test_coins_are_fair_and_reach_the_generator():
    model = build(VECTOR, coins=3)
    model.generator = Recorder()
    model.sample(1000, rng=Rng(0, "s"))
    z = model.generator.seen
    assert z.shape == (1000, 8)
    coins = z[:, 5:]
    assert set(coins.unique().tolist()) == {-1.0, 1.0}
    assert coins.mean(0).abs().max() < 5 / len(z) ** 0.5
    assert (coins.T @ coins / len(z) - torch.eye(3)).abs().max() < 5 / len(z) ** 0.5


def test_trace_keeps_coins():
    model = build(VECTOR, coins=3)
    seen = []
    model.generator = Recorder()
    forward = model.generator.forward
    model.generator.forward = lambda z, cond: seen.append(z) or forward(z, cond)
    model.trace(4, 3, rng=Rng(0, "trace"))
    assert all(torch.equal(z[:, 5:], seen[0][:, 5:]) for z in seen)
    assert not torch.allclose(seen[0][:, :5], seen[2][:, :5])


def test_bound_holds_and_is_reached_smoothly():
    model, free = build(bound=1.1), build()
    x, y = (m.sample(50, rng=Rng(0, "s")) for m in (model, free))
    assert x.abs().max() < 1.1
    assert torch.allclose(x, 1.1 * torch.tanh(y))


def test_noise_has_its_standard_deviation_and_differs_between_turns():
    model = build(VECTOR, noise=0.3)
    seen = []
    model.discriminator.forward = lambda x, cond: seen.append(x.detach()) or (x.sum(1), {})
    turn = turn_of(model, n=4000)
    for player in model.players():
        player.loss(turn)
    clean = torch.cat([turn.batch.x, turn.shared.x.detach()])
    first, second = seen[0] - clean, torch.cat(seen[1:]) - clean
    for noise in (first, second):
        assert noise.std().item() == pytest.approx(0.3, rel=0.05)
    assert (first * second).mean().abs().item() < 0.01


def test_trace_walks_from_one_sample_to_another():
    model = build()
    trace = model.trace(4, 5, {"label": torch.tensor([0, 1, 2, 0])}, rng=Rng(2, "trace"))
    assert trace.kind == "interpolate"
    assert trace.frames.shape == (5, 4, 1, 8, 8)
    assert len(trace.at) == 5
    steps = (trace.frames[1:] - trace.frames[:-1]).flatten(2).norm(dim=2)
    whole = (trace.frames[-1] - trace.frames[0]).flatten(1).norm(dim=1)
    assert (steps > 0).all()
    assert (steps.sum(0) >= whole - 1e-9).all()
    assert "trace" in capabilities(model)
    assert model.sequential_steps() == 1


def test_slerp_keeps_length_and_meets_its_ends():
    a, b = torch.randn(2, 50, 8, dtype=torch.float64)
    b = b * a.norm(dim=1, keepdim=True) / b.norm(dim=1, keepdim=True)
    middle = slerp(a, b, 0.5)
    assert torch.allclose(middle.norm(dim=1), a.norm(dim=1))
    assert torch.allclose((middle * a).sum(1), (middle * b).sum(1))
    assert torch.allclose(slerp(a, b, 0.0), a)
    assert torch.allclose(slerp(a, b, 1.0), b)
    assert torch.allclose(slerp(a, 2 * a, 0.25), 1.25 * a)


@pytest.mark.parametrize("labelled", [True, False])
def test_diversity_ratio_sees_collapse(labelled):
    label = torch.arange(400) % 5
    cond = {"label": label} if labelled else {}
    centres = 3 * torch.randn(5, 1, 4, 4)
    real, fresh = (centres[label] + torch.randn(400, 1, 4, 4) for _ in range(2))
    assert diversity_ratio(real, fresh, cond).item() == pytest.approx(1, abs=0.1)
    assert diversity_ratio(real, 0.5 * fresh, cond).item() == pytest.approx(0.5, abs=0.05)
    assert diversity_ratio(real, fresh[:1].expand(400, -1, -1, -1), cond).item() == 0
    one_a_class = diversity_ratio(real, centres[label], cond).item()
    assert one_a_class == 0 if labelled else one_a_class > 0.5
    assert diversity_ratio(real[:1], fresh[:1], {}).item() == 1


def test_detectors_tell_a_winning_discriminator():
    model = build(VECTOR)
    model.discriminator.forward = lambda x, cond: (x[:, 0], {})
    x = torch.full((8, 2), 5.0, dtype=torch.float64)
    turn = Turn(0, 0.0, Batch(x, torch.arange(8)), Rng(0, "train", 0))
    turn = replace(turn, shared=type(model.shared(turn))(-x, {}))
    parts = model.players()[0].loss(turn).parts
    assert parts["win_share"] == 1
    assert parts["sign_real"] == 1
    assert parts["r1_sq_norm"] == pytest.approx(1)
    assert all(part.ndim == 0 and not part.requires_grad for part in parts.values())


def test_shift_keeps_constants_reaches_all_places_and_has_the_stated_probability():
    assert torch.equal(shifted(torch.ones(5, 2, 8, 8), 1.0, Rng(0, "a")), torch.ones(5, 2, 8, 8))
    x = torch.zeros(4500, 1, 8, 8)
    x[:, 0, 4, 3] = 1
    assert torch.equal(shifted(x, 0.0, Rng(0, "a")), x)
    moved = shifted(x, 0.5, Rng(1, "a"))
    assert (moved.sum((1, 2, 3)) == 1).all()
    share = moved.mean((0, 1))
    expected = torch.zeros(8, 8)
    expected[3:6, 2:5] = 0.5 / 9
    expected[4, 3] += 0.5
    assert (share - expected).abs().max() < 5 * (0.25 / 4500) ** 0.5


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_augmentations_pass_gradients_and_are_drawn_by_rows(kind):
    x = torch.randn(6, 2, 8, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: augmented(x, 0.7, (kind,), Rng(2, "a")), (x,))
    whole = augmented(x, 0.7, (kind,), Rng(2, "a"))
    assert whole.shape == x.shape
    assert not torch.equal(whole, x)
    assert torch.equal(augmented(x[2:], 0.7, (kind,), Rng(2, "a").at(2)), whole[2:])
    assert torch.equal(augmented(x, torch.tensor(0.0), (kind,), Rng(2, "a")), x)


def test_colour_changes_are_affine_in_each_image():
    """Of a grey image: brightness moves the mean, contrast scales around it, both within their stated ranges."""
    x = torch.randn(2000, 1, 4, 4, dtype=torch.float64)
    changed = recoloured(x, 1.0, Rng(0, "c"))
    move = changed.mean((1, 2, 3)) - x.mean((1, 2, 3))
    factor = changed.flatten(1).std(1) / x.flatten(1).std(1)
    assert -0.5 <= move.min() < -0.45
    assert 0.45 < move.max() <= 0.5
    assert 0.5 <= factor.min() < 0.55
    assert 1.45 < factor.max() <= 1.5
    middle = x.mean((1, 2, 3), keepdim=True)
    assert torch.allclose(changed, middle + (x - middle) * factor[:, None, None, None] + move[:, None, None, None])


def test_cutout_hides_a_rectangle_of_half_the_sides():
    hidden = cut(torch.ones(500, 3, 12, 8), 1.0, Rng(0, "k")) == 0
    assert (hidden.all(1) == hidden.any(1)).all()  # all channels alike
    rows, columns = hidden[:, 0].any(2).sum(1), hidden[:, 0].any(1).sum(1)
    assert torch.equal(hidden[:, 0].sum((1, 2)), rows * columns)
    assert rows.max() == 6
    assert columns.max() == 4


def test_config_goes_to_json_and_back():
    kinds = {cls.kind: cls for cls in (GANConfig, MLPConfig, ConvConfig, GANSampling, *LOSSES.values())}
    made = small(discriminator=CONV, gamma=0.3)
    assert config.decode(config.encode(made), kinds) == made


def test_discrete_data_are_refused():
    with pytest.raises(ValueError, match="continuous"):
        small().build(DataSpec("image", (1, 8, 8), levels=17))


def test_half_precision_regions_do_not_reach_the_penalties():
    model = build().float()
    x = torch.randn(12, 1, 8, 8)
    turn = Turn(0, 0.0, Batch(x, torch.arange(12), {"label": torch.arange(12) % 3}), Rng(1, "train", 0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        turn = replace(turn, shared=model.shared(turn))
        loss = model.players()[0].loss(turn)
    assert loss.total.dtype == torch.float32
    assert loss.parts["r1_sq_norm"].dtype == torch.float32
