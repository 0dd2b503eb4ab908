"""A progress bar on standard error; nothing where that is no terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from llava_recipes.screen import console, guard_redirected

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Bar:
    """What is to be done, and how much of it is."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def advance(self, number: int) -> None:
        self._progress.advance(self._task, number)


@contextlib.contextmanager
def progress(name: str, *, total: int, done: int = 0) -> Iterator[Bar]:
    """A bar of `total` things, `done` of them already."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    screen = console(to_stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=screen, disable=not screen.is_terminal) as shown:
        guard_redirected()
        yield Bar(shown, shown.add_task(name, total=total, completed=done))
