"""What other programs call the keys of a recipe: the original's flags, Hugging Face's old names, short forms.

When a key of the recipe language is renamed, its old name is entered here.
"""

from __future__ import annotations

_PROJECTOR = "`projector:` of `model:`"

OTHER_NAMES: dict[str, str] = {
    # Flags of the original training script.
    "model_name_or_path": "write `language_model: …` under `model:`",
    "tune_mm_mlp_adapter": "write `freeze: all` and `trainable: [projector]` in the stage",
    "freeze_mm_mlp_adapter": "write `freeze: [projector]` in the stage",
    "freeze_backbone": "write `freeze: [language_model]` in the stage",
    "unfreeze_mm_vision_tower": "write `trainable: [vision_tower]` in the stage",
    "mm_tunable_parts": "list the modules under `trainable:` in the stage",
    "mm_vision_tower": "write `vision_tower: {source: …}` under `model:`",
    "mm_vision_select_layer": "write `select_layer:` in `vision_tower:` of `model:`",
    "mm_vision_select_feature": "write `select_feature:` in `vision_tower:` of `model:`",
    "pretrain_mm_mlp_adapter": f"write `init_from:` in {_PROJECTOR}",
    "mm_projector_type": f"write `type:` in {_PROJECTOR}",
    "mm_projector": "write `projector:` under `model:`",
    "multi_modal_projector": "write `projector:` under `model:`",
    "mm_use_im_start_end": "write `start_end:` in `image_tokens:` of `model:`",
    "mm_use_im_patch_token": "write `patch:` in `image_tokens:` of `model:`",
    **dict.fromkeys(
        ("data_path", "ann_file", "annotation_path", "data_file", "data_files"),
        "write `annotations:` in an entry of `data.sources`",
    ),
    **dict.fromkeys(
        ("image_folder", "images_folder", "img_dir", "media_dir"),
        "write `images:` in an entry of `data.sources`",
    ),
    "json_path": "write `annotations:` in an entry of `data.sources`",
    "image_root": "write `images:` in an entry of `data.sources`",
    "sampling_number": "write `sampling_strategy: first:1000` in an entry of `data.sources`",
    "sampling_ratio": "write `weight:` or `sampling_strategy: random:10%` in an entry of `data.sources`",
    **dict.fromkeys(
        ("repeat_time", "repeat", "repeats", "num_repeats"), "write `weight:` in an entry of `data.sources`"
    ),
    "eval_data_path": "write `validation: {sources: […]}` under `data:` of the stage",
    "val_data_path": "write `validation: {sources: […]}` under `data:` of the stage",
    "eval_dataset": "write `validation: {sources: […]}` under `data:` of the stage",
    "val_size": "write `validation: {split: …}` under `data:` of the stage",
    **dict.fromkeys(
        ("model_max_length", "cutoff_len", "sequence_len", "max_seq_length", "max_seq_len", "max_tokens"),
        "write `max_length:` under `data:` of the stage",
    ),
    **dict.fromkeys(
        ("conv_template", "prompt_template", "conversation_template"),
        "write `template:` under `data:` of the stage",
    ),
    **dict.fromkeys(("system", "system_message"), "write `system_prompt:` under `data:` of the stage"),
    "conv_mode": "write `template:` under `data:` of the stage",
    "conv_version": "write `template:` under `data:` of the stage",
    "prompt_version": "write `template:` under `data:` of the stage",
    **dict.fromkeys(
        ("lora_enable", "use_lora", "peft", "adapter"), "write `lora: {r: …, alpha: …}` in the stage"
    ),
    **dict.fromkeys(("rank", "lora_rank"), "write `r:` in `lora:` of the stage"),
    "dora": "write `use_dora:` in `lora:` of the stage",
    "rslora": "write `use_rslora:` in `lora:` of the stage",
    **dict.fromkeys(
        ("load_in_4bit", "load_in_8bit", "bits"), "write `quantization: {bits: …}` in `language_model:`"
    ),
    "lora_r": "write `r:` in `lora:` of the stage",
    "lora_alpha": "write `alpha:` in `lora:` of the stage",
    "lora_dropout": "write `dropout:` in `lora:` of the stage",
    "lora_bias": "write `bias:` in `lora:` of the stage",
    **dict.fromkeys(("target_modules", "lora_target", "targets"), "write `modules:` in `lora:` of the stage"),
    "modules_to_save": "list the modules under `trainable:` in the stage",
    "mm_projector_lr": "write `param_groups: [{modules: [projector], learning_rate: …}]` in the stage",
    "mm_vision_tower_lr": "write `param_groups: [{modules: [vision_tower], learning_rate: …}]` in the stage",
    "group_by_modality_length": "write `group_by: modality_length` under `data:` of the stage",
    # Hugging Face's old names and their new ones.
    "group_by_length": "write `group_by: length` under `data:` of the stage",
    "evaluation_strategy": "write `eval_strategy:` under `train:`",
    "per_gpu_train_batch_size": "write `per_device_train_batch_size:` under `train:`",
    "per_gpu_eval_batch_size": "write `per_device_eval_batch_size:` under `train:`",
    "activation_checkpointing": "write `gradient_checkpointing:` under `train:`",
    "no_cuda": "remove it: a run uses the GPUs that it sees, the CPU where there is none",
    "overwrite_output_dir": "remove it: a finished run is never overwritten",
    "logging_dir": "remove it: logs go to the stage's `output_dir`",
    "save_safetensors": "remove it: both forms are written",
    "remove_unused_columns": "remove it: the data is read as the recipe says",
    # Short forms.
    **dict.fromkeys(("lr", "base_lr", "max_lr", "peak_lr"), "write `learning_rate:` under `train:`"),
    "vision_tower_lr": "write `param_groups: [{modules: [vision_tower], learning_rate: …}]` in the stage",
    **dict.fromkeys(("betas", "adam_betas"), "write `adam_beta1:` and `adam_beta2:` under `train:`"),
    "beta1": "write `adam_beta1:` under `train:`",
    "beta2": "write `adam_beta2:` under `train:`",
    **dict.fromkeys(("eps", "epsilon", "adam_eps"), "write `adam_epsilon:` under `train:`"),
    **dict.fromkeys(("wd", "decay"), "write `weight_decay:` under `train:`"),
    **dict.fromkeys(("max_epochs", "n_epochs", "epoch"), "write `num_train_epochs:` under `train:`"),
    **dict.fromkeys(
        ("total_steps", "train_steps", "max_train_steps", "max_iters"), "write `max_steps:` under `train:`"
    ),
    **dict.fromkeys(
        ("precision", "mixed_precision", "dtype", "torch_dtype", "amp"),
        "write `bf16: true` or `fp16: true` under `train:`",
    ),
    **dict.fromkeys(("bfloat16", "half"), "write `bf16: true` or `fp16: true` under `train:`"),
    "float16": "write `fp16: true` under `train:`",
    **dict.fromkeys(("fp32", "float32"), "remove it: a stage trains in float32 without `bf16` and `fp16`"),
    **dict.fromkeys(
        ("log_interval", "log_steps", "log_every", "log_every_n_steps", "logging_interval"),
        "write `logging_steps:` under `train:`",
    ),
    **dict.fromkeys(
        ("save_interval", "save_every", "save_freq", "checkpoint_every"), "write `save_steps:` under `train:`"
    ),
    **dict.fromkeys(("save_limit", "max_checkpoints"), "write `save_total_limit:` under `train:`"),
    **dict.fromkeys(("eval_interval", "eval_every"), "write `eval_steps:` under `train:`"),
    **dict.fromkeys(("random_seed", "manual_seed"), "write `seed:` under `train:`"),
    **dict.fromkeys(("report", "logger", "tracker"), "write `report_to:` under `train:`"),
    **dict.fromkeys(("use_wandb", "wandb"), "write `report_to: wandb` under `train:`"),
    "epochs": "write `num_train_epochs:` under `train:`",
    "num_epochs": "write `num_train_epochs:` under `train:`",
    "steps": "write `max_steps:` under `train:`",
    "num_steps": "write `max_steps:` under `train:`",
    "batch_size": "write `per_device_train_batch_size:` or `global_batch_size:` under `train:`",
    **dict.fromkeys(
        (
            *("per_device_batch_size", "device_batch_size", "train_batch_size", "micro_batch_size"),
            *("train_micro_batch_size_per_gpu", "batch_size_per_device", "batch_size_per_gpu"),
        ),
        "write `per_device_train_batch_size:` under `train:`",
    ),
    **dict.fromkeys(
        ("eval_batch_size", "val_batch_size"), "write `per_device_eval_batch_size:` under `train:`"
    ),
    **dict.fromkeys(
        ("total_batch_size", "effective_batch_size", "global_batch"),
        "write `global_batch_size:` under `train:`",
    ),
    "batch": "write `per_device_train_batch_size:` or `global_batch_size:` under `train:`",
    "gradient_accumulation": "write `gradient_accumulation_steps:` under `train:`",
    "grad_accum": "write `gradient_accumulation_steps:` under `train:`",
    **dict.fromkeys(
        ("accumulation_steps", "accumulate_grad_batches", "accumulative_counts"),
        "write `gradient_accumulation_steps:` under `train:`",
    ),
    **dict.fromkeys(
        (
            *("gradient_clipping", "clip_grad_norm", "clip_grad", "grad_clip", "gradient_clip_val"),
            *("clip_norm", "max_norm", "max_grad"),
        ),
        "write `max_grad_norm:` under `train:`",
    ),
    "warmup": "write `warmup_ratio:` or `warmup_steps:` under `train:`",
    **dict.fromkeys(("warmup_proportion", "warmup_fraction"), "write `warmup_ratio:` under `train:`"),
    "warmup_iters": "write `warmup_steps:` under `train:`",
    "scheduler": "write `lr_scheduler_type:` under `train:`",
    **dict.fromkeys(("lr_scheduler", "lr_schedule"), "write `lr_scheduler_type:` under `train:`"),
    **dict.fromkeys(("optimizer", "optimizer_type", "optim_type"), "write `optim:` under `train:`"),
    **dict.fromkeys(("num_workers", "workers"), "write `dataloader_num_workers:` under `train:`"),
    **dict.fromkeys(("grad_checkpoint", "checkpointing"), "write `gradient_checkpointing:` under `train:`"),
    "loss": "write `loss_normalization:` under `train:`",
    "unfreeze": "write `trainable:` in the stage",
    "train_modules": "write `trainable:` in the stage",
    "variables": "write `vars:` at the top level",
    **dict.fromkeys(
        ("base", "_base_", "defaults", "import", "imports", "include", "includes", "inherit", "inherits"),
        "write `extends: FILE` at the top level",
    ),
    "parent": "write `extends: FILE` at the top level",
    "parents": "write `extends: [FILE, …]` at the top level",
    "environment": "write `env: [NAME]` at the top level",
    "environ": "write `env: [NAME]` at the top level",
    **dict.fromkeys(("llm", "lm", "base_model"), "write `language_model:` under `model:`"),
    **dict.fromkeys(
        ("vision_encoder", "visual_encoder", "image_encoder", "vision_model"),
        "write `vision_tower:` under `model:`",
    ),
    "vision_feature_layer": "write `select_layer:` in `vision_tower:` of `model:`",
    "vision_feature_select_strategy": "write `select_feature:` in `vision_tower:` of `model:`",
    **dict.fromkeys(("connector", "projection"), "write `projector:` under `model:`"),
    "dataset": "write `data: {sources: […]}` in the stage",
    "datasets": "write `sources:` under `data:` of the stage",
    "image_dir": "write `images:` in an entry of `data.sources`",
    **dict.fromkeys(("output", "output_path", "save_dir"), "write `output_dir:` in the stage"),
    **dict.fromkeys(("deepspeed_config", "ds_config", "zero_stage"), "write `deepspeed:` in the stage"),
    **dict.fromkeys(("freeze_llm", "freeze_language_model"), "write `freeze: [language_model]` in the stage"),
    **dict.fromkeys(("freeze_vit", "freeze_vision_tower"), "write `freeze: [vision_tower]` in the stage"),
    **dict.fromkeys(("freeze_aligner", "freeze_projector"), "write `freeze: [projector]` in the stage"),
}

