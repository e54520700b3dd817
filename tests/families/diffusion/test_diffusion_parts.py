"""Paths, targets, weighting: derivatives, round trips, densities of times; and the model's contract in small."""

from __future__ import annotations

import json

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from quintet.core import config as configs
from quintet.core.batch import Batch
from quintet.core.errors import UsageError
from quintet.core.model import Turn
from quintet.core.rng import Rng, layer_noise
from quintet.core.spec import DataSpec
from quintet.families.diffusion.densities import BoundConfig, OdeDensityConfig
from quintet.families.diffusion.model import Diffusion, DiffusionConfig
from quintet.families.diffusion.paths import (
    PATHS,
    DdpmPathConfig,
    EdmPathConfig,
    LogSnrPathConfig,
    PathConfig,
    PathName,
)
from quintet.families.diffusion.sampling import DiffusionSampling
from quintet.families.diffusion.targets import TargetName, combine, convert, factors
from quintet.families.diffusion.warps import WarpConfig
from quintet.families.diffusion.weighting import ElboConfig, WeightingConfig
from quintet.nets.mlp import MLPConfig, ResidualMLPConfig

PATH_NAMES: tuple[PathName, ...] = ("linear", "cosine", "vp")
TARGETS: tuple[TargetName, ...] = ("x0", "eps", "v", "velocity", "score")
IMAGES = DataSpec("image", (1, 4, 4), conditions={"label": 5})


def small(spec: DataSpec = IMAGES, **more: object) -> Diffusion:
    with layer_noise(Rng(0, "init")):
        network = ResidualMLPConfig(width=16, depth=2, hidden=16, context=8)
        model = DiffusionConfig(network=network, **more).build(spec)  # type: ignore[arg-type]
        for p in model.parameters():  # zero-initialised outputs would hide every dependence
            nn.init.normal_(p, std=0.2)
    return model.eval()


def turn(x: Tensor, seed: int = 0, first: int = 0, **cond: Tensor) -> Turn:
    return Turn(0, 0.0, Batch(x, torch.arange(len(x)), cond), Rng(seed, "train", 0, first=first))


@pytest.mark.parametrize("name", PATH_NAMES)
def test_paths(name: PathName) -> None:
    path = PATHS[name]
    t = torch.linspace(0.001, 0.999, 200, dtype=torch.float64, requires_grad=True)
    for value, slope in ((path.a, path.da), (path.s, path.ds)):
        (by_autograd,) = torch.autograd.grad(value(t).sum(), t)
        torch.testing.assert_close(slope(t), by_autograd, rtol=1e-8, atol=1e-10)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(path.a(ends), torch.tensor([1.0, 0.0]).double(), rtol=0, atol=0.01)
    torch.testing.assert_close(path.s(ends), torch.tensor([0.0, 1.0]).double(), rtol=0, atol=1e-4)
    torch.testing.assert_close(path.time(path.s(t) / path.a(t)), t, rtol=1e-6, atol=1e-8)
    if name != "linear":
        torch.testing.assert_close(path.a(t) ** 2 + path.s(t) ** 2, torch.ones_like(t))


