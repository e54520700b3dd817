"""Two processes over loopback train as one does: whole and sharded weights, any family, parts of batches, checkpoints.

The file is its own worker: `test_distributed.py FOLDER` (with torchrun's variables set) measures everything with one
pair of processes, the tests look at what both wrote.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

WORLD, BATCH, STEPS = 2, 16, 20
RECIPES = ("gan", "vae", "nsf", "flow-matching", "gpt")
MODES = ("together", "sharded")
RESUMED = 6  # steps of a run that goes from two processes to one and back, two steps each
RELAY = ("sharded", "alone", "together")


def main(folder: Path) -> None:
    """Measure everything in this process."""
    import torch

    from quintet.core.processes import joined

    torch.set_num_threads(1)
    cases = {name: Case(name) for name in RECIPES}
    results: dict[str, Any] = {name: {"alone": case.train("alone")} for name, case in cases.items()}
    with joined("cpu") as processes:
        for name, case in cases.items():
            case.processes = processes
            for mode in MODES:
                results[name][mode] = case.train(mode)
        gan = cases["gan"]
        results["parts"] = {mode: gan.train(mode, micro=3, steps=4) for mode in ("alone", *MODES)}
        results["bfloat16"] = {mode: cases["gpt"].train(mode, precision="bfloat16") for mode in ("alone", *MODES)}
        results["memory"] = {**cases["vae"].memory(), "expected": cases["vae"].train("alone", steps=3)}
        results["nonfinite"] = {mode: cases["flow-matching"].poisoned(mode) for mode in ("alone", *MODES)}
        results["talk"] = talk(processes)
        results["relay"] = Relay(folder, gan).run()
    (folder / f"rank-{processes.rank}.json").write_text(json.dumps(results))


def talk(processes: Any) -> dict[str, Any]:
    """What passes between processes."""
    import torch

    mine = {"x": torch.arange(6.0).view(2, 3), "none": torch.zeros(0, 3), "flag": torch.tensor(True)}
    got = processes.share(mine if processes.first else None)
    return {
        "tell": processes.tell({"from": processes.rank}),
        "gather": processes.gather("x" * (1 + processes.rank)),
        "either": processes.either(False, processes.rank == 1, True),
        "share": all(torch.equal(got[name], value) and got[name].dtype == value.dtype for name, value in mine.items()),
        "mean": [float(v) for v in processes.mean([torch.tensor(1.0 + processes.rank), torch.tensor(3.0)])],
    }


class Case:
    """A recipe's model and batches, without dropout, whose draws no process count could keep equal."""

    def __init__(self, name: str) -> None:
        import torch

        from quintet.core.budget import Budget
        from quintet.core.processes import ALONE
        from quintet.core.spec import DataSpec
        from quintet.recipes.registry import RECIPES
        from quintet.testing import raw_split

        spec = DataSpec("image", (1, 4, 4), levels=4, conditions={"label": 2})
        (stage,) = RECIPES[name].stages(spec, Budget.parse("1s"))
        self.stage, self.split, self.processes = stage, raw_split(spec), ALONE
        self.codec = stage.codec.fit(spec, torch.from_numpy(self.split.x))
        self.config = replace(stage.train, batch=BATCH)

    def model(self) -> Any:
        from quintet.core.rng import Rng, layer_noise

        with layer_noise(Rng(0, "init")):
            model = self.stage.model.build(self.codec.spec)
        for module in model.modules():
            if isinstance(getattr(module, "dropout", None), float):
                module.dropout = 0.0
            if type(module).__name__ == "Dropout":
                module.p = 0.0
        return model

    def batches(self, mode: str) -> Any:
        from quintet.data.batches import Batches

        first, rows = (0, BATCH) if mode == "alone" else self.processes.rows(BATCH)
        return Batches(self.split, self.codec, BATCH, 0, first=first, rows=rows)

    def started(self, mode: str, steps: int, micro: int = 0, precision: Any = "float32") -> tuple[Any, Any, Any]:
        """Model, state and the iterator over steps."""
        from quintet.core.plan import Plan
        from quintet.core.processes import ALONE
        from quintet.train import shards
        from quintet.train.loop import TrainState
        from quintet.train.loop import steps as train

        processes = ALONE if mode == "alone" else self.processes
        model = self.model()
        if mode == "sharded":
            shards.shard(model, processes)
        plan = Plan.start(steps, 0.3, flops_per_step=1.0, threads=1, micro=micro, precision=precision)
        state = TrainState.start(model, self.config, plan, processes)
        return model, state, train(model, self.batches(mode), state, self.config, 0, processes)

    def train(self, mode: str, steps: int = STEPS, **options: Any) -> dict[str, Any]:
        """Losses and gradient norms of each player, and a summary of the weights and averages at the end."""
        from quintet.train import shards

        model, state, run = self.started(mode, steps, **options)
        found: dict[str, Any] = {"losses": {}, "norms": {}}
        for step in run:
            for name, loss in step.losses.items():
                found["losses"].setdefault(name, []).append(float(loss.total.detach()))
                found["norms"].setdefault(name, []).append(step.grad_norms[name])
        spread = [p for p in model.parameters() if shards.sharded(p)]
        found["sharded"] = sum(p.numel() for p in spread) / sum(p.numel() for p in model.parameters())
        found["held"] = sum(rows.numel() for o in state.optimizers.values() for rows in o.rows)
        ends = {**dict(shards.whole_state(model)), **{f"average {k}": v for k, v in state.ema.tensors(0)}}
        found["ends"] = {name: float(value.double().norm()) for name, value in ends.items()}
        return found

    def memory(self) -> dict[str, Any]:
        """The plan after memory ran out on the second process only, at its first attempt; the losses beside."""
        import torch

        attempts = iter([self.processes.rank == 1])
        model, state, run = self.started("together", 3)
        loss = type(model).loss

        def scarce(self: Any, turn: Any) -> Any:
            if next(attempts, False):
                raise torch.OutOfMemoryError("CUDA out of memory")
            return loss(self, turn)

        type(model).loss = scarce
        try:
            losses = [float(step.losses["model"].total.detach()) for step in run]
        finally:
            type(model).loss = loss
        return {"micro": state.plan.micro(0), "events": len(state.plan.events), "losses": losses}

    def poisoned(self, mode: str) -> Any:
        """What is said of a gradient that is not finite because of a row of the second half."""
        import torch

        _, _, run = self.started(mode, 2)
        batches = self.batches(mode)
        whole = type(batches).__getitem__

        def bad(self: Any, step: int) -> Any:
            batch = whole(self, step)
            if self.first + self.rows == BATCH:
                batch.x[-1] = torch.nan
            return batch

        type(batches).__getitem__ = bad  # type: ignore[method-assign]
        try:
            step = next(run)
        finally:
            type(batches).__getitem__ = whole  # type: ignore[method-assign]
        return {name: [len(cause.rows), sorted(cause.rows)] for name, cause in step.skipped.items()}


