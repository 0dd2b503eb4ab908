"""An image as the tower takes it, whole or with `anyres` also in crops, and the tokens that it becomes."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import BaseImageProcessor, LlavaNextImageProcessorPil

from llava_recipes.anyres import NEWLINE, AnyRes, Size, best_resolution, usual_pinpoints
from llava_recipes.data.image_sizes import check_preparation
from llava_recipes.data.images import pixel_values
from llava_recipes.errors import Problem, RecipeError
from llava_recipes.plan.image_tokens import pinpoint_problems, pinpoints_of
from llava_recipes.plan.types import DataPlan

_SHARED = (
    *("do_resize", "resample", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"),
    "do_convert_rgb",
)


@dataclass(frozen=True)
class PreparedImage:
    """An image as the tower takes it.

    crops  float32[M, C, H, W]  the image as a whole and, with `anyres`, the crops of its grid, row by row
    size   width and height as stored, in pixels
    """

    crops: Tensor
    size: Size


@dataclass(frozen=True)
class ImageLayout:
    """How many tokens an image becomes, and which features of its crops they are.

    num_crop_tokens  features of one crop, which has the tower's size
    spread           the grids of `anyres`; None where an image is a single crop
    """

    num_crop_tokens: int
    spread: AnyRes | None = None

    @property
    def least_tokens(self) -> int:
        """Tokens that every image takes, whatever its shape."""
        return self.num_crop_tokens if self.spread is None else self.spread.least_tokens()

    def num_tokens(self, image: PreparedImage) -> int:
        """Tokens of an image in the sequence."""
        num_crops = 1 if self.spread is None else self.spread.num_crops(image.size)
        assert len(image.crops) == num_crops, f"{len(image.crops)} crops, the layout has {num_crops}"
        return self.num_crop_tokens if self.spread is None else self.spread.num_tokens(image.size)

    def grid(self, image: PreparedImage) -> Size | None:
        """Crops across and down, not counting the whole image; None without `anyres`."""
        return None if self.spread is None else self.spread.grid(image.size)

    def places(self, image: PreparedImage) -> Tensor:
        """int64[K]: the index of each of an image's tokens among its crops' features; NEWLINE ends a row."""
        if self.spread is None:
            return torch.arange(self.num_crop_tokens)
        return torch.tensor(self.spread.order(image.size))

    def feature_places(self, images: Sequence[PreparedImage], num_kept_tokens: Sequence[int]) -> Tensor:
        """int64[sum of K]: `places` of several images, the first `num_kept_tokens` of each."""
        kept, start = [torch.empty(0, dtype=torch.int64)], 0
        for image, num_kept in zip(images, num_kept_tokens, strict=True):
            places = self.places(image)[:num_kept]
            kept.append(torch.where(places == NEWLINE, NEWLINE, places + start))
            start += len(image.crops) * self.num_crop_tokens
        return torch.cat(kept)


def prepare_image(image: Image.Image, processor: BaseImageProcessor, data: DataPlan) -> PreparedImage:
    """An RGB image resized, cut and normalized as a stage does. Raises CannotPrepare as `check_size`."""
    check_size(image.size, processor, data)
    if data.image_aspect_ratio != "anyres":
        ratio = data.image_aspect_ratio
        return PreparedImage(pixel_values(image, processor, image_aspect_ratio=ratio)[None], image.size)
    pinpoints = pinpoints_of(data) or usual_pinpoints(crop_px(processor))
    width, height = best_resolution(image.size, pinpoints)
    features = any_res_processor(processor)(
        np.asarray(image),
        image_grid_pinpoints=[[height, width]],
        input_data_format="channels_last",
        do_convert_rgb=False,
        return_tensors="np",
    )
    crops = np.ascontiguousarray(features["pixel_values"][0], dtype=np.float32)
    return PreparedImage(torch.from_numpy(crops), image.size)


def check_size(size: Size, processor: BaseImageProcessor, data: DataPlan) -> None:
    """Raise CannotPrepare when what a stage makes of an image of that size is too large."""
    if data.image_aspect_ratio != "anyres":
        check_preparation(size, processor, image_aspect_ratio=data.image_aspect_ratio)
        return
    # The recipe's rules bound the grids; each crop goes through the image processor.
    px = crop_px(processor)
    check_preparation((px, px), processor, image_aspect_ratio="square")


@functools.lru_cache(maxsize=8)
def any_res_processor(processor: BaseImageProcessor) -> LlavaNextImageProcessorPil:
    """transformers' processor for LLaVA-NeXT with the settings of the tower's; its grids are not set."""
    settings, px = processor.to_dict(), crop_px(processor)
    square = {"height": px, "width": px}
    crops = bool(settings.get("do_center_crop"))
    made: LlavaNextImageProcessorPil = LlavaNextImageProcessorPil.from_dict(
        {
            **{key: settings[key] for key in _SHARED if key in settings},
            # A processor that does not crop squeezes an image to a square, and so crops are squeezed too.
            **{"do_center_crop": crops, "crop_size": square, "size": settings["size"] if crops else square},
        }
    )
    return made


def check_crops(data: DataPlan, processor: BaseImageProcessor, image_px: int) -> None:
    """Raise RecipeError unless the grids consist of crops of the tower's size and the processor makes them.

    The plan has already checked the grids where it knew the tower.
    """
    problems = [*pinpoint_problems(data, image_px=image_px, path=("stages",))]
    made = crop_px(processor)
    if made != image_px:
        message = "`anyres` needs an image processor that makes images of the tower's size"
        found = f"it makes {made} × {made} pixels, the tower takes {image_px} × {image_px}"
        path = ("model", "vision_tower")
        problems.append(Problem(message, code="image-processor-other-size", path=path, found=found))
    if problems:
        raise RecipeError(*problems)


def crop_px(processor: BaseImageProcessor) -> int:
    """The side of the square that a processor makes, in pixels."""
    settings = processor.to_dict()
    size = cast(dict[str, int], settings["crop_size" if settings.get("do_center_crop") else "size"])
    return size["height"] if "height" in size else size["shortest_edge"]
