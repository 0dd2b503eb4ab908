"""recipe.resolved.yaml: the recipe as it was run, defaults and overrides included; itself a recipe."""

from __future__ import annotations

import re

import yaml

from llava_recipes.recipe.schema import Recipe

_PLAIN = re.compile(r"[A-Za-z./][A-Za-z0-9_./-]*")
_WORDS = {"true", "false", "null"}


class _Dumper(yaml.SafeDumper):
    """Quotes every text that YAML could read as something else."""


def _write_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    plain = _PLAIN.fullmatch(text) and text.lower() not in _WORDS and not text.startswith(".")
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else '"')


_Dumper.add_representer(str, _write_text)


def write_resolved(recipe: Recipe) -> str:
    """YAML text of a recipe. Variables are already filled in, so a `${` that remains is meant literally."""
    values = recipe.model_dump(mode="json", exclude_none=True, exclude={"vars"})
    for part in (values["model"]["language_model"], values["model"]["vision_tower"]):
        # Pretrained weights have no seed, and a recipe that gives them one is refused.
        if isinstance(part, dict) and "source" in part:
            del part["seed"]
    return yaml.dump(_escape(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def _escape(value: object) -> object:
    if isinstance(value, str):
        return value.replace("${", "$${")
    if isinstance(value, dict):
        return {key: _escape(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_escape(inner) for inner in value]
    return value
