"""What the training loop costs over a bare step, on the digits flow-matching step; and what calibration costs.

    .venv/bin/python benchmarks/loop_overhead.py [--rounds 7] [--steps 150] [--threads 1]

The bare step calls the same loss on the same network and does the rest by hand: gather a batch from a tensor in memory,
dequantise with torch's generator, backward, clip by norm, fused AdamW with a linear decay, the same two averages. The
loop adds counter-based order and noise for the batch, turns and players, schedules from the plan, layer noise, finite
checks and the run's bookkeeping (watcher, clock, log lines). Rounds alternate; medians and the median ratio are printed
as one JSON line for benchmarks/results. Calibration is timed as a budget of 60 s begins with it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from quintet.compare.cell import build
from quintet.core.batch import Batch
from quintet.core.budget import Budget
from quintet.core.ledger import Ledger
from quintet.core.model import Turn
from quintet.core.plan import Plan
from quintet.core.rng import Rng
from quintet.data.batches import Batches
from quintet.data.sources import open_dataset
from quintet.recipes.registry import find
from quintet.train.calibrate import calibrate, warm_up
from quintet.train.ema import gamma_of_width
from quintet.train.loop import averaged_parameters
from quintet.train.run import fit


class Silent:
    """A watcher that does nothing, as `compare`'s does between its messages."""

    def log(self, line: Any) -> None: ...
    def plan(self, plan: Plan) -> None: ...
    def step(self, step: int, plan: Plan, seconds: float, share: float) -> None: ...
    def preview(self, state: Any, seconds: float) -> None: ...
    def stop(self) -> bool:
        return False


def ours(steps: int) -> float:
    """Seconds per step of the real run."""
    dataset = open_dataset("digits")
    stage = find("flow-matching").stages(dataset.spec, Budget.parse("60s"))[0]
    model, codec = build(stage, dataset, 0)
    batches = Batches(dataset.train, codec, stage.train.batch, 0, augment=stage.train.augment)
    plan = Plan.start(steps, stage.train.decay, flops_per_step=1.0, threads=torch.get_num_threads())
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger()
        fitted = fit(
            model, batches, stage.train, Budget("steps", steps), seed=0, folder=Path(folder), ledger=ledger,
            watcher=Silent(), plan=plan, checkpoint_s=1e9,
        )  # fmt: skip
    return fitted.seconds / steps


def bare(steps: int) -> float:
    """Seconds per step of the same mathematics by hand."""
    dataset = open_dataset("digits")
    stage = find("flow-matching").stages(dataset.spec, Budget.parse("60s"))[0]
    model, _ = build(stage, dataset, 0)
    config = stage.train.optimizers["model"]
    x_all = dataset.train.tensor()
    y_all = torch.from_numpy(dataset.train.labels["label"])
    levels = float(dataset.spec.levels or 1)
    params = list(model.parameters())
    averaged: list[torch.Tensor] = list(averaged_parameters(model).values())
    averages = [[p.detach().clone() for p in averaged] for _ in stage.train.ema]
    gammas = [gamma_of_width(width) for width in stage.train.ema]
    optimizer = torch.optim.AdamW(
        params, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True
    )
    model.train()
    (player,) = model.players()
    begin = time.perf_counter()
    order = torch.randperm(len(x_all))
    for step in range(steps):
        index = order[torch.arange(step * stage.train.batch, (step + 1) * stage.train.batch) % len(order)]
        raw = x_all[index]
        x = (raw + torch.rand(raw.shape)) * (2 / levels) - 1
        batch = Batch(x, index, {"label": y_all[index]})
        loss = player.loss(Turn(step, step / steps, batch, Rng(0, "train", step))).total
        for group in optimizer.param_groups:
            group["lr"] = config.lr * (1 - step / steps)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, config.clip or 1e9)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for gamma, average in zip(gammas, averages, strict=True):
                torch._foreach_lerp_(average, averaged, 1 - (1 - 1 / (step + 1)) ** (gamma + 1))
    return (time.perf_counter() - begin) / steps


def calibration() -> float:
    """Seconds from the first counted step to the plan of a budget of 60 s."""
    dataset, budget = open_dataset("digits"), Budget.parse("60s")
    stage = find("flow-matching").stages(dataset.spec, budget)[0]
    model, codec = build(stage, dataset, 0)
    batches = Batches(dataset.train, codec, stage.train.batch, 0, augment=stage.train.augment)
    begin = time.perf_counter()
    calibrate(model, batches, stage.train, budget, seed=0)
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warm_up()
    ours(20), bare(20)
    times: dict[str, list[float]] = {"ours": [], "bare": []}
    for number in range(options.rounds):
        pair = [("ours", ours), ("bare", bare)]
        for name, work in pair if number % 2 else reversed(pair):
            times[name].append(work(options.steps))
    ratios = [a / b for a, b in zip(times["ours"], times["bare"], strict=True)]
    calibrations = []
    for _ in range(options.rounds):
        torch.set_num_threads(options.threads)
        calibrations.append(calibration())
    result = {
        "benchmark": "loop_overhead",
        "ours_ms": round(1e3 * statistics.median(times["ours"]), 3),
        "bare_ms": round(1e3 * statistics.median(times["bare"]), 3),
        "overhead_percent": round(100 * (statistics.median(ratios) - 1), 2),
        "ratios": [round(r, 4) for r in ratios],
        "calibration_s": round(statistics.median(calibrations), 2),
        "calibration_percent_of_60s": round(100 * statistics.median(calibrations) / 60, 2),
        **vars(options),
        "torch": torch.__version__,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
