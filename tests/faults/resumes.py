"""Resume runs on other numbers of processes and other ZeRO stages, and compare the losses with unbroken runs.

python -m tests.faults.resumes [NUM]    NUM resumes (default 40), drawn from all pairs
"""

from __future__ import annotations

import random
import shutil
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from safetensors.torch import load_file

from tests.faults.trials import run_by_hand, short_values
from tests.processes import llava_recipe
from tests.tiny import read_metrics, write_recipe
from tests.train.cutting import copy_cut

STEPS = 7
"""Two epochs and a half: 22 samples make two whole steps and an incomplete one."""
_GLOBAL_BATCH = 8


@dataclass(frozen=True)
class World:
    """What a part of a run trains on."""

    processes: int
    deepspeed: str

    def __str__(self) -> str:
        return f"{self.processes} × {self.deepspeed}"


WORLDS = [World(processes, deepspeed) for processes in (1, 2, 4) for deepspeed in ("none", "zero2", "zero3")]


@dataclass(frozen=True)
class Resumed:
    """The largest relative difference of the losses, and the largest difference of a weight."""

    before: World
    after: World
    step: int
    loss: float
    weight: float

    def __str__(self) -> str:
        how = f"{self.before} to {self.after} after step {self.step}"
        return f"{how}: losses differ by {self.loss:.1e}, weights by {self.weight:.1e}"


def write(folder: Path, *, grouped: bool = False) -> Path:
    """A recipe with a global batch that 1, 2 and 4 processes divide, and a checkpoint at every step."""
    folder.mkdir(parents=True, exist_ok=True)
    values = short_values(
        folder / "run",
        max_steps=STEPS,
        global_batch_size=_GLOBAL_BATCH,
        save_strategy="steps",
        save_steps=1,
    )
    if grouped:
        values["stages"][0]["data"]["group_by"] = "length"
    return write_recipe(values, folder / "recipe.yaml")


def train(recipe: Path, world: World, *options: str) -> None:
    """Run or resume a recipe on some processes; it must succeed."""
    words = ["--processes", str(world.processes), "--set", f"stages.pretrain.deepspeed={world.deepspeed}"]
    done = llava_recipe("run", recipe, *words, *options, cwd=recipe.parent)
    assert done.returncode == 0, done.stdout + done.stderr


def resume(whole: Path, folder: Path, before: World, after: World, *, step: int) -> Resumed:
    """Cut the unbroken run in `whole` after a step, resume it elsewhere in `folder`, and compare."""
    recipe = copy_cut(whole, folder, step=step)
    train(recipe, after, "--resume")
    wanted, found = (
        {line["step"]: line["loss"] for line in read_metrics(each / "run") if "loss" in line}
        for each in (whole, folder)
    )
    assert wanted.keys() == found.keys(), f"steps {sorted(found)} instead of {sorted(wanted)}"
    ours, theirs = (load_file(each / "run" / "mm_projector.safetensors") for each in (whole, folder))
    return Resumed(
        before,
        after,
        step,
        loss=max(abs(found[step] - wanted[step]) / abs(wanted[step]) for step in wanted),
        weight=max(float((ours[name] - theirs[name]).abs().max()) for name in ours),
    )


def main(num: str = "40") -> int:
    ground = Path(tempfile.mkdtemp(prefix="resumes-"))

    @cache
    def unbroken(world: World) -> Path:
        folder = ground / f"whole-{world.processes}-{world.deepspeed}"
        train(write(folder), world)
        return folder

    draw = random.Random(1)
    pairs = [(one, other) for one in WORLDS for other in WORLDS if one != other]
    worst = 0.0
    for number, (before, after) in enumerate(draw.sample(pairs, int(num))):
        step = draw.randrange(1, STEPS)
        resumed = resume(unbroken(before), ground / f"{number}", before, after, step=step)
        shutil.rmtree(ground / f"{number}")
        print(resumed, flush=True)
        worst = max(worst, resumed.loss)
    print(f"{num} resumes: losses differ by at most {worst:.1e}")
    shutil.rmtree(ground)
    return int(worst > 1e-5)


if __name__ == "__main__":
    run_by_hand(main)
