"""The configs of both halves of the model, from a folder, the hub, or the recipe itself."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import JsonValue
from transformers import LlavaConfig, LlavaNextConfig, PreTrainedConfig

from llava_recipes.errors import KeyPath, RecipeError
from llava_recipes.model.pretrained import Part, pretrained_folder
from llava_recipes.model.read_config import (
    CONFIG,
    config_of,
    folder_config,
    inline_config,
    known_keys,
    raw_config,
)
from llava_recipes.model.weight_names import Layout, layout_of
from llava_recipes.plan.families import HF_TYPES, TOWER_FAMILIES, language_part, tower_titles
from llava_recipes.plan.types import LanguageModelPlan, ModelPlan
from llava_recipes.recipe.schema import VisionTower

LANGUAGE_PATH: KeyPath = ("model", "language_model")
TOWER_PATH: KeyPath = ("model", "vision_tower")


@dataclass(frozen=True)
class Origin:
    """A config and where it comes from: `folder` is None for one written in the recipe."""

    config: PreTrainedConfig
    raw: dict[str, JsonValue]
    folder: pathlib.Path | None
    layout: Layout = "language_model"
    """The layout of the folder's files: a whole LLaVA model also contains a projector."""

    @property
    def place(self) -> str:
        """Where the config is, for messages."""
        return "the inline config" if self.folder is None else str(self.folder / CONFIG)


def language_origin(plan: LanguageModelPlan, *, weights: bool) -> Origin:
    """The language model's config, and its folder, with `weights` one that contains them too."""
    if plan.config is not None:
        return Origin(inline_config(plan.config, (*LANGUAGE_PATH, "config")), dict(plan.config), None)
    assert plan.source is not None
    parts: tuple[Part, ...] = ("config", "weights") if weights else ("config",)
    folder = pretrained_folder(plan.source, plan.revision, parts=parts, path=LANGUAGE_PATH)
    raw = raw_config(folder, LANGUAGE_PATH)
    layout = layout_of(raw)
    if layout == "llava":
        inner = dict(language_part(raw))
        return Origin(_language_half_of(inner, str(folder / CONFIG)), inner, folder, layout)
    if layout == "language_model" and str(raw.get("model_type", "")).startswith("llava"):
        raise RecipeError.of(
            "this whole LLaVA model is of an unknown kind",
            code="unknown-llava-model",
            path=LANGUAGE_PATH,
            found=f"{plan.source} (model_type {raw.get('model_type')})",
            hint="use a model in the original's layout, such as liuhaotian/llava-v1.5-13b, or in llava-hf's, "
            "or the language model that it is built on",
        )
    config = folder_config(folder, LANGUAGE_PATH)
    if layout == "language_model":
        return Origin(config, raw, folder)
    assert isinstance(config, LlavaConfig | LlavaNextConfig)
    check_stock_projector(config, folder, LANGUAGE_PATH)
    half = language_half(config)
    return Origin(half, half.to_dict(), folder, layout)


def tower_origin(tower: VisionTower, *, weights: bool) -> Origin:
    """The tower's config (the vision half of a full CLIP or SigLIP config), and its folder."""
    if tower.config is not None:
        path = (*TOWER_PATH, "config")
        return Origin(_tower_half(inline_config(tower.config, path), path), dict(tower.config), None)
    assert tower.source is not None
    path = (*TOWER_PATH, "source")
    parts: tuple[Part, ...] = ("config", "image_processor", "weights") if weights else ("config",)
    folder = pretrained_folder(tower.source, tower.revision, parts=parts, path=path)
    config, raw = folder_config(folder, path), raw_config(folder, path)
    return Origin(_tower_half(config, path), raw, folder, layout_of(raw))


def has_class_token(tower_config: PreTrainedConfig) -> bool:
    """Whether a token of the whole image precedes the patches, as in CLIP."""
    return TOWER_FAMILIES[tower_config.model_type].class_token


