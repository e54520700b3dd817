"""The judge network: small convolutional nets trained by a fixed recipe on the judge split.

What it is: an ensemble of three nets that learn a class for each image from augmented views (shift, turn, scale,
contrast, noise). Features are their penultimate activations side by side, standardised and turned to their leading
principal components on the judge split; classes are a vote over the nets and small shifts. The classes are labels, or
each image is its own class (see selfsupervised). What it is not: pretrained; no weights are fetched, and no generator
ever sees the judge split.

Sources: Szegedy et al. 2016, section 7, arXiv:1512.00567 (label smoothing); Loshchilov & Hutter 2019 (AdamW).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from quintet.core.rng import Rng, layer_noise
from quintet.core.spec import DataSpec
from quintet.metrics.distances import Kernel, Polynomial
from quintet.metrics.judges.spaces import leading
from quintet.metrics.sizes import Array

BATCH = 256

SHIFTS = ((0.0, 0.0), (0.09, 0.0), (-0.09, 0.0), (0.0, 0.09), (0.0, -0.09))
"""Where an image is looked at for its class, in halves of its width and height."""


class JudgeNet(nn.Module):
    """A small convolutional classifier; `features` are its penultimate activations.

    Two 3x3 convolutions at full size (the first strided where a side is above STEM pixels), then one a halving until at
    most 4 x 4 pixels are left, a linear layer to `width` features, a linear layer to classes. No normalisation over the
    batch: an item's features are its own.
    """

    STEM = 40

    def __init__(self, shape: tuple[int, ...], classes: int, width: int) -> None:
        super().__init__()
        channels, height, wide = shape
        stride = -(-max(height, wide) // self.STEM)
        layers: list[nn.Module] = [nn.Conv2d(channels, 16, 2 * stride + 1, padding=stride, stride=stride), nn.SiLU()]
        height, wide = -(-height // stride), -(-wide // stride)
        at = 16
        while max(height, wide) > 4 or at == 16:
            layers += [nn.Conv2d(at, min(2 * at, 64), 3, padding=1, stride=2), nn.SiLU()]
            at = min(2 * at, 64)
            height, wide = -(-height // 2), -(-wide // 2)
        layers += [nn.Conv2d(at, 64, 3, padding=1), nn.SiLU(), nn.Flatten()]
        self.trunk = nn.Sequential(*layers)
        self.narrow = nn.Linear(64 * height * wide, width)
        self.head = nn.Linear(width, classes)

    def features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] to (B, width)."""
        return F.silu(self.narrow(self.trunk(x)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to logits (B, classes)."""
        logits: Tensor = self.head(self.features(x))
        return logits


Task = Literal["labels", "exemplars"]


class Judge:
    """The judge network: an ensemble of JudgeNets with what standardises their features.

    Made by `train_judge` or `Judge.load`.

    Attributes:
        name: for protocols.
        accuracy: on real items outside the judge split, once `measure` was called; None before, or without labels.
    """

    FILES = ("judge.safetensors", "judge.json")

    def __init__(
        self, spec: DataSpec, nets: nn.ModuleList, *, task: Task, low: float, high: float, info: Mapping[str, Any]
    ) -> None:
        self.spec, self.nets, self.task = spec, nets.eval().requires_grad_(False), task
        self.low, self.high, self.info = low, high, dict(info)
        self.classes = next(m for m in nets if isinstance(m, JudgeNet)).head.out_features
        width = sum(m.head.in_features for m in nets if isinstance(m, JudgeNet))
        self.mean: Array = np.zeros(width)
        self.axes: Array = np.eye(width)
        self.accuracy: float | None = None
        self.kernel: Kernel = Polynomial()

    @property
    def name(self) -> str:
        what = "labels" if self.task == "labels" else "exemplar classes"
        return f"judge network ({len(self.nets)} nets, {what} of the judge split)"

    def features(self, raw: NDArray[np.generic]) -> Array:
        """(N, C, H, W) raw to (N, d): leading components of the standardised penultimate activations."""
        result: Array = (self._activations(raw) - self.mean) @ self.axes
        return result

    def log_probs(self, raw: NDArray[np.generic]) -> Array:
        """(N, classes): log of the mean probability over nets and SHIFTS."""
        parts = []
        with torch.no_grad():
            for x in self._batches(raw):
                views = [_shifted(x, *shift) for shift in SHIFTS]
                parts.append(torch.stack([net(v).double().log_softmax(1) for net in self.nets for v in views]))
        result: Array = torch.cat([part.logsumexp(0) for part in parts]).numpy()
        return result - math.log(len(self.nets) * len(SHIFTS))

    def predict(self, raw: NDArray[np.generic]) -> NDArray[np.int64]:
        """(N,) the most probable class of each item."""
        best: NDArray[np.int64] = self.log_probs(raw).argmax(axis=1)
        return best

    def measure(self, raw: NDArray[np.generic], labels: NDArray[np.int64]) -> float:
        """Accuracy on real items outside the judge split; kept as `accuracy`."""
        self.accuracy = float((self.predict(raw) == labels).mean())
        return self.accuracy

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": "judge",
            "name": self.name,
            "task": self.task,
            "classes": self.classes,
            "features": int(self.axes.shape[1]),
            "accuracy": self.accuracy,
            **self.info,
        }

    def save(self, folder: Path) -> None:
        """Write judge.safetensors and judge.json into a folder that exists."""
        from safetensors.torch import save_file

        tensors = {key: value.contiguous() for key, value in self.nets.state_dict().items()}
        tensors |= {"mean": torch.from_numpy(self.mean), "axes": torch.from_numpy(np.ascontiguousarray(self.axes))}
        save_file(tensors, folder / self.FILES[0])
        data = {
            "spec": self.spec.to_json(), "task": self.task, "classes": self.classes, "low": self.low, "high": self.high,
            "nets": len(self.nets), "accuracy": self.accuracy, "info": self.info,
        }  # fmt: skip
        (folder / self.FILES[1]).write_text(json.dumps(data, indent=2), encoding="utf-8")

    @staticmethod
    def load(folder: Path) -> Judge:
        """Read what `save` wrote."""
        from safetensors.torch import load_file

        data = json.loads((folder / Judge.FILES[1]).read_text(encoding="utf-8"))
        tensors = load_file(folder / Judge.FILES[0])
        spec, mean, axes = DataSpec.from_json(data["spec"]), tensors.pop("mean"), tensors.pop("axes")
        width = len(mean) // data["nets"]
        with layer_noise(Rng(0, "load")):  # building draws weights that are replaced at once
            nets = nn.ModuleList(JudgeNet(spec.shape, data["classes"], width) for _ in range(data["nets"]))
        nets.load_state_dict(tensors)
        judge = Judge(spec, nets, task=data["task"], low=data["low"], high=data["high"], info=data["info"])
        judge.mean, judge.axes, judge.accuracy = mean.numpy(), axes.numpy(), data["accuracy"]
        return judge

    def _scaled(self, raw: NDArray[np.generic]) -> Tensor:
        x = torch.from_numpy(np.asarray(raw, dtype=np.float32))
        return (x - self.low) * (2 / (self.high - self.low)) - 1

    def _batches(self, raw: NDArray[np.generic]) -> list[Tensor]:
        return list(self._scaled(raw).split(BATCH))

    def _activations(self, raw: NDArray[np.generic]) -> Array:
        with torch.no_grad():
            parts = [
                torch.cat([net.features(x) for net in self.nets if isinstance(net, JudgeNet)], dim=1)
                for x in self._batches(raw)
            ]
        result: Array = torch.cat(parts).double().numpy()
        return result


def train_judge(
    raw: NDArray[np.generic],
    targets: NDArray[np.int64],
    spec: DataSpec,
    *,
    task: Task = "labels",
    classes: int | None = None,
    seed: int = 0,
    networks: int = 3,
    steps: int = 300,
    batch: int = 64,
    width: int = 64,
) -> Judge:
    """Train a judge on the judge split alone; the same arguments give the same judge.

    Args:
        raw: (N, C, H, W) raw images of the judge split.
        targets: (N,) classes.
        spec: of the raw data.
        task: what the classes are.
        classes: number of classes; by default the highest target + 1.
        seed: of weights, order and augmentation.
        networks: members of the ensemble.
        steps, batch: of each member.
        width: features of each member.
    Raises: ValueError for data that are not images.
    """
    if spec.kind != "image" or raw.ndim != 4:
        raise ValueError(f"a judge network needs images (N, C, H, W), got {raw.shape}")
    wanted = torch.from_numpy(np.asarray(targets, np.int64))
    number = int(classes or int(wanted.max()) + 1)
    low, high = value_range(raw, spec)
    rng = Rng(seed, "judge") if task == "labels" else Rng(seed, "judge", task)
    with layer_noise(rng("init")):
        nets = nn.ModuleList(JudgeNet(spec.shape, number, width) for _ in range(networks))
    info = {"seed": seed, "steps": steps, "batch": batch, "items": len(raw)}
    judge = Judge(spec, nets, task=task, low=low, high=high, info=info)
    x = judge._scaled(raw)
    for i, net in enumerate(nets):
        _fit(net.requires_grad_(True).train(), x, wanted, steps, min(batch, 4 * len(x)), rng("net", i))
        net.eval().requires_grad_(False)
    found = judge._activations(raw)
    judge.mean, judge.axes = found.mean(axis=0), leading(found)
    return judge


def _shifted(x: Tensor, right: float, down: float) -> Tensor:
    """Images (B, C, H, W) moved by parts of half their width and height, edges continued."""
    if right == down == 0:
        return x
    theta = torch.tensor([[1.0, 0.0, right], [0.0, 1.0, down]]).expand(len(x), 2, 3)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def _fit(net: nn.Module, x: Tensor, targets: Tensor, steps: int, batch: int, rng: Rng) -> None:
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, betas=(0.9, 0.98), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps + 1, pct_start=0.15)
    for step in range(steps):
        draw = rng("step", step)
        rows = draw("rows").integers(0, len(x), (batch,))
        loss = F.cross_entropy(net(_augment(x[rows], draw)), targets[rows], label_smoothing=0.1)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()


def _augment(x: Tensor, rng: Rng) -> Tensor:
    """Turn up to 6 degrees, scale and shear up to 6 %, shift up to 1/16, contrast by 20 %, add noise; (B, C, H, W)."""
    u = rng("affine").uniform((len(x), 6)) * 2 - 1
    angle, (a, b, s) = u[:, 0] * math.radians(6), (0.06 * u[:, 1:4]).unbind(1)
    cos, sin = angle.cos(), angle.sin()
    theta = torch.stack(
        [
            torch.stack([(1 + a) * cos, -sin + s, 0.125 * u[:, 4]], dim=1),
            torch.stack([sin, (1 + b) * cos, 0.125 * u[:, 5]], dim=1),
        ],
        dim=1,
    )  # (B, 2, 3); a shift of 0.125 is a sixteenth of the width
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    moved = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    contrast = 0.8 + 0.4 * rng("contrast").uniform((len(x), 1, 1, 1))
    return (moved + 1 + 0.22 * rng("noise").normal(tuple(x.shape))) * contrast - 1  # -1 is the background


def value_range(raw: NDArray[np.generic], spec: DataSpec) -> tuple[float, float]:
    """The lowest and the highest raw value: of the levels, or of the items given."""
    if spec.levels is not None:
        return 0.0, float(spec.levels - 1)
    low, high = float(raw.min()), float(raw.max())
    return (low, high) if high > low else (low, low + 1.0)
