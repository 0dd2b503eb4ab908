"""Kill a run at every file event, before it or leaving half of it, and see whether it goes on by itself.

    python -m tests.faults.kills matrix MODE [EVERY [FIRST]]   a kill at each EVERYth event, before and torn
    python -m tests.faults.kills random NUM_RUNS [SEED] runs that are killed at random until they finish

MODE is one of MODES. A run that was killed is started again, with and without `--resume` in turn; it must end
with exit code 0, and with the weights, the logged losses and the DONE of a run that nobody killed.
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from llava_recipes.data.reading import process_state
from tests.faults.armed import EVENTS_FILE, FOLDER, GROUND, KILL_AT, PIDS_FILE, TORN
from tests.faults.trials import run_by_hand, short_values
from tests.processes import run_process
from tests.tiny import read_metrics, write_recipe
from tests.warm import client

MODES = {
    "plain": (1, "none"),
    "ddp": (2, "none"),
    "zero2": (2, "zero2"),
    "zero3": (2, "zero3"),
}
"""Processes and the DeepSpeed preset."""
STEPS = 5
_STEPS_AT_RANDOM, _PART = 20, 3
"""A run that is killed at random is killed in the first third of its events, again and again."""
_WITHOUT = ("finished", "started_from", "started_from_weights", "files", "sha256")
"""Of DONE, what differs between two runs that learned the same."""
_TIMES = ("seconds", "samples_per_s", "tokens_per_s")
_RESULTS = ("mm_projector.safetensors", "mm_projector.bin", "config.json")
_OWN = (".lock",)
"""Hidden names that a finished run may leave."""


@dataclass(frozen=True)
class Outcome:
    """What a finished run has learned."""

    weights: str
    losses: tuple[tuple[float, float], ...]
    done: str


@dataclass(frozen=True)
class Trial:
    """A kill at event number `event`; `fault` says what was wrong afterwards, or is empty."""

    event: int
    torn: bool
    what: str
    fault: str


class Ground:
    """A folder with a recipe, its run, and the counts of its events."""

    def __init__(self, folder: Path, mode: str, *, steps: int = STEPS) -> None:
        self.processes, deepspeed = MODES[mode]
        self.folder, self.run = folder, folder / "run"
        folder.mkdir(parents=True)
        values = short_values(
            self.run,
            max_steps=steps,
            deepspeed=deepspeed,
            save_strategy="steps",
            save_steps=2,
            save_total_limit=1,
        )
        self.recipe = write_recipe(values, folder / "recipe.yaml")

    def train(self, *options: str, kill_at: int = -1, torn: bool = False) -> tuple[int, str]:
        """Run the recipe, killed at an event; the exit code and what was printed."""
        for name in (EVENTS_FILE, PIDS_FILE):
            (self.folder / name).unlink(missing_ok=True)
        argv = [client.python(), "-m", "llava_recipes", "run", self.recipe]
        done = run_process(
            [*map(str, argv), "--processes", str(self.processes), *options],
            cwd=self.folder,
            env={
                **client.importing("tests.faults.armed"),
                FOLDER: str(self.run),
                GROUND: str(self.folder),
                KILL_AT: str(kill_at),
                TORN: str(int(torn)),
            },
        )
        self._wait_for_the_last()
        return done.returncode, done.stdout + done.stderr

    def events(self) -> list[str]:
        file = self.folder / EVENTS_FILE
        return file.read_text().splitlines() if file.exists() else []

    def _wait_for_the_last(self) -> None:
        """No process of a run outlives it for long."""
        pids = {int(line) for line in (self.folder / PIDS_FILE).read_text().split()}
        deadline = time.monotonic() + 30
        while any(map(is_alive, pids)):
            if time.monotonic() > deadline:
                raise AssertionError(f"processes outlive the run: {sorted(filter(is_alive, pids))}")
            time.sleep(0.01)

    def outcome(self) -> Outcome:
        return outcome_of(self.run)

    def leftovers(self) -> list[str]:
        """Names in the run folder that no finished run should leave."""
        names = [path.name for path in self.run.rglob("*") if path.name.startswith(".")]
        return [name for name in names if name not in _OWN]

    def clear(self) -> None:
        shutil.rmtree(self.run, ignore_errors=True)


def outcome_of(run: Path) -> Outcome:
    """What a finished run has learned."""
    losses = [line for line in read_metrics(run) if "loss" in line]
    done = json.loads((run / "DONE").read_text())
    return Outcome(
        weights=" ".join(_digest(run / name) for name in _RESULTS),
        losses=tuple((line["step"], line["loss"]) for line in losses),
        done=json.dumps({key: value for key, value in done.items() if key not in _WITHOUT}),
    )


def is_alive(pid: int) -> bool:
    return process_state(pid) not in (None, "Z", "X")


def _digest(file: Path) -> str:
    return sha256(file.read_bytes()).hexdigest()


def fault_after(ground: Ground, wanted: Outcome, *options: str) -> str:
    """Start a killed run again; what is wrong then, in a few words, or an empty string."""
    code, said = ground.train(*options)
    if code != 0:
        return f"blocked: exit code {code}: {said.strip().splitlines()[-1] if said.strip() else 'no words'}"
    if left := ground.leftovers():
        return f"torn: {', '.join(left)} left behind"
    found = ground.outcome()
    pairs = ((name, getattr(found, name), getattr(wanted, name)) for name in ("weights", "losses", "done"))
    differing = [name for name, one, other in pairs if one != other]
    return f"diverged: {', '.join(differing)} differ" if differing else ""


def whole(ground: Ground) -> tuple[Outcome, int]:
    """A run that nobody kills: what it learns, and the number of its events."""
    code, said = ground.train()
    assert code == 0, said
    outcome, num_events = ground.outcome(), len(ground.events())
    ground.clear()
    return outcome, num_events


def kill(ground: Ground, wanted: Outcome, event: int, *, torn: bool) -> Trial:
    """Kill a new run at an event, and let it go on."""
    ground.clear()
    code, said = ground.train(kill_at=event, torn=torn)
    events = ground.events()
    what = events[event] if event < len(events) else "not met"
    if event < len(events) and code == 0:
        return Trial(event, torn, what, f"not killed: {said}")
    options = ("--resume",) if event % 2 else ()
    return Trial(event, torn, what, fault_after(ground, wanted, *options))


def matrix(ground: Ground, *, every: int = 1, first: int = 0) -> Iterator[Trial]:
    """A kill at each `every`th event, before it and leaving half of it."""
    wanted, num_events = whole(ground)
    for event in range(first, num_events, every):
        for torn in (False, True):
            yield kill(ground, wanted, event, torn=torn)


def at_random(ground: Ground, wanted: Outcome, num_events: int, draw: random.Random) -> tuple[int, str]:
    """Kill a run again and again until it finishes; how often, and what is wrong then."""
    ground.clear()
    num_kills = 0
    while True:
        code, _ = ground.train(kill_at=draw.randrange(num_events // _PART), torn=draw.random() < 0.5)
        if code == 0:
            return num_kills, fault_after(ground, wanted)
        num_kills += 1
        if num_kills > 200:
            return num_kills, "it never finishes"


def report(trials: Iterator[Trial]) -> Counter[str]:
    """Print each trial with a fault, and count the kinds."""
    kinds: Counter[str] = Counter()
    for trial in trials:
        kinds[trial.fault.partition(":")[0] or "good"] += 1
        if trial.fault:
            print(f"event {trial.event}{' torn' * trial.torn}, {trial.what}: {trial.fault}", flush=True)
    return kinds


def main(how: str, *words: str) -> int:
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    if how == "matrix":
        mode, (every, first) = words[0], (*map(int, words[1:3]), *(1, 0)[len(words) - 1 :])
        kinds = report(matrix(Ground(folder / "ground", mode), every=every, first=first))
        print(f"{mode}: {sum(kinds.values())} kill points: {dict(kinds)}")
        bad = sum(kinds.values()) - kinds["good"]
    else:
        draw = random.Random(words[1] if len(words) > 1 else "1")
        num_kills = bad = 0
        for number in range(int(words[0])):
            # Mostly one process: it is killed at more events in the same time.
            mode = "plain" if number % 4 else draw.choice([*MODES])
            ground = Ground(folder / f"{number}", mode, steps=_STEPS_AT_RANDOM)
            wanted, num_events = whole(ground)
            kills, fault = at_random(ground, wanted, num_events, draw)
            num_kills += kills
            if fault:
                bad += 1
                print(f"run {number}, {mode}: {fault}, in {ground.folder}")
        print(f"{words[0]} runs, {num_kills} kills: {bad} runs went wrong")
    if not bad:
        shutil.rmtree(folder)
    return int(bad > 0)


if __name__ == "__main__":
    run_by_hand(main)