@pytest.mark.parametrize("path", PATH_NAMES)
@pytest.mark.parametrize("source", TARGETS)
@pytest.mark.parametrize("target", TARGETS)
def test_conversions(path: PathName, source: TargetName, target: TargetName) -> None:
    rng = Rng(hash((path, source, target)) % 1000, "convert")
    x0, eps = (rng(name).normal((40, 2, 3), torch.float64) for name in ("x0", "eps"))
    t = rng("t").uniform((40,), torch.float64) * 0.9 + 0.05
    x = PATHS[path].point(x0, eps, t)
    y = combine(source, PATHS[path], x0, eps, t)
    there = convert(source, target, PATHS[path], y, x, t)
    torch.testing.assert_close(there, combine(target, PATHS[path], x0, eps, t), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(convert(target, source, PATHS[path], there, x, t), y, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("space", TARGETS)
def test_weight_measures_the_error_elsewhere(space: TargetName) -> None:
    path, t = PATHS["cosine"], torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    weight = WeightingConfig(space=space).weight("eps", path, t)
    x, y, error = (Rng(i, "w").normal((9, 1), torch.float64) for i in range(3))
    shown = convert("eps", space, path, y + error, x, t) - convert("eps", space, path, y, x, t)
    torch.testing.assert_close(weight * error[:, 0] ** 2, shown[:, 0] ** 2)
    torch.testing.assert_close(factors("eps", "eps", path, t)[1], torch.ones_like(t))


@pytest.mark.parametrize(
    ("config", "cdf"),
    [
        (WeightingConfig(density="uniform"), lambda t: t),
        (WeightingConfig(mean=-0.4, std=1.3), lambda t: stats.norm.cdf((stats.logistic.ppf(t) + 0.4) / 1.3)),
        (
            WeightingConfig(mean=0.5, std=0.7, uniform_share=0.25),
            lambda t: 0.25 * t + 0.75 * stats.norm.cdf((stats.logistic.ppf(t) - 0.5) / 0.7),
        ),
    ],
)
def test_times(config: WeightingConfig, cdf) -> None:  # type: ignore[no-untyped-def]
    # one row over many steps has the density exactly ...
    lone = (
        torch.cat([config.times(1, Rng(1, "train", step), "velocity", PATHS["linear"]) for step in range(3000)])
        .double()
        .numpy()
    )
    assert stats.kstest(lone, cdf).pvalue > 1e-3
    # ... and the rows of one step cover it far more evenly than chance (0.04 for 512 independent ones)
    rows = config.times(512, Rng(2, "train", 0), "velocity", PATHS["linear"]).double().numpy()
    assert stats.kstest(rows, cdf).statistic < 0.008
    torch.testing.assert_close(
        config.times(40, Rng(2, "train", 0, first=100), "velocity", PATHS["linear"]),
        config.times(512, Rng(2, "train", 0), "velocity", PATHS["linear"])[100:140],
    )


def test_loss_rows_are_their_own() -> None:
    """The loss of a batch is the mean of the losses of its rows, wherever they are computed."""
    model, x = small(class_dropout=0.3), Rng(5, "x").normal((64, 1, 4, 4))
    label = Rng(5, "y").integers(0, 5, (64,))
    whole = model.loss(turn(x, label=label)).total
    halves = [model.loss(turn(x[i : i + 32], first=i, label=label[i : i + 32])).total for i in (0, 32)]
    torch.testing.assert_close(whole, (halves[0] + halves[1]) / 2)
    assert whole.isfinite()


def test_class_dropout() -> None:
    """The network is told the labels, without the share that training hides."""
    x, label = Rng(0, "x").normal((4000, 1, 4, 4)), Rng(0, "y").integers(0, 5, (4000,))

    def told(share: float) -> Tensor:
        model, seen = small(class_dropout=share), []
        model.network.register_forward_pre_hook(lambda module, args: seen.append(args[1]["label"]))
        with torch.no_grad():
            model.loss(turn(x, label=label))
        return seen[0]

    hidden = told(0.25)
    share = (hidden == -1).double().mean()
    assert abs(share - 0.25) < 4 * (0.25 * 0.75 / 4000) ** 0.5
    assert torch.equal(hidden[hidden >= 0], label[hidden >= 0])
    assert torch.equal(told(0.0), label)


def test_warps_move_what_they_say() -> None:
    """A blob's centre of mass moves by the table's shift; unwarped images stay the same to the bit."""
    shifts = WarpConfig(share=0.5, count=20, rotation=0.0, stretch=0.0, shift=0.125).build(
        DataSpec("image", (1, 16, 16))
    )
    place = (torch.arange(16) + 0.5) / 8 - 1  # pixel centres; the image goes from -1 to 1
    blob = torch.exp(-8 * (place[:, None] ** 2 + place[None] ** 2))[None, None].repeat(600, 1, 1, 1)
    out, which = shifts(blob, Rng(0, "warp"))
    plain = which == -1
    assert abs(plain.double().mean() - 0.5) < 4 * 0.5 / 600**0.5
    assert torch.equal(out[plain], blob[plain])
    mass = out[~plain].sum((1, 2, 3))
    centre = torch.stack([(out[~plain] * place).sum((1, 2, 3)), (out[~plain] * place[:, None]).sum((1, 2, 3))], 1)
    # a map says where a pixel comes from, so the content moves the other way
    torch.testing.assert_close(centre / mass[:, None], -shifts.maps[which[~plain], :, 2], rtol=0, atol=5e-3)
    part, part_which = shifts(blob[:10], Rng(0, "warp").at(64))
    assert torch.equal(part_which, which[64:74])
    torch.testing.assert_close(part, out[64:74])
    with pytest.raises(ValueError, match="images"):
        WarpConfig().build(DataSpec("vector", (2,)))


def test_warps_do_not_show_outside_training() -> None:
    model = small(warps=WarpConfig(share=1.0, count=4))
    x, label = Rng(1, "x").normal((8, 1, 4, 4)), torch.arange(8) % 5
    with torch.no_grad():
        plain = small(warps=WarpConfig(share=0.0, count=4)).loss(turn(x, label=label)).total
        assert model.loss(turn(x, label=label)).total != plain
        out = model.sample(8, {"label": label}, rng=Rng(0, "s"))
    assert out.shape == x.shape
    assert dict(model.spec.conditions) == {"label": 5}


def test_gradients_reach_every_parameter() -> None:
    model = small(warps=WarpConfig())
    loss = model.loss(turn(Rng(1, "x").normal((32, 1, 4, 4)), label=torch.arange(32) % 5))
    loss.total.backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.abs().sum() > 0, name


EVALUATIONS = {"heun": 8, "euler": 5, "rk4": 8, "ddim": 6, "ancestral": 12, "dpmpp-2m": 7, "edm": 9}


@pytest.mark.parametrize(
    "sampling",
    [
        DiffusionSampling(steps=4),
        DiffusionSampling(solver="euler", steps=5, guidance=2.0),
        DiffusionSampling(solver="rk4", steps=2, warp=2.0),
        DiffusionSampling(solver="dopri5", tolerance=1e-3, guidance=0.0),
        DiffusionSampling(solver="heun", steps=4, guidance=3.0, interval=(0.2, 0.7)),
        DiffusionSampling(solver="ddim", steps=6, eta=0.5, guidance=2.0),
        DiffusionSampling(solver="ancestral", steps=12, grid="rho"),
        DiffusionSampling(solver="dpmpp-2m", steps=7, guidance=0.0),
        DiffusionSampling(solver="edm", steps=5, churn=10.0, guidance=2.0, interval=(0.2, 0.7)),
    ],
)
@pytest.mark.parametrize("path", ["linear", DdpmPathConfig(steps=64), EdmPathConfig(), LogSnrPathConfig()])
def test_sampling_contract(path: PathName | PathConfig, sampling: DiffusionSampling) -> None:
    model, label = small(path=path, target="edm", sampling=sampling), {"label": torch.arange(70) % 5}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        x = model.sample(70, label, rng=Rng(1, "s"))
        assert x.shape == (70, 1, 4, 4)
        assert x.isfinite().all()
        assert torch.equal(x, model.sample(70, label, rng=Rng(1, "s")))
        part = model.sample(5, {"label": label["label"][60:65]}, rng=Rng(1, "s").at(60))
    torch.testing.assert_close(part, x[60:65], rtol=1e-4, atol=1e-3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    found = model.sequential_steps()
    last = int(sampling.follows_velocity and path != "linear")  # from the lowest time to the clean data
    if sampling.solver == "dopri5":
        assert found > 6
    elif path == "linear" or not isinstance(path, DdpmPathConfig) or sampling.follows_velocity:
        assert found == EVALUATIONS[sampling.solver] + last


def test_every_solver_counts_its_evaluations() -> None:
    for path in (DdpmPathConfig(steps=64), EdmPathConfig()):
        for solver in ("ddim", "dpmpp-2m", "edm", "euler", "heun", "rk4"):
            model = small(path=path, target="edm", sampling=DiffusionSampling(solver=solver, steps=6))  # type: ignore[arg-type]
            calls = []
            model.network.register_forward_pre_hook(lambda module, args: calls.append(1))  # noqa: B023
            with torch.no_grad():
                model.sample(3, rng=Rng(0, "s"))
            assert len(calls) == model.sequential_steps(), (path.kind, solver)


def test_a_seed_gives_the_same_start_to_every_solver() -> None:
    """Deterministic solvers of one equation agree: they are different ways along one path from one noise."""
    model = small(path=LogSnrPathConfig(low=-9), target="edm", class_dropout=0.0)
    with torch.no_grad():
        drawn = [
            model.sample(6, rng=Rng(0, "s"), sampling=DiffusionSampling(solver=solver, steps=400, grid=grid))  # type: ignore[arg-type]
            for solver, grid in (("heun", None), ("ddim", "log-snr"), ("dpmpp-2m", "time"), ("edm", "rho"))
        ]
    for other in drawn[1:]:
        assert (other - drawn[0]).abs().max() < 0.05


@pytest.mark.parametrize("path", ["linear", "cosine"])
def test_steps_in_the_level_begin_where_it_is_finite(path: PathName) -> None:
    """Evenly in time they would begin at pure noise, whose level is infinite."""
    model = small(path=path, target="velocity", class_dropout=0.0)
    with torch.no_grad():
        levels = DiffusionSampling(solver="edm", steps=300, grid="time")
        drawn = model.sample(6, rng=Rng(0, "s"), sampling=levels)
        other = model.sample(6, rng=Rng(0, "s"), sampling=DiffusionSampling(solver="edm", steps=300))
    assert max(level.sigma for level in levels.levels("velocity", model.path)) <= 80 * (1 + 1e-9)
    assert (drawn - other).abs().max() < 0.1


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"solver": "heun", "eta": 0.5}, "eta"),
        ({"solver": "dopri5", "steps": 10}, "steps"),
        ({"solver": "ddim", "tolerance": 1e-3}, "tolerance"),
        ({"solver": "dpmpp-2m", "churn": 1.0}, "churn"),
        ({"solver": "ancestral", "eta": 1.0}, "eta"),
        ({"solver": "rk4", "grid": "rho"}, "grid"),
        ({"solver": "dpmpp-2m", "warp": 2.0}, "warp"),
        ({"solver": "ddim", "grid": "rho", "warp": 2.0}, "warp"),
        ({"solver": "edm", "churn_low": 0.1}, "churn_low"),
        ({"solver": "edm", "churn": 0.0, "churn_noise": 1.1}, "churn_noise"),
        ({"interval": (0.1, 0.5)}, "interval"),
    ],
)
def test_an_option_that_does_nothing_is_refused(fields: dict[str, object], named: str) -> None:
    with pytest.raises(UsageError) as error:
        configs.make(DiffusionSampling, fields)
    for lang in ("en", "zh"):
        assert named in error.value.text(lang)


