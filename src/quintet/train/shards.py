"""Weights spread over processes (FSDP2): which modules, and the way from a tensor to its local rows and back.

A sharded parameter holds its process's rows of the weight. torch gathers a network's weights before its forward and
backward pass and reduces its gradients to the rows after it; optimiser state and averages exist for the rows alone.
Everything here is the identity for parameters that are not sharded.

Source: Rajbhandari et al. 2020, "ZeRO: memory optimizations toward training trillion parameter models", stage 3,
arXiv:1910.02054, as `torch.distributed.fsdp.fully_shard`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from quintet.core.model import Model
from quintet.core.processes import Processes


def shard(model: Model[Any], processes: Processes) -> float:
    """Spread the model's networks over all processes; parameters outside of them stay whole on each.

    A network is one unit: while it computes its weights are whole. They stay so until `reshard`, since losses that
    differentiate twice need them again.

    Returns: the share of the model's numbers that is sharded.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    warnings.filterwarnings("ignore", "FSDP2-wrapped module")  # about changing an output in place, which no loss does
    mesh = init_device_mesh(next(model.parameters()).device.type, (processes.count,))
    for network in _networks(model):
        for p in network.parameters():
            p.data = p.data.contiguous()  # rows of a tensor that lies otherwise (channels last) are not in one piece
        scalars = {p for p in network.parameters() if p.ndim == 0}  # they have no rows
        unit = fully_shard(network, mesh=mesh, reshard_after_forward=True, ignored_params=scalars)
        unit.set_reshard_after_backward(False)
        unit.unshard()  # settles where the rows are stored
        unit.reshard()
    sizes = [(p.numel(), sharded(p)) for p in model.parameters()]
    return sum(size for size, spread in sizes if spread) / sum(size for size, _ in sizes)


def _networks(module: nn.Module) -> Iterator[nn.Module]:
    """The trained submodules that are called; of those that are not (a pair of networks), their submodules that are."""
    for child in module.children():
        if any(p.requires_grad for p in child.parameters()):
            if type(child).forward is nn.Module.forward:
                yield from _networks(child)
            else:
                yield child


def units(model: nn.Module) -> list[Any]:
    """The sharded modules."""
    return [module for module in model.modules() if hasattr(module, "reshard")]


def reshard(units: Sequence[Any]) -> None:
    """Free gathered weights, so that parameters are the rows again, with the reduced gradients of theirs."""
    for unit in units:
        unit.reshard()


def sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")


def local(tensor: Tensor) -> Tensor:
    """This process's rows, in the same memory."""
    if not sharded(tensor):
        return tensor
    with torch.no_grad():
        rows: Tensor = tensor.to_local()  # type: ignore[attr-defined]
    return rows


def whole(rows: Tensor, like: Tensor) -> Tensor:
    """The tensor of which `rows` are this process's rows, sharded like `like`. All processes must call it."""
    if not sharded(like):
        return rows
    from torch.distributed.tensor import DTensor

    assert isinstance(like, DTensor)
    with torch.no_grad():
        parts = DTensor.from_local(
            rows, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
        )
        return parts.full_tensor()


def rows_of(full: Tensor, like: Tensor) -> Tensor:
    """This process's rows of a whole tensor, a view; `like` is sharded, or not."""
    if not sharded(like):
        return full
    count, rank = like.device_mesh.size(), like.device_mesh.get_local_rank()  # type: ignore[attr-defined]
    most = -(-len(full) // count)
    return full[min(rank * most, len(full)) : (rank + 1) * most]


def whole_state(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Name and whole tensor of the module's state, one gathered after the other. All processes must take all."""
    for name, value in module.state_dict().items():
        yield name, whole(local(value), value)


@torch.no_grad()
def load_state(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put whole tensors into a module, sharded or not; every name of its state must be there."""
    state = module.state_dict()
    if not any(sharded(value) for value in state.values()):
        module.load_state_dict(dict(tensors))
        return
    for name, value in state.items():
        local(value).copy_(rows_of(tensors[name], value))
