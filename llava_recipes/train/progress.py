"""Show a stage while it trains: a start panel, a live bar or plain lines, a summary; stop on a signal."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from types import FrameType

import torch
import torch.distributed as dist
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
from rich.table import Table
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llava_recipes.recipe.scalars import say_number
from llava_recipes.screen import cell, console, guard_redirected, say, shown


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
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}  lr {task.fields[rate]}  {task.fields[speed]} samples/s"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=console,
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
            Panel(_grid(rows), title=cell(f"{self._title}: done"), title_align="left", expand=False)
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


class StopOnSignal(TrainerCallback):  # type: ignore[misc]
    """Saves and stops after the current step once any process receives SIGTERM or SIGINT.

    The processes agree by an all-reduce: a signal that reaches only one of them must not leave the others
    waiting.
    """

    def __init__(self) -> None:
        self._has_signal = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._has_signal = True

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> TrainerControl:
        agreed = self._has_signal
        if dist.is_initialized() and dist.get_world_size() > 1:
            flag = torch.tensor(int(agreed), device=args.device)
            # A signal that comes during the all-reduce is for the next step.
            dist.all_reduce(flag, op=dist.ReduceOp.MAX)
            agreed = bool(flag.item())
        if agreed and state.global_step < state.max_steps:
            control.should_save = True
            # The sender of the signal may not wait for an evaluation.
            control.should_evaluate = False
            control.should_training_stop = True
        return control
