"""Optimisers: AdamW (torch's fused one) and Muon for hidden matrices, with clipping; no update from non-finite ones.

Muon's step replaces a matrix's momentum by the nearest semi-orthogonal matrix, scaled so that the update's effect on
activations does not depend on the shape. Its iteration may run in bfloat16; weights and momentum are float32.

Sharded weights (see shards.py): every rule here works number by number, on the rows that a process has, except for the
norm, which is summed over processes, and Muon's iteration, for which the matrix is gathered.

The norm of all gradients is brought to the host once a player and step, which waits for a GPU to finish that step's
backward pass: the price of leaving an update out for certain, small beside a step of milliseconds.

Sources: Loshchilov & Hutter 2019, arXiv:1711.05101; Jordan et al. 2024, "Muon: an optimizer for hidden layers";
the spectral scaling sqrt(out / in) from Yang et al. 2023, arXiv:2310.17813.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from quintet.core.numerics import Precision
from quintet.core.processes import ALONE, Processes
from quintet.core.recipe import OptimizerConfig
from quintet.train import shards

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # quintic that drives singular values to about 1 in five steps


def hidden_matrices(module: nn.Module) -> list[Tensor]:
    """Weights of linear layers that are not marked as edges (input, output, modulation, embedding)."""
    return [
        layer.weight
        for layer in module.modules()
        if isinstance(layer, nn.Linear) and not getattr(layer, "edge", False) and layer.weight.requires_grad
    ]


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Approximate U V^T of each matrix's singular value decomposition.

    Args:
        matrices: (N, out, in).
        steps: Newton-Schulz iterations.
    Returns: (N, out, in), singular values within about 0.7 to 1.2.
    """
    a, b, c = _NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x: Tensor = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + torch.baddbmm(b * gram, gram, gram, alpha=c) @ x
    return x.mT if tall else x


class Muon:
    """Momentum, orthogonalised. Matrices of one shape are handled as one batch.

    Args:
        params: the matrices, sharded or not.
        rows: what is updated of each, with its gradient: of a whole matrix, itself.
    """

    def __init__(self, params: Sequence[Tensor], rows: Sequence[Tensor], momentum: float, weight_decay: float) -> None:
        self.params, self.rows, self.momentum, self.weight_decay = list(params), list(rows), momentum, weight_decay
        self.buffers = [torch.zeros_like(p) for p in self.rows]
        self._shapes: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for i, p in enumerate(self.params):
            self._shapes[tuple(p.shape)].append(i)

    @torch.no_grad()
    def step(self, lr: float, precision: Precision = "float32") -> None:
        """Args: lr: in units of the update's spectral norm. precision: of the orthogonalisation."""
        for shape, same in self._shapes.items():
            grads = [g for i in same if (g := self.rows[i].grad) is not None]
            members = [i for i in same if self.rows[i].grad is not None]
            if not members:
                continue
            buffers = [self.buffers[i] for i in members]
            torch._foreach_lerp_(buffers, grads, 1 - self.momentum)
            nesterov = torch._foreach_lerp(grads, buffers, self.momentum)
            likes = [self.params[i] for i in members]
            stacked = torch.stack([shards.whole(rows, like) for rows, like in zip(nesterov, likes, strict=True)])
            if precision == "bfloat16":
                updates = list(orthogonalize(stacked.bfloat16()).to(stacked.dtype).unbind())
            else:
                updates = list(orthogonalize(stacked).unbind())
            updates = [shards.rows_of(update, like) for update, like in zip(updates, likes, strict=True)]
            params = [self.rows[i] for i in members]
            if self.weight_decay:
                torch._foreach_mul_(params, 1 - lr * self.weight_decay)
            torch._foreach_add_(params, updates, alpha=-lr * math.sqrt(shape[0] / shape[1]))


