"""The articles' sentences held against a comparison, each with the number that supports or contradicts it.

Articles: 000 diffusion and other generative models; 001 diffusion, GAN and VAE compared; 002 what a diffusion model is;
003 from VAE to diffusion; 004 diffusion and autoregressive models. A claim about two families is supported or
contradicted only where their difference is at least "likely" by the verdict rules; otherwise it is mixed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from quintet.core.results import Claim, Compare, RecipeResult
from quintet.core.verdicts import compare, middle, ranked

Word = Literal["supported", "contradicted", "mixed", "not tested here"]
FEW = 1e-9


@dataclass(frozen=True)
class Finding:
    """A verdict on a claim with its evidence in both languages."""

    word: Word
    en: str
    zh: str


Check = Callable[[Compare, dict[str, RecipeResult]], Finding | None]
NOT_TESTED = Finding(
    "not tested here", "The families concerned are not both in this comparison.", "本次比较未同时包含相关的家族。"
)


def claims(result: Compare) -> list[Claim]:
    """Every claim with its verdict on this comparison."""
    families: dict[str, RecipeResult] = {}
    for recipe in result.recipes:  # the best of a family in quality speaks for it
        if recipe.status == "done" and recipe.family not in families:
            same = [r for r in result.recipes if r.family == recipe.family and r.status == "done"]
            families[recipe.family] = (ranked(same, "kid") or same)[0]
    found = []
    for key, articles, en, zh, check in CLAIMS:
        finding = check(result, families) or NOT_TESTED
        found.append(
            Claim(
                key=key, articles=list(articles), en=en, zh=zh, verdict=finding.word,
                evidence_en=finding.en, evidence_zh=finding.zh,
            )
        )  # fmt: skip
    return found


def _pair(better: str, worse: str, metric: str, unit: tuple[str, str], digits: int = 3) -> Check:
    """The claim that one family is better than another in one metric."""

    def check(result: Compare, families: dict[str, RecipeResult]) -> Finding | None:
        if better not in families or worse not in families:
            return None
        a, b = families[better], families[worse]
        x, y = middle(a, metric), middle(b, metric)
        if x is None or y is None:
            return None
        floor = result.floor.get(metric)
        word: Word = "mixed"
        if compare(a, b, metric, floor).word != "too close to call":
            word = "supported"
        elif compare(b, a, metric, floor).word != "too close to call":
            word = "contradicted"
        en = f"{a.name}: {x:.{digits}g} {unit[0]}; {b.name}: {y:.{digits}g} {unit[0]}."
        zh = f"{a.name}：{x:.{digits}g} {unit[1]}；{b.name}：{y:.{digits}g} {unit[1]}。"
        return Finding(word, en, zh)

    return check


def _first(family: str, metric: str, unit: tuple[str, str]) -> Check:
    """The claim that a family is the best of all in one metric."""

    def check(result: Compare, families: dict[str, RecipeResult]) -> Finding | None:
        order = ranked(list(families.values()), metric)
        if family not in families or families[family] not in order or len(order) < 2:
            return None
        ours, floor = families[family], result.floor.get(metric)
        others = [r for r in order if r.name != ours.name]
        words = [compare(ours, other, metric, floor).word for other in others]
        beaten = any(compare(other, ours, metric, floor).word != "too close to call" for other in others)
        word: Word = "mixed"
        if all(w != "too close to call" for w in words):
            word = "supported"
        elif beaten:
            word = "contradicted"
        listed = [(r.name, middle(r, metric)) for r in order]
        en = f"Median {unit[0]}, best first: " + ", ".join(f"{n} {v:.3g}" for n, v in listed if v is not None) + "."
        zh = f"{unit[1]}的中位数，由好到差：" + "，".join(f"{n} {v:.3g}" for n, v in listed if v is not None) + "。"
        return Finding(word, en, zh)

    return check


def _stable(family: str, *, expected: bool) -> Check:
    """The claim that a family trains stably, or that it does not."""

    def check(result: Compare, families: dict[str, RecipeResult]) -> Finding | None:
        rows = [r for r in result.recipes if r.family == family and r.seeds]
        if not rows:
            return None
        runs = sum(int(r.stability.get("seeds", 0)) for r in rows)
        bad = sum(int(r.stability.get(k, 0)) for r in rows for k in ("failed", "diverged", "collapsed"))
        if not runs:
            return None
        en = f"{bad} of {runs} trainings failed, diverged or collapsed."
        zh = f"{runs} 次训练中有 {bad} 次失败、发散或模式坍塌。"
        if bad == 0 and runs < 6:
            en += f" So few trainings without trouble leave a failure rate of up to {1 - 0.05 ** (1 / runs):.0%} open."
            zh += f"仅 {runs} 次无故障训练，还不能排除高达 {1 - 0.05 ** (1 / runs):.0%} 的失败率。"
        if expected:
            return Finding("supported" if bad == 0 else "contradicted", en, zh)
        return Finding("supported" if bad else "contradicted" if runs >= 6 else "mixed", en, zh)

    return check


def _blurry(result: Compare, families: dict[str, RecipeResult]) -> Finding | None:
    return _sharpness(result, families, "vae", blurry=True)


def _sharp(result: Compare, families: dict[str, RecipeResult]) -> Finding | None:
    return _sharpness(result, families, "gan", blurry=False)


def _sharpness(result: Compare, families: dict[str, RecipeResult], family: str, *, blurry: bool) -> Finding | None:
    """Blurry: the power in high frequencies is below 0.8 of real data's, with every seed's interval."""
    if family not in families:
        return None
    found = [e for s in families[family].seeds if (e := s.metrics.get("sharpness")) is not None]
    known = [
        (e.value, e.low, e.high) for e in found if e.value is not None and e.low is not None and e.high is not None
    ]
    if not known:
        return None
    soft = all(high < 0.8 for _, _, high in known)
    crisp = all(low > 0.8 for _, low, _ in known)
    values = ", ".join(f"{value:.2f}" for value, _, _ in known)
    en = f"{families[family].name}: high-frequency power relative to real data, by seed: {values} (1 = as sharp as real)."
    zh = f"{families[family].name}：相对真实数据的高频能量，各种子依次为 {values}（1 表示与真实数据同样清晰）。"
    if blurry:
        return Finding("supported" if soft else "contradicted" if crisp else "mixed", en, zh)
    return Finding("supported" if crisp else "contradicted" if soft else "mixed", en, zh)


def _exact(result: Compare, families: dict[str, RecipeResult]) -> Finding | None:
    if "flow" not in families:
        return None
    flow = families["flow"]
    value = middle(flow, "bits_per_dim")
    if flow.likelihood != "exact" or value is None:
        return Finding(
            "contradicted", f"{flow.name} gave no exact likelihood here.", f"{flow.name} 在此没有给出精确似然。"
        )
    protocol = next((s.metrics["bits_per_dim"].protocol for s in flow.seeds if "bits_per_dim" in s.metrics), "")
    return Finding(
        "supported",
        f"{flow.name}: {value:.3f} bits/dim on the test split ({protocol}).",
        f"{flow.name}：测试集上 {value:.3f} 比特/维（密度本身精确；协议：{protocol}）。",
    )


def _likelihood_estimation(result: Compare, families: dict[str, RecipeResult]) -> Finding | None:
    if "diffusion" not in families:
        return None
    ours = families["diffusion"]
    value = middle(ours, "bits_per_dim")
    others = ranked([r for f, r in families.items() if f != "diffusion"], "bits_per_dim")
    if value is None or not others:
        return None
    best_value = middle(others[0], "bits_per_dim")
    assert best_value is not None
    worse = value > best_value
    en = (
        f"The weighting used for sample quality is not maximum likelihood: {ours.name} has an estimated {value:.2f} "
        f"bits/dim, {others[0].name} {best_value:.2f}. Only the ELBO weighting would make the sentence true."
    )
    zh = (
        f"为样本质量选用的加权并不是最大似然：{ours.name} 的估计值为 {value:.2f} 比特/维，{others[0].name} 为 "
        f"{best_value:.2f}。只有采用 ELBO 加权时这句话才成立。"
    )
    return Finding("contradicted" if worse else "mixed", en, zh)


def _steps(family: str, least: int) -> Check:
    """The claim that a family samples in many sequential steps (or few, for least <= 1)."""

    def check(result: Compare, families: dict[str, RecipeResult]) -> Finding | None:
        if family not in families:
            return None
        recipe = families[family]
        steps = middle(recipe, "sequential_steps")
        if steps is None:
            return None
        en = f"{recipe.name}: {steps:.0f} network evaluations that wait for each other."
        zh = f"{recipe.name}：{steps:.0f} 次必须依次进行的网络计算。"
        holds = steps <= 1 if least <= 1 else steps >= least
        return Finding("supported" if holds else "contradicted", en, zh)

    return check


def _parallel_reverse(result: Compare, families: dict[str, RecipeResult]) -> Finding | None:
    if "diffusion" not in families:
        return None
    recipe = families["diffusion"]
    steps = middle(recipe, "sequential_steps")
    if steps is None:
        return None
    return Finding(
        "contradicted",
        f"Each reverse step starts from the result of the one before: {recipe.name} needed {steps:.0f} evaluations in "
        "sequence. Only the training times are independent of each other.",
        f"每个反向步都以前一步的结果为起点：{recipe.name} 依次进行了 {steps:.0f} 次计算。相互独立的只是训练时的各个时间步。",
    )


def _wrong_index(result: Compare, families: dict[str, RecipeResult]) -> Finding | None:
    return Finding(
        "contradicted",
        "By mathematics, not by this data: x_T carries no information about x_0, so the best f(x_T, t) is the data mean. "
        "The input must be x_t. A test of this project shows it.",
        "这一条由数学而非本数据判定：x_T 不含 x_0 的信息，最优的 f(x_T, t) 只能是数据均值；输入应为 x_t。本项目的测试对此做了验证。",
    )


def _interpretable(result: Compare, families: dict[str, RecipeResult]) -> Finding | None:
    have = [r.name for r in families.values() if "latent" in r.capabilities]
    lack = [r.name for r in families.values() if "latent" not in r.capabilities]
    if not have or "flow" not in families:
        return None
    en = f"A latent code for any given example: {', '.join(have)}; none: {', '.join(lack) or '-'}. A flow's is exact, a VAE's approximate."
    zh = f"能为任意样本给出潜在编码的有：{'、'.join(have)}；不能的有：{'、'.join(lack) or '无'}。标准化流的编码是精确的，变分自编码器的是近似的。"
    return Finding("supported" if families["flow"].name in have else "mixed", en, zh)


def _cost(result: Compare, families: dict[str, RecipeResult]) -> Finding | None:
    """Training cost at equal time: FLOPs for a thousand samples."""
    if "diffusion" not in families or "gan" not in families:
        return None
    a, b = (middle(families[f], "seconds_per_1000") for f in ("diffusion", "gan"))
    if a is None or b is None or b < FEW:
        return None
    en = f"At equal training time, 1,000 samples cost {a:.3g} s ({families['diffusion'].name}) and {b:.3g} s ({families['gan'].name}): {a / b:.0f} times."
    zh = f"训练时间相同时，生成 1,000 个样本分别需要 {a:.3g} 秒（{families['diffusion'].name}）和 {b:.3g} 秒（{families['gan'].name}），相差 {a / b:.0f} 倍。"
    return Finding("supported" if a > b else "contradicted", en, zh)


SPEED = ("s per 1,000 samples", "秒/千个样本")
KID = ("KID", "KID")
COVERAGE = ("coverage", "覆盖率")

CLAIMS: Sequence[tuple[str, tuple[str, ...], str, str, Check]] = (
    ("gan-fast", ("000", "002"), "GANs generate fast, in a single step.", "GAN 生成速度快，一步成型。",
     _pair("gan", "diffusion", "seconds_per_1000", SPEED)),
    ("gan-sharp", ("001", "002"), "GAN samples are sharp and realistic.", "GAN 生成的图像锐利、逼真。", _sharp),
    ("gan-unstable", ("000", "001", "002"), "GAN training is unstable and prone to mode collapse.",
     "GAN 训练不稳定，容易模式坍塌。", _stable("gan", expected=False)),
    ("gan-diversity", ("002",), "GAN samples have little diversity.", "GAN 生成的多样性差。",
     _pair("diffusion", "gan", "coverage", COVERAGE)),
    ("vae-stable", ("002",), "VAEs train very stably.", "VAE 训练过程非常稳定。", _stable("vae", expected=True)),
    ("vae-blurry", ("000", "002"), "VAE samples are blurry.", "VAE 生成的图像往往比较模糊。", _blurry),
    ("vae-diverse", ("001", "002"), "VAEs are more diverse than GANs, at lower quality.", "VAE 比 GAN 更多样，但质量较低。",
     _pair("vae", "gan", "coverage", COVERAGE)),
    ("flow-exact", ("000",), "Flow models allow exact computation of probability.", "Flow 模型支持精确概率计算。", _exact),
    ("flow-fast", ("000",), "For fast generation choose a GAN or a flow.", "需要快速生成时，选择 GAN 或 Flow。",
     _pair("flow", "diffusion", "seconds_per_1000", SPEED)),
    ("interpretability", ("000",), "Flows are invertible and interpretable; the others are harder to explain.",
     "Flow 模型可逆，其余较难解释。", _interpretable),
    ("diffusion-quality", ("000", "001", "002", "004"), "Diffusion models give the highest quality.",
     "扩散模型的生成质量最高。", _first("diffusion", "kid", KID)),
    ("diffusion-coverage", ("002", "004"), "Diffusion models cover all modes and do not collapse.",
     "扩散模型覆盖率高，不会模式坍塌。", _first("diffusion", "coverage", COVERAGE)),
    ("diffusion-stable", ("000", "001", "002", "004"), "Diffusion training is stable.", "扩散模型训练过程稳定。",
     _stable("diffusion", expected=True)),
    ("diffusion-slow", ("000", "002", "003", "004"), "Diffusion models generate slowly, in many steps.",
     "扩散模型生成慢，需要多步迭代。", _steps("diffusion", 10)),
    ("diffusion-cost", ("000", "004"), "Diffusion models need more computation than GANs.", "扩散模型的计算成本高于 GAN。", _cost),
    ("diffusion-likelihood", ("002",), "Diffusion models are likelihood estimation through and through.",
     "扩散模型是实打实的似然估计。", _likelihood_estimation),
    ("diffusion-parallel", ("004",), "In inference the reverse steps of diffusion are computed independently, in parallel.",
     "扩散模型推理可并行，反向过程各时间步独立计算。", _parallel_reverse),
    ("diffusion-loss", ("003",), "The diffusion loss compares x_0 with f(x_T, t).", "扩散模型的损失为 ||x_0 − f(x_T, t)||²。",
     _wrong_index),
    ("ar-faster", ("004",), "Autoregressive inference is more efficient than diffusion.", "自回归模型的推理效率高于扩散模型。",
     _pair("autoregressive", "diffusion", "seconds_per_1000", SPEED)),
    ("ar-sequential", ("004",), "Autoregressive generation is strictly sequential, one element at a time.",
     "自回归生成必须逐个元素顺序进行。", _steps("autoregressive", 2)),
    ("ar-coverage", ("004",), "Autoregressive models cover fewer modes than diffusion models.", "自回归模型的模式覆盖不如扩散模型。",
     _pair("diffusion", "autoregressive", "coverage", COVERAGE)),
    ("ar-likelihood", ("004",), "Autoregressive models give an explicit likelihood by the chain rule.",
     "自回归模型用链式法则显式建模概率。", _first("autoregressive", "bits_per_dim", ("bits/dim", "比特/维"))),
)  # fmt: skip
