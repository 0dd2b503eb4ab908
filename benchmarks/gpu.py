"""Measure and check the package on one NVIDIA card of 80 GB: no network, no model files, eight minutes.

    python benchmarks/gpu.py                  # all parts
    python benchmarks/gpu.py --only a,c --out gpu.jsonl
    python benchmarks/gpu.py --tiny           # the same with small shapes, on the CPU

    a  the card's own speed: a matrix product in bf16
    b  the original's recorded runs, trained again in float32 and bf16: how far the losses are off
    c  Stage-1 steps of LLaVA-1.5 7B and 13B: samples per second, share of (a), memory beside the plan's
    d  Stage-2 steps of 7B with LoRA and QLoRA: the same
    e  `llava-recipe run` with ZeRO-2, stopped, killed and resumed: DONE and the losses of an uncut run

Each task runs in a process of its own and is killed when its time is over. Results are JSON lines, written at
once, and a table at the end, also where Ctrl-C or SIGTERM ends the run. A task whose library isn't installed
is skipped. The exit status is 1 where one failed or took too long, 2 where an argument is wrong, 130 or 143
after a signal.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # The script's own folder comes first otherwise, and its modules are those of a package.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.bounded import Ended, run_bounded
from benchmarks.gpu_table import markdown

Row = dict[str, Any]

ROOT = Path(__file__).resolve().parents[1]
PARTS = "abcde"
MINUTES = 8.0
_LEAST_S = 10.0
"""No task starts with less time left: importing torch takes most of it."""
_NUM_ERROR_LINES = 40
_BASE = (
    *("torch", "transformers", "accelerate", "pydantic", "yaml"),
    *("PIL", "rich", "safetensors", "tokenizers"),
)


@dataclass(frozen=True)
class Task:
    """What one process does. Each of its rows contains the part and `settings`."""

    part: str
    settings: Row
    task: str
    options: Row
    limit_s: float
    needs: tuple[str, ...] = _BASE


MACHINE = Task("machine", {}, "machine", {}, 60, ("torch", "transformers"))


def full_tasks() -> Iterator[Task]:
    """The tasks for a GPU, in order of importance: the last are left out if time is short."""
    yield Task("a", {}, "speed", {"size": 8192, "num_products": 20}, 40, ("torch",))
    yield Task("b", {}, "golden", {}, 120, (*_BASE, "peft"))
    for model in ("7B", "13B"):
        for checkpointing in (True, False):
            yield _steps_task("c", model, "Stage 1", checkpointing, first_batch=32, limit_s=70)
    resumed = {"num_epochs": 60, "save_steps": 60, "stop_after": 30, "farthest": 0.02, "limit_s": 60.0}
    yield _resume_task(resumed, limit_s=140)
    for checkpointing in (True, False):
        for tuning in ("LoRA", "QLoRA"):
            yield _steps_task("d", "7B", tuning, checkpointing, first_batch=16, limit_s=70)


def tiny_tasks() -> Iterator[Task]:
    """The same on a CPU, as small as can be."""
    yield Task("a", {}, "speed", {"size": 256, "num_products": 3}, 300, ("torch",))
    yield Task("b", {}, "golden", {"stage1": ["base"], "stage2": ["lora"]}, 900, (*_BASE, "peft"))
    yield _steps_task("c", "tiny", "Stage 1", True, first_batch=4, limit_s=300)
    yield _steps_task("c", "tiny", "Stage 1", False, first_batch=4, limit_s=300)
    resumed = {"num_epochs": 16, "save_steps": 12, "stop_after": 5, "farthest": 1e-6, "limit_s": 300.0}
    yield _resume_task(resumed, limit_s=900)
    for tuning in ("LoRA", "QLoRA"):
        yield _steps_task("d", "tiny", tuning, True, first_batch=2, limit_s=300)


def _steps_task(
    part: str, model: str, tuning: str, checkpointing: bool, *, first_batch: int, limit_s: float
) -> Task:
    tiny = model == "tiny"
    batches = [first_batch]
    while batches[-1] > 1:
        batches.append(batches[-1] // 2)
    settings: Row = {"model": model, "tuning": tuning, "checkpointing": checkpointing}
    options = {
        **settings,
        "batches": batches[:2] if tiny else batches,
        "num_fits": 2,
        "num_warmup": 1 if tiny else 2,
        "num_steps": 2 if tiny else 5,
        # A step must end before the process is killed.
        "budget_s": limit_s / 2,
    }
    libraries = {"Stage 1": (), "LoRA": ("peft",), "QLoRA": ("peft", "bitsandbytes")}
    return Task(part, settings, "steps", options, limit_s, (*_BASE, *libraries[tuning]))


def _resume_task(options: Row, *, limit_s: float) -> Task:
    settings = {"deepspeed": "zero2"}
    return Task("e", settings, "resume", {**settings, **options}, limit_s, (*_BASE, "deepspeed"))


class Bench:
    """Runs tasks one after another until the time is up."""

    def __init__(
        self, write: Callable[[Row], None], *, until_s: float, tiny: bool, signals: Sequence[int]
    ) -> None:
        self.rows: list[Row] = []
        self._write, self._until_s, self._tiny, self._signals = write, until_s, tiny, signals

    def run(self, task: Task) -> str:
        """Run a task; gives its last row's status: done, skipped, failed, too long or interrupted."""
        labels = {"part": task.part, **task.settings}
        absent = [name for name in task.needs if not is_installed(name)]
        left_s = self._until_s - time.monotonic()
        if absent:
            return self._end(labels, "skipped", why=f"{', '.join(absent)} not installed")
        if left_s < _LEAST_S:
            return self._end(labels, "skipped", why="no time is left")
        limit_s = min(task.limit_s, left_s)
        failed: list[str] = []

        def take(line: str) -> None:
            # A killed task may leave an incomplete line.
            if not line.endswith("\n"):
                return
            row: Row = json.loads(line)
            if row.get("status") == "failed":
                failed.append(row["error"])
            self._add({**labels, **row})

        ended = self._start(task, limit_s, take)
        if ended.code is None and self._signals:
            why = f"by {signal.Signals(self._signals[0]).name}"
            return self._end(labels, "interrupted", why=why, seconds=ended.seconds)
        if ended.code is None:
            why = f"killed after {limit_s:.3g} s"
            return self._end(labels, "too long", why=why, seconds=ended.seconds, errors=_last_lines(ended))
        if ended.code != 0:
            lines = _last_lines(ended)
            why = next((line for line in reversed(lines) if line.strip()), f"exit code {ended.code}")
            return self._end(labels, "failed", why=why, seconds=ended.seconds, errors=lines)
        if failed:
            return self._end(labels, "failed", why="; ".join(failed), seconds=ended.seconds)
        return self._end(labels, "done", seconds=ended.seconds)

    def _start(self, task: Task, limit_s: float, take: Callable[[str], None]) -> Ended:
        argument = json.dumps({"task": task.task, "options": task.options})
        with tempfile.TemporaryDirectory(prefix="gpu-benchmark-") as folder:
            return run_bounded(
                [sys.executable, "-m", "benchmarks.gpu_task", argument],
                # What a killed task leaves behind goes with the folder.
                env={**environment(tiny=self._tiny), "TMPDIR": folder},
                cwd=Path(folder),
                limit_s=limit_s,
                on_line=take,
                has_to_stop=lambda: bool(self._signals),
            )

    def _end(self, labels: Row, status: str, **more: object) -> str:
        self._add({**labels, "event": "ended", "status": status, **more})
        return status

    def _add(self, row: Row) -> None:
        self.rows.append(row)
        self._write(row)


