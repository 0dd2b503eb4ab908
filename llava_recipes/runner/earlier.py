"""What another run was started from: its weights stand on those of the runs before it."""

from __future__ import annotations

import json
from pathlib import Path

from llava_recipes.plan.compile import Earlier
from llava_recipes.runner.artifacts import PLAN, started_in

ALL_BUT_THE_TOWER = frozenset({"projector", "language_model", "lm_head"})


def read_earlier(folder: Path) -> Earlier:
    """The folders whose weights lie under those of a run, the oldest first, as seen from here.

    Empty for what is no run of ours; its plan is checked when its weights are looked at.
    """
    try:
        plan = json.loads((folder / PLAN).read_text("utf-8"))
        (stage,) = plan["stages"]
        started = [str(each) for each in stage["starts_from"]]
        output_dir, trained = str(stage["output_dir"]), set(stage["trainable_modules"] or ())
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return Earlier((), ())
    found: list[str] = []
    missing: list[str] = []
    for each in started:
        place = _seen_from_here(Path(each), folder, output_dir)
        # A run that trained all of it itself stands alone, whatever became of the folder before it.
        gone = not place.exists() and trained >= ALL_BUT_THE_TOWER
        (missing if gone else found).append(str(place))
    return Earlier(tuple(found), tuple(missing))


def _seen_from_here(path: Path, folder: Path, output_dir: str) -> Path:
    """A path of a run's plan, which starts where the run was started: told by the run's own path."""
    start = None if path.is_absolute() or path.exists() else started_in(folder, output_dir)
    return start / path if start is not None and (start / path).exists() else path
