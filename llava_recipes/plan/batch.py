"""Batches and steps, as the Hugging Face Trainer counts them with one data loader for all processes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from llava_recipes.errors import KeyPath, Problem
from llava_recipes.recipe.schema import Train

MOST_DIVISORS: Final = 100_000
"""Candidates tried one by one as divisors: a number of a recipe may have 19 digits."""
MOST_SIZES: Final = 64
"""Candidates tried as the batch of a device."""


@dataclass(frozen=True)
class BatchSizes:
    """Samples per device and pass, passes per step, samples per step over all processes."""

    per_device: int
    accumulation: int
    in_all: int


@dataclass(frozen=True)
class StepCounts:
    """Optimizer steps; None where samples are not counted."""

    per_epoch: int | None
    in_all: int | None
    warmup: int | None


def derive_batch(train: Train, *, world_size: int) -> BatchSizes | None:
    """The batch for a number of processes; None where the global batch size cannot be divided."""
    per_pass = train.per_device_train_batch_size * world_size
    if train.global_batch_size is None:
        accumulation = train.gradient_accumulation_steps or 1
    elif train.global_batch_size % per_pass == 0:
        accumulation = train.global_batch_size // per_pass
    else:
        return None
    return BatchSizes(train.per_device_train_batch_size, accumulation, per_pass * accumulation)


def explain_batch(train: Train, *, world_size: int, path: KeyPath, stage: str) -> Problem:
    """Why the global batch size cannot be divided, and values that can.

    `path` is that of `train` in the stage named `stage`.
    """
    wanted, per_device = train.global_batch_size, train.per_device_train_batch_size
    assert wanted is not None, "only a global batch size can be indivisible"
    per_pass = per_device * world_size
    share, rest = divmod(wanted, world_size)
    size = fitting_on_device(share, per_device) if rest == 0 else 0
    # The number of processes belongs to one command, while the value may be in a shared file.
    place = _spell_train(path, stage)
    one_device = f"{place}.per_device_train_batch_size"
    proposals = []
    if size:
        proposals.append(f"write `per_device_train_batch_size: {size}` (`--set {one_device}={size}`)")
    if rest and wanted % per_device == 0:
        fewer = max(count for count in divisors(wanted // per_device) if count < world_size)
        proposals.append(f"run on {_processes(fewer)}")
    if not size or 2 * size < min(share, per_device):
        near, size = _nearest_share(wanted / world_size, per_device)
        with_size = "" if size == per_device else f" with `per_device_train_batch_size: {size}`"
        words = f"--set {place}.global_batch_size={near * world_size}"
        words += "" if size == per_device else f" --set {one_device}={size}"
        proposals.append(f"write `global_batch_size: {near * world_size}`{with_size} (`{words}`)")
    return Problem(
        "`global_batch_size` cannot be reached with whole accumulation steps",
        code="batch-does-not-divide",
        path=(*path, "global_batch_size"),
        found=f"{wanted} = {_processes(world_size)} × {per_device} samples × {wanted / per_pass:.4g}",
        hint=", or ".join(proposals),
    )


def count_steps(train: Train, batch: BatchSizes, *, num_samples: int | None, world_size: int) -> StepCounts:
    """Optimizer steps; `per_epoch` is 0 where the samples do not fill one batch.

    An incomplete last batch of an epoch is kept unless `dataloader_drop_last` is set, and every process gets
    the same number of batches.
    """
    per_epoch = None
    if num_samples is not None:
        drops_last = train.extra.get("dataloader_drop_last") is True
        if drops_last:
            num_passes = num_samples // batch.per_device // world_size
        else:
            num_passes = math.ceil(math.ceil(num_samples / batch.per_device) / world_size)
        per_epoch = math.ceil(num_passes / batch.accumulation)
    in_all = train.max_steps
    if in_all is None and per_epoch is not None and train.num_train_epochs is not None:
        in_all = math.ceil(train.num_train_epochs * per_epoch)
    if train.warmup_steps is not None:
        warmup: int | None = train.warmup_steps
    elif not train.warmup_ratio:
        warmup = 0
    else:
        warmup = None if in_all is None else math.ceil(in_all * train.warmup_ratio)
    return StepCounts(per_epoch, in_all, warmup)


def count_evaluations(train: Train, steps: StepCounts) -> int | None:
    """How often the validation loss is measured, including at the end; None where steps are not counted."""
    if train.eval_strategy == "no":
        return 1
    every = train.eval_steps if train.eval_strategy == "steps" else steps.per_epoch
    return None if steps.in_all is None or not every else math.ceil(steps.in_all / every)


def batch_notes(train: Train, batch: BatchSizes, *, world_size: int) -> Iterator[str]:
    """What follows from the number of processes."""
    if train.global_batch_size is not None:
        steps = "step" if batch.accumulation == 1 else "steps"
        yield (
            f"{batch.accumulation:,} accumulation {steps}: global batch {batch.in_all:,} = "
            f"{_processes(world_size)} × {batch.per_device:,} samples × {batch.accumulation:,}"
        )


def _spell_train(path: KeyPath, stage: str) -> str:
    """The `train` of a stage for `--set`: with the stage's name, or its index where the name is ambiguous."""
    by_index = "." in stage or stage.isdecimal()
    return ".".join(stage if segment == path[1] and not by_index else str(segment) for segment in path)


def suitable_share(num_samples: int) -> int:
    """A batch that gives an epoch several steps: a tenth of the samples, or 8 where that is too few."""
    wanted = max(1, num_samples // 10, min(8, num_samples // 2))
    return 1 << (wanted.bit_length() - 1)


def fitting_on_device(share: int, per_device: int) -> int:
    """The largest divisor of a device's share that does not exceed its current batch."""
    return max(size for size in divisors(share) if size <= per_device)


def _nearest_share(wanted: float, per_device: int) -> tuple[int, int]:
    """The share of a process nearest to the wanted one, and a batch that divides it and isn't tiny."""
    if wanted <= per_device:
        share = max(1, round(wanted))
        return share, share
    fewest = max(math.ceil(per_device / 2), per_device - MOST_SIZES)
    shares = [(max(1, round(wanted / size)) * size, size) for size in range(fewest, per_device + 1)]
    return min(shares, key=lambda pair: (abs(pair[0] - wanted), -pair[1]))


def divisors(number: int) -> list[int]:
    """The divisors of a number in order; beyond the square of MOST_DIVISORS some may be missing."""
    small = [size for size in range(1, min(math.isqrt(number), MOST_DIVISORS) + 1) if number % size == 0]
    return sorted({*small, *(number // size for size in small)})


def _processes(number: int) -> str:
    return "1 process" if number == 1 else f"{number} processes"
