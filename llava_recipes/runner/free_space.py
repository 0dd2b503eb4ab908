"""Whether the disks have room for what a run will write, asked before anything loads."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from llava_recipes.errors import KeyPath, Problem
from llava_recipes.estimate.cost import Disk, estimate_disk
from llava_recipes.estimate.memory import state_bytes
from llava_recipes.plan.types import Plan, StagePlan
from llava_recipes.runner.results import DONE

TOLERANCE: Final = 0.95
"""Of the estimate: sizes are counted, and right within a twentieth."""


@dataclass
class _FileSystem:
    """A disk, and what the stages so far leave on it."""

    folder: Path
    free: int
    total: int
    left_behind: int = 0


def free_space_problems(plan: Plan, stages: Collection[int]) -> Iterator[Problem]:
    """The stages whose checkpoints and results do not fit on the disk that they are written to.

    What their folders contain already is counted as a part of it. Nothing is said where sizes are not known.
    """
    disks: dict[int, _FileSystem] = {}
    for index in sorted(stages):
        stage = plan.stages[index]
        folder = Path(stage.output_dir)
        written = disk_of(plan, stage)
        if written is None or (folder / DONE).is_file():
            continue
        try:
            here = _existing(folder)
            number = here.stat().st_dev
            if number not in disks:
                usage = shutil.disk_usage(here)
                disks[number] = _FileSystem(here, usage.free, usage.total)
            present = _size_of(folder)
        except OSError:
            # Other checks say what is wrong with the folder.
            continue
        disk = disks[number]
        least = written.final_bytes + written.checkpoint_bytes * (written.num_checkpoints != 0)
        peak = least if written.peak_bytes is None else written.peak_bytes
        free = disk.free - disk.left_behind
        # Some network file systems have no figures.
        if disk.total and (peak - present) * TOLERANCE > free:
            yield _problem(stage, ("stages", index), written, free=free, peak=peak, present=present)
        kept = written.final_bytes + written.checkpoint_bytes * (written.num_kept or 0)
        disk.left_behind += max(0, kept - present)


def disk_of(plan: Plan, stage: StagePlan) -> Disk | None:
    """What a stage writes, by the plan's own sizes; None without them."""
    if stage.num_trainable_parameters is None or plan.model.sizes is None:
        return None
    sizes = {module.name: module.num_parameters for module in plan.model.sizes.modules}
    trains_projector = "projector" in (stage.trainable_modules or ())
    return estimate_disk(
        stage,
        num_trainable=stage.num_trainable_parameters,
        num_projector=sizes.get("projector", 0) if trains_projector else 0,
        state_bytes=state_bytes(stage),
    )


def _existing(folder: Path) -> Path:
    nearest = folder.absolute()
    while not nearest.exists():
        nearest = nearest.parent
    return nearest


def _size_of(folder: Path) -> int:
    total = 0
    for top, _, names in os.walk(folder):
        for name in names:
            found = os.lstat(os.path.join(top, name))
            total += min(found.st_size, found.st_blocks * 512) if found.st_blocks else found.st_size
    return total


def _problem(
    stage: StagePlan, path: KeyPath, written: Disk, *, free: int, peak: int, present: int
) -> Problem:
    found = [f"{_gb(written.final_bytes)} of results"]
    if written.num_checkpoints != 0:
        count = "a checkpoint" if written.num_kept is None else f"each of {written.num_kept:,} checkpoints"
        found.insert(0, f"{_gb(written.checkpoint_bytes)} for {count}, and as much while one is written")
    if present:
        found.append(f"{_gb(present)} of it is there already")
    room = free + present - written.final_bytes
    # One more is on the disk while it is written.
    keeps = room // written.checkpoint_bytes - 1 if written.checkpoint_bytes else 0
    elsewhere = f"name a folder on a disk with {_gb(peak)} free in `output_dir`, or free some space"
    if written.num_kept is not None and 1 <= keeps < written.num_kept:
        where: KeyPath = (*path, "train", "save_total_limit")
        hint = f"write `save_total_limit: {min(keeps, 2)}` in `train`, or {elsewhere}"
    else:
        where = (*path, "output_dir")
        hint = elsewhere
    return Problem(
        f"the disk has no room for what stage `{stage.name}` writes: {_gb(peak - present)} more, and "
        f"{_gb(max(free, 0))} are free",
        code="disk-full",
        path=where,
        found="; ".join(found),
        hint=hint,
    )


def _gb(num_bytes: int) -> str:
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if num_bytes >= unit / 10:
            return f"{num_bytes / unit:,.1f} {name}"
    return f"{num_bytes / 1e3:,.1f} kB"
