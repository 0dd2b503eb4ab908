"""A folder in the original's layout: a whole model, a projector alone, or adapters, with their base."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from pydantic import JsonValue
from torch import Tensor

from llava_recipes.files import expanded
from llava_recipes.model.assemble import Assembled, assemble
from llava_recipes.model.base_weights import COMPUTED
from llava_recipes.model.checkpoint import TensorSource, has_weights, open_checkpoint
from llava_recipes.model.checkpoint_names import Renamed
from llava_recipes.model.lora import ADAPTER_CONFIG, OTHER_WEIGHTS
from llava_recipes.model.placing import cast_weights
from llava_recipes.model.precision import DTYPES
from llava_recipes.model.read_config import CONFIG
from llava_recipes.model.starts import open_start
from llava_recipes.model.weights import PROJECTOR_FILES, lay_over
from llava_recipes.plan.compare import last_name
from llava_recipes.plan.original import language_part
from llava_recipes.plan.types import DataPlan, LanguageModelPlan, ModelPlan
from llava_recipes.recipe.errors import Problem, RecipeError
from llava_recipes.recipe.json_file import made_of, read_object
from llava_recipes.recipe.locations import check_place
from llava_recipes.recipe.schema import ImageTokens, Projector, VisionTower
from llava_recipes.runs.source_plan import noted_data, pictures_of, usual_data

TOWER_FOLDER = "vision_tower"
"""Where an export keeps the tower that no hub id and no other folder names."""

_STORED = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES.values()}
_TOWER = "vision_tower."
_Config = Mapping[str, JsonValue]


def assemble_llava(
    folder: Path, config: _Config, dtype: torch.dtype | None, base: str | None
) -> tuple[Assembled, ModelPlan, DataPlan, frozenset[str]]:
    """The model of the folder on the CPU, adapters merged; plans that say the same; the roots it holds.

    Raises RecipeError when weights are missing or do not fit, or a base is needed and none is given.
    """
    needed = _base_of(folder, base)
    with made_of(folder / CONFIG):
        plan = _model_plan(folder, config, needed, base)
    dtype = dtype or _STORED.get(str(config.get("torch_dtype", config.get("dtype"))), torch.float32)
    assembled = assemble(plan, dtype=dtype)
    over = _tower_of(open_checkpoint(folder, ())) if needed is None else open_start(folder, ()).tensors()
    if over:
        lay_over(assembled.model, over, adapter_config=folder / ADAPTER_CONFIG, found=str(folder))
    cast_weights(assembled.model, dtype)
    with made_of(folder / CONFIG):
        data = noted_data(folder) or usual_data(
            {**config, "model_type": language_part(config)["model_type"]},
            pictures=pictures_of(config),
            vocabulary=assembled.tokenizer.get_vocab(),
        )
    whole = {"language_model", "lm_head", "projector"} if needed is None else set()
    return assembled, plan, data, frozenset(whole | {name.partition(".")[0] for name in over})


def _base_of(folder: Path, base: str | None) -> str | None:
    """The language model that a folder's weights are laid over; None where they are a whole model."""
    projector = [folder / name for name in PROJECTOR_FILES if (folder / name).is_file()]
    if (folder / ADAPTER_CONFIG).is_file():
        if not (folder / OTHER_WEIGHTS).is_file():
            hint = "the projector is in it; fetch the folder again"
            raise RecipeError(
                Problem(
                    f"beside these adapters {OTHER_WEIGHTS} is missing",
                    code="adapter-file-missing",
                    hint=hint,
                )
            )
        return _adapter_base(folder / ADAPTER_CONFIG, base)
    if has_weights(folder):
        return None
    if projector:
        if base is None:
            hint = "name it with `--base`: hub id or folder"
            raise RecipeError(
                Problem(
                    "a projector alone needs its language model",
                    code="base-model-needed",
                    hint=hint,
                )
            )
        return base
    raise RecipeError(
        Problem(
            "this folder has a config.json and no weights",
            code="weights-missing",
            hint="expected model.safetensors, pytorch_model.bin or shards of them, adapter_config.json with "
            "its adapters, or mm_projector.bin",
        )
    )


