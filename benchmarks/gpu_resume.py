"""A run with DeepSpeed: stopped, resumed, killed, resumed, and compared with an uncut one."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.bounded import kill_tree
from tests.tiny import read_metrics, stage1_values, write_recipe

Emit = Callable[[dict[str, Any]], None]

_POLL_S = 0.01


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Which engine, how long, and how far a loss after the cuts may be from the uncut run's."""

    deepspeed: str
    num_epochs: int
    save_steps: int
    stop_after: int
    """The stop signal is sent when this many steps are logged."""
    farthest: float
    limit_s: float
    """For each wait."""


def cut_and_resume(setting: Setting, emit: Emit) -> None:
    """Emit what happened at each cut, then the figures. Raises AssertionError where a step goes wrong."""
    with tempfile.TemporaryDirectory(prefix="gpu-benchmark-") as name:
        whole, cut = (_write(Path(name) / word, setting) for word in ("whole", "cut"))
        with _started(whole) as uncut:
            with _started(cut) as first:
                _wait_until(first, lambda: _logged(cut) >= setting.stop_after, setting)
                first.send_signal(signal.SIGTERM)
                code = first.wait(setting.limit_s)
            stopped = _newest_checkpoint(cut)
            emit({"event": "stopped", "exit_code": code, "checkpoint": stopped})
            assert stopped is not None, "the stop signal left no checkpoint"
            assert not (cut / "run" / "DONE").exists(), "the stopped run is marked as done"
            with _started(cut, "--resume") as second:
                _wait_until(second, lambda: _goes_on(cut, after=stopped), setting)
                kill_tree(second.pid)
                second.wait(setting.limit_s)
            killed, logged = _newest_checkpoint(cut), _logged(cut)
            emit({"event": "killed", "checkpoint": killed, "num_logged": logged})
            assert not (cut / "run" / "DONE").exists(), "the killed run is marked as done"
            with _started(cut, "--resume") as third:
                assert third.wait(setting.limit_s) == 0, "the run that was resumed last failed"
            assert uncut.wait(setting.limit_s) == 0, "the uncut run failed"
        wanted, found = (_losses(folder) for folder in (whole, cut))
        assert found.keys() == wanted.keys(), f"steps {sorted(found)} of {sorted(wanted)}"
        off = max(abs(found[step] - wanted[step]) for step in wanted)
        done = {
            word: (folder / "run" / "DONE").is_file() for word, folder in (("cut", cut), ("uncut", whole))
        }
        fits = off <= setting.farthest and all(done.values())
        emit(
            {
                "event": "figures",
                "status": "measured" if fits else "failed",
                "deepspeed": setting.deepspeed,
                "num_steps": len(wanted),
                "stopped_at": stopped,
                "killed_after": logged,
                "resumed_from": killed,
                "largest_difference": off,
                "last_loss": found[max(found)],
                "last_loss_uncut": wanted[max(wanted)],
                "done": done,
                **({} if fits else {"error": f"the loss is off by {off:.2g}, DONE: {done}"}),
            }
        )


def _write(folder: Path, setting: Setting) -> Path:
    folder.mkdir()
    values = stage1_values(
        folder / "run",
        num_train_epochs=setting.num_epochs,
        bf16=True,
        save_strategy="steps",
        save_steps=setting.save_steps,
    )
    values["stages"][0]["deepspeed"] = setting.deepspeed
    write_recipe(values, folder / "recipe.yaml")
    return folder


@contextmanager
def _started(folder: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """`llava-recipe run`, killed with all it has started where the block fails."""
    words = ["run", str(folder / "recipe.yaml"), "--processes", "1", *options]
    run = subprocess.Popen(
        [sys.executable, "-m", "llava_recipes", *words], cwd=folder, stdin=subprocess.DEVNULL
    )
    try:
        yield run
    finally:
        if run.poll() is None:
            kill_tree(run.pid)
            run.wait()


def _wait_until(run: subprocess.Popen[bytes], happened: Callable[[], bool], setting: Setting) -> None:
    until_s = time.monotonic() + setting.limit_s
    while not happened():
        code = run.poll()
        assert code is None, f"the run ended with exit code {code} before it was cut"
        if time.monotonic() > until_s:
            raise TimeoutError(f"nothing to cut after {setting.limit_s:g} s")
        time.sleep(_POLL_S)


def _goes_on(folder: Path, *, after: int) -> bool:
    """Whether a checkpoint newer than step `after` is sealed, and a step is logged behind it."""
    newest = _newest_checkpoint(folder)
    return newest is not None and newest > after and _logged(folder) > newest


def _logged(folder: Path) -> int:
    """The last step that is logged."""
    file = folder / "run" / "metrics.jsonl"
    text = file.read_text() if file.exists() else ""
    whole = text[: text.rfind("\n") + 1].splitlines()
    return int(json.loads(whole[-1])["step"]) if whole else 0


def _newest_checkpoint(folder: Path) -> int | None:
    """The step of the newest checkpoint that is whole."""
    sealed = (folder / "run").glob("checkpoint-*/checkpoint.json")
    return max((int(file.parent.name.rpartition("-")[2]) for file in sealed), default=None)


def _losses(folder: Path) -> dict[int, float]:
    lines = read_metrics(folder / "run")
    losses = {int(line["step"]): line["loss"] for line in lines}
    assert len(losses) == len(lines), "a step is logged twice"
    return losses
