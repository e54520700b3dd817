"""Which recipe for which need: rankings and sentences, each with the numbers that support it and how sure it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quintet.compare.busy import with_remark
from quintet.compare.steadiness import behind, troubled
from quintet.core.results import SPACES, Advice, Compare, RecipeResult
from quintet.core.verdicts import Leader, Word, leader, middle, ranked, scores, used

NEEDS = ("quality", "diversity", "speed", "likelihood", "stability", "memory")
METRIC = {
    "quality": "kid", "diversity": "coverage", "speed": "seconds_per_1000", "likelihood": "bits_per_dim",
    "memory": "peak_bytes",
}  # fmt: skip
UNITS = {
    "kid": ("KID {v:.4f}", "KID 为 {v:.4f}"),
    "coverage": ("coverage {v:.2f}", "覆盖率为 {v:.2f}"),
    "recall": ("recall {v:.2f}", "召回率为 {v:.2f}"),
    "seconds_per_1000": ("{v:.3g} s per 1,000 samples", "每千个样本 {v:.3g} 秒"),
    "bits_per_dim": ("{v:.3f} bits/dim", "{v:.3f} 比特/维"),
    "peak_bytes": ("{v:.0f} MB", "{v:.0f} MB"),
}
NAMES = {
    "quality": ("quality", "质量"), "diversity": ("diversity", "多样性"), "speed": ("fast sampling", "采样速度"),
    "likelihood": ("likelihood", "似然"), "stability": ("stability", "训练稳定性"), "memory": ("little memory", "内存占用"),
}  # fmt: skip
LITERATURE = {
    "quality": ("diffusion", "diffusion models (flow matching), whose samples are of the highest quality in most studies",
                "扩散模型（流匹配）：多数研究中样本质量最高"),
    "diversity": ("diffusion", "diffusion or autoregressive models, which are trained to cover all of the data",
                  "扩散模型或自回归模型：训练目标要求覆盖全部数据"),
    "speed": ("gan", "a GAN, a VAE or a coupling flow, which need one pass of the network for a sample",
              "生成对抗网络、变分自编码器或耦合流：一次前向计算即可得到样本"),
    "likelihood": ("autoregressive", "autoregressive models or flows, whose likelihood is exact",
                   "自回归模型或标准化流：似然是精确的"),
    "stability": ("diffusion", "anything but the classic GAN losses; diffusion and VAEs are the safest",
                  "除经典的生成对抗损失外都可以；扩散模型和变分自编码器最稳妥"),
    "memory": ("vae", "a VAE or a GAN of small size", "小规模的变分自编码器或生成对抗网络"),
}  # fmt: skip


def advise(result: Compare) -> tuple[dict[str, list[str]], list[Advice]]:
    """Need -> recipes best first, and a sentence for each need."""
    done = [recipe for recipe in result.recipes if recipe.status == "done"]
    ranking = {need: [r.name for r in ranked(done, measure(result, need))] for need in NEEDS if need in METRIC}
    ranking["stability"] = [r.name for r in sorted(_ended(result), key=_unsteady)]
    return ranking, advise_by_need(result, NEEDS) if done else []


def advise_by_need(result: Compare | None, needs: Sequence[str]) -> list[Advice]:
    """Sentences for some needs; from the literature without a comparison."""
    done = [recipe for recipe in result.recipes if recipe.status == "done"] if result is not None else []
    if result is None or not done:
        return [_from_literature(need) for need in needs]
    found = [_stability(_ended(result)) if need == "stability" else _measured(result, done, need) for need in needs]
    return [with_remark(advice, result) for advice in found]


def measure(result: Compare, need: str) -> str:
    """The metric that answers a need: the first of those meant for it that order the known corruptions of these data."""
    metric = METRIC[need]
    choices = SPACES if metric == "kid" else (metric, "recall") if metric == "coverage" else (metric,)
    have = {name for recipe in result.recipes for seed in recipe.seeds for name in seed.metrics}
    return next((name for name in choices if name in have and used(result, name)), metric)


def show(metric: str, value: float | None) -> tuple[str, str]:
    """A value with its unit, in English and Chinese."""
    if value is None:
        return "not available", "无"
    value = value / 1e6 if metric == "peak_bytes" else value
    en, zh = UNITS["kid" if metric in SPACES else metric]
    return en.format(v=value), zh.format(v=value)


def _measured(result: Compare, done: Sequence[RecipeResult], need: str) -> Advice:
    metric = measure(result, need)
    found = leader(result, metric, done)
    en_need, zh_need = NAMES[need]
    if found is None and ranked(done, metric):
        return Advice(
            need=need, recipe=None, verdict="no evidence",
            en=f"For {en_need}: what measures it does not put known corruptions of these data in order, so it is not used.",
            zh=f"就{zh_need}而言：相应的指标在这份数据上不能把已知的失真按程度排序，因此不予采用。",
        )  # fmt: skip
    if found is None:
        return Advice(
            need=need, recipe=None, verdict="no evidence",
            en=f"For {en_need}: no recipe here has this measurement.",
            zh=f"就{zh_need}而言：这里没有任何方案具备这项测量。",
        )  # fmt: skip
    en, zh = _ahead(found, metric, need)
    if found.alone:
        names = [r.name for r in found.alone]
        en += f" Too few seeds to judge {', '.join(names)}."
        zh += f"{'、'.join(names)} 的种子太少，不予判定。"
    evidence = [
        {"recipe": r.name, "metric": metric, "value": middle(r, metric), "seeds": len(scores(r, metric))}
        for r in ranked(done, metric)
    ]
    return Advice(
        need=need, recipe=found.recipe.name, verdict=found.word, en=f"For {en_need}: {en}", zh=f"就{zh_need}而言：{zh}",
        evidence=evidence,
    )  # fmt: skip


def _ahead(found: Leader, metric: str, need: str) -> tuple[str, str]:
    """Which recipe is first and, by name, the rival that is least surely beaten, which the word is about."""
    first, rival = found.recipe, found.rival
    en_first, zh_first = show(metric, middle(first, metric))
    if rival is None:
        if found.alone:
            return f"only {first.name} ({en_first}) has several seeds.", f"只有 {first.name}（{zh_first}）有多个种子。"
        return f"{first.name} is the only one measured here ({en_first}).", f"这里只测量了 {first.name}（{zh_first}）。"
    en_rival, zh_rival = show(metric, middle(rival, metric))
    ours_en, theirs_en = f"{first.name} ({en_first})", f"{rival.name} ({en_rival})"
    ours_zh, theirs_zh = f"{first.name}（{zh_first}）", f"{rival.name}（{zh_rival}）"
    bound_en, bound_zh = _kinds(first, rival) if need == "likelihood" else ("", "")
    if found.word == "too close to call":
        return (
            f"{ours_en} and {theirs_en} are too close to call{bound_en}.",
            f"{ours_zh}与 {theirs_zh}难分高下{bound_zh}。",
        )
    if found.word == "mixed":
        en = f"{ours_en} before {theirs_en}, but not in every space; mixed."
        return en, f"{ours_zh}优于 {theirs_zh}，但并非在每个特征空间中都如此；结论不一。"
    sure_en, sure_zh = {"likely": ("likely", "很可能"), "established": ("established", "已确证")}[found.word]
    return (
        f"{ours_en}, before {theirs_en}; {sure_en}{bound_en}.",
        f"选 {ours_zh}，优于 {theirs_zh}；{sure_zh}{bound_zh}。",
    )


def _kinds(*recipes: RecipeResult) -> tuple[str, str]:
    """A remark where a likelihood is not exact."""
    words = {"bound": ("a bound", "下界给出的上限"), "estimate": ("an estimate", "估计值")}
    notes = [(r.name, *words[r.likelihood]) for r in recipes if r.likelihood in words]
    en = "; ".join(f"{name}'s is {word}" for name, word, _ in notes)
    zh = "，".join(f"{name} 的数值是{word}" for name, _, word in notes)
    return (f" ({en})", f"（{zh}）") if notes else ("", "")


def counted(recipe: RecipeResult) -> tuple[int, int]:
    """Trainings that had trouble, and all that ended."""
    seeds = [seed for seed in recipe.seeds if seed.status != "skipped"]
    return sum(map(troubled, seeds)), len(seeds)


def _trouble(recipe: RecipeResult) -> tuple[float, float]:
    bad, runs = counted(recipe)
    return bad / max(1, runs), float(recipe.stability.get("kid_spread") or 0.0)


def _unsteady(recipe: RecipeResult) -> tuple[float, float, float]:
    """What stability is ranked by: the score, then troubled trainings, then the spread between seeds."""
    value = recipe.steadiness.value if recipe.steadiness is not None else None
    return -(value or 0.0), *_trouble(recipe)


def _ended(result: Compare) -> list[RecipeResult]:
    """Recipes of which trainings have ended, well or not."""
    return [recipe for recipe in result.recipes if recipe.status != "skipped"]


def _stability(ended: Sequence[RecipeResult]) -> Advice:
    """Who trains steadily: the verdict says how sure it is of the recipes that the sentence calls less steady."""
    order = sorted(ended, key=_unsteady)
    first = order[0]
    runs = sum(counted(r)[1] for r in ended)
    scored = {r.name: r.steadiness.value for r in order if r.steadiness is not None and r.steadiness.value is not None}
    evidence: list[dict[str, Any]] = [{"recipe": r.name, "score": scored.get(r.name), **r.stability} for r in order]
    words = behind(first.name, order)
    less = [r for r in order if r.name in words]
    word: Word = "too close to call"
    if less:
        word = "likely" if "likely" in words.values() else "established"
        alike = [r.name for r in order if r is not first and r.name not in words]
        sure = {"likely": ("likely", "很可能"), "established": ("established", "已确证")}

        def told(recipe: RecipeResult, lang: int) -> str:
            score = f"{scored[recipe.name]:.2f}" if recipe.name in scored else "–"
            form = ("{} ({}, {})", "{}（{}，{}）")[lang]
            return form.format(recipe.name, score, sure[words[recipe.name]][lang])

        own = f"{scored[first.name]:.2f}" if first.name in scored else "–"
        en = f"For stability: {first.name} (score {own} of 1); less steady: {', '.join(told(r, 0) for r in less)}."
        zh = f"就训练稳定性而言：{first.name}（得分 {own}，满分 1）；不如它稳定的有：{'、'.join(told(r, 1) for r in less)}。"
        if alike:
            en += f" These seeds do not tell {', '.join(alike)} from it."
            zh += f"现有的种子不足以区分它与 {'、'.join(alike)}。"
    elif not any(_trouble(r)[0] > 0 for r in order):
        en = "For stability: no training failed, diverged, was given up or collapsed; "
        zh = "就训练稳定性而言：没有一次训练失败、发散、提前放弃或坍塌；"
        en += f"{runs} are too few to tell the families apart." if runs > 1 else "one does not tell families apart."
        zh += f"总共 {runs} 次，不足以区分各家族。"
        if len(scored) > 1:
            best, *_, last = scored
            en += f" Stability scores reach from {scored[last]:.2f} ({last}) to {scored[best]:.2f} ({best}) of 1."
            zh += f"稳定性得分（满分 1）从 {scored[last]:.2f}（{last}）到 {scored[best]:.2f}（{best}）。"
    else:
        en, zh = "For stability:", "就训练稳定性而言："
    trouble_en, trouble_zh = _worst(order)
    return Advice(
        need="stability", recipe=first.name, verdict=word, en=en + trouble_en, zh=zh + trouble_zh, evidence=evidence
    )  # fmt: skip


def _worst(order: Sequence[RecipeResult]) -> tuple[str, str]:
    """Who had trouble most often, and who had none; nothing where nobody had."""
    troubled = [r for r in order if _trouble(r)[0] > 0]
    if not troubled:
        return "", ""
    worst = max(troubled, key=_trouble)
    bad, runs = counted(worst)
    calm = next((r for r in order if _trouble(r)[0] == 0), None)
    en = f" {worst.name} had trouble in {bad} of {runs} trainings"
    zh = f"{worst.name} 在 {runs} 次训练中有 {bad} 次出现问题，"
    en += f"; {calm.name} in none." if calm is not None else ", and no recipe had none."
    zh += f"{calm.name} 没有。" if calm is not None else "没有哪个方案完全无恙。"
    return en, zh


def _from_literature(need: str) -> Advice:
    family, en, zh = LITERATURE[need]
    en_need, zh_need = NAMES[need]
    return Advice(
        need=need, recipe=None, verdict="no evidence", evidence=[{"family": family, "source": "literature"}],
        en=f"For {en_need}, by the literature: {en}.", zh=f"就{zh_need}而言，依据文献：{zh}。",
    )  # fmt: skip
