"""Files of torch.save, read as tensors and plain values: what else they name is code, and never runs."""

from __future__ import annotations

import contextlib
import os
import pathlib
import pickle
import re
import warnings
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch

SafeGlobal = tuple[Callable[..., Any], str]
"""What stands for a name in a file, and the name: `numpy.dtype`."""

_NAMED = re.compile(r"GLOBAL (\S{1,80})|got <(?:class|function) '?([^'> ]{1,80})")
_PROTOCOL = b"\x80"
"""What a pickle begins with; what is torch's own begins otherwise, or says what it names."""
_DETAIL = "WeightsUnpickler error: "
_FORCED, _FORCED_OFF = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


class BadPickle(Exception):
    """A file that is not read. Says why, as what follows the file's name."""


class HoldsCode(BadPickle):
    """A file that asks for more than tensors and plain values."""


def load_plain(file: pathlib.Path, safe: Collection[SafeGlobal] = ()) -> object:
    """Tensors and plain values of a file of torch.save, on the CPU; tensors are mapped where they can be.

    Raises BadPickle when the file is damaged or isn't one, HoldsCode when it names what isn't in `safe`.
    """
    try:
        with torch.serialization.safe_globals([*safe]), warnings.catch_warnings():
            # Of a foreign pickle's protocol, and of TorchScript: what follows is an error of ours.
            warnings.simplefilter("ignore")
            return _load(file)
    except MemoryError:
        raise
    # A damaged pickle makes the unpickler fail in whatever way its bytes ask for.
    except Exception as error:
        raise _explained(error, file) from error


def _explained(error: Exception, file: pathlib.Path) -> BadPickle:
    text = str(error).strip()
    if isinstance(error, pickle.UnpicklingError):
        named = _NAMED.search(text.rpartition(_DETAIL)[2])
        if named:
            return HoldsCode(f"names {named.group(1) or named.group(2)}, which could run code")
        with file.open("rb") as opened:
            if opened.read(1) == _PROTOCOL:
                return HoldsCode("is a pickle of more than tensors and plain values, which could run code")
    elif isinstance(error, RuntimeError) and "weights_only=True" in text:
        # TorchScript's archives, and the tar files of the first versions.
        return HoldsCode("is in a format that can run code")
    elif isinstance(error, OSError | RuntimeError) and text:
        # torch's own words; its advice comes behind the first sentence.
        return BadPickle(f"cannot be read: {text.splitlines()[0].partition('. ')[0]}")
    return BadPickle("cannot be read: it is not a file of torch.save, or it is damaged")


def _load(file: pathlib.Path) -> object:
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        # The format before torch 1.6 cannot be mapped.
        if "mmap can only be used" not in str(error):
            raise
        return torch.load(file, map_location="cpu", weights_only=True)


@contextlib.contextmanager
def only_plain(safe: Collection[SafeGlobal] = ()) -> Iterator[None]:
    """Let every torch.load of the block read tensors, plain values and `safe` alone, whatever it asks for."""
    before = {name: os.environ.pop(name, None) for name in (_FORCED, _FORCED_OFF)}
    # torch's own switch reaches the loads of other libraries, which cannot be passed an argument.
    os.environ[_FORCED] = "1"
    try:
        with torch.serialization.safe_globals([*safe]):
            yield
    finally:
        del os.environ[_FORCED]
        os.environ.update({name: value for name, value in before.items() if value is not None})
