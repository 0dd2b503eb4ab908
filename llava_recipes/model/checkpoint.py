"""Weights on disk: read one tensor at a time, never with code, and checked to be finite numbers."""

from __future__ import annotations

import os
import pathlib
import pickle
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from itertools import islice
from typing import Protocol

import torch
from safetensors import safe_open
from torch import Tensor

from llava_recipes.errors import KeyPath, Problem, RecipeError
from llava_recipes.files import odd_kind, wait_for
from llava_recipes.recipe.foreign import read_by_library, read_object
from llava_recipes.recipe.locations import check_place

_WEIGHT_FILES = (("model", ".safetensors"), ("pytorch_model", ".bin"))
_CUT_SHORT = "the file is cut short or isn't a weight file; download it again"
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_LARGEST = torch.finfo(torch.float32).max
_NUM_SHOWN = 4
_NAMED = re.compile(r"GLOBAL (\S{1,80})|got <(?:class|function) '?([^'> ]{1,80})")
_PROTOCOL = b"\x80"
"""A pickle's first byte; torch's own files start otherwise, or errors say what they name."""
_DETAIL = "WeightsUnpickler error: "


class BadPickle(Exception):
    """A file is not read. The message says why, to follow the file's name."""


class ContainsCode(BadPickle):
    """A file contains more than tensors and plain values."""


def load_plain(file: pathlib.Path) -> object:
    """Tensors and plain values of a file of torch.save, on the CPU; tensors are mapped where possible.

    Raises BadPickle when the file is damaged or isn't one, ContainsCode when it names anything else.
    """
    try:
        with warnings.catch_warnings():
            # About a foreign pickle's protocol, and TorchScript: our own error follows.
            warnings.simplefilter("ignore")
            return _load(file)
    except MemoryError:
        raise
    # A damaged pickle makes the unpickler fail in any way.
    except Exception as error:
        raise _explained(error, file) from error


def _explained(error: Exception, file: pathlib.Path) -> BadPickle:
    text = str(error).strip()
    if isinstance(error, pickle.UnpicklingError):
        named = _NAMED.search(text.rpartition(_DETAIL)[2])
        if named:
            return ContainsCode(f"names {named.group(1) or named.group(2)}, which could run code")
        with file.open("rb") as opened:
            if opened.read(1) == _PROTOCOL:
                return ContainsCode("is a pickle of more than tensors and plain values, which could run code")
    elif isinstance(error, RuntimeError) and "weights_only=True" in text:
        # TorchScript's archives, and the tar files of the first versions.
        return ContainsCode("is in a format that can run code")
    elif isinstance(error, OSError | RuntimeError) and text:
        # torch's own words; its advice comes after the first sentence.
        return BadPickle(f"cannot be read: {text.splitlines()[0].partition('. ')[0]}")
    return BadPickle("cannot be read: it isn't a file of torch.save, or is damaged")


def _load(file: pathlib.Path) -> object:
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        # The format before torch 1.6 cannot be mapped.
        if "mmap can only be used" not in str(error):
            raise
        return torch.load(file, map_location="cpu", weights_only=True)


class TensorSource(Protocol):
    """Named tensors that are read when asked for."""

    def names(self) -> frozenset[str]: ...

    def read(self, name: str) -> Tensor: ...


class TensorsInMemory:
    """Tensors that are already in memory, such as freshly drawn ones."""

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
        """Open every file: reads headers, no weights. Raises RecipeError when a file is damaged."""
        for name in self._file_of:
            self._source(name)

    def _source(self, name: str) -> TensorSource:
        file = self._file_of[name]
        if file not in self._open:
            self._open[file] = open_tensor_file(file, self._path)
        if name not in self._open[file].names():
            raise RecipeError.of(
                "this folder's weights are incomplete",
                code="weights-not-whole",
                path=self._path,
                found=f"{file} has no {name}",
                hint="its index names another file; download the model again",
            )
        return self._open[file]


class _Safetensors:
    def __init__(self, file: pathlib.Path, path: KeyPath) -> None:
        self._handle = safe_open(str(file), framework="pt")
        self._file, self._path = file, path

    def names(self) -> frozenset[str]:
        return frozenset(self._handle.keys())

    def read(self, name: str) -> Tensor:
        # A number type that torch doesn't have fails only here.
        with _reading(self._file, self._path):
            tensor: Tensor = self._handle.get_tensor(name)
            return tensor


def open_tensor_file(file: pathlib.Path, path: KeyPath) -> TensorSource:
    """One `.safetensors` or `.bin` file.

    Raises RecipeError when it is missing, broken, or contains more than tensors.
    """
    kind = odd_kind(file)
    if kind is not None:
        message = f"this is {kind}; weights must be an ordinary file"
        raise RecipeError.of(message, code="not-an-ordinary-file", path=path, found=str(file))
    if not os.path.isfile(file):
        raise RecipeError.of("no such weight file", code="weights-missing", path=path, found=str(file))
    wait_for(file)
    if file.suffix == ".safetensors":
        with _reading(file, path):
            return _Safetensors(file, path)
    try:
        return TensorsInMemory(_only_tensors(load_plain(file), file, path))
    except ContainsCode as error:
        hint = "only files of plain tensors are read, since others can run code; save it as .safetensors"
        raise RecipeError.of(
            "this file contains more than tensors",
            code="weights-contain-code",
            path=path,
            found=f"{file} {error}",
            hint=hint,
        ) from error
    except BadPickle as error:
        raise RecipeError.of(
            "cannot read weights",
            code="weights-unreadable",
            path=path,
            found=f"{file}: {str(error).removeprefix('cannot be read: ')}",
            hint=_CUT_SHORT,
        ) from error


