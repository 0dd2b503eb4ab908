"""config.json as the original code writes it: the language model's own config with LLaVA's keys added."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import JsonValue

from llava_recipes.estimate.assignment import DTYPE_NAMES
from llava_recipes.model.assemble import Assembled
from llava_recipes.model.weight_names import canonical_parameters
from llava_recipes.plan.families import LANGUAGE_FAMILIES, language_type
from llava_recipes.plan.trainable import groups_of
from llava_recipes.plan.types import DataPlan, ModelPlan, StagePlan


def original_config(plan: ModelPlan, *, stage: StagePlan, assembled: Assembled) -> dict[str, JsonValue]:
    """The keys and values of the original's config.json after a stage.

    `architectures` stays the language model's, as in the original. Names of models are the recipe's.
    """
    source = dict(assembled.language_config)
    kind = str(source.get("model_type", "")).removeprefix("llava_")
    names = stage.trainable_modules or _trained_names(assembled)
    trained = {name.split(".", 1)[0] for name in names if name}
    return {
        **_defaults(kind, source),
        **source,
        **_llava_keys(plan, stage.data, assembled),
        "model_type": f"llava_{kind}",
        "torch_dtype": DTYPE_NAMES[stage.train.precision],
        "mm_vision_tower": plan.vision_tower.source or "",
        "mm_projector_lr": _projector_rate(stage),
        "tune_mm_mlp_adapter": trained == {"projector"},
        "freeze_mm_mlp_adapter": "projector" not in trained,
    }


def whole_config(
    plan: ModelPlan,
    data: DataPlan,
    assembled: Assembled,
    *,
    dtype: torch.dtype,
    tower: str,
    has_tower: bool,
) -> dict[str, JsonValue]:
    """config.json of a whole LLaVA model as the original saves it, with its class.

    tower        hub id or folder of the vision tower
    has_tower    whether the weights next to the config contain it too
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
        **_llava_keys(plan, data, assembled),
        "architectures": [(family and family.llava_class) or own_class],
        "model_type": f"llava_{(family and family.llava_type) or kind}",
        "torch_dtype": str(dtype).removeprefix("torch."),
        "mm_vision_tower": tower,
        "mm_projector_lr": None,
        "tune_mm_mlp_adapter": False,
        "freeze_mm_mlp_adapter": False,
        "unfreeze_mm_vision_tower": has_tower,
    }


def _llava_keys(plan: ModelPlan, data: DataPlan, assembled: Assembled) -> dict[str, JsonValue]:
    """The keys that LLaVA adds, apart from those about training."""
    # LLaVA-NeXT's key for `anyres`; the original knows neither.
    spread = assembled.image_layout(data).spread
    pinpoints = {} if spread is None else {"image_grid_pinpoints": [list(size) for size in spread.pinpoints]}
    return {
        "_name_or_path": plan.language_model.source or "",
        "mm_vision_select_layer": plan.vision_tower.select_layer,
        "mm_vision_select_feature": plan.vision_tower.select_feature,
        "mm_projector_type": plan.projector.type,
        "mm_hidden_size": assembled.model.config.vision_config.hidden_size,
        "mm_patch_merge_type": data.mm_patch_merge_type,
        "mm_use_im_start_end": plan.image_tokens.start_end,
        "mm_use_im_patch_token": plan.image_tokens.patch,
        "use_mm_proj": True,
        "image_aspect_ratio": data.image_aspect_ratio,
        **pinpoints,
        "tokenizer_model_max_length": data.max_length,
        "tokenizer_padding_side": "right",
    }


def _with_old_rope(config: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Rotary settings as they were written at the original's time."""
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
    """What transformers 4.37 writes into a Llama config without these keys, such as Vicuna's."""
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
    """The projector's learning rate if it has one of its own."""
    index = groups_of(["projector.0.weight"], stage.param_groups).get("projector.0.weight")
    return None if index is None else stage.param_groups[index].learning_rate


def _trained_names(assembled: Assembled) -> set[str]:
    return {name for name, value in canonical_parameters(assembled.model).items() if value.requires_grad}
