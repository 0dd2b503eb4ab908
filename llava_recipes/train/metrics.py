"""metrics.jsonl: one line per logged step, appended while the run trains."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from llava_recipes.errors import Mark, Problem, RecipeError
from llava_recipes.files import naming, open_ordinary, write_text

METRICS, SUPERSEDED, SAMPLES = "metrics.jsonl", "metrics.superseded.jsonl", "samples.jsonl"


@dataclass(frozen=True)
class LoggedStep:
    """A line of the log, with what a resumed run needs of it."""

    text: str
    step: float
    seconds: float
    loss: float | None
    """None in the line of an evaluation."""


class MetricsLog:
    """Appends metrics to a file. A resumed run continues it after the step it resumes from.

    Raises RecipeError, as `read_metrics`, when the existing log is damaged.
    """

    def __init__(self, path: Path, *, resumed_step: int) -> None:
        lines = read_metrics(path)
        kept = [line for line in lines if line.step <= resumed_step]
        if len(kept) < len(lines):
            # These steps are trained again: they leave the log, and are kept in another file.
            aside = path.with_name(SUPERSEDED)
            with naming(aside), aside.open("a", encoding="utf-8") as superseded:
                superseded.writelines(f"{line.text}\n" for line in lines if line.step > resumed_step)
        write_text(path, "".join(f"{line.text}\n" for line in kept))
        self._seconds_before = kept[-1].seconds if kept else 0.0
        self.losses = [line.loss for line in kept if line.loss is not None]
        """The losses logged before."""
        self._measured = {line.step for line in kept if line.loss is None}
        self._path = path

    def append(self, metrics: dict[str, float]) -> None:
        """Write one line. `seconds` counts training time, resumed runs included.

        A validation loss that an earlier process wrote before it was killed is not written again.
        """
        if "eval_loss" in metrics and metrics["step"] in self._measured:
            return
        line = {**metrics, "seconds": round(metrics["seconds"] + self._seconds_before, 3)}
        # JSON has no NaN: a step without a gradient norm has null.
        clean = {
            key: None if isinstance(value, float) and math.isnan(value) else value
            for key, value in line.items()
        }
        with naming(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(clean) + "\n")


def read_metrics(path: Path) -> list[LoggedStep]:
    """The lines of a log; a last line that was cut short by a crash is left out.

    Raises RecipeError with the first line that is damaged.
    """
    if not path.exists():
        return []
    try:
        with open_ordinary(path) as opened:
            text = opened.read().decode("utf-8")
    except (OSError, ValueError) as error:
        raise RecipeError(_damaged(path, 0, str(error))) from None
    lines = []
    for number, line in enumerate(text.split("\n")[:-1], start=1):
        try:
            values = json.loads(line)
            step, seconds = float(values["step"]), float(values["seconds"])
            loss = float(values["loss"]) if "loss" in values else None
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            step = seconds = math.nan
        if not (math.isfinite(step) and math.isfinite(seconds)):
            raise RecipeError(_damaged(path, number, line[:80]))
        lines.append(LoggedStep(line, step, seconds, loss))
    return lines


def _damaged(path: Path, line: int, found: str) -> Problem:
    return Problem(
        f"{path.name} of the run folder is damaged",
        code="run-folder-damaged",
        mark=Mark(str(path), line, 1 if line else 0),
        found=found,
        hint="move it away; `run --resume` then continues from the last checkpoint, with a new log",
    )
