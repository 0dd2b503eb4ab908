"""Plans for models that no recipe of ours made: what a checkpoint's own files say about its parts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import JsonValue, ValidationError

from llava_recipes.layouts import Template
from llava_recipes.plan.types import DataPlan
from llava_recipes.recipe.errors import Problem, RecipeError

NOTE = "llava_recipe.json"
"""The file in which an export says how text and pictures were given to the model."""

_TEMPLATE_OF: Mapping[str, Template] = {
    "llama": "v1",
    "mistral": "mistral_instruct",
    "mpt": "mpt",
    "qwen2": "qwen",
    "qwen3": "qwen",
    "gemma": "gemma",
    "gemma2": "gemma",
    "phi3": "phi3",
}
_USUAL_LENGTH = 2048


def read_object(file: Path) -> dict[str, JsonValue]:
    """The mapping that a JSON file holds; raises RecipeError when there is none."""
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise RecipeError(Problem(f"{file.name} cannot be read", found=str(error))) from error
    if not isinstance(found, dict):
        raise RecipeError(Problem(f"{file.name} is not a mapping", found=str(file)))
    return found


def noted_data(folder: Path) -> DataPlan | None:
    """How an export of ours was given text and pictures; None for anybody else's folder."""
    file = folder / NOTE
    if not file.is_file():
        return None
    try:
        return DataPlan.model_validate_json(json.dumps(read_object(file).get("data")))
    except ValidationError as error:
        hint = f"it was written by another version of llava-recipes; without {file.name} the folder opens too"
        found = f"{'.'.join(map(str, error.errors()[0]['loc']))}: {error.errors()[0]['msg']}"
        raise RecipeError(Problem(f"{file.name} cannot be read", found=found, hint=hint)) from error


def write_note(folder: Path, data: DataPlan) -> None:
    """Leave the note that `noted_data` reads; files and counts of a run stay behind."""
    own = data.model_copy(update={"sources": (), "num_samples": None, "validation": None})
    text = json.dumps({"data": own.model_dump(mode="json")}, indent=2, ensure_ascii=False) + "\n"
    (folder / NOTE).write_text(text, "utf-8")


def usual_data(
    language_config: Mapping[str, JsonValue], *, image_aspect_ratio: str, vocabulary: Mapping[str, int]
) -> DataPlan:
    """How LLaVA models of a language model's kind are usually given text, where nothing says it.

    Raises RecipeError for a kind that has no usual template, or an aspect ratio that is not known.
    """
    kind = str(language_config.get("model_type"))
    template = "llama_3" if kind == "llama" and "<|eot_id|>" in vocabulary else _TEMPLATE_OF.get(kind)
    if template is None:
        message = f"nothing says how prompts are written for this {kind} model"
        raise RecipeError(Problem(message, hint=f"known are {', '.join(_TEMPLATE_OF)}"))
    if image_aspect_ratio not in ("square", "pad"):
        message = f'pictures are given to this model in a way that is not known here: "{image_aspect_ratio}"'
        raise RecipeError(Problem(message, found="image_aspect_ratio in config.json"))
    lengths = (language_config.get(key) for key in ("tokenizer_model_max_length", "max_position_embeddings"))
    return DataPlan(
        template=template,
        sources=(),
        num_samples=None,
        image_aspect_ratio="pad" if image_aspect_ratio == "pad" else "square",
        max_length=next((length for length in lengths if isinstance(length, int)), _USUAL_LENGTH),
        shuffle=False,
        group_by="none",
        on_bad_image="error",
        lazy_preprocess=True,
    )