def count_image_tokens(tower: VisionTower, tower_config: PreTrainedConfig) -> int:
    """Tokens that one image takes: its patches, and the class token with `cls_patch`."""
    num_patches: int = (tower_config.image_size // tower_config.patch_size) ** 2
    if tower.select_feature == "patch":
        return num_patches
    if not has_class_token(tower_config):
        raise RecipeError.of(
            "this tower has no class token",
            code="no-class-token",
            path=(*TOWER_PATH, "select_feature"),
            found=f"{tower.select_feature} with {tower_config.model_type}",
            hint="use `patch`",
        )
    return num_patches + 1


def llava_config(
    plan: ModelPlan, *, language: PreTrainedConfig, tower: PreTrainedConfig, image_token_id: int
) -> LlavaConfig:
    """The config of the whole model.

    `image_token_id` is never looked up in training, but must be below the vocabulary size: the stock forward
    embeds it when it searches for placeholders.
    """
    num_layers: int = tower.num_hidden_layers
    layer = plan.vision_tower.select_layer
    if not -num_layers - 1 <= layer <= num_layers:
        raise RecipeError.of(
            "the tower has no such hidden state",
            code="no-such-hidden-state",
            path=(*TOWER_PATH, "select_layer"),
            found=str(layer),
            hint=f"its {num_layers} layers have the states {-num_layers - 1} to {num_layers}; 0 is the input",
        )
    drop_class_token = has_class_token(tower) and plan.vision_tower.select_feature == "patch"
    return LlavaConfig(
        vision_config=tower,
        text_config=language,
        image_token_index=image_token_id,
        image_seq_length=count_image_tokens(plan.vision_tower, tower),
        vision_feature_layer=layer,
        vision_feature_select_strategy="default" if drop_class_token else "full",
    )


def check_stock_projector(config: LlavaConfig | LlavaNextConfig, folder: pathlib.Path, path: KeyPath) -> None:
    """Raise RecipeError unless the projector is like that of every llava-hf model.

    It has two layers with a bias and GELU between them, and takes one of the tower's hidden states.
    """
    odd = [
        f"{key}: {value}"
        for key, value, known in (
            ("projector_hidden_act", config.projector_hidden_act, "gelu"),
            ("multimodal_projector_bias", config.multimodal_projector_bias, True),
        )
        if value != known
    ]
    if not isinstance(config.vision_feature_layer, int):
        odd.append(f"vision_feature_layer: {config.vision_feature_layer}")
    if odd:
        message = "this LLaVA model's projector is of an unknown kind"
        raise RecipeError.of(
            message, code="unknown-llava-model", path=path, found=f"{folder}: {', '.join(odd)}"
        )


def language_half(config: LlavaConfig) -> PreTrainedConfig:
    assert isinstance(config.text_config, PreTrainedConfig)
    return config.text_config


def vision_half(config: LlavaConfig) -> PreTrainedConfig:
    assert isinstance(config.vision_config, PreTrainedConfig)
    return config.vision_config


def _language_half_of(inner: Mapping[str, JsonValue], place: str) -> PreTrainedConfig:
    """The language model's config, without the keys that LLaVA adds to it."""
    known = known_keys(str(inner["model_type"]), place=place, path=LANGUAGE_PATH)
    own = {key: value for key, value in inner.items() if key in known}
    return config_of({**own, "model_type": inner["model_type"]}, place=place, path=LANGUAGE_PATH)


def _tower_half(config: PreTrainedConfig, path: KeyPath) -> PreTrainedConfig:
    whole = (*HF_TYPES, *(family.pair for family in TOWER_FAMILIES.values()))
    half = getattr(config, "vision_config", config) if config.model_type in whole else config
    if half.model_type not in TOWER_FAMILIES:
        # Google's NaFlex checkpoints have this type; those of a fixed size are plain SigLIP.
        any_size = config.model_type.startswith("siglip2")
        raise RecipeError.of(
            f"a vision tower must be a {tower_titles()} model",
            code="unknown-vision-tower",
            path=path,
            found=f"model_type {config.model_type}",
            hint="siglip2 takes images of any size; one of a fixed size is google/siglip2-so400m-patch14-384"
            if any_size
            else None,
        )
    return half
