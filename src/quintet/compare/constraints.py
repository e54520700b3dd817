"""Advice within limits: which recipes can be recommended at all, what speaks against one, and what to measure next.

What it is: limits on the time of one sample, on memory and on abilities, checked against a comparison's measurements;
without a comparison against what is known of the families. What it is not: the ranking, or how sure it is (`advice`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quintet.compare.advice import LITERATURE, NAMES, advise_by_need, counted, measure, show
from quintet.core.budget import Budget
from quintet.core.errors import UsageError
from quintet.core.messages import LANGUAGES, say
from quintet.core.results import Advice, Compare, Note, RecipeResult
from quintet.core.verdicts import PAIRS_FOR_A_TEST, leader, middle, pairs_needed, ranked

ABILITIES: Mapping[str, tuple[str, ...]] = {
    "likelihood": ("log_prob",),
    "exact-likelihood": ("log_prob",),
    "latent": ("latent",),
    "inpainting": ("fill", "denoiser"),
    "compression": ("code",),
}
"""What a user may need a model to do -> capabilities, of which one is enough."""

KNOWN: Mapping[str, tuple[str, ...]] = {
    "gan": (),
    "vae": ("likelihood", "latent"),
    "flow": ("likelihood", "exact-likelihood", "latent"),
    "diffusion": ("likelihood", "inpainting"),
    "autoregressive": ("likelihood", "exact-likelihood", "inpainting", "compression"),
}
"""Family -> what its models can do here."""

ORDERS: Mapping[str, tuple[str, ...]] = {
    "quality": ("diffusion", "autoregressive", "gan", "vae", "flow"),
    "diversity": ("diffusion", "autoregressive", "vae", "flow", "gan"),
    "speed": ("gan", "vae", "flow", "autoregressive", "diffusion"),
    "likelihood": ("autoregressive", "flow", "diffusion", "vae"),
    "stability": ("diffusion", "vae", "autoregressive", "flow", "gan"),
    "memory": ("vae", "gan", "flow", "autoregressive", "diffusion"),
}
"""Need -> families best first, by the literature."""

MANY_STEPS = ("diffusion", "autoregressive")
QUICK_S = 0.1
"""Without a measurement: tens of network evaluations, one after another, are not promised in less."""
SMALL_DATA = 5000
OTHER_SIZE = 3.0
"""Measurements on so many times more, or fewer, examples say little."""

SPEED = "seconds_per_1000"
_TIMES = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0}
_SIZES = {"kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30}


@dataclass(frozen=True)
class Limits:
    """What a model must keep to.

    Attributes:
        latency_s: one sample by itself, at most.
        memory_bytes: growth of memory in training and evaluation, at most.
        abilities: keys of ABILITIES.
        data_size: training examples that there will be.
    """

    latency_s: float | None = None
    memory_bytes: float | None = None
    abilities: tuple[str, ...] = ()
    data_size: int | None = None


def read_limits(
    latency: str | float | None = None,
    memory: str | float | None = None,
    abilities: Sequence[str] = (),
    data_size: int | None = None,
) -> Limits:
    """Limits from what a user writes: "50ms", "500MB"; plain numbers are seconds and bytes.

    Raises: UsageError for what cannot be read or is unknown.
    """
    for name in abilities:
        if name not in ABILITIES:
            raise UsageError("advise.ability", name=name, known=", ".join(ABILITIES))
    if data_size is not None and data_size < 1:
        raise UsageError("advise.size", text=data_size)
    return Limits(
        None if latency is None else _quantity(latency, _TIMES, "advise.latency"),
        None if memory is None else _quantity(memory, _SIZES, "advise.memory"),
        tuple(abilities),
        data_size,
    )


def _quantity(text: str | float, units: Mapping[str, float], key: str) -> float:
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]+)\s*", str(text))
    if isinstance(text, (int, float)) and text > 0:
        return float(text)
    if found is None or found[2].lower() not in units or float(found[1]) <= 0:
        raise UsageError(key, text=text)
    return float(found[1]) * units[found[2].lower()]


def advise_within(result: Compare | None, needs: Sequence[str], limits: Limits, where: str = "") -> list[Advice]:
    """A recommendation for each need among what keeps to the limits, with reasons, doubts and what to measure next.

    Args:
        where: the comparison's folder, for the commands in `further`.
    """
    if result is None or not any(recipe.status == "done" for recipe in result.recipes):
        return [_by_literature(need, limits) for need in needs]
    return [_within(result, need, limits, where) for need in needs]


def _within(result: Compare, need: str, limits: Limits, where: str) -> Advice:
    kept, left_out = sift(result, limits, need)
    if not any(recipe.status == "done" for recipe in kept):
        return _nobody(need, left_out, _measure_others(limits, where))
    among = result.model_copy(update={"recipes": kept})
    (advice,) = advise_by_need(among, [need])
    return advice.model_copy(
        update={
            "reasons": _reasons(among, advice, limits),
            "doubts": _doubts(among, advice, limits),
            "left_out": left_out,
            "further": _further(among, advice, limits, where),
        }
    )


def sift(result: Compare, limits: Limits, need: str = "quality") -> tuple[list[RecipeResult], list[Note]]:
    """The recipes that keep to the limits, and for each of the others why it does not.

    Of recipes whose trainings all went wrong stability speaks too, and nothing else does.
    """
    kept, left_out = [], []
    for recipe in result.recipes:
        judged = recipe.status == "done" or (need == "stability" and recipe.status != "skipped")
        against = _against(recipe, limits) if judged else [note("advise.unfinished")]
        if against:
            left_out.append(_joined(recipe.name, against))
        else:
            kept.append(recipe)
    return kept, left_out


def note(key: str, **fields: Any) -> Note:
    """A message in both languages; fields that are notes are said in the same language."""
    en, zh = (
        say(key, lang, **{k: getattr(v, lang) if isinstance(v, Note) else v for k, v in fields.items()})
        for lang in LANGUAGES
    )
    return Note(en=en, zh=zh)


def _against(recipe: RecipeResult, limits: Limits) -> list[Note]:
    """Every limit that a recipe breaks."""
    found = []
    if limits.latency_s is not None and (taken := _latency(recipe)) is not None and taken > limits.latency_s:
        found.append(note("advise.too_slow", taken=_time(taken), limit=_time(limits.latency_s)))
    memory = middle(recipe, "peak_bytes")
    if limits.memory_bytes is not None and memory is not None and memory > limits.memory_bytes:
        found.append(note("advise.too_big", taken=_size(memory), limit=_size(limits.memory_bytes)))
    found += [note("advise.unable", ability=ability(name)) for name in limits.abilities if not _able(recipe, name)]
    return found


def _able(recipe: RecipeResult, name: str) -> bool:
    if recipe.status != "done":  # there is no model to ask
        return name in KNOWN.get(recipe.family, ())
    has = any(capability in recipe.capabilities for capability in ABILITIES[name])
    return has and (name != "exact-likelihood" or recipe.likelihood == "exact")


def ability(name: str) -> Note:
    """What an ability is called."""
    return note(f"ability.{name.replace('-', '_')}")


def _latency(recipe: RecipeResult) -> float | None:
    """Seconds of one sample; where only batches were timed, the least that it can be."""
    alone = middle(recipe, "latency_s")
    many = middle(recipe, "seconds_per_1000")
    return alone if alone is not None else None if many is None else many / 1000


def _reasons(result: Compare, advice: Advice, limits: Limits) -> list[Note]:
    """What speaks for the recommended recipe: the limits that it keeps to, and where else it is first."""
    recipe = next((r for r in result.recipes if r.name == advice.recipe), None)
    if recipe is None:
        return []
    found = []
    taken, memory = _latency(recipe), middle(recipe, "peak_bytes")
    if limits.latency_s is not None and taken is not None:
        found.append(note("advise.quick", taken=_time(taken), limit=_time(limits.latency_s)))
    if limits.memory_bytes is not None and memory is not None:
        found.append(note("advise.small", taken=_size(memory), limit=_size(limits.memory_bytes)))
    if limits.abilities:
        names = [ability(name) for name in limits.abilities]
        listed = Note(en=", ".join(n.en for n in names), zh="、".join(n.zh for n in names))
        found.append(note("advise.able", names=listed))
    others = [need for need in ("quality", "diversity", "speed", "likelihood", "memory") if need != advice.need]
    first = [need for need in others if _first(result, need, recipe)]
    if first and len(result.recipes) > 1:
        listed = Note(en=", ".join(NAMES[n][0] for n in first), zh="、".join(NAMES[n][1] for n in first))
        found.append(note("advise.also_first", names=listed))
    return found


def _first(result: Compare, need: str, recipe: RecipeResult) -> bool:
    order = ranked(result.recipes, measure(result, need))
    return len(order) > 1 and order[0].name == recipe.name


def _doubts(result: Compare, advice: Advice, limits: Limits) -> list[Note]:
    """What speaks against the recommendation."""
    recipe = next((r for r in result.recipes if r.name == advice.recipe), None)
    if recipe is None:
        return []
    done = [seed for seed in recipe.seeds if seed.status == "done"]
    found = []
    if len(done) < PAIRS_FOR_A_TEST:
        found.append(note("advise.one_seed" if len(done) == 1 else "advise.few_seeds", n=len(done)))
    bad, runs = counted(recipe)
    if bad:
        found.append(note("advise.trouble", bad=bad, runs=runs))
    copied = sum(seed.metrics["copies"].protocol.startswith("alarm") for seed in done if "copies" in seed.metrics)
    if copied:
        found.append(note("advise.copies", n=copied, runs=len(done)))
    by_speed = ranked(result.recipes, "seconds_per_1000")
    if advice.need != "speed" and len(by_speed) > 1 and by_speed[-1].name == recipe.name:
        (en, zh), (en_fast, zh_fast) = (show(SPEED, middle(r, SPEED)) for r in (recipe, by_speed[0]))
        taken, other_taken = Note(en=en, zh=zh), Note(en=en_fast, zh=zh_fast)
        found.append(note("advise.slowest", taken=taken, other=by_speed[0].name, other_taken=other_taken))
    if limits.latency_s is not None and middle(recipe, "latency_s") is None:
        found.append(note("advise.not_alone"))
    train = _other_size(result, limits)
    if train is not None:
        found.append(note("advise.other_size", train=f"{train:,}", size=f"{limits.data_size:,}"))
    return found


def _other_size(result: Compare, limits: Limits) -> int | None:
    """The number of training examples behind the measurements, where the user's is far from it."""
    train = int(result.data.get("splits", {}).get("train", 0))
    if limits.data_size is None or not train or 1 / OTHER_SIZE <= limits.data_size / train <= OTHER_SIZE:
        return None
    return train


