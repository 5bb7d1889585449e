"""Data in motion: photographs in, training, splats out to Parquet, pictures out of stored splats.

What users take from here: `from pipeline import open_dataset`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.reader import Cat, Cats, open_dataset

__all__ = ["Cat", "Cats", "open_dataset"]


def __getattr__(name: str) -> Any:
    # Only when asked for: processes that import a module of this package for something small need no torch for it.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pipeline import reader

    return getattr(reader, name)
