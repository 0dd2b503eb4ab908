"""Files that others wrote: JSON, what libraries read, code that models name, files that are no annotations.

Whatever is wrong with such a file becomes a problem that names it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from pydantic import JsonValue, ValidationError

from llava_recipes.errors import KeyPath, Problem, RecipeError
from llava_recipes.files import MAX_SETTINGS_BYTES, odd_kind, read_settings, wait_for
from llava_recipes.recipe.scalars import kind_of

_MAY_BE_UNPAIRED = re.compile(r"\\u[dD][89a-fA-F]")
MOST_CHARACTERS = 300
"""Longest message of a library: it may quote the whole file."""
_MOST_SHOWN = 120
_CODE_KEYS = ("auto_map", "custom_pipelines")
"""Keys by which transformers finds classes in files next to the settings, or in another model of the hub."""
_KERNEL_KEYS = ("attn_implementation", "experts_implementation")
"""Keys that choose one of transformers' own kernels by a name, or one of the hub by `owner/name`."""
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf")
_SETTINGS = ("*config*.json", "plan.json")
"""Settings of the model, its tokenizer, its image processor, its adapters; of a run its plan, which contains
those that its recipe writes inline."""


@dataclass(frozen=True)
class Kind:
    """A kind of file that cannot be an annotation file: what it is, and what to do with it."""

    what: str
    how: str


_RECORDS: Final = "as records with `id`, `image` and `conversations`"
_TABLE: Final = f"write its rows to a JSON list or JSONL file {_RECORDS}"

