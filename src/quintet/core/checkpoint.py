"""Checkpoints: directories that are whole or do not exist.

A checkpoint is written beside its target (files, fsync, manifest with the SHA-256 of each, fsync of the directory),
then renamed, then the `last.json` pointer is replaced. A directory without a valid manifest is not a checkpoint.
Reading verifies every hash, since safetensors notices truncation but not a flipped bit; a damaged checkpoint is
reported and the previous one used. Nothing is pickled: tensors are safetensors, the rest is JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from quintet.core.errors import ResourceError
from quintet.core.faults import fault

SCHEMA = 1
MANIFEST, STATE, POINTER = "manifest.json", "state.json", "last.json"


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint.

    Attributes:
        path: its directory.
        step: the next step to train.
        state: the JSON part.
    """

    path: Path
    step: int
    state: Mapping[str, Any]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of one file, such as "model" or "ema-0"."""
        return dict(safetensors.torch.load_file(self.path / f"{name}.safetensors"))


def save(
    folder: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    *,
    keep: int = 3,
) -> Path:
    """Write one checkpoint atomically; of earlier steps the newest stay, so that `keep` do in all.

    Those of later steps go too: training went back behind them, or what is stored is not the last step but the best.

    Args:
        folder: the run's `checkpoints` directory, made if absent.
        step: the next step to train; names the directory.
        tensors: file name without suffix -> tensor name -> tensor.
        state: JSON-ready.
    Returns: the checkpoint's directory.
    Raises: ResourceError (exit 4) when the disk is full or not writable; the previous checkpoint stays as it was.
    """
    target, temporary = folder / _name(step), folder / f".{_name(step)}.tmp-{os.getpid()}"
    size = sum(t.numel() * t.element_size() for group in tensors.values() for t in group.values())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        temporary.mkdir()
        files = {}
        for name, group in tensors.items():
            data = _serialised(group)
            files[f"{name}.safetensors"] = _write(temporary / f"{name}.safetensors", data)
        text = json.dumps({"schema": SCHEMA, "step": step, **state}, indent=1, allow_nan=False)
        files[STATE] = _write(temporary / STATE, text.encode())
        fault("checkpoint.before_manifest")
        manifest = {"schema": SCHEMA, "step": step, "files": files}
        _write(temporary / MANIFEST, json.dumps(manifest, indent=1).encode())
        _sync_directory(temporary)
        fault("checkpoint.after_manifest")
        if target.exists():  # an earlier run ended at this step; its checkpoint is replaced as a whole
            shutil.rmtree(target)
        os.replace(temporary, target)
        _sync_directory(folder)
        fault("checkpoint.after_rename")
        _replace(folder / POINTER, json.dumps({"step": step, "path": target.name}).encode())
        fault("checkpoint.after_pointer")
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise _not_written(folder, size, error) from error
    kept = [path for path in _found(folder) if _step(path) <= step][:keep]
    for old in _found(folder):
        if old not in kept:
            shutil.rmtree(old, ignore_errors=True)
    return target


def save_once(folder: Path, tensors: Mapping[str, Tensor]) -> str:
    """Store tensors that never change beside the checkpoints, under their SHA-256, unless they are there already.

    Args:
        folder: the stage's folder.
        tensors: name -> tensor, of frozen parts.
    Returns: the hash, by which `load_once` finds them.
    Raises: ResourceError (exit 4), as `save`.
    """
    data = _serialised(tensors)
    digest = hashlib.sha256(data).hexdigest()
    path = folder / f"frozen-{digest[:16]}.safetensors"
    try:
        if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            folder.mkdir(parents=True, exist_ok=True)
            _replace(path, data)
    except OSError as error:
        raise _not_written(folder, len(data), error) from error
    return digest


def load_once(folder: Path, digest: str, same: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `save_once` stored under this hash.

    Args:
        folder: the stage's folder.
        digest: the hash.
        same: name -> tensor; stored again and returned where the file is lost and this is what it held.
    Raises: ResourceError (exit 4) if the file is absent or damaged and `same` is something else.
    """
    path = folder / f"frozen-{digest[:16]}.safetensors"
    try:
        data = path.read_bytes()
        why = None if hashlib.sha256(data).hexdigest() == digest else f"{path.name} does not match its SHA-256"
    except OSError as error:
        why = error.strerror or str(error)
    if why is None:
        return dict(safetensors.torch.load(data))
    if hashlib.sha256(_serialised(same)).hexdigest() != digest:
        raise ResourceError("checkpoint.frozen_lost", path=path, why=why)
    save_once(folder, same)
    return {name: tensor.detach() for name, tensor in same.items()}


