"""Read the configs of models, from a folder or the recipe, and refuse those that no model can have."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TypeGuard

import torch
from pydantic import JsonValue
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from llava_recipes.errors import KeyPath, Problem, RecipeError
from llava_recipes.plan.outline import MOST, MOST_LAYERS
from llava_recipes.recipe.foreign import in_short, read_by_library, read_object
from llava_recipes.versions import unnamed_config_keys

CONFIG = "config.json"

# Keys of older configs that transformers translates as it reads them.
_OLD_KEYS = frozenset({"rope_theta", "rope_scaling", "torch_dtype", "partial_rotary_factor", "model_type"})
_COUNTS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("head_dim", "vocab_size", "max_position_embeddings", "image_size", "patch_size", "num_channels"),
)
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def raw_config(folder: pathlib.Path, path: KeyPath) -> dict[str, JsonValue]:
    """The values of a folder's config.json. Raises RecipeError when it is missing or damaged."""
    file = folder / CONFIG
    if not file.exists():
        raise RecipeError.of(
            "this folder contains no config.json",
            code="config-missing",
            path=path,
            found=str(folder),
            hint="write a folder that contains a model",
        )
    return read_object(file, path=path)


def folder_config(folder: pathlib.Path, path: KeyPath) -> PreTrainedConfig:
    """The config of a folder as transformers reads it. Raises RecipeError when it fits no model."""
    raw_config(folder, path)
    with read_by_library(
        "transformers cannot read this model's config",
        code="config-not-usable",
        files=[folder / CONFIG],
        path=path,
    ):
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    check_values(config, place=str(folder / CONFIG), path=path)
    return config


def inline_config(values: Mapping[str, JsonValue], path: KeyPath) -> PreTrainedConfig:
    """A config written in the recipe. Raises RecipeError for every key that its type does not have."""
    model_type = values.get("model_type")
    if not isinstance(model_type, str):
        raise RecipeError.of(
            "an inline config needs its `model_type`",
            code="model-type-missing",
            path=path,
            hint="e.g. model_type: llama",
        )
    known = known_keys(model_type, place=model_type, path=path)
    config = config_of(values, place=model_type, path=path)
    unknown = [
        Problem(
            f"a {model_type} config has no key {key!r}",
            code="unknown-config-key",
            path=(*path, key),
            found=key,
            on_key=True,
        )
        for key in values
        if key not in known and key not in config.attribute_map
    ]
    if unknown:
        raise RecipeError(*unknown)
    return config


def known_keys(model_type: str, *, place: str, path: KeyPath) -> set[str]:
    """The keys of a model type; `place` says in errors where the type was found."""
    with _made(place, path):
        return {*AutoConfig.for_model(model_type).to_dict(), *_OLD_KEYS, *unnamed_config_keys(model_type)}


def config_of(values: Mapping[str, JsonValue], *, place: str, path: KeyPath) -> PreTrainedConfig:
    """The config with these values, including `model_type`; `place` says in errors where they are."""
    with _made(place, path):
        config = AutoConfig.for_model(**values)
    check_values(config, place=place, path=path)
    return config


def check_values(config: PreTrainedConfig, *, place: str, path: KeyPath) -> None:
    """Raise RecipeError unless a model can have the values of a config and of its halves.

    Checked before a model is built: building a million layers would take all memory.
    """
    wrong = [*_wrong_values(config)]
    for name in ("text_config", "vision_config"):
        half = getattr(config, name, None)
        if isinstance(half, PreTrainedConfig):
            wrong += [f"{name}.{each}" for each in _wrong_values(half)]
    if wrong:
        raise RecipeError.of(
            "no model can be built from this config",
            code="config-not-usable",
            path=path,
            found=f"{place}: {'; '.join(wrong)}",
        )


def _wrong_values(config: PreTrainedConfig) -> Iterator[str]:
    for key in _COUNTS:
        value = getattr(config, key, None)
        most = MOST_LAYERS if key == "num_hidden_layers" else MOST
        if value is not None and not (_is_whole(value) and 1 <= value <= most):
            yield f"{key} is {in_short(value)}, but must be a whole number from 1 to {most:,}"
    for key in _IDS:
        value = getattr(config, key, None)
        ids = value if isinstance(value, list) else [value]
        if value is not None and not all(_is_whole(id) and abs(id) < MOST for id in ids):
            yield f"{key} is {in_short(value)}, but must be the id of a token"
    if not isinstance(config.name_or_path, str):
        yield f"_name_or_path is {in_short(config.name_or_path)}, but must be a string"


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def try_out(
    model_class: type[PreTrainedModel], config: PreTrainedConfig, *, place: str, path: KeyPath
) -> PreTrainedModel:
    """The model of a config on the meta device. Raises RecipeError when transformers cannot build it."""
    with (
        read_by_library(
            "no model can be built from this config", code="config-not-usable", place=place, path=path
        ),
        torch.device("meta"),
    ):
        return model_class(config)


def _made(place: str, path: KeyPath) -> AbstractContextManager[None]:
    return read_by_library("not a valid config", code="config-not-usable", place=place, path=path)
