"""What a file is by its first bytes, whatever it is called."""

from __future__ import annotations

import os
from typing import Final

from llava_recipes.files import open_ordinary
from llava_recipes.recipe.annotation_kinds import wrong_kind
from llava_recipes.recipe.errors import RecipeError

_READ_BYTES: Final = 4096
_TAR_MARK: Final = slice(257, 262)

_MAGIC: Final[tuple[tuple[bytes, str], ...]] = (
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"7z\xbc\xaf\x27\x1c", "7z"),
    (b"ARROW1", "arrow"),
    (b"\xff\xff\xff\xff", "arrow"),
    (b"FEA1", "feather"),
    (b"PAR1", "parquet"),
    (b"\x93NUMPY", "numpy"),
    (b"\x89HDF", "hdf5"),
    (b"SQLite format 3\x00", "sqlite"),
    (b"\xd0\xcf\x11\xe0", "excel"),
    (b"\x89PNG", "image"),
    (b"\xff\xd8\xff", "image"),
    (b"GIF8", "image"),
    (b"%PDF", "pdf"),
    (b"version https://git-lfs", "lfs"),
)
# Where a zip file's first entry tells what it is.
_ZIP: Final[tuple[tuple[bytes, str], ...]] = (
    (b"[Content_Types].xml", "excel"),
    (b".npy", "numpy"),
    (b"data.pkl", "torch"),
)


def refuse_other_kinds(path: str) -> None:
    """Raise RecipeError where a file is neither JSON nor JSONL but something that can be named.

    What begins like JSON, or cannot be told, is left to the reader of JSON.
    """
    # Nothing but an ordinary file is opened: reading from another may wait for ever.
    if not os.path.isfile(path):
        return
    try:
        with open_ordinary(path) as file:
            start = file.read(_READ_BYTES)
    except OSError:
        # Why it cannot be read is reported by what reads all of it.
        return
    kind = kind_of_bytes(start)
    if kind is not None:
        raise RecipeError(wrong_kind(kind, path, path=None))


def kind_of_bytes(start: bytes) -> str | None:
    """The kind of a file that begins so; None for what may be JSON."""
    for magic, kind in _MAGIC:
        if start.startswith(magic):
            return kind
    if start.startswith(b"PK\x03\x04"):
        return next((kind for mark, kind in _ZIP if mark in start), "zip")
    if start[_TAR_MARK] == b"ustar":
        return "tar"
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "pickle"
    return _kind_of_text(start)


def _kind_of_text(start: bytes) -> str | None:
    """A page, a document or a table; text of another kind may be JSON with a fault in it."""
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    lower = text[:100].lower()
    if lower.startswith((b"<!doctype html", b"<html")):
        return "html"
    if lower.startswith(b"<"):
        return "xml"
    first = text.split(b"\n", 1)[0].strip()
    if not first or first[:1] in b'[{"' or b"\x00" in text or not _is_text(first):
        return None
    if first.count(b"\t") and all(first.split(b"\t")):
        return "tsv"
    # The head of a table: names alone, without the spaces of a sentence after its commas.
    names = first.split(b",")
    if len(names) > 1 and all(name.strip(b'"').replace(b"_", b"").isalnum() for name in names):
        return "csv"
    return None


def _is_text(line: bytes) -> bool:
    try:
        return line.decode("utf-8").isprintable() or b"\t" in line
    except UnicodeDecodeError:
        return False
