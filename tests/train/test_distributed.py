"""Two processes over loopback: gradients of two halves of a batch equal those of the whole, also with sharded weights.

The file is its own worker: `test_distributed.py RANK FOLDER` measures, the tests look at what both ranks wrote.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

WORLD, BATCH, STEPS = 2, 16, 4
RECIPES = ("gan", "vae", "nsf", "flow-matching", "gpt")


def main(rank: int, folder: Path) -> None:
    """Measure everything on this rank."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    whole: dict[str, Any] = {name: Case(name) for name in RECIPES}
    for name, case in whole.items():
        results[name] = {"alone": case.train(0, BATCH), "alone_gradients": case.gradients(0, BATCH)}
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD)
    first, rows = rank * BATCH // WORLD, BATCH // WORLD
    for name, case in whole.items():
        results[name]["together"] = case.train(first, rows)
        results[name]["together_gradients"] = case.gradients(first, rows)
        try:
            results[name]["sharded"] = case.sharded(first, rows)
        except Exception as error:
            results[name]["sharded"] = f"{type(error).__name__}: {error}"
    differences = {
        name: _difference(r.pop("alone_gradients"), r.pop("together_gradients")) for name, r in results.items()
    }
    text = json.dumps({name: {**r, "gradient_difference": differences[name]} for name, r in results.items()})
    (folder / f"rank-{rank}.json").write_text(text)
    dist.barrier()
    dist.destroy_process_group()


class Case:
    """A recipe's model and batches, without dropout, whose draws no process count could keep equal."""

    def __init__(self, name: str) -> None:
        import torch

        from quintet.core.budget import Budget
        from quintet.core.plan import Plan
        from quintet.core.spec import DataSpec
        from quintet.recipes.registry import RECIPES
        from quintet.testing import raw_split

        spec = DataSpec("image", (1, 4, 4), levels=4, conditions={"label": 2})
        (stage,) = RECIPES[name].stages(spec, Budget.parse("1s"))
        self.stage, self.split = stage, raw_split(spec)
        self.codec = stage.codec.fit(spec, torch.from_numpy(self.split.x))
        self.train_config = replace(stage.train, batch=BATCH)
        self.plan = Plan.start(STEPS, 0.3, flops_per_step=1.0, threads=1)

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

    def batches(self, first: int, rows: int) -> Any:
        from quintet.data.batches import Batches

        return Batches(self.split, self.codec, BATCH, 0, first=first, rows=rows)

    def train(self, first: int, rows: int) -> dict[str, list[float]]:
        """The mean over processes of each player's losses, step by step."""
        from quintet.train.loop import TrainState, steps

        model = self.model()
        state = TrainState.start(model, self.train_config, self.plan)
        losses: dict[str, list[float]] = {}
        for step in steps(model, self.batches(first, rows), state, self.train_config, 0):
            for name, loss in step.losses.items():
                losses.setdefault(name, []).append(_mean(loss.total.detach()))
        return losses

    def gradients(self, first: int, rows: int) -> dict[str, Any]:
        """Name -> averaged gradient of each player's parameters, after one step of training, which opens gates."""
        from quintet.train.loop import TrainState, reduce_gradients, steps

        model = self.model()
        batches = self.batches(first, rows)
        next(iter(steps(model, batches, TrainState.start(model, self.train_config, self.plan), self.train_config, 0)))
        found = {}
        names = {id(p): name for name, p in model.named_parameters()}
        for player, _ in self.backward(model, batches, first):
            own = [p for p in player.module.parameters() if p.requires_grad]
            reduce_gradients(own)
            found |= {f"{player.name}/{names[id(p)]}": p.grad.clone() for p in own if p.grad is not None}
        return found

    def backward(self, model: Any, batches: Any, first: int) -> Iterator[Any]:
        """Each player after the backward pass of its loss at step 1."""
        from quintet.core.model import Turn
        from quintet.core.rng import Rng
        from quintet.train.loop import frozen

        model.train()
        for player in model.players():
            model.zero_grad(set_to_none=True)
            own = {id(p) for p in player.module.parameters()}
            turn = Turn(1, 0.5, batches[1], Rng(0, "train", 1, first=first))
            turn = replace(turn, shared=model.shared(turn))
            with frozen([p for p in model.parameters() if id(p) not in own and p.requires_grad]):
                loss = player.loss(turn).total
                loss.backward()
            yield player, loss.detach()

    def sharded(self, first: int, rows: int) -> dict[str, Any]:
        """With weights fully sharded: mean losses and gradients beside the unsharded ones, gradients of others."""
        from quintet.train.loop import reduce_gradients

        batches = self.batches(first, rows)
        plain, model = self.opened(), self.opened()
        _shard(model)
        found: dict[str, Any] = {"losses": {}, "expected": {}, "strays": []}
        wanted, got = {}, {}
        names = {id(p): name for name, p in plain.named_parameters()}
        for player, loss in self.backward(plain, batches, first):
            own = list(player.module.parameters())
            reduce_gradients(own)
            found["expected"][player.name] = _mean(loss)
            wanted |= {f"{player.name}/{names[id(p)]}": p.grad.clone() for p in own if p.grad is not None}
        names = {id(p): name for name, p in model.named_parameters()}
        for player, loss in self.backward(model, batches, first):
            _reshard(model)
            mine = {id(p) for p in player.module.parameters()}
            found["losses"][player.name] = _mean(loss)
            for p in model.parameters():
                gradient = None if p.grad is None else p.grad.full_tensor()
                if gradient is not None and id(p) in mine:
                    got[f"{player.name}/{names[id(p)]}"] = gradient
                elif gradient is not None and bool((gradient != 0).any()):
                    found["strays"].append(f"{player.name}/{names[id(p)]}")
        zero = sorted(name for name, gradient in got.items() if not bool((gradient != 0).any()))
        return {**found, "difference": _difference(wanted, got), "zero": zero}

    def opened(self) -> Any:
        """The model with noise on its parameters, so that no gate is shut."""
        import torch

        from quintet.core.rng import Rng

        model = self.model()
        with torch.no_grad():
            for i, p in enumerate(model.parameters()):
                p.add_(0.02 * Rng(0, "open", i).normal((p.numel(),)).view_as(p))
        return model


