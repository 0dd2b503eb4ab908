"""Open folders in other layouts: that of llava-hf, and the original's with its bases and adapters."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from pydantic import JsonValue
from torch import Tensor
from transformers import LlavaConfig, LlavaNextConfig

from llava_recipes.errors import RecipeError
from llava_recipes.files import expanded
from llava_recipes.layouts import IMAGE_PATCH, IMAGE_START
from llava_recipes.model.assemble import Assembled, assemble
from llava_recipes.model.base_weights import COMPUTED
from llava_recipes.model.checkpoint import TensorSource, has_weights, open_checkpoint
from llava_recipes.model.configs import check_stock_projector, has_class_token, language_half, vision_half
from llava_recipes.model.lora import ADAPTER_CONFIG, OTHER_WEIGHTS
from llava_recipes.model.placing import TORCH_DTYPES, cast_weights
from llava_recipes.model.read_config import CONFIG, folder_config
from llava_recipes.model.starts import open_start
from llava_recipes.model.weight_names import Renamed
from llava_recipes.model.weights import PROJECTOR_FILES, lay_over
from llava_recipes.plan.compare import last_name
from llava_recipes.plan.families import LANGUAGE_FAMILIES, language_part, usual_template
from llava_recipes.plan.types import DataPlan, LanguageModelPlan, ModelPlan
from llava_recipes.projectors import STOCK
from llava_recipes.recipe.foreign import made_of, read_object
from llava_recipes.recipe.locations import check_place
from llava_recipes.recipe.schema import ImageTokens, Projector, VisionTower

NOTE = "llava_recipe.json"
"""The file in which an export records how text and images were prepared for the model."""
TOWER_FOLDER = "vision_tower"
"""Where an export keeps the tower that no hub id and no other folder names."""

_USUAL_LENGTH = 2048
_BASE_HINT = "pass its hub id or folder with `--base`"
_STORED = {str(dtype).removeprefix("torch."): dtype for dtype in TORCH_DTYPES.values()}
_TOWER = "vision_tower."
_Config = Mapping[str, JsonValue]


def assemble_hf(folder: Path, dtype: torch.dtype | None) -> tuple[Assembled, ModelPlan, DataPlan]:
    """The model of a folder in the layout of llava-hf, on the CPU, and plans that describe it."""
    config = _hf_config(folder)
    check_stock_projector(config, folder, ())
    layer = config.vision_feature_layer
    assert isinstance(layer, int)
    full = config.vision_feature_select_strategy == "full" and has_class_token(vision_half(config))
    with made_of(folder / CONFIG):
        plan = ModelPlan(
            language_model=LanguageModelPlan(
                source=str(folder), revision=None, config=None, tokenizer=str(folder), seed=0
            ),
            vision_tower=VisionTower(
                source=str(folder), select_layer=layer, select_feature="cls_patch" if full else "patch"
            ),
            projector=Projector(type=STOCK),
            image_tokens=ImageTokens(start_end=False, patch=False),
            image_newline=isinstance(config, LlavaNextConfig),
            sizes=None,
        )
    dtype = dtype or (config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32)
    assembled = assemble(plan, dtype=dtype)
    cast_weights(assembled.model, dtype)
    own_template = noted_chat_template(folder)
    if own_template is not None:
        assembled.tokenizer.chat_template = own_template
    vocabulary = assembled.tokenizer.get_vocab()
    tokens = ImageTokens(start_end=IMAGE_START in vocabulary, patch=IMAGE_PATCH in vocabulary)
    with made_of(folder / CONFIG):
        data = noted_data(folder) or usual_data(
            language_half(config).to_dict(),
            images=_hf_images(config, assembled),
            vocabulary=vocabulary,
        )
    return assembled, plan.model_copy(update={"image_tokens": tokens}), data


def _hf_config(folder: Path) -> LlavaConfig | LlavaNextConfig:
    config = folder_config(folder, ())
    if not isinstance(config, LlavaConfig | LlavaNextConfig):
        raise RecipeError.of(
            "this kind of LLaVA model is not supported",
            code="unknown-llava-model",
            found=f"{folder / CONFIG}: model_type {config.model_type}",
        )
    return config


def _hf_images(config: LlavaConfig | LlavaNextConfig, assembled: Assembled) -> dict[str, JsonValue]:
    """The keys of a plan that say how images are prepared for the model."""
    if isinstance(config, LlavaNextConfig):
        # transformers has height before width.
        sizes: list[JsonValue] = [[width, height] for height, width in config.image_grid_pinpoints]
        return {
            "image_aspect_ratio": "anyres",
            "mm_patch_merge_type": "spatial_unpad",
            "image_grid_pinpoints": sizes,
        }
    padded = bool(assembled.image_processor.to_dict().get("do_pad"))
    return {"image_aspect_ratio": "pad" if padded else "square"}


def assemble_llava(
    folder: Path, config: _Config, dtype: torch.dtype | None, base: str | None
) -> tuple[Assembled, ModelPlan, DataPlan, frozenset[str]]:
    """The model of a folder in the original's layout, on the CPU, with its adapters merged.

    Also plans that describe it, and the roots whose weights are in the folder. Raises RecipeError when
    weights are missing or do not fit, or the folder needs a base and `base` is None.
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
            images=_llava_images(config),
            vocabulary=assembled.tokenizer.get_vocab(),
        )
    whole = {"language_model", "lm_head", "projector"} if needed is None else set()
    return assembled, plan, data, frozenset(whole | {name.partition(".")[0] for name in over})


