"""Stop a training process when it is asked to: save first, where a step is done, and never wait for ever.

Any thread may ask. The processes agree at the end of a step, so that all of them stop after the same one.
Signals must be heard while torch is imported: it is imported where it is needed.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from llava_recipes.stop_signals import OF_OTHERS, STOP_SIGNALS, let_through, wanted_signals

if TYPE_CHECKING:
    import torch

    from llava_recipes.data.reading import Reading

LOADING, DATA, STEP, SAVING, EVALUATION, SAMPLING, RESULTS = (
    "the start of training",
    "the samples of the next step",
    "a step, or another process in it",
    "the checkpoint",
    "the evaluation",
    "the sample answers",
    "the results",
)
"""What a process does, in words that follow "waits for"."""

_NEVER_CUT = (SAVING, RESULTS)
_TICK_S = 0.25
_GRACE_S = 20.0
_TO_UNWIND_S = 5.0
_FLOOR_S = 5.0
_BYTES_PER_S = 200e6
_BYTES_PER_WEIGHT = 12
"""A float32 weight and the two averages of Adam."""


_OF_PEERS = re.compile(
    r"gloo|nccl|\bc10d\b|DistNetworkError|DistStoreError|TCPStore|connection|peer|timed? ?out|broken pipe",
    re.IGNORECASE,
)


def saving_s(num_trainable: int) -> float:
    """About how long a checkpoint takes."""
    return num_trainable * _BYTES_PER_WEIGHT / _BYTES_PER_S


def is_of_peers(error: str) -> bool:
    """Whether an error, or a traceback by its end, only says that another process is gone or silent."""
    return _OF_PEERS.search(error.rpartition("\n  File ")[2]) is not None


class StoppedBeforeStep(BaseException):
    """Unwinds a process that is asked to stop before its first step: nothing is lost with it."""


class EvaluationCut(Exception):
    """An evaluation was left because the run is asked to stop."""


class Stop:
    """Whether this process is asked to stop, why, and what it does about it.

    tell    receives what the command that started this process should know
    say     receives a line for the person who waits for the end
    leave   ends this process at once with all that it has started; called from a thread
    """

    def __init__(
        self,
        *,
        tell: Callable[[dict[str, Any]], None] = lambda message: None,
        say: Callable[[str], None] = lambda line: None,
        leave: Callable[[], None] = lambda: None,
    ) -> None:
        self._tell, self._say, self._leave = tell, say, leave
        self.reason: str | None = None
        self.has_step = False
        """Whether a step was done, so that there is something to save."""
        self.has_agreed = False
        """Whether all processes stop now."""
        self.has_cut_evaluation = False
        self.step = 0
        self._pid = os.getpid()
        self._phase = LOADING
        self._ticks = 0
        self.collective_s = 1800.0
        """How long torch lets processes wait for one another."""
        self.readings: list[Reading] = []
        """What the readers of this process's data sets read."""
        self._has_told = self._has_said = False
        self.is_unwinding = False
        """Whether StoppedBeforeStep was raised, whatever became of it."""
        self._deadline_s: float | None = None
        self._entered_s = self._stepped_s = time.monotonic()
        self._longest_step_s = 0.0
        self._save_s = 0.0
        self._device: torch.device | None = None

    # ---- being asked -------------------------------------------------------------------------------------

    def watch(self, *, seconds_left: float | None = None) -> None:
        """Receive the stop signals, and start the thread that sees to it that this process ends.

        `seconds_left` is for the first process: when they are nearly over, it asks to stop.
        """
        if seconds_left is not None:
            self._deadline_s = time.monotonic() + seconds_left
        # The main thread may sit in a library's code, where it runs no handler: a thread hears of it as well.
        receiver, sender = socket.socketpair()
        sender.setblocking(False)
        signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
        os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
        self._sender = sender
        for target in (lambda: self._hear(receiver), self._see_to_it):
            threading.Thread(target=target, name="stop", daemon=True).start()
        for number in wanted_signals():
            signal.signal(number, self._note)
        let_through()

    def ask(self, reason: str) -> None:
        """Ask this process to stop. The first reason counts."""
        self.reason = self.reason or reason
        if not self._has_told:
            self._has_told = True
            self._tell({"kind": "asked", "reason": self.reason})
        if self.has_step and not self._has_said:
            self._has_said = True
            self._acknowledge()

    def _acknowledge(self) -> None:
        """Say what comes now: a step and a save may take minutes, in which an impatient person asks again."""
        if self.reason not in ("--max-time", *(each.name for each in STOP_SIGNALS)):
            # The others have said it, or are gone.
            return
        does = {SAVING: "finishes the checkpoint", RESULTS: "finishes the results"}
        now = does.get(self._phase, "saves a checkpoint after this step")
        again = "; a second Ctrl-C ends it at once, without saving" if self.reason == "SIGINT" else ""
        self._say(f"asked to stop ({self.reason}): the run {now}, then ends{again}")

    def obey(self, reason: str) -> None:
        """Stop, as the command that started this process asks: it knows already."""
        self._has_told = True
        self.ask(reason)

    def _note(self, number: int, frame: FrameType | None) -> None:
        # A forked process inherits the handler.
        if os.getpid() != self._pid:
            return
        # The thread that hears of the signal too passes it on: a handler cannot wait for a lock.
        self.reason = self.reason or signal.Signals(number).name
        if not self.has_step and not self.is_unwinding and self._phase not in _NEVER_CUT:
            self.is_unwinding = True
            raise StoppedBeforeStep

    def _hear(self, receiver: socket.socket) -> None:
        while numbers := receiver.recv(64):
            for number in numbers:
                if number in STOP_SIGNALS and os.getpid() == self._pid:
                    self.ask(signal.Signals(number).name)

    # ---- progress ----------------------------------------------------------------------------------------

    def enter(self, phase: str) -> str:
        """Say what this process does now; returns what it did before."""
        before, self._phase = self._phase, phase
        self._ticks += 1
        if (before in _NEVER_CUT) != (phase in _NEVER_CUT):
            self._tell({"kind": "saving", "now": phase in _NEVER_CUT})
        self._entered_s = time.monotonic()
        return before

    @contextmanager
    def phase(self, phase: str) -> Iterator[None]:
        """Say what this process does in a block."""
        before = self.enter(phase)
        try:
            yield
        finally:
            self.enter(before)

    def tick(self) -> None:
        """Note that something has advanced."""
        self._ticks += 1

    @property
    def doing(self) -> str:
        """What this process does now."""
        return self._phase

    def progress(self) -> tuple[int, ...]:
        """Changes whenever something has advanced."""
        return self._ticks, *(reading.num_notes() for reading in self.readings)

    def waiting_for(self) -> str:
        """What this process waits for, in words that follow "waits for"."""
        details = [] if self._phase in (STEP, *_NEVER_CUT) else [each.describe() for each in self.readings]
        return ": ".join(filter(None, (self._phase, "; ".join(filter(None, details)))))

    def note_step(self, step: int) -> None:
        """Note that a step is done."""
        step_s = time.monotonic() - (self._stepped_s if self.has_step else self._entered_s)
        # A slow first step counts for less and less.
        self._longest_step_s = max(step_s, 0.9 * self._longest_step_s)
        self.step, self.has_step = step, True

    def note_saved(self) -> None:
        """Note that the checkpoint is written whose phase this process is in."""
        self._save_s = time.monotonic() - self._entered_s

    def expect_save(self, num_trainable: int) -> None:
        """Estimate how long the first checkpoint takes."""
        self._save_s = saving_s(num_trainable)

    # ---- stopping ----------------------------------------------------------------------------------------

    def agree(self, device: torch.device | None = None) -> bool:
        """Whether any process is asked to stop. All must call it.

        device  None for that of the last call
        """
        import torch

        from llava_recipes.model.among_processes import all_reduce_max, num_processes

        self._device = device = device or self._device
        asked = self.reason is not None
        if num_processes() > 1:
            flag = torch.tensor(int(asked), device=device)
            # A request that comes during the all-reduce is for the next step.
            all_reduce_max(flag)
            asked = bool(flag.item())
        if asked:
            self.has_agreed = True
            self.ask(OF_OTHERS)
        self.tick()
        return asked

    def reserve_s(self) -> float:
        """How long before the end of its time a run must be asked to stop."""
        return _FLOOR_S + 1.5 * self._longest_step_s + 1.5 * self._save_s

    def grace_s(self) -> float:
        """How long a process that is asked to stop may do nothing."""
        return max(_GRACE_S, 3 * self._longest_step_s)

    def _see_to_it(self) -> None:
        """End this process when it is asked to stop and does not."""
        idle_s = alive_s = 0.0
        advanced, before_s = self.progress(), time.monotonic()
        while True:
            time.sleep(_TICK_S)
            now_s = time.monotonic()
            # A process that was suspended must not count that time.
            elapsed_s, before_s = min(now_s - before_s, 4 * _TICK_S), now_s
            if self._deadline_s is not None and now_s >= self._deadline_s - self.reserve_s():
                self.ask("--max-time")
            if self.reason is None:
                continue
            alive_s += elapsed_s
            if alive_s >= 1.0:
                alive_s = 0.0
                self._tell({"kind": "alive"})
            has_advanced = advanced != (advanced := self.progress())
            idle_s = 0.0 if has_advanced or self._phase in _NEVER_CUT else idle_s + elapsed_s
            if self._phase in _NEVER_CUT:
                continue
            if not self.has_step:
                if not self.is_unwinding:
                    # The handler runs in the main thread, and unwinds it.
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
                limit_s = _TO_UNWIND_S
            else:
                limit_s = self.grace_s()
            if idle_s >= limit_s:
                self._tell(self.report(waited_for=self.waiting_for() if self.has_step else None))
                self._leave()

    def report(self, *, waited_for: str | None = None, met: str | None = None) -> dict[str, Any]:
        """That this process stops early, for the command that started it.

        waited_for  what did not come
        met         the error by which it noticed that another process is gone
        """
        step = self.step if self.has_step else None
        return {"kind": "stopped", "step": step, "waited_for": waited_for, "met": met}
