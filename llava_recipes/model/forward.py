"""The forward pass of training, from pixels and token ids to the loss: only what the loss needs.

It leaves out parts of the stock forward and keeps its numbers: the tower stops at the selected layer and
builds no graph unless it trains; logits exist only where a label is learned; a batch padded on the right
needs no attention mask, since in a causal model padding never reaches a token before it.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import LlavaConfig, LlavaForConditionalGeneration
from transformers.utils.generic import ModelOutput

from llava_recipes.data.crops import ImageLayout, PreparedImage
from llava_recipes.data.prompts import IGNORED
from llava_recipes.errors import RecipeError
from llava_recipes.model.configs import vision_half
from llava_recipes.model.learned_rows import image_newline
from llava_recipes.model.placing import is_partitioned
from llava_recipes.model.projector import projector_dtype


@dataclass
class TrainingOutput(ModelOutput):  # type: ignore[misc]
    """The result of a forward pass in training; logits only when there are no labels."""

    loss: Tensor | None = None
    num_label_tokens: Tensor | None = None
    logits: Tensor | None = None


def adapt_forward(model: LlavaForConditionalGeneration) -> None:
    """Make `training_forward` this model's own; `stock_forward` restores transformers' for a while."""
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
    num_batch_labels: Tensor | None = None,
) -> TrainingOutput:
    """Loss over the label tokens of a batch.

    input_ids        int64[B, T]  any valid id on image placeholders
    is_image         bool[B, T]   true on image placeholders
    labels           int64[B, T]  not shifted; -100 where nothing is learned; None for float[B, T, V] logits
    attention_mask   bool[B, T]   false on padding
    pixel_values     float[M, C, H, W]  crops of the images, in reading order
    feature_places   int64[K]     which of their features each placeholder takes; see `place_image_features`
    num_batch_labels int64[B]     label tokens of the larger batch that each sample is a part of

    The loss is the mean over the label tokens, or their sum over `num_items_in_batch`, or that of each one
    over its `num_batch_labels`. Computed in float32.
    Raises RecipeError when a batch has no label token to take a mean of.
    """
    embeds_BTD = embed_prompt(self, input_ids, is_image, pixel_values, feature_places)
    if pixel_values is None and _needs_images(self):
        # Every process must run the same modules, and the loss must reach what trains, images or not.
        unused_RD = feature_rows(self, zero_images(self, input_ids.device))
        embeds_BTD = embeds_BTD + 0.0 * unused_RD.sum().to(embeds_BTD.dtype)
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
    if num_batch_labels is not None:
        losses_L = cross_entropy(logits_LV.float(), targets_L, reduction="none")
        divisors_L = num_batch_labels[:, None].expand_as(is_learned_BS)[is_learned_BS]
        return TrainingOutput(loss=(losses_L / divisors_L).sum(), num_label_tokens=is_learned_BS.sum())
    if targets_L.numel() == 0 and num_items_in_batch is None:
        raise RecipeError.of(
            "a batch has no label tokens: nothing in it can be learned",
            code="no-labels-in-batch",
            found="every label of the batch is masked, or cut off at max_length",
            hint="look at the samples with `llava-recipe preview`; raise `max_length`, or the batch size",
        )
    total = cross_entropy(logits_LV.float(), targets_L, reduction="sum")
    loss = total / (targets_L.numel() if num_items_in_batch is None else num_items_in_batch)
    return TrainingOutput(loss=loss, num_label_tokens=is_learned_BS.sum())


@torch.no_grad()
def _padded_right(attention_mask: Tensor) -> bool:
    return bool((attention_mask[:, :-1] >= attention_mask[:, 1:]).all())


def _needs_images(model: LlavaForConditionalGeneration) -> bool:
    parts = (model.model.multi_modal_projector, model.model.vision_tower, image_newline(model))
    some_train = any(part is not None and trains(part) for part in parts)
    return some_train or is_partitioned(next(model.parameters()))


def zero_images(model: LlavaForConditionalGeneration, device: torch.device) -> Tensor:
    """float[1, C, H, W]: the stand-in for a batch without images."""
    vision = vision_half(model.config)
    return torch.zeros(1, vision.num_channels, vision.image_size, vision.image_size, device=device)


def embed_prompt(
    model: LlavaForConditionalGeneration,
    input_ids: Tensor,
    is_image: Tensor,
    pixel_values: Tensor | None,
    feature_places: Tensor | None,
) -> Tensor:
    """float[B, T, D]: token embeddings with the images in their places."""
    text_BTD: Tensor = model.get_input_embeddings()(input_ids)
    if pixel_values is None:
        return text_BTD
    return place_image_features(
        text_BTD=text_BTD,
        features_RD=feature_rows(model, pixel_values),
        is_image_BT=is_image,
        places_K=feature_places,
    )


def place_image_features(
    *, text_BTD: Tensor, features_RD: Tensor, is_image_BT: Tensor, places_K: Tensor | None
) -> Tensor:
    """The prompt's embeddings with the images in their places.

    text_BTD     float[B, T, D]  token embeddings; those on placeholders are replaced
    features_RD  float[R, D]     projector output of all crops, images in reading order; last the image
                                 newline where the model has one
    is_image_BT  bool[B, T]      true on placeholders
    places_K     int64[K]        which feature each placeholder takes, -1 for the last; None for all, in order

    Returns float[B, T, D] in the dtype of `text_BTD`, equal to it wherever the mask is false.
    Raises ValueError when placeholders and image tokens differ in number.
    """
    image_KD = features_RD if places_K is None else features_RD[places_K]
    placeholders = is_image_BT.nonzero(as_tuple=True)
    num_placeholders = placeholders[0].numel()
    if num_placeholders != image_KD.shape[0]:
        raise ValueError(f"{num_placeholders} image placeholders, but {image_KD.shape[0]} image tokens")
    return text_BTD.index_put(placeholders, image_KD.to(text_BTD.dtype))


def feature_rows(model: LlavaForConditionalGeneration, pixels_MCHW: Tensor) -> Tensor:
    """float[R, D]: the features of all crops, one after another; last the image newline if there is one."""
    rows_RD = crop_features(model, pixels_MCHW).flatten(0, 1)
    newline = image_newline(model)
    return rows_RD if newline is None else newline(rows_RD)


def image_features(
    model: LlavaForConditionalGeneration, images: Sequence[PreparedImage], layout: ImageLayout
) -> list[Tensor]:
    """float[K, D] of each image: what the language model sees of it. The tower runs once for all."""
    if not images:
        return []
    device = next(model.parameters()).device
    rows_RD = feature_rows(model, torch.cat([image.crops for image in images]).to(device))
    num_tokens = [layout.num_tokens(image) for image in images]
    places = layout.feature_places(images, num_tokens).to(device)
    return list(rows_RD[places].split(num_tokens))


def crop_features(model: LlavaForConditionalGeneration, pixels_NCHW: Tensor) -> Tensor:
    """float[N, P, D]: images in the language model's space; no graph through a frozen tower."""
    tower, projector = model.model.vision_tower, model.model.multi_modal_projector
    with contextlib.nullcontext() if trains(tower) else torch.no_grad():
        features_NPV = tower_features(tower, model.config, pixels_NCHW)
    dtype = projector_dtype(projector)
    image_NPD: Tensor = projector(features_NPV if dtype is None else features_NPV.to(dtype))
    return image_NPD