def _adapter_base(file: Path, given: str | None) -> str:
    """The base of adapters: what was given, if they were made for a model of that name."""
    recorded = str(read_object(file).get("base_model_name_or_path") or "")
    check_place(recorded, key="base_model_name_or_path", file=file)
    if given is None:
        if not recorded:
            hint = "name it with `--base`: hub id or folder"
            raise RecipeError(
                Problem(
                    "adapters need the language model they were trained beside",
                    code="base-model-needed",
                    hint=hint,
                )
            )
        return recorded
    if recorded and last_name(recorded) not in (last_name(given), last_name(_name_inside(given))):
        raise RecipeError(
            Problem(
                "these adapters are for another language model",
                code="adapters-of-another-language-model",
                found=f"{file.name} names {recorded}, `--base` is {given}",
                hint="give the model they were trained beside",
            )
        )
    return given


def _name_inside(base: str) -> str:
    """The name that a local folder's config.json gives itself."""
    file = expanded(base) / CONFIG
    return str(read_object(file).get("_name_or_path") or "") if file.is_file() else ""


def _model_plan(folder: Path, config: _Config, needed: str | None, base: str | None) -> ModelPlan:
    source = needed or str(folder)
    has_tokenizer = any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))
    is_whole = needed is None
    if is_whole and not has_tokenizer and base is None:
        hint = "name the language model it was made from with `--base`, for its tokenizer"
        raise RecipeError(Problem("this checkpoint has no tokenizer", code="tokenizer-missing", hint=hint))
    layer, feature = config.get("mm_vision_select_layer", -2), config.get("mm_vision_select_feature", "patch")
    if not isinstance(layer, int) or feature not in ("patch", "cls_patch"):
        found = f"mm_vision_select_layer {layer}, mm_vision_select_feature {feature}"
        raise RecipeError(
            Problem(
                "config.json selects features that are not known here",
                code="unknown-select-feature",
                found=found,
            )
        )
    return ModelPlan(
        language_model=LanguageModelPlan(
            source=source,
            revision=None,
            config=None,
            tokenizer=str(folder) if is_whole and has_tokenizer else base or source,
            seed=0,
        ),
        vision_tower=VisionTower(
            source=_tower(folder, config),
            select_layer=layer,
            select_feature="cls_patch" if feature == "cls_patch" else "patch",
        ),
        projector=Projector(type=_projector_type(config)),
        image_tokens=ImageTokens(
            start_end=bool(config.get("mm_use_im_start_end")), patch=bool(config.get("mm_use_im_patch_token"))
        ),
        image_newline="unpad" in str(config.get("mm_patch_merge_type")),
        sizes=None,
    )


def _projector_type(config: _Config) -> str:
    # The first LLaVA has one layer and no word for it.
    return str(config.get("mm_projector_type") or "linear")


def _tower(folder: Path, config: _Config) -> str:
    """The tower that config.json names, or the one that was kept in the folder itself."""
    named = str(config.get("mm_vision_tower") or "")
    check_place(named, key="mm_vision_tower", file=folder / CONFIG)
    own = folder / TOWER_FOLDER
    if own.is_dir() and not expanded(named).is_dir():
        return str(own)
    if not named:
        raise RecipeError(
            Problem(
                "config.json names no vision tower",
                code="vision-tower-not-named",
                found="no mm_vision_tower in it",
            )
        )
    return named


def _tower_of(source: TensorSource) -> dict[str, Tensor]:
    """The tower's weights in a whole checkpoint, by our names."""
    tower = Renamed(source, "llava", _TOWER)
    return {_TOWER + name: tower.read(name) for name in tower.names() if not COMPUTED.search(name)}
