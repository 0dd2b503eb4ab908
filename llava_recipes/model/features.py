"""What the language model sees of a picture: one hidden state of the tower, through the projector."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import LlavaConfig, LlavaForConditionalGeneration

from llava_recipes.data.crops import ImageLayout, PreparedImage
from llava_recipes.model.configs import vision_half
from llava_recipes.model.newline import image_newline
from llava_recipes.model.projector import projector_dtype


def trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def num_layers_run(config: LlavaConfig) -> int:
    """How many of the tower's layers lie before the selected hidden state."""
    layer = config.vision_feature_layer
    assert isinstance(layer, int)
    num_layers: int = layer if layer >= 0 else vision_half(config).num_hidden_layers + 1 + layer
    return num_layers


def trains_in_vain(model: LlavaForConditionalGeneration) -> bool:
    """Whether something of the tower trains behind the selected hidden state, where no gradient comes."""
    tower = model.model.vision_tower
    layers = tower.get_submodule("encoder.layers")
    run = ("embeddings", "pre_layrnorm", "encoder")
    behind = [child for name, child in tower.named_children() if name not in run]
    return any(map(trains, [*list(layers.children())[num_layers_run(model.config) :], *behind]))


def tower_features(tower: nn.Module, config: LlavaConfig, pixels_NCHW: Tensor) -> Tensor:
    """The tower's selected hidden state.

    Returns float[N, P, V]: index 0 is what enters the first layer, k the output of layer k, negative from the
    end; no final norm. The layers behind it are not run.
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


def crop_features(model: LlavaForConditionalGeneration, pixels_NCHW: Tensor) -> Tensor:
    """float[N, P, D]: pictures in the language model's space; no graph through a frozen tower."""
    tower, projector = model.model.vision_tower, model.model.multi_modal_projector
    with contextlib.nullcontext() if trains(tower) else torch.no_grad():
        features_NPV = tower_features(tower, model.config, pixels_NCHW)
    dtype = projector_dtype(projector)
    image_NPD: Tensor = projector(features_NPV if dtype is None else features_NPV.to(dtype))
    return image_NPD


def feature_rows(model: LlavaForConditionalGeneration, pixels_MCHW: Tensor) -> Tensor:
    """float[R, D]: the features of all crops, one after another; last the image newline if there is one."""
    rows_RD = crop_features(model, pixels_MCHW).flatten(0, 1)
    newline = image_newline(model)
    return rows_RD if newline is None else newline(rows_RD)


def picture_features(
    model: LlavaForConditionalGeneration, pictures: Sequence[PreparedImage], layout: ImageLayout
) -> list[Tensor]:
    """float[K, D] of each picture: what the language model sees of it. The tower runs once for all."""
    if not pictures:
        return []
    device = next(model.parameters()).device
    rows_RD = feature_rows(model, torch.cat([picture.crops for picture in pictures]).to(device))
    num_tokens = [layout.num_tokens(picture) for picture in pictures]
    places = layout.feature_places(pictures, num_tokens).to(device)
    return list(rows_RD[places].split(num_tokens))


def zero_pictures(model: LlavaForConditionalGeneration, device: torch.device) -> Tensor:
    """float[1, C, H, W]: the picture that stands in where a batch has none."""
    vision = vision_half(model.config)
    return torch.zeros(1, vision.num_channels, vision.image_size, vision.image_size, device=device)
