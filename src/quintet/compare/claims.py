"""The articles' sentences, and what decides each: every row of their tables and every sentence that compares.

Articles: 000 diffusion and other generative models; 001 diffusion, GAN and VAE compared; 002 what a diffusion model is;
003 from VAE to diffusion; 004 diffusion and autoregressive models. The sentences and the evidence are messages
(`core/messages/claims.toml`), the tests are in `findings`, the computations in `derivations`. A family's default recipe
speaks for it; where an article finds fault with GANs, the loss of 2014 that it describes speaks, if it is there.
"""

from __future__ import annotations

from collections.abc import Sequence

from quintet.compare import derivations
from quintet.compare.derivations import Derived
from quintet.compare.findings import (
    Better,
    Check,
    CostlyChain,
    Density,
    Finding,
    First,
    Invertible,
    MoreTrouble,
    Open,
    Record,
    Sharpness,
    StepAValue,
    Steps,
    Trouble,
    Who,
    spoken,
)
from quintet.core.results import Claim, Compare

GAN = Who(("gan",), ("gan",))
VAE = Who(("vae",), ("vae",))
FLOW = Who(("flow",), ("nsf", "tarflow"))
DIFFUSION = Who(("diffusion",), ("flow-matching", "ddpm"))
AUTOREGRESSIVE = Who(("autoregressive",), ("gpt",))
FAMILIES = (GAN, VAE, FLOW, DIFFUSION, AUTOREGRESSIVE)
GAN_2014 = Who(("gan",), ("classic-gan", "dcgan"))
CHAIN = Who(("diffusion",), ("ddpm",), alone=True)
STRAIGHT = Who(("diffusion",), ("flow-matching",), alone=True)
UNET = Who(("diffusion",), ("unet", "flow-matching"), alone=True)
DIT = Who(("diffusion",), ("dit",), alone=True)
LATENT = Who(("diffusion",), ("latent-diffusion",), alone=True)
TRANSFORMER = Who(("autoregressive",), ("gpt",), alone=True)
LSTM = Who(("autoregressive",), ("lstm",), alone=True)
CLASSIC = Who(("gan", "vae", "flow"))

SPEED, KID, COVERAGE = "seconds_per_1000", "kid", "coverage"


def _others(who: Who) -> tuple[Who, ...]:
    return tuple(other for other in FAMILIES if other is not who)


