"""Meters: counters of the machine that run beside the clock: other processes' processor time, energy, GPU seconds.

What it is: counters that only rise, read at both ends of a span of training, whose differences add up. What it is not:
a profiler; and where a machine has no such counter, or hides it, there is a reason instead of a number, never 0.

* Others: what the cores that this process may use did for somebody else, in core seconds. From /proc/stat, the cores
  of the affinity mask; where a container's quota is smaller than those, from the container's own counter. Time that a
  hypervisor took away counts as others'.
* Energy: the processor's (RAPL, /sys/class/powercap: packages and memory, of the whole machine, whoever used it) and
  the GPU's (NVML). The first is mostly readable by root alone.
* GPU seconds: between CUDA events around the span, that is how long the GPU was held, idle moments included.
"""

from __future__ import annotations

import ctypes
import os
import re
import resource
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

Counter = Callable[[], float]
Why = Literal["absent", "forbidden", "processes"]
"""Why there is no counter: the machine has none, hides it from this user, or several processes train together."""

POWERCAP = Path("/sys/class/powercap")
STAT = Path("/proc/stat")
CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


@dataclass
class Meters:
    """Counters and what they rose by while they ran.

    A counter that fails on the way (a core switched off) is given up with its total; training goes on.

    Attributes:
        counters: name -> a number that never falls.
        missing: name -> why there is no counter.
        cores: that others' time is a share of.
        energy: what the energy counts: "processor", "gpu", "processor+gpu", or "".
        totals: name -> rise over all spans.
    """

    counters: dict[str, Counter] = field(default_factory=dict)
    missing: dict[str, Why] = field(default_factory=dict)
    cores: float = 0.0
    energy: str = ""
    totals: dict[str, float] = field(default_factory=dict)
    _since: dict[str, float] | None = field(default=None, repr=False)

    def start(self) -> None:
        """Begin a span, if none has begun."""
        if self._since is None:
            self._since = self._read()

    def stop(self) -> None:
        """End a span, if one has begun."""
        if self._since is not None:
            for name, now in self._read().items():
                self.totals[name] = self.totals.get(name, 0.0) + max(0.0, now - self._since[name])
            self._since = None

    def _read(self) -> dict[str, float]:
        found = {}
        for name, read in list(self.counters.items()):
            try:
                found[name] = read()
            except (OSError, ValueError):
                del self.counters[name]
                self.totals.pop(name, None)
                self.missing[name] = "absent"
        return found


def meters(device: torch.device | str, processes: int = 1) -> Meters:
    """What this machine can count for a training on a device.

    Args:
        device: where the model is.
        processes: that train together; for several the energy and the others' time would need one on each machine.
    """
    counters: dict[str, Counter] = {}
    missing: dict[str, Why] = {}
    gpu, cores, energy = torch.device(device), 0.0, []
    if gpu.type == "cuda":
        counters["gpu_s"] = _gpu_seconds(gpu)
    else:
        missing["gpu_s"] = "absent"
    if processes > 1:
        return Meters(counters, {**missing, "energy_j": "processes", "others_s": "processes"})
    others = others_counter()
    if others is None:
        missing["others_s"] = "absent"
    else:
        counters["others_s"], cores = others
    parts: list[Counter] = []
    found: Counter | Why
    for name, found in (
        ("processor", rapl()),
        ("gpu", nvml(gpu) if gpu.type == "cuda" else "absent"),
    ):
        if callable(found):
            parts.append(found)
            energy.append(name)
        elif missing.get("energy_j") != "forbidden":
            missing["energy_j"] = found
    if parts:
        missing.pop("energy_j", None)
        counters["energy_j"] = lambda: sum(part() for part in parts)
    return Meters(counters, missing, cores, "+".join(energy))


def others_counter() -> tuple[Counter, float] | None:
    """Core seconds that others used of the cores this process may use, and how many those are; None off Linux."""
    try:
        mask = os.sched_getaffinity(0)
        busy_ticks(STAT, mask)
    except (AttributeError, OSError, ValueError):
        return None
    group = quota()
    if group is not None and group.cores < len(mask):
        return lambda: group.used_s() - own_s(), group.cores
    tick = os.sysconf("SC_CLK_TCK")
    return lambda: busy_ticks(STAT, mask) / tick - own_s(), float(len(mask))


def own_s() -> float:
    """Core seconds of this process and of its children that have ended."""
    return sum(use.ru_utime + use.ru_stime for use in map(resource.getrusage, (0, resource.RUSAGE_CHILDREN)))


