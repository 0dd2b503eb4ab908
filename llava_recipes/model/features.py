"""What the language model sees of a picture: one hidden state of the tower, through the projector."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn
from transformers import LlavaConfig, LlavaForConditionalGeneration

from llava_recipes.model.configs import vision_half
from llava_recipes.model.projector import projector_dtype


def trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def tower_features(tower: nn.Module, config: LlavaConfig, pixels_NCHW: Tensor) -> Tensor:
    """The tower's selected hidden state.

    Returns float[N, P, V]: index 0 is what enters the first layer, k the output of layer k, negative from the
    end; no final norm. The layers behind it are not run.
    """
    layer, vision = config.vision_feature_layer, vision_half(config)
    assert isinstance(layer, int)
    num_layers = layer if layer >= 0 else vision.num_hidden_layers + 1 + layer
    hidden_NPV: Tensor = tower.get_submodule("embeddings")(pixels_NCHW)
    if "pre_layrnorm" in tower._modules:
        hidden_NPV = tower.get_submodule("pre_layrnorm")(hidden_NPV)
    layers = tower.get_submodule("encoder.layers")
    assert isinstance(layers, nn.ModuleList)
    for index in range(num_layers):
        hidden_NPV = layers[index](hidden_NPV, None)
    return hidden_NPV[:, 1:] if config.vision_feature_select_strategy == "default" else hidden_NPV


def image_features(model: LlavaForConditionalGeneration, pixels_NCHW: Tensor) -> Tensor:
    """float[N, P, D]: pictures in the language model's space; no graph through a frozen tower."""
    tower, projector = model.model.vision_tower, model.model.multi_modal_projector
    with contextlib.nullcontext() if trains(tower) else torch.no_grad():
        features_NPV = tower_features(tower, model.config, pixels_NCHW)
    dtype = projector_dtype(projector)
    image_NPD: Tensor = projector(features_NPV if dtype is None else features_NPV.to(dtype))
    return image_NPD


def zero_pictures(model: LlavaForConditionalGeneration, device: torch.device) -> Tensor:
    """float[1, C, H, W]: the picture that stands in where a batch has none."""
    vision = vision_half(model.config)
    return torch.zeros(1, vision.num_channels, vision.image_size, vision.image_size, device=device)
