"""Checkpoints that can be trusted: sealed when complete, checked before they are used."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from llava_recipes.files import write_text

SEAL = "checkpoint.json"
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
        recorded: dict[str, dict[str, int | str]] = json.loads((folder / SEAL).read_text("utf-8"))["files"]
    except FileNotFoundError:
        return f"it has no {SEAL}: saving was cut short"
    except (ValueError, KeyError, TypeError):
        return f"its {SEAL} cannot be read"
    for name, facts in recorded.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != facts["bytes"]:
            return f"{name} has {path.stat().st_size:,} bytes, {facts['bytes']:,} were saved"
        if _sha256(path) != facts["sha256"]:
            return f"{name} has other content than was saved"
    return None


def remove_old(output_dir: Path, *, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints; the newest sound one always stays."""
    checkpoints = [found for found in list_checkpoints(output_dir) if (found.folder / SEAL).is_file()]
    for checkpoint in checkpoints[keep:]:
        shutil.rmtree(checkpoint.folder)


def _sha256(path: Path) -> str:
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
