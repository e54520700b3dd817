"""`quintet compress` and `quintet decompress`: what the verbs of their names found, in words or as JSON."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from quintet import api
from quintet.cli.main import dump
from quintet.core.errors import DataError
from quintet.core.messages import say


def compress(
    run: str,
    data: str,
    out: Path,
    part: str,
    count: int | None,
    options: list[str] | None,
    quiet: bool,
    as_json: bool,
    lang: str,
) -> None:
    """`quintet compress`."""
    made = api.compress(run, data, out, part=part, count=count, options=options)
    raw = made.head.count * made.dims * made.head.itemsize
    model = made.model_bits / (made.head.count * made.dims)
    if as_json:
        dump({"file": str(out), "count": made.head.count, "bytes": len(made.data), "raw_bytes": raw,
              "bits_per_dim": made.bits_per_dim, "values_bits_per_dim": made.values_per_dim,
              "model_bits_per_dim": model})  # fmt: skip
        return
    text = say("compress.done", lang, count=f"{made.head.count:,}", raw=f"{raw:,}", size=f"{len(made.data):,}",
               bits=made.bits_per_dim, values=made.values_per_dim, model=model, path=out)  # fmt: skip
    Console(quiet=quiet).print(text, highlight=False)


def decompress(file: Path, out: Path, run: str | None, quiet: bool, as_json: bool, lang: str) -> None:
    """`quintet decompress`."""
    try:
        found = api.decompress(file, out, run=run)
    except FileNotFoundError as error:
        raise DataError("compress.absent", path=error.filename) from error
    if as_json:
        dump({"file": str(out), "count": len(found["x"]), "shape": list(found["x"].shape)})
        return
    count = f"{len(found['x']):,}"
    Console(quiet=quiet).print(say("compress.restored", lang, count=count, path=out), highlight=False)
