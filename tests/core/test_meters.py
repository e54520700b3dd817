"""Meters: others' time against a known load, counters read from files made for the purpose, a pretended GPU library."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from quintet.core import meters as module
from quintet.core.ledger import Ledger, Stopwatch
from quintet.core.meters import Meters, busy_ticks, meters, nvml_counter, others_counter, own_s, quota, rapl
from quintet.core.results import LedgerEntry

LINUX = pytest.mark.skipif(not Path("/proc/stat").exists(), reason="needs Linux's /proc/stat")


def rising(*values: float):  # type: ignore[no-untyped-def]
    held = iter(values)
    return lambda: next(held)


def test_spans_add_up_and_what_lies_between_does_not_count() -> None:
    found = Meters({"a": rising(5.0, 7.0, 100.0, 101.5)}, cores=2.0)
    found.stop()  # nothing has begun
    for _ in range(2):
        found.start()
        found.start()  # goes already
        found.stop()
        found.stop()
    assert found.totals == {"a": 3.5}


def test_a_counter_that_fails_on_the_way_is_given_up() -> None:
    found = Meters({"a": rising(1.0, 2.0, 3.0), "b": rising(1.0, 2.0, 3.0, 4.0)}, energy="processor")

    def broken() -> float:
        raise OSError("gone")

    found.start()
    found.stop()
    found.start()
    found.counters["a"] = broken
    found.stop()
    assert found.totals == {"b": 2.0}
    assert found.missing == {"a": "absent"}


def test_the_ledger_takes_what_there_is_and_why_there_is_nothing() -> None:
    ledger = Ledger()
    ledger.meter(Meters(missing={"energy_j": "forbidden"}, cores=2.0, totals={"others_s": 1.0}))
    ledger.meter(Meters(missing={"energy_j": "forbidden"}, cores=2.0, totals={"others_s": 0.5}))
    entry = LedgerEntry(**ledger.model_dump())
    assert (entry.others_s, entry.cores, entry.energy_j, entry.energy, entry.gpu_s) == (
        1.5,
        2.0,
        None,
        "forbidden",
        None,
    )
    ledger = Ledger()
    ledger.meter(Meters(energy="processor", totals={"energy_j": 12.0}))
    assert (ledger.energy_j, ledger.energy) == (12.0, "processor")


def test_busy_ticks_of_some_cores(tmp_path: Path) -> None:
    """user nice system idle iowait irq softirq steal guest guest_nice; guest is part of user."""
    stat = tmp_path / "stat"
    stat.write_text(
        "cpu  99 99 99 99 99 99 99 99 0 0\ncpu0 10 1 2 500 50 3 4 5 7 0\ncpu1 20 0 0 900 0 0 0 0 0 0\n"
        "cpu10 1000 0 0 0 0 0 0 0 0 0\nintr 5 5\n"
    )
    assert busy_ticks(stat, {0}) == 25
    assert busy_ticks(stat, {0, 1}) == 45
    with pytest.raises(ValueError, match="3"):
        busy_ticks(stat, {0, 3})


@LINUX
def test_a_load_of_others_is_seen() -> None:
    """A child that burns three tenths of a second, which count as ours only once it was waited for."""
    found = others_counter()
    assert found is not None
    read, cores = found
    assert 0 < cores <= (os.cpu_count() or 1)
    before, own = read(), own_s()
    child = subprocess.Popen([sys.executable, "-S", "-c", "import time\nwhile time.process_time() < 0.3: pass"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert read() - before > 0.25
    child.wait()
    assert own_s() - own > 0.29


@LINUX
def test_ones_own_load_is_not_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "quota", lambda: None)
    monkeypatch.setattr(os, "sysconf", lambda name: 100)
    ticks = rising(0, 1000, 1250)
    monkeypatch.setattr(module, "busy_ticks", lambda stat, cores: ticks())
    monkeypatch.setattr(module, "own_s", rising(3.0, 4.5))
    found = others_counter()
    assert found is not None
    assert -(found[0]() - found[0]()) == pytest.approx(2.5 - 1.5)


@LINUX
def test_this_machine() -> None:
    found = meters("cpu")
    assert found.missing["gpu_s"] == "absent"
    assert "others_s" in found.counters
    assert ("energy_j" in found.counters) != ("energy_j" in found.missing)
    with Stopwatch(found) as watch:
        time.sleep(0.05)
    assert watch.wall >= 0.05
    assert found.totals["others_s"] >= 0
    several = meters("cpu", processes=2)
    assert several.counters == {}
    assert several.missing["energy_j"] == several.missing["others_s"] == "processes"


def test_container_limits_of_both_kinds(tmp_path: Path) -> None:
    own = tmp_path / "own"
    assert quota(own, tmp_path) is None  # no such file
    two = tmp_path / "two" / "jobs" / "a"
    two.mkdir(parents=True)
    (two / "cpu.max").write_text("150000 100000\n")
    (two / "cpu.stat").write_text("usage_usec 2500000\nuser_usec 1\n")
    own.write_text("0::/jobs/a\n")
    found = quota(own, tmp_path / "two")
    assert found is not None
    assert (found.cores, found.used_s()) == (1.5, 2.5)
    (two / "cpu.max").write_text("max 100000\n")
    assert quota(own, tmp_path / "two") is None
    one = tmp_path / "one"
    for name in ("cpu", "cpuacct"):
        (one / name).mkdir(parents=True)
    (one / "cpu" / "cpu.cfs_quota_us").write_text("50000\n")
    (one / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    (one / "cpuacct" / "cpuacct.usage").write_text("3000000000\n")
    own.write_text("4:memory:/x\n3:cpu,cpuacct:/nowhere\n0::/\n")  # inside a container the path does not exist
    found = quota(own, one)
    assert found is not None
    assert (found.cores, found.used_s()) == (0.5, 3.0)
    (one / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    assert quota(own, one) is None


@LINUX
def test_a_container_is_held_against_its_own_counter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "quota", lambda: module.Quota(0.5, rising(own_s() + 1, own_s() + 4)))
    found = others_counter()
    assert found is not None
    assert found[1] == 0.5
    assert -(found[0]() - found[0]()) == pytest.approx(3, abs=0.5)


def domain(root: Path, folder: str, name: str, joules: float, most: int = 10**9) -> Path:
    place = root / folder
    place.mkdir(parents=True)
    (place / "name").write_text(name + "\n")
    (place / "energy_uj").write_text(f"{int(joules * 1e6)}\n")
    (place / "max_energy_range_uj").write_text(f"{most}\n")
    return place / "energy_uj"


def test_energy_of_packages_and_memory_over_the_end_of_a_register(tmp_path: Path) -> None:
    assert rapl(tmp_path) == "absent"
    package = domain(tmp_path, "intel-rapl:0", "package-0", 990)
    memory = domain(tmp_path, "intel-rapl:0:1", "dram", 5)
    domain(tmp_path, "intel-rapl:0:0", "core", 100)  # within the package
    domain(tmp_path, "intel-rapl:1", "psys", 100)  # the whole board: the package again
    read = rapl(tmp_path)
    assert callable(read)
    assert read() == pytest.approx(995)
    package.write_text("20000000\n")  # 10 J to the end of the register, 20 J from its start
    memory.write_text("6000000\n")
    assert read() == pytest.approx(995 + 30 + 1)


def test_a_hidden_meter_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, whole = domain(tmp_path, "intel-rapl:0", "package-0", 1), Path.read_text

    def refused(self: Path, *args: object, **kwargs: object) -> str:
        if self == file:
            raise PermissionError(13, "Permission denied")
        return whole(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "read_text", refused)
    assert rapl(tmp_path) == "forbidden"
    monkeypatch.setattr(module, "POWERCAP", tmp_path)
    monkeypatch.setattr(module.rapl, "__defaults__", (tmp_path,))
    assert meters("cpu").missing["energy_j"] == "forbidden"


class Library:
    """NVML as far as it is asked: one GPU, whose joules rise by 2.5 with every question."""

    def __init__(self, code: int = 0) -> None:
        self.code, self.asked, self.name = code, 0, b""

    def nvmlInit_v2(self) -> int:
        return 0

    def nvmlDeviceGetHandleByUUID(self, uuid: ctypes.c_char_p, handle: object) -> int:
        self.name = uuid.value or b""
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: object, out: object) -> int:
        self.asked += 1
        out._obj.value = 2500 * self.asked  # type: ignore[attr-defined]
        return self.code


def test_a_gpu_counts_millijoules() -> None:
    library = Library()
    read = nvml_counter(library, b"GPU-1")  # type: ignore[arg-type]
    assert callable(read)
    first = read()
    assert (read() - first, library.name) == (2.5, b"GPU-1")
    assert nvml_counter(Library(code=4), b"GPU-1") == "forbidden"  # type: ignore[arg-type]
    assert nvml_counter(Library(code=3), b"GPU-1") == "absent"  # type: ignore[arg-type]