def tower_features(tower: nn.Module, config: LlavaConfig, pixels_NCHW: Tensor) -> Tensor:
    """The tower's selected hidden state.

    Returns float[N, P, V]: state 0 is the input of the first layer, k the output of layer k, negative counts
    from the end; no final norm. Later layers are not run.
    """
    num_layers = num_layers_run(config)
    hidden_NPV: Tensor = tower.get_submodule("embeddings")(pixels_NCHW)
    if "pre_layrnorm" in tower._modules:
        hidden_NPV = tower.get_submodule("pre_layrnorm")(hidden_NPV)
    layers = tower.get_submodule("encoder.layers")
    assert isinstance(layers, nn.ModuleList)
    for index in range(num_layers):
        hidden_NPV = layers[index](hidden_NPV, None)
    return hidden_NPV[:, 1:] if config.vision_feature_select_strategy == "default" else hidden_NPV


def num_layers_run(config: LlavaConfig) -> int:
    """How many of the tower's layers come before the selected hidden state."""
    layer = config.vision_feature_layer
    assert isinstance(layer, int)
    num_layers: int = layer if layer >= 0 else vision_half(config).num_hidden_layers + 1 + layer
    return num_layers


def trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def trains_in_vain(model: LlavaForConditionalGeneration) -> bool:
    """Whether a part of the tower after the selected hidden state, which gets no gradient, is to train."""
    tower = model.model.vision_tower
    layers = tower.get_submodule("encoder.layers")
    run = ("embeddings", "pre_layrnorm", "encoder")
    after = [child for name, child in tower.named_children() if name not in run]
    return any(map(trains, [*list(layers.children())[num_layers_run(model.config) :], *after]))


def keep_angles_exact(model: nn.Module) -> None:
    """Make every module that computes rotary angles compute them without TF32."""
    for module in model.modules():
        if any(name.endswith("inv_freq") for name, _ in module.named_buffers(recurse=False)):
            guard = _WithoutTf32()
            module.register_forward_pre_hook(guard.begin)
            module.register_forward_hook(guard.end, always_call=True)


class _WithoutTf32:
    """Turns off TF32 for float32 matrix products during a forward pass."""

    def __init__(self) -> None:
        self._before: list[str] = []

    def begin(self, module: nn.Module, inputs: Any) -> None:
        self._before.append(torch.backends.cuda.matmul.fp32_precision)
        torch.backends.cuda.matmul.fp32_precision = "ieee"

    def end(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        if self._before:
            before = self._before.pop()
            # When it equals the general setting, it follows that one again.
            general = torch.backends.fp32_precision  # type: ignore[attr-defined]
            torch.backends.cuda.matmul.fp32_precision = "none" if before == general else before
