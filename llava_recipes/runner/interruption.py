"""What asks the command `run` to stop: a signal, its training processes, or the time that it was given."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from llava_recipes.interpreter import is_own_process
from llava_recipes.stop_signals import OF_OTHERS, let_through, wanted_signals

_REPEATED_AFTER_S = 1.0
"""Schedulers and shells send one request as several signals, to every process; a person takes longer."""


class Interruption:
    """Receives the stop signals for the time of a block.

    The first one asks to save and stop, a later one of its kind to end at once. `max_time_s` counts from the
    beginning.
    """

    def __init__(self, *, max_time_s: float | None = None) -> None:
        self.reason: str | None = None
        """Why to stop: the name of a signal or of an option; None as long as nothing asks."""
        self.is_repeated = False
        self.is_pointless = False
        """Whether training processes must end because those of another command have failed."""
        self._first_s: dict[str, float] = {}
        self._raises = False
        self._has_processes = False
        self._deadline_s = None if max_time_s is None else time.monotonic() + max_time_s
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> Interruption:
        self._before = {number: signal.signal(number, self._note) for number in wanted_signals()}
        if is_own_process():
            # A parent that ignores the end of its children, or holds signals back, passes that on.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            let_through()
        return self

    def __exit__(self, *error: object) -> None:
        # Late signals must not end the process with another exit code than the one that it has.
        is_last = is_own_process()
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_IGN if is_last else handler)  # type: ignore[arg-type]

    @contextmanager
    def ending_at_once(self) -> Iterator[None]:
        """Raise KeyboardInterrupt at the first signal of a block, in which there is nothing to save."""
        self._raises = True
        try:
            if self.reason is not None:
                raise KeyboardInterrupt
            yield
        except Exception as error:
            if not self._raises:
                # Code that was not written in Python may turn an interruption into an error of its own,
                raise KeyboardInterrupt from error
            raise
        else:
            if not self._raises:
                # or forget it.
                raise KeyboardInterrupt
        finally:
            self._raises = False

    @contextmanager
    def ending_processes_first(self) -> Iterator[None]:
        """For a block in which training processes run: at a second signal they are ended first.

        Elsewhere, as while files are hashed, it raises KeyboardInterrupt.
        """
        self._has_processes = True
        try:
            yield
        finally:
            self._has_processes = False

    def ask(self, reason: str) -> None:
        """Ask to save and stop. The first reason counts that is one."""
        if self.reason in (None, OF_OTHERS):
            self.reason = reason

    def leave_time_to_others(self) -> None:
        """Another command's clock decides when the time is over."""
        self._deadline_s = None

    def seconds_left(self) -> float | None:
        """What is left of the time that the command was given; None without a limit."""
        if self._deadline_s is None:
            return None
        left_s = self._deadline_s - time.monotonic()
        if left_s <= 0:
            self.ask("--max-time")
        return max(0.0, left_s)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now_s = time.monotonic()
        # Schedulers warn with SIGUSR1 before a time is over: SIGTERM at its end must not cut the save short.
        kind = "warning" if number == signal.SIGUSR1 else "request"
        first_s = self._first_s.setdefault(kind, now_s)
        # The kernel sends SIGXCPU every second.
        if now_s - first_s >= _REPEATED_AFTER_S and number != signal.SIGXCPU:
            self.is_repeated = True
        self.ask(signal.Signals(number).name)
        if self._raises or (self.is_repeated and not self._has_processes):
            self._raises = False
            raise KeyboardInterrupt
