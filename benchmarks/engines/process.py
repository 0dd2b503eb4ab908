"""Run another program: a binary, or a script inside another Python's environment."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.engines.compare import Answered, Refused

_NUM_LAST_LINES, _LINE = 15, 300


def executable(given: str, what: str) -> str:
    """A program by its path or its name. Raises Refused where it isn't one."""
    found = shutil.which(given)
    if found is None:
        raise Refused(f"{what}: {given} is not a program that can be started")
    return found


def run(argv: Sequence[str | Path], *, env: Mapping[str, str] | None = None) -> str:
    """What a program writes to its standard output, `env` added to the environment.

    Raises Refused with the program's last words where it cannot be started or fails.
    """
    words = [str(word) for word in argv]
    try:
        done = subprocess.run(
            words,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
    except OSError as error:
        raise Refused(f"{words[0]} cannot be started: {error.strerror}") from error
    if done.returncode:
        said = last_words(done.stderr) if done.stderr.strip() else last_words(done.stdout)
        raise Refused(f"{words[0]} ended with {done.returncode}: {said}")
    return done.stdout


def last_words(written: str) -> str:
    """The last lines of what a program wrote, long ones cut."""
    lines = (written.strip() or "no message").splitlines()[-_NUM_LAST_LINES:]
    return "\n".join(line[:_LINE] for line in lines)


def ask_inside(
    python: str, script: Path, request: Mapping[str, object], *, env: Mapping[str, str] | None = None
) -> Answered:
    """Run a script of this folder by another Python: `python script REQUEST ANSWERS`, two JSON files.

    The script writes {"engine": …, "answers": […]}, or {"refused": …} where the environment lacks something.
    Raises Refused with that, and where the script fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder) / "request.json", Path(folder) / "answers.json"
        asked.write_text(json.dumps(request), "utf-8")
        run([python, script, asked, answered], env=env)
        found = json.loads(answered.read_text("utf-8")) if answered.is_file() else {}
    if "answers" not in found:
        raise Refused(f"{python}: {found.get('refused', f'{script.name} left no answers')}")
    return Answered(found["engine"], tuple(answer.strip() for answer in found["answers"]))
