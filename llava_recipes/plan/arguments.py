"""From a stage's `train` settings to the keyword arguments of transformers.TrainingArguments (version 5)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from pydantic import JsonValue

from llava_recipes.recipe.errors import Path, Problem
from llava_recipes.recipe.schema import Train
from llava_recipes.recipe.spelling import did_you_mean

EXTRA_FIELDS: Mapping[str, str] = MappingProxyType(
    {
        "dataloader_drop_last": "bool",
        "dataloader_in_order": "bool",
        "dataloader_multiprocessing_context": "None|str",
        "dataloader_persistent_workers": "bool",
        "dataloader_pin_memory": "bool",
        "dataloader_prefetch_factor": "None|int",
        "ddp_backend": "None|str",
        "ddp_broadcast_buffers": "None|bool",
        "ddp_bucket_cap_mb": "None|int",
        "ddp_find_unused_parameters": "None|bool",
        "ddp_static_graph": "None|bool",
        "ddp_timeout": "int",
        "debug": "list|str",
        "full_determinism": "bool",
        "include_num_input_tokens_seen": "bool|str",
        "liger_kernel_config": "None|dict",
        "log_level": "str",
        "log_level_replica": "str",
        "logging_first_step": "bool",
        "lr_scheduler_kwargs": "None|dict|str",
        "neftune_noise_alpha": "None|float",
        "optim_args": "None|str",
        "optim_target_modules": "None|list|str",
        "project": "str",
        "skip_memory_metrics": "bool",
        "torch_compile": "bool",
        "torch_compile_backend": "None|str",
        "torch_compile_mode": "None|str",
        "torch_empty_cache_steps": "None|int",
        "use_cache": "bool",
        "use_liger_kernel": "bool",
    }
)
"""What `extra` accepts: TrainingArguments fields and the types of their values."""

_IN_TRAIN = "write it under `train:` itself"
_EVALUATION_FIELDS = (
    *("do_eval", "do_predict", "bf16_full_eval", "fp16_full_eval", "eval_delay"),
    *("eval_accumulation_steps", "eval_do_concat_batches", "eval_use_gather_object", "batch_eval_metrics"),
    *("include_for_metrics", "prediction_loss_only", "eval_on_start"),
)
_BEST_MODEL_FIELDS = ("load_best_model_at_end", "metric_for_best_model", "greater_is_better")
_UPLOAD_FIELDS = (
    *("push_to_hub", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push", "hub_revision"),
    *("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
)
_CHECKPOINT_FIELDS = (
    *("save_only_model", "save_on_each_node", "ignore_data_skip", "enable_jit_checkpoint"),
    "restore_callback_states_from_checkpoint",
)
_RECOMPUTE_FIELDS = (
    "activation_checkpointing",
    "activation_checkpointing_kwargs",
    "gradient_checkpointing_kwargs",
)
_SHARDING_FIELDS = ("fsdp", "fsdp_config", "parallelism_config")

REFUSED_FIELDS: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(
            (name for name in Train.model_fields if name not in ("warmup_ratio", "extra")), _IN_TRAIN
        ),
        **dict.fromkeys(
            _EVALUATION_FIELDS, "remove it: `eval_strategy:` under `train:` says all there is to evaluation"
        ),
        **dict.fromkeys(
            _BEST_MODEL_FIELDS,
            "remove it: the last weights are the result; `eval_loss` in metrics.jsonl tells the best step",
        ),
        **dict.fromkeys(_UPLOAD_FIELDS, "remove it: a run uploads nothing"),
        **dict.fromkeys(_CHECKPOINT_FIELDS, "remove it: a run keeps its own checkpoints, which resume"),
        **dict.fromkeys(_RECOMPUTE_FIELDS, "write `gradient_checkpointing:` under `train:`"),
        **dict.fromkeys(_SHARDING_FIELDS, "remove it: sharding is set by `deepspeed:` of the stage"),
        "accelerator_config": "remove it: it would change how the plan counts steps",
        "auto_find_batch_size": "remove it: it would change the batch that the recipe asks for",
        "average_tokens_across_devices": "write `loss_normalization:` under `train:`",
        "data_seed": "write `seed:` under `train:`; it seeds the data order too",
        "deepspeed": "write `deepspeed:` in the stage",
        "disable_tqdm": "remove it: progress is shown by llava-recipe itself",
        "do_train": "remove it: a stage always trains",
        "hub_token": "remove it: a recipe holds no secrets; log in with `hf auth login`",
        "label_names": "remove it: the data says what is learned",
        "label_smoothing_factor": "remove it: the loss is computed inside the model",
        "length_column_name": "write `shuffle:` under `data:` of the stage",
        "local_rank": "remove it: `llava-recipe run` starts the processes",
        "log_on_each_node": "remove it: the first process alone speaks",
        "logging_nan_inf_filter": "remove it: a loss that is not finite ends the run",
        "logging_strategy": "write `logging_steps:` under `train:`",
        "output_dir": "write `output_dir:` in the stage",
        "remove_unused_columns": "remove it: the data is read as the recipe says",
        "resume_from_checkpoint": "remove it and run `llava-recipe run FILE --resume`",
        "run_name": "write `name:` of the recipe and of the stage",
        "train_sampling_strategy": "write `shuffle:` under `data:` of the stage",
        "use_cpu": "remove it: a run uses the GPUs that it sees, the CPU where there is none",
    }
)
"""TrainingArguments fields that `extra` does not take, and what to write instead."""

_GONE = MappingProxyType(
    {
        "evaluation_strategy": "write `eval_strategy:` under `train:`",
        "group_by_length": "write `group_by: length` under `data:` of the stage",
        "logging_dir": "remove it: logs go to the stage's `output_dir`",
        "no_cuda": "remove it: a run uses the GPUs that it sees, the CPU where there is none",
        "overwrite_output_dir": "remove it: a finished run is never overwritten",
        "push_to_hub_token": "remove it: a recipe holds no secrets; log in with `hf auth login`",
        "save_safetensors": "remove it: both forms are written",
        "warmup_ratio": _IN_TRAIN,
        "global_batch_size": _IN_TRAIN,
        "loss_normalization": _IN_TRAIN,
    }
)

OPTIMIZERS = frozenset(
    [
        "adafactor",
        "adagrad",
        "adalomo",
        "adamw_8bit",
        "adamw_anyprecision",
        "adamw_bnb_8bit",
        "adamw_torch",
        "adamw_torch_4bit",
        "adamw_torch_8bit",
        "adamw_torch_fused",
        "adamw_torch_npu_fused",
        "adamw_torch_xla",
        "ademamix",
        "ademamix_8bit",
        "apollo_adamw",
        "apollo_adamw_layerwise",
        "galore_adafactor",
        "galore_adafactor_layerwise",
        "galore_adamw",
        "galore_adamw_8bit",
        "galore_adamw_8bit_layerwise",
        "galore_adamw_layerwise",
        "grokadamw",
        "lion_32bit",
        "lion_8bit",
        "lomo",
        "paged_adamw_32bit",
        "paged_adamw_8bit",
        "paged_ademamix_32bit",
        "paged_ademamix_8bit",
        "paged_lion_32bit",
        "paged_lion_8bit",
        "rmsprop",
        "rmsprop_bnb",
        "rmsprop_bnb_32bit",
        "rmsprop_bnb_8bit",
        "schedule_free_adamw",
        "schedule_free_radam",
        "schedule_free_sgd",
        "sgd",
        "stable_adamw",
    ]
)

FIELDS = frozenset(EXTRA_FIELDS) | frozenset(REFUSED_FIELDS) - {"global_batch_size", "loss_normalization"}
"""Every field of TrainingArguments."""


def training_arguments(train: Train, *, gradient_accumulation_steps: int) -> dict[str, JsonValue]:
    """Keyword arguments of TrainingArguments, without paths and processes."""
    wanted: dict[str, JsonValue] = {
        "per_device_train_batch_size": train.per_device_train_batch_size,
        "per_device_eval_batch_size": train.per_device_eval_batch_size,
        "gradient_accumulation_steps": gradient_accumulation_steps,
        "learning_rate": train.learning_rate,
        "weight_decay": train.weight_decay,
        "adam_beta1": train.adam_beta1,
        "adam_beta2": train.adam_beta2,
        "adam_epsilon": train.adam_epsilon,
        "max_grad_norm": train.max_grad_norm,
        "optim": train.optim,
        # A share below 1 means ceil(share × steps), as the original's warmup_ratio did.
        "warmup_steps": train.warmup_steps if train.warmup_steps is not None else train.warmup_ratio or 0,
        "lr_scheduler_type": train.lr_scheduler_type,
        "average_tokens_across_devices": train.loss_normalization == "token",
        "bf16": train.bf16,
        "fp16": train.fp16,
        "activation_checkpointing": train.gradient_checkpointing,
        "dataloader_num_workers": train.dataloader_num_workers,
        "eval_strategy": train.eval_strategy,
        "eval_steps": train.eval_steps,
        "logging_steps": train.logging_steps,
        "save_strategy": train.save_strategy,
        "save_steps": train.save_steps,
        "save_total_limit": train.save_total_limit,
        "report_to": list(train.report_to) if isinstance(train.report_to, tuple) else train.report_to,
        "seed": train.seed,
    }
    if train.max_steps is not None:
        wanted["max_steps"] = train.max_steps
    else:
        wanted["num_train_epochs"] = train.num_train_epochs
    if train.tf32:
        wanted["tf32"] = True
    if train.gradient_checkpointing:
        # The reentrant kind gives no gradient where the first layers are frozen.
        wanted["activation_checkpointing_kwargs"] = {"use_reentrant": False}
    return wanted | train.extra


def check_arguments(train: Train, *, path: Path) -> list[Problem]:
    """What in `optim` and `extra` is not known, belongs elsewhere or has the wrong type.

    `path` is that of `train`.
    """
    problems = []
    if train.optim not in OPTIMIZERS:
        hint = did_you_mean(train.optim, OPTIMIZERS) or "`adamw_torch` is the usual one"
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


def _check_extra(name: str, value: JsonValue, *, path: Path) -> Problem | None:
    if name in REFUSED_FIELDS or name in _GONE:
        hint = REFUSED_FIELDS.get(name) or _GONE[name]
        return Problem(
            f"`{name}` has no place in `extra`", code="no-place-extra", path=path, hint=hint, on_key=True
        )
    if name not in EXTRA_FIELDS:
        known = (*EXTRA_FIELDS, *REFUSED_FIELDS)
        hint = did_you_mean(name, known) or "`extra` takes fields of transformers.TrainingArguments"
        return Problem(
            f"`{name}` is no field of TrainingArguments",
            code="no-field-trainingarguments",
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
