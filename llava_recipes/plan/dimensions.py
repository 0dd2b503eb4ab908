"""The numbers of a model that activations and operations are counted from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from llava_recipes.plan.families import LANGUAGE_FAMILIES, TOWER_FAMILIES
from llava_recipes.plan.sizes import ModelOutline
from llava_recipes.plan.types import ModelPlan
from llava_recipes.projectors import ProjectorType, type_named


@dataclass(frozen=True)
class Dimensions:
    """The numbers of both halves that activations and FLOPs are counted from."""

    hidden: int
    inner: int
    num_layers: int
    num_heads: int
    attention: int
    """Heads × head size."""
    keys: int
    """Key-value heads × head size."""
    has_head_norms: bool
    vocab: int
    tower_hidden: int
    tower_inner: int
    tower_heads: int
    num_tower_layers: int
    """Layers of the tower that are run."""
    tower_tokens: int
    """Tokens of one image inside the tower, the class token among them."""
    tower_patch_inputs: int
    """Numbers in one patch of pixels."""
    tower_gate: bool
    """The tower's activation keeps two tensors (quick GELU), not one."""
    image_tokens: int
    """Tokens of one image in the sequence."""
    projector: ProjectorType


def read_dimensions(outline: ModelOutline, model: ModelPlan) -> Dimensions:
    """The numbers of an outline; its configs are complete and checked."""
    language, vision = outline.language, outline.vision
    hidden, num_heads = _int(language, "hidden_size"), _int(language, "num_attention_heads")
    width = _int(language, "head_dim") or hidden // num_heads
    side = _int(vision, "image_size") // _int(vision, "patch_size")
    family = TOWER_FAMILIES[str(vision["model_type"])]
    layer, num_layers = model.vision_tower.select_layer, _int(vision, "num_hidden_layers")
    kept_class = family.class_token and model.vision_tower.select_feature == "cls_patch"
    return Dimensions(
        hidden=hidden,
        inner=_int(language, "intermediate_size"),
        num_layers=_int(language, "num_hidden_layers"),
        num_heads=num_heads,
        attention=num_heads * width,
        keys=(_int(language, "num_key_value_heads") or num_heads) * width,
        has_head_norms=LANGUAGE_FAMILIES[str(language["model_type"])].norms_heads,
        vocab=_int(language, "vocab_size"),
        tower_hidden=_int(vision, "hidden_size"),
        tower_inner=_int(vision, "intermediate_size"),
        tower_heads=_int(vision, "num_attention_heads"),
        num_tower_layers=layer if layer >= 0 else num_layers + 1 + layer,
        tower_tokens=side**2 + family.class_token,
        tower_patch_inputs=_int(vision, "patch_size") ** 2 * _int(vision, "num_channels"),
        tower_gate=vision.get("hidden_act", family.activation) == "quick_gelu",
        image_tokens=side**2 + kept_class,
        projector=type_named(model.projector.type)[0],
    )


def _int(config: Mapping[str, JsonValue], key: str) -> int:
    value = config.get(key)
    return value if isinstance(value, int) else 0
