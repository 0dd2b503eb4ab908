"""Name and shape of every parameter of a model, and the sizes that follow, all from its configs.

Names are canonical (`vision_tower`, `projector`, `language_model`, `lm_head`). What differs between families
is in `families.py`. A test compares them with the model that transformers builds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import JsonValue

from llava_recipes.plan.families import (
    LANGUAGE_DEFAULTS,
    LANGUAGE_FAMILIES,
    TOWER_FAMILIES,
    VISION_DEFAULTS,
    Config,
    vision_part,
)
from llava_recipes.plan.types import ModelPlan, ModelSizes, ModuleSize
from llava_recipes.projectors import ProjectorType, projector_shapes, type_named
from llava_recipes.recipe.globs import ROOTS

Shapes = dict[str, tuple[int, ...]]

MOST_LAYERS, MOST = 1_000, 2**31
"""Bounds for which the names of a model fit in memory and its counts in 64 bits."""


class ConfigValueError(ValueError):
    """A config key has a value that no model can be built from."""

    def __init__(self, config: Config, key: str, message: str) -> None:
        super().__init__(message)
        self.key, self.message, self.found = key, message, config.get(key)
        self.part: Literal["language_model", "vision_tower"] = (
            "language_model" if str(config.get("model_type")) in LANGUAGE_DEFAULTS else "vision_tower"
        )


@dataclass(frozen=True)
class ModelOutline:
    """Both configs with their defaults filled in, and the shapes that follow from them."""

    language: Config
    vision: Config
    shapes: Shapes


def is_known(config: Config) -> bool:
    """Whether the sizes of this type of language model or vision tower can be counted."""
    model_type = str(vision_part(config).get("model_type"))
    return model_type in LANGUAGE_DEFAULTS or model_type in VISION_DEFAULTS


def outline_model(
    *, language: Config, vision: Config, projector_type: str, image_newline: bool = False
) -> ModelOutline | None:
    """The outline of the assembled model; None where a model type is not known.

    Raises ConfigValueError for a value that no model can be built from.
    """
    vision = vision_part(vision)
    language_defaults = LANGUAGE_DEFAULTS.get(str(language.get("model_type")))
    vision_defaults = VISION_DEFAULTS.get(str(vision.get("model_type")))
    if language_defaults is None or vision_defaults is None:
        return None
    language, vision = {**language_defaults, **language}, {**vision_defaults, **vision}
    _count(language, "max_position_embeddings")
    language_shapes = _language_shapes(language)
    shapes = {f"vision_tower.{name}": shape for name, shape in _vision_shapes(vision).items()}
    widths = _count(vision, "hidden_size"), _count(language, "hidden_size")
    shapes |= {
        f"projector.{name}": shape for name, shape in projector_shapes(projector_type, *widths).items()
    }
    shapes |= {f"language_model.{name}": shape for name, shape in language_shapes.items()}
    if image_newline:
        shapes["image_newline"] = (_count(language, "hidden_size"),)
    if not _flag(language, "tie_word_embeddings"):
        shapes["lm_head.weight"] = (_count(language, "vocab_size"), _count(language, "hidden_size"))
    return ModelOutline(language, vision, shapes)


def model_sizes(outline: ModelOutline, *, select_feature: Literal["patch", "cls_patch"]) -> ModelSizes:
    """The sizes of the outlined model and the number of tokens of one image."""
    counts = dict.fromkeys(ROOTS, 0)
    for name, shape in outline.shapes.items():
        counts[next(root for root in ROOTS if name.split(".", 1)[0] == root)] += math.prod(shape)
    language, vision = outline.language, outline.vision
    side = _count(vision, "image_size") // _count(vision, "patch_size")
    return ModelSizes(
        language_hidden_size=_count(language, "hidden_size"),
        vision_hidden_size=_count(vision, "hidden_size"),
        image_px=_count(vision, "image_size"),
        num_image_tokens=side**2 + (select_feature == "cls_patch"),
        vocab_size=_count(language, "vocab_size"),
        max_position_embeddings=_count(language, "max_position_embeddings"),
        modules=tuple(
            ModuleSize(name=root, num_parameters=counts[root])
            for root in ROOTS
            if counts[root] or root != "image_newline"
        ),
        num_parameters=sum(counts.values()),
    )


def num_vision_layers(outline: ModelOutline) -> int:
    return _count(outline.vision, "num_hidden_layers")


def _count(config: Config, key: str) -> int:
    value = config[key]
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise ConfigValueError(config, key, f"`{key}` must be a whole number above 0")
    most = MOST_LAYERS if key == "num_hidden_layers" else MOST
    if value > most:
        raise ConfigValueError(config, key, f"`{key}` exceeds any model: {most:,} at most")
    return value


def _optional_count(config: Config, key: str) -> int | None:
    return None if config.get(key) is None else _count(config, key)


def _flag(config: Config, key: str) -> bool:
    value = config.get(key, False)
    if not isinstance(value, bool):
        raise ConfigValueError(config, key, f"`{key}` must be true or false")
    return value


def _linear(name: str, num_in: int, num_out: int, *, bias: bool) -> Shapes:
    weight: Shapes = {f"{name}.weight": (num_out, num_in)}
    return weight | ({f"{name}.bias": (num_out,)} if bias else {})


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _head_width(config: Config, hidden: int, num_heads: int) -> int:
    given = _optional_count(config, "head_dim")
    if given is not None:
        return given
    if hidden % num_heads:
        raise ConfigValueError(
            config, "num_attention_heads", f"`num_attention_heads` does not divide `hidden_size` ({hidden})"
        )
    return hidden // num_heads


def _language_shapes(config: Config) -> Shapes:
    family = LANGUAGE_FAMILIES[str(config["model_type"])]
    known = family.defaults or {}
    hidden, inner = _count(config, "hidden_size"), _count(config, "intermediate_size")
    num_heads = _count(config, "num_attention_heads")
    width = _head_width(config, hidden, num_heads)
    num_pairs = _optional_count(config, "num_key_value_heads") or num_heads
    if num_heads % num_pairs:
        raise ConfigValueError(
            config, "num_key_value_heads", f"`num_key_value_heads` does not divide the {num_heads} heads"
        )
    has_bias = "attention_bias" in known and _flag(config, "attention_bias")
    reads_bias = has_bias or family.reads_with_bias
    inner_bias = "mlp_bias" in known and _flag(config, "mlp_bias")
    layer = (
        _linear("self_attn.q_proj", hidden, num_heads * width, bias=reads_bias)
        | _linear("self_attn.k_proj", hidden, num_pairs * width, bias=reads_bias)
        | _linear("self_attn.v_proj", hidden, num_pairs * width, bias=reads_bias)
        | _linear("self_attn.o_proj", num_heads * width, hidden, bias=has_bias)
        | _linear("mlp.gate_proj", hidden, inner, bias=inner_bias)
        | _linear("mlp.up_proj", hidden, inner, bias=inner_bias)
        | _linear("mlp.down_proj", inner, hidden, bias=inner_bias)
        | {"input_layernorm.weight": (hidden,), "post_attention_layernorm.weight": (hidden,)}
    )
    if family.norms_heads:
        layer |= {"self_attn.q_norm.weight": (width,), "self_attn.k_norm.weight": (width,)}
    shapes: Shapes = {"embed_tokens.weight": (_count(config, "vocab_size"), hidden)}
    for index in range(_count(config, "num_hidden_layers")):
        shapes |= {f"layers.{index}.{name}": shape for name, shape in layer.items()}
    return shapes | {"norm.weight": (hidden,)}


def _vision_shapes(config: Config) -> Shapes:
    family = TOWER_FAMILIES[str(config["model_type"])]
    hidden, inner = _count(config, "hidden_size"), _count(config, "intermediate_size")
    patch, channels = _count(config, "patch_size"), _count(config, "num_channels")
    num_patches = (_count(config, "image_size") // patch) ** 2
    if num_patches == 0:
        raise ConfigValueError(config, "patch_size", "`patch_size` is larger than the image")
    _head_width(config, hidden, _count(config, "num_attention_heads"))
    shapes: Shapes = {
        "embeddings.patch_embedding.weight": (hidden, channels, patch, patch),
        "embeddings.position_embedding.weight": (num_patches + family.class_token, hidden),
    }
    if family.class_token:
        shapes["embeddings.class_embedding"] = (hidden,)
    if family.norm_before:
        shapes |= _norm("pre_layrnorm", hidden)
    if family.patch_bias:
        shapes["embeddings.patch_embedding.bias"] = (hidden,)
    mlp = _linear("mlp.fc1", hidden, inner, bias=True) | _linear("mlp.fc2", inner, hidden, bias=True)
    layer = _norm("layer_norm1", hidden) | _norm("layer_norm2", hidden) | mlp
    for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
        layer |= _linear(f"self_attn.{part}", hidden, hidden, bias=True)
    for index in range(_count(config, "num_hidden_layers")):
        shapes |= {f"encoder.layers.{index}.{name}": shape for name, shape in layer.items()}
    shapes |= _norm("post_layernorm", hidden)
    if family.pooling_head and _flag(config, "vision_use_head"):
        head = _linear("attention.out_proj", hidden, hidden, bias=True) | _norm("layernorm", hidden) | mlp
        head |= {"probe": (1, 1, hidden), "attention.in_proj_weight": (3 * hidden, hidden)}
        head["attention.in_proj_bias"] = (3 * hidden,)
        shapes |= {f"head.{name}": shape for name, shape in head.items()}
    return shapes


@dataclass(frozen=True)
class Dimensions:
    """The numbers of language model and tower that activations and FLOPs are counted from."""

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
    """Layers of the tower that run."""
    tower_tokens: int
    """Tokens of one image inside the tower, including the class token."""
    tower_patch_inputs: int
    """Numbers in one patch of pixels."""
    tower_gate: bool
    """Whether the tower's activation keeps two tensors (quick GELU), not one."""
    image_tokens: int
    """Tokens of one image in the sequence."""
    projector: ProjectorType


def read_dimensions(outline: ModelOutline, model: ModelPlan) -> Dimensions:
    """The numbers of an outline, whose configs are complete and checked."""
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
