"""Checkpoints that can be trusted: sealed when complete, checked before they are used."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from llava_recipes.files import open_ordinary, write_text

SEAL = "checkpoint.json"
TRAINER_STATE = "trainer_state.json"
UNUSABLE = "checkpoint-unusable"
"""The code of a problem with a checkpoint itself: an older one may do."""

_ALWAYS = ("trained.safetensors", TRAINER_STATE, "scheduler.pt")
_OPTIMIZER, _DEEPSPEED_TAG = "optimizer.pt", "latest"
_LOADED = frozenset([".bin", ".json", ".pt", ".pth", ".safetensors"])
_NAME = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class Checkpoint:
    """A folder `checkpoint-STEP` of a run."""

    folder: Path
    step: int


def list_checkpoints(output_dir: Path) -> list[Checkpoint]:
    """Every checkpoint folder of a run, newest first, sound or not."""
    found = [
        Checkpoint(folder, int(match.group(1)))
        for folder in output_dir.glob("checkpoint-*")
        if folder.is_dir() and (match := _NAME.fullmatch(folder.name))
    ]
    return sorted(found, key=lambda checkpoint: checkpoint.step, reverse=True)


def make_room(folder: Path) -> None:
    """Remove what stands where a checkpoint is saved: one that was passed over, with files of its own."""
    if folder.is_dir() and not folder.is_symlink():
        shutil.rmtree(folder)
    else:
        folder.unlink(missing_ok=True)


def seal(folder: Path, *, step: int, world_size: int) -> None:
    """Write down size and SHA-256 of every file, as the last act of saving."""
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != SEAL
    }
    write_text(folder / SEAL, json.dumps({"step": step, "world_size": world_size, "files": files}, indent=1))


def find_damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint in one sentence, or None when every byte is as it was saved."""
    try:
        recorded = _sealed(folder)
        return _missing(folder, recorded) or next(_changed(folder, recorded), None)
    except OSError as error:
        return f"it cannot be read: {error}"
    except _BadSeal as error:
        return str(error)


class _BadSeal(Exception):
    """Why a seal says nothing of its checkpoint."""


def _sealed(folder: Path) -> dict[str, tuple[int, str]]:
    """Size and SHA-256 of every file that was saved, by its path inside the folder."""
    file = folder / SEAL
    if not file.exists():
        raise _BadSeal(f"it has no {SEAL}: saving was cut short")
    if not file.is_file():
        raise _BadSeal(f"its {SEAL} is not a file")
    try:
        with open_ordinary(file) as opened:
            sealed = json.loads(opened.read())
        files = {name: (facts["bytes"], facts["sha256"]) for name, facts in sealed["files"].items()}
        step = sealed["step"]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise _BadSeal(f"its {SEAL} cannot be read") from None
    if step != int(folder.name.rpartition("-")[2]):
        raise _BadSeal(f"its {SEAL} is that of another step")
    return files


def _missing(folder: Path, recorded: Mapping[str, tuple[int, str]]) -> str | None:
    """What a checkpoint of ours has and this one's seal doesn't name, or the other way round."""
    tag = folder / _DEEPSPEED_TAG
    optimizer = _DEEPSPEED_TAG if tag.exists() or _DEEPSPEED_TAG in recorded else _OPTIMIZER
    for name in (*_ALWAYS, optimizer):
        if name not in recorded:
            return f"its {SEAL} does not name {name}"
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.suffix in _LOADED and name not in recorded and name != SEAL:
            return f"{name} was not saved with it"
    if optimizer == _OPTIMIZER or not tag.is_file():
        return None
    # DeepSpeed takes its files from the folder that this one names, wherever that is.
    with open_ordinary(tag) as opened:
        named = opened.read().decode("utf-8", errors="replace").strip()
    if not any(PurePosixPath(name).parts[0] == named for name in recorded if "/" in name):
        return f"{_DEEPSPEED_TAG} names no folder that was saved with it"
    return None


def _changed(folder: Path, recorded: Mapping[str, tuple[int, str]]) -> Iterator[str]:
    for name, (size, digest) in recorded.items():
        path = folder / name
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            yield f"its {SEAL} names {name}, outside of it"
        elif not path.is_file():
            yield f"{name} is missing"
        elif path.stat().st_size != size:
            yield f"{name} has {path.stat().st_size:,} bytes, {size} were saved"
        elif _sha256(path) != digest:
            yield f"{name} has other content than was saved"


def remove_old(output_dir: Path, *, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints; the newest sound one always stays."""
    checkpoints = [found for found in list_checkpoints(output_dir) if (found.folder / SEAL).is_file()]
    for checkpoint in checkpoints[keep:]:
        shutil.rmtree(checkpoint.folder)


def _sha256(path: Path) -> str:
    with open_ordinary(path) as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()  # type: ignore[arg-type]  # a buffered reader
