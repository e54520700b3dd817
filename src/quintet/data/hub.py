"""Data sets of the Hugging Face hub: their Parquet files are downloaded and read as any others.

`hf:owner/name` takes the Parquet files of the repository, or those that the hub itself makes of it;
`hf:owner/name/config` only those of this configuration. Nothing else is fetched and no code of a repository runs.
Needs the extra `hf`; files are kept in the hub client's own cache, and what is there is used where the hub cannot be
reached.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from quintet.core.errors import DataError, UsageError

CONVERTED = "refs/convert/parquet"
"""The branch on which the hub keeps every data set as Parquet."""
REVISIONS = (None, CONVERTED)
PATTERN = re.compile(r"[\w.-]+/[\w.-]+(/[\w.-]+)?")
GATED, UNKNOWN = ("GatedRepoError",), ("RepositoryNotFoundError", "DisabledRepoError", "HFValidationError")
NO_BRANCH = ("RevisionNotFoundError",)
OFFLINE = (
    "OfflineModeIsEnabled", "LocalEntryNotFoundError", "ConnectionError", "ConnectError", "Timeout", "TimeoutException",
    "ProxyError", "NetworkError",
)  # fmt: skip
"""The client's errors by the names of their classes, which stay while the modules they lie in move."""


def download(name: str) -> list[Path]:
    """The Parquet files of `owner/name` or `owner/name/config`, below one folder, which comes first.

    Raises: UsageError (exit 2) for another form of name or without the extra; DataError if the hub cannot be reached
        and nothing is kept, or has no such data set, or gives it only to those who accept its terms.
    """
    if not PATTERN.fullmatch(name) or any(set(part) <= {"."} for part in name.split("/")):
        raise UsageError("data.hub_name", name=name)
    try:
        import huggingface_hub as hub
    except ImportError as error:
        raise UsageError("data.hub_extra", name=name) from error
    owner, title, *config = name.split("/")
    repository = f"{owner}/{title}"
    try:
        return _fetched(hub, repository, config, name)
    except DataError:
        raise
    except Exception as error:  # no network, no such repository, no access: the client has an exception for each
        if _is(error, OFFLINE):
            kept = _kept(hub, repository, config)
            if kept:
                return kept
            raise DataError("data.hub_offline", name=name, why=_one_line(error)) from error
        key = "gated" if _is(error, GATED) else "unknown" if _is(error, UNKNOWN) else "failed"
        raise DataError(f"data.hub_{key}", name=name, repository=repository, why=_one_line(error)) from error


def _fetched(hub: Any, repository: str, config: list[str], name: str) -> list[Path]:
    """Ask the hub for the files, then for what is not kept of them."""
    client = hub.HfApi()
    known: set[str] = set()
    for revision in REVISIONS:
        try:
            listed = client.list_repo_files(repository, repo_type="dataset", revision=revision)
        except Exception as error:
            if _is(error, NO_BRANCH):
                continue
            raise
        files = [file for file in listed if file.endswith(".parquet")]
        known |= _configurations(files)
        wanted = _of(files, config)
        if wanted:
            place = hub.snapshot_download(repository, repo_type="dataset", revision=revision, allow_patterns=wanted)
            return _below(Path(place), wanted)
    if known and config:
        raise DataError("data.hub_config", name=name, known=", ".join(sorted(known)) or "-")
    raise DataError("data.hub_no_parquet", name=name)


def _kept(hub: Any, repository: str, config: list[str]) -> list[Path]:
    """What the client's cache has of it."""
    for revision in REVISIONS:
        try:
            place = Path(
                hub.snapshot_download(repository, repo_type="dataset", revision=revision, local_files_only=True)
            )
        except Exception:  # nothing kept of this branch; the client has several errors for it
            continue
        wanted = _of(sorted(file.relative_to(place).as_posix() for file in place.rglob("*.parquet")), config)
        if wanted:
            return _below(place, wanted)
    return []


def _of(files: list[str], config: list[str]) -> list[str]:
    """The files of a configuration: in the folder of its name, at the top or in `data`, or named after it there.

    Without a configuration: of the one named `default` where there are several folders, else all.
    """
    if config:
        return [file for file in files if config[0] in (_folder(file), _folder(file.removeprefix("data/")))
                or re.match(rf"(data/)?{re.escape(config[0])}[-_.]", file)]  # fmt: skip
    default = [file for file in files if _folder(file) == "default"]
    return default if default and len(_configurations(files)) > 1 else files


def _configurations(files: Iterable[str]) -> set[str]:
    return {_folder(file) for file in files} - {"", "data"}


def _folder(file: str) -> str:
    return file.partition("/")[0] if "/" in file else ""


def _below(place: Path, wanted: list[str]) -> list[Path]:
    tops = {_folder(file) for file in wanted}
    folder = place / tops.pop() if len(tops) == 1 else place
    return [folder, *(place / file for file in wanted)]


def _is(error: BaseException, names: tuple[str, ...]) -> bool:
    """Whether the error, or what it was raised from, is one of these."""
    seen: BaseException | None = error
    while seen is not None:
        if any(cls.__name__ in names for cls in type(seen).__mro__):
            return True
        seen = seen.__cause__
    return False


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
