"""Shoot signals at runs: at any of their processes, at any time; see what they leave, and let them go on.

    python -m tests.faults.signals NUM_SHOTS [SEED] [PROCESSES]

A shot is a stop signal to the command, to one process or to all of them. The run must end with exit code 130
(or 0, where it was done), leave no process, lose no step that it has logged, and go on to the weights and
losses of a run that nobody shot at.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from llava_recipes.stop_signals import STOP_SIGNALS
from llava_recipes.train.checkpoints import find_damage, list_checkpoints
from tests.faults.armed import FOLDER, GROUND, KILL_AT, PIDS_FILE, TORN
from tests.faults.kills import Outcome, is_alive, outcome_of
from tests.faults.trials import run_by_hand
from tests.processes import TIMEOUT_S, started
from tests.tiny import read_metrics, stage1_values, write_recipe
from tests.warm import client

TARGETS = ("command", "one", "all", "storm")
PLACES = {"torchrun": 1, "rank": 2, "data worker": -1}
"""Where a process that may be aimed at too is among those of a run of several, in order of their start."""
STEPS = 6
_TO_END_S = 5.0


@dataclass(frozen=True)
class Shot:
    """A signal to some processes of a run, at a time after the start, or after a logged step of a stage."""

    number: signal.Signals
    target: str
    after_s: float
    after_lines: int = 0
    """Of the first stage's metrics.jsonl, to wait for before that time counts."""
    after_pids: int = 0
    """Processes that have to be there too."""


@dataclass(frozen=True)
class Ended:
    """How a run ended that was shot at, and what was wrong with that; `fault` is empty where nothing was."""

    code: int
    seconds: float
    fault: str
    said: str = ""


