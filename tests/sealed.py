"""Finished run folders that a test has changed, as if the run had left them so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llava_recipes.runner.results import done_text


def seal_again(run: Path, **facts: Any) -> None:
    """List the files of a run as they are now; keyword arguments replace what DONE says."""
    done = _facts(run)
    (run / "DONE").write_text(done_text(run, done | facts))


def as_of_old(run: Path) -> None:
    """Leave a DONE of an earlier version, which lists no files."""
    (run / "DONE").write_text(json.dumps(_facts(run), indent=2) + "\n")


def _facts(run: Path) -> dict[str, Any]:
    done = json.loads((run / "DONE").read_text())
    return {key: value for key, value in done.items() if key not in ("files", "sha256")}
