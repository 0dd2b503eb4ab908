"""The whole model from its plan, filled without a second copy in memory, and the data that it is fed."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from accelerate import init_empty_weights
from pydantic import JsonValue
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerBase
from transformers.image_processing_utils import BaseImageProcessor
from transformers.initialization import no_init_weights

from llava_recipes.data.collate import Collator
from llava_recipes.data.crops import ImageLayout, check_crops
from llava_recipes.data.dataset import StageDataset
from llava_recipes.data.images import load_image_processor, prepared_px
from llava_recipes.data.tokenizer import Vocabulary, plan_vocabulary
from llava_recipes.errors import RecipeError
from llava_recipes.model.base_weights import place_language_model, place_tower, private_randomness
from llava_recipes.model.configs import (
    TOWER_PATH,
    Origin,
    count_image_tokens,
    language_half,
    language_origin,
    llava_config,
    tower_origin,
    vision_half,
)
from llava_recipes.model.forward import adapt_forward, keep_angles_exact
from llava_recipes.model.head import Head, body_class, causal_skeleton, head_like
from llava_recipes.model.learned_rows import ImageNewline, load_newline, remember_image_tokens
from llava_recipes.model.placing import Placement, quantize_layers
from llava_recipes.model.projector import build_projector
from llava_recipes.model.read_config import try_out
from llava_recipes.model.weight_names import canonical_parameters
from llava_recipes.model.weights import load_projector
from llava_recipes.plan.image_tokens import any_res
from llava_recipes.plan.types import DataPlan, ModelPlan
from llava_recipes.versions import keep_rotary_frequencies


@dataclass(frozen=True)
class Assembled:
    """A model ready to be frozen and trained, with its tokenizer and image processor."""

    model: LlavaForConditionalGeneration
    tokenizer: PreTrainedTokenizerBase
    image_processor: BaseImageProcessor
    num_image_tokens: int
    """Features of one image of the tower's size."""
    language_config: dict[str, JsonValue]
    """The language model's own config as found, with the added tokens in its vocabulary size."""

    def image_layout(self, data: DataPlan) -> ImageLayout:
        """How many tokens an image becomes under a stage's data settings, and which features they are.

        Raises RecipeError when `anyres` cannot cut images into crops of the tower's size.
        """
        image_px = vision_half(self.model.config).image_size
        if data.image_aspect_ratio == "anyres":
            check_crops(data, self.image_processor, image_px)
        spread = any_res(data, image_px=image_px, num_image_tokens=self.num_image_tokens)
        return ImageLayout(self.num_image_tokens, spread)


@dataclass(frozen=True)
class Parts:
    """Configs, tokenizer and head of the plan's sources, before any weight is read."""

    language: Origin
    tower: Origin
    vocabulary: Vocabulary
    head: Head


def assemble(plan: ModelPlan, *, dtype: torch.dtype, zero3: bool = False) -> Assembled:
    """Build the model of a plan and fill it with its base weights.

    Base weights get `dtype`; the projector is float32, since Stage 1 trains it. Weights that already have
    `dtype` stay mapped from their files. With `zero3` a DeepSpeed config must be live and the process group
    set up; all processes call this.
    Raises RecipeError when a source cannot be read or does not fit the plan.
    """
    parts = read_parts(plan, weights=True)
    model = (_partitioned_model if zero3 else _empty_model)(plan, parts, dtype)
    dress(model, plan, parts)
    keep_angles_exact(model)
    if plan.language_model.quantization is not None:
        assert not zero3, "the plan refuses ZeRO-3 with a quantized model"
        quantize_layers(model, plan.language_model.quantization, dtype)
    placement = Placement(model, dtype)
    place_language_model(placement, parts.language, parts.vocabulary, seed=plan.language_model.seed)
    place_tower(placement, parts.tower, seed=plan.vision_tower.seed)
    remember_image_tokens(model, parts.vocabulary.tokenizer)
    left = [name for name, parameter in model.named_parameters() if parameter.device.type == "meta"]
    assert not left, f"parameters without values: {left}"
    whole_model = parts.language.folder if parts.language.layout != "language_model" else None
    projector = plan.projector.init_from or whole_model
    if projector is not None:
        load_projector(model, projector)
    if whole_model is not None:
        load_newline(model, whole_model)
    adapt_forward(model)
    return Assembled(
        model=model,
        tokenizer=parts.vocabulary.tokenizer,
        image_processor=_image_processor(plan, vision_half(model.config).image_size),
        num_image_tokens=count_image_tokens(plan.vision_tower, parts.tower.config),
        language_config={**parts.language.raw, "vocab_size": language_half(model.config).vocab_size},
    )


