"""Families of language models and vision towers, one entry each, and which family a config belongs to.

A family is named by the `model_type` of its configs. Defaults of keys that a config leaves out are those of
transformers 5. A test compares them, and the parameters counted from them, with the models of transformers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from pydantic import JsonValue

from llava_recipes.layouts import Template

Config = Mapping[str, JsonValue]


@dataclass(frozen=True, kw_only=True)
class LanguageFamily:
    """Language models of one `model_type`."""

    template: Template
    """What LLaVA models of this family usually use."""
    template_with: Mapping[str, Template] = field(default_factory=dict)
    """The usual template of models whose vocabulary has this token."""
    llava_class: str | None = None
    """The class of LLaVA or LLaVA-NeXT for this family."""
    llava_type: str | None = None
    """The part after `llava_` in the `model_type` of that class."""
    in_original: bool = False
    """Whether the original LLaVA, and not LLaVA-NeXT alone, has that class."""

    defaults: Config | None = None
    """Of every key that changes sizes; None for a family whose sizes are not counted here. Only where
    `attention_bias` and `mlp_bias` are among them may a config ask for such a bias."""
    reads_with_bias: bool = False
    """Whether the projections to queries, keys and values always have a bias."""
    norms_heads: bool = False
    """Whether queries and keys of each head are normalized."""


_LANGUAGE: Config = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "tie_word_embeddings": False,
}
LANGUAGE_FAMILIES: Mapping[str, LanguageFamily] = {
    "llama": LanguageFamily(
        template="v1",
        template_with={"<|eot_id|>": "llama_3"},
        llava_class="LlavaLlamaForCausalLM",
        llava_type="llama",
        in_original=True,
        defaults={
            **_LANGUAGE,
            **{"vocab_size": 32000, "intermediate_size": 11008, "max_position_embeddings": 2048},
            **{"num_key_value_heads": None, "head_dim": None, "attention_bias": False, "mlp_bias": False},
        },
    ),
    "mistral": LanguageFamily(
        template="mistral_instruct",
        llava_class="LlavaMistralForCausalLM",
        llava_type="mistral",
        in_original=True,
        defaults={
            **_LANGUAGE,
            **{"vocab_size": 32000, "intermediate_size": 14336, "max_position_embeddings": 131072},
            **{"num_key_value_heads": 8, "head_dim": None},
        },
    ),
    "mpt": LanguageFamily(
        template="mpt", llava_class="LlavaMptForCausalLM", llava_type="mpt", in_original=True
    ),
    "qwen2": LanguageFamily(
        template="qwen",
        llava_class="LlavaQwenForCausalLM",
        llava_type="qwen",
        defaults={
            **_LANGUAGE,
            **{"vocab_size": 151936, "intermediate_size": 22016, "max_position_embeddings": 32768},
        },
        reads_with_bias=True,
    ),
    "qwen3": LanguageFamily(
        template="qwen",
        defaults={
            **_LANGUAGE,
            **{"vocab_size": 151936, "intermediate_size": 22016, "max_position_embeddings": 32768},
            **{"head_dim": 128, "attention_bias": False},
        },
        norms_heads=True,
    ),
    "gemma": LanguageFamily(template="gemma"),
    "gemma2": LanguageFamily(template="gemma"),
    "phi3": LanguageFamily(template="phi3"),
}


@dataclass(frozen=True, kw_only=True)
class TowerFamily:
    """Vision towers of one `model_type`."""

    title: str
    """Its name in messages."""
    pair: str
    """The `model_type` of the pair of encoders that the tower is part of."""
    model_class: str
    """Its class in transformers."""
    activation: str
    """The default of `hidden_act`."""
    class_token: bool = False
    """Whether a token for the whole image precedes the patches."""
    patch_bias: bool = True
    """Whether the patch embedding has a bias."""
    norm_before: bool = False
    """Whether a norm precedes the first layer."""
    pooling_head: bool = False
    """Whether attention pooling follows the last norm, unless the config says `vision_use_head: false`."""
    defaults: Config
    """Of every key that changes sizes."""


_VISION: Config = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
}
TOWER_FAMILIES: Mapping[str, TowerFamily] = {
    "clip_vision_model": TowerFamily(
        title="CLIP",
        pair="clip",
        model_class="CLIPVisionModel",
        activation="quick_gelu",
        class_token=True,
        patch_bias=False,
        norm_before=True,
        defaults={**_VISION, "patch_size": 32},
    ),
    "siglip_vision_model": TowerFamily(
        title="SigLIP",
        pair="siglip",
        model_class="SiglipVisionModel",
        activation="gelu_pytorch_tanh",
        pooling_head=True,
        defaults={**_VISION, "patch_size": 16, "vision_use_head": True},
    ),
}

LANGUAGE_DEFAULTS: Mapping[str, Config] = {
    name: family.defaults for name, family in LANGUAGE_FAMILIES.items() if family.defaults is not None
}
VISION_DEFAULTS: Mapping[str, Config] = {name: family.defaults for name, family in TOWER_FAMILIES.items()}

HF_TYPES = ("llava", "llava_next")
"""What transformers calls its own LLaVA models, among them those of llava-hf."""

_TYPES_BY_CLASS = {
    family.llava_class: name for name, family in LANGUAGE_FAMILIES.items() if family.llava_class is not None
}


def tower_titles() -> str:
    """`CLIP or SigLIP`."""
    *first, last = (family.title for family in TOWER_FAMILIES.values())
    return ", ".join(first) + " or " + last if first else last


def tower_of(model_type: object) -> str | None:
    """The `model_type` of the tower alone, from its own or that of a pair; None for an unknown one."""
    for name, family in TOWER_FAMILIES.items():
        if model_type in (name, family.pair):
            return name
    return None


def usual_template(model_type: str, vocabulary: Mapping[str, int]) -> Template | None:
    """The template that LLaVA models of a language model's family usually use; None for an unknown family."""
    family = LANGUAGE_FAMILIES.get(model_type)
    if family is None:
        return None
    names = (name for token, name in family.template_with.items() if token in vocabulary)
    return next(names, family.template)


