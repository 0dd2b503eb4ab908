"""Let a run's writing fail, and see that it ends with exit code 1, says so, and can go on.

    python -m tests.faults.disk NUM [SEED]

Each trial draws how: an error at one of the events in which a file of the run folder is opened, flushed,
renamed or made (ENOSPC, EDQUOT, EROFS, EIO, EFBIG), a real file system with so many bytes left (where this
process may mount one), or a limit on the size of files. The run must then go on to its end with `--resume`,
from the newest checkpoint, and leave no temporary file. The same module, imported by the processes of the
run, makes the errors.
"""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.faults.events import listen
from tests.faults.trials import Tried, count_faults, run_by_hand, short_values
from tests.processes import run_process
from tests.tiny import write_recipe
from tests.warm import client

FOLDER, COUNT, FAIL_AT, NUMBER = "FAULTS_DISK_OF", "FAULTS_DISK_COUNT", "FAULTS_DISK_AT", "FAULTS_DISK_ERRNO"
ERRORS = {name: getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EROFS", "EIO", "EFBIG")}
STEPS = 4
DISK_BYTES = 2**20
_FAILING = ("open", "fsync", "os.rename", "os.mkdir", "os.truncate")


@dataclass(frozen=True)
class Failure:
    """How writing fails: an error at event `at`, `at` bytes left, or files of at most `at` bytes."""

    kind: str
    at: int
    processes: int = 1
    deepspeed: str = "none"


def can_mount() -> bool:
    """Whether this process may mount a file system of its own."""
    with tempfile.TemporaryDirectory() as folder:
        made = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], cwd="/", capture_output=True)
        if made.returncode == 0:
            subprocess.run(["umount", folder], cwd="/", check=True)
        return made.returncode == 0


@contextmanager
def small_disk(folder: Path, *, num_free: int) -> Iterator[None]:
    """A file system at `folder` with `num_free` bytes left, until the block says that it has room."""
    folder.mkdir(parents=True, exist_ok=True)
    options = ["-t", "tmpfs", "-o", f"size={DISK_BYTES}"]
    subprocess.run(["mount", *options, "tmpfs", str(folder)], cwd="/", check=True, capture_output=True)
    try:
        with (folder / "filler").open("wb") as file:
            file.write(bytes(max(0, DISK_BYTES - num_free)))
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], cwd="/", check=True, capture_output=True)


def attempt(failure: Failure, ground: Path) -> str:
    """Run a recipe whose writing fails; what was wrong, or nothing. `none` says that nothing failed."""
    shutil.rmtree(ground, ignore_errors=True)
    ground.mkdir(parents=True)
    if failure.kind != "full":
        return _attempt(failure, ground, ground / "run")
    with small_disk(ground / "disk", num_free=failure.at):
        return _attempt(failure, ground, ground / "disk" / "run")


def _attempt(failure: Failure, ground: Path, run: Path) -> str:
    recipe = _recipe(failure, ground, run)
    (ground / "events").touch()
    env = {**client.importing("tests.faults.disk"), FOLDER: str(run), COUNT: str(ground / "events")}
    limit = None
    if failure.kind == "limit":

        def limit() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (failure.at, resource.RLIM_INFINITY))

    elif failure.kind in ERRORS:
        env |= {FAIL_AT: str(failure.at), NUMBER: str(ERRORS[failure.kind])}
    argv = [client.python(), "-m", "llava_recipes", "run", str(recipe)]
    argv += ["--processes", str(failure.processes)]
    done = run_process(argv, cwd=ground, env=env, limit=limit)
    if done.returncode == 0:
        return "none"
    printed = done.stdout + done.stderr
    if done.returncode != 1:
        return f"exit code {done.returncode}: {printed[-300:]}"
    if not any(words in printed for words in ("cannot be written", "not writable", "has no room for")):
        return f"says nothing of the disk: {printed[-300:]}"
    if left := [path.name for path in run.rglob("*") if path.name.startswith(".") and path.name != ".lock"]:
        return f"left {', '.join(left)}"
    (run.parent / "filler").unlink(missing_ok=True)
    again = run_process([*argv, "--resume"], cwd=ground)
    if again.returncode != 0 or not (run / "DONE").exists():
        return f"does not go on: {again.stdout[-300:]}{again.stderr[-300:]}"
    newest = [name for name in ("checkpoint-2", "checkpoint-4") if f"{name} stands" in printed]
    if newest and f"{newest[0]}" not in again.stdout:
        return f"does not resume from {newest[0]}: {again.stdout[-300:]}"
    return ""


def _recipe(failure: Failure, ground: Path, run: Path) -> Path:
    values = short_values(
        run, max_steps=STEPS, deepspeed=failure.deepspeed, save_strategy="steps", save_steps=2
    )
    return write_recipe(values, ground / "recipe.yaml")


def fail_in_this_process() -> None:
    """Count the events in which this process writes to the run folder, and let one of them fail."""
    listen(os.environ[FOLDER], _meet)


def _meet(event: str, path: str) -> None:
    if event not in _FAILING:
        return
    # Appending one byte is atomic, and its place is the number of the event.
    with open(os.environ[COUNT], "ab") as file:
        file.write(b".")
        file.flush()
        number = file.tell() - 1
    if number == int(os.environ.get(FAIL_AT, "-1")):
        code = int(os.environ[NUMBER])
        named = event != "fsync"
        raise OSError(code, os.strerror(code), path) if named else OSError(code, os.strerror(code))


def draw(rng: random.Random, *, mounts: bool, num_events: int, num_bytes: int) -> Failure:
    kind = rng.choice([*ERRORS, *ERRORS, "limit", *(["full"] * 4 if mounts else [])])
    mode = rng.choice([(1, "none")] * 3 + [(2, "none"), (2, "zero2")])
    most = {"limit": 20_000, "full": num_bytes}.get(kind, num_events)
    return Failure(kind, rng.randrange(most), *mode)


def main(num_trials: str, seed: str = "0") -> int:
    rng, mounts = random.Random(seed), can_mount()
    with tempfile.TemporaryDirectory() as folder:
        ground = Path(folder) / "ground"
        # What a run writes when nothing fails.
        assert attempt(Failure("count", 0), ground) == "none"
        num_events = (ground / "events").stat().st_size
        num_bytes = sum(path.stat().st_blocks * 512 for path in (ground / "run").rglob("*"))

        def once() -> Tried:
            failure = draw(rng, mounts=mounts, num_events=num_events, num_bytes=num_bytes)
            fault = attempt(failure, ground)
            if fault == "none":
                return Tried(failure, ["nothing failed"], "", counts=False)
            return Tried(failure, [failure.kind], fault)

        return count_faults(int(num_trials), "failures", once)


if COUNT in os.environ:
    fail_in_this_process()

if __name__ == "__main__":
    run_by_hand(main)
