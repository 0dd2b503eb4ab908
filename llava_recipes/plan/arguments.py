"""The `train` of a stage: its plan, its keyword arguments of TrainingArguments (version 5), its errors."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

from pydantic import JsonValue

from llava_recipes.errors import KeyPath, Problem, RecipeError
from llava_recipes.plan.batch import BatchSizes, StepCounts
from llava_recipes.plan.types import TrainPlan
from llava_recipes.recipe.names import EXTRA_FIELDS, INSTEAD, OPTIMIZERS, REFUSED_FIELDS
from llava_recipes.recipe.renames import did_you_mean, nearest, same_digits
from llava_recipes.recipe.schema import Train

_ADAM = ("adam", "adamw", "adamw_hf", "adam_w", "torch_adamw")
"""Names of plain AdamW in other programs; transformers 5 has no `adamw_hf` of its own."""

_ADVICE = "write `optim: adamw_torch`, the usual one"
_UNUSABLE = (
    (
        r"(ada)?lomo|.+_layerwise",
        "it changes weights during the backward pass, before anything can check the gradients",
    ),
    (r"schedule_free_.+", "the weights that it trains are not yet those that it results in"),
    (r"adamw_torch_[48]bit", "neither a checkpoint nor a log can contain what it keeps"),
    (r"adamw_torch_xla|adamw_torch_npu_fused", "it needs a device that no run uses"),
    (r"adamw_anyprecision", "it needs torchdistx, which no current torch supports"),
)
"""Optimizers of transformers with which no run can train, and why."""
_PACKAGES = (
    (r"galore_.+", "galore_torch", "galore-torch"),
    (r"apollo_.+", "apollo_torch", "apollo-torch"),
    (r"grokadamw", "grokadamw", "grokadamw"),
    (r"stable_adamw", "optimi", "torch-optimi"),
    (
        r"paged_.+|lion_.+|.*ademamix.*|rmsprop_bnb.*|adamw_.*8bit|galore_.+8bit",
        "bitsandbytes",
        "bitsandbytes",
    ),
)
_LEVELS = ("detail", "debug", "info", "warning", "error", "critical", "passive")
_ACCEPTED: Mapping[str, tuple[str, Callable[[object], bool]]] = {
    "dataloader_multiprocessing_context": (
        "`fork`, `forkserver` or `spawn`",
        lambda value: value in (None, "fork", "forkserver", "spawn"),
    ),
    **dict.fromkeys(
        ("log_level", "log_level_replica"),
        (f"one of {', '.join(f'`{level}`' for level in _LEVELS)}", lambda value: value in _LEVELS),
    ),
    "dataloader_prefetch_factor": (
        "a whole number from 1 on",
        lambda value: value is None or (isinstance(value, int) and value >= 1),
    ),
}
"""Fields of `extra` of which torch accepts some values only."""

_KIND_WORDS = {
    "None": "null",
    "bool": "true or false",
    "dict": "a mapping",
    "float": "a number",
    "int": "a whole number",
    "list": "a list",
    "str": "a string",
}


def plan_train(train: Train, batch: BatchSizes, steps: StepCounts) -> TrainPlan:
    """The plan of a stage's `train` with its counted batch and steps."""
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
    """All keyword arguments of TrainingArguments for a plan, without paths and processes."""
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
    """Keyword arguments of TrainingArguments that have no field in the plan.

    Where the plan cannot count `warmup_steps`, the recipe's share is among them.
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
        # Reentrant checkpointing gives no gradients where the first layers are frozen.
        wanted["activation_checkpointing_kwargs"] = {"use_reentrant": False}
    return wanted | train.extra


def check_arguments(train: Train, *, path: KeyPath) -> Iterator[Problem]:
    """Optimizers that are unknown or cannot be used, and keys of `extra` that are unknown, belong elsewhere
    or have a wrong type.

    `path` is that of `train`.
    """
    if train.optim not in OPTIMIZERS:
        near = None
        if train.optim.lower() not in _ADAM:
            near = did_you_mean(train.optim, same_digits(train.optim, OPTIMIZERS))
        yield Problem(
            f"unknown optimizer {train.optim!r}",
            code="unknown-optimizer",
            path=(*path, "optim"),
            found=train.optim,
            hint=near or _ADVICE,
        )
    yield from _check_optimizer(train, path=(*path, "optim"))
    for name, value in train.extra.items():
        yield from _check_extra(name, value, path=(*path, "extra", name))


def _check_optimizer(train: Train, *, path: KeyPath) -> Iterator[Problem]:
    name = train.optim
    reason = next((why for pattern, why in _UNUSABLE if re.fullmatch(pattern, name)), None)
    if reason is not None:
        message = f"`optim: {name}` cannot train a stage"
        yield Problem(message, code="optimizer-unusable", path=path, found=reason, hint=_ADVICE)
        return
    if not is_of_matrices(name):
        return
    if not train.extra.get("optim_target_modules"):
        yield Problem(
            f"`optim: {name}` needs `optim_target_modules`",
            code="optimizer-needs-targets",
            path=path,
            hint="write `extra: {optim_target_modules: all-linear}` under `train:`, or `optim: adamw_torch`",
        )
    if train.save_strategy != "no":
        yield Problem(
            "the optimizer's state cannot be saved in checkpoints",
            code="optimizer-not-storable",
            path=path,
            found=f"{name}: it keeps more than tensors per weight",
            hint='write `optim: adamw_torch`; or `save_strategy: "no"`, with which an interrupted run starts '
            "again at step 0",
        )


def is_of_matrices(optim: str) -> bool:
    """Whether an optimizer keeps a projection of each matrix, of the modules that it is told."""
    return optim.startswith(("galore", "apollo"))


def packages_of(optim: str) -> list[tuple[str, str]]:
    """What an optimizer needs beside torch: modules, each with the package that has it."""
    return [(module, package) for pattern, module, package in _PACKAGES if re.fullmatch(pattern, optim)]


@contextmanager
def accepted_by_transformers(names: Iterable[str], *, path: KeyPath) -> Iterator[None]:
    """Turn an error about settings, which only transformers can check, into a problem at `path`.

    names  those that a recipe gives, of which one is the cause; without any, it isn't the recipe's fault
    """
    try:
        yield
    except (ValueError, TypeError, LookupError, ImportError, NotImplementedError) as error:
        given = ", ".join(f"`{name}`" for name in names)
        if not given:
            raise
        raise RecipeError.of(
            "transformers does not accept these settings",
            code="training-arguments-refused",
            path=path,
            found=str(error).strip() or type(error).__name__,
            hint=f"change or remove what causes it: {given}",
        ) from error


def _check_extra(name: str, value: JsonValue, *, path: KeyPath) -> Iterator[Problem]:
    if name in INSTEAD:
        message, hint = f"`{name}` does not belong in `extra`", INSTEAD[name]
        yield Problem(message, code="not-for-extra", path=path, hint=hint, on_key=True)
    elif name not in EXTRA_FIELDS:
        known = (*EXTRA_FIELDS, *REFUSED_FIELDS)
        near = nearest(name, known)
        if near is not None and near in REFUSED_FIELDS:
            hint = f"for `{near}`: {REFUSED_FIELDS[near]}"
        else:
            hint = did_you_mean(name, known) or "`extra` takes fields of transformers.TrainingArguments"
        yield Problem(
            f"TrainingArguments has no field `{name}`",
            code="unknown-training-argument",
            path=path,
            hint=hint,
            on_key=True,
        )
    else:
        accepted, kind = EXTRA_FIELDS[name].split("|"), type(value).__name__.replace("NoneType", "None")
        if kind not in accepted and not (kind == "int" and "float" in accepted):
            message = f"`{name}` takes {' or '.join(_KIND_WORDS[each] for each in accepted)}"
            yield Problem(message, code="value-of-wrong-kind", path=path, found=_KIND_WORDS[kind])
        elif name in _ACCEPTED and not _ACCEPTED[name][1](value):
            message = f"`{name}` takes {_ACCEPTED[name][0]}"
            yield Problem(message, code="value-of-wrong-kind", path=path, found=str(value))
