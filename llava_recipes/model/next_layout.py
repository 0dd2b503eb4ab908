"""A model with `spatial_unpad` as transformers' LlavaNextForConditionalGeneration: its config and processor.

Both read sizes height before width, where recipes have width before height. Its weights are called as in
`checkpoint_names.hf_name`; the newline is `image_newline` there.
"""

from __future__ import annotations

from transformers import BaseImageProcessor, LlavaConfig, LlavaNextConfig, LlavaNextImageProcessorPil

from llava_recipes.anyres import AnyRes
from llava_recipes.data.crops import any_res_processor
from llava_recipes.model.configs import language_half, vision_half


def next_config(config: LlavaConfig, spread: AnyRes) -> LlavaNextConfig:
    """The config under which LlavaNextForConditionalGeneration computes what our model does.

    It has no words for another merging of crops than `spatial_unpad`, and for another projector than
    `mlp2x_gelu`: `plan.exports` refuses those.
    """
    assert spread.merge == "spatial_unpad", spread.merge
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
