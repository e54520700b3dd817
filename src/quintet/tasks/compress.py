"""Lossless compression by a model whose probabilities are exact: what it says in bits, in bytes that can be decoded.

What it is: an arithmetic coder (range coding, by the library constriction) driven by the model's own predictions, one
value after another and a batch of examples side by side; the file's format; and the way back.
What it is not: bits-back coding, which would code with a bound (a variational autoencoder) or through a flow.

The decoder repeats the encoder's calculation, so it must come out the same to the last bit: same model, same batches,
same number of threads, same kind of processor and version of torch. The file says which and holds a checksum of the
content, so that a wrong result is an error and never a quiet one.

Sources: Martin 1979 (range coding); Bamler 2022 (constriction), arXiv:2201.01741.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quintet.core.codec import Codec
from quintet.core.errors import DataError, UsageError
from quintet.core.model import HasCode, Model
from quintet.core.rng import CHUNK
from quintet.core.threads import using_threads

if TYPE_CHECKING:
    from constriction.stream.queue import RangeDecoder, RangeEncoder

MAGIC = b"QTZ1"
HASH, CHECK = 16, 8  # bytes of the model's hash and of the content's checksum
MOST_NUMBERS = 2**22  # probabilities of one step at most: batch times levels
PARTS = ("train", "validation", "judge", "test")

Labels = Mapping[str, NDArray[np.int64]]


@dataclass(frozen=True)
class Head:
    """What a file says of itself.

    Attributes:
        model: its hash.
        check: checksum of the examples and labels.
        parts: how many examples of train, validation, judge and test, in that order.
        batch, threads: of the encoder; the decoder takes the same.
        itemsize: bytes of an integer of the examples.
        labelled: whether labels are coded too.
        label_bytes, value_bytes: of the two streams that follow, labels first.
        versions: of constriction and torch.
        run: where the model was, as it was given.
    """

    model: bytes
    check: bytes
    parts: tuple[int, int, int, int]
    batch: int
    threads: int
    itemsize: int
    labelled: bool
    label_bytes: int
    value_bytes: int
    versions: str
    run: str

    @property
    def count(self) -> int:
        return sum(self.parts)


@dataclass(frozen=True)
class Compressed:
    """A compressed set of examples.

    Attributes:
        data: the file.
        head: what its head says.
        dims: values an example.
        model_bits: what the model's probabilities of the values come to, in bits.
    """

    data: bytes
    head: Head
    dims: int
    model_bits: float

    @property
    def values_per_dim(self) -> float:
        """Bits per value of the values' stream alone, given the labels."""
        return 8 * self.head.value_bytes / (self.head.count * self.dims)

    @property
    def bits_per_dim(self) -> float:
        """Bits per value of the whole file: head, labels and values."""
        return 8 * len(self.data) / (self.head.count * self.dims)


