"""config.json as the original code writes it: the language model's own config with LLaVA's keys beside it."""

from __future__ import annotations

from pydantic import JsonValue

from llava_recipes.model.assemble import Assembled
from llava_recipes.plan.param_groups import group_of
from llava_recipes.plan.types import ModelPlan, StagePlan

_DTYPE_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def original_config(plan: ModelPlan, *, stage: StagePlan, assembled: Assembled) -> dict[str, JsonValue]:
    """The keys and values of the original's config.json after a stage.

    `architectures` stays the language model's, as there. Names of models are the recipe's.
    """
    source = dict(assembled.language_config)
    kind = str(source.get("model_type", "")).removeprefix("llava_")
    trained = {
        name.split(".", 1)[0] for name in stage.trainable_modules or _trained_modules(assembled) if name
    }
    tower, tokens = plan.vision_tower, plan.image_tokens
    return {
        **_defaults(kind, source),
        **source,
        "_name_or_path": plan.language_model.source or "",
        "model_type": f"llava_{kind}",
        "torch_dtype": _DTYPE_NAMES[stage.train.precision],
        "mm_vision_tower": tower.source or "",
        "mm_vision_select_layer": tower.select_layer,
        "mm_vision_select_feature": tower.select_feature,
        "mm_projector_type": plan.projector.type,
        "mm_hidden_size": assembled.model.config.vision_config.hidden_size,
        "mm_patch_merge_type": "flat",
        "mm_projector_lr": _projector_rate(stage),
        "mm_use_im_start_end": tokens.start_end,
        "mm_use_im_patch_token": tokens.patch,
        "use_mm_proj": True,
        "image_aspect_ratio": stage.data.image_aspect_ratio,
        "tune_mm_mlp_adapter": trained == {"projector"},
        "freeze_mm_mlp_adapter": "projector" not in trained,
        "tokenizer_model_max_length": stage.data.max_length,
        "tokenizer_padding_side": "right",
    }


def _defaults(kind: str, source: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """What transformers 4.37 writes into a Llama config that leaves it out, as Vicuna's does."""
    if kind != "llama":
        return {}
    return {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_position_embeddings": 2048,
        "num_key_value_heads": source.get("num_attention_heads"),
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-6,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "use_cache": True,
    }


def _projector_rate(stage: StagePlan) -> float | None:
    """The projector's learning rate where it has one of its own."""
    index = group_of("projector.0.weight", stage.param_groups)
    return None if index is None else stage.param_groups[index].learning_rate


def _trained_modules(assembled: Assembled) -> set[str]:
    from llava_recipes.model.names import canonical_parameters

    return {name for name, value in canonical_parameters(assembled.model).items() if value.requires_grad}
