"""Contenders of one workload, timed in turns: what every speed benchmark here is made of.

What it is: `race` builds the contenders that can run, calls them in rounds (A B C, then B C A, ...), so that a slow
moment of a shared machine hits all of them, and records the median of each and the median of the ratios *within*
rounds; absolute seconds of a shared machine are not facts, ratios of one run are. What it is not: a test.

A contender that cannot be built or run (a library that is not installed) is a line with its reason.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.machinery
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads cost up to four times on a shared machine
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch

OURS = "quintet"
ROUNDS, SAMPLE_S = 7, 0.25


@dataclass(frozen=True)
class Contender:
    """`call()` does `items` units of work.

    Attributes:
        call: one unit of timing.
        items: units of work in it.
        flops: of one call, where they are known.
        params: of its network.
        note: what a reader must know to compare it.
    """

    call: Callable[[], object]
    items: float
    flops: float | None = None
    params: int | None = None
    note: str = ""


Builders = Mapping[str, Callable[[], Contender]]


class Races:
    """The command line of a benchmark, and the file its lines go to."""

    def __init__(self, description: str) -> None:
        parser = argparse.ArgumentParser(description=description)
        parser.add_argument("--only", default="", help="comma-separated parts of workload names")
        parser.add_argument("--without", default="", help="comma-separated parts of names of contenders to leave out")
        parser.add_argument("--rounds", type=int, default=ROUNDS)
        parser.add_argument("--threads", type=int, default=2)
        parser.add_argument("--device", default="cpu")
        parser.add_argument(
            "--clock", choices=("wall", "cpu"), default="wall",
            help="cpu: seconds of the processor, for one thread on a machine that is not quiet",
        )  # fmt: skip
        parser.add_argument("--out", type=Path, default=None, help="append JSON lines to this file")
        self.options = parser.parse_args()
        if self.options.clock == "cpu" and (self.options.threads != 1 or self.options.device != "cpu"):
            parser.error("--clock cpu needs --threads 1 and --device cpu")
        self.now = time.process_time if self.options.clock == "cpu" else time.perf_counter
        torch.manual_seed(0)
        if self.options.device == "cpu":
            torch.set_num_threads(self.options.threads)

    def wants(self, workload: str) -> bool:
        parts = [part for part in self.options.only.split(",") if part]
        return not parts or any(part in workload for part in parts)

    def race(self, workload: str, unit: str, builders: Builders, *, reference: str, once: bool = False) -> None:
        """Time the contenders in turns.

        Args:
            workload: its name.
            unit: of the throughput ("img/s").
            builders: contender name -> builder; ours begin with "quintet".
            reference: the contender that ratios are taken against.
            once: one call a sample, for calls of seconds.
        """
        if not self.wants(workload):
            return
        built: dict[str, Contender] = {}
        left_out = [part for part in self.options.without.split(",") if part]
        for name, build in builders.items():
            if any(part in name for part in left_out):
                continue
            try:
                contender = build()
                contender.call()
                built[name] = contender
            except Exception as error:  # a contender's failure is a result, not an end
                self.emit(workload=workload, contender=name, unavailable=f"{type(error).__name__}: {error}"[:300])
        if not built:
            return
        loops = {name: 1 if once else self._loops(c.call) for name, c in built.items()}
        times: dict[str, list[float]] = {name: [] for name in built}
        names = list(built)
        gc.collect()
        for turn in range(self.options.rounds):
            shift = turn % len(names)
            for name in names[shift:] + names[:shift]:
                times[name].append(self._time(built[name].call, loops[name]))
        first = reference if reference in times else names[0]
        for name, contender in built.items():
            middle = statistics.median(times[name])
            self.emit(
                workload=workload,
                contender=name,
                unit=unit,
                value=contender.items / middle,
                seconds=middle,
                best_seconds=min(times[name]),
                rounds=len(times[name]),
                ratio=statistics.median(b / a for a, b in zip(times[name], times[first], strict=True)),
                ratio_of_best=min(times[first]) / min(times[name]),
                against=first,
                gflops=None if contender.flops is None else contender.flops / 1e9,
                params=contender.params,
                note=contender.note,
            )

    def emit(self, **line: Any) -> None:
        """Write one line, with what it was measured on."""
        line |= {
            "threads": torch.get_num_threads(),
            "clock": self.options.clock,
            "device": torch.cuda.get_device_name() if self.options.device == "cuda" else platform.processor() or "cpu",
            "versions": versions(),
        }
        text = json.dumps(line)
        print(text, flush=True)
        if self.options.out is not None:
            with self.options.out.open("a", encoding="utf-8") as stream:
                stream.write(text + "\n")

    def _time(self, call: Callable[[], object], loops: int) -> float:
        self._wait()
        start = self.now()
        for _ in range(loops):
            call()
        self._wait()
        return (self.now() - start) / loops

    def _loops(self, call: Callable[[], object]) -> int:
        call()
        return max(1, min(10_000, round(SAMPLE_S / max(self._time(call, 1), 1e-7))))

    def _wait(self) -> None:
        if self.options.device == "cuda":
            torch.cuda.synchronize()


class _Nothing(types.ModuleType):
    """A module whose every attribute is an empty class."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def stand_in(*names: str) -> None:
    """Empty modules in the place of packages that a library imports, but that nothing timed here ever touches."""
    for name in names:
        if name not in sys.modules:
            module = _Nothing(name)
            module.__spec__ = importlib.machinery.ModuleSpec(name, None)
            module.__path__ = []
            sys.modules[name] = module
            parent, _, child = name.rpartition(".")
            if parent:
                setattr(sys.modules[parent], child, module)


def versions() -> dict[str, str]:
    """Of Python, torch and the libraries that were imported."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for name in (
        "diffusers",
        "transformers",
        "zuko",
        "nflows",
        "normflows",
        "pythae",
        "torchgan",
        "torchmetrics",
        "prdc",
    ):
        if name in sys.modules:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                found[name] = importlib.metadata.version(name)
    return found


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def flops_of(call: Callable[[], object]) -> float:
    """Floating-point operations of one call, by the product's own counter."""
    from quintet.core.ledger import FlopCounter

    with FlopCounter() as counter:
        call()
    return float(counter.total)
