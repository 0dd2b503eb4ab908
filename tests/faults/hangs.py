"""Make runs hang, each at another place; see that they end by themselves and name the place.

    python -m tests.faults.hangs [SITE]...

A run must end with exit code 4 (1 for a killed rank), name what hangs, leave the stacks of all its processes
in its folder, and leave no process.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_recipes.data.reading import process_state
from llava_recipes.runner.descendants import descendants
from tests.processes import started
from tests.tiny import stage1_values, write_recipe

TIMEOUT_S = 12
"""How long nothing may advance: more than a busy machine takes for a step of a tiny model."""

STUCK = """
import os, sys

EVENT, PLACE = os.environ.get("STUCK_EVENT"), os.environ.get("STUCK_PLACE", "")

def wait(event, arguments):
    if event == EVENT and PLACE in str(arguments[:2]):
        # As on a dead mount: the call doesn't return.
        os.read(os.pipe()[0], 1)

if EVENT and ("LLAVA_RECIPES_CHANNEL" in os.environ) == (os.environ["STUCK_WHO"] == "worker"):
    sys.addaudithook(wait)
"""
"""What Python runs first in each process: training processes, or the command, get stuck in a system call."""


@dataclass(frozen=True)
class Site:
    """A place where a run hangs, and what its message must name."""

    named: tuple[str, ...]
    num_processes: int = 1
    num_workers: int = 0
    event: str = ""
    place: str = ""
    strike: Callable[[list[int]], int] | None = None
    """Hits one of the run's processes, once steps are done; returns which."""
    code: int = 4
    who: str = "worker"
    timeout_s: int = TIMEOUT_S


