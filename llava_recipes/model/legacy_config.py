"""config.json as the original code writes it: the language model's own config with LLaVA's keys beside it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import JsonValue

from llava_recipes.estimate.assignment import DTYPES
from llava_recipes.model.assemble import Assembled
from llava_recipes.plan.families import LANGUAGE_FAMILIES, language_type
from llava_recipes.plan.trainable import groups_of
from llava_recipes.plan.types import DataPlan, ModelPlan, StagePlan


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
        "torch_dtype": DTYPES[stage.train.precision],
        "mm_vision_tower": tower.source or "",
        "mm_vision_select_layer": tower.select_layer,
        "mm_vision_select_feature": tower.select_feature,
        "mm_projector_type": plan.projector.type,
        "mm_hidden_size": assembled.model.config.vision_config.hidden_size,
        "mm_patch_merge_type": stage.data.mm_patch_merge_type,
        "mm_projector_lr": _projector_rate(stage),
        "mm_use_im_start_end": tokens.start_end,
        "mm_use_im_patch_token": tokens.patch,
        "use_mm_proj": True,
        "image_aspect_ratio": stage.data.image_aspect_ratio,
        **_pinpoints(stage.data, assembled),
        "tune_mm_mlp_adapter": trained == {"projector"},
        "freeze_mm_mlp_adapter": "projector" not in trained,
        "tokenizer_model_max_length": stage.data.max_length,
        "tokenizer_padding_side": "right",
    }


def whole_config(
    plan: ModelPlan,
    data: DataPlan,
    assembled: Assembled,
    *,
    dtype: torch.dtype,
    tower: str,
    holds_tower: bool,
) -> dict[str, JsonValue]:
    """config.json of a whole LLaVA model as the original saves it, its class named.

    tower        hub id or folder of the vision tower
    holds_tower  whether the weights beside the config hold it too
    """
    source = _with_old_rope(assembled.language_config)
    kind = language_type(source) or str(source.get("model_type", ""))
    family = LANGUAGE_FAMILIES.get(kind)
    own_class = f"Llava{kind.title().replace('_', '')}ForCausalLM"
    for key in ("dtype", "transformers_version", "quantization_config"):
        source.pop(key, None)
    return {
        **_defaults(kind, source),
        **source,
        "_name_or_path": plan.language_model.source or "",
        "architectures": [(family and family.llava_class) or own_class],
        "model_type": f"llava_{(family and family.llava_type) or kind}",
        "torch_dtype": str(dtype).removeprefix("torch."),
        "mm_vision_tower": tower,
        "mm_vision_select_layer": plan.vision_tower.select_layer,
        "mm_vision_select_feature": plan.vision_tower.select_feature,
        "mm_projector_type": plan.projector.type,
        "mm_hidden_size": assembled.model.config.vision_config.hidden_size,
        "mm_patch_merge_type": data.mm_patch_merge_type,
        "mm_projector_lr": None,
        "mm_use_im_start_end": plan.image_tokens.start_end,
        "mm_use_im_patch_token": plan.image_tokens.patch,
        "use_mm_proj": True,
        "image_aspect_ratio": data.image_aspect_ratio,
        **_pinpoints(data, assembled),
        "tune_mm_mlp_adapter": False,
        "freeze_mm_mlp_adapter": False,
        "unfreeze_mm_vision_tower": holds_tower,
        "tokenizer_model_max_length": data.max_length,
        "tokenizer_padding_side": "right",
    }


def _with_old_rope(config: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Rotary settings as they were written when the original was."""
    found = dict(config)
    rope = found.pop("rope_parameters", None)
    if isinstance(rope, dict):
        rope = dict(rope)
        theta, kind = rope.pop("rope_theta", None), rope.get("rope_type", "default")
        if theta is not None:
            found["rope_theta"] = theta
        found["rope_scaling"] = None if kind == "default" else rope
    return found


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


def _pinpoints(data: DataPlan, assembled: Assembled) -> dict[str, JsonValue]:
    """LLaVA-NeXT's key beside `anyres`; the original knows neither."""
    spread = assembled.image_layout(data).spread
    return {} if spread is None else {"image_grid_pinpoints": [list(size) for size in spread.pinpoints]}


def _projector_rate(stage: StagePlan) -> float | None:
    """The projector's learning rate where it has one of its own."""
    index = groups_of(["projector.0.weight"], stage.param_groups).get("projector.0.weight")
    return None if index is None else stage.param_groups[index].learning_rate


def _trained_modules(assembled: Assembled) -> set[str]:
    from llava_recipes.model.weight_names import canonical_parameters

    return {name for name, value in canonical_parameters(assembled.model).items() if value.requires_grad}