def _shard(model: Any) -> None:
    """Fully shard what each player trains, weights freed again after each forward pass.

    A player whose module is the model itself, which has no forward, is sharded part by part.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh("cpu", (WORLD,))
    for player in model.players():
        parts = list(model.children()) if player.module is model else [player.module]
        for part in parts:
            if not any(True for _ in part.parameters()):
                continue
            fully_shard(part, mesh=mesh, reshard_after_forward=True)
            if player.name == "discriminator":  # its loss differentiates twice: the second pass needs them again
                part.set_reshard_after_backward(False)
            for method in ("kl", "log_prob", "centred", "scale"):
                if hasattr(part, method):
                    register_fsdp_forward_method(part, method)


def _reshard(model: Any) -> None:
    """Free gathered weights, so that parameters are the shards, which hold the reduced gradients."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _mean(value: Any) -> float:
    import torch.distributed as dist

    value = value.clone()
    if dist.is_initialized():
        dist.all_reduce(value)
        value /= dist.get_world_size()
    return float(value)


def _difference(alone: dict[str, Any], together: dict[str, Any]) -> dict[str, Any]:
    """Largest difference relative to the largest gradient, over all parameters; and names that only one has."""
    size = max(float(g.abs().max()) for g in alone.values())
    both = set(alone) & set(together)
    error = max(float((alone[k] - together[k]).abs().max()) for k in both)
    return {"relative": error / size, "only_one": sorted(set(alone) ^ set(together)), "size": size}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("distributed")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    workers = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(folder)], env=environment, stderr=subprocess.PIPE, text=True
        )
        for rank in range(WORLD)
    ]
    errors = [worker.communicate(timeout=200)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * WORLD, errors
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(WORLD)]


def test_every_recipe_is_measured() -> None:
    from quintet.recipes.registry import RECIPES as registered

    assert set(RECIPES) == set(registered)


@pytest.mark.parametrize("recipe", RECIPES)
def test_averaged_gradients_are_those_of_the_whole_batch(measured: list[dict[str, Any]], recipe: str) -> None:
    for rank in measured:
        assert rank[recipe]["gradient_difference"]["only_one"] == []
        assert rank[recipe]["gradient_difference"]["relative"] < 1e-4
    assert measured[0][recipe]["gradient_difference"]["size"] > 0


@pytest.mark.parametrize("recipe", RECIPES)
def test_two_halves_train_like_the_whole(measured: list[dict[str, Any]], recipe: str) -> None:
    assert measured[0][recipe]["together"] == measured[1][recipe]["together"]
    for name, losses in measured[0][recipe]["alone"].items():
        assert measured[0][recipe]["together"][name] == pytest.approx(losses, rel=1e-4, abs=1e-4)
        assert len(set(losses)) == STEPS


@pytest.mark.parametrize("recipe", RECIPES)
def test_sharded_weights_get_their_players_gradients(measured: list[dict[str, Any]], recipe: str) -> None:
    for rank in measured:
        found = rank[recipe]["sharded"]
        assert isinstance(found, dict), found
        assert found["losses"] == pytest.approx(found["expected"], rel=1e-4, abs=1e-4)
        assert found["strays"] == []
        assert found["zero"] == []
        assert found["difference"]["only_one"] == []
        assert found["difference"]["relative"] < 1e-4


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
