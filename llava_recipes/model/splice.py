"""Put image features where the prompt holds image placeholders."""

from __future__ import annotations

from torch import Tensor


def place_image_features(
    *, text_BTD: Tensor, features_RD: Tensor, is_image_BT: Tensor, places_K: Tensor | None
) -> Tensor:
    """The prompt's embeddings with the images in their places.

    text_BTD     float[B, T, D]  token embeddings; what stands on placeholders does not matter
    features_RD  float[R, D]     projector output of all crops, images in reading order; last the image
                                 newline where the model has one
    is_image_BT  bool[B, T]      true on placeholders
    places_K     int64[K]        which feature each placeholder takes, -1 for the last; None for all, in order

    Returns float[B, T, D] in the dtype of `text_BTD`, equal to it wherever the mask is false.
    Raises ValueError when placeholders and image tokens differ in number.
    """
    image_KD = features_RD if places_K is None else features_RD[places_K]
    there = is_image_BT.nonzero(as_tuple=True)
    if there[0].numel() != image_KD.shape[0]:
        raise ValueError(
            f"{there[0].numel()} image placeholders, {image_KD.shape[0]} image tokens to put there"
        )
    return text_BTD.index_put(there, image_KD.to(text_BTD.dtype))
