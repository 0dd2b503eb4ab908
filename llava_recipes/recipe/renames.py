"""The names of other programs for keys, modules and templates; the known word that a misspelled one means.

A key that is renamed gets its old name here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_KEYS: dict[str, dict[str, str]] = {
    "in `vision_tower:` of `model:`": {
        "select_layer": "mm_vision_select_layer vision_feature_layer",
        "select_feature": "mm_vision_select_feature vision_feature_select_strategy",
    },
    "in `projector:` of `model:`": {
        "init_from": "pretrain_mm_mlp_adapter",
        "type": "mm_projector_type",
    },
    "under `model:`": {
        "projector": "mm_projector multi_modal_projector connector projection",
        "language_model": "llm lm base_model",
        "vision_tower": "vision_encoder visual_encoder image_encoder vision_model",
    },
    "in `image_tokens:` of `model:`": {
        "start_end": "mm_use_im_start_end",
        "patch": "mm_use_im_patch_token",
    },
    "in an entry of `data.sources`": {
        "annotations": "data_path ann_file annotation_path data_file data_files json_path",
        "images": "image_folder images_folder img_dir media_dir image_root image_dir",
        "weight": "repeat_time repeat repeats num_repeats",
    },
    "under `data:` of the stage": {
        "max_length": "model_max_length cutoff_len sequence_len max_seq_length max_seq_len max_tokens",
        "template": "conv_template prompt_template conversation_template conv_mode conv_version "
        "prompt_version",
        "system_prompt": "system system_message",
        "sources": "datasets",
    },
    "in `lora:` of the stage": {
        "r": "rank lora_rank lora_r",
        "use_dora": "dora",
        "use_rslora": "rslora",
        "alpha": "lora_alpha",
        "dropout": "lora_dropout",
        "bias": "lora_bias",
        "modules": "target_modules lora_target targets",
    },
    "under `train:`": {
        "eval_strategy": "evaluation_strategy",
        "per_device_train_batch_size": "per_gpu_train_batch_size per_device_batch_size device_batch_size "
        "train_batch_size micro_batch_size train_micro_batch_size_per_gpu batch_size_per_device "
        "batch_size_per_gpu",
        "per_device_eval_batch_size": "per_gpu_eval_batch_size eval_batch_size val_batch_size",
        "gradient_checkpointing": "activation_checkpointing grad_checkpoint checkpointing",
        "learning_rate": "lr base_lr max_lr peak_lr",
        "adam_beta1": "beta1",
        "adam_beta2": "beta2",
        "adam_epsilon": "eps epsilon adam_eps",
        "weight_decay": "wd decay",
        "num_train_epochs": "max_epochs n_epochs epoch epochs num_epochs",
        "max_steps": "total_steps train_steps max_train_steps max_iters steps num_steps",
        "logging_steps": "log_interval log_steps log_every log_every_n_steps logging_interval",
        "save_steps": "save_interval save_every save_freq checkpoint_every",
        "save_total_limit": "save_limit max_checkpoints",
        "eval_steps": "eval_interval eval_every",
        "seed": "random_seed manual_seed",
        "report_to": "report logger tracker",
        "global_batch_size": "total_batch_size effective_batch_size global_batch",
        "gradient_accumulation_steps": "gradient_accumulation grad_accum accumulation_steps "
        "accumulate_grad_batches accumulative_counts",
        "max_grad_norm": "gradient_clipping clip_grad_norm clip_grad grad_clip gradient_clip_val clip_norm "
        "max_norm max_grad",
        "warmup_ratio": "warmup_proportion warmup_fraction",
        "warmup_steps": "warmup_iters",
        "lr_scheduler_type": "scheduler lr_scheduler lr_schedule",
        "optim": "optimizer optimizer_type optim_type",
        "dataloader_num_workers": "num_workers workers",
        "loss_normalization": "loss",
    },
    "in the stage": {
        "trainable": "unfreeze train_modules",
        "output_dir": "output output_path save_dir",
        "deepspeed": "deepspeed_config ds_config zero_stage",
    },
    "at the top level": {
        "vars": "variables",
    },
}
"""Where a key is written; the key; its other names."""

_SENTENCES: dict[str, str] = {
    "write `language_model: …` under `model:`": "model_name_or_path",
    "write `freeze: all` and `trainable: [projector]` in the stage": "tune_mm_mlp_adapter",
    "write `freeze: [projector]` in the stage": "freeze_mm_mlp_adapter freeze_aligner freeze_projector",
    "write `freeze: [language_model]` in the stage": "freeze_backbone freeze_llm freeze_language_model",
    "write `trainable: [vision_tower]` in the stage": "unfreeze_mm_vision_tower",
    "list the modules under `trainable:` in the stage": "mm_tunable_parts modules_to_save",
    "write `vision_tower: {source: …}` under `model:`": "mm_vision_tower",
    "write `sampling_strategy: first:1000` in an entry of `data.sources`": "sampling_number",
    "write `weight:` or `sampling_strategy: random:10%` in an entry of `data.sources`": "sampling_ratio",
    "write `validation: {sources: […]}` under `data:` of the stage": (
        "eval_data_path val_data_path eval_dataset"
    ),
    "write `validation: {split: …}` under `data:` of the stage": "val_size",
    "write `lora: {r: …, alpha: …}` in the stage": "lora_enable use_lora peft adapter",
    "write `quantization: {bits: …}` in `language_model:`": "load_in_4bit load_in_8bit bits",
    "write `param_groups: [{modules: [projector], learning_rate: …}]` in the stage": "mm_projector_lr",
    "write `param_groups: [{modules: [vision_tower], learning_rate: …}]` in the stage": (
        "mm_vision_tower_lr vision_tower_lr"
    ),
    "write `group_by: modality_length` under `data:` of the stage": "group_by_modality_length",
    "write `group_by: length` under `data:` of the stage": "group_by_length",
    "remove it: a run uses the GPUs that it sees, the CPU where there is none": "no_cuda",
    "remove it: a finished run is never overwritten": "overwrite_output_dir",
    "remove it: logs go to the stage's `output_dir`": "logging_dir",
    "remove it: both forms are written": "save_safetensors",
    "remove it: the data is read as the recipe says": "remove_unused_columns",
    "write `adam_beta1:` and `adam_beta2:` under `train:`": "betas adam_betas",
    "write `bf16: true` or `fp16: true` under `train:`": (
        "precision mixed_precision dtype torch_dtype amp bfloat16 half"
    ),
    "write `fp16: true` under `train:`": "float16",
    "remove it: a stage trains in float32 without `bf16` and `fp16`": "fp32 float32",
    "write `report_to: wandb` under `train:`": "use_wandb wandb",
    "write `per_device_train_batch_size:` or `global_batch_size:` under `train:`": "batch_size batch",
    "write `warmup_ratio:` or `warmup_steps:` under `train:`": "warmup",
    "write `extends: FILE` at the top level": (
        "base _base_ defaults import imports include includes inherit inherits parent"
    ),
    "write `extends: [FILE, …]` at the top level": "parents",
    "write `env: [NAME]` at the top level": "environment environ",
    "write `data: {sources: […]}` in the stage": "dataset",
    "write `freeze: [vision_tower]` in the stage": "freeze_vit freeze_vision_tower",
}
"""What to write where one key is not enough, and the names that mean it."""

OTHER_NAMES: dict[str, str] = {
    name: hint
    for hint, names in (
        *((f"write `{key}:` {place}", names) for place, keys in _KEYS.items() for key, names in keys.items()),
        *_SENTENCES.items(),
    )
    for name in names.split()
}
"""The names that other programs have for keys, each with the hint what to write."""

OTHER_MODULES: dict[str, str] = {
    name: module
    for module, names in {
        "projector": "multi_modal_projector mm_projector connector",
        "vision_tower": "vision_model vision_encoder mm_vision_tower image_encoder visual vision",
        "language_model": "llm backbone text_model model layers embed_tokens",
        "lm_head": "output_layer",
    }.items()
    for name in names.split()
}
"""The names that other programs have for modules, each with ours."""

OTHER_TEMPLATES: dict[str, str] = {
    name: hint
    for hint, names in {
        "write `v1`": "vicuna llava",
        "write `v1`: the original has no `v0.5` and silently uses `v1`": "v0.5",
        "write `v1`: it ends answers with the tokenizer's own end of text": "phi phi_2 phi2 phi-2",
        "write `plain`": "pretrain",
        # LLaVA-NeXT's names.
        "write `qwen`": "qwen_1_5 qwen_2",
        "write `llama_3`": "llava_llama_3 llama3",
        "write `llama_2`, or `llava_llama_2`, which has the system prompt of LLaVA": "llama2 llama-2",
        "write `gemma`": "gemma_instruct",
        "write `mistral_instruct`": "llava_mistral_instruct",
        "write `v0_mmtag`": "llava_v0_mmtag",
        "write `v1_mmtag`": "llava_v1_mmtag",
        "write `qwen`, or `chatml_direct` without line ends between the turns": "chatml",
        "write `phi3`": "phi_3",
    }.items()
    for name in names.split()
}
"""The names that other programs have for templates, each with the hint what to write."""

_SEPARATORS = re.compile(r"[-_ .]")

_FAR = 3
"""From this many slips on, a word with one slip more may have been meant as well."""


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word closest to `word`, or None when none is close enough to be meant.

    A short word may have one slip, a longer one a slip for every four characters; case, dashes and
    underscores don't count.
    """
    return next((name for _, name in ranked(word, known)), None)


