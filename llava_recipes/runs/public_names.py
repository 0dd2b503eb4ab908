"""What others may see of a run's sources: hub ids as they are, of local paths the last name alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath

from pydantic import JsonValue

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_ABSOLUTE = re.compile(r"(/|~|\.\.?/|[A-Za-z]:[\\/]|\\\\|file://)")

_MODELS = frozenset({"language_model", "source", "tokenizer"})
"""Keys of a recipe with a hub id or a path."""
_FILES = frozenset({"annotations", "images", "init_from", "output_dir", "deepspeed", "extends"})
"""Keys of a recipe with a path, or with a name that has no slash."""


def is_hub_id(source: str) -> bool:
    """Whether a source reads as `owner/name`, and no folder of this machine is meant."""
    return _HUB_ID.fullmatch(source) is not None and not Path(source).exists()


def public_name(source: str) -> str:
    """A hub id as it is; of a local path the last name."""
    return source if is_hub_id(source) else last_part(source)


def last_part(path: str) -> str:
    """The last name of a path of any system."""
    kind = PureWindowsPath if "\\" in path else PurePosixPath
    return kind(path).name or "."


def without_paths(settings: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Settings of a tokenizer without keys that say where its files were once: nobody reads those."""
    return {
        key: value
        for key, value in settings.items()
        if not (isinstance(value, str) and _ABSOLUTE.match(value) and "\n" not in value)
        or key == "chat_template"
    }


def public_values(value: JsonValue, key: str = "") -> JsonValue:
    """A recipe's values without the paths of the machine that they were written on."""
    if isinstance(value, Mapping):
        return {name: public_values(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [public_values(inner, key) for inner in value]
    if not isinstance(value, str):
        return value
    if key in _MODELS:
        return public_name(value)
    is_path = key in _FILES or (_ABSOLUTE.match(value) is not None and not any(map(str.isspace, value)))
    return last_part(value) if is_path else value
