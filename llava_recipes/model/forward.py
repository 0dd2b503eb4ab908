"""The forward pass of training: only what the loss needs.

Differs from the stock forward in what it leaves out, not in its numbers: the tower stops at the selected
layer and builds no graph unless it trains; logits exist only where a label is learned; a batch padded right
needs no attention mask, since under a causal model padding never reaches a token before it.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlavaForConditionalGeneration
from transformers.utils.generic import ModelOutput

from llava_recipes.model.features import feature_rows, trains, zero_pictures
from llava_recipes.model.newline import image_newline
from llava_recipes.model.placing import is_partitioned
from llava_recipes.model.splice import place_image_features
from llava_recipes.recipe.errors import Problem, RecipeError

IGNORED = -100


@dataclass
class TrainingOutput(ModelOutput):  # type: ignore[misc]
    """What training needs of a forward pass; logits only when no labels were given."""

    loss: Tensor | None = None
    num_label_tokens: Tensor | None = None
    logits: Tensor | None = None


def adapt_forward(model: LlavaForConditionalGeneration) -> None:
    """Make training's forward this model's own; `stock_forward` gives transformers' back for a while."""
    model.__dict__["forward"] = types.MethodType(training_forward, model)
    model.__dict__["generate"] = types.MethodType(_generate, model)


@contextlib.contextmanager
def stock_forward(model: LlavaForConditionalGeneration) -> Iterator[None]:
    """transformers' forward on this model while the block runs."""
    adapted = model.__dict__.pop("forward", None)
    try:
        yield
    finally:
        if adapted is not None:
            model.__dict__["forward"] = adapted


def _generate(self: LlavaForConditionalGeneration, *args: Any, **kwargs: Any) -> Any:
    """transformers' generation, whose arguments and results are its own."""
    stock: Callable[..., Any] = LlavaForConditionalGeneration.generate
    with stock_forward(self):
        return stock(self, *args, **kwargs)


def training_forward(
    self: LlavaForConditionalGeneration,
    input_ids: Tensor,
    is_image: Tensor,
    labels: Tensor | None = None,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    pixel_values: Tensor | None = None,
    feature_places: Tensor | None = None,
    num_items_in_batch: Tensor | int | None = None,
) -> TrainingOutput:
    """Loss over the label tokens of a batch.

    input_ids        int64[B, T]  any valid id on image placeholders
    is_image         bool[B, T]   true on image placeholders
    labels           int64[B, T]  not shifted; -100 where nothing is learned. None gives float[B, T, V] logits
    attention_mask   bool[B, T]   false on padding
    pixel_values     float[M, C, H, W]  crops of the pictures, in reading order
    feature_places   int64[K]     which of their features each placeholder takes; see `place_image_features`

    The loss is the mean over the label tokens, or their sum over `num_items_in_batch`. Computed in float32.
    Raises RecipeError when a batch has no label token to take a mean of.
    """
    embeds_BTD = _embed(self, input_ids, is_image, pixel_values, feature_places)
    if attention_mask is None or _padded_right(attention_mask):
        attention_mask = position_ids = None
    hidden_BTD: Tensor = self.model.language_model(
        inputs_embeds=embeds_BTD, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
    ).last_hidden_state
    if labels is None:
        return TrainingOutput(logits=self.lm_head(hidden_BTD))
    next_BS = labels[:, 1:]
    is_learned_BS = next_BS != IGNORED
    logits_LV = self.lm_head(hidden_BTD[:, :-1][is_learned_BS])
    targets_L = next_BS[is_learned_BS]
    if targets_L.numel() == 0 and num_items_in_batch is None:
        raise _nothing_learned()
    total = cross_entropy(logits_LV.float(), targets_L, reduction="sum")
    loss = total / (targets_L.numel() if num_items_in_batch is None else num_items_in_batch)
    return TrainingOutput(loss=loss, num_label_tokens=is_learned_BS.sum())


def embed_prompt(
    model: LlavaForConditionalGeneration,
    input_ids: Tensor,
    is_image: Tensor,
    pixel_values: Tensor | None,
    feature_places: Tensor | None,
) -> Tensor:
    """float[B, T, D]: token embeddings with the pictures in their places."""
    text_BTD: Tensor = model.get_input_embeddings()(input_ids)
    if pixel_values is None:
        return text_BTD
    return place_image_features(
        text_BTD=text_BTD,
        features_RD=feature_rows(model, pixel_values),
        is_image_BT=is_image,
        places_K=feature_places,
    )


def _embed(
    model: LlavaForConditionalGeneration,
    input_ids: Tensor,
    is_image: Tensor,
    pixel_values: Tensor | None,
    feature_places: Tensor | None,
) -> Tensor:
    embeds_BTD = embed_prompt(model, input_ids, is_image, pixel_values, feature_places)
    if pixel_values is None and _needs_pictures(model):
        # Every process must run the same modules, and the loss must reach what trains, pictures or not.
        unused_RD = feature_rows(model, zero_pictures(model, input_ids.device))
        embeds_BTD = embeds_BTD + 0.0 * unused_RD.sum().to(embeds_BTD.dtype)
    return embeds_BTD


def _needs_pictures(model: LlavaForConditionalGeneration) -> bool:
    parts = (model.model.multi_modal_projector, model.model.vision_tower, image_newline(model))
    some_train = any(part is not None and trains(part) for part in parts)
    return some_train or is_partitioned(next(model.parameters()))


@torch.no_grad()
def _padded_right(attention_mask: Tensor) -> bool:
    return bool((attention_mask[:, :-1] >= attention_mask[:, 1:]).all())


def _nothing_learned() -> RecipeError:
    return RecipeError(
        Problem(
            "a batch has no label tokens: nothing in it can be learned",
            code="no-labels-in-batch",
            found="every label of the batch is masked, or was cut off at max_length",
            hint="look at the samples with `llava-recipe preview`; raise `max_length`, or the batch size",
        )
    )
