"""What a comparison found: the schema of compare.json (version 1), as pydantic models.

Everything the report shows is in here or in the cell folders it names. Numbers that could not be had are null with the
reason in `protocol`, never NaN.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from quintet.core.ladders import Ladder

METRICS = (
    "kid", "fd", "c2st", "cas", "precision", "recall", "density", "coverage", "modes", "vendi", "memorisation", "c_t",
    "authenticity", "bits_per_dim", "sharpness",
)  # fmt: skip
"""Metric names. Extras with a suffix ("kid_pca", "kid_pixels", "modes_kl", "in_3_sigma") may stand beside them."""

SHARED_BITS = "bits_per_dim_shared"
"""Bits per dimension on the test examples that all models had time for: what verdicts on `bits_per_dim` go by."""

SPACES = ("kid", "kid_self", "kid_random", "kid_pca", "kid_pixels")
"""KID in every space that tells how near samples are to real data, the most important first; some data lack some."""

BETTER: dict[str, float | Literal["low", "high"]] = {
    "kid": "low", "kid_pca": "low", "fd": "low", "fd_pca": "low", "c2st": 0.5, "cas": "high", "precision": "high",
    "recall": "high", "density": "high", "coverage": "high", "modes": "high", "modes_kl": "low", "memorisation": 0.5,
    "bits_per_dim": "low", "sharpness": 1.0, "in_3_sigma": "high",
    "kid_pixels": "low", "c2st_judge": 0.5, "memorisation_judge": 0.5, "copies": "low",
    "kid_self": "low", "kid_random": "low", "fd_self": "low", "fd_random": "low", "fid": "low", "fd_dinov2": "low",
    "kid_reconstruction": "low", "fd_reconstruction": "low", "sharpness_reconstruction": 1.0,
    "vendi": 1.0, "c_t": 0.0, "authenticity": "high",
    SHARED_BITS: "low",
    "bits_per_dim_first": "low", "bits_per_dim_elbo": "low", "bits_per_dim_iw": "low", "bits_per_dim_ais": "low",
    "bits_per_dim_vlb": "low", "bits_per_dim_ode": "low", "coded_bits_per_dim": "low", "file_bits_per_dim": "low",
}  # fmt: skip
"""Which way is better: "low", "high", or the ideal value."""


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Estimate(Strict):
    """A number with its 95 % interval, how many samples it rests on, and how it was made.

    `value` is null where the quantity is undefined or could not be estimated; `protocol` then says why.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    protocol: str = ""


def compared_by(metric: str, known: Container[str]) -> str:
    """The metric that comparisons of `metric` go by, given what is known."""
    return SHARED_BITS if metric == "bits_per_dim" and SHARED_BITS in known else metric


LIKELIHOOD_SIGNS = {"exact": "", "bound": "≤", "estimate": "≈"}
"""Kind of a likelihood, with which a protocol opens -> what stands before its number of bits."""


def likelihood_kind(protocol: str) -> Literal["exact", "bound", "estimate"]:
    """Of an estimate's protocol."""
    kinds: tuple[Literal["bound", "estimate"], ...] = ("bound", "estimate")
    return next((kind for kind in kinds if protocol.startswith(kind)), "exact")


class LedgerEntry(Strict):
    """What a model cost, over all its stages.

    `wall_s` and `cpu_s` are all that counts against the budget: calibration, training, the choice of the average;
    `preview_s`, `checkpoint_s` and `evaluation_s` are apart. `peak_bytes` is the most memory above what the process
    held at its start, `tuning_trials` the trainings spent before on choosing the recipe's settings.
    `gpu_s`, `energy_j` and `others_s` (core seconds that others used of `cores`) are null where nothing counts them.
    `energy` is what the joules are of ("processor", "gpu", "processor+gpu"; the processor's are the whole machine's);
    without joules why: "absent", "forbidden" (root alone may read the meter), "processes".
    """

    wall_s: float = 0.0
    cpu_s: float = 0.0
    flops: float = 0.0
    examples: int = 0
    steps: int = 0
    params: int = 0
    peak_bytes: int = 0
    evaluation_s: float = 0.0
    preview_s: float = 0.0
    checkpoint_s: float = 0.0
    gpu_s: float | None = None
    energy_j: float | None = None
    energy: str = ""
    others_s: float | None = None
    cores: float = 0.0
    tuning_trials: int = 0


class SamplingCost(Strict):
    """What sampling costs: in batches, and `latency_s`, the seconds that a single sample takes by itself."""

    seconds_per_1000: float
    nfe: float
    sequential_steps: int
    latency_s: float | None = None


class Stability(Strict):
    """Events of one run: `diverged`, `collapsed`, skipped steps, spikes, and a line each for what happened.

    `spikes` counts jumps of losses and gradient norms among `watched` values, those of every step.
    """

    diverged: bool = False
    collapsed: bool = False
    skipped_steps: int = 0
    spikes: int = 0
    watched: int = 0
    events: list[dict[str, Any]] = []


class Busy(Strict):
    """Whether a cell had the machine to itself while its clock ran.

    Attributes:
        others: share of the cores that other processes used, null where it cannot be read.
        own: processor seconds a second of the cell itself.
        flag: others took more than a tenth of the cores, or the cell got less than nine tenths of one.
    """

    others: float | None
    own: float
    flag: bool