class Relay:
    """One run in three parts, each continued by other processes: sharded on two, on one alone, whole on two."""

    def __init__(self, folder: Path, case: Case) -> None:
        self.folder, self.case, self.processes = folder, case, case.processes
        self.plan: Any = None
        self.lines: list[Any] = []

    def run(self) -> dict[str, Any]:
        """Losses beside those of one process, what is said at each change, and whether each way of loading is exact."""
        found: dict[str, Any] = {"loaded": [], "changes": [], "losses": {}}
        found["whole"] = self.part("alone", RESUMED, self.folder / "whole")
        for i, mode in enumerate(RELAY):
            until = RESUMED * (i + 1) // len(RELAY)
            if mode != "alone" or self.processes.first:
                self.lines.clear()
                self.part(mode, until, self.folder / "relay")
                found["losses"] |= {x["step"]: x["generator"]["total"] for x in self.lines if x["kind"] == "step"}
                found["changes"] += [x["changes"] for x in self.lines if x.get("what") == "resumed_otherwise"]
            self.processes.wait()
            found["loaded"].append({mode: self.load(mode) for mode in ("alone", *MODES)})
        return found

    def load(self, mode: str) -> list[str]:
        """Names of tensors that are not as the newest checkpoint has them, once loaded."""
        import torch

        from quintet.core import checkpoint
        from quintet.core.processes import ALONE
        from quintet.train import shards
        from quintet.train.run import _restore

        model, state, _ = self.case.started(mode, RESUMED)
        on_disk = checkpoint.newest(self.folder / "relay" / "checkpoints")
        assert on_disk is not None
        alone = mode == "alone"
        found = on_disk if alone or self.processes.first else None
        _restore(found, model, {}, state, ALONE if alone else self.processes)
        held = {f"model/{k}": v for k, v in shards.whole_state(model)}
        held |= {f"optim/{name}/{k}": v for name, o in state.optimizers.items() for k, v in o.tensors()}
        held |= {f"ema-{i}/{k}": v for i in range(len(state.ema.widths)) for k, v in state.ema.tensors(i)}
        stored = {f"{f}/{k}": v for f in ("model", "optim", "ema-0") for k, v in on_disk.tensors(f).items()}
        assert set(stored) <= set(held)
        assert any(".exp_avg_sq" in name for name in stored)
        assert state.step == on_disk.step
        return [name for name, value in stored.items() if not torch.equal(value, held[name])]

    def part(self, mode: str, until: int, folder: Path) -> Any:
        """Train until a step; the losses by step."""
        from quintet.core.budget import Budget
        from quintet.core.errors import Interrupted
        from quintet.core.ledger import Ledger
        from quintet.core.processes import ALONE
        from quintet.train.run import fit

        diary = Diary(until)
        config = replace(self.case.config, shard=mode == "sharded")
        alone = mode == "alone"
        if alone and not self.processes.first:
            folder = folder / "second"
        with suppress(Interrupted):
            fit(
                self.case.model(), self.case.batches(mode), config, Budget("steps", RESUMED), seed=0, folder=folder,
                ledger=Ledger(), watcher=diary, plan=self.plan if folder.name == "relay" else None,
                processes=ALONE if alone else self.processes, checkpoint_steps=2,
            )  # fmt: skip
        self.lines += diary.lines
        if diary.plans and folder.name == "relay":
            self.plan = diary.plans[-1]
        return {x["step"]: x["generator"]["total"] for x in diary.lines if x["kind"] == "step"}


