"""Hints: what to write in place of a value that the schema refuses, or where a value is missing."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from math import inf
from typing import Final, Literal

from llava_recipes.deepspeed_presets import DEEPSPEED_PRESETS
from llava_recipes.errors import KeyPath
from llava_recipes.layouts import ALIASES, LAYOUTS
from llava_recipes.recipe.globs import MODULES
from llava_recipes.recipe.language import field_at
from llava_recipes.recipe.renames import OTHER_TEMPLATES, did_you_mean, same_digits
from llava_recipes.recipe.scalars import (
    Value,
    as_list,
    as_mapping,
    numbers_meant,
    spell_number,
    spell_value,
    value_at,
    whole,
)

Kind = Literal["projector", "full", "tower", "adapters"]
"""What trains: the projector (with the few rows next to it), more than that, only the tower, adapters."""

USUAL_RATES: Final[dict[Kind, float]] = {"projector": 1e-3, "full": 2e-5, "tower": 2e-6, "adapters": 2e-4}

_BATCHES: Final[dict[tuple[Kind, float], int]] = {
    ("projector", 1e-3): 256,
    ("projector", 2e-3): 128,
    ("full", 2e-5): 128,
    ("adapters", 2e-4): 128,
}
_WITH_A_PROJECTOR: Final = {"projector", "image_newline", "image_tokens"}
_PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_RATES: Final = "1e-3 for a projector alone, 2e-5 for a language model, 2e-4 for LoRA adapters"
_OFF: Final = ("false", "no", "off", "disabled", "null")
_STAGE: Final = re.compile(r"(?:ds|deepspeed)?(?:z|zero|stage|zerostage)?(?P<stage>[0-3])")


def missing_hint(path: KeyPath, root: Value) -> str | None:
    """What to write where a key is missing."""
    field, example = field_at(path), _example(path, root)
    if field is None:
        return None
    if path == ("version",):
        return "write `version: 1`"
    if example is None and path[-2:] == ("train", "learning_rate"):
        return f"write `learning_rate:` with the rate for what trains: {_RATES}"
    written = f"{path[-1]}: {example}" if example is not None else f"{path[-1]}:"
    return f"write `{written}`" + (f" ({field.description})" if field.description else "")


def empty_hint(path: KeyPath, root: Value) -> str:
    """What to write where a key has no value."""
    field, example = field_at(path), _example(path, root)
    if path[-1:] == ("deepspeed",):
        return "write `none` to train without DeepSpeed"
    if example is not None:
        return f"write `{path[-1]}: {example}`"
    if path[-2:] == ("train", "learning_rate"):
        return f"write the rate for what trains: {_RATES}"
    if field is not None and not field.is_required():
        return "set a value, or remove the key to use the default"
    return "set a value"


def _example(path: KeyPath, root: Value) -> str | None:
    """A value for a key that is right in this recipe, spelled."""
    if path[-2:] == ("train", "learning_rate"):
        stage = as_mapping(value_at(root, path[:-2]))
        globs, has_lora = as_list(stage.get("trainable")), stage.get("lora") is not None
        kind = kind_of_stage(stage.get("freeze", "all"), globs, has_lora=has_lora)
        return None if kind is None else spell_number(USUAL_RATES[kind])
    field = field_at(path)
    if field is None or not field.examples:
        return None
    if path[-1] == "output_dir":
        names = [value_at(root, ("name",)), value_at(root, (*path[:-1], "name"))]
        if all(isinstance(name, str) and _PLAIN_NAME.fullmatch(name) for name in names):
            return spell_value("./checkpoints/" + "-".join(map(str, names)), limit=300)
    return spell_value(field.examples[0], limit=100)


def number_hint(path: KeyPath, text: str, wanted: str) -> str | None:
    """What to write where a number is needed and a string is given; every reading that the key takes."""
    readings = [number for number in numbers_meant(text) if _takes(path, float(number))]
    if "a number" not in wanted:
        readings = [str(number) for reading in readings if (number := whole(reading)) is not None]
    readings = list(dict.fromkeys(readings))
    if len(readings) == 1:
        return f"write {readings[0]}, without quotes or separators"
    return f"write {' or '.join(readings)}, whichever is meant" if readings else None


def _takes(path: KeyPath, number: float) -> bool:
    """Whether a number is within a key's bounds."""
    field = field_at(path)
    return all(
        getattr(bound, "gt", -inf) < number < getattr(bound, "lt", inf)
        and getattr(bound, "ge", -inf) <= number <= getattr(bound, "le", inf)
        for bound in (field.metadata if field is not None else ())
    )


def choice_hint(path: KeyPath, value: Value, choices: tuple[object, ...]) -> str | None:
    """The word that was probably meant, of those that a key takes."""
    if value is False and "no" in choices:
        return f'write `{path[-1]}: "no"`'
    if not isinstance(value, str):
        return None
    if path[-1] == "template" and value in OTHER_TEMPLATES:
        return OTHER_TEMPLATES[value]
    if path[-1] == "image_aspect_ratio" and value.startswith("anyres_max"):
        return (
            "write `anyres`; `anyres_max_N` shrinks the features of large grids by interpolation, which "
            "neither Hugging Face's model nor this one does"
        )
    if path[-1] == "chat_template" and value in (*LAYOUTS, *ALIASES):
        return f"write `template: {value}`"
    if path == ("version",):
        return "write `version: 1`; a conversation template is `template:` under `data:` of the stage"
    return did_you_mean(value, same_digits(value, map(str, choices)))


def deepspeed_hint(word: str) -> str:
    """What to write instead of an unknown DeepSpeed preset."""
    if word.lower() in _OFF:
        return "write `none` to train without DeepSpeed"
    presets = ("none", *DEEPSPEED_PRESETS)
    listed = f"presets: {', '.join(presets)}; for a file, write ./{word}.json"
    stage = _STAGE.fullmatch(re.sub(r"[^a-z0-9]", "", word.lower()))
    if stage is None:
        return did_you_mean(word, same_digits(word, presets)) or listed
    meant = f"zero{stage['stage']}"
    if meant in presets:
        return f"did you mean `{meant}`?"
    return f"stage {stage['stage']} has no preset; {listed}"


def kind_of_stage(freeze: object, trainable: Sequence[object], *, has_lora: bool) -> Kind | None:
    """The kind of stage that the keys describe; None where nothing trains."""
    if has_lora:
        return "adapters"
    firsts = [glob.partition(".")[0] for glob in trainable if isinstance(glob, str)]
    # A glob that starts with a wildcard may match several.
    roots = {root for first in firsts for root in fnmatch.filter(MODULES, first) or [first]}
    if freeze != "all":
        return "full"
    if not roots:
        return None
    if roots <= _WITH_A_PROJECTOR:
        return "projector"
    return "tower" if roots == {"vision_tower"} else "full"


def usual_batch(kind: Kind | None, rate: float) -> int | None:
    """The samples per step of LLaVA's runs for such a stage at this rate; None where it has none."""
    return None if kind is None else _BATCHES.get((kind, rate))