def _further(result: Compare, advice: Advice, limits: Limits, where: str) -> list[Note]:
    """What to measure next, as commands, where the evidence is too weak."""
    found = []
    if advice.verdict in ("too close to call", "mixed", "likely") and len(result.recipes) > 1:
        metric = measure(result, advice.need) if advice.need != "stability" else "kid"
        ahead = leader(result, metric)
        order = ranked(result.recipes, metric)[:2] or list(result.recipes[:2])
        if ahead is not None and ahead.rival is not None:
            order = [ahead.recipe, ahead.rival]
        have = min(sum(seed.status == "done" for seed in r.seeds) for r in order)
        wanted = pairs_needed(len(result.recipes) - 1)
        data = _data(result)
        names = ",".join(r.name for r in (result.recipes if advice.need == "stability" else order))
        if have < wanted:
            command = f"quintet compare {data} --recipes {names} --seeds {wanted} --out {where}"
            found.append(note("advise.more_seeds", command=command, have=have, wanted=wanted))
        else:
            command = f"quintet compare {data} --recipes {names} --budget {_double(result)} --seeds {have}"
            found.append(note("advise.more_budget", have=have, command=f"{command} --out {where}-longer"))
    if _other_size(result, limits) is not None:
        found.append(note("advise.own_data", size=f"{limits.data_size:,}"))
    return found


