"""Size and SHA-256 of files that a run wrote or read, and what has changed since they were recorded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from llava_recipes.files import open_ordinary


@dataclass(frozen=True)
class FileSeal:
    """What a file was when it was recorded."""

    num_bytes: int
    sha256: str

    def to_json(self) -> dict[str, int | str]:
        return {"bytes": self.num_bytes, "sha256": self.sha256}


def seal_of(path: Path) -> FileSeal:
    """The seal of an ordinary file as it is now. Raises OSError where it cannot be read."""
    return FileSeal(path.stat().st_size, sha256_of(path))


def sha256_of(path: Path) -> str:
    """SHA-256 of an ordinary file, in hexadecimal. Raises OSError where it cannot be read."""
    with open_ordinary(path) as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()  # type: ignore[arg-type]  # a buffered reader


def write_seals(folder: Path, names: Iterable[str]) -> dict[str, dict[str, int | str]]:
    """The seals of files in a folder, by name, as JSON has them."""
    return {name: seal_of(folder / name).to_json() for name in names}


def read_seals(values: object) -> dict[str, FileSeal]:
    """Seals from JSON, by name. Raises ValueError where they are damaged."""
    if not isinstance(values, dict):
        raise ValueError("the list of files is not a mapping")
    seals = {}
    for name, facts in values.items():
        size, digest = (facts.get("bytes"), facts.get("sha256")) if isinstance(facts, dict) else (None, None)
        if not isinstance(size, int) or isinstance(size, bool) or not isinstance(digest, str):
            raise ValueError(f"the entry of {name} is not a size and a SHA-256")
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ValueError(f"it names {name}, which is outside the folder")
        seals[name] = FileSeal(size, digest)
    return seals


def find_changes(folder: Path, seals: Mapping[str, FileSeal]) -> Iterator[str]:
    """What is wrong with each file that is not as it was recorded, in a few words; sizes are compared first.

    Raises OSError where a file cannot be read.
    """
    for name, seal in seals.items():
        path = folder / name
        if not path.is_file():
            yield f"{name} is missing"
        elif path.stat().st_size != seal.num_bytes:
            yield f"{name} has {path.stat().st_size:,} bytes instead of {seal.num_bytes:,}"
        elif sha256_of(path) != seal.sha256:
            yield f"{name} was changed after it was saved"