def _base_of(folder: Path, base: str | None) -> str | None:
    """The language model that a folder's weights belong to; None where they are a whole model."""
    if (folder / ADAPTER_CONFIG).is_file():
        if not (folder / OTHER_WEIGHTS).is_file():
            hint = "it contains the projector; download the folder again"
            raise RecipeError.of(
                f"{OTHER_WEIGHTS} is missing next to these adapters", code="adapter-file-missing", hint=hint
            )
        return _adapter_base(folder / ADAPTER_CONFIG, base)
    if has_weights(folder):
        return None
    if any((folder / name).is_file() for name in PROJECTOR_FILES):
        if base is None:
            raise RecipeError.of(
                "a projector alone needs its language model", code="base-model-needed", hint=_BASE_HINT
            )
        return base
    raise RecipeError.of(
        "this folder has a config.json and no weights",
        code="weights-missing",
        hint="it needs model.safetensors, pytorch_model.bin or shards of them, adapter_config.json with its "
        "adapters, or mm_projector.bin",
    )


def _adapter_base(file: Path, given: str | None) -> str:
    """The base of adapters: `given`, if they were made for a model of that name, or the recorded one."""
    recorded = str(read_object(file).get("base_model_name_or_path") or "")
    check_place(recorded, key="base_model_name_or_path", file=file)
    if given is None:
        if not recorded:
            raise RecipeError.of(
                "these adapters need the language model that they were trained with",
                code="base-model-needed",
                hint=_BASE_HINT,
            )
        return recorded
    if recorded and last_name(recorded) not in (last_name(given), last_name(_name_inside(given))):
        raise RecipeError.of(
            "these adapters are for another language model",
            code="adapters-of-another-language-model",
            found=f"{file.name} names {recorded}, `--base` is {given}",
            hint="pass the model that they were trained with",
        )
    return given


def _name_inside(base: str) -> str:
    """The model's name in a local folder's config.json."""
    file = expanded(base) / CONFIG
    return str(read_object(file).get("_name_or_path") or "") if file.is_file() else ""


def _model_plan(folder: Path, config: _Config, needed: str | None, base: str | None) -> ModelPlan:
    source = needed or str(folder)
    has_tokenizer = any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))
    is_whole = needed is None
    if is_whole and not has_tokenizer and base is None:
        hint = "pass the language model that it was made from with `--base`, for its tokenizer"
        raise RecipeError.of("this checkpoint has no tokenizer", code="tokenizer-missing", hint=hint)
    layer, feature = config.get("mm_vision_select_layer", -2), config.get("mm_vision_select_feature", "patch")
    if not isinstance(layer, int) or feature not in ("patch", "cls_patch"):
        found = f"mm_vision_select_layer {layer}, mm_vision_select_feature {feature}"
        raise RecipeError.of(
            "config.json selects unknown features of the tower", code="unknown-select-feature", found=found
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
        # The first LLaVA has one layer and no key for it.
        projector=Projector(type=str(config.get("mm_projector_type") or "linear")),
        image_tokens=ImageTokens(
            start_end=bool(config.get("mm_use_im_start_end")), patch=bool(config.get("mm_use_im_patch_token"))
        ),
        image_newline="unpad" in str(config.get("mm_patch_merge_type")),
        sizes=None,
    )