def is_installed(library: str) -> bool:
    return importlib.util.find_spec(library) is not None


def environment(*, tiny: bool) -> dict[str, str]:
    """The environment of a task: this checkout first, no network, and for `--tiny` no card."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    added = {
        "PYTHONPATH": os.pathsep.join(paths),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if tiny:
        added |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    return {**os.environ, **added}


def _last_lines(ended: Ended) -> list[str]:
    return ended.errors.splitlines()[-_NUM_ERROR_LINES:]


def read_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""

    def parts(text: str) -> str:
        chosen = text.replace(",", "")
        if not chosen or set(chosen) - set(PARTS):
            raise argparse.ArgumentTypeError(f"parts are {', '.join(PARTS)}, found {text!r}")
        return chosen

    def minutes(text: str) -> float:
        number = float(text)
        if not (math.isfinite(number) and number > 0):
            raise argparse.ArgumentTypeError(f"a number of minutes above 0 is needed, found {text!r}")
        return number

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", type=parts, default=PARTS, metavar="a,c", help="parts to run (default all)")
    parser.add_argument("--tiny", action="store_true", help="small shapes on the CPU")
    parser.add_argument("--out", type=Path, metavar="FILE", help="add the JSON lines to it too")
    parser.add_argument(
        "--minutes", type=minutes, default=MINUTES, metavar="M", help=f"for all parts (default {MINUTES:g})"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None, *, tasks: Sequence[Task] | None = None) -> int:
    """Run the parts that are asked for; gives the exit status. `tasks` replaces the usual ones."""
    options = read_options(argv)
    until_s = time.monotonic() + 60 * options.minutes
    try:
        out = None if options.out is None else options.out.open("a", encoding="utf-8")
    except OSError as error:
        print(f"gpu.py: --out: {options.out} cannot be written: {error.strerror}", file=sys.stderr)
        return 2

    def write(row: Row) -> None:
        line = json.dumps(row)
        print(line, flush=True)
        if out is not None:
            print(line, file=out, flush=True)

    if tasks is None:
        tasks = (MACHINE, *(tiny_tasks() if options.tiny else full_tasks()))
    statuses: list[str] = []
    with signals_noted() as signals:
        bench = Bench(write, until_s=until_s, tiny=options.tiny, signals=signals)
        try:
            for task in tasks:
                if not signals and (task == MACHINE or task.part in options.only):
                    what = ", ".join([task.part, *(f"{key} {value}" for key, value in task.settings.items())])
                    print(f"gpu.py: {what}: at most {task.limit_s:g} s", file=sys.stderr, flush=True)
                    statuses.append(bench.run(task))
                if not options.tiny and any(row.get("num_devices") == 0 for row in bench.rows):
                    print("torch finds no NVIDIA card here; --tiny runs on the CPU", file=sys.stderr)
                    return 1
        finally:
            # What was measured is shown, whatever ended the run.
            print(f"\n{markdown(bench.rows)}", flush=True)
            if out is not None:
                out.close()
    if signals:
        return 128 + signals[0]
    return int(any(status in ("failed", "too long") for status in statuses))


@contextmanager
def signals_noted() -> Iterator[list[int]]:
    """In the block, Ctrl-C and SIGTERM raise nothing: their numbers are added to the list."""
    noted: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda number, frame: noted.append(number)) for number in numbers]
    try:
        yield noted
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


if __name__ == "__main__":
    raise SystemExit(main())
