"""Notice that a run hangs, name where, and write the stacks of its processes to the run folder."""

from __future__ import annotations

import faulthandler
import io
import math
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path, PurePath
from types import FrameType

from llava_recipes.data.reading import STATES, process_facts, process_state
from llava_recipes.errors import Problem, RecipeError
from llava_recipes.exit_codes import HANGS
from llava_recipes.files import write_text
from llava_recipes.render import render_problems
from llava_recipes.runner.channel import Channel, Peer
from llava_recipes.runner.descendants import descendants, kill_descendants
from llava_recipes.runner.reports import problems_message
from llava_recipes.screen import say_lines, write_log
from llava_recipes.train.stopping import DATA, LOADING, STEP
from llava_recipes.train.watch import STACKS, START_S, TICK_S, Work

RUN_HANGS = "run-hangs"
"""The problem's code."""
_SILENT_S = 5.0
_TO_START_S = 120.0
"""What Python and torch may need on a busy machine before a process can tell anything."""
_TO_DUMP_S, _TO_WRITE_S, _SPARE_S = 3.0, 10.0, 60.0
_PATH_NAME = re.compile("path|file|folder|dir|opened")
_OPENED = (io.FileIO, io.BufferedReader, io.BufferedWriter, io.BufferedRandom, io.TextIOWrapper)
_PATHS = (PurePath, os.DirEntry)
_LEAST_BYTES = 2**15
"""Less than any chunk that is hashed."""


class RunHangs(RecipeError):
    """A run was ended because nothing in it advanced."""


class HangWatch:
    """The command's look at its training processes, each of which tells every second what it does.

    folder     receives the stacks of a run that hangs
    elsewhere  tells other commands of the run for how long all processes here have been still, and gives the
               same of theirs
    """

    def __init__(
        self,
        channel: Channel,
        *,
        num_processes: int,
        timeout_s: float | None,
        folder: Path,
        elsewhere: Callable[[float], float] = lambda still_s: math.inf,
    ) -> None:
        self._channel, self._num_processes, self._folder = channel, num_processes, folder
        self._elsewhere = elsewhere
        self._start_s = START_S if timeout_s is None else max(timeout_s, _TO_START_S)
        self._missing_s = 0.0
        self._heard: dict[int, tuple[float, float]] = {}
        """By process: when it was heard last, and for how long it has been silent."""

    def has_hung(self, elapsed_s: float) -> bool:
        """Whether the run hangs; then its stacks are written, and the problem is among the messages."""
        problem = self.look(elapsed_s)
        if problem is None:
            return False
        files = self._write_stacks()
        if files:
            where = f"{self._folder}: {', '.join(file.name for file in files)}"
            problem = replace(problem, hint=f"the stacks are in {where}; {problem.hint}")
        self._channel.note(problems_message(RecipeError(problem)))
        return True

    def look(self, elapsed_s: float) -> Problem | None:
        """The problem with a run that hangs; `elapsed_s` is the time since the last look.

        Only the time counts in which this process runs: it and all others may have been suspended.
        """
        if self._channel.num_seen < self._num_processes:
            self._missing_s += elapsed_s
            if self._missing_s >= self._start_s:
                return self._not_started()
        peers = self._channel.ranks()
        for peer in peers:
            heard_s, silent_s = self._heard.get(peer.pid, (peer.heard_s, 0.0))
            self._heard[peer.pid] = peer.heard_s, silent_s + elapsed_s if peer.heard_s == heard_s else 0.0
        elsewhere_s = self._elsewhere(min(map(self._still_s, peers), default=math.inf))
        stuck = [peer for peer in peers if self._is_stuck(peer, peers, elsewhere_s)]
        return self._describe(peers, max(map(self._idle_s, stuck))) if stuck else None

    def _is_stuck(self, peer: Peer, peers: list[Peer], elsewhere_s: float) -> bool:
        """Whether nothing has advanced for too long in a process, nor in those that it may wait for."""
        limit_s = float(peer.status.get("limit_s", self._start_s))
        if self._idle_s(peer) < limit_s:
            return False
        if self._silent_s(peer) or peer.status.get("phase") == DATA:
            return True
        return min([elsewhere_s, *(self._still_s(each) for each in peers if each is not peer)]) >= limit_s

    def _write_stacks(self) -> list[Path]:
        """Write the stacks of each process to `hang-rankN.txt`; gives the files.

        The disk itself may be what hangs: what takes too long is left out.
        """
        peers = self._channel.ranks()
        stacks, written = _collect(peers), []

        def write() -> None:
            for peer in peers:
                text = stacks.get(peer.pid) or "It wrote no stacks, since it does not react.\n"
                file = self._folder / f"hang-rank{peer.rank}.txt"
                with suppress(OSError):
                    write_text(file, f"{self._words(peer)}\n\n{text}")
                    written.append(file)

        in_time(write, _TO_WRITE_S)
        return list(written)

    def _silent_s(self, peer: Peer) -> float:
        silent_s = self._heard[peer.pid][1]
        return silent_s if silent_s >= _SILENT_S else 0.0

    def _still_s(self, peer: Peer) -> float:
        """Since when a process has not got further, even if it computes."""
        return max(self._silent_s(peer), float(peer.status.get("still_s", 0.0)), self._idle_s(peer))

    def _idle_s(self, peer: Peer) -> float:
        return max(self._silent_s(peer), float(peer.status.get("idle_s", 0.0)))

    def _not_started(self) -> Problem:
        seen = self._channel.num_seen
        found = (
            f"{seen} of {self._num_processes} training processes have started" if seen else "none has started"
        )
        return _problem(self._start_s, found)

    def _describe(self, peers: list[Peer], idle_s: float) -> Problem:
        # Those that others wait for come first.
        peers = sorted(peers, key=lambda peer: (not self._silent_s(peer), self._is_in_step(peer), peer.rank))
        return _problem(idle_s, "\n".join(map(self._words, peers)))

    def _is_in_step(self, peer: Peer) -> bool:
        return bool(peer.status.get("phase") == STEP)

    def _words(self, peer: Peer) -> str:
        """What a process does, or that it does not react."""
        who, silent_s = f"rank {peer.rank} (process {peer.pid})", self._silent_s(peer)
        waits_for = str(peer.status.get("waits_for", LOADING))
        if not silent_s:
            return f"{who} waits for {waits_for}"
        state = STATES.get(process_state(peer.pid) or "", "stuck")
        return f"{who} is {state} and does not react; before, it waited for {waits_for}"


