"""Write the values of a recipe as YAML that a person would have written, with comments beside them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping

from llava_recipes.recipe.errors import KeyPath
from llava_recipes.recipe.scalars import ScalarError, Value, resolve_scalar
from llava_recipes.recipe.schema import (
    Data,
    Frozen,
    ImageTokens,
    LanguageModel,
    Lora,
    Model,
    ParamGroup,
    Projector,
    Recipe,
    Samples,
    Source,
    Stage,
    Train,
    VisionTower,
)
from llava_recipes.screen import escape_yaml, shown

COMMENT_COLUMN = 44

_PLAIN = re.compile(r"[A-Za-z0-9./_][A-Za-z0-9./_+@-]*(?: [A-Za-z0-9./_+@-]+)*")
_YAML_1_1_WORDS = frozenset({"yes", "no", "on", "off", "y", "n"})
_MODELS: Mapping[str, type[Frozen]] = {
    "": Recipe,
    "model": Model,
    "language_model": LanguageModel,
    "vision_tower": VisionTower,
    "projector": Projector,
    "image_tokens": ImageTokens,
    "stages": Stage,
    "data": Data,
    "sources": Source,
    "train": Train,
    "lora": Lora,
    "param_groups": ParamGroup,
    "samples": Samples,
}


def write_recipe(values: Mapping[str, Value], comments: Mapping[KeyPath, str], header: str) -> str:
    """YAML text; `comments` stand at the end of the line of their key, `header` before everything."""
    lines = [f"# {shown(line)}".rstrip() for line in header.split("\n")]
    for key, value in _ordered(values, ""):
        if key in ("model", "stages"):
            lines.append("")
        lines += _entry(key, value, (key,), 0, comments)
    return escape_yaml("\n".join(lines)) + "\n"


def write_scalar(value: bool | int | float | str | None) -> str:
    """One value on one line, quoted where YAML would read something else."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, int):
        return str(value)
    text = value.replace("${", "$${")
    return text if _reads_as_itself(text) else json.dumps(text, ensure_ascii=False)


def _number(value: float) -> str:
    shown = repr(value)
    if "e" in shown or 0.001 < abs(value) < 1e16 or value == 0:
        return re.sub(r"e([-+])0*", lambda found: "e" + found[1].replace("+", ""), shown)
    mantissa, _, exponent = f"{value:e}".partition("e")
    short = f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return short if float(short) == value else shown


def _reads_as_itself(text: str) -> bool:
    if not _PLAIN.fullmatch(text) or text.lower() in _YAML_1_1_WORDS:
        return False
    try:
        return resolve_scalar(text) == text
    except ScalarError:
        return False


def _ordered(values: Mapping[str, Value], name: str) -> Iterator[tuple[str, Value]]:
    """Keys in the order in which the recipe language lists them; unknown ones last."""
    model = _MODELS.get(name)
    order = {key: place for place, key in enumerate(model.model_fields)} if model else {}
    yield from sorted(values.items(), key=lambda item: order.get(item[0], len(order)))


def _entry(
    key: str, value: Value, path: KeyPath, indent: int, comments: Mapping[KeyPath, str]
) -> Iterator[str]:
    start = f"{' ' * indent}{key}:"
    if isinstance(value, dict) and value:
        yield _commented(start, comments.get(path))
        for inner, child in _ordered(value, key):
            yield from _entry(inner, child, (*path, inner), indent + 2, comments)
    elif isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
        yield _commented(start, comments.get(path))
        for index, entry in enumerate(value):
            assert isinstance(entry, dict)
            lines = [
                line
                for inner, child in _ordered(entry, key)
                for line in _entry(inner, child, (*path, index, inner), indent + 4, comments)
            ]
            lines = lines or ["{}"]
            lines[0] = f"{' ' * (indent + 2)}- {lines[0].lstrip()}"
            yield from lines
    else:
        yield _commented(f"{start} {_flow(value)}", comments.get(path))


def _flow(value: Value) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_flow(entry) for entry in value) + "]"
    return write_scalar(value)


def _commented(line: str, comment: str | None) -> str:
    return line if comment is None else f"{line:<{COMMENT_COLUMN}} # {shown(comment)}"