def build_skeleton(plan: ModelPlan) -> LlavaForConditionalGeneration:
    """The model that `assemble` would build, every parameter on the meta device.

    Reads configs and tokenizer, never weights. Raises RecipeError as `assemble` does for these.
    """
    parts = read_parts(plan, weights=False)
    with torch.device("meta"):
        model = stock_model(plan, parts, torch.float32, partitioned=False)
    dress(model, plan, parts)
    meta: LlavaForConditionalGeneration = model.to(device=torch.device("meta"))
    return meta


def skeleton_shapes(plan: ModelPlan) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter by canonical name. Reads and raises as `build_skeleton` does."""
    parameters = canonical_parameters(build_skeleton(plan))
    return {name: tuple(parameter.shape) for name, parameter in parameters.items()}


def _image_processor(plan: ModelPlan, image_px: int) -> BaseImageProcessor:
    """The tower's image processor. Raises RecipeError when its images don't have the tower's size."""
    processor = load_image_processor(plan.vision_tower)
    made = prepared_px(processor)
    if made != (image_px, image_px):
        raise RecipeError.of(
            "the image processor and the vision tower have different image sizes",
            code="image-processor-other-size",
            path=TOWER_PATH,
            found=f"{made[0]} × {made[1]} pixels from preprocessor_config.json or `image_processor`, "
            f"{image_px} × {image_px} in the tower's config ({plan.vision_tower.source or 'inline'})",
        )
    return processor


def read_parts(plan: ModelPlan, *, weights: bool) -> Parts:
    """Configs and tokenizer of a plan; with `weights` their folders contain the weights too."""
    language = language_origin(plan.language_model, weights=weights)
    tower = tower_origin(plan.vision_tower, weights=weights)
    head = head_like(causal_skeleton(language.config, place=language.place))
    try_out(body_class(tower.config), tower.config, place=tower.place, path=TOWER_PATH)
    return Parts(language, tower, plan_vocabulary(plan), head)


def stock_model(
    plan: ModelPlan, parts: Parts, dtype: torch.dtype, *, partitioned: bool
) -> LlavaForConditionalGeneration:
    """transformers' own model at the plan's sizes; the context decides how its parameters are made."""
    language = copy.deepcopy(parts.language.config)
    language.vocab_size = parts.vocabulary.vocab_size(language)
    config = llava_config(
        plan, language=language, tower=parts.tower.config, image_token_id=parts.vocabulary.image_token_id()
    )
    for each in (config, language_half(config), vision_half(config)):
        each.dtype = dtype
    make = LlavaForConditionalGeneration._from_config if partitioned else LlavaForConditionalGeneration
    model: LlavaForConditionalGeneration = make(config)
    return model


def dress(model: LlavaForConditionalGeneration, plan: ModelPlan, parts: Parts) -> None:
    """Give the stock model the language model's own head, the plan's projector and image newline."""
    parts.head.take_place_in(model)
    model.model.multi_modal_projector = build_projector(
        plan.projector.type,
        parts.tower.config.hidden_size,
        parts.language.config.hidden_size,
        seed=plan.projector.seed,
    )
    if plan.image_newline:
        model.model.image_newline = ImageNewline(parts.language.config.hidden_size, seed=plan.projector.seed)


def _empty_model(plan: ModelPlan, parts: Parts, dtype: torch.dtype) -> LlavaForConditionalGeneration:
    # Parameters go to the meta device one by one; buffers such as rotary frequencies keep their values.
    with private_randomness(), no_init_weights(), init_empty_weights(include_buffers=False):
        model = stock_model(plan, parts, dtype, partitioned=False)
    model.tie_weights()
    return model


def _partitioned_model(plan: ModelPlan, parts: Parts, dtype: torch.dtype) -> LlavaForConditionalGeneration:
    with private_randomness():
        model = stock_model(plan, parts, dtype, partitioned=True)
    keep_rotary_frequencies(model)
    return model


def open_samples(assembled: Assembled, data: DataPlan, *, start_end: bool) -> StageDataset:
    """The samples of a stage's data. Raises RecipeError as StageDataset does."""
    return StageDataset(
        data, tokenizer=assembled.tokenizer, image_processor=assembled.image_processor, start_end=start_end
    )


def collator_of(assembled: Assembled, dataset: StageDataset) -> Collator:
    """The collator of these samples, with the stage's longest length."""
    tokenizer = assembled.tokenizer
    pad_id: int = tokenizer.pad_token_id
    return Collator(
        layout=assembled.image_layout(dataset.data),
        max_length=dataset.data.max_length,
        pad_token_id=pad_id,
        # When the unknown token is also the padding, the original drops it from the text.
        dropped_token_id=pad_id if pad_id == tokenizer.unk_token_id else None,
        mark_of=dataset.records.mark,
    )
