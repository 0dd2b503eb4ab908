"""Names of the settings of other libraries, from names.json, and what to write instead of unsupported ones.

Importing the libraries takes seconds, and a plan needs their names only. docs/CONTRIBUTING.md says how to
generate the file; tests/recipe/test_names.py compares it with the installed versions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from llava_recipes.recipe.renames import OTHER_NAMES
from llava_recipes.recipe.schema import Train

FILE: Final = Path(__file__).with_name("names.json")
_NAMES = json.loads(FILE.read_text("utf-8"))

TRAINING_ARGUMENTS: Final[Mapping[str, str]] = MappingProxyType(_NAMES["training_arguments"])
"""Fields of transformers.TrainingArguments, with the types of their values: "None|int"."""

OPTIMIZERS: Final = frozenset(_NAMES["optimizers"])
"""Values of `optim` in TrainingArguments."""

DEEPSPEED_KEYS: Final = frozenset(_NAMES["deepspeed_keys"])
"""Top-level keys of a DeepSpeed config. DeepSpeed ignores all others silently."""

DEEPSPEED_REMOVED_KEYS: Final = frozenset(_NAMES["deepspeed_removed_keys"])
"""Top-level keys that DeepSpeed 0.19.3 accepts and 0.19.8 refuses, with any value."""

ZERO_KEYS: Final = frozenset(_NAMES["zero_keys"])
"""Keys of `zero_optimization`. DeepSpeed refuses all others, after the model is loaded."""

ZERO_REMOVED_KEYS: Final = frozenset(_NAMES["zero_removed_keys"])
"""As DEEPSPEED_REMOVED_KEYS, for `zero_optimization`."""

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
            _EVALUATION_FIELDS, "remove it: evaluation is set by `eval_strategy:` under `train:`"
        ),
        **dict.fromkeys(
            _BEST_MODEL_FIELDS,
            "remove it: the last weights are the result; metrics.jsonl has every `eval_loss`",
        ),
        **dict.fromkeys(_UPLOAD_FIELDS, "remove it: a run uploads nothing"),
        **dict.fromkeys(
            _CHECKPOINT_FIELDS, "remove it: a run writes its own checkpoints, from which it resumes"
        ),
        **dict.fromkeys(_RECOMPUTE_FIELDS, OTHER_NAMES["activation_checkpointing"]),
        **dict.fromkeys(_SHARDING_FIELDS, "remove it: sharding is set by `deepspeed:` of the stage"),
        "accelerator_config": "remove it: it would change how the plan counts steps",
        "auto_find_batch_size": "remove it: it would change the batch size of the recipe",
        "average_tokens_across_devices": "write `loss_normalization:` under `train:`",
        "data_seed": "write `seed:` under `train:`; it seeds the data order too",
        "deepspeed": "write `deepspeed:` in the stage",
        "disable_tqdm": "remove it: llava-recipe shows the progress itself",
        "do_train": "remove it: a stage always trains",
        "hub_token": "remove it: a recipe contains no secrets; log in with `hf auth login`",
        "label_names": "remove it: labels come from the data",
        "label_smoothing_factor": "remove it: the loss is computed inside the model",
        "length_column_name": "remove it: lengths are counted from the records",
        "local_rank": "remove it: `llava-recipe run` starts the processes",
        "log_on_each_node": "remove it: only the first process prints",
        "logging_nan_inf_filter": "remove it: a loss that is not finite stops the run",
        "logging_strategy": "write `logging_steps:` under `train:`",
        "output_dir": "write `output_dir:` in the stage",
        "remove_unused_columns": OTHER_NAMES["remove_unused_columns"],
        "resume_from_checkpoint": "remove it and run `llava-recipe run FILE --resume`",
        "run_name": "write `name:` of the recipe and of the stage",
        "train_sampling_strategy": "write `group_by:` or `shuffle:` under `data:` of the stage",
        "use_cpu": "remove it: a run uses all visible GPUs, or the CPU if there are none",
    }
)
"""Fields of TrainingArguments that `extra` does not accept, and what to write instead."""

EXTRA_FIELDS: Mapping[str, str] = MappingProxyType(
    {name: kinds for name, kinds in TRAINING_ARGUMENTS.items() if name not in REFUSED_FIELDS}
)
"""Fields of TrainingArguments that `extra` accepts, with the types of their values."""

GONE_FIELDS: Mapping[str, str] = MappingProxyType(
    {
        **{
            name: OTHER_NAMES[name]
            for name in (
                *("evaluation_strategy", "group_by_length", "logging_dir", "no_cuda"),
                *("overwrite_output_dir", "save_safetensors"),
            )
        },
        "push_to_hub_token": "remove it: a recipe contains no secrets; log in with `hf auth login`",
        "warmup_ratio": _IN_TRAIN,
        "global_batch_size": _IN_TRAIN,
        "loss_normalization": _IN_TRAIN,
    }
)
"""Fields that TrainingArguments no longer has, or never had, and what to write instead."""

INSTEAD: Mapping[str, str] = MappingProxyType({**GONE_FIELDS, **REFUSED_FIELDS})
"""What to write instead of any name that `extra` does not accept."""