def ranked(word: str, known: Iterable[str]) -> list[tuple[int, str]]:
    """Every known word that is close enough to be meant, with its distance, the closest first."""
    if len(word) > 200:
        return []
    plain, most = bare(word), max(1, len(word) // 4)
    near = []
    for name in known:
        other = bare(name)
        if name != word and _may_be_near(plain, other, most):
            slips = distance(plain, other, most=most)
            if slips <= most and (slips == 0 or min(len(plain), len(other)) > slips):
                near.append((slips, name))
    return sorted(near)


def nearest_all(word: str, known: Iterable[str]) -> list[str]:
    """The known words that are equally close to `word`; the next ones too where none is really close."""
    near = ranked(word, known)
    least = near[0][0] if near else 0
    return [name for slips, name in near if slips <= least + (least >= _FAR)]


def did_you_mean(word: str, known: Iterable[str], *, quote: str = "`") -> str | None:
    """A hint that names the nearest known words, or None."""
    near = nearest_all(word, known)
    return f"did you mean {' or '.join(f'{quote}{name}{quote}' for name in near)}?" if near else None


def same_digits(word: str, known: Iterable[str]) -> list[str]:
    """The known words with the digits of `word`: for values, `llama2` is no slip of `llama_3`."""
    return [other for other in known if re.findall("[0-9]", other) == re.findall("[0-9]", word)]


def _may_be_near(left: str, right: str, most: int) -> bool:
    """Whether two words are worth comparing: their lengths and characters bound the distance."""
    return abs(len(left) - len(right)) <= most and len(set(left) - set(right)) <= most


def distance(left: str, right: str, *, most: int | None = None) -> int:
    """The slips between two words: characters changed, added, left out, or two neighbors swapped.

    With more than `most` slips, some number above it.
    """
    before: list[int] = []
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, 1):
        before, last, row = row, before, [i]
        for j, b in enumerate(right, 1):
            slips = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (a != b))
            if i > 1 and j > 1 and a == right[j - 2] and left[i - 2] == b:
                slips = min(slips, last[j - 2] + 1)
            row.append(slips)
        if most is not None and min(row) > most and min(before) > most:
            return most + 1
    return row[-1]


def bare(word: str) -> str:
    """The word in lower case, without separators."""
    return _SEPARATORS.sub("", word).lower()
