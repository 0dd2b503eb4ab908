"""Families of language models and vision towers, by the `model_type` of their configs: one entry each.

Defaults of keys that a config leaves out are those of transformers 5. A test holds them, and the parameters
that are counted from them, against the models that transformers builds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import JsonValue

from llava_recipes.layouts import Template

Config = Mapping[str, JsonValue]


@dataclass(frozen=True, kw_only=True)
class LanguageFamily:
    """Language models of one `model_type`."""

    template: Template
    """How LLaVA models of this family are usually given text, where nothing says it."""
    template_with: Mapping[str, Template] = field(default_factory=dict)
    """The usual template of those whose vocabulary has this token."""
    llava_class: str | None = None
    """What LLaVA or LLaVA-NeXT call their model of this family."""
    llava_type: str | None = None
    """The end of that model's `model_type`, `llava_…`."""
    in_original: bool = False
    """Whether the original LLaVA, and not LLaVA-NeXT alone, has that class."""

    defaults: Config | None = None
    """Of every key that changes sizes; None for a family that is not counted here. `attention_bias` and
    `mlp_bias` among them are what a config may say; without them there is no such bias."""
    reads_with_bias: bool = False
    """Whether the projections to queries, keys and values always have a bias."""
    norms_heads: bool = False
    """Whether queries and keys of each head pass a norm."""


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
    """For messages."""
    pair: str
    """The `model_type` of the pair of encoders that such a tower is half of."""
    model_class: str
    """Its class in transformers."""
    activation: str
    """`hidden_act` where a config leaves it out."""
    class_token: bool = False
    """Whether a token of the whole image stands before the patches."""
    patch_bias: bool = True
    """Whether the patch embedding has a bias."""
    norm_before: bool = False
    """Whether a norm stands before the first layer."""
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
    """How LLaVA models of a language model's kind are usually given text; None for an unknown kind."""
    family = LANGUAGE_FAMILIES.get(model_type)
    if family is None:
        return None
    return next(
        (name for token, name in family.template_with.items() if token in vocabulary), family.template
    )
