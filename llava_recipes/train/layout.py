"""The batch layout of a run: that of its first start, whatever processes resume it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.distributed as dist

from llava_recipes.data.dealing import Dealing
from llava_recipes.data.order import BatchLayout
from llava_recipes.errors import KeyPath, RecipeError
from llava_recipes.plan.batch import divisors
from llava_recipes.plan.types import StagePlan, TrainPlan
from llava_recipes.train.checkpoints import SEAL, loading


def kept_layout(stage: StagePlan, checkpoint: Path | None, device: torch.device) -> BatchLayout:
    """The layout that a stage keeps: the checkpoint's, or the plan's where there is none.

    The first process alone reads the checkpoint, and every process must call this. Where the plan has another
    number of samples in a step, the run goes on with the plan's layout.
    """
    planned = planned_layout(stage.train)
    several = dist.is_initialized() and dist.get_world_size() > 1
    is_first = not several or dist.get_rank() == 0
    recorded = None if checkpoint is None or not is_first else read_layout(checkpoint)
    kept = recorded if recorded and recorded.samples_per_step == planned.samples_per_step else planned
    if several:
        numbers = torch.tensor(list(kept.to_json().values()), device=device)
        dist.broadcast(numbers, src=0)
        kept = BatchLayout(*numbers.tolist())
    return kept


def planned_layout(train: TrainPlan) -> BatchLayout:
    return BatchLayout(
        train.num_processes, train.per_device_train_batch_size, train.gradient_accumulation_steps
    )


def read_layout(checkpoint: Path) -> BatchLayout | None:
    """The layout that a checkpoint was made with; None where it does not say so.

    Raises RecipeError where it is damaged.
    """
    with loading(checkpoint, SEAL):
        values = json.loads((checkpoint / SEAL).read_text("utf-8"))
        return BatchLayout.from_json(values["layout"]) if "layout" in values else None


def layout_notes(stage: StagePlan, layout: BatchLayout) -> list[str]:
    """What to show of a layout that isn't the plan's."""
    if layout == planned_layout(stage.train):
        return []
    processes = "1 process" if layout.world_size == 1 else f"{layout.world_size} processes"
    return [
        f"the run keeps the batches that it was started with: {layout.per_device_train_batch_size} per device"
        f" × {layout.gradient_accumulation_steps} accumulated × {processes}"
    ]


def check_processes(stage: StagePlan, layout: BatchLayout, path: KeyPath) -> None:
    """Raise RecipeError where a run with this layout has other steps than the plan for the processes now.

    Where the last samples are dropped, their number depends on the processes. `path` is that of the stage.
    """
    planned, num_samples = planned_layout(stage.train), stage.data.num_samples
    drops_last = stage.train.training_arguments.get("dataloader_drop_last") is True
    if not drops_last or num_samples is None or stage.train.num_train_epochs is None:
        return
    kept, found = (_num_steps(each, num_samples) for each in (layout, planned))
    if kept == found:
        return
    size = layout.per_device_train_batch_size
    others = [
        count
        for count in divisors(layout.batches_per_step)
        if _num_steps(BatchLayout(count, size, layout.batches_per_step // count), num_samples) == kept
        and count != layout.world_size
    ]
    hint = (
        f"resume it with `--processes {layout.world_size}` and its own `per_device_train_batch_size: {size}`"
    )
    if others:
        counts = " or ".join(map(str, others))
        hint += f"; with `global_batch_size: {layout.samples_per_step}`, {counts} processes fit too"
    raise RecipeError.of(
        "with `dataloader_drop_last` the run has another number of steps on these processes",
        code="processes-change-the-steps",
        path=(*path, "train", "extra", "dataloader_drop_last"),
        found=f"{found:,} steps per epoch on {planned.world_size} processes, {kept:,} on the "
        f"{layout.world_size} that it was started with",
        hint=hint,
    )


def _num_steps(layout: BatchLayout, num_samples: int) -> int:
    size = layout.per_device_train_batch_size
    return Dealing(layout, num_samples, True, layout.world_size, size).num_steps
