"""A folder in llava-hf's layout: transformers' own LLaVA, with its processor."""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import JsonValue
from transformers import LlavaConfig, LlavaNextConfig

from llava_recipes.model.assemble import Assembled, assemble
from llava_recipes.model.configs import check_stock_projector, has_class_token, language_half, vision_half
from llava_recipes.model.placing import cast_weights
from llava_recipes.model.read_config import CONFIG, folder_config
from llava_recipes.plan.types import DataPlan, LanguageModelPlan, ModelPlan
from llava_recipes.projectors import STOCK
from llava_recipes.recipe.errors import Problem, RecipeError
from llava_recipes.recipe.json_file import made_of
from llava_recipes.recipe.schema import ImageTokens, Projector, VisionTower
from llava_recipes.runs.source_plan import noted_chat_template, noted_data, usual_data
from llava_recipes.templates import IMAGE_PATCH, IMAGE_START


def assemble_hf(folder: Path, dtype: torch.dtype | None) -> tuple[Assembled, ModelPlan, DataPlan]:
    """The model of the folder on the CPU, and plans that say the same."""
    config = _config(folder)
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
    dtype = dtype or _stored_dtype(config)
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
            pictures=_pictures(config, assembled),
            vocabulary=vocabulary,
        )
    return assembled, plan.model_copy(update={"image_tokens": tokens}), data


def _pictures(config: LlavaConfig | LlavaNextConfig, assembled: Assembled) -> dict[str, JsonValue]:
    """The keys of a plan that say how pictures are given to the model."""
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


def _config(folder: Path) -> LlavaConfig | LlavaNextConfig:
    config = folder_config(folder, ())
    if not isinstance(config, LlavaConfig | LlavaNextConfig):
        raise RecipeError(
            Problem(
                "this kind of LLaVA model is not opened here",
                code="unknown-llava-model",
                found=f"{folder / CONFIG}: model_type {config.model_type}",
            )
        )
    return config


def _stored_dtype(config: LlavaConfig | LlavaNextConfig) -> torch.dtype:
    return config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
