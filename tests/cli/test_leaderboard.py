"""The comparison's table in the terminal."""

from rich.console import Console

from quintet.cli.commands import leaderboard
from quintet.core.results import Baseline, Compare, Estimate, RecipeResult, SeedResult


def bits(protocol):
    return Estimate(value=1.5, low=1.4, high=1.6, n=10, protocol=protocol)


def lines(result):
    console = Console(width=80, record=True)
    console.print(leaderboard(result, "en"))
    return console.export_text().splitlines()


def test_bits_that_are_a_bound_or_an_estimate_carry_its_sign():
    kinds = {"vae": "bound, importance-weighted", "diffusion": "estimate by the ODE", "gpt": "exact"}
    recipes = [
        RecipeResult(
            name=name, family="x", status="done", summary={"bits_per_dim": bits("median over seeds")},
            seeds=[SeedResult(seed=0, status="done", metrics={"bits_per_dim": bits(protocol)})],
        )
        for name, protocol in kinds.items()
    ]  # fmt: skip
    result = Compare(
        name="x", quintet="0", created="2026-01-01T00:00:00", data={"name": "digits"}, budget={"cell": "10s"},
        recipes=recipes, baselines=[Baseline(name="mixture", metrics={"bits_per_dim": bits("bound")})],
    )  # fmt: skip
    found = {line.split()[0]: line for line in lines(result) if "1.500" in line}
    assert all("≤1.500" in found[name] for name in ("vae", "Gaussian"))
    assert "≈1.500" in found["diffusion"]
    assert " 1.500" in found["gpt"]
    assert max(map(len, lines(result))) <= 80
