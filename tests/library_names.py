"""Write what is made of the installed libraries and of the schema.

Of the libraries: names.json in llava_recipes/recipe. Of the schema: keys.json beside it, schemas/ and
docs/reference.md. Run it in the checkout, as python -m tests.library_names. It is not in the package,
which may import neither transformers nor DeepSpeed below its plans.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import types
import typing
from importlib.metadata import version
from pathlib import Path
from typing import Any

from deepspeed.runtime import config
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from transformers import TrainingArguments
from transformers.training_args import OptimizerNames

from llava_recipes.cli.schema import schema_text
from llava_recipes.recipe import keys
from llava_recipes.recipe.language import schema_keys
from llava_recipes.recipe.names import FILE
from tests.reference import reference

ROOT = Path(__file__).parents[1]


def library_names() -> dict[str, Any]:
    """What names.json holds, of the installed versions."""
    hints = typing.get_type_hints(TrainingArguments)
    zero = DeepSpeedZeroConfig.model_fields
    return {
        "versions": {name: version(name) for name in ("deepspeed", "transformers")},
        "training_arguments": {
            field.name: "|".join(sorted(_kinds(hints[field.name])))
            for field in sorted(dataclasses.fields(TrainingArguments), key=lambda field: field.name)
        },
        "optimizers": sorted(name.value for name in OptimizerNames),
        "deepspeed_keys": _keys_that_deepspeed_reads(),
        "deepspeed_removed_keys": sorted(getattr(config, "_REMOVED_TOP_LEVEL_CONFIG_KEYS", ())),
        "zero_keys": sorted(zero.keys() | {field.alias for field in zero.values() if field.alias}),
        "zero_removed_keys": sorted(getattr(config, "_REMOVED_ZERO_CONFIG_KEYS", ())),
    }


def _kinds(hint: Any) -> set[str]:
    """The kinds of JSON value that a type takes."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return set().union(*(_kinds(part) for part in typing.get_args(hint)))
    if typing.get_origin(hint) is typing.Literal:
        return {type(value).__name__ for value in typing.get_args(hint)}
    origin = typing.get_origin(hint) or hint
    if origin is type(None):
        return {"None"}
    assert isinstance(origin, type)
    return {"str" if issubclass(origin, enum.Enum) else origin.__name__}


class _Watched(dict[str, Any]):
    """A config that notes the keys it is asked for."""

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__(values)
        self.asked: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.asked.add(str(key))
        return super().__contains__(key)

    def keys(self) -> Any:
        return self


def _keys_that_deepspeed_reads() -> list[str]:
    """DeepSpeed has no list of its top-level keys: those that it asks a config for."""
    watched = _Watched({"train_batch_size": 1})
    config.DeepSpeedConfig.__new__(config.DeepSpeedConfig)._initialize_params(watched)
    return sorted(watched.asked)


def keys_text() -> str:
    """What keys.json holds: a line for each key."""
    lines = (json.dumps(dataclasses.asdict(key), ensure_ascii=False) for key in schema_keys())
    return "[\n" + ",\n".join(lines) + "\n]\n"


def made_of_the_schema() -> dict[Path, str]:
    """The text of each file that repeats the schema."""
    schemas = {ROOT / f"schemas/{kind}.schema.json": schema_text(kind) for kind in ("recipe", "base", "plan")}
    return {keys.FILE: keys_text(), **schemas, ROOT / "docs/reference.md": reference()}


if __name__ == "__main__":
    FILE.write_text(json.dumps(library_names(), indent=1) + "\n", "utf-8")
    for file, text in made_of_the_schema().items():
        file.write_text(text, "utf-8")
