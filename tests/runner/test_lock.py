"""One run at a time in a folder, with real processes; where the file system cannot lock, too."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llava_recipes.errors import RecipeError
from llava_recipes.runner import lock
from llava_recipes.runner.lock import LOCK, OWNER, holders_of, join, take

RACER = """
import errno, fcntl, sys, time
from pathlib import Path
from llava_recipes.errors import RecipeError
from llava_recipes.runner.lock import join, take

folder, mode, number = Path(sys.argv[1]), sys.argv[2], sys.argv[3]

def cannot(handle, kind):
    raise OSError(errno.ENOLCK, "No locks available")

if mode == "nolock":
    fcntl.flock = cannot
print("ready", flush=True)
sys.stdin.readline()
try:
    held = take(folder / "out")
except RecipeError as error:
    print(error.problems[0].code, error.problems[0].found, flush=True)
else:
    (folder / f"won-{number}").touch()
    print("won", held.run, flush=True)
    sys.stdin.readline()
    held.close()
"""

WORKER = """
import sys
from pathlib import Path
from llava_recipes.runner.lock import join

join(Path(sys.argv[1]), sys.argv[2])
print("joined", flush=True)
sys.stdin.read()
"""


def start(source: str, *arguments: str | Path) -> subprocess.Popen[str]:
    argv = [sys.executable, "-c", source, *map(str, arguments)]
    return subprocess.Popen(argv, cwd="/", stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def line(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def press_enter(child: subprocess.Popen[str]) -> None:
    assert child.stdin is not None
    child.stdin.write("\n")
    child.stdin.flush()


@contextmanager
def ended(*children: subprocess.Popen[str]) -> Iterator[None]:
    try:
        yield
    finally:
        for child in children:
            child.kill()
            child.communicate()


@pytest.mark.parametrize(
    ("mode", "before", "num_racers"),
    [("flock", "nothing", 20), ("flock", "a killed run", 6), ("nolock", "a killed run", 6)],
)
def test_of_many_starts_one_wins(mode: str, before: str, num_racers: int, tmp_path: Path) -> None:
    if before == "a killed run":
        killed = start(RACER, tmp_path, mode, "killed")
        with ended(killed):
            press_enter(killed)
            assert line(killed) == "ready" and line(killed).startswith("won")
        (tmp_path / "won-killed").unlink()
    racers = [start(RACER, tmp_path, mode, str(number)) for number in range(num_racers)]
    with ended(*racers):
        assert {line(racer) for racer in racers} == {"ready"}
        for racer in racers:
            press_enter(racer)
        answers = [line(racer) for racer in racers]
        winners = [racer for racer, answer in zip(racers, answers, strict=True) if answer.startswith("won")]
        assert len(winners) == len(list(tmp_path.glob("won-*"))) == 1
        losers = [answer for answer in answers if not answer.startswith("won")]
        whose = f"is used by process {winners[0].pid} on "
        assert all(answer.startswith("output-dir-in-use") and whose in answer for answer in losers), answers
        press_enter(winners[0])
        winners[0].wait()
    # The lock leaves nothing behind, neither file nor a folder of its own.
    assert (tmp_path / "out").exists() == (before == "a killed run")
    assert list(tmp_path.glob("out/*")) == list(tmp_path.glob("out/.*")) == []


def test_a_new_run_waits_for_the_processes_of_a_killed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    launcher = start(RACER, tmp_path, "flock", "1")
    with ended(launcher):
        press_enter(launcher)
        assert line(launcher) == "ready"
        run = line(launcher).split()[1]
        worker = start(WORKER, tmp_path / "out", run)
        assert line(worker) == "joined"
    with ended(worker):
        monkeypatch.setattr(lock, "WAIT_S", 0.3)
        monkeypatch.setattr(lock, "_SAY_AFTER_S", 0.0)
        with pytest.raises(RecipeError) as refused:
            take(tmp_path / "out")
        assert f"its processes are {worker.pid}" in str(refused.value.problems[0].found)
        assert f"kill -9 {worker.pid}" in str(refused.value.problems[0].hint)
        assert "waits for the training processes" in capsys.readouterr().out
        # A process that starts late doesn't train without its launcher.
        with pytest.raises(RecipeError, match="lost its folder"):
            join(tmp_path / "out", run)
        monkeypatch.setattr(lock, "WAIT_S", 60.0)
        os.kill(worker.pid, signal.SIGKILL)
        take(tmp_path / "out").close()


def test_nodes_of_one_run_share_the_folder(tmp_path: Path) -> None:
    first = take(tmp_path / "out", run="job 7")
    second = take(tmp_path / "out", run="job 7")
    assert first.run == second.run
    with pytest.raises(RecipeError, match="another run is using"):
        take(tmp_path / "out", run="job 8")
    first.close()
    with pytest.raises(RecipeError, match="another run is using"):
        take(tmp_path / "out")
    second.close()
    assert list((tmp_path / "out").iterdir()) == []


def test_nobody_breaks_the_lock_of_another_machine_where_the_file_system_cannot_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(handle: int, kind: int) -> None:
        raise OSError(45, "No locks available") from None

    monkeypatch.setattr(lock, "_CANNOT_LOCK", (45,))
    monkeypatch.setattr("fcntl.flock", cannot)
    held = take(tmp_path)
    file = tmp_path / OWNER
    joined = join(tmp_path, held.run)
    assert not (tmp_path / LOCK).exists() and file.exists()
    os.close(joined)
    owner = json.loads(file.read_text()) | {"host": "node17", "pid": 2**22 + 1}
    file.write_text(json.dumps(owner))
    with pytest.raises(RecipeError) as refused:
        take(tmp_path)
    (problem,) = refused.value.problems
    assert problem.found is not None and f"process {owner['pid']} on node17 since" in problem.found
    assert problem.hint is not None and f"remove {file}" in problem.hint
    file.unlink()
    take(tmp_path).close()
    assert list(tmp_path.iterdir()) == []
    held.close()


def test_a_lock_file_that_is_no_file_is_reported(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / LOCK)
    started_s = time.monotonic()
    with pytest.raises(RecipeError, match="cannot be written to"):
        take(tmp_path)
    assert time.monotonic() - started_s < 5
    assert holders_of(tmp_path / LOCK) == []
