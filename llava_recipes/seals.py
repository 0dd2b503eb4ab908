"""Size and SHA-256 of files that a run wrote or read, and what has changed since they were recorded."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeGuard

from llava_recipes.files import open_ordinary

_OWN_SUM = ',\n  "sha256": "'
_END = '"\n}\n'
_SETTLED_NS = 100_000_000
"""A file that was written shortly before it was read may change again at the same time of its clock."""


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


def known_seal(path: Path) -> FileSeal:
    """As `seal_of`, without reading a file again that this process has read and nobody has changed since."""
    key, found, now_ns = os.path.realpath(path), path.stat(), time.time_ns()
    stamp = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    known = _KNOWN.get(key)
    if known is not None and known[0] == stamp:
        return known[1]
    seal = seal_of(path)
    if now_ns - max(found.st_mtime_ns, found.st_ctime_ns) > _SETTLED_NS:
        _KNOWN[key] = stamp, seal
    return seal


_KNOWN: dict[str, tuple[tuple[int, ...], FileSeal]] = {}


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
        if not _is_size(size) or not isinstance(digest, str):
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
        elif known_seal(path).sha256 != seal.sha256:
            yield f"{name} was changed after it was saved"


def _is_size(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def sealed_text(values: Mapping[str, object]) -> str:
    """JSON of values, with the SHA-256 of the text before it as the last key, `sha256`."""
    if not values or "sha256" in values:
        raise ValueError("a sealed file needs values, and has `sha256` itself")
    text = json.dumps(values, indent=2).removesuffix("\n}")
    return f"{text}{_OWN_SUM}{_sum_of(text)}{_END}"


class NotAsSealed(ValueError):
    """A file was changed after it was sealed."""


def read_sealed(text: str) -> tuple[dict[str, object], bool]:
    """The values in JSON without its own sum, and whether it had one.

    Raises ValueError where the text isn't what `sealed_text` wrote, or is no mapping.
    """
    try:
        values = json.loads(text)
    except RecursionError:
        raise ValueError("too deeply nested") from None
    if not isinstance(values, dict):
        raise ValueError("not a mapping")
    if "sha256" not in values:
        return values, False
    head, _, tail = text.rpartition(_OWN_SUM)
    if tail != f"{_sum_of(head)}{_END}":
        raise NotAsSealed("its contents do not fit its own SHA-256")
    del values["sha256"]
    return values, True


def _sum_of(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
