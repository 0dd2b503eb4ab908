"""Weights on disk, read one tensor at a time: safetensors mapped, or `.bin` files without their code."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

from safetensors import safe_open
from torch import Tensor

from llava_recipes.files import odd_kind
from llava_recipes.model.pickles import BadPickle, HoldsCode, load_plain
from llava_recipes.recipe.errors import KeyPath, Problem, RecipeError
from llava_recipes.recipe.foreign import read_by_library
from llava_recipes.recipe.json_file import read_object
from llava_recipes.recipe.locations import check_place

_CUT_SHORT = "the file is cut short or not a weight file; fetch it again"


class TensorSource(Protocol):
    """Named tensors that are read when asked for."""

    def names(self) -> frozenset[str]: ...

    def read(self, name: str) -> Tensor: ...


class TensorsInMemory:
    """Tensors that are already there, e.g. freshly drawn ones."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = dict(tensors)

    def names(self) -> frozenset[str]:
        return frozenset(self._tensors)

    def read(self, name: str) -> Tensor:
        return self._tensors[name]


class WeightFiles:
    """The weight files of a folder. `read` maps a tensor: its pages are loaded when they are used."""

    def __init__(self, files: Mapping[str, pathlib.Path], path: KeyPath) -> None:
        self._file_of = dict(files)
        self._path = path
        self._open: dict[pathlib.Path, TensorSource] = {}

    def names(self) -> frozenset[str]:
        return frozenset(self._file_of)

    def read(self, name: str) -> Tensor:
        return self._source(name).read(name)

    def open_all(self) -> None:
        """Open every file, which reads its header and no weight. Raises RecipeError where one is damaged."""
        for name in self._file_of:
            self._source(name)

    def _source(self, name: str) -> TensorSource:
        file = self._file_of[name]
        if file not in self._open:
            self._open[file] = open_tensor_file(file, self._path)
        if name not in self._open[file].names():
            raise RecipeError(
                Problem(
                    "this folder's weights are not whole",
                    code="weights-not-whole",
                    path=self._path,
                    found=f"{file} has no {name}",
                    hint="its index names another file; fetch the model again",
                )
            )
        return self._open[file]


class _Safetensors:
    def __init__(self, file: pathlib.Path, path: KeyPath) -> None:
        self._handle = safe_open(str(file), framework="pt")
        self._file, self._path = file, path

    def names(self) -> frozenset[str]:
        return frozenset(self._handle.keys())

    def read(self, name: str) -> Tensor:
        # A type of numbers that torch doesn't have shows now.
        with _reading(self._file, self._path):
            tensor: Tensor = self._handle.get_tensor(name)
            return tensor


def open_tensor_file(file: pathlib.Path, path: KeyPath) -> TensorSource:
    """One `.safetensors` or `.bin` file.

    Raises RecipeError when it is missing, broken, or holds more than tensors.
    """
    kind = odd_kind(file)
    if kind is not None:
        message = f"this is {kind}; weights are an ordinary file"
        raise RecipeError(Problem(message, code="not-an-ordinary-file", path=path, found=str(file)))
    if not os.path.isfile(file):
        raise RecipeError(Problem("no such weight file", code="weights-missing", path=path, found=str(file)))
    if file.suffix == ".safetensors":
        with _reading(file, path):
            return _Safetensors(file, path)
    try:
        return TensorsInMemory(_only_tensors(load_plain(file), file, path))
    except HoldsCode as error:
        hint = "only files of plain tensors are read, since others can run code; save it as .safetensors"
        raise RecipeError(
            Problem(
                "this file holds more than tensors",
                code="weights-contain-code",
                path=path,
                found=f"{file} {error}",
                hint=hint,
            )
        ) from error
    except BadPickle as error:
        raise RecipeError(
            Problem(
                "cannot read weights",
                code="weights-unreadable",
                path=path,
                found=f"{file}: {str(error).removeprefix('cannot be read: ')}",
                hint=_CUT_SHORT,
            )
        ) from error


def _reading(file: pathlib.Path, path: KeyPath) -> AbstractContextManager[None]:
    """What libraries raise in it becomes a problem of this weight file."""
    return read_by_library(
        "cannot read weights", code="weights-unreadable", files=[file], path=path, hint=_CUT_SHORT
    )


def _only_tensors(loaded: object, file: pathlib.Path, path: KeyPath) -> dict[str, Tensor]:
    if isinstance(loaded, dict):
        tensors = {
            name: value
            for name, value in loaded.items()
            if isinstance(name, str) and isinstance(value, Tensor)
        }
        if len(tensors) == len(loaded):
            return tensors
    raise RecipeError(
        Problem(
            "this file is not a mapping of names to tensors",
            code="weights-not-a-state-dict",
            path=path,
            found=str(file),
            hint="give a state dict",
        )
    )


def open_checkpoint(folder: pathlib.Path, path: KeyPath) -> WeightFiles:
    """All tensors of a model folder, single or sharded, safetensors before `.bin`.

    Raises RecipeError when the folder holds no weights, or a shard that its index names is not there.
    """
    for stem, suffix in (("model", ".safetensors"), ("pytorch_model", ".bin")):
        index, single = folder / f"{stem}{suffix}.index.json", folder / f"{stem}{suffix}"
        if index.is_file():
            return WeightFiles(dict(_sharded(index, path)), path)
        if single.is_file():
            names = open_tensor_file(single, path).names()
            return WeightFiles(dict.fromkeys(names, single), path)
    raise RecipeError(
        Problem(
            "this folder holds no weights",
            code="weights-missing",
            path=path,
            found=str(folder),
            hint="expected model.safetensors, pytorch_model.bin, or shards with their .index.json",
        )
    )


def has_weights(folder: pathlib.Path) -> bool:
    """Whether `open_checkpoint` finds weight files in a folder, sound or not."""
    kinds = (("model", ".safetensors"), ("pytorch_model", ".bin"))
    names = (f"{stem}{suffix}{end}" for stem, suffix in kinds for end in ("", ".index.json"))
    return any((folder / name).is_file() for name in names)


def _sharded(index: pathlib.Path, path: KeyPath) -> Iterator[tuple[str, pathlib.Path]]:
    weight_map = read_object(index, path=path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        found = f"{index}: `weight_map` must name the file of each weight"
        raise RecipeError(
            Problem(
                "this index of weight files is broken",
                code="weights-index-damaged",
                path=path,
                found=found,
            )
        )
    for file in weight_map.values():
        check_place(str(file), key="weight_map", file=index)
    shards = {name: index.parent / pathlib.PurePath(str(file)).name for name, file in weight_map.items()}
    missing = sorted({str(file) for file in shards.values() if not file.is_file()})
    if missing:
        raise RecipeError(
            Problem(
                f"{len(missing)} weight file(s) named by {index.name} are missing",
                code="weights-missing",
                path=path,
                found=", ".join(missing[:3]),
                hint="the download is not complete; fetch the model again",
            )
        )
    yield from shards.items()
