"""Flip bits and cut files short in a finished run and its checkpoints, and see whether each is found.

    python -m tests.faults.flips [NUM] [SEED]    NUM damages (default 2000), 4 of 5 of them flipped bits

Each damage is one bit, or one cut, in one file of the results or the checkpoints of a tiny run of two stages.
It is found by the check that every user of these files makes, and, for every SAMPLEth, by a command: the next
stage and `chat` for results, `run --resume` for checkpoints.
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from llava_recipes.errors import RecipeError
from llava_recipes.runner.results import DONE, check_results
from llava_recipes.train.checkpoints import find_damage, list_checkpoints
from tests.faults.trials import run_by_hand
from tests.processes import llava_recipe
from tests.tiny import FIXTURES, stage1_values, write_recipe
from tests.use.finished import finish

SAMPLE = 100
STAGES = ("one", "two")
_CUTS = 5
"""One damage in so many is a cut."""


@dataclass(frozen=True)
class Damage:
    """A file, and what it contains instead."""

    file: Path
    data: bytes
    what: str


class Finished:
    """A recipe of two stages, its finished run with its checkpoints, and one stage that starts from it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        values = stage1_values(folder / "one", max_steps=2, save_strategy="steps", save_steps=1)
        values["stages"][0]["data"]["sources"][0]["annotations"] = str(FIXTURES / "stage1_22.json")
        del values["stages"][0]["train"]["num_train_epochs"]
        second = json.loads(json.dumps(values["stages"][0]))
        second |= {"name": "second", "init_from": "pretrain", "output_dir": str(folder / "two")}
        values["stages"].append(second)
        self.recipe = folder / "recipe.yaml"
        finish(values, self.recipe)
        third = json.loads(json.dumps(second)) | {"name": "third", "init_from": str(folder / "two")}
        third["output_dir"] = str(folder / "three")
        self.next_recipe = write_recipe(values | {"stages": [third]}, folder / "next.yaml")

    def command(self, *words: str) -> tuple[int, str]:
        """Exit code and output of a command."""
        ended = llava_recipe(*words, cwd=self.folder)
        return ended.returncode, ended.stdout + ended.stderr

    def results(self) -> list[Path]:
        """Every file that DONE lists, and DONE itself."""
        return [
            self.folder / stage / name
            for stage in STAGES
            for name in (DONE, *json.loads((self.folder / stage / DONE).read_text())["files"])
        ]

    def checkpoints(self) -> list[Path]:
        """Every file of every checkpoint."""
        return [
            file
            for stage in STAGES
            for checkpoint in list_checkpoints(self.folder / stage)
            for file in sorted(checkpoint.folder.rglob("*"))
            if file.is_file()
        ]


def damages(files: list[Path], num: int, seed: int) -> Iterator[Damage]:
    """Random damages, evenly over the files: bits of their contents, and every fifth time a cut."""
    draw = random.Random(seed)
    for number in range(num):
        file = files[number % len(files)]
        whole = file.read_bytes()
        if number % _CUTS == 0:
            length = draw.randrange(len(whole))
            yield Damage(file, whole[:length], f"cut to {length} of {len(whole)} bytes")
        else:
            place, bit = draw.randrange(len(whole)), draw.randrange(8)
            data = bytearray(whole)
            data[place] ^= 1 << bit
            yield Damage(file, bytes(data), f"bit {bit} of byte {place} of {len(whole)}")


def is_found_in_results(damage: Damage) -> bool:
    """Whether the check of a finished run sees it."""
    try:
        check_results(damage.file.parent)
    except RecipeError:
        return True
    return False


def is_found_in_checkpoint(damage: Damage) -> bool:
    """Whether the check of a checkpoint sees it."""
    folder = next(place for place in damage.file.parents if place.name.startswith("checkpoint-"))
    return find_damage(folder) is not None


def is_refused(run: Finished, damage: Damage) -> bool:
    """Whether the commands that use a result end with exit code 1, and say which run is damaged."""
    stage = damage.file.parent
    commands: list[tuple[str, ...]] = [("chat", str(stage), "Hi", "--max-new-tokens", "1", "--device", "cpu")]
    # Of `one` the finished stage of its own recipe, of `two` the start of another recipe's.
    commands.append(("run", str(run.recipe if stage.name == "one" else run.next_recipe), "--dry-run"))
    ends = [run.command(*words) for words in commands]
    return all(code == 1 and str(stage) in said and "Traceback" not in said for code, said in ends)


def is_skipped(run: Finished, damage: Damage) -> bool:
    """Whether a run that goes on does not take the checkpoint, the only one, and says why."""
    folder = next(place for place in damage.file.parents if place.name.startswith("checkpoint-"))
    others = [found.folder for found in list_checkpoints(folder.parent) if found.folder.name > folder.name]
    hidden = [shutil.move(other, run.folder / f"hidden-{other.name}") for other in others]
    done = (folder.parent / DONE).rename(folder.parent / "DONE.aside")
    try:
        stage = "pretrain" if folder.parent.name == "one" else "second"
        said = run.command("run", str(run.recipe), "--resume", "--dry-run", "--stage", stage)[1]
    finally:
        done.rename(folder.parent / DONE)
        for place, other in zip(hidden, others, strict=True):
            shutil.move(place, other)
    return "Traceback" not in said and (f"skips {folder}" in said or f"{folder.name}: " in said)


def try_all(
    run: Finished,
    files: list[Path],
    num: int,
    seed: int,
    *,
    is_found: Callable[[Damage], bool],
    by_command: Callable[[Finished, Damage], bool],
    sample: int,
) -> tuple[list[str], list[str], int]:
    """Make each damage and undo it: those not found, those that a command let pass, and how many commands."""
    lost, passed, num_commands = [], [], 0
    for number, damage in enumerate(damages(files, num, seed)):
        whole = damage.file.read_bytes()
        damage.file.write_bytes(damage.data)
        try:
            name = f"{damage.file.relative_to(run.folder)}: {damage.what}"
            if not is_found(damage):
                lost.append(name)
            if sample and number % sample == sample - 1:
                num_commands += 1
                if not by_command(run, damage):
                    passed.append(name)
        finally:
            damage.file.write_bytes(whole)
    return lost, passed, num_commands


def main(num: str = "2000", seed: str = "0") -> int:
    folder = Path(tempfile.mkdtemp(prefix="flips-"))
    run = Finished(folder)
    faults: Counter[str] = Counter()
    half = int(num) // 2
    for what, files, is_found, by_command in (
        ("results", run.results(), is_found_in_results, is_refused),
        ("checkpoints", run.checkpoints(), is_found_in_checkpoint, is_skipped),
    ):
        lost, passed, num_commands = try_all(
            run, files, half, int(seed), is_found=is_found, by_command=by_command, sample=SAMPLE
        )
        for name in (*lost, *passed):
            print(f"not found: {name}")
        faults[what] = len(lost) + len(passed)
        print(
            f"{what}: {half} damages in {len(files)} files, {len(lost)} not found; "
            f"{num_commands} tried with commands, {len(passed)} passed"
        )
    shutil.rmtree(folder)
    return int(bool(faults.total()))


if __name__ == "__main__":
    run_by_hand(main)
