"""The lines of the speed benchmarks as one Markdown table: ours against the best peer of each workload.

python benchmarks/speed_table.py benchmarks/results/DATE-speed.jsonl

A dagger stands at workloads that were measured in seconds of the processor.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

OURS, PLAIN = "quintet", "plain"


def main() -> None:
    workloads: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for path in sys.argv[1:]:
        for line in Path(path).read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            workloads[record["workload"]][record["contender"]] = record
    print("| workload | best peer | contender | value | against it (median; best) | GFLOP a step | parameters |")
    print("|---|---|---|---|---|---|---|")
    for workload, found in workloads.items():
        timed = {name: r for name, r in found.items() if "value" in r}
        peers = {name: r for name, r in timed.items() if not name.startswith(OURS)}
        if not peers:
            continue
        shown = workload + (" †" if any(r.get("clock") == "cpu" for r in timed.values()) else "")
        best = max(peers, key=lambda name: peers[name]["value"])
        for name, r in timed.items():
            if name != best and not name.startswith(OURS):
                continue
            ratio = r["ratio"] / peers[best]["ratio"]
            of_best = r["ratio_of_best"] / peers[best]["ratio_of_best"]
            against = "" if name == best else f"**{ratio:.2f}**; {of_best:.2f}"
            flop = "" if not r.get("gflops") else f"{r['gflops']:.3g}"
            params = "" if not r.get("params") else f"{r['params']:,}"
            print(f"| {shown} | {best} | {name} | {number(r['value'])} {r['unit']} | {against} | {flop} | {params} |")
        for name, r in found.items():
            if "unavailable" in r:
                print(f"| {workload} | | {name} | does not run: {r['unavailable'][:80]} | | | |")


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


if __name__ == "__main__":
    main()