class Range:
    """A folder with a recipe of two stages, which are measured, sampled, saved and resumed."""

    def __init__(self, folder: Path, *, processes: int, workers: int = 0, steps: int = STEPS) -> None:
        self.folder, self.processes = folder, processes
        self.runs = (folder / "first", folder / "second")
        folder.mkdir(parents=True)
        values = stage1_values(
            self.runs[0],
            max_steps=steps,
            per_device_train_batch_size=4 // processes,
            save_strategy="steps",
            save_steps=4,
            dataloader_num_workers=workers,
            eval_strategy="steps",
            eval_steps=3,
        )
        (stage,) = values["stages"]
        del stage["train"]["num_train_epochs"]
        stage["sample_every"], stage["samples"] = 5, {"num": 1, "max_new_tokens": 4}
        stage["data"]["validation"] = {"sources": stage["data"]["sources"]}
        second = {**stage, "name": "second", "output_dir": str(self.runs[1])}
        values["stages"].append(second)
        self.recipe = write_recipe(values, folder / "recipe.yaml")

    def shoot(self, shot: Shot | None, *options: str, draw: random.Random) -> Ended:
        """Run the recipe and shoot at it once; or not at all."""
        (self.folder / PIDS_FILE).write_text("")
        argv = [client.python(), "-m", "llava_recipes", "run", str(self.recipe)]
        argv += ["--processes", str(self.processes), *options]
        environment = {
            **client.importing("tests.faults.armed"),
            **{FOLDER: str(self.folder / "none"), GROUND: str(self.folder), KILL_AT: "-1", TORN: "0"},
        }
        with started(argv, cwd=self.folder, env=environment) as child:
            began_s = time.monotonic()
            if shot is not None:
                self._wait_for(lambda: self._num_lines() >= shot.after_lines)
                self._wait_for(lambda: len(self._pids()) >= shot.after_pids)
                time.sleep(shot.after_s)
                self._fire(shot, draw)
            out, err = child.communicate(timeout=TIMEOUT_S)
            seconds = time.monotonic() - began_s
        return Ended(child.returncode, seconds, self._fault(child.returncode, out + err), out + err)

    def _wait_for(self, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not holds():
            if time.monotonic() > deadline:
                raise TimeoutError
            time.sleep(0.02)

    def _num_lines(self) -> int:
        metrics = self.runs[0] / "metrics.jsonl"
        return metrics.read_text().count("\n") if metrics.exists() else 0

    def _pids(self) -> list[int]:
        return [int(line) for line in (self.folder / PIDS_FILE).read_text().split()]

    def _fire(self, shot: Shot, draw: random.Random) -> None:
        pids = [pid for pid in self._pids() if is_alive(pid)]
        if not pids:
            return
        victims: Sequence[int] = {"command": pids[:1], "one": [draw.choice(pids)]}.get(shot.target, pids)
        if shot.target in PLACES:
            victims = [pids[PLACES[shot.target]]]
        for _ in range(3 if shot.target == "storm" else 1):
            for pid in victims:
                with suppress(ProcessLookupError):
                    os.kill(pid, shot.number)
            time.sleep(0.01)

    def _fault(self, code: int, said: str) -> str:
        deadline = time.monotonic() + _TO_END_S
        while orphans := [pid for pid in self._pids() if is_alive(pid)]:
            if time.monotonic() > deadline:
                return f"orphans: {orphans}"
            time.sleep(0.05)
        if code < 0 and -code in STOP_SIGNALS and not self.runs[0].exists():
            # Before Python has reached our first line.
            return ""
        is_done = all((run / "DONE").exists() for run in self.runs)
        if code not in ((0,) if is_done else (130,)) and not (is_done and code == 130):
            return f"exit code {code}: {said.strip()[-600:]}"
        for run in self.runs:
            damages = {found.folder.name: find_damage(found.folder) for found in list_checkpoints(run)}
            if any(damages.values()):
                return f"checkpoints: {damages}"
            if lost := self._lost(run):
                return f"lost: {lost}: {said.strip()[-300:]}"
        return ""

    def _lost(self, run: Path) -> str:
        """Steps of a run that is not done and whose last step is in no checkpoint."""
        if (run / "DONE").exists() or not (run / "metrics.jsonl").exists():
            return ""
        steps = [int(line["step"]) for line in read_metrics(run)]
        saved = [found.step for found in list_checkpoints(run)]
        logged = max(steps, default=0)
        return "" if logged <= max(saved, default=0) else f"step {logged} is logged, saved are {saved}"

    def outcomes(self) -> tuple[Outcome, ...]:
        return tuple(map(outcome_of, self.runs))

    def clear(self) -> None:
        for run in self.runs:
            shutil.rmtree(run, ignore_errors=True)


def draw_shot(draw: random.Random, longest_s: float) -> Shot:
    """Any signal, target and time."""
    return Shot(draw.choice(STOP_SIGNALS), draw.choice(TARGETS), draw.uniform(0.0, 1.05 * longest_s))


def trial(ground: Range, wanted: tuple[Outcome, ...], shot: Shot, draw: random.Random) -> Ended:
    """Shoot at a new run, and let it go on."""
    ground.clear()
    ended = ground.shoot(shot, draw=draw)
    if ended.fault or ended.code == 0:
        return ended
    again = ground.shoot(None, "--resume", draw=draw)
    if again.code != 0:
        return Ended(ended.code, ended.seconds, f"blocked: {again.fault}")
    return Ended(ended.code, ended.seconds, _difference(ground.outcomes(), wanted))


def _difference(found: tuple[Outcome, ...], wanted: tuple[Outcome, ...]) -> str:
    differing = [
        f"{name} of {run}"
        for run, pair in enumerate(zip(found, wanted, strict=True))
        for name in ("weights", "losses", "done")
        if getattr(pair[0], name) != getattr(pair[1], name)
    ]
    return f"diverged: {', '.join(differing)}" if differing else ""


def main(num_shots: str, seed: str = "0", processes: str = "1", workers: str = "0") -> int:
    # What a run sets for its processes: with another environment they would not come from the warm server.
    os.environ |= {"DS_ACCELERATOR": "cpu", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    draw = random.Random(int(seed))
    ground = Range(
        Path(tempfile.mkdtemp(prefix="faults-")) / "range", processes=int(processes), workers=int(workers)
    )
    ended = ground.shoot(None, draw=draw)
    assert ended.code == 0, ended.fault
    wanted, kinds, codes = ground.outcomes(), Counter[str](), Counter[int]()
    began_s = time.monotonic()
    for number in range(int(num_shots)):
        shot = draw_shot(draw, ended.seconds)
        found = trial(ground, wanted, shot, draw)
        kinds[found.fault.partition(":")[0] or "good"] += 1
        codes[found.code] += 1
        if found.fault:
            print(f"{number}: {shot.number.name} to {shot.target} after {shot.after_s:.2f} s: {found.fault}")
    seconds = time.monotonic() - began_s
    print(f"{num_shots} signals in {seconds:.0f} s: {dict(kinds)}; exit codes {dict(codes)}")
    return int(set(kinds) != {"good"})


if __name__ == "__main__":
    run_by_hand(main)
