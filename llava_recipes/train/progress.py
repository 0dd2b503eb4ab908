"""Show a stage while it trains: a start panel, a live bar or plain lines, a summary."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.panel import Panel
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table

from llava_recipes.recipe.scalars import say_number
from llava_recipes.screen import cell, console, guard_redirected, say, shown

_WIDE = 100
"""Columns of a terminal in which a bar has room beside the numbers."""
_ESTIMATE_S = 24 * 3600.0


@dataclass(frozen=True)
class Start:
    """The rows of the start panel, in order."""

    title: str
    rows: tuple[tuple[str, str], ...]
    num_steps: int
    first_step: int


class Reporter:
    """Receives start, logged steps, evaluations, answers, warnings and end; this one prints nothing.

    `abandon` gives the terminal back when training ends with an error.
    """

    def start(self, start: Start) -> None: ...

    def step(self, metrics: dict[str, float]) -> None: ...

    def evaluation(self, metrics: dict[str, float]) -> None: ...

    def sample(self, step: int, image: str, answer: str) -> None: ...

    def warn(self, sentence: str) -> None: ...

    def finish(self, rows: tuple[tuple[str, str], ...]) -> None: ...

    def abandon(self) -> None: ...


class LineReporter(Reporter):
    """Plain lines, for logs and pipes."""

    def __init__(self) -> None:
        self._num_steps = 0

    def start(self, start: Start) -> None:
        self._num_steps = start.num_steps
        say(start.title)
        self.finish(start.rows)

    def step(self, metrics: dict[str, float]) -> None:
        say(
            f"step {metrics['step']:,}/{self._num_steps:,}  loss {metrics['loss']:.4f}  "
            f"lr {say_number(metrics['learning_rate'], digits=4)}  grad {metrics['grad_norm']:.3f}  "
            f"{metrics['samples_per_s']:.1f} samples/s"
        )

    def evaluation(self, metrics: dict[str, float]) -> None:
        say(f"step {metrics['step']:,}/{self._num_steps:,}  {_evaluation_words(metrics)}")

    def sample(self, step: int, image: str, answer: str) -> None:
        say(f"step {step:,}/{self._num_steps:,}  {_sample_words(image, answer)}")

    def warn(self, sentence: str) -> None:
        say(f"warning: {sentence}")

    def finish(self, rows: tuple[tuple[str, str], ...]) -> None:
        for name, value in rows:
            say(f"  {name:<12} {value}")


class Bar(Reporter):
    """A live bar, for terminals."""

    def __init__(self, console: Console) -> None:
        self._console = console
        numbers = "loss {task.fields[loss]}  lr {task.fields[rate]}  {task.fields[speed]} samples/s"
        # Where there is little room the bar goes, then the numbers break into two lines: no digit is cut off.
        is_wide = console.width >= _WIDE
        bar = (TextColumn("[bold]{task.description}"), BarColumn(bar_width=None))
        self._progress = Progress(
            *(bar if is_wide else ()),
            MofNCompleteColumn(),
            TextColumn(numbers, table_column=Column(no_wrap=is_wide)),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=console,
            # Longer than the time between two logged steps, however slow: without two there is no estimate.
            speed_estimate_period=_ESTIMATE_S,
        )
        self._title = ""

    def start(self, start: Start) -> None:
        self._title = start.title
        self._console.print(
            Panel(_grid(start.rows), title=cell(start.title), title_align="left", expand=False)
        )
        self._task = self._progress.add_task(
            "training", total=start.num_steps, completed=start.first_step, loss="–", rate="–", speed="–"
        )
        self._progress.start()
        guard_redirected()

    def step(self, metrics: dict[str, float]) -> None:
        self._progress.update(
            self._task,
            completed=int(metrics["step"]),
            loss=f"{metrics['loss']:.4f}",
            rate=say_number(metrics["learning_rate"], digits=3),
            speed=f"{metrics['samples_per_s']:.1f}",
        )

    def evaluation(self, metrics: dict[str, float]) -> None:
        self._progress.print(f"step {metrics['step']:,}  {_evaluation_words(metrics)}")

    def sample(self, step: int, image: str, answer: str) -> None:
        self._progress.print(shown(f"step {step:,}  {_sample_words(image, answer)}"))

    def warn(self, sentence: str) -> None:
        self._progress.print(shown(f"warning: {sentence}"))

    def finish(self, rows: tuple[tuple[str, str], ...]) -> None:
        self._progress.stop()
        self._console.print(
            Panel(_grid(rows), title=cell(f"{self._title}: {rows[0][0]}"), title_align="left", expand=False)
        )

    def abandon(self) -> None:
        self._progress.stop()


def choose_reporter(*, is_first_process: bool) -> Reporter:
    """The bar on a terminal, plain lines elsewhere, and nothing on processes other than the first."""
    if not is_first_process:
        return Reporter()
    screen = console()
    return Bar(screen) if screen.is_terminal else LineReporter()


def _evaluation_words(metrics: dict[str, float]) -> str:
    num_samples = metrics["eval_samples"]
    samples = "1 sample" if num_samples == 1 else f"{num_samples:,} samples"
    return f"validation loss {metrics['eval_loss']:.4f}  ({samples} in {metrics['eval_seconds']:.1f} s)"


def _sample_words(image: str, answer: str) -> str:
    return f"{image}: {answer}" if answer else f"{image}: (no answer)"


def _grid(rows: tuple[tuple[str, str], ...]) -> Table:
    grid = Table.grid(padding=(0, 2))
    for name, value in rows:
        grid.add_row(cell(name, style="dim"), shown(value))
    return grid