def vision_part(config: Config) -> Config:
    """The config of the vision tower inside that of a CLIP or SigLIP pair; any other config as it is."""
    model_type, nested = config.get("model_type"), config.get("vision_config")
    tower = tower_of(model_type)
    if tower not in (None, model_type) and isinstance(nested, dict):
        return {"model_type": tower, **nested}
    return config


def language_part(config: Config) -> Config:
    """The config of the language model inside that of a LLaVA checkpoint; any other config as it is."""
    inner = config.get("text_config")
    if isinstance(inner, dict) and is_hf_llava(config):
        # The folders of llava-hf leave the type out where it is Llama's.
        return {"model_type": "llama", **inner}
    return {**config, "model_type": language_type(config)} if is_original_llava(config) else config


def is_hf_llava(config: Config) -> bool:
    """Whether a config.json is that of transformers' own LLaVA or LLaVA-NeXT."""
    return config.get("model_type") in HF_TYPES and isinstance(config.get("text_config"), dict)


def is_original_llava(config: Config) -> bool:
    """Whether a config.json is that of a whole LLaVA model as the original saves it.

    transformers' own LLaVA has the config of its language model in `text_config`.
    """
    return "text_config" not in config and _has_llava_keys(config) and language_type(config) is not None


def comes_from_original_llava(language: Config) -> bool:
    """Whether a language model's config is part of that of a whole LLaVA model of the original."""
    return _first_class(language) in _TYPES_BY_CLASS or _has_llava_keys(language)


def language_type(config: Config) -> str | None:
    """The type of the language model inside an original LLaVA, by its class; None for an unknown class."""
    named = _first_class(config)
    if named in _TYPES_BY_CLASS:
        return _TYPES_BY_CLASS[named]
    given = str(config.get("model_type", ""))
    return given.removeprefix("llava_") if given.startswith("llava_") else None


def _first_class(config: Config) -> str:
    classes = config.get("architectures")
    return str(classes[0]) if isinstance(classes, list) and classes else ""


def _has_llava_keys(config: Config) -> bool:
    return "mm_projector_type" in config or "mm_vision_tower" in config


_MODELS = json.loads(Path(__file__).with_name("catalog.json").read_text("utf-8"))

LANGUAGE_MODELS: Mapping[str, Config] = MappingProxyType(_MODELS["language_models"])
VISION_TOWERS: Mapping[str, Config] = MappingProxyType(_MODELS["vision_towers"])
