"""What a run is: which of its plan's values may change when it goes on, and which changes must be accepted.

Every field of a plan has one rule. *Learned*: it changes what is learned, so that the user confirms it by
name. *Harmless*: it changes no step. *Structural*: it changes which tensors a checkpoint contains, so that no
checkpoint fits any more. *Follows*: it is derived from other values, which have rules of their own.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal

from llava_recipes.recipe.keys import all_keys

if TYPE_CHECKING:
    from pydantic import JsonValue

    from llava_recipes.plan.types import Plan

Kind = Literal["learned", "harmless", "structural", "follows"]

_ARGUMENTS = "train.training_arguments"

# Each place of the plan with the keys of the recipe that set it, where they are spelled otherwise; `[]` is
# any entry of a list. A place without a rule has that of the nearest one around it.
_MODEL: Mapping[Kind, Mapping[str, str]] = {
    "learned": {
        "model.language_model": "model.language_model",
        "model.language_model.source": "model.language_model.source model.language_model",
        "model.language_model.revision": "",
        "model.language_model.tokenizer": "model.language_model.tokenizer model.language_model",
        "model.language_model.seed": "",
        "model.language_model.quantization": "",
        "model.language_model.quantization.bits": "",
        "model.language_model.quantization.type": "",
        "model.language_model.quantization.double_quant": "",
        "model.vision_tower": "",
        "model.vision_tower.source": "model.vision_tower.source model.vision_tower",
        "model.vision_tower.revision": "",
        "model.vision_tower.image_processor": "",
        "model.vision_tower.seed": "",
        "model.vision_tower.select_layer": "",
        "model.vision_tower.select_feature": "",
        "model.projector.init_from": "",
        "model.projector.seed": "",
    },
    "structural": {
        "model.language_model.config": "",
        "model.vision_tower.config": "",
        "model.projector": "",
        "model.projector.type": "",
        "model.image_tokens": "",
        "model.image_tokens.start_end": "",
        "model.image_tokens.patch": "",
        "model.image_newline": "data.mm_patch_merge_type",
        "model.sizes.language_hidden_size": "model.language_model",
        "model.sizes.vision_hidden_size": "model.vision_tower",
        "model.sizes.modules": "model.language_model",
    },
    "follows": {"model.sizes": "", "plan_version": "", "notes": ""},
    "harmless": {"recipe": "name", "world_size": ""},
}
_STAGE: Mapping[Kind, Mapping[str, str]] = {
    "learned": {
        "starts_from": "init_from",
        "lora.alpha": "",
        "lora.dropout": "",
        "lora.use_rslora": "",
        "param_groups": "",
        **dict.fromkeys(
            (f"param_groups[].{name}" for name in ("modules", "learning_rate", "weight_decay")),
            "param_groups",
        ),
        "data.template": "",
        "data.chat_template": "",
        "data.system_prompt": "",
        "data.sources": "",
        **dict.fromkeys(
            (f"data.sources[].{name}" for name in ("annotations", "images", "num_samples")), "data.sources"
        ),
        **dict.fromkeys(
            (f"data.sources[].{name}" for name in ("sampling_strategy", "weight")), "data.sources"
        ),
        "data.image_aspect_ratio": "",
        "data.image_grid_pinpoints": "",
        "data.mm_patch_merge_type": "",
        "data.max_length": "",
        "data.shuffle": "",
        "data.order": "",
        "data.group_by": "",
        "data.validation.split": "",
        "train.global_batch_size": "train.global_batch_size train.per_device_train_batch_size "
        "train.gradient_accumulation_steps",
        "train.num_train_epochs": "train.num_train_epochs train.max_steps",
        "train.max_steps": "train.max_steps train.num_train_epochs",
        "train.warmup_steps": "train.warmup_ratio train.warmup_steps",
        "train.learning_rate": "",
        "train.precision": "train.bf16 train.fp16",
        "train.loss_normalization": "",
        "train.seed": "",
        _ARGUMENTS: "train.extra",
        **{
            f"{_ARGUMENTS}.{name}": f"train.{name}"
            for name in (
                *("weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"),
                *("lr_scheduler_type", "tf32"),
            )
        },
        f"{_ARGUMENTS}.warmup_steps": "train.warmup_ratio",
        # DeepSpeed's own precision, clipping and communication; its other keys are below.
        "deepspeed": "",
        **dict.fromkeys(
            (
                f"deepspeed.zero_optimization.{name}"
                for name in (
                    *("zero_quantized_weights", "zero_quantized_gradients"),
                    *("zero_quantized_nontrainable_weights", "zeropp_loco_param", "zenflow"),
                )
            ),
            "deepspeed",
        ),
    },
    "structural": {
        "trainable_modules": "trainable freeze",
        "lora": "",
        "lora.r": "",
        "lora.modules": "",
        "lora.bias": "",
        "lora.use_dora": "",
        f"{_ARGUMENTS}.optim": "train.optim",
        f"{_ARGUMENTS}.optim_target_modules": "train.extra.optim_target_modules",
    },
    "harmless": {
        "name": "",
        "data.on_bad_image": "",
        # A run keeps its device batches; one process computes them in passes of this size.
        "train.per_device_train_batch_size": "",
        "data.lazy_preprocess": "",
        "data.validation": "",
        "data.validation.sources": "",
        **{
            f"{_ARGUMENTS}.{name}": f"train.{name}"
            for name in (
                *("per_device_eval_batch_size", "dataloader_num_workers", "eval_strategy", "eval_steps"),
                *("logging_steps", "save_strategy", "save_steps", "save_total_limit", "report_to"),
            )
        },
        f"{_ARGUMENTS}.activation_checkpointing": "train.gradient_checkpointing",
        **{
            f"{_ARGUMENTS}.{name}": f"train.extra.{name}"
            for name in (
                *("dataloader_multiprocessing_context", "dataloader_persistent_workers"),
                *("dataloader_pin_memory", "dataloader_prefetch_factor", "ddp_backend", "ddp_bucket_cap_mb"),
                *("ddp_broadcast_buffers", "ddp_find_unused_parameters", "ddp_static_graph", "ddp_timeout"),
                *("debug", "full_determinism", "include_num_input_tokens_seen", "log_level"),
                *("log_level_replica", "logging_first_step", "project", "skip_memory_metrics"),
                *("torch_compile", "torch_compile_backend", "torch_compile_mode", "torch_empty_cache_steps"),
                "use_cache",
            )
        },
        **{
            f"deepspeed.{name}": "deepspeed"
            for name in (
                *("zero_optimization", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer"),
                *("steps_per_print", "wall_clock_breakdown", "dump_state", "memory_breakdown", "aio"),
                *("comms_logger", "flops_profiler", "tensorboard", "wandb", "comet", "csv_monitor"),
                *("timers", "log_level", "disable_python_gc"),
                *("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"),
                *("activation_checkpointing", "disable_allgather", "nebula", "compile"),
            )
        },
        "sampling": "sample_every",
        "sampling.every": "sample_every",
        "sampling.num_records": "samples.num",
        "sampling.images": "samples.images",
        "sampling.prompt": "samples.prompt",
        "sampling.max_new_tokens": "samples.max_new_tokens",
        "expect": "",
        "expect.loss": "",
        "output_dir": "",
    },
    "follows": {
        **dict.fromkeys(("num_trainable_parameters", "param_groups[].num_parameters"), ""),
        **dict.fromkeys(("data.tokens_in_plain", "data.num_samples", "data.image_counts"), ""),
        **dict.fromkeys((f"data.sources[].{name}" for name in ("num_held_out", "part", "num_used")), ""),
        **dict.fromkeys(("data.sources[].draw_seed", "data.validation.num_samples"), ""),
        **dict.fromkeys(("data.validation.num_evaluations", "train.steps_per_epoch"), ""),
        "train.gradient_accumulation_steps": "",
        # Where the names of the modules are not known, what the recipe says is compared instead.
        **dict.fromkeys(("freeze", "trainable", "deepspeed_source"), ""),
        f"{_ARGUMENTS}.activation_checkpointing_kwargs": "",
    },
}


@dataclass(frozen=True)
class Rule:
    """What a change of one place of a plan means, and the keys of the recipe that set it."""

    kind: Kind
    keys: tuple[str, ...]


def _rules() -> Iterator[tuple[str, Rule]]:
    for prefix, table in (("", _MODEL), ("stages[].", _STAGE)):
        for kind, places in table.items():
            for place, keys in places.items():
                yield prefix + place, Rule(kind, tuple(keys.split()) or (place.replace("[]", ""),))


RULES: Final[Mapping[str, Rule]] = MappingProxyType(dict(_rules()))
"""By the place in the plan: `stages[].train.learning_rate`. Keys of stages are those inside the stage."""


def rule_of(pattern: str) -> Rule:
    """The rule of a place in a plan, or of the nearest one around it. Raises KeyError where none is."""
    place = pattern
    while place not in RULES:
        head, dot, _ = place.rpartition(".")
        if not dot:
            raise KeyError(pattern)
        place = place.removesuffix("[]") if place.endswith("[]") else head
    rule = RULES[place]
    if place == f"stages[].{_ARGUMENTS}" and pattern != place:
        name = pattern.removeprefix(f"{place}.").partition(".")[0]
        is_own = any(key.path == f"stages[].train.{name}" for key in all_keys())
        return replace(rule, keys=(f"train.{name}" if is_own else f"train.extra.{name}",))
    return rule


_BY_CONTENT: Final = frozenset(["annotations", "images", "source", "tokenizer", "init_from", "starts_from"])
"""Paths, which may lead to the same content elsewhere."""
_NOT_NAMED: Final = (
    *("stages[0].train.num_train_epochs", "stages[0].deepspeed", "stages[0].data.image_grid_pinpoints"),
    "model.sizes",
)
"""What another value stands for, and what may be unknown at first."""


def run_name(plan: Plan, contents: Mapping[str, object]) -> str:
    """A name that runs share which learn the same from step 0 on, and others don't.

    contents  of what the stage reads, by its path in the plan
    """
    learned = sorted(
        (place, json.dumps(value))
        for place, value in _leaves(plan.model_dump(mode="json"), "")
        if rule_of(re.sub(r"\[\d+\]", "[]", place)).kind == "learned"
        and place.rpartition(".")[2] not in _BY_CONTENT
        and not place.startswith(_NOT_NAMED)
    )
    text = json.dumps([learned, contents], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _leaves(value: JsonValue, place: str) -> Iterator[tuple[str, JsonValue]]:
    """Every value inside, by its place: `stages[0].train.seed`."""
    if isinstance(value, dict):
        for key, inside in value.items():
            yield from _leaves(inside, f"{place}.{key}" if place else key)
    elif isinstance(value, list) and any(isinstance(each, dict) for each in value):
        for number, each in enumerate(value):
            yield from _leaves(each, f"{place}[{number}]")
    else:
        yield place, value