KINDS: Final[Mapping[str, Kind]] = MappingProxyType(
    {
        "tar": Kind(
            "a tar archive",
            "unpack it with `tar -xf`; write the samples of a WebDataset to one JSON file",
        ),
        "gzip": Kind("compressed with gzip", "unpack it with `gunzip -k`; use the name without `.gz`"),
        "zstd": Kind("compressed with zstd", "unpack it with `unzstd`; use the name without `.zst`"),
        "bzip2": Kind("compressed with bzip2", "unpack it with `bunzip2 -k`; use the name without `.bz2`"),
        "xz": Kind("compressed with xz", "unpack it with `unxz -k`; use the name without `.xz`"),
        "zip": Kind("a zip archive", "unpack it with `unzip`, and use the annotation file in it"),
        "7z": Kind("a 7-Zip archive", "unpack it with `7z x`, and use the annotation file in it"),
        "arrow": Kind(
            "an Arrow file of Hugging Face datasets",
            'convert it: `datasets.Dataset.from_file("FILE").to_parquet("FILE.parquet")` in Python',
        ),
        "saved": Kind(
            "a folder of Hugging Face datasets",
            'convert it: `datasets.load_from_disk("FOLDER").to_parquet("FILE.parquet")` in Python',
        ),
        "csv": Kind("a CSV table", _TABLE),
        "tsv": Kind("a TSV table", _TABLE),
        "excel": Kind("an Excel workbook", _TABLE),
        "numpy": Kind("a NumPy file", _TABLE),
        "pickle": Kind("a Python pickle", _TABLE),
        "torch": Kind("a PyTorch file", _TABLE),
        "hdf5": Kind("an HDF5 file", _TABLE),
        "sqlite": Kind("an SQLite database", _TABLE),
        "tfrecord": Kind("a TFRecord file", _TABLE),
        "feather": Kind("a Feather file", "write it as Parquet: `pandas.read_feather` and `to_parquet`"),
        "parquet": Kind("a Parquet file", "rename it so that it ends in `.parquet`"),
        "image": Kind("an image", "write its folder as `images:`, and here the file of records"),
        "pdf": Kind("a PDF document", _TABLE),
        "html": Kind("a web page", "download the file itself; this is a web page instead"),
        "xml": Kind("an XML document", _TABLE),
        "lfs": Kind("a Git LFS pointer", "download the file itself with `git lfs pull`"),
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
# Other endings, such as `.txt`, may be those of JSON files; their content decides.


def read_object(file: Path, *, path: KeyPath | None = None, hint: str | None = None) -> dict[str, JsonValue]:
    """The object in a JSON file; `path` is the recipe path that errors point to.

    Raises RecipeError, with the file and the reason, when it cannot be read or contains something else.
    """
    try:
        text = read_settings(file)
        value = json.loads(text)
        if _MAY_BE_UNPAIRED.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        message, found = f"{file.name} is not valid JSON", f"{file}:{error.lineno}:{error.colno}: {error.msg}"
        code = "not-well-formed-json"
        raise RecipeError.of(message, code=code, path=path, found=found, hint=hint) from error
    except (OSError, ValueError, RecursionError) as error:
        raise unreadable(file, error, path=path, hint=hint) from error
    if not isinstance(value, dict):
        message, found = f"{file.name} must contain a mapping", f"{file} contains {kind_of(value)}"
        raise RecipeError.of(message, code="file-is-not-a-mapping", path=path, found=found, hint=hint)
    return value


@contextmanager
def made_of(file: Path, *, hint: str | None = None) -> Iterator[None]:
    """Turn a ValidationError about the values of a file into a RecipeError with the file and the place."""
    try:
        yield
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        found = f"{file}: {place}: {first['msg']}" if place else f"{file}: {first['msg']}"
        raise _refusal(file, found, hint=hint) from error


def unreadable(
    file: Path, error: Exception, *, path: KeyPath | None = None, hint: str | None = None
) -> RecipeError:
    """The error to raise when a file cannot be read, with the file and a short reason."""
    return _refusal(file, f"{file}: {_reason(error)}", path=path, hint=hint)


def _refusal(file: Path, found: str, *, path: KeyPath | None = None, hint: str | None = None) -> RecipeError:
    message = f"{file.name} cannot be read"
    return RecipeError.of(message, code="file-cannot-be-read", path=path, found=found, hint=hint)


def _reason(error: Exception) -> str:
    """Why reading failed, in one short line."""
    if isinstance(error, UnicodeEncodeError):
        return "an unpaired surrogate (invalid Unicode)"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start:,} is not UTF-8"
    if isinstance(error, RecursionError):
        return "lists or mappings are nested too deeply"
    if isinstance(error, OSError) and error.strerror is not None:
        return error.strerror
    words = str(error).strip()
    first = words.splitlines()[0].strip() if words else ""
    if isinstance(error, KeyError):
        first = f"no key {first}"
    if not first:
        return type(error).__name__
    return first if len(first) <= MOST_CHARACTERS else first[:MOST_CHARACTERS] + " …"


def in_short(value: object) -> str:
    """A value of a file for a message: JSON, cut if it is long."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _MOST_SHOWN else text[:_MOST_SHOWN] + " …"


@contextmanager
def read_by_library(
    message: str,
    *,
    code: str,
    files: Sequence[Path] = (),
    place: str = "",
    path: KeyPath | None = None,
    hint: str | None = None,
) -> Iterator[None]:
    """Turn every exception of the block into a RecipeError with `message`.

    The block must be one call into a library that reads foreign files, or builds something from them, and no
    code of ours: for a damaged file libraries raise Exception, AttributeError, TypeError and worse. What was
    found is the first of `files` that should be JSON and isn't; else `place`, or those of `files` that exist,
    with the library's own message.
    """
    try:
        yield
    except RecipeError:
        raise
    except Exception as error:
        found = _damage_of(files) or f"{place or _spell(files)}: {_reason(error)}"
        raise RecipeError.of(message, code=code, path=path, found=found, hint=hint) from error


def _damage_of(files: Sequence[Path]) -> str | None:
    """What is wrong with the first file that should be a JSON object and isn't."""
    for file in files:
        if file.suffix != ".json" or not file.is_file():
            continue
        try:
            read_object(file)
        except RecipeError as error:
            return error.problems[0].found
    return None


def _spell(files: Sequence[Path]) -> str:
    existing = [file for file in files if file.is_file()] or files
    if len(existing) == 1:
        return str(existing[0])
    return f"{existing[0].parent} ({', '.join(file.name for file in existing)})" if existing else "its files"


def check_model_folder(folder: Path, path: KeyPath) -> None:
    """Raise RecipeError when a folder's settings name code; `path` is the recipe path of the model."""
    problems = tuple(folder_problems(folder, path))
    if problems:
        raise RecipeError(*problems)


def check_settings(values: object, path: KeyPath, *, file: str) -> None:
    """Raise RecipeError when settings that a library fetched name code."""
    problems = tuple(code_problems(values, path, file=file))
    if problems:
        raise RecipeError(*problems)


def folder_problems(folder: Path, path: KeyPath) -> Iterator[Problem]:
    """A problem for each key that names code in the files of settings, and for each that isn't a file."""
    entries = _entries(folder)
    odd = [(entry.path, kind) for entry in entries for kind in [odd_kind(entry.path)] if kind]
    for name, kind in odd:
        yield Problem(
            f"the model's folder contains {kind} instead of a file",
            code="not-an-ordinary-file",
            path=path,
            found=name,
            hint="replace it with a file, or remove it",
        )
    if odd:
        # Another file may refer to it.
        return
    for entry in entries:
        # Weights are not read for every command.
        if not entry.name.endswith(_WEIGHTS):
            wait_for(entry.path)
    for file in _settings_files(folder):
        num_bytes = os.path.getsize(file) if os.path.isfile(file) else 0
        if num_bytes > MAX_SETTINGS_BYTES:
            yield Problem(
                f"the model's {file.name} is too large",
                code="settings-too-large",
                path=path,
                found=f"{file}: {num_bytes:,} bytes; settings have at most {MAX_SETTINGS_BYTES:,}",
                hint="fetch the model again",
            )
        else:
            yield from code_problems(_read(file), path, file=str(file))


def code_problems(values: object, path: KeyPath, *, file: str | None = None) -> Iterator[Problem]:
    """A problem for each key, at any depth, that names code to run.

    values  settings as JSON or YAML gives them
    path    of the settings in the recipe, or of the model that they belong to
    file    that contains the settings; None for settings in the recipe itself
    """
    for key, named in _code_in(values):
        spelled, last = ".".join(map(str, key)), key[-1]
        hint = f"remove `{last}`; a `model_type` that transformers itself has needs no other code"
        if file is not None:
            hint = f"if transformers itself has the `model_type`, remove `{last}` from a copy of the model"
        yield Problem(
            f"`{spelled}` names code to run; this program never runs code that comes with a model",
            code="model-names-code",
            path=path if file is not None else (*path, *key),
            found=in_short(named) if file is None else f"{file}: {in_short(named)}",
            hint=hint,
            on_key=file is None,
        )


def _code_in(values: object) -> Iterator[tuple[KeyPath, object]]:
    """The paths and values of such keys, in the order of the settings."""
    # A list instead of recursion: settings may be nested more deeply than Python can recurse.
    left: list[tuple[KeyPath, object]] = [((), values)]
    while left:
        path, value = left.pop()
        if path and _names_code(path[-1], value):
            yield path, value
        elif isinstance(value, Mapping):
            left += [((*path, str(key)), value[key]) for key in reversed(list(value))]
        elif isinstance(value, list | tuple):
            left += [((*path, index), value[index]) for index in reversed(range(len(value)))]


def _names_code(key: str | int, value: object) -> bool:
    if key in _CODE_KEYS:
        return True
    if not isinstance(key, str) or key.removeprefix("_") not in _KERNEL_KEYS:
        return False
    names = value.values() if isinstance(value, Mapping) else (value,)
    return any(isinstance(name, str) and "/" in name for name in names)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        return sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        # The code that needs the folder reports what is wrong with it.
        return []


def _settings_files(folder: Path) -> list[Path]:
    found = [file for pattern in _SETTINGS for file in sorted(folder.glob(pattern))]
    # Some versions of transformers read these files instead.
    main = _read(folder / "config.json")
    others = main.get("configuration_files") if isinstance(main, dict) else None
    found += [folder / name for name in others if isinstance(name, str)] if isinstance(others, list) else []
    return list(dict.fromkeys(found))


def _read(file: Path) -> object:
    try:
        return json.loads(read_settings(file)) if os.path.isfile(file) else None
    except (OSError, ValueError, RecursionError):
        # The code that needs the file reports what is wrong with it.
        return None


def kind_of_name(name: str) -> str | None:
    """The kind that a file's name says, if it cannot be an annotation file; else None."""
    lower = name.lower()
    if lower.endswith((".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")):
        return "tar"
    return next((kind for kind, endings in _ENDINGS.items() if lower.endswith(endings)), None)


def wrong_kind(kind: str, file: str, *, path: KeyPath | None) -> Problem:
    """The problem of a file of such a kind given as annotations."""
    return Problem(
        f"`annotations` must be a JSON, JSONL or Parquet file; this is {KINDS[kind].what}",
        code="annotations-of-another-kind",
        path=path,
        found=json.dumps(file, ensure_ascii=False),
        hint=KINDS[kind].how,
    )