def _command(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


def _workers(pids: list[int]) -> list[int]:
    commands = {pid: _command(pid) for pid in pids}
    # torchrun's own command line names the worker too.
    return sorted(
        pid for pid, command in commands.items() if "runner.worker" in command and "torchrun" not in command
    )


def _stop_rank(pids: list[int]) -> int:
    return _hit(_ranks(pids)[-1], signal.SIGSTOP)


def _kill_rank(pids: list[int]) -> int:
    return _hit(_ranks(pids)[-1], signal.SIGKILL)


def _stop_reader(pids: list[int]) -> int:
    ranks = _ranks(pids)
    return _hit(next(pid for pid in descendants(ranks[0]) if pid in _workers(pids)), signal.SIGSTOP)


def _ranks(pids: list[int]) -> list[int]:
    """Training processes: those that read data are forked from them, and have the same command line."""
    workers = _workers(pids)
    forked = {child for pid in workers for child in descendants(pid)}
    return [pid for pid in workers if pid not in forked]


def _hit(pid: int, number: signal.Signals) -> int:
    os.kill(pid, number)
    return pid


_IN_COMMAND: Any = {"who": "command", "timeout_s": 5}
SITES = {
    "an image": Site(("rank 0", "sample", "rgb_tiny.png"), event="open", place="rgb_tiny.png"),
    "an image, in a data worker": Site(
        ("rank 0", "sample", "rgb_tiny.png", "data worker 0"), 1, 1, event="open", place="rgb_tiny.png"
    ),
    "a checkpoint": Site(("rank 0", "the checkpoint"), event="os.rename", place="checkpoint-2"),
    "a stopped rank": Site(("rank 1", "stopped by a signal"), 2, strike=_stop_rank),
    "a killed rank": Site(("rank 1", "SIGKILL"), 2, strike=_kill_rank, code=1),
    "a stopped data worker": Site(("data worker 0", "stopped by a signal"), 1, 1, strike=_stop_reader),
    "weights, in the command": Site(
        ("the command, which checks models", "waits for ", "model.safetensors", "the stack is in"),
        event="open",
        place="tiny_vicuna/model.safetensors",
        **_IN_COMMAND,
    ),
    "its folder, in the command": Site(
        ("the command, which prepares the run folder, waits for ", "plan.json"),
        event="os.rename",
        place="plan.json",
        **_IN_COMMAND,
    ),
}


@dataclass(frozen=True)
class Ended:
    """How a run ended that was made to hang; `faults` is empty where it was as it must be."""

    code: int
    seconds: float
    message: str
    faults: tuple[str, ...]


def hang_at(site: Site, folder: Path) -> Ended:
    """Train in `folder`, make the run hang, and wait for its end."""
    values: dict[str, Any] = stage1_values(
        folder / "run", save_strategy="steps", save_steps=2, dataloader_num_workers=site.num_workers
    )
    values["stages"][0]["train"]["num_train_epochs"] = 3 if site.strike is None else 100
    recipe = write_recipe(values, folder / "recipe.yaml")
    (folder / "sitecustomize.py").write_text(STUCK)
    environment = {
        "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep),
        "STUCK_EVENT": site.event,
        "STUCK_PLACE": site.place or "/",
        "STUCK_WHO": site.who,
    }
    argv = [sys.executable, "-m", "llava_recipes", "run", str(recipe)]
    argv += ["--processes", str(site.num_processes), "--hang-timeout", str(site.timeout_s)]
    with started(argv, cwd=folder, env=environment) as child:
        with _reading(child) as lines:
            pids = _until_step(child, lines) if site.strike is not None else []
            struck_s = time.monotonic()
            if site.strike is not None:
                site.strike(pids)
            child.wait(timeout=600)
        message = "".join(lines)
        for stream in (child.stdin, child.stdout, child.stderr):
            if stream is not None:
                stream.close()
    return Ended(
        child.returncode, time.monotonic() - struck_s, message, tuple(_faults(site, child, message, folder))
    )


def _faults(site: Site, child: subprocess.Popen[str], message: str, folder: Path) -> Iterator[str]:
    if child.returncode != site.code:
        yield f"exit code {child.returncode} instead of {site.code}"
    yield from (f'"{word}" is not named' for word in site.named if word not in message)
    stacks = [file.name for file in sorted((folder / "run").glob("hang-rank*.txt"))]
    has_stacks = site.code == 4 and site.who == "worker"
    wanted = [f"hang-rank{rank}.txt" for rank in range(site.num_processes)] if has_stacks else []
    if stacks != wanted:
        yield f"stacks in {stacks} instead of {wanted}"
    left = [pid for pid in _of_run(folder) if process_state(pid) not in (None, "Z", "X")]
    if left:
        yield f"processes {left} are left"


def _of_run(folder: Path) -> list[int]:
    """The processes that were started with `folder` on their path."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if f"PYTHONPATH={folder}".encode() in entry.read_bytes():
                found.append(int(entry.parent.name))
    return found


@contextmanager
def _reading(child: subprocess.Popen[str]) -> Iterator[list[str]]:
    """The lines that a process has printed so far."""
    lines: list[str] = []

    def read_each(stream: Any) -> None:
        for line in stream:
            lines.append(line)

    threads = [threading.Thread(target=read_each, args=(stream,)) for stream in (child.stdout, child.stderr)]
    for thread in threads:
        thread.start()
    yield lines
    for thread in threads:
        thread.join()


def _until_step(child: subprocess.Popen[str], lines: list[str]) -> list[int]:
    """Wait for some steps; gives the run's processes."""
    while not any(line.startswith("step 3/") for line in list(lines)):
        assert child.poll() is None, "".join(lines)
        time.sleep(0.05)
    return descendants(child.pid)


def main(names: list[str]) -> int:
    failed = 0
    for name in names or list(SITES):
        with tempfile.TemporaryDirectory(prefix="hang-") as folder:
            ended = hang_at(SITES[name], Path(folder))
        found = [
            line.strip() for line in ended.message.splitlines() if line.startswith(("found:", "       "))
        ]
        if ended.faults:
            failed += 1
            found = ended.message.splitlines()
        verdict = "; ".join(ended.faults) or "named"
        print(
            f"{name}: exit {ended.code} after {ended.seconds:.0f} s: {verdict}",
            *found,
            sep="\n    ",
            flush=True,
        )
    print(f"{len(names or SITES) - failed} of {len(names or SITES)} hangs ended and were named")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
