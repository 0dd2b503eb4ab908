"""`python -m tests.damage.campaign GROUND NUM PART OF`: damage files, and tell of commands that end badly.

Builds the ground where there is none. NUM damages of each file are drawn from one seed, so that they are the
same each time; PART (from 0) says which of OF shares is tried. The last line is JSON: how many were tried,
and the faults.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.damage.ground import build
from tests.damage.mutations import mutations
from tests.damage.readers import READERS
from tests.damage.trial import Trial, endings

SEED = 1
_KEYS = 60
"""Values of a JSON file that are damaged, in each of many ways."""


def trials(ground: Path, *, per_file: int, seed: int) -> Iterator[Trial]:
    """Damages of every file, the commands that read it in turn."""
    for file, commands in READERS.items():
        chosen = random.Random(f"{seed} {file}")
        # What writes a whole model takes far longer than what looks at one.
        often = [*commands, *(each for each in commands if each[0] not in ("export", "import", "merge"))]
        order = chosen.sample(often, len(often))
        for number, mutation in enumerate(mutations(ground / file, seed=seed, keys=_KEYS)[:per_file]):
            yield Trial(file, mutation, order[number % len(order)])


def names_of(trial: Trial, ground: Path) -> tuple[str, ...]:
    """What a message may call a file: its name, or the folder that it belongs to.

    A value that is another and no wrong one may be wrong for the recipe, whose place is then named; and what
    a recipe lacks may be missed in the one that extends it.
    """
    folder = trial.file.rpartition("/")[0]
    recipe = (".yaml:",) if trial.mutation.is_of_a_value or trial.file.endswith(".yaml") else ()
    return (Path(trial.file).name, *((folder, str(ground / folder)) if folder else ()), *recipe)


def main(folder: str, per_file: str, part: str, parts: str) -> None:
    ground = Path(folder)
    if not ground.exists():
        build(ground)
    mine = [*trials(ground, per_file=int(per_file), seed=SEED)][int(part) :: int(parts)]
    faults = []
    for trial, ending in endings(mine, ground=ground):
        fault = ending.fault(names_of(trial, ground))
        if fault is not None:
            said = (ending.log or ending.output).strip().splitlines()
            faults.append(f"{trial}: {fault}: {said[-1][:300] if said else ''}")
    print(
        json.dumps(
            {"num_trials": len(mine), "num_files": len({each.file for each in mine}), "faults": faults}
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
