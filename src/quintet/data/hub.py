"""Data sets of the Hugging Face hub: their Parquet files are downloaded and read as any others.

`hf:owner/name` takes the Parquet files of the repository, or those that the hub itself makes of it;
`hf:owner/name/config` only those whose path begins with the configuration's name. Nothing else is fetched and no code
of a repository runs. Needs the extra `hf`; files are kept in the hub client's own cache.
"""

from __future__ import annotations

import re
from pathlib import Path

from quintet.core.errors import DataError, UsageError

CONVERTED = "refs/convert/parquet"
"""The branch on which the hub keeps every data set as Parquet."""
PATTERN = re.compile(r"[\w.-]+/[\w.-]+(/[\w.-]+)?")


def download(name: str) -> Path:
    """The folder with the Parquet files of `owner/name` or `owner/name/config`.

    Raises: UsageError (exit 2) for another form of name or without the extra; DataError if the hub cannot be reached or
        has no such data set.
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
        client = hub.HfApi()
        for revision in (None, CONVERTED):
            files = client.list_repo_files(repository, repo_type="dataset", revision=revision)
            wanted = [file for file in files if file.endswith(".parquet") and _inside(file, config)]
            if wanted:
                place = hub.snapshot_download(repository, repo_type="dataset", revision=revision, allow_patterns=wanted)
                folder = Path(place)
                return folder / config[0] if config and (folder / config[0]).is_dir() else folder
    except Exception as error:  # no network, no such repository, no access: the client has an exception for each
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError("data.hub_failed", name=name, why=why) from error
    raise DataError("data.hub_no_parquet", name=name)


def _inside(file: str, config: list[str]) -> bool:
    return not config or file.startswith((f"{config[0]}/", f"data/{config[0]}", config[0]))