def busy_ticks(stat: Path, cores: set[int]) -> int:
    """Ticks for which some cores did not idle.

    Raises: OSError if there is no such file; ValueError if a core is not in it.
    """
    found = {}
    for line in stat.read_text(encoding="ascii").splitlines():
        name, *ticks = line.split()
        if re.fullmatch(r"cpu\d+", name):
            user, nice, system, _, _, irq, softirq, steal = (int(t) for t in ticks[:8])
            found[int(name[3:])] = user + nice + system + irq + softirq + steal
    if not cores <= set(found):
        raise ValueError(f"{stat} does not tell of cores {sorted(cores - set(found))}")
    return sum(found[core] for core in cores)


@dataclass(frozen=True)
class Quota:
    """A container's share of the machine: how many cores, and the counter of the core seconds it used."""

    cores: float
    used_s: Counter


def quota(own: Path = OWN_CGROUPS, root: Path = CGROUPS) -> Quota | None:
    """This process's container limit (cgroup version 2 or 1), None where there is none."""
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    for line in lines:
        _, names, path = line.split(":", 2)
        for inner in (path.lstrip("/"), ""):  # inside a container its own folder is the root
            if not names:
                found = _quota2(root / inner)
            elif "cpu" in names.split(","):
                found = _quota1(root / "cpu" / inner, root / "cpuacct" / inner)
            else:
                break
            if found is not None:
                return found
    return None


def _quota2(folder: Path) -> Quota | None:
    try:
        most, period = (folder / "cpu.max").read_text(encoding="ascii").split()
        _used2(folder)
    except (OSError, ValueError):
        return None
    return None if most == "max" else Quota(int(most) / int(period), lambda: _used2(folder))


def _used2(folder: Path) -> float:
    pairs = (line.split() for line in (folder / "cpu.stat").read_text(encoding="ascii").splitlines())
    return int(next(value for name, value in pairs if name == "usage_usec")) / 1e6


def _quota1(limits: Path, accounts: Path) -> Quota | None:
    used = accounts / "cpuacct.usage"
    try:
        most, period = (
            int((limits / f"cpu.cfs_{name}_us").read_text(encoding="ascii")) for name in ("quota", "period")
        )
        used.stat()
    except (OSError, ValueError):
        return None
    return Quota(most / period, lambda: int(used.read_text(encoding="ascii")) / 1e9) if most > 0 else None


class _Domain:
    """One RAPL domain's joules; its register starts again from 0 at its range."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "energy_uj"
        self._range = int((folder / "max_energy_range_uj").read_text(encoding="ascii"))
        self._last, self._turns = self._raw(), 0

    def _raw(self) -> int:
        return int(self._file.read_text(encoding="ascii"))

    def __call__(self) -> float:
        now = self._raw()
        self._turns += now < self._last
        self._last = now
        return (self._turns * self._range + now) / 1e6


def rapl(root: Path = POWERCAP) -> Counter | Why:
    """The joules of all processor packages and their memory; to be read before a register comes round (minutes)."""
    domains = []
    for folder in sorted(root.glob("intel-rapl:*")):
        try:
            name = (folder / "name").read_text(encoding="ascii").strip()
            if name == "dram" or name.startswith("package"):  # cores and the rest are parts of a package
                domains.append(_Domain(folder))
        except PermissionError:
            return "forbidden"
        except (OSError, ValueError):
            continue
    return (lambda: sum(domain() for domain in domains)) if domains else "absent"


def nvml(device: torch.device, library: str = "libnvidia-ml.so.1") -> Counter | Why:
    """A GPU's joules since its driver was loaded, by NVIDIA's management library (Volta and later)."""
    try:
        lib = ctypes.CDLL(library)
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}".encode()
    except (OSError, AttributeError, RuntimeError, AssertionError):
        return "absent"
    return nvml_counter(lib, uuid)


def nvml_counter(lib: ctypes.CDLL, uuid: bytes) -> Counter | Why:
    """The joules of the GPU with that name, from a loaded library."""
    handle, millijoules = ctypes.c_void_p(), ctypes.c_ulonglong()

    def asked() -> int:
        return int(lib.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules)))

    if lib.nvmlInit_v2() or lib.nvmlDeviceGetHandleByUUID(ctypes.c_char_p(uuid), ctypes.byref(handle)):
        return "absent"
    code = asked()
    if code:
        return "forbidden" if code == 4 else "absent"  # NVML_ERROR_NO_PERMISSION

    def read() -> float:
        asked()
        return float(millijoules.value) / 1e3

    return read


def _gpu_seconds(device: torch.device) -> Counter:
    start = torch.cuda.Event(enable_timing=True)
    start.record(torch.cuda.current_stream(device))

    def read() -> float:
        now = torch.cuda.Event(enable_timing=True)
        now.record(torch.cuda.current_stream(device))
        now.synchronize()
        return float(start.elapsed_time(now)) / 1e3

    return read