def test_another_solver_brings_its_own_options() -> None:
    """A user who names another solver does not inherit the recipe's options of the first, only guidance."""
    recipe = DiffusionSampling(solver="heun", steps=16, warp=2.0, guidance=1.5, interval=(0.1, 0.9))
    chosen = {"solver": "dpmpp-2m"}
    assert configs.make(DiffusionSampling, {**recipe.carried(chosen), **chosen}) == DiffusionSampling(
        solver="dpmpp-2m", guidance=1.5, interval=(0.1, 0.9)
    )
    assert configs.make(DiffusionSampling, {**recipe.carried({"steps": 8}), "steps": 8}).warp == 2.0
    ddim = DiffusionSampling(solver="ddim", steps=20, warp=2.0)
    assert configs.make(DiffusionSampling, {**ddim.carried({"grid": "rho"}), "grid": "rho"}).steps == 20
    assert configs.make(DiffusionSampling, {**recipe.carried({"guidance": 1}), "guidance": 1}).interval is None


def test_levels_in_and_out() -> None:
    """Levels are read as even values; samples and frames are levels, and the denoiser speaks in levels."""
    spec = DataSpec("image", (2, 4, 4), levels=6, conditions={"label": 5})
    model = small(spec, path=LogSnrPathConfig(low=-6), target="v", weighting=ElboConfig(), density=BoundConfig(draws=4))
    x, label = Rng(0, "x").integers(0, 6, (8, 2, 4, 4)), torch.arange(8) % 5
    assert model.loss(turn(x, label=label)).total.isfinite()
    assert torch.equal(model._write(model._read(x)), x)
    assert model._read(x).unique().tolist() == pytest.approx([-1, -0.6, -0.2, 0.2, 0.6, 1])
    with torch.no_grad():
        value = model.log_prob(x, {"label": label}, rng=Rng(1, "p"))
        part = model.log_prob(x[2:5], {"label": label[2:5]}, rng=Rng(1, "p").at(2))
        drawn = model.sample(9, rng=Rng(0, "s"))
        clean = model.denoiser()(x.float(), torch.tensor(1e-3))
        frames = model.trace(2, 3, rng=Rng(0, "t")).frames
    torch.testing.assert_close(part, value[2:5])
    assert model.likelihood == "bound"
    for levels in (drawn, frames):
        assert levels.dtype == torch.int64
        assert bool(((levels >= 0) & (levels <= 5)).all())
    assert (clean - x).abs().max() < 0.5  # hardly any noise: the data themselves, in levels


