"""Model plans over the golden fixtures and over inline configs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import JsonValue

from llava_recipes.plan.types import LanguageModelPlan, ModelPlan
from llava_recipes.recipe.schema import ImageTokens, Projector, VisionTower

GOLDEN = Path(__file__).parents[1] / "golden"
VICUNA = GOLDEN / "fixtures" / "tiny_vicuna"
CLIP = GOLDEN / "fixtures" / "tiny_clip"

INLINE_CLIP: dict[str, JsonValue] = {
    "model_type": "clip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def plan_of(
    *,
    language: Path = VICUNA,
    language_config: dict[str, JsonValue] | None = None,
    tower: Path = CLIP,
    tower_config: dict[str, JsonValue] | None = None,
    seed: int = 0,
    select_layer: int = -2,
    select_feature: Literal["patch", "cls_patch"] = "patch",
    projector: str = "mlp2x_gelu",
    init_from: Path | None = None,
    start_end: bool = False,
    patch: bool = False,
) -> ModelPlan:
    """A plan of tiny parts; a config given inline wins over the folder."""
    return ModelPlan(
        language_model=LanguageModelPlan(
            source=None if language_config else str(language),
            revision=None,
            config=language_config,
            tokenizer=str(VICUNA),
            seed=seed,
        ),
        vision_tower=VisionTower(
            source=None if tower_config else str(tower),
            config=tower_config,
            seed=seed,
            select_layer=select_layer,
            select_feature=select_feature,
        ),
        projector=Projector(type=projector, init_from=None if init_from is None else str(init_from)),
        image_tokens=ImageTokens(start_end=start_end, patch=patch),
        sizes=None,
    )
