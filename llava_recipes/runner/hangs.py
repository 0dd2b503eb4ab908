"""Notice that a run hangs, name where, and write the stacks of its processes to the run folder."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from llava_recipes.data.reading import STATES, process_state
from llava_recipes.errors import Problem, RecipeError
from llava_recipes.files import write_text
from llava_recipes.runner.channel import Channel, Peer
from llava_recipes.runner.reports import problems_message
from llava_recipes.train.stopping import LOADING, STEP
from llava_recipes.train.watch import STACKS, START_S

RUN_HANGS = "run-hangs"
_SILENT_S = 5.0
_TO_START_S = 120.0
"""What Python and torch may need on a busy machine before a process can tell anything."""
_TO_DUMP_S, _TO_WRITE_S = 3.0, 10.0


class RunHangs(RecipeError):
    """A run was ended because nothing in it advanced."""


class HangWatch:
    """The command's look at its training processes, each of which tells every second what it does.

    folder  receives the stacks of a run that hangs
    """

    def __init__(
        self, channel: Channel, *, num_processes: int, timeout_s: float | None, folder: Path
    ) -> None:
        self._channel, self._num_processes, self._folder = channel, num_processes, folder
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
        stuck = [peer for peer in peers if self._idle_s(peer) >= peer.status.get("limit_s", self._start_s)]
        return self._describe(peers, max(map(self._idle_s, stuck))) if stuck else None

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

        thread = threading.Thread(target=write, name="stacks", daemon=True)
        thread.start()
        thread.join(_TO_WRITE_S)
        return list(written)

    def _silent_s(self, peer: Peer) -> float:
        silent_s = self._heard[peer.pid][1]
        return silent_s if silent_s >= _SILENT_S else 0.0

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


def _problem(idle_s: float, found: str) -> Problem:
    return Problem(
        f"the run hangs: nothing has advanced for {idle_s:,.0f} s",
        code=RUN_HANGS,
        path=("stages", 0),
        found=found,
        hint="remove the cause, then continue with `--resume`; if it is only slow, raise `--hang-timeout`",
    )
