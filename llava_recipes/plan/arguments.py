"""From a stage's `train` settings to its plan and to transformers.TrainingArguments (version 5)."""

from __future__ import annotations

from pydantic import JsonValue

from llava_recipes.errors import KeyPath, Problem
from llava_recipes.plan.batch import BatchSizes, StepCounts
from llava_recipes.plan.types import TrainPlan
from llava_recipes.recipe.names import EXTRA_FIELDS as EXTRA_FIELDS
from llava_recipes.recipe.names import INSTEAD, OPTIMIZERS
from llava_recipes.recipe.names import REFUSED_FIELDS as REFUSED_FIELDS
from llava_recipes.recipe.renames import did_you_mean, nearest, same_digits
from llava_recipes.recipe.schema import Train

_ADAM = ("adam", "adamw", "adamw_hf", "adam_w", "torch_adamw")
"""What is meant by AdamW without more words; Hugging Face's own `adamw_hf` is gone."""


def plan_train(train: Train, batch: BatchSizes, steps: StepCounts) -> TrainPlan:
    """The plan of a stage's `train`, its batch and steps counted."""
    return TrainPlan(
        per_device_train_batch_size=batch.per_device,
        gradient_accumulation_steps=batch.accumulation,
        global_batch_size=batch.in_all,
        num_train_epochs=train.num_train_epochs,
        steps_per_epoch=steps.per_epoch,
        max_steps=steps.in_all,
        warmup_steps=steps.warmup,
        learning_rate=train.learning_rate,
        precision="bf16" if train.bf16 else "fp16" if train.fp16 else "fp32",
        loss_normalization=train.loss_normalization,
        seed=train.seed,
        training_arguments=_other_arguments(train, warmup_steps=steps.warmup),
    )


def keyword_arguments(train: TrainPlan) -> dict[str, JsonValue]:
    """All keyword arguments of TrainingArguments that a plan comes to, without paths and processes."""
    length = "max_steps" if train.num_train_epochs is None else "num_train_epochs"
    warmup = {} if train.warmup_steps is None else {"warmup_steps": train.warmup_steps}
    return {
        "per_device_train_batch_size": train.per_device_train_batch_size,
        "gradient_accumulation_steps": train.gradient_accumulation_steps,
        length: getattr(train, length),
        **warmup,
        "learning_rate": train.learning_rate,
        "average_tokens_across_devices": train.loss_normalization == "token",
        "bf16": train.precision == "bf16",
        "fp16": train.precision == "fp16",
        "seed": train.seed,
        **train.training_arguments,
    }


def _other_arguments(train: Train, *, warmup_steps: int | None) -> dict[str, JsonValue]:
    """Keyword arguments of TrainingArguments that a plan says in no field of its own.

    `warmup_steps` are those of the plan; where it can't count them the recipe's share is an argument.
    """
    wanted: dict[str, JsonValue] = {
        "per_device_eval_batch_size": train.per_device_eval_batch_size,
        "weight_decay": train.weight_decay,
        "adam_beta1": train.adam_beta1,
        "adam_beta2": train.adam_beta2,
        "adam_epsilon": train.adam_epsilon,
        "max_grad_norm": train.max_grad_norm,
        "optim": train.optim,
        "lr_scheduler_type": train.lr_scheduler_type,
        "activation_checkpointing": train.gradient_checkpointing,
        "dataloader_num_workers": train.dataloader_num_workers,
        "eval_strategy": train.eval_strategy,
        "eval_steps": train.eval_steps,
        "logging_steps": train.logging_steps,
        "save_strategy": train.save_strategy,
        "save_steps": train.save_steps,
        "save_total_limit": train.save_total_limit,
        "report_to": list(train.report_to) if isinstance(train.report_to, tuple) else train.report_to,
    }
    if warmup_steps is None:
        # A share below 1 means ceil(share × steps), as the original's warmup_ratio did.
        wanted["warmup_steps"] = train.warmup_ratio
    if train.tf32:
        wanted["tf32"] = True
    if train.gradient_checkpointing:
        # The reentrant kind gives no gradient where the first layers are frozen.
        wanted["activation_checkpointing_kwargs"] = {"use_reentrant": False}
    return wanted | train.extra


def check_arguments(train: Train, *, path: KeyPath) -> list[Problem]:
    """What in `optim` and `extra` is not known, belongs elsewhere or has the wrong type.

    `path` is that of `train`.
    """
    problems = []
    if train.optim not in OPTIMIZERS:
        near = (
            None
            if train.optim.lower() in _ADAM
            else did_you_mean(train.optim, same_digits(train.optim, OPTIMIZERS))
        )
        hint = near or "write `optim: adamw_torch`, the usual one"
        problems.append(
            Problem(
                f"unknown optimizer {train.optim!r}",
                code="unknown-optimizer",
                path=(*path, "optim"),
                found=train.optim,
                hint=hint,
            )
        )
    for name, value in train.extra.items():
        problem = _check_extra(name, value, path=(*path, "extra", name))
        if problem is not None:
            problems.append(problem)
    return problems


def _check_extra(name: str, value: JsonValue, *, path: KeyPath) -> Problem | None:
    if name in INSTEAD:
        message, hint = f"`{name}` has no place in `extra`", INSTEAD[name]
        return Problem(message, code="not-for-extra", path=path, hint=hint, on_key=True)
    if name not in EXTRA_FIELDS:
        known = (*EXTRA_FIELDS, *REFUSED_FIELDS)
        near = nearest(name, known)
        if near is not None and near in REFUSED_FIELDS:
            hint = f"if `{near}` is meant: {REFUSED_FIELDS[near]}"
        else:
            hint = did_you_mean(name, known) or "`extra` takes fields of transformers.TrainingArguments"
        return Problem(
            f"`{name}` is no field of TrainingArguments",
            code="unknown-training-argument",
            path=path,
            hint=hint,
            on_key=True,
        )
    accepted = EXTRA_FIELDS[name].split("|")
    kind = type(value).__name__.replace("NoneType", "None")
    if kind in accepted or (kind == "int" and "float" in accepted):
        return None
    words = " or ".join(_KIND_WORDS[kind] for kind in accepted)
    return Problem(f"`{name}` takes {words}", code="value-of-wrong-kind", path=path, found=_KIND_WORDS[kind])


_KIND_WORDS = {
    "None": "null",
    "bool": "true or false",
    "dict": "a mapping",
    "float": "a number",
    "int": "a whole number",
    "list": "a list",
    "str": "a text",
}