def _reading(file: pathlib.Path, path: KeyPath) -> AbstractContextManager[None]:
    """Turn what libraries raise in the block into a problem of this weight file."""
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
    raise RecipeError.of(
        "this file isn't a mapping of names to tensors",
        code="weights-not-a-state-dict",
        path=path,
        found=str(file),
        hint="save a state dict",
    )


def open_checkpoint(folder: pathlib.Path, path: KeyPath) -> WeightFiles:
    """All tensors of a model folder, single or sharded, safetensors before `.bin`.

    Raises RecipeError when the folder contains no weights, or a shard that its index names is missing.
    """
    for stem, suffix in _WEIGHT_FILES:
        index, single = folder / f"{stem}{suffix}.index.json", folder / f"{stem}{suffix}"
        if index.is_file():
            return WeightFiles(dict(_sharded(index, path)), path)
        if single.is_file():
            names = open_tensor_file(single, path).names()
            return WeightFiles(dict.fromkeys(names, single), path)
    raise RecipeError.of(
        "this folder contains no weights",
        code="weights-missing",
        path=path,
        found=str(folder),
        hint="expected model.safetensors, pytorch_model.bin, or shards with their .index.json",
    )


def has_weights(folder: pathlib.Path) -> bool:
    """Whether `open_checkpoint` finds weight files in a folder, damaged or not."""
    names = (f"{stem}{suffix}{end}" for stem, suffix in _WEIGHT_FILES for end in ("", ".index.json"))
    return any((folder / name).is_file() for name in names)


def _sharded(index: pathlib.Path, path: KeyPath) -> Iterator[tuple[str, pathlib.Path]]:
    weight_map = read_object(index, path=path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        found = f"{index}: `weight_map` must name the file of each weight"
        raise RecipeError.of(
            "this index of weight files is broken", code="weights-index-damaged", path=path, found=found
        )
    for file in weight_map.values():
        check_place(str(file), key="weight_map", file=index)
    shards = {name: index.parent / pathlib.PurePath(str(file)).name for name, file in weight_map.items()}
    missing = sorted({str(file) for file in shards.values() if not file.is_file()})
    if missing:
        raise RecipeError.of(
            f"{len(missing)} weight file(s) named by {index.name} are missing",
            code="weights-missing",
            path=path,
            found=", ".join(missing[:3]),
            hint="the download is incomplete; download the model again",
        )
    yield from shards.items()


def check_values(tensors: Iterable[tuple[str, Tensor]], *, path: KeyPath, found: str) -> None:
    """Raise RecipeError unless training can start from all of these weights; `found` names their file.

    Every value is read, mapped ones page by page: a gigabyte takes half a second of one CPU core.
    """
    problems = [*value_problems(tensors, path=path, found=found)]
    if problems:
        raise RecipeError(*problems)


def value_problems(tensors: Iterable[tuple[str, Tensor]], *, path: KeyPath, found: str) -> Iterator[Problem]:
    """One problem for weights of another type, and one for values that are not finite."""
    others, odd = [], []
    for name, tensor in tensors:
        kind = _other_kind(tensor)
        if kind is not None:
            others.append(f"{name} is {kind}")
        elif (trouble := not_finite(tensor)) is not None:
            odd.append(f"{name} has {trouble}")
    if others:
        yield Problem(
            f"{len(others)} weight(s) are not floating point",
            code="weights-not-floating-point",
            path=path,
            found=f"{found}: {_shortened(others)}",
            hint="use weights in float16, bfloat16 or float32; quantized ones are not read",
        )
    if odd:
        yield Problem(
            f"{len(odd)} weight(s) contain values that are NaN or infinite",
            code="weights-not-finite",
            path=path,
            found=f"{found}: {_shortened(odd)}",
            hint="the run that wrote them went wrong, or the file is damaged; start from other weights",
        )


def _other_kind(tensor: Tensor) -> str | None:
    if tensor.layout != torch.strided or tensor.device.type == "meta":
        return "not a plain tensor"
    return None if tensor.dtype in _FLOATS else str(tensor.dtype).removeprefix("torch.")


@torch.no_grad()
def not_finite(tensor: Tensor) -> str | None:
    """How many of a tensor's values are NaN or infinite in float32, in words; None where all are finite."""
    if tensor.numel() == 0:
        return None
    # One pass without a copy; one NaN makes both ends NaN.
    lowest, highest = torch.aminmax(tensor)
    if lowest.item() >= -_LARGEST and highest.item() <= _LARGEST:
        return None
    num_nan = int(torch.isnan(tensor).sum())
    beyond = tensor.isinf()
    if tensor.dtype == torch.float64:
        beyond |= tensor.abs() > _LARGEST
    num_infinite = int(beyond.sum())
    counts = [f"{num:,} {what}" for num, what in ((num_nan, "NaN"), (num_infinite, "infinite")) if num]
    return f"{' and '.join(counts)} of {tensor.numel():,} values"


def _shortened(words: list[str]) -> str:
    more = len(words) - _NUM_SHOWN
    return "; ".join(islice(words, _NUM_SHOWN)) + (f"; and {more} more" if more > 0 else "")