def fingerprint(model: Model[Any], codec: Codec, config: Any) -> bytes:
    """A hash of a trained model: its config as JSON, and every tensor of model and codec."""
    digest = hashlib.blake2b(json.dumps(config, sort_keys=True, default=str).encode(), digest_size=HASH)
    for part in (model, codec):
        for name, tensor in sorted(part.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.digest()


def compress(
    model: Model[Any],
    codec: Codec,
    x: NDArray[Any],
    labels: Labels,
    *,
    identity: bytes,
    parts: tuple[int, int, int, int] | None = None,
    batch: int = CHUNK,
    run: str = "",
) -> Compressed:
    """Code examples with a model's own probabilities.

    Args:
        model: with HasCode; its codec must give raw data back exactly.
        x: (N, *raw.shape) integers.
        labels: condition name -> (N,) for every condition of the model, or {} to code without labels.
        identity: the model's `fingerprint`.
        parts: sizes of the data set's parts in x; by default all are test.
        batch: examples side by side.
        run: a hint for whoever decompresses, stored as it is.
    Raises: UsageError where the model cannot be used so, or constriction is not installed.
    """
    coder = _coder()
    if not isinstance(model, HasCode):
        raise UsageError("compress.no_code", model=type(model).__name__)
    if not len(x):
        raise UsageError("compress.nothing")
    if labels and set(labels) != set(model.spec.conditions):
        raise UsageError("compress.labels", given=", ".join(labels), known=", ".join(model.spec.conditions))
    levels = model.spec.levels
    assert levels is not None
    batch = max(1, min(batch, MOST_NUMBERS // levels))
    label_coder: RangeEncoder = coder.stream.queue.RangeEncoder()
    value_coder: RangeEncoder = coder.stream.queue.RangeEncoder()
    family = coder.stream.model.Categorical(perfect=False)
    for name, values in sorted(labels.items()):
        uniform = np.ones(model.spec.conditions[name] + 1)  # the last one is "no label", -1
        model_of_label = coder.stream.model.Categorical(uniform / uniform.sum(), perfect=False)
        label_coder.encode((values % len(uniform)).astype(np.int32), model_of_label)
    bits = 0.0
    for start in range(0, len(x), batch):
        raw = torch.from_numpy(np.ascontiguousarray(x[start : start + batch]))
        encoded = codec.encode(raw.to(_device(model)))
        if not np.array_equal(codec.decode(encoded).cpu().numpy(), x[start : start + batch]):
            raise UsageError("compress.lossy")
        tokens = model.read(encoded)
        given = {name: values[start : start + batch] for name, values in labels.items()}
        before: Tensor | None = None
        predict = _predict(model, len(raw), given)
        for i in range(tokens.shape[1]):
            probabilities, here = predict(before), tokens[:, i]
            symbols = here.cpu().numpy().astype(np.int32)
            value_coder.encode(symbols, family, probabilities)
            bits -= float(np.log2(np.maximum(probabilities[np.arange(len(symbols)), symbols], 1e-300)).sum())
            before = here
    streams = [_bytes(label_coder) if labels else b"", _bytes(value_coder)]
    head = Head(
        model=identity,
        check=_checksum(x, labels),
        parts=(0, 0, 0, len(x)) if parts is None else parts,
        batch=batch,
        threads=torch.get_num_threads(),
        itemsize=x.dtype.itemsize,
        labelled=bool(labels),
        label_bytes=len(streams[0]),
        value_bytes=len(streams[1]),
        versions=versions(),
        run=run,
    )
    return Compressed(_write_head(head) + b"".join(streams), head, model.spec.dims, bits)


def decompress(
    data: bytes, model: Model[Any], codec: Codec, *, identity: bytes
) -> tuple[NDArray[Any], dict[str, NDArray[np.int64]]]:
    """The way back: (N, *raw.shape) and the labels.

    Args:
        data: a file that `compress` made.
        model, codec, identity: as for `compress`.
    Raises: UsageError if another model wrote the file; DataError if the result is not what went in.
    """
    coder = _coder()
    head, offset = read_head(data)
    if head.model != identity:
        raise UsageError("compress.other_model", file=head.model.hex(), run=identity.hex())
    if not isinstance(model, HasCode):
        raise UsageError("compress.no_code", model=type(model).__name__)
    middle = offset + head.label_bytes
    if len(data) != middle + head.value_bytes:
        raise DataError("compress.cut", size=len(data), expected=middle + head.value_bytes)
    labels: dict[str, NDArray[np.int64]] = {}
    if head.labelled:
        label_coder = _decoder(coder, data[offset:middle])
        for name, classes in sorted(model.spec.conditions.items()):
            uniform = np.ones(classes + 1)
            model_of_label = coder.stream.model.Categorical(uniform / uniform.sum(), perfect=False)
            found = label_coder.decode(model_of_label, head.count).astype(np.int64)
            labels[name] = np.where(found == classes, -1, found)
    value_coder = _decoder(coder, data[middle:])
    family = coder.stream.model.Categorical(perfect=False)
    done = []
    with using_threads(head.threads):
        for start in range(0, head.count, head.batch):
            n = min(head.batch, head.count - start)
            given = {name: values[start : start + n] for name, values in labels.items()}
            columns: list[Tensor] = []
            predict = _predict(model, n, given)
            for _ in range(model.spec.dims):
                symbols = value_coder.decode(family, predict(columns[-1] if columns else None))
                columns.append(torch.from_numpy(symbols.astype(np.int64)).to(_device(model)))
            raw = codec.decode(model.place(torch.stack(columns, 1))).cpu().numpy()
            done.append(raw.astype(np.dtype(f"u{head.itemsize}")))
    x = np.concatenate(done)
    if _checksum(x, labels) != head.check:
        raise DataError("compress.differs", then=head.versions, now=versions(), threads=head.threads)
    return x, labels


def read_head(data: bytes) -> tuple[Head, int]:
    """The head and where the streams begin.

    Raises: DataError for a file of another kind.
    """
    if data[: len(MAGIC)] != MAGIC or len(data) < len(MAGIC) + HASH + CHECK:
        raise DataError("compress.no_file")
    at = len(MAGIC) + HASH
    model, check = data[len(MAGIC) : at], data[at : at + CHECK]
    try:
        numbers, at = _read_numbers(data, at + CHECK, 12)
        versions_end, run_end = at + numbers[10], at + numbers[10] + numbers[11]
        texts = data[at:versions_end].decode(), data[versions_end:run_end].decode()
    except (IndexError, UnicodeDecodeError) as error:
        raise DataError("compress.no_file") from error
    parts = (numbers[0], numbers[1], numbers[2], numbers[3])
    batch, threads, itemsize, labelled, label_bytes, value_bytes = numbers[4:10]
    head = Head(model, check, parts, batch, threads, itemsize, bool(labelled), label_bytes, value_bytes, *texts)
    if not head.count or not batch or not threads or itemsize not in (1, 2, 4, 8):
        raise DataError("compress.no_file")
    return head, run_end


def versions() -> str:
    """Of what the bits depend on."""
    return f"constriction {metadata.version('constriction')}, torch {metadata.version('torch')}"


def _write_head(head: Head) -> bytes:
    texts = head.versions.encode(), head.run.encode()
    numbers = [
        *head.parts, head.batch, head.threads, head.itemsize, int(head.labelled), head.label_bytes, head.value_bytes,
        *map(len, texts),
    ]  # fmt: skip
    return MAGIC + head.model + head.check + b"".join(_number(n) for n in numbers) + b"".join(texts)


def _number(n: int) -> bytes:
    """Seven bits a byte, the lowest first; the top bit says that more follow (LEB128)."""
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    out.append(n)
    return bytes(out)


def _read_numbers(data: bytes, at: int, count: int) -> tuple[list[int], int]:
    found = []
    for _ in range(count):
        value = shift = 0
        while True:
            byte = data[at]
            value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
            if byte < 128:
                break
        found.append(value)
    return found, at


def _predict(model: Any, n: int, labels: Labels) -> Any:
    """The values (n,) just before, None at first -> probabilities (n, levels) float64 of the next."""
    device = _device(model)
    model.eval()
    cond = {name: torch.from_numpy(np.ascontiguousarray(values)).to(device) for name, values in labels.items()}
    with torch.no_grad():
        following = model.following(n, cond, 1.0)

    def predict(before: Tensor | None) -> NDArray[np.float64]:
        with torch.no_grad():
            logits = following(before)
        probabilities: NDArray[np.float64] = logits.double().softmax(-1).cpu().numpy()
        if not math.isfinite(float(probabilities.sum())):
            raise UsageError("compress.not_finite")
        return probabilities

    return predict


def _checksum(x: NDArray[Any], labels: Labels) -> bytes:
    digest = hashlib.blake2b(digest_size=CHECK)
    for name, values in (("", x), *sorted(labels.items())):
        digest.update(f"{name} {values.dtype.itemsize} {values.shape}\n".encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.digest()


def _bytes(coder: RangeEncoder) -> bytes:
    return bytes(coder.get_compressed().astype("<u4").tobytes())


def _decoder(coder: Any, data: bytes) -> RangeDecoder:
    decoder: RangeDecoder = coder.stream.queue.RangeDecoder(np.frombuffer(data, "<u4").astype(np.uint32))
    return decoder


def _coder() -> Any:
    """The library, imported where it is used: it is an extra."""
    try:
        import constriction
    except ImportError as error:
        raise UsageError("compress.no_constriction") from error
    return constriction


def _device(model: Any) -> torch.device:
    device: torch.device = next(model.parameters()).device
    return device