def newest(folder: Path, warn: Callable[[str, dict[str, Any]], None] | None = None) -> Checkpoint | None:
    """The newest checkpoint that is undamaged, or None.

    Args:
        folder: a `checkpoints` directory, which may be absent.
        warn: called with (message key, fields) for each damaged checkpoint passed over.
    """
    for path in _found(folder):
        problem = damage(path)
        if problem is None:
            return _read(path)
        if warn is not None:
            warn("checkpoint.damaged", {"path": str(path), "why": problem})
    return None


def at(folder: Path, step: int, lost: str = "checkpoint.lost") -> Checkpoint:
    """The checkpoint of one step, and no other.

    Raises: ResourceError (exit 4), with the message `lost`, if it is absent or damaged.
    """
    path = folder / _name(step)
    problem = damage(path)
    if problem is not None:
        raise ResourceError(lost, path=path, why=problem)
    return _read(path)


def steps(folder: Path) -> list[int]:
    """Of the checkpoints in a folder, damaged ones included, newest first."""
    return [_step(path) for path in _found(folder)]


def forget(folder: Path, after: int) -> None:
    """Remove checkpoints of steps beyond `after`: what they hold was found to lead nowhere."""
    for path in _found(folder):
        if _step(path) > after:
            shutil.rmtree(path, ignore_errors=True)


def damage(path: Path) -> str | None:
    """Why a directory is not a valid checkpoint, or None if it is."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        schema = manifest["schema"]
        if schema != SCHEMA:
            return f"schema {schema} instead of {SCHEMA}; made by another quintet version"
        listed = [(name, entry["size"], entry["sha256"]) for name, entry in manifest["files"].items()]
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} cannot be read"
    for name, size, digest in listed:
        file = path / name
        try:
            if Path(name).name != name or not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != size:
                return f"{name} has {file.stat().st_size} bytes instead of {size}"
            with file.open("rb") as stream:
                if hashlib.file_digest(stream, "sha256").hexdigest() != digest:
                    return f"{name} does not match its SHA-256"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror or error}"
    return None


def sweep(folder: Path) -> None:
    """Remove what a killed writer left behind directly in a folder. The run folder's lock must be held."""
    for orphan in folder.glob(".*.tmp-*"):
        if orphan.is_dir():
            shutil.rmtree(orphan, ignore_errors=True)
        else:
            with suppress(OSError):
                orphan.unlink()


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file as a whole: readers see the old content or the new.

    Raises: ResourceError (exit 4), as `writing`.
    """
    with writing(path):
        _replace(path, data)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around what writes a file or into a folder.

    Raises: ResourceError (exit 4) in place of an OSError: a full disk, a folder that is gone or not writable.
    """
    try:
        yield
    except OSError as error:
        why, free = error.strerror or error, _size(_free_bytes(path))
        raise ResourceError("checkpoint.file_not_written", path=path, why=why, free=free) from error


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        _write(temporary, data)
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise


def _not_written(folder: Path, size: int, error: OSError) -> ResourceError:
    why, free = error.strerror or error, _size(_free_bytes(folder))
    return ResourceError("checkpoint.not_written", path=folder, why=why, needed=_size(size), free=free)


def _found(folder: Path) -> list[Path]:
    """Directories of checkpoints, the latest step first."""
    if not folder.is_dir():
        return []
    return sorted((p for p in folder.iterdir() if p.name.isdigit() and p.is_dir()), key=_step, reverse=True)


def _name(step: int) -> str:
    return f"{step:08d}"


def _step(path: Path) -> int:
    return int(path.name)


def _read(path: Path) -> Checkpoint:
    """A checkpoint without damage."""
    state = json.loads((path / STATE).read_text(encoding="utf-8"))
    return Checkpoint(path, int(state["step"]), state)


def _serialised(tensors: Mapping[str, Tensor]) -> bytes:
    return bytes(safetensors.torch.save({key: t.detach().cpu().contiguous() for key, t in tensors.items()}))


def _write(path: Path, data: bytes) -> dict[str, Any]:
    with path.open("wb") as stream:
        half = len(data) // 2
        stream.write(data[:half])
        fault("checkpoint.half")
        stream.write(data[half:])
        stream.flush()
        os.fsync(stream.fileno())
    fault("checkpoint.after_file")
    return {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}


def _sync_directory(path: Path) -> None:
    if os.name == "posix":
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _free_bytes(place: Path) -> int:
    """Where `place` is, or would be."""
    for known in (place, *place.absolute().parents):
        with suppress(OSError):
            return shutil.disk_usage(known).free
    return 0


def _size(n: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.0f} {unit}"
        n /= 1000
    return f"{n:.1f} TB"