def _tower(folder: Path, config: _Config) -> str:
    """The tower that config.json names, or the one inside the folder."""
    named = str(config.get("mm_vision_tower") or "")
    check_place(named, key="mm_vision_tower", file=folder / CONFIG)
    own = folder / TOWER_FOLDER
    if own.is_dir() and not expanded(named).is_dir():
        return str(own)
    if not named:
        raise RecipeError.of(
            "config.json names no vision tower", code="vision-tower-not-named", found="no mm_vision_tower"
        )
    return named


def _tower_of(source: TensorSource) -> dict[str, Tensor]:
    """The tower's weights in a whole checkpoint, by canonical name."""
    tower = Renamed(source, "llava", _TOWER)
    return {_TOWER + name: tower.read(name) for name in tower.names() if not COMPUTED.search(name)}


def _llava_images(config: _Config) -> dict[str, JsonValue]:
    """The keys of a plan that say how images are prepared, from a config.json of LLaVA or LLaVA-NeXT.

    Raises RecipeError for a way that is not supported.
    """
    ratio = str(config.get("image_aspect_ratio") or "square")
    if ratio in ("square", "pad"):
        return {"image_aspect_ratio": ratio}
    merge, pinpoints = str(config.get("mm_patch_merge_type") or "flat"), config.get("image_grid_pinpoints")
    sizes = _sizes(pinpoints)
    if ratio != "anyres" or merge not in ("flat", "spatial", "spatial_unpad") or sizes is None:
        message = f'this model takes images in an unsupported way: "{ratio}"'
        found = (
            f"mm_patch_merge_type {merge}, image_grid_pinpoints {pinpoints}" if ratio == "anyres" else None
        )
        raise RecipeError.of(
            message, code="unknown-llava-model", found=found or "image_aspect_ratio in config.json"
        )
    return {"image_aspect_ratio": ratio, "mm_patch_merge_type": merge, "image_grid_pinpoints": sizes}


def _sizes(pinpoints: JsonValue) -> list[JsonValue] | None:
    """Pairs of positive whole numbers, as a list or, as in the original's scripts, as a string."""
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


def usual_data(
    language_config: Mapping[str, JsonValue],
    *,
    images: Mapping[str, JsonValue],
    vocabulary: Mapping[str, int],
) -> DataPlan:
    """How text is usually prepared for LLaVA models of a language model's kind, where nothing records it.

    `images` are the keys of a plan that say how images are prepared. Raises RecipeError for a kind without
    a usual template.
    """
    kind = str(language_config.get("model_type"))
    template = usual_template(kind, vocabulary)
    if template is None:
        message = f"the template of this {kind} model is unknown"
        hint = f"templates are known for {', '.join(LANGUAGE_FAMILIES)}"
        raise RecipeError.of(message, code="template-not-known", hint=hint)
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
    return DataPlan.model_validate_json(json.dumps({**values, **images}))


def noted_data(folder: Path) -> DataPlan | None:
    """How text and images are prepared for an export of ours; None for any other folder."""
    file = folder / NOTE
    if not file.is_file():
        return None
    data = read_object(file).get("data")
    hint = f"another version of llava-recipes wrote it; the folder also opens without {file.name}"
    with made_of(file, hint=hint):
        return DataPlan.model_validate_json(json.dumps(data))


def noted_chat_template(folder: Path) -> str | None:
    """The tokenizer's own chat template, where an export of ours has wrapped it in another one."""
    file = folder / NOTE
    found = read_object(file).get("chat_template") if file.is_file() else None
    return found if isinstance(found, str) else None


def write_note(folder: Path, data: DataPlan, *, chat_template: str | None = None) -> None:
    """Write the note that `noted_data` reads, without the files and counts of a run."""
    own = data.model_copy(update={"sources": (), "num_samples": None, "validation": None})
    note = {"data": own.model_dump(mode="json"), "chat_template": chat_template}
    text = json.dumps(note, indent=2, ensure_ascii=False) + "\n"
    (folder / NOTE).write_text(text, "utf-8")
