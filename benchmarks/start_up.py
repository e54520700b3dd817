"""How long `import quintet` and `quintet --help` take over a bare interpreter.

    .venv/bin/python benchmarks/start_up.py [--rounds 7]

Rounds alternate; the medians of the differences are printed, and one JSON line for benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

CASES = {
    "bare": ["-c", "pass"],
    "import": ["-c", "import quintet"],
    "help": ["-m", "quintet.cli.main", "--help"],
}


def seconds(arguments: list[str]) -> float:
    begin = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    for arguments in CASES.values():
        seconds(arguments)
    times: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(options.rounds):
        for name, arguments in CASES.items():
            times[name].append(seconds(arguments))
    over = {
        name: round(statistics.median(a - b for a, b in zip(times[name], times["bare"], strict=True)), 3)
        for name in ("import", "help")
    }
    print(json.dumps({"benchmark": "start_up", "seconds_over_bare": over, "rounds": options.rounds}))


if __name__ == "__main__":
    main()