class Diary:
    """A watcher that asks to stop at a step."""

    def __init__(self, until: int) -> None:
        self.until, self.done = until, 0
        self.lines: list[dict[str, Any]] = []
        self.plans: list[Any] = []

    def log(self, line: Any) -> None:
        self.lines.append(dict(line))

    def plan(self, plan: Any) -> None:
        self.plans.append(plan)

    def step(self, step: int, plan: Any, seconds: float, share: float) -> None:
        self.done = step

    def preview(self, state: Any, seconds: float) -> None: ...

    def stop(self) -> bool:
        return self.done >= self.until


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("distributed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "WORLD_SIZE": str(WORLD)}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_WORLD_SIZE": str(WORLD)}
    workers = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder)],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(WORLD)
    ]
    errors = [worker.communicate(timeout=900)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * WORLD, errors
    return folder


@pytest.fixture(scope="module")
def measured(folder: Path) -> list[dict[str, Any]]:
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(WORLD)]


def apart(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Largest difference of two trainings' losses."""
    assert one["losses"].keys() == other["losses"].keys()
    pairs = [zip(one["losses"][name], other["losses"][name], strict=True) for name in one["losses"]]
    return max(abs(a - b) for pair in pairs for a, b in pair)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("recipe", RECIPES)
def test_two_processes_train_like_one(measured: list[dict[str, Any]], recipe: str, mode: str) -> None:
    alone, two = measured[0][recipe]["alone"], measured[0][recipe][mode]
    assert two == {**measured[1][recipe][mode], "held": two["held"]}
    assert all(len(set(losses)) == STEPS for losses in alone["losses"].values())
    assert apart(alone, two) < 1e-4
    assert two["norms"].keys() == alone["norms"].keys()
    for name, norms in alone["norms"].items():
        assert two["norms"][name] == pytest.approx(norms, rel=1e-2)
    assert two["ends"] == pytest.approx(alone["ends"], rel=1e-2, abs=1e-4)


@pytest.mark.parametrize("recipe", RECIPES)
def test_sharded_weights_are_spread(measured: list[dict[str, Any]], recipe: str) -> None:
    ranks = [rank[recipe]["sharded"] for rank in measured]
    assert ranks[0]["sharded"] > 0.9
    assert sum(rank["held"] for rank in ranks) <= 1.1 * measured[0][recipe]["alone"]["held"]
    assert measured[0][recipe]["together"]["sharded"] == 0


@pytest.mark.parametrize("mode", MODES)
def test_parts_of_a_batch(measured: list[dict[str, Any]], mode: str) -> None:
    parts = measured[0]["parts"]
    assert apart(parts["alone"], parts[mode]) < 1e-4


@pytest.mark.parametrize("mode", MODES)
def test_bfloat16(measured: list[dict[str, Any]], mode: str) -> None:
    found = measured[0]["bfloat16"]
    assert apart(found["alone"], found[mode]) < 5e-3
    assert apart(found["alone"], measured[0]["gpt"]["alone"]) > 0


def test_memory_that_ran_out_on_one_process_halves_all(measured: list[dict[str, Any]]) -> None:
    for rank in measured:
        assert rank["memory"]["micro"] == BATCH // WORLD // 2
        assert rank["memory"]["events"] == 2
        expected = rank["memory"]["expected"]["losses"]["model"]
        assert rank["memory"]["losses"] == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_all_processes_name_the_same_cause_of_a_gradient_that_is_not_finite(measured: list[dict[str, Any]]) -> None:
    for rank in measured:
        for mode in MODES:
            assert rank["nonfinite"][mode] == rank["nonfinite"]["alone"]
        assert rank["nonfinite"]["alone"]["model"][0] == BATCH


def test_what_processes_say_to_each_other(measured: list[dict[str, Any]]) -> None:
    for rank in measured:
        assert rank["talk"] == {
            "tell": {"from": 0},
            "gather": ["x", "xx"],
            "either": [False, True, True],
            "share": True,
            "mean": [1.5, 3.0],
        }


def test_a_run_goes_from_two_to_one_and_back(measured: list[dict[str, Any]]) -> None:
    first, second = (rank["relay"] for rank in measured)
    assert first["losses"].keys() == {str(step) for step in range(RESUMED)}
    assert first["losses"] == pytest.approx(first["whole"], rel=1e-4, abs=1e-4)
    assert first["changes"] == ["processes 2 → 1, sharded True → False", "processes 1 → 2"]
    assert (second["losses"], second["changes"]) == ({}, [])
    for rank in (first, second):
        assert rank["loaded"] == [{mode: [] for mode in ("alone", *MODES)}] * len(RELAY)


def test_rows() -> None:
    from quintet.core.errors import UsageError
    from quintet.core.processes import ALONE, Processes

    assert ALONE.rows(7) == (0, 7)
    assert [Processes(rank, 3).rows(12) for rank in range(3)] == [(0, 4), (4, 4), (8, 4)]
    with pytest.raises(UsageError, match=r"train\.batch=9"):
        Processes(1, 3).rows(10)
    with pytest.raises(UsageError, match=r"train\.batch=4"):
        Processes(1, 4).rows(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
