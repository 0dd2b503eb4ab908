"""A model with `spatial_unpad` as transformers' LlavaNextForConditionalGeneration: its config and processor.

Both read sizes height before width, where recipes have width before height. Its weights are called as in
`checkpoint_names.hf_name`; the newline is `image_newline` there.
"""

from __future__ import annotations

from transformers import BaseImageProcessor, LlavaConfig, LlavaNextConfig, LlavaNextImageProcessorPil

from llava_recipes.anyres import AnyRes
from llava_recipes.data.crops import any_res_processor
from llava_recipes.model.configs import language_half, vision_half
from llava_recipes.recipe.errors import Problem, RecipeError


def next_config(config: LlavaConfig, spread: AnyRes, *, projector_type: str) -> LlavaNextConfig:
    """The config under which LlavaNextForConditionalGeneration computes what our model does.

    Raises RecipeError for what that class has no words for: another merging of crops, another projector.
    """
    problems = [
        Problem(f"Hugging Face's LLaVA-NeXT has no {what}", found=found, hint=hint)
        for odd, what, found, hint in (
            (
                spread.merge != "spatial_unpad",
                "other way to merge patches than `spatial_unpad`",
                f"mm_patch_merge_type: {spread.merge}",
                "the original's layout, `--to llava`, has a word for it",
            ),
            (
                projector_type != "mlp2x_gelu",
                "other projector than `mlp2x_gelu`",
                projector_type,
                "the original's layout, `--to llava`, has all of them",
            ),
        )
        if odd
    ]
    if problems:
        raise RecipeError(*problems)
    return LlavaNextConfig(
        vision_config=vision_half(config),
        text_config=language_half(config),
        image_token_index=config.image_token_index,
        projector_hidden_act="gelu",
        multimodal_projector_bias=True,
        vision_feature_layer=config.vision_feature_layer,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        image_grid_pinpoints=height_first(spread),
        image_seq_length=config.image_seq_length,
        tie_word_embeddings=config.tie_word_embeddings,
    )


def next_image_processor(processor: BaseImageProcessor, spread: AnyRes) -> LlavaNextImageProcessorPil:
    """transformers' image processor that cuts pictures as `prepare_picture` does."""
    settings = {**any_res_processor(processor).to_dict(), "image_grid_pinpoints": height_first(spread)}
    made: LlavaNextImageProcessorPil = LlavaNextImageProcessorPil.from_dict(settings)
    return made


def height_first(spread: AnyRes) -> list[list[int]]:
    """The pinpoints in transformers' order, which is kept: the first of equals is taken."""
    return [[height, width] for width, height in spread.pinpoints]
