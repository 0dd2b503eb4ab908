"""metrics.jsonl: one line per logged step, appended as the run goes."""

from __future__ import annotations

import json
import math
from pathlib import Path

from llava_recipes.files import write_text


class MetricsLog:
    """Appends metrics to a file. A resumed run continues it after the step it resumes from."""

    def __init__(self, path: Path, *, resumed_step: int) -> None:
        lines = _read_lines(path)
        kept = [line for line in lines if json.loads(line)["step"] <= resumed_step]
        if len(kept) < len(lines):
            # Steps that will be trained again: out of the log, not out of the world.
            with path.with_name("metrics.superseded.jsonl").open("a", encoding="utf-8") as superseded:
                superseded.writelines(f"{line}\n" for line in lines[len(kept) :])
        write_text(path, "".join(f"{line}\n" for line in kept))
        self._seconds_before = json.loads(kept[-1])["seconds"] if kept else 0.0
        self._path = path

    def append(self, metrics: dict[str, float]) -> None:
        """Write one line. `seconds` counts training time, resumed runs included."""
        line = {**metrics, "seconds": round(metrics["seconds"] + self._seconds_before, 3)}
        # JSON has no NaN: a step without a gradient norm says null.
        clean = {
            key: None if isinstance(value, float) and math.isnan(value) else value
            for key, value in line.items()
        }
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(clean) + "\n")


def _read_lines(path: Path) -> list[str]:
    """Whole lines of the log; a last line that was cut short by a crash is left out."""
    if not path.exists():
        return []
    text = path.read_text("utf-8")
    whole = text[: text.rfind("\n") + 1]
    return whole.splitlines()
