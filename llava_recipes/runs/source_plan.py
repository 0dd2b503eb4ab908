"""Plans for models that no recipe of ours made: what a checkpoint's own files say about its parts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import JsonValue

from llava_recipes.plan.families import LANGUAGE_FAMILIES, usual_template
from llava_recipes.plan.types import DataPlan
from llava_recipes.recipe.errors import Problem, RecipeError
from llava_recipes.recipe.json_file import made_of, read_object

NOTE = "llava_recipe.json"
"""The file in which an export says how text and pictures were given to the model."""

_USUAL_LENGTH = 2048


def noted_data(folder: Path) -> DataPlan | None:
    """How an export of ours was given text and pictures; None for anybody else's folder."""
    file = folder / NOTE
    if not file.is_file():
        return None
    data = read_object(file).get("data")
    hint = f"it was written by another version of llava-recipes; without {file.name} the folder opens too"
    with made_of(file, hint=hint):
        return DataPlan.model_validate_json(json.dumps(data))


def noted_chat_template(folder: Path) -> str | None:
    """The tokenizer's own chat template, where an export of ours has put another around it."""
    file = folder / NOTE
    found = read_object(file).get("chat_template") if file.is_file() else None
    return found if isinstance(found, str) else None


def write_note(folder: Path, data: DataPlan, *, chat_template: str | None = None) -> None:
    """Leave the note that `noted_data` reads; files and counts of a run stay behind."""
    own = data.model_copy(update={"sources": (), "num_samples": None, "validation": None})
    note = {"data": own.model_dump(mode="json"), "chat_template": chat_template}
    text = json.dumps(note, indent=2, ensure_ascii=False) + "\n"
    (folder / NOTE).write_text(text, "utf-8")


def usual_data(
    language_config: Mapping[str, JsonValue],
    *,
    pictures: Mapping[str, JsonValue],
    vocabulary: Mapping[str, int],
) -> DataPlan:
    """How LLaVA models of a language model's kind are usually given text, where nothing says it.

    `pictures` are the keys of a plan that say how those are given. Raises RecipeError for a kind that has no
    usual template.
    """
    kind = str(language_config.get("model_type"))
    template = usual_template(kind, vocabulary)
    if template is None:
        message = f"nothing says how prompts are written for this {kind} model"
        raise RecipeError(
            Problem(
                message,
                code="template-not-known",
                hint=f"known are {', '.join(LANGUAGE_FAMILIES)}",
            )
        )
    lengths = (language_config.get(key) for key in ("tokenizer_model_max_length", "max_position_embeddings"))
    values: dict[str, JsonValue] = {
        "template": template,
        "sources": [],
        "num_samples": None,
        "max_length": next((length for length in lengths if isinstance(length, int)), _USUAL_LENGTH),
        "shuffle": False,
        "order": "file",
        "group_by": "none",
        "on_bad_image": "error",
        "lazy_preprocess": True,
    }
    return DataPlan.model_validate_json(json.dumps({**values, **pictures}))


def pictures_of(config: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """How a config.json of the original or of LLaVA-NeXT says that pictures are given.

    Raises RecipeError for a way that is not known here.
    """
    ratio = str(config.get("image_aspect_ratio") or "square")
    if ratio in ("square", "pad"):
        return {"image_aspect_ratio": ratio}
    merge, pinpoints = str(config.get("mm_patch_merge_type") or "flat"), config.get("image_grid_pinpoints")
    sizes = _sizes(pinpoints)
    if ratio != "anyres" or merge not in ("flat", "spatial", "spatial_unpad") or sizes is None:
        message = f'pictures are given to this model in a way that is not known here: "{ratio}"'
        found = (
            f"mm_patch_merge_type {merge}, image_grid_pinpoints {pinpoints}" if ratio == "anyres" else None
        )
        raise RecipeError(
            Problem(
                message,
                code="unknown-llava-model",
                found=found or "image_aspect_ratio in config.json",
            )
        )
    return {"image_aspect_ratio": ratio, "mm_patch_merge_type": merge, "image_grid_pinpoints": sizes}


def _sizes(pinpoints: JsonValue) -> list[JsonValue] | None:
    """Pairs of whole numbers, given as such or, as the original's scripts do, in text."""
    if isinstance(pinpoints, str):
        try:
            pinpoints = json.loads(pinpoints.replace("(", "[").replace(")", "]"))
        except ValueError:
            return None
    if not isinstance(pinpoints, list) or not pinpoints:
        return None
    pairs = [pair for pair in pinpoints if isinstance(pair, list) and len(pair) == 2]
    whole = all(isinstance(number, int) and number > 0 for pair in pairs for number in pair)
    return [*pairs] if whole and len(pairs) == len(pinpoints) else None