def test_waves_tell_the_place_between_levels() -> None:
    """On a level both waves are what they are at any other, half way between they are not; noise fades them out."""
    model = small(
        DataSpec("vector", (3,), levels=9), path=LogSnrPathConfig(), weighting=ElboConfig(), density=BoundConfig()
    )
    shown: list[Tensor] = []
    model.network.register_forward_pre_hook(lambda module, args: shown.append(args[0]))
    t = torch.zeros(2)
    values = torch.tensor([[-1.0, -0.5, 0.25], [-0.875, -0.375, 0.375]])
    with torch.no_grad():
        model.predict("x0", values, t, {})
        model.predict("x0", values, t + 0.9, {})
    fine = shown[0][:, 9:].unflatten(1, (2, 3))  # sine and cosine with the period of one level
    torch.testing.assert_close(fine[0, :, 0], fine[0, :, 1], atol=1e-2, rtol=0)
    torch.testing.assert_close(fine[0], -fine[1], atol=1e-2, rtol=0)
    assert shown[1][:, 3:].abs().max() < 1e-6


def test_trace() -> None:
    model = small()
    with torch.no_grad():
        trace = model.trace(3, 5, {"label": torch.tensor([0, 1, 2])}, rng=Rng(0, "t"))
        end = model.sample(
            3, {"label": torch.tensor([0, 1, 2])}, rng=Rng(0, "t"), sampling=DiffusionSampling(solver="rk4", steps=64)
        )
    assert trace.kind == "denoise"
    assert trace.frames.shape == (5, 3, 1, 4, 4)
    assert trace.at == ("t=1.00", "t=0.75", "t=0.50", "t=0.25", "t=0.00")
    torch.testing.assert_close(trace.frames[0], Rng(0, "t")("noise").normal((3, 1, 4, 4)))
    torch.testing.assert_close(trace.frames[-1], end, rtol=0.05, atol=0.05)
    assert small(DataSpec("vector", (2,))).trace(2, 3, rng=Rng(0, "t")).kind == "denoise"


def test_config_round_trip_and_refusals() -> None:
    config = DiffusionConfig(network=MLPConfig(), path="vp", target="eps", sampling=DiffusionSampling(solver="rk4"))
    used = (
        DiffusionConfig,
        DiffusionSampling,
        WeightingConfig,
        OdeDensityConfig,
        BoundConfig,
        EdmPathConfig,
        MLPConfig,
    )
    kinds = {c.kind: c for c in used}
    assert configs.decode(json.loads(json.dumps(configs.encode(config))), kinds) == config
    for field, value in (("steps", 0), ("steps", 2.5), ("guidance", float("nan")), ("solver", "magic"), ("warp", 0)):
        with pytest.raises(UsageError):
            configs.make(DiffusionSampling, {field: value})


def test_log_prob_protocol_names_the_method() -> None:
    assert "exact trace" in small(DataSpec("vector", (2,))).log_prob_protocol
    assert "16 random probes" in small(density=OdeDensityConfig(probes=16)).log_prob_protocol
    assert small(density=BoundConfig()).log_prob_protocol == "variational bound, continuous time, 16 times an example"
    assert "1000 steps" in small(path=DdpmPathConfig(), density=BoundConfig()).log_prob_protocol
