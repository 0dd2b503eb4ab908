"""Write safetensors files tensor by tensor, and hash them while they are written."""

from __future__ import annotations

import hashlib
import json
import os
import queue
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from llava_recipes.seals import FileSeal

_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
    torch.bool: "BOOL",
}  # fmt: skip
"""As safetensors names types."""
_PIECE = 16 * 2**20
_FLUSH_EVERY = 8
"""Pieces after which the disk is asked to start writing, so that little is left to wait for at the end."""
_NUM_WAITING = 8


@dataclass(frozen=True)
class TensorSpec:
    """Shape and type of a tensor, known before its values."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def can_store(dtype: torch.dtype) -> bool:
    """Whether safetensors has a name for this type."""
    return dtype in _NAMES


class TensorWriter:
    """One safetensors file whose tensors are written one after the other, in the order of their specs.

    No tensor is kept. Another thread computes the file's SHA-256 meanwhile and flushes the file to the disk;
    `seal` waits for it.
    """

    def __init__(self, path: Path, specs: Mapping[str, TensorSpec]) -> None:
        self._path = path
        self._specs = dict(specs)
        self._waiting = iter(self._specs)
        self._hash = hashlib.sha256()
        self._pieces: queue.Queue[memoryview | None] = queue.Queue(_NUM_WAITING)
        self._num_pieces = self._num_bytes = 0
        self._is_whole = False
        self._failure: OSError | None = None

    def __enter__(self) -> TensorWriter:
        self._file = self._path.open("xb", buffering=0)
        self._thread = threading.Thread(target=self._digest, daemon=True)
        self._thread.start()
        self._put(memoryview(_header(self._specs)))
        return self

    def write(self, name: str, tensor: Tensor) -> None:
        """Write the next tensor. Its values must stay as they are until `seal` is known."""
        expected = next(self._waiting)
        spec = self._specs[name]
        assert name == expected and (tuple(tensor.shape), tensor.dtype) == (spec.shape, spec.dtype), name
        if tensor.numel() == 0:
            return
        flat = tensor.detach().to("cpu").contiguous().view(-1).view(torch.uint8)
        self._put(flat.numpy().data)

    def _put(self, data: memoryview) -> None:
        for start in range(0, len(data), _PIECE):
            piece = data[start : start + _PIECE]
            self._pieces.put(piece)
            rest = piece
            while rest:
                rest = rest[self._file.write(rest) :]
            self._num_bytes += len(piece)
            self._num_pieces += 1
            if self._num_pieces % _FLUSH_EVERY == 0:
                _start_writeback(self._file.fileno(), self._num_bytes)

    def _digest(self) -> None:
        while (piece := self._pieces.get()) is not None:
            self._hash.update(piece)
        try:
            with self._file:
                if self._is_whole:
                    os.fsync(self._file.fileno())
        except OSError as error:
            self._failure = error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_whole = error is None
        self._pieces.put(None)
        if error is not None:
            self._thread.join()
        else:
            assert next(self._waiting, None) is None, "not every tensor was written"

    def seal(self) -> FileSeal:
        """The seal of the whole file, once it is on the disk. Raises OSError where that fails."""
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        return FileSeal(self._num_bytes, self._hash.hexdigest())


def _start_writeback(handle: int, num_bytes: int) -> None:
    """Ask the system to write what it keeps in memory of a file; an advice, which it may ignore."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(handle, 0, num_bytes, os.POSIX_FADV_DONTNEED)


def _header(specs: Mapping[str, TensorSpec]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, spec in specs.items():
        end = offset + spec.num_bytes
        entries[name] = {
            "dtype": _NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    # The values that follow start at a multiple of 8 bytes.
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def in_shards(specs: Mapping[str, TensorSpec], max_bytes: int) -> Iterator[dict[str, TensorSpec]]:
    """The specs in order, in parts of at most `max_bytes`; a larger tensor has a part of its own."""
    part: dict[str, TensorSpec] = {}
    size = 0
    for name, spec in specs.items():
        if part and size + spec.num_bytes > max_bytes:
            yield part
            part, size = {}, 0
        part[name] = spec
        size += spec.num_bytes
    if part:
        yield part
