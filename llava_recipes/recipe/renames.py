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
    "data_path": "write `annotations:` in an entry of `data.sources`",
    "image_folder": "write `images:` in an entry of `data.sources`",
    "model_max_length": "write `max_length:` under `data:` of the stage",
    "conv_mode": "write `template:` under `data:` of the stage",
    "conv_version": "write `template:` under `data:` of the stage",
    "prompt_version": "write `template:` under `data:` of the stage",
    # Hugging Face's old names and their new ones.
    "evaluation_strategy": "write `eval_strategy:` under `train:`",
    "per_gpu_train_batch_size": "write `per_device_train_batch_size:` under `train:`",
    "per_gpu_eval_batch_size": "write `per_device_eval_batch_size:` under `train:`",
    "activation_checkpointing": "write `gradient_checkpointing:` under `train:`",
    "no_cuda": "write `extra: {use_cpu: true}` under `train:`",
    "overwrite_output_dir": "remove it: a finished run is never overwritten",
    "logging_dir": "remove it: logs go to the stage's `output_dir`",
    "save_safetensors": "remove it: both forms are written",
    "remove_unused_columns": "remove it: the data is read as the recipe says",
    # Short forms.
    "lr": "write `learning_rate:` under `train:`",
    "epochs": "write `num_train_epochs:` under `train:`",
    "num_epochs": "write `num_train_epochs:` under `train:`",
    "steps": "write `max_steps:` under `train:`",
    "num_steps": "write `max_steps:` under `train:`",
    "batch_size": "write `per_device_train_batch_size:` or `global_batch_size:` under `train:`",
    "train_batch_size": "write `per_device_train_batch_size:` under `train:`",
    "micro_batch_size": "write `per_device_train_batch_size:` under `train:`",
    "gradient_accumulation": "write `gradient_accumulation_steps:` under `train:`",
    "grad_accum": "write `gradient_accumulation_steps:` under `train:`",
    "accumulation_steps": "write `gradient_accumulation_steps:` under `train:`",
    "gradient_clipping": "write `max_grad_norm:` under `train:`",
    "clip_grad_norm": "write `max_grad_norm:` under `train:`",
    "warmup": "write `warmup_ratio:` or `warmup_steps:` under `train:`",
    "scheduler": "write `lr_scheduler_type:` under `train:`",
    "lr_scheduler": "write `lr_scheduler_type:` under `train:`",
    "optimizer": "write `optim:` under `train:`",
    "num_workers": "write `dataloader_num_workers:` under `train:`",
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
    "llm": "write `language_model:` under `model:`",
    "vision_encoder": "write `vision_tower:` under `model:`",
    "image_encoder": "write `vision_tower:` under `model:`",
    "connector": "write `projector:` under `model:`",
    "dataset": "write `data: {sources: […]}` in the stage",
    "datasets": "write `sources:` under `data:` of the stage",
    "image_dir": "write `images:` in an entry of `data.sources`",
    "output": "write `output_dir:` in the stage",
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

OTHER_TEMPLATES: dict[str, str] = {"vicuna": "v1", "vicuna_v1": "v1", "llava_v1": "v1", "pretrain": "plain"}
