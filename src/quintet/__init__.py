"""Quintet: train, measure and use all five families of generative models on your own data.

    import quintet

    result = quintet.compare("digits", within="10m")
    samples = quintet.load("runs/digits:best").sample(64)

Names are resolved when first used, so that `import quintet` stays fast and does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quintet._version import __version__

if TYPE_CHECKING:
    from quintet.api import (
        advise,
        articles,
        check,
        compare,
        compress,
        decompress,
        demo,
        evaluate,
        load,
        open_dataset,
        recipes,
        sample,
        train,
        write_config,
    )

__all__ = [
    "__version__", "advise", "articles", "check", "compare", "compress", "decompress", "demo", "evaluate", "load",
    "open_dataset", "recipes", "sample", "train", "write_config",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in __all__:
        from quintet import api

        return getattr(api, name)
    raise AttributeError(f"module 'quintet' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