def _collect(peers: list[Peer]) -> dict[int, str]:
    files = {
        peer.pid: Path(f"/proc/{peer.pid}/fd/{peer.status['stacks']}")
        for peer in peers
        # Without a handler the signal would end the process.
        if peer.status.get("stacks") is not None
    }
    for pid in files:
        with suppress(ProcessLookupError):
            os.kill(pid, STACKS)
    found: dict[int, str] = {}
    deadline = time.monotonic() + _TO_DUMP_S
    while time.monotonic() < deadline:
        before, found = found, {pid: text for pid, file in files.items() if (text := _read(file))}
        if len(found) == len(files) and found == before:
            break
        time.sleep(0.1)
    return found


def _read(file: Path) -> str:
    try:
        return file.read_text("utf-8", errors="replace")
    except OSError:
        return ""


def in_time(act: Callable[[], object], most_s: float) -> None:
    """Do something that a disk may stop, and go on without it when it takes longer."""
    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    thread.join(most_s)


@contextmanager
def watched(doing: str, timeout_s: float | None) -> Iterator[None]:
    """End this process, the command itself, when it gets no further in a block, as on a dead mount.

    doing  what the block does, in words that follow "the command, which"

    Nothing else can end it: a thread that waits for a disk runs no handler. What it computes, reads and
    writes, and what its children compute, is progress.
    """
    ended, watches = threading.Event(), threading.get_ident()
    thread = threading.Thread(target=_watch, args=(watches, doing, timeout_s, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        # A verdict that has begun is not left half-printed.
        thread.join()


def _watch(thread: int, doing: str, timeout_s: float | None, ended: threading.Event) -> None:
    idle_s, before_s, before, work = 0.0, time.monotonic(), _standing(thread), Work(_LEAST_BYTES)
    limit_s = START_S if timeout_s is None else timeout_s
    try:
        while not ended.wait(TICK_S):
            # For a library that keeps the interpreter's lock while it waits: then only this prints and ends.
            faulthandler.dump_traceback_later(max(limit_s, _TO_START_S) + _SPARE_S, exit=True, file=2)
            now_s = time.monotonic()
            # The time that this process was suspended does not count.
            elapsed_s, before_s = min(now_s - before_s, 2 * TICK_S), now_s
            has_worked, has_moved = work.goes_on(elapsed_s), before != (before := _standing(thread))
            idle_s = 0.0 if has_worked or has_moved else idle_s + elapsed_s
            if idle_s >= limit_s:
                _end_command(f"the command, which {doing}, waits for {_awaited(thread)}", thread, idle_s)
    finally:
        # Left alone, it would end a command that is well.
        faulthandler.cancel_dump_traceback_later()


def _standing(thread: int) -> tuple[object, ...]:
    """Changes with every step of a thread, and with what the processes compute that this one has started."""
    facts = [process_facts(pid) for pid in descendants(os.getpid())]
    computed = sum(int(each[11]) + int(each[12]) for each in facts if each)
    return computed, _awaited(thread), *((each.f_code, each.f_lasti) for each in _frames(thread))


def _frames(thread: int) -> Iterator[FrameType]:
    """What a thread runs, the innermost first."""
    frame = sys._current_frames().get(thread)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _awaited(thread: int) -> str:
    """The file or folder that a thread works on, as its innermost functions name it; or the function."""
    for frame in _frames(thread):
        named = [
            (rank, str(os.fspath(value)))
            # At once: those of a module are its globals, which its thread may change.
            for name, given in dict(frame.f_locals).items()
            for rank, value in [_as_path(name, given)]
            if value
        ]
        if named:
            return min(named, key=lambda pair: pair[0])[1]
    return next((f"{each.f_code.co_name} in {each.f_code.co_filename}" for each in _frames(thread)), "")


def _as_path(name: str, value: object) -> tuple[int, str | os.PathLike[str] | None]:
    """The path that a variable of a function contains, if any, and how likely it is the one in question.

    It may be a variable of any library, so only its type is looked at. `isinstance` asks the value for its
    class, which may raise, and abstract classes crash on a type that isn't ready, such as that of
    `code.co_positions()` in Python 3.11.
    """
    kind = type(value)
    try:
        if issubclass(kind, _OPENED):
            opened = getattr(value, "name", None)
            return 0, opened if isinstance(opened, str | PurePath) else None
        if issubclass(kind, _PATHS):
            return 1 if name in ("file", "path", "self") else 2, os.fspath(value)  # type: ignore[call-overload]
    except (AttributeError, ValueError):
        # A file or path that is not complete yet, or no longer.
        return 2, None
    # What `realpath` looks at now is not where it has come from.
    is_path = issubclass(kind, str) and _PATH_NAME.search(name)
    return 0 if name == "newpath" else 1, str(value) if is_path else None


def _end_command(found: str, thread: int, idle_s: float) -> None:
    # Without the lines of the program, which may be on the disk that hangs.
    stack = [f"{each.f_code.co_filename}:{each.f_lineno} {each.f_code.co_name}" for each in _frames(thread)]

    def tell() -> None:
        problem = _problem(idle_s, found)
        with suppress(OSError):
            hint = f"the stack is in {write_log(chr(10).join(stack) + chr(10))}; {problem.hint}"
            problem = replace(problem, hint=hint)
        say_lines(render_problems([replace(problem, path=None)]), to_stderr=True)

    # The output itself may be what hangs.
    in_time(tell, _TO_WRITE_S)
    kill_descendants(os.getpid())
    os._exit(HANGS)


def _problem(idle_s: float, found: str) -> Problem:
    return Problem(
        f"the run hangs: nothing has advanced for {idle_s:,.0f} s",
        code=RUN_HANGS,
        path=("stages", 0),
        found=found,
        hint="remove the cause, then continue with `--resume`; if it is only slow, raise `--hang-timeout`",
    )
