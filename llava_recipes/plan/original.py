"""Whole LLaVA checkpoints, told by their config.json, and the language model inside."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import JsonValue

from llava_recipes.plan.families import LANGUAGE_FAMILIES

Config = Mapping[str, JsonValue]

HF_TYPES = ("llava", "llava_next")
"""What transformers calls its own LLaVA models, llava-hf's among them."""

_MARKS = ("mm_projector_type", "mm_vision_tower")

_LANGUAGE_TYPES = {
    family.llava_class: name for name, family in LANGUAGE_FAMILIES.items() if family.llava_class is not None
}


def comes_from_original_llava(language: Config) -> bool:
    """Whether a language model's config is the part of a whole LLaVA model as the original saves it."""
    classes = language.get("architectures")
    named = classes[0] if isinstance(classes, list) and classes else None
    return str(named) in _LANGUAGE_TYPES or any(key in language for key in _MARKS)


def is_original_llava(config: Config) -> bool:
    """Whether a config.json is that of a whole LLaVA model as the original saves it.

    transformers' own LLaVA holds its language model's config in `text_config`.
    """
    return (
        "text_config" not in config
        and any(key in config for key in _MARKS)
        and language_type(config) is not None
    )


def is_hf_llava(config: Config) -> bool:
    """Whether a config.json is that of transformers' own LLaVA or LLaVA-NeXT."""
    return config.get("model_type") in HF_TYPES and isinstance(config.get("text_config"), dict)


def language_type(config: Config) -> str | None:
    """The type of the language model inside, by the name of its class; None for one that is not known."""
    classes = config.get("architectures")
    named = classes[0] if isinstance(classes, list) and classes else None
    if isinstance(named, str) and named in _LANGUAGE_TYPES:
        return _LANGUAGE_TYPES[named]
    given = str(config.get("model_type", ""))
    return given.removeprefix("llava_") if given.startswith("llava_") else None


def language_part(config: Config) -> Config:
    """The config of the language model inside a LLaVA checkpoint; any other config as it is."""
    inner = config.get("text_config")
    if isinstance(inner, dict) and is_hf_llava(config):
        # llava-hf's folders leave the type out where it is Llama's.
        return {"model_type": "llama", **inner}
    if not is_original_llava(config):
        return config
    return {**config, "model_type": language_type(config)}
