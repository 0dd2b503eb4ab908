"""Files of torch.save that would run a command if they were read as they ask to be."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
import warnings
from pathlib import Path

import torch


class Harmful:
    """Makes a file when it is unpickled."""

    def __init__(self, made: Path) -> None:
        self._made = made

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch '{self._made}'",)


def poisoned(made: Path) -> dict[str, bytes]:
    """By format: what makes the file `made` when it is unpickled, among tensors as in an optimizer."""
    state = {"state": {0: {"step": torch.ones(1), "more": [torch.zeros(3), Harmful(made)]}}}
    plain = pickle.dumps(Harmful(made), protocol=2)
    return {
        "zip": _saved(state),
        "legacy": _saved(state, _use_new_zipfile_serialization=False),
        "pickle": plain,
        "newest pickle": pickle.dumps(state),
        "tar": _tar(
            {"sys_info": pickle.dumps({}), **dict.fromkeys(("pickle", "storages", "tensors"), plain)}
        ),
        "torchscript": _scripted(),
        "module": _saved(torch.nn.Linear(2, 2)),
    }


def _saved(value: object, **options: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def _tar(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def _scripted() -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), buffer)
    return buffer.getvalue()
