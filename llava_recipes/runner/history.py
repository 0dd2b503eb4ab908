"""history.jsonl of a run folder: one line for each time that the run was started, resumed or extended."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import JsonValue

from llava_recipes.files import open_ordinary, sync_folder
from llava_recipes.runner.changes import Change
from llava_recipes.runner.results import check_place

HISTORY = "history.jsonl"

Event: TypeAlias = Literal["start", "restart", "resume", "extend"]
"""`restart` takes over a folder in which nothing was trained; `extend` goes on after a finished run."""
Values: TypeAlias = dict[str, JsonValue]


def entry(
    event: Event,
    *,
    run: str,
    step: int,
    changes: Sequence[Change],
    inputs: Sequence[str],
    accepted: Sequence[str],
    world_size: int,
    environment: dict[str, object],
    plan_before: Values | None,
    done_before: Values | None,
) -> dict[str, object]:
    """One line of the history.

    run          the name that the run's checkpoints carry
    inputs       data and weights that were changed since the run was started, and accepted
    plan_before  the plan that this start replaces; None where it stays
    done_before  what the DONE of the run said that this start extends
    """
    return {
        "time": datetime.now(UTC).isoformat(),
        "event": event,
        "run": run,
        "step": step,
        "changes": [change.to_json() for change in changes],
        **({"inputs": list(inputs)} if inputs else {}),
        "accepted": list(accepted),
        "world_size": world_size,
        "host": socket.gethostname(),
        "command": environment.get("command"),
        "versions": {"llava_recipes": environment.get("llava_recipes"), **_packages(environment)},
        **({} if plan_before is None else {"plan_before": plan_before}),
        **({} if done_before is None else {"done_before": done_before}),
    }


def _packages(environment: dict[str, object]) -> dict[str, object]:
    packages = environment.get("packages")
    return packages if isinstance(packages, dict) else {}


def append(folder: Path, line: dict[str, object]) -> None:
    """Add a line, flushed to the disk. What an earlier kill left of a line stays a line of its own."""
    path = folder / HISTORY
    check_place(path)
    text = json.dumps(line, default=str) + "\n"
    with path.open("ab+") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                text = "\n" + text
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())
    sync_folder(folder)


def read_history(folder: Path) -> list[Values]:
    """The lines of a run's history, without those that a kill cut short; empty where there is none."""
    path = folder / HISTORY
    check_place(path)
    if not path.exists():
        return []
    with open_ordinary(path) as opened:
        text = opened.read().decode("utf-8", errors="replace")
    found: list[Values] = []
    for line in text.split("\n"):
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(values, dict):
            found.append(values)
    return found


def run_of(folder: Path) -> str | None:
    """The name of the run in a folder; None where its history is gone, or an earlier version wrote it."""
    names = (line.get("run") for line in reversed(read_history(folder)))
    return next((name for name in names if isinstance(name, str)), None)


def accepted_before(folder: Path) -> set[str]:
    """What `--accept` has named for this run: the same command may be run again, as a scheduler does."""
    lists = (line.get("accepted") for line in read_history(folder))
    return {str(key) for keys in lists if isinstance(keys, list) for key in keys}
