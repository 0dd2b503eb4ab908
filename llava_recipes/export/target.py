"""The export's folder, complete or absent, and its files of weights."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from llava_recipes.errors import RecipeError
from llava_recipes.files import give_usual_mode
from llava_recipes.model.checkpoint import not_finite

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")


def check_target(target: Path) -> None:
    """Raise RecipeError unless `target` is absent or an empty folder, in a writable place."""
    hint = "choose another with `-o DIR`"
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise RecipeError.of(f"{target} exists and isn't a folder", code="output-is-not-a-folder", hint=hint)
    if target.is_dir() and any(target.iterdir()):
        names = sorted(entry.name for entry in target.iterdir())
        found = ", ".join(names[:5]) + (f", and {len(names) - 5} more" if len(names) > 5 else "")
        raise RecipeError.of(
            f"the folder {target} is not empty", code="output-not-empty", found=found, hint=hint
        )
    nearest = target.absolute()
    while not nearest.exists():
        nearest = nearest.parent
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise RecipeError.of(
            f"{target} cannot be created",
            code="output-cannot-be-made",
            found=f"{nearest} is not writable",
            hint=hint,
        )


@contextmanager
def new_folder(target: Path, *, num_bytes: int) -> Iterator[Path]:
    """A temporary folder next to `target`, which becomes `target` at the end of the block.

    If the block raises, the folder is removed. Raises RecipeError if `target` is not empty, or if the disk
    has less than `num_bytes` free.
    """
    check_target(target)
    try:
        target.absolute().parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(target.absolute().parent).free
        if free < num_bytes:
            found = f"{free / 2**30:,.1f} GiB free, {num_bytes / 2**30:,.1f} GiB needed"
            raise RecipeError.of(f"the disk of {target} is too full", code="disk-full", found=found)
        temporary = Path(tempfile.mkdtemp(dir=target.absolute().parent, prefix=f".{target.name}."))
    except OSError as error:
        raise RecipeError.of(
            f"{target} cannot be created", code="output-cannot-be-made", found=error.strerror
        ) from None
    try:
        yield temporary
        give_usual_mode(temporary)
        # Replaces an empty folder, and fails for any other.
        try:
            temporary.rename(target)
        except OSError as error:
            message = f"{target} was written to by something else"
            raise RecipeError.of(message, code="output-changed-meanwhile", found=error.strerror) from None
    # safetensors raises the second if the disk is full.
    except (OSError, SafetensorError) as error:
        raise RecipeError.of(
            f"{target} cannot be written", code="output-cannot-be-written", found=str(error)
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@dataclass(frozen=True)
class Piece:
    """A tensor to write: its shape is known before it is read; the writer chooses the dtype."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], Tensor]


def piece_of(name: str, tensor: Tensor) -> Piece:
    """A tensor as it is."""
    return Piece(name, tuple(tensor.shape), lambda: tensor)


def parse_size(text: str) -> int:
    """The bytes of `5GB`, `500MB`, `2GiB`; raises RecipeError for any other format."""
    match = _SIZE.fullmatch(text.strip())
    unit = None if match is None else _UNITS.get(match.group(2).upper())
    if match is None or unit is None or float(match.group(1)) * unit < 1:
        raise RecipeError.of(
            f'"{text}" isn\'t a file size', code="invalid-file-size", hint="write it as 5GB, 500MB or 2GiB"
        )
    return int(float(match.group(1)) * unit)


def num_bytes(pieces: list[Piece], dtype: torch.dtype) -> int:
    """The bytes of all pieces."""
    return sum(_bytes_of(piece, dtype) for piece in pieces)


def write_shards(pieces: list[Piece], folder: Path, *, dtype: torch.dtype, max_bytes: int) -> None:
    """Write `model.safetensors`, or numbered shards and their index if that would be too large."""
    shards: list[list[Piece]] = [[]]
    filled = 0
    for piece in pieces:
        size = _bytes_of(piece, dtype)
        if shards[-1] and filled + size > max_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(piece)
        filled += size
    names = (
        ["model.safetensors"]
        if len(shards) == 1
        else [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    )
    for name, shard in zip(names, shards, strict=True):
        tensors = {piece.name: _as_stored(piece, dtype) for piece in shard}
        save_file(tensors, folder / name, metadata={"format": "pt"})
    if len(shards) > 1:
        weight_map = {piece.name: name for name, shard in zip(names, shards, strict=True) for piece in shard}
        index = {"metadata": {"total_size": num_bytes(pieces, dtype)}, "weight_map": weight_map}
        write_json(index, folder / "model.safetensors.index.json")


def write_json(values: Mapping[str, Any], file: Path, *, sort_keys: bool = False) -> None:
    """Write a JSON file for people and programs to read."""
    file.write_text(json.dumps(values, indent=2, sort_keys=sort_keys, ensure_ascii=False) + "\n", "utf-8")


def _as_stored(piece: Piece, dtype: torch.dtype) -> Tensor:
    tensor = piece.read().detach().to("cpu", dtype).contiguous()
    assert tuple(tensor.shape) == piece.shape, f"{piece.name}: {tuple(tensor.shape)} for {piece.shape}"
    if tensor.is_floating_point() and (trouble := not_finite(tensor)) is not None:
        raise RecipeError.of(
            f"{piece.name} does not fit into {str(dtype).removeprefix('torch.')}",
            code="weights-not-finite",
            found=trouble,
            hint="export in bf16 or fp32: `--dtype bf16`",
        )
    return tensor


def _bytes_of(piece: Piece, dtype: torch.dtype) -> int:
    return int(torch.Size(piece.shape).numel()) * dtype.itemsize
