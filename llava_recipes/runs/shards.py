"""Weights into safetensors files of a bounded size, one file's tensors in memory at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from llava_recipes.recipe.errors import Problem, RecipeError

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")


@dataclass(frozen=True)
class Piece:
    """A tensor to be written: its shape is known before it is read, its dtype is the writer's."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], Tensor]


def piece_of(name: str, tensor: Tensor) -> Piece:
    """A tensor as it is."""
    return Piece(name, tuple(tensor.shape), lambda: tensor)


def parse_size(text: str) -> int:
    """Bytes of `5GB`, `500MB`, `2GiB`; raises RecipeError for another spelling."""
    match = _SIZE.fullmatch(text.strip())
    unit = None if match is None else _UNITS.get(match.group(2).upper())
    if match is None or unit is None or float(match.group(1)) * unit < 1:
        raise RecipeError(
            Problem(
                f'"{text}" is no size of a file',
                code="invalid-file-size",
                hint="write it as 5GB, 500MB or 2GiB",
            )
        )
    return int(float(match.group(1)) * unit)


def num_bytes(pieces: list[Piece], dtype: torch.dtype) -> int:
    """Bytes that the pieces take in files."""
    return sum(_bytes_of(piece, dtype) for piece in pieces)


def write_shards(pieces: list[Piece], folder: Path, *, dtype: torch.dtype, max_bytes: int) -> None:
    """Write `model.safetensors`, or numbered shards with their index where that would be too large."""
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
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", "utf-8")


def _as_stored(piece: Piece, dtype: torch.dtype) -> Tensor:
    tensor = piece.read().detach().to("cpu", dtype).contiguous()
    assert tuple(tensor.shape) == piece.shape, f"{piece.name}: {tuple(tensor.shape)} for {piece.shape}"
    return tensor


def _bytes_of(piece: Piece, dtype: torch.dtype) -> int:
    return int(torch.Size(piece.shape).numel()) * dtype.itemsize