class SeedResult(Strict):
    """One cell.

    `curve` has a point for each moment when a grid was drawn: {"share" of the budget, "seconds", "flops", "examples",
    "step", "n", "kid_pca", "low", "high"}, the last three KID of n samples to validation data in PCA space and its
    interval; without them where KID was not finite. Seconds, FLOPs and examples are those of all stages so far.
    """

    seed: int
    status: Literal["done", "failed", "skipped", "diverged"]
    reason: str = ""
    metrics: dict[str, Estimate] = {}
    ledger: LedgerEntry | None = None
    sampling: SamplingCost | None = None
    stability: Stability = Stability()
    choice: dict[str, Any] = {}
    curve: list[dict[str, float]] = []
    busy: Busy | None = None
    run: str = ""


class RateTrial(Strict):
    """A short training with every learning rate times `factor`, judged on validation data in PCA space."""

    factor: float
    status: Literal["done", "failed", "diverged"]
    kid_pca: Estimate = Estimate(value=None)
    reason: str = ""


class StabilityPart(Strict):
    """One part of a stability score.

    `value` is in [0, 1], 1 the steadiest, null with the reason's key where it could not be had; `measured` is what it
    was made from, in the part's own unit, with an interval where there is one; n is what it rests on.
    """

    value: float | None
    measured: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    reason: str = ""


class StabilityScore(Strict):
    """How steadily a recipe trains: the geometric mean of the parts that were measured, in [0, 1]."""

    value: float | None
    parts: dict[str, StabilityPart]


class RecipeResult(Strict):
    """A recipe over its seeds.

    `summary` holds medians over seeds with the 95 % interval of a bootstrap of seeds and samples (of one seed its own),
    `failure` the share of trainings that failed or diverged with its exact interval.
    """

    name: str
    family: str
    status: Literal["done", "failed", "skipped", "diverged"]
    reason: str = ""
    seeds: list[SeedResult] = []
    summary: dict[str, Estimate] = {}
    stability: dict[str, Any] = {}
    failure: Estimate | None = None
    steadiness: StabilityScore | None = None
    rates: list[RateTrial] = []
    likelihood: Literal["exact", "bound", "estimate", "undefined"] = "undefined"
    capabilities: list[str] = []


BaselineName = Literal["bootstrap", "histograms", "mixture", "local"]


class Baseline(Strict):
    name: BaselineName
    metrics: dict[str, Estimate]
    run: str = ""


class Note(Strict):
    """A sentence in both languages."""

    en: str
    zh: str


class Advice(Strict):
    """One sentence in both languages, how sure it is, and the numbers behind it.

    Where advice was asked for: `reasons` speak for it and `doubts` against it, `left_out` says which recipes could not
    be recommended and why, `further` what to measure next.
    """

    need: str
    recipe: str | None
    en: str
    zh: str
    verdict: Literal["established", "likely", "mixed", "too close to call", "no evidence"]
    evidence: list[dict[str, Any]] = []
    reasons: list[Note] = []
    doubts: list[Note] = []
    left_out: list[Note] = []
    further: list[Note] = []


class Claim(Strict):
    """A sentence of the articles held against this comparison."""

    key: str
    articles: list[str]
    en: str
    zh: str
    verdict: Literal["confirmed", "contradicted", "not decided", "not tested here"]
    evidence_en: str
    evidence_zh: str


class PairVerdict(Strict):
    """How sure it is that one recipe is better than another in a metric, by the main space and by every other.

    `gap` is the difference of the medians as a loss, `p` that of the sign-flip test and `adjusted` Holm's over all
    pairs (null with fewer than six seeds); `spaces` has a word for each space, "behind" where the order is reversed.
    """

    better: str
    worse: str
    word: Literal["established", "likely", "mixed", "too close to call"]
    gap: float
    pairs: int
    p: float | None = None
    adjusted: float | None = None
    spaces: dict[str, Literal["established", "likely", "too close to call", "behind"]] = {}


class RankShare(Strict):
    """A recipe's rank, in which share of resamples it keeps it, and the mean and 95 % interval of its rank there."""

    recipe: str
    rank: int
    kept: float
    expected: float
    low: int
    high: int


class Agreement(Strict):
    """How far the spaces agree on the order of the recipes: Kendall's tau-b of every two of them."""

    spaces: list[str]
    orders: dict[str, list[str]]
    tau: list[list[float | None]]


class Standing(Strict):
    """A recipe's quality at one amount of a cost that all recipes reached.

    Attributes:
        at: seconds or FLOPs, the same for all.
        value: median over seeds of KID to validation data in PCA space, null with no seed there.
        low, high: the seeds' range.
        seeds: each seed's value, null where its curve does not reach so far or begins later.
    """

    recipe: str
    at: float
    value: float | None
    low: float | None = None
    high: float | None = None
    seeds: dict[int, float | None] = {}


class Compare(Strict):
    """The whole file.

    `verdicts` and `ranks` are by metric or cost; `fronts` hold the recipes that no other surely beats in quality and in
    the cost of sampling ("sampling"), at any moment of training ("training"), or in likelihood ("likelihood").
    """

    schema_: Literal[1] = Field(default=1, alias="schema")
    name: str
    quintet: str
    created: str
    data: dict[str, Any]
    budget: dict[str, Any]
    protocol: dict[str, Any] = {}
    machine: dict[str, Any] = {}
    floor: dict[str, Estimate] = {}
    ladders: dict[str, Ladder] = {}
    recipes: list[RecipeResult] = []
    baselines: list[Baseline] = []
    ranking: dict[str, list[str]] = {}
    verdicts: dict[str, list[PairVerdict]] = {}
    ranks: dict[str, list[RankShare]] = {}
    agreement: Agreement | None = None
    fronts: dict[str, list[str]] = {}
    equal: dict[Literal["wall_s", "flops"], list[Standing]] = {}
    advice: list[Advice] = []
    claims: list[Claim] = []

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)
