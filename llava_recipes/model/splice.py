"""Put image features where the prompt holds image placeholders."""

from __future__ import annotations

import torch
from torch import Tensor


def place_image_features(
    *, text_BTD: Tensor, image_NPD: Tensor, is_image_BT: Tensor, num_kept_tokens_N: Tensor | None
) -> Tensor:
    """The prompt's embeddings with the images in their places.

    text_BTD           float[B, T, D]  token embeddings; what stands on placeholders does not matter
    image_NPD          float[N, P, D]  projector output, images in reading order
    is_image_BT        bool[B, T]      true on placeholders
    num_kept_tokens_N  int64[N]        how many of each image's tokens survive truncation; None for all

    Returns float[B, T, D] in the dtype of `text_BTD`, equal to it wherever the mask is false.
    Raises ValueError when placeholders and kept image tokens differ in number.
    """
    image_KD = image_NPD.flatten(0, 1)
    if num_kept_tokens_N is not None:
        num_tokens = image_NPD.shape[1]
        is_kept_NP = torch.arange(num_tokens, device=image_NPD.device) < num_kept_tokens_N[:, None]
        image_KD = image_KD[is_kept_NP.flatten()]
    places = is_image_BT.nonzero(as_tuple=True)
    if places[0].numel() != image_KD.shape[0]:
        raise ValueError(
            f"{places[0].numel()} image placeholders, {image_KD.shape[0]} image tokens to put there"
        )
    return text_BTD.index_put(places, image_KD.to(text_BTD.dtype))
