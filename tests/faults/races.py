"""Start many runs of one recipe at once: one trains, all others are refused by name.

python -m tests.faults.races [NUM]    NUM starts (default 20)
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from tests.faults.trials import run_by_hand
from tests.processes import TIMEOUT_S, python
from tests.tiny import read_metrics, stage1_values, write_recipe


def race(folder: Path, num: int) -> tuple[list[int], list[str]]:
    """The exit codes of `num` runs that start together, and what those that failed said."""
    values = stage1_values(folder / "run", num_train_epochs=100, per_device_train_batch_size=2)
    recipe = write_recipe(values, folder / "recipe.yaml")
    argv = [*python("llava_recipes"), "run", str(recipe), "--processes", "1"]
    children = [
        subprocess.Popen(argv, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for _ in range(num)
    ]
    said = [child.communicate(timeout=TIMEOUT_S)[1] for child in children]
    codes = [child.returncode for child in children]
    return codes, [words for code, words in zip(codes, said, strict=True) if code]


def main(num: str = "20") -> int:
    folder = Path(tempfile.mkdtemp(prefix="races-"))
    codes, said = race(folder, int(num))
    named = sum(f"process {os.uname().nodename}" in words or os.uname().nodename in words for words in said)
    steps = [line["step"] for line in read_metrics(folder / "run")]
    once = steps == sorted(set(steps))
    print(f"{num} starts: {codes.count(0)} trained, {codes.count(1)} refused, {named} with the owner's name")
    print("each step was trained once" if once else "steps were trained twice")
    return int(codes.count(0) != 1 or named != codes.count(1) or not once)


if __name__ == "__main__":
    run_by_hand(main)
