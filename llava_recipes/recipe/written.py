"""A recipe as one whole file: parents, variables, overrides and defaults written out; itself a recipe."""

from __future__ import annotations

import re
from collections.abc import Callable

import yaml

from llava_recipes.recipe.errors import KeyPath
from llava_recipes.recipe.schema import Recipe
from llava_recipes.recipe.source import parse_value
from llava_recipes.screen import escape_yaml

_PLAIN = re.compile(r"(\./|[A-Za-z/])[A-Za-z0-9_./-]*")
_WORDS = {"true", "false", "null"}
_LONGEST_ALIGNED = 72


class _Dumper(yaml.SafeDumper):
    """Quotes every text that YAML could read as something else."""


def _write_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    plain = _PLAIN.fullmatch(text) and text.lower() not in _WORDS
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else '"')


_Dumper.add_representer(str, _write_text)


def write_resolved(recipe: Recipe) -> str:
    """YAML text of a recipe. Variables are already filled in, so a `${` that remains is meant literally."""
    return _write(_whole(recipe), width=110)


def write_with_remarks(recipe: Recipe, remark: Callable[[KeyPath], str]) -> str:
    """The same text with a remark behind each value."""
    # Without a limit every value stands on one line, with room for a remark behind it.
    text = _write(_whole(recipe), width=2**31)
    places = parse_value(text, "").value_marks
    inner = {path[:-1] for path in places if path}
    remarks = {mark.line: remark(path) for path, mark in places.items() if path not in inner}
    lines = text.rstrip("\n").split("\n")
    widest = min(max(map(len, lines)), _LONGEST_ALIGNED)
    return "".join(
        f"{line:<{widest}}  # {remarks[number]}\n" if number in remarks else f"{line}\n"
        for number, line in enumerate(lines, 1)
    )


def _whole(recipe: Recipe) -> object:
    values = recipe.model_dump(mode="json", exclude_none=True, exclude={"extends", "env", "vars"})
    for part in (values["model"]["language_model"], values["model"]["vision_tower"]):
        # Pretrained weights have no seed, and a recipe that gives them one is refused.
        if isinstance(part, dict) and "source" in part:
            del part["seed"]
        if isinstance(part, dict) and (part.get("quantization") or {}).get("bits") == 8:
            part["quantization"] = {"bits": 8}
    for stage, written in zip(recipe.stages, values["stages"], strict=True):
        for strategy, steps in (("eval_strategy", "eval_steps"), ("save_strategy", "save_steps")):
            # A default that nothing reads would be reported as one that somebody wrote.
            if getattr(stage.train, strategy) != "steps" and steps not in stage.train.model_fields_set:
                del written["train"][steps]
    return _escape(values)


def _write(values: object, *, width: int) -> str:
    text: str = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=width)
    return escape_yaml(text)


def _escape(value: object) -> object:
    if isinstance(value, str):
        return value.replace("${", "$${")
    if isinstance(value, dict):
        return {key: _escape(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_escape(inner) for inner in value]
    return value
