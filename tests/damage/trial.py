"""Run commands on damaged files, many in one forked process, and judge how each of them ends."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.damage.mutations import Mutation, remove

LIMIT_S = 300
BATCH = 25
_MOST_CHARACTERS = 20_000
_MOST_IN_A_LINE = 900


@dataclass(frozen=True)
class Trial:
    """One damage to one file of the ground, and a command that reads it."""

    file: str
    mutation: Mutation
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.file}: {self.mutation.name}: {' '.join(self.words)}"


@dataclass(frozen=True)
class Ending:
    """How a command ended: its exit code (negative for a signal), what it printed, and its logs."""

    code: int
    output: str
    log: str
    seconds: float

    def fault(self, names: Sequence[str]) -> str | None:
        """What is wrong with it; None where it ends as it should: with 0, or with 1 naming one of `names`."""
        if self.code == -signal.SIGALRM:
            return "does not end"
        if self.code not in (0, 1):
            return f"exit {self.code}"
        if self.log or "Traceback (most recent call last)" in self.output:
            return "prints a traceback"
        if self.code == 0:
            return None
        if not any(name in self.output for name in names):
            return "names no file"
        longest = max(map(len, self.output.splitlines()))
        too_much = len(self.output) > _MOST_CHARACTERS or longest > _MOST_IN_A_LINE
        return "says too much" if too_much else None


def endings(trials: Sequence[Trial], *, ground: Path, batch: int = BATCH) -> Iterator[tuple[Trial, Ending]]:
    """How every trial ends. Files of the ground are put back after each, its folder `out` is emptied."""
    with tempfile.TemporaryDirectory(prefix="damage-") as name:
        scratch = Path(name)
        left = list(trials)
        while left:
            yield from _in_a_fork(left[:batch], ground, scratch, left)


def _in_a_fork(
    trials: list[Trial], ground: Path, scratch: Path, left: list[Trial]
) -> Iterator[tuple[Trial, Ending]]:
    """Try these in one child; those that came to an end are taken from `left`."""
    results = scratch / "results"
    results.write_text("")
    originals = {trial.file: (ground / trial.file).read_bytes() for trial in trials}
    pid = os.fork()
    if pid == 0:
        _become(trials, ground, scratch, results, originals)
    descriptor = os.pidfd_open(pid)
    select.select([descriptor], [], [])
    os.close(descriptor)
    _, status = os.waitpid(pid, 0)
    found = [Ending(**json.loads(line)) for line in results.read_text("utf-8").splitlines()]
    if len(found) < len(trials):
        # The child died of the next one.
        output = (scratch / "printed").read_text("utf-8", "replace")
        found.append(Ending(os.waitstatus_to_exitcode(status) or 99, output, "", 0.0))
        _restore(ground, trials[len(found) - 1].file, originals)
    for trial, ending in zip(trials, found, strict=False):
        left.pop(0)
        yield trial, ending


def _become(
    trials: list[Trial], ground: Path, scratch: Path, results: Path, originals: dict[str, bytes]
) -> None:
    """The child: one trial after another, a line of JSON for each."""
    try:
        os.setsid()
        os.chdir(ground)
        tempfile.tempdir = str(scratch / "logs")
        os.makedirs(tempfile.tempdir, exist_ok=True)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        with results.open("a", encoding="utf-8") as lines:
            for trial in trials:
                _redirect(scratch / "printed")
                signal.alarm(LIMIT_S)
                start = time.monotonic()
                try:
                    trial.mutation.damage(ground / trial.file)
                    code = _run(trial.words)
                finally:
                    _restore(ground, trial.file, originals)
                signal.alarm(0)
                sys.stdout.flush()
                sys.stderr.flush()
                printed = (scratch / "printed").read_text("utf-8", "replace")
                ending = Ending(code, printed, _logs(scratch / "logs"), time.monotonic() - start)
                lines.write(json.dumps(asdict(ending)) + "\n")
                lines.flush()
        os._exit(0)
    except BaseException:
        with contextlib.suppress(BaseException):
            traceback.print_exc()
            sys.stderr.flush()
        os._exit(98)


def _run(words: tuple[str, ...]) -> int:
    from llava_recipes.cli.main import main

    try:
        return main(words)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 97


def _redirect(file: Path) -> None:
    """Let everything that is printed, by C code as well, go to a file."""
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False, buffering=1)


def _logs(folder: Path) -> str:
    """The tracebacks that were logged, which are taken away."""
    text = ""
    for file in sorted(folder.glob("llava-recipe-*.log")):
        text += file.read_text("utf-8", "replace")
        file.unlink()
    return text


def _restore(ground: Path, file: str, originals: dict[str, bytes]) -> None:
    remove(ground / file)
    (ground / file).write_bytes(originals[file])
    for path in (*(ground / "out").iterdir(), ground / "partial/a.jsonl"):
        remove(path)
