"""Annotation files of every kind, behind one face."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from llava_recipes.data.kinds import refuse_other_kinds
from llava_recipes.data.scan import AnnotationFile
from llava_recipes.recipe.errors import Mark


class RecordFile(Protocol):
    """Records of a file, by their place in it; what it keeps in memory is small, and shared when forked.

    With `has_pictures` the pictures themselves may lie in the file.
    """

    path: str
    has_pictures: bool

    def __len__(self) -> int: ...

    @property
    def lengths(self) -> Sequence[int]: ...

    def values(self, index: int) -> dict[str, object]: ...

    def pictures(self, index: int) -> tuple[bytes | None, ...]: ...

    def mark(self, index: int) -> Mark: ...


def open_file(path: str, *, measure: bool = False) -> RecordFile:
    """The records of a JSON, JSONL or Parquet file, of a folder of Parquet files, or of a pattern of them.

    With `measure` the length of each record is taken. Raises RecipeError when it cannot be read as records.
    """
    if not is_parquet(path):
        refuse_other_kinds(path)
        return AnnotationFile(path, measure=measure)
    # Here, since it takes a while to import and few runs need it.
    from llava_recipes.data.parquet import ParquetFiles

    return ParquetFiles(path, measure=measure)


def is_parquet(path: str) -> bool:
    """Whether `annotations` means Parquet."""
    return path.lower().endswith(".parquet") or os.path.isdir(path)


def is_there(path: str) -> bool:
    """Whether there is anything to open."""
    place = Path(path)
    return os.path.exists(path) or ("*" in place.name and any(place.parent.glob(place.name)))