OTHER_MODULES: dict[str, str] = {
    "multi_modal_projector": "projector",
    "mm_projector": "projector",
    "connector": "projector",
    "vision_model": "vision_tower",
    "vision_encoder": "vision_tower",
    "mm_vision_tower": "vision_tower",
    "image_encoder": "vision_tower",
    "visual": "vision_tower",
    "vision": "vision_tower",
    "llm": "language_model",
    "backbone": "language_model",
    "text_model": "language_model",
    "model": "language_model",
    "layers": "language_model",
    "embed_tokens": "language_model",
    "output_layer": "lm_head",
}

OTHER_TEMPLATES: dict[str, str] = {
    "v0.5": "write `v1`: the original knows no `v0.5` and takes `v1` for it without a word",
    "vicuna": "write `v1`",
    "llava": "write `v1`",
    **dict.fromkeys(
        ("phi", "phi_2", "phi2", "phi-2"), "write `v1`: it ends answers with the tokenizer's own end of text"
    ),
    "pretrain": "write `plain`",
    # What LLaVA-NeXT calls them.
    "qwen_1_5": "write `qwen`",
    "qwen_2": "write `qwen`",
    "llava_llama_3": "write `llama_3`",
    "llama3": "write `llama_3`",
    **dict.fromkeys(
        ("llama2", "llama-2"), "write `llama_2`, or `llava_llama_2`, which has the system prompt of LLaVA"
    ),
    "gemma_instruct": "write `gemma`",
    "llava_mistral_instruct": "write `mistral_instruct`",
    "llava_v0_mmtag": "write `v0_mmtag`",
    "llava_v1_mmtag": "write `v1_mmtag`",
    "chatml": "write `qwen`, or `chatml_direct` without line ends between the turns",
    "phi_3": "write `phi3`",
}
