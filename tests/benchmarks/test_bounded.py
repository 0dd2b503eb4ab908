"""A program that takes too long is gone, with all that it started; its lines come while it runs."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from benchmarks.bounded import Ended, run_bounded
from tests.processes import TIMEOUT_S

# A child in a session of its own, which a kill of the group alone would leave.
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(900)"], start_new_session=True)
print(child.pid, flush=True)
time.sleep(900)
"""


def run(code: str, folder: Path, *, limit_s: float = TIMEOUT_S) -> tuple[Ended, list[str]]:
    lines: list[str] = []
    ended = run_bounded(
        [sys.executable, "-c", code], env=os.environ, cwd=folder, limit_s=limit_s, on_line=lines.append
    )
    return ended, lines


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_a_program_that_takes_too_long_is_killed_with_what_it_started(tmp_path: Path) -> None:
    ended, lines = run(PARENT, tmp_path, limit_s=1.5)
    assert ended.code is None
    assert ended.seconds >= 1.5
    assert len(lines) == 1, "the parent has not come to start its child"
    assert not is_alive(int(lines[0]))


def test_a_program_is_killed_when_its_caller_has_to_stop(tmp_path: Path) -> None:
    lines: list[str] = []
    ended = run_bounded(
        [sys.executable, "-c", PARENT],
        env=os.environ,
        cwd=tmp_path,
        limit_s=TIMEOUT_S,
        on_line=lines.append,
        has_to_stop=lambda: bool(lines),
    )
    assert ended.code is None and ended.seconds < TIMEOUT_S
    assert not is_alive(int(lines[0]))


def test_lines_code_and_errors_are_given(tmp_path: Path) -> None:
    ended, lines = run(
        "import sys; print(1); print('2 – two'); print('bad', file=sys.stderr); sys.exit(5)", tmp_path
    )
    assert (ended.code, ended.errors) == (5, "bad\n")
    assert lines == ["1\n", "2 – two\n"]


def test_lines_come_while_the_program_runs(tmp_path: Path) -> None:
    times: list[float] = []
    run_bounded(
        [sys.executable, "-c", "import time; print(1, flush=True); time.sleep(0.6)"],
        env=os.environ,
        cwd=tmp_path,
        limit_s=TIMEOUT_S,
        on_line=lambda line: times.append(time.monotonic()),
    )
    assert time.monotonic() - times[0] > 0.5
