"""What a comparison found: the schema of compare.json (version 1), as pydantic models.

Everything the report shows is in here or in the cell folders it names. Numbers that could not be had are null with the
reason in `protocol`, never NaN.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

METRICS = (
    "kid", "fd", "c2st", "cas", "precision", "recall", "density", "coverage", "modes", "memorisation",
    "bits_per_dim", "sharpness",
)  # fmt: skip
"""Metric names. Extras with a suffix ("kid_pca", "kid_pixels", "modes_kl", "in_3_sigma") may stand beside them."""

BETTER: dict[str, float | Literal["low", "high"]] = {
    "kid": "low", "kid_pca": "low", "fd": "low", "fd_pca": "low", "c2st": 0.5, "cas": "high", "precision": "high",
    "recall": "high", "density": "high", "coverage": "high", "modes": "high", "modes_kl": "low", "memorisation": 0.5,
    "bits_per_dim": "low", "sharpness": 1.0, "in_3_sigma": "high",
    "kid_pixels": "low", "c2st_judge": 0.5, "memorisation_judge": 0.5, "copies": "low",
    "kid_reconstruction": "low", "fd_reconstruction": "low", "sharpness_reconstruction": 1.0,
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


class LedgerEntry(Strict):
    """What a model cost. `wall_s` is all that counts against the budget; evaluation is apart in `evaluation_s`."""

    wall_s: float
    cpu_s: float
    flops: float
    examples: int
    steps: int
    params: int
    peak_bytes: int
    evaluation_s: float = 0.0
    preview_s: float = 0.0
    checkpoint_s: float = 0.0


class SamplingCost(Strict):
    seconds_per_1000: float
    nfe: float
    sequential_steps: int


class Stability(Strict):
    """Events of one run: `diverged`, `collapsed`, skipped steps, and a line each for what happened."""

    diverged: bool = False
    collapsed: bool = False
    skipped_steps: int = 0
    events: list[dict[str, Any]] = []


class SeedResult(Strict):
    """One cell. `curve`: [{"seconds", "step", "kid_pca"}] at the moments when a grid was drawn."""

    seed: int
    status: Literal["done", "failed", "skipped", "diverged"]
    reason: str = ""
    metrics: dict[str, Estimate] = {}
    ledger: LedgerEntry | None = None
    sampling: SamplingCost | None = None
    stability: Stability = Stability()
    choice: dict[str, Any] = {}
    curve: list[dict[str, float]] = []
    run: str = ""


class RecipeResult(Strict):
    """A recipe over its seeds; `summary` holds the median over seeds, low and high their range."""

    name: str
    family: str
    status: Literal["done", "failed", "skipped", "diverged"]
    reason: str = ""
    seeds: list[SeedResult] = []
    summary: dict[str, Estimate] = {}
    stability: dict[str, Any] = {}
    likelihood: Literal["exact", "bound", "estimate", "undefined"] = "undefined"
    capabilities: list[str] = []


class Baseline(Strict):
    name: Literal["bootstrap", "histograms", "mixture", "local"]
    metrics: dict[str, Estimate]
    run: str = ""


class Advice(Strict):
    """One sentence in both languages, how sure it is, and the numbers behind it."""

    need: str
    recipe: str | None
    en: str
    zh: str
    verdict: Literal["established", "likely", "too close to call", "no evidence"]
    evidence: list[dict[str, Any]] = []


class Claim(Strict):
    """A sentence of the articles held against this comparison."""

    key: str
    articles: list[str]
    en: str
    zh: str
    verdict: Literal["supported", "contradicted", "mixed", "not tested here"]
    evidence_en: str
    evidence_zh: str


class Compare(Strict):
    """The whole file."""

    schema_: Literal[1] = Field(default=1, alias="schema")
    name: str
    quintet: str
    created: str
    data: dict[str, Any]
    budget: dict[str, Any]
    protocol: dict[str, Any] = {}
    machine: dict[str, Any] = {}
    floor: dict[str, Estimate] = {}
    recipes: list[RecipeResult] = []
    baselines: list[Baseline] = []
    ranking: dict[str, list[str]] = {}
    advice: list[Advice] = []
    claims: list[Claim] = []

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)
