"""Files that are no annotations: what each kind is, and how its records become JSON or Parquet."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from llava_recipes.recipe.errors import KeyPath, Problem


@dataclass(frozen=True)
class Kind:
    """What a file is, in words with their article, and what to do with it."""

    what: str
    how: str


_RECORDS: Final = "as records with `id`, `image` and `conversations`"
_TABLE: Final = f"write its rows to a JSON list or JSONL file {_RECORDS}"

KINDS: Final[Mapping[str, Kind]] = MappingProxyType(
    {
        "tar": Kind(
            "a tar archive",
            "unpack it with `tar -xf`; the samples of a WebDataset go into one JSON file",
        ),
        "gzip": Kind("compressed with gzip", "unpack it with `gunzip -k`; write the name without `.gz`"),
        "zstd": Kind("compressed with zstd", "unpack it with `unzstd`; write the name without `.zst`"),
        "bzip2": Kind("compressed with bzip2", "unpack it with `bunzip2 -k`; write the name without `.bz2`"),
        "xz": Kind("compressed with xz", "unpack it with `unxz -k`; write the name without `.xz`"),
        "zip": Kind("a zip archive", "unpack it with `unzip`, and write the annotation file in it"),
        "7z": Kind("a 7-Zip archive", "unpack it with `7z x`, and write the annotation file in it"),
        "arrow": Kind(
            "an Arrow file of Hugging Face datasets",
            'convert it: `datasets.Dataset.from_file("FILE").to_parquet("FILE.parquet")` in Python',
        ),
        "saved": Kind(
            "a folder of Hugging Face datasets",
            'convert it: `datasets.load_from_disk("FOLDER").to_parquet("FILE.parquet")` in Python',
        ),
        "csv": Kind("a CSV table", _TABLE),
        "tsv": Kind("a table with tabs", _TABLE),
        "excel": Kind("an Excel workbook", _TABLE),
        "numpy": Kind("a NumPy file", _TABLE),
        "pickle": Kind("a Python pickle", _TABLE),
        "torch": Kind("a file of PyTorch", _TABLE),
        "hdf5": Kind("an HDF5 file", _TABLE),
        "sqlite": Kind("an SQLite database", _TABLE),
        "tfrecord": Kind("a TFRecord file", _TABLE),
        "feather": Kind("a Feather file", "write it as Parquet: `pandas.read_feather` and `to_parquet`"),
        "parquet": Kind("a Parquet file", "give it a name that ends with `.parquet`"),
        "image": Kind("an image", "write its folder as `images:`, and here the file of records"),
        "pdf": Kind("a PDF document", _TABLE),
        "html": Kind("a web page", "download the file itself: a web page came in its place"),
        "xml": Kind("an XML document", _TABLE),
        "lfs": Kind("a pointer of Git LFS", "fetch the file itself with `git lfs pull`"),
        "text": Kind("plain text", f"write a JSON list, or JSONL with one record a line, {_RECORDS}"),
    }
)

_ENDINGS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "gzip": (".gz", ".tgz"),
        "zstd": (".zst", ".zstd"),
        "bzip2": (".bz2",),
        "xz": (".xz",),
        "tar": (".tar",),
        "zip": (".zip",),
        "7z": (".7z",),
        "arrow": (".arrow",),
        "csv": (".csv",),
        "tsv": (".tsv",),
        "excel": (".xlsx", ".xls"),
        "numpy": (".npz", ".npy"),
        "pickle": (".pkl", ".pickle"),
        "torch": (".pt", ".pth"),
        "hdf5": (".h5", ".hdf5"),
        "sqlite": (".sqlite", ".sqlite3"),
        "tfrecord": (".tfrecord", ".tfrecords"),
        "feather": (".feather",),
        "image": (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"),
        "pdf": (".pdf",),
    }
)
# A name with another ending, such as `.txt`, may well be that of JSON; what is in the file decides.


def kind_of_name(name: str) -> str | None:
    """What kind of file a name belongs to that cannot be an annotation file; None for all others."""
    lower = name.lower()
    if lower.endswith((".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")):
        return "tar"
    return next((kind for kind, endings in _ENDINGS.items() if lower.endswith(endings)), None)


def wrong_kind(kind: str, file: str, *, path: KeyPath | None) -> Problem:
    """The problem of a file of such a kind where annotations are wanted."""
    return Problem(
        f"`annotations` is a JSON, JSONL or Parquet file, and this is {KINDS[kind].what}",
        code="annotations-of-another-kind",
        path=path,
        found=json.dumps(file, ensure_ascii=False),
        hint=KINDS[kind].how,
    )
