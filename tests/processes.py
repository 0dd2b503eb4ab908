"""Start processes from tests: in a folder that is named, within a time; a killed one's words are reported."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.warm import client

ROOT = Path(__file__).parent.parent

TIMEOUT_S = 600.0
"""For one process: over ten times what any takes on an idle machine. pytest's own limit is above it."""

_TO_END_S = 5.0


@contextmanager
def started(
    argv: Sequence[str | Path],
    *,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    limit: Callable[[], None] | None = None,
) -> Iterator[subprocess.Popen[str]]:
    """A process for the time of a block, `env` added to the environment, its three streams as pipes.

    `limit` runs in the new process before the program. Where the block fails, takes too long or is ended by
    pytest, the process is killed with all that it has started, and what it wrote is in the error.
    """
    child = subprocess.Popen(
        list(map(str, argv)),
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        start_new_session=True,
        preexec_fn=limit,
    )
    try:
        yield child
    except BaseException as error:
        error.add_note(f"killed: {shlex.join(map(str, argv))}\n{_kill(child)}")
        raise


def run_process(
    argv: Sequence[str | Path],
    *,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    timeout_s: float = TIMEOUT_S,
    text: str | None = None,
    limit: Callable[[], None] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, with `text` on its standard input; `started` says the rest."""
    with started(argv, cwd=cwd, env=env, limit=limit) as child:
        out, err = child.communicate(text, timeout=timeout_s)
    return subprocess.CompletedProcess(argv, child.returncode, out, err)


def _kill(child: subprocess.Popen[str]) -> str:
    """End a process and what it has started; gives what it wrote."""
    # One that has ended may have left others in its session.
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    try:
        out, err = child.communicate(timeout=_TO_END_S)
    except subprocess.TimeoutExpired:
        return "something that it started still holds its output"
    except ValueError:
        return "its output was read by the test"
    return f"its output:\n{out}\nits errors:\n{err}"


def python(module: str, *, fresh: bool = False) -> list[str]:
    """The words that start a module: `python -m MODULE`, or the same forked from the warm server.

    `fresh` is for tests of what a fork has done already or does otherwise: imports, signals, orphans.
    """
    return [sys.executable if fresh else client.python(), "-m", module]


def llava_recipe(
    *arguments: str | Path,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    fresh: bool = False,
    text: str | None = None,
    timeout_s: float = TIMEOUT_S,
) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    argv = [*python("llava_recipes", fresh=fresh), *arguments]
    return run_process(argv, cwd=cwd, env=env, text=text, timeout_s=timeout_s)


def run_recipe(file: Path, *options: str | Path, fresh: bool = False) -> subprocess.CompletedProcess[str]:
    """`llava-recipe run` of a recipe, in the recipe's own folder."""
    return llava_recipe("run", file, *options, cwd=file.parent, fresh=fresh)


def run_to_end(file: Path, *options: str | Path, fresh: bool = False) -> str:
    """Run a recipe that must succeed; gives what it printed."""
    done = run_recipe(file, *options, fresh=fresh)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