CLAIMS: Sequence[tuple[str, tuple[str, ...], Check]] = (
    # how samples are made, and how fast
    ("gan-one-step", ("000", "001", "002"), Steps(GAN, most=1)),
    ("gan-fast", ("000", "002"), Better(GAN, DIFFUSION, SPEED)),
    ("vae-fast", ("000", "002"), Better(VAE, DIFFUSION, SPEED)),
    ("flow-fast", ("000",), Better(FLOW, DIFFUSION, SPEED)),
    ("diffusion-slow", ("000", "002", "003", "004"), Steps(DIFFUSION, least=10)),
    ("diffusion-parallel", ("004",), Derived("parallel", derivations.reverse_in_parallel)),
    ("latent-faster", ("000",), Better(LATENT, STRAIGHT, SPEED)),
    ("ar-sequential", ("004",), Steps(AUTOREGRESSIVE, least=2)),
    ("ar-linear", ("004",), StepAValue(AUTOREGRESSIVE)),
    ("ar-single-pass", ("004",), Steps(AUTOREGRESSIVE, most=1)),
    ("ar-faster", ("004",), Better(AUTOREGRESSIVE, DIFFUSION, SPEED)),
    # quality
    ("diffusion-quality", ("000", "001", "002", "003", "004"), First(DIFFUSION, _others(DIFFUSION), KID)),
    ("diffusion-over-gan", ("002",), Better(DIFFUSION, GAN, KID)),
    ("gan-over-vae", ("001", "002"), Better(GAN, VAE, KID)),
    ("gan-sharp", ("002",), Sharpness(GAN, blurry=False)),
    ("vae-blurry", ("000", "002"), Sharpness(VAE, blurry=True)),
    ("vae-blurrier", ("002",), Better(DIFFUSION, VAE, "sharpness", "high")),
    ("small-scale", ("000",), Better(CLASSIC, DIFFUSION, KID)),
    ("ar-errors", ("004",), Better(DIFFUSION, AUTOREGRESSIVE, "kid_drift", "low")),
    # diversity
    ("gan-diversity", ("002",), Better(DIFFUSION, GAN_2014, COVERAGE)),
    ("vae-diverse", ("001", "002"), Better(VAE, GAN_2014, COVERAGE)),
    ("diffusion-coverage", ("001", "002", "003", "004"), First(DIFFUSION, _others(DIFFUSION), COVERAGE)),
    ("ar-coverage", ("004",), Better(DIFFUSION, AUTOREGRESSIVE, COVERAGE)),
    # training
    ("gan-unstable", ("000", "001", "002"), Trouble(GAN_2014, expected=True)),
    ("gan-vanishing", ("000",), Derived("vanishing", derivations.vanishing_gradient)),
    ("gan-game", ("001",), Derived("game", derivations.equilibrium)),
    ("vae-stable", ("002",), Trouble(VAE, expected=False)),
    ("vae-steadier", ("002",), MoreTrouble(GAN_2014, VAE)),
    ("diffusion-stable", ("000", "001", "002", "003", "004"), Trouble(DIFFUSION, expected=False)),
    ("diffusion-steadier", ("000", "001", "004"), MoreTrouble(GAN_2014, DIFFUSION)),
    ("diffusion-training", ("000", "003"), Better(GAN, DIFFUSION, KID)),
    ("diffusion-steps", ("004",), CostlyChain(CHAIN, STRAIGHT)),
    ("ar-training", ("004",), Better(AUTOREGRESSIVE, DIFFUSION, KID)),
    # probability
    ("flow-exact", ("000",), Density(FLOW, "exact")),
    ("flow-invertible", ("000",), Invertible(FLOW)),
    ("others-not-invertible", ("000",), Derived("flow", derivations.only_flows_invert)),
    ("vae-bound", ("001", "003"), Derived("bound", derivations.elbo_is_a_bound)),
    ("ar-chain", ("004",), Derived("chain", derivations.chain_rule)),
    ("ar-explicit", ("004",), Density(AUTOREGRESSIVE, "exact")),
    ("diffusion-implicit", ("004",), Density(DIFFUSION, "none")),
    ("diffusion-likelihood", ("002",), Derived("weights", derivations.squared_error_is_no_likelihood)),
    # the chain's formulas
    ("diffusion-noising", ("000", "001", "004"), Derived("noising", derivations.closed_form_noising)),
    ("diffusion-end", ("002", "003", "004"), Derived("end", derivations.ends_in_noise)),
    ("diffusion-mean", ("004",), Derived("mean", derivations.posterior_mean)),
    ("diffusion-loss", ("003",), Derived("index", derivations.wrong_index)),
    # newer networks and paths
    ("straight-paths", ("002",), Derived("straight", derivations.straight_paths)),
    ("straight-few-steps", ("002",), Better(STRAIGHT, CHAIN, "kid_four_steps", "low")),
    ("dit-stronger", ("002",), Better(DIT, UNET, KID)),
    ("transformer-lstm", ("004",), Better(TRANSFORMER, LSTM, "bits_per_dim")),
    ("gpt-lstm", ("004",), Record("gpt-lstm", "contradicted")),
    # what no number here speaks about
    ("hybrids", ("000",), Open("hybrids")),
    ("vae-morphing", ("001", "002"), Open("vae-morphing")),
    ("vae-noise", ("003",), Open("vae-noise")),
    ("interpretability", ("000",), Open("interpretability")),
    ("fixed-size", ("004",), Open("fixed-size")),
    ("scaling", ("002",), Open("scaling")),
)  # fmt: skip
"""(key, articles, what decides it)."""

UNTESTED = Finding("not tested here", spoken("evidence.untested"))


def claims(result: Compare) -> list[Claim]:
    """Every sentence with its verdict on this comparison."""
    found = []
    for key, articles, check in CLAIMS:
        answer = check(result) or UNTESTED
        sentence = spoken(f"claim.{key}")
        found.append(
            Claim(
                key=key, articles=list(articles), en=sentence["en"], zh=sentence["zh"], verdict=answer.word,
                evidence_en=answer.text["en"], evidence_zh=answer.text["zh"],
            )
        )  # fmt: skip
    return found
