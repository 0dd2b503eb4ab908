"""Warnings about the batch of a step."""

from __future__ import annotations

from collections.abc import Iterator

from llava_recipes.plan.batch import fitting_on_device, suitable_share
from llava_recipes.plan.types import StagePlan
from llava_recipes.recipe.errors import KeyPath, Problem
from llava_recipes.recipe.rates import kind_of_stage, usual_batch
from llava_recipes.recipe.scalars import say_number
from llava_recipes.recipe.schema import Stage


def check_processes(stage: Stage, planned: StagePlan, path: KeyPath) -> Iterator[Problem]:
    """A batch that grows with the number of processes, while the learning rate stays."""
    train, config = stage.train, planned.deepspeed or {}
    if train.global_batch_size is not None or isinstance(config.get("train_batch_size"), int):
        return
    per_device, accumulation = train.per_device_train_batch_size, train.gradient_accumulation_steps or 1
    key = "per_device_train_batch_size"
    is_written = key in train.model_fields_set
    batch = per_device * accumulation
    kind = kind_of_stage(stage.freeze, stage.trainable, has_lora=stage.lora is not None)
    usual = usual_batch(kind, train.learning_rate)
    wanted = "`global_batch_size:` with the batch that the learning rate was made for"
    if usual is not None and usual % per_device == 0:
        wanted = f"`global_batch_size: {usual}`, LLaVA's batch at this rate"
    instead = ", in place of `gradient_accumulation_steps`" if train.gradient_accumulation_steps else ""
    yield Problem(
        "the batch of a step depends on the number of processes, and the learning rate doesn't",
        code="batch-depends-on-processes",
        path=(*path, "train", key) if is_written else (*path, "train"),
        found=f"{batch} samples on 1 process, {8 * batch} on 8, at "
        f"{say_number(train.learning_rate)} on each of them",
        hint=f"write {wanted}{instead}; the accumulation steps then follow from the number of processes",
        on_key=True,
        severity="warning",
    )


def check_size(stage: Stage, planned: StagePlan, path: KeyPath) -> Iterator[Problem]:
    """A batch that an epoch cannot fill: each step takes all samples there are, and an epoch is one step."""
    train, num_samples, batch = stage.train, planned.data.num_samples, planned.train.global_batch_size
    if not num_samples or batch <= num_samples:
        return
    per_device, accumulation = train.per_device_train_batch_size, planned.train.gradient_accumulation_steps
    num_processes = batch // (per_device * accumulation)
    share = suitable_share(max(1, num_samples // num_processes))
    key = "per_device_train_batch_size"
    if num_samples < num_processes:
        hint = f"give it more samples, or run on at most {num_samples} of the {num_processes} processes"
    elif train.global_batch_size is not None:
        key, size = "global_batch_size", fitting_on_device(share, per_device)
        beside = "" if size == per_device else f" with `per_device_train_batch_size: {size}`"
        hint = f"write `global_batch_size: {share * num_processes}`{beside}"
    elif accumulation > 1 and per_device * num_processes <= num_samples:
        key = "gradient_accumulation_steps"
        hint = "write `gradient_accumulation_steps: 1`"
    else:
        beside = " with `gradient_accumulation_steps: 1`" if accumulation > 1 else ""
        hint = f"write `per_device_train_batch_size: {min(share, per_device)}`{beside}"
    at = (*path, "train", key) if key in train.model_fields_set else (*path, "train")
    yield Problem(
        "the batch of a step is larger than the data of an epoch",
        code="batch-larger-than-epoch",
        path=at,
        found=f"{batch} samples in a step, {num_samples} in an epoch",
        hint=hint,
        on_key=at[-1] == "train",
        severity="warning",
    )
