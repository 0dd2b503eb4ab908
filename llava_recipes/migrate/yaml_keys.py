"""Keys of axolotl and LLaMA-Factory that mean the same as keys of a recipe, and those that need no place."""

from __future__ import annotations

from collections.abc import Mapping

from llava_recipes.migrate.draft import MODEL, STAGE
from llava_recipes.recipe.errors import KeyPath

TRAIN = (STAGE, "train")
_TRAIN_KEYS = (
    *("learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"),
    *("warmup_ratio", "warmup_steps", "bf16", "fp16", "tf32", "logging_steps", "save_strategy", "save_steps"),
    *("save_total_limit", "seed", "max_steps", "dataloader_num_workers", "gradient_accumulation_steps"),
    *("per_device_eval_batch_size", "eval_strategy", "eval_steps"),
)
_SAME: Mapping[str, KeyPath] = {key: (*TRAIN, key) for key in _TRAIN_KEYS} | {
    "output_dir": (STAGE, "output_dir"),
    "gradient_checkpointing": (*TRAIN, "gradient_checkpointing"),
    "lora_dropout": (STAGE, "lora", "dropout"),
}

AXOLOTL: Mapping[str, KeyPath] = {
    **_SAME,
    "val_set_size": (STAGE, "data", "validation", "split"),
    "micro_batch_size": (*TRAIN, "per_device_train_batch_size"),
    "eval_batch_size": (*TRAIN, "per_device_eval_batch_size"),
    "num_epochs": (*TRAIN, "num_train_epochs"),
    "optimizer": (*TRAIN, "optim"),
    "lr_scheduler": (*TRAIN, "lr_scheduler_type"),
    "sequence_len": (STAGE, "data", "max_length"),
    "lora_r": (STAGE, "lora", "r"),
    "lora_alpha": (STAGE, "lora", "alpha"),
    "peft_use_dora": (STAGE, "lora", "use_dora"),
    "peft_use_rslora": (STAGE, "lora", "use_rslora"),
    "mm_vision_tower": (MODEL, "vision_tower", "source"),
    "mm_vision_select_layer": (MODEL, "vision_tower", "select_layer"),
    "mm_vision_select_feature": (MODEL, "vision_tower", "select_feature"),
    "mm_projector_type": (MODEL, "projector", "type"),
    "pretrain_mm_mlp_adapter": (MODEL, "projector", "init_from"),
    "mm_use_im_start_end": (MODEL, "image_tokens", "start_end"),
    "mm_use_im_patch_token": (MODEL, "image_tokens", "patch"),
}
LLAMA_FACTORY: Mapping[str, KeyPath] = {
    **_SAME,
    "val_size": (STAGE, "data", "validation", "split"),
    "per_device_train_batch_size": (*TRAIN, "per_device_train_batch_size"),
    "num_train_epochs": (*TRAIN, "num_train_epochs"),
    "optim": (*TRAIN, "optim"),
    "lr_scheduler_type": (*TRAIN, "lr_scheduler_type"),
    "cutoff_len": (STAGE, "data", "max_length"),
    "lora_rank": (STAGE, "lora", "r"),
    "lora_alpha": (STAGE, "lora", "alpha"),
    "use_dora": (STAGE, "lora", "use_dora"),
    "use_rslora": (STAGE, "lora", "use_rslora"),
}
OFF = frozenset(
    {
        *("load_in_8bit", "load_in_4bit", "sample_packing", "eval_sample_packing", "train_on_inputs"),
        *("group_by_length", "pad_to_sequence_len", "strict", "debug", "packing", "neat_packing"),
        *("flash_attention", "xformers_attention", "sdp_attention", "auto_resume_from_checkpoints"),
        *("resume_from_checkpoint", "overwrite_cache", "overwrite_output_dir", "plot_loss", "do_eval"),
        *("do_predict", "predict_with_generate", "use_llama_pro", "use_galore", "use_badam", "pure_bf16"),
        *("disable_shuffling", "streaming", "push_to_hub", "trust_remote_code", "lora_on_cpu"),
        *("is_llama_derived_model", "tokenizer_legacy", "gptq", "upcast_layernorm", "pissa_init"),
        *("compute_accuracy", "include_num_input_tokens_seen", "use_adam_mini", "create_new_adapter"),
    }
)
"""Keys without a place whose `false` is what a run without them does."""
NEEDLESS: Mapping[str, str] = {
    **dict.fromkeys(
        ("flash_attention", "flash_attn", "sdp_attention", "xformers_attention", "attn_implementation"),
        "the fastest attention at hand is used; the numbers are the same",
    ),
    **dict.fromkeys(
        ("overwrite_cache", "preprocessing_num_workers", "dataset_prepared_path", "cache_dir"),
        "data is tokenised as it is drawn",
    ),
    **dict.fromkeys(
        ("do_train", "overwrite_output_dir", "plot_loss", "strict", "debug", "local_rank", "ddp_timeout"),
        "it changes nothing in training",
    ),
    **dict.fromkeys(
        ("model_type", "tokenizer_type", "processor_type", "trust_remote_code", "multimodal"),
        "the model's own config says it",
    ),
    **dict.fromkeys(
        ("wandb_project", "wandb_entity", "wandb_watch", "wandb_name", "wandb_log_model", "run_name"),
        "W&B reads its environment variables; the run is named after the recipe",
    ),
    **dict.fromkeys(
        ("skip_prepare_dataset", "remove_unused_columns", "pad_to_sequence_len", "stage"),
        "the data is read as the recipe says",
    ),
}
WHOLE_MODELS: Mapping[str, tuple[str, str]] = {
    f"llava-hf/llava-1.5-{size}-hf": (f"liuhaotian/llava-v1.5-{size}", "openai/clip-vit-large-patch14-336")
    for size in ("7b", "13b")
}
"""Whole LLaVA models by hub id: the same weights in the original's form, and their tower."""