class Optimizer:
    """One player's optimiser.

    Args:
        module: whose parameters it changes.
        config: method, rates, clipping.
        processes: over which the module's weights may be sharded.
    """

    def __init__(self, module: nn.Module, config: OptimizerConfig, processes: Processes = ALONE) -> None:
        self.config, self.processes = config, processes
        self.named = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.params = list(self.named.values())
        self.rows = [shards.local(p) for p in self.params]  # what is updated: of whole parameters, themselves
        pairs = list(zip(self.params, self.rows, strict=True))
        chosen = {id(p) for p in hidden_matrices(module)} if config.method == "muon" else set()
        matrices, rest = ([pair for pair in pairs if (id(pair[0]) in chosen) is which] for which in (True, False))
        groups = [
            {"params": [rows for p, rows in rest if p.ndim >= 2], "weight_decay": config.weight_decay},
            {"params": [rows for p, rows in rest if p.ndim < 2], "weight_decay": 0.0},
        ]
        hidden = [p for p, _ in matrices], [rows for _, rows in matrices]
        self.muon = Muon(*hidden, config.momentum, config.weight_decay) if matrices else None
        self.adam = torch.optim.AdamW(
            [g for g in groups if g["params"]], lr=config.lr, betas=config.betas, eps=1e-8, fused=True
        )
        self.last_lr = 0.0

    @torch.no_grad()
    def step_and_clear(self, scale: float, progress: float, precision: Precision = "float32") -> float:
        """Clip, update, clear the gradients.

        Args:
            scale: the plan's factor on the learning rate.
            progress: in [0, 1), drives the cosine schedules of rate and beta2.
            precision: of Muon's iteration.
        Returns: the gradient norm before clipping. Where it is not finite nothing was updated, and the gradients are
            left for whoever wants to know why.
        """
        config = self.config
        for p, rows in zip(self.params, self.rows, strict=True):
            if rows is not p:
                rows.grad = None if p.grad is None else shards.local(p.grad)
        grads = [rows.grad for rows in self.rows if rows.grad is not None]
        size = self._norm()
        if not math.isfinite(size):
            return size
        if config.clip is not None and size > config.clip:
            torch._foreach_mul_(grads, config.clip / size)
        half = 0.5 * (1 + math.cos(math.pi * progress))
        scale = scale * (config.lr_end + (1 - config.lr_end) * half)
        self.last_lr = config.lr * scale
        for group in self.adam.param_groups:
            group["lr"] = self.last_lr
            if config.beta2_end is not None:
                beta2 = config.beta2_end + (config.betas[1] - config.beta2_end) * half
                group["betas"] = (config.betas[0], beta2)
        self.adam.step()
        if self.muon is not None:
            self.muon.step(config.matrix_lr * scale, precision)
        self.clear()
        return size

    def _norm(self) -> float:
        """Of all gradients, the same on every process."""
        found = [(p, rows.grad) for p, rows in zip(self.params, self.rows, strict=True) if rows.grad is not None]
        kept, spread = ([g for p, g in found if shards.sharded(p) is which] for which in (False, True))
        norm = _norm(kept)
        if any(map(shards.sharded, self.params)):
            (square,) = self.processes.mean([_norm(spread).to(self.rows[0].device) ** 2])
            norm = (norm.to(square) ** 2 + square * self.processes.count).sqrt()
        return float(norm)

    def clear(self) -> None:
        """Drop the gradients."""
        for p, rows in zip(self.params, self.rows, strict=True):
            p.grad = rows.grad = None

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The state as whole tensors by the parameters' names: "adam.body.weight.exp_avg", "muon.body.weight".

        All processes must take all of them.
        """
        for (name, p), rows in zip(self.named.items(), self.rows, strict=True):
            for key, value in self.adam.state.get(rows, {}).items():
                yield f"adam.{name}.{key}", shards.whole(value, p) if value.shape == rows.shape else value
        if self.muon is not None:
            names = {id(p): name for name, p in self.named.items()}
            for matrix, buffer in zip(self.muon.params, self.muon.buffers, strict=True):
                yield f"muon.{names[id(matrix)]}", shards.whole(buffer, matrix)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `tensors` gave."""
        self.adam.state.clear()
        rows = dict(zip(self.named, self.rows, strict=True))
        for key, value in tensors.items():
            kind, _, rest = key.partition(".")
            if kind == "adam":
                name, _, what = rest.rpartition(".")
                own = shards.rows_of(value, self.named[name]) if value.shape == self.named[name].shape else value
                # the fused kernel pairs numbers by their place in memory: channels last stay so
                kept = torch.empty_like(rows[name]) if own.shape == rows[name].shape else torch.empty_like(own)
                self.adam.state[rows[name]][what] = kept.to(rows[name].device).copy_(own)
        if self.muon is not None:
            names = {id(p): name for name, p in self.named.items()}
            for p, buffer in zip(self.muon.params, self.muon.buffers, strict=True):
                buffer.copy_(shards.rows_of(tensors[f"muon.{names[id(p)]}"], p))


def _norm(grads: Sequence[Tensor]) -> Tensor:
    return torch.nn.utils.get_total_norm(grads, foreach=True) if grads else torch.zeros(())