def _double(result: Compare) -> str:
    """Twice the budget, as a user writes it."""
    budget = Budget.parse(result.budget["cell"])
    return str(Budget(budget.unit, 2 * budget.amount))


def _data(result: Compare) -> str:
    name = str(result.data["name"])
    return name if name == "digits" or name.startswith("toy:") else "DATA"


def _nobody(need: str, left_out: list[Note], further: list[Note]) -> Advice:
    en, zh = NAMES[need]
    text = note("advise.nobody", need=Note(en=en, zh=zh))
    return Advice(
        need=need, recipe=None, en=text.en, zh=text.zh, verdict="no evidence", left_out=left_out, further=further
    )


def _measure_others(limits: Limits, where: str) -> list[Note]:
    """Families that could keep to the limits, as far as is known."""
    able = [family for family in KNOWN if not _known_against(family, limits)]
    if not able:
        return [note("advise.loosen")]
    families = [_family(family) for family in able]
    listed = Note(en=", ".join(f.en for f in families), zh="、".join(f.zh for f in families))
    return [note("advise.try_families", names=listed, where=where)]


def _by_literature(need: str, limits: Limits) -> Advice:
    """The family that the literature favours among those that can keep to the limits."""
    against = {family: _known_against(family, limits) for family in KNOWN}
    left_out = [_joined(_family(family), why) for family, why in against.items() if why]
    order = [family for family in ORDERS[need] if not against[family]]
    further = [note("advise.compare")]
    if not order:
        return _nobody(need, left_out, [note("advise.loosen"), *further])
    en_need, zh_need = NAMES[need]
    favourite, en, zh = LITERATURE[need]
    if order[0] == favourite:
        text = note("advise.by_literature", need=Note(en=en_need, zh=zh_need), what=Note(en=en, zh=zh))
    else:
        text = note("advise.remaining", need=Note(en=en_need, zh=zh_need), family=_family(order[0]))
    doubts = []
    if limits.data_size is not None and limits.data_size < SMALL_DATA:
        doubts.append(note("advise.small_data", size=f"{limits.data_size:,}"))
    if limits.latency_s is not None or limits.memory_bytes is not None:
        doubts.append(note("advise.unmeasured"))
    return Advice(
        need=need, recipe=None, en=text.en, zh=text.zh, verdict="no evidence", doubts=doubts, left_out=left_out,
        further=further, evidence=[{"family": order[0], "source": "literature"}],
    )  # fmt: skip


def _known_against(family: str, limits: Limits) -> list[Note]:
    found = [note("advise.unable", ability=ability(a)) for a in limits.abilities if a not in KNOWN[family]]
    if limits.latency_s is not None and limits.latency_s < QUICK_S and family in MANY_STEPS:
        found.append(note("advise.many_steps", limit=_time(limits.latency_s)))
    return found


def _family(name: str) -> Note:
    return note(f"ability.family_{name}")


def _joined(name: str | Note, why: Sequence[Note]) -> Note:
    """ "name: why; why" in both languages."""
    first = Note(en=name, zh=name) if isinstance(name, str) else name
    return Note(en=f"{first.en}: {'; '.join(w.en for w in why)}", zh=f"{first.zh}：{'；'.join(w.zh for w in why)}")


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def _size(count: float) -> str:
    return f"{count / 1e6:.0f} MB" if count < 1e9 else f"{count / 1e9:.3g} GB"
