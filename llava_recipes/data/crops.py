"""An image as the tower takes it, one of its size or with `anyres` several, and the tokens it becomes."""

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

    `num_crop_tokens` are the features of one image of the tower's size. Without `spread` an image is one.
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
        """Crops across and down, the one of the whole aside; None without `anyres`."""
        return None if self.spread is None else self.spread.grid(image.size)

    def places(self, image: PreparedImage) -> Tensor:
        """int64[K]: where each of an image's tokens is among its crops' features; NEWLINE ends a row."""
        if self.spread is None:
            return torch.arange(self.num_crop_tokens)
        return torch.tensor(self.spread.order(image.size))

    def feature_places(self, images: Sequence[PreparedImage], num_kept_tokens: Sequence[int]) -> Tensor:
        """int64[sum of K]: the places of several images' first tokens, their crops one after another."""
        kept, start = [torch.empty(0, dtype=torch.int64)], 0
        for image, num_kept in zip(images, num_kept_tokens, strict=True):
            places = self.places(image)[:num_kept]
            kept.append(torch.where(places == NEWLINE, NEWLINE, places + start))
            start += len(image.crops) * self.num_crop_tokens
        return torch.cat(kept)


def prepare_image(image: Image.Image, processor: BaseImageProcessor, data: DataPlan) -> PreparedImage:
    """An RGB image, resized, cut and normalised as a stage says. Raises CannotPrepare as `check_size`."""
    check_size(image.size, processor, data)
    if data.image_aspect_ratio != "anyres":
        ratio = data.image_aspect_ratio
        return PreparedImage(pixel_values(image, processor, image_aspect_ratio=ratio)[None], image.size)
    pinpoints = pinpoints_of(data) or usual_pinpoints(crop_px(processor))
    width, height = best_resolution(image.size, pinpoints)
    found = any_res_processor(processor)(
        np.asarray(image),
        image_grid_pinpoints=[[height, width]],
        input_data_format="channels_last",
        do_convert_rgb=False,
        return_tensors="np",
    )
    crops = np.ascontiguousarray(found["pixel_values"][0], dtype=np.float32)
    return PreparedImage(torch.from_numpy(crops), image.size)


def check_size(size: Size, processor: BaseImageProcessor, data: DataPlan) -> None:
    """Raise CannotPrepare when what a stage makes of an image of that size is too large."""
    if data.image_aspect_ratio != "anyres":
        check_preparation(size, processor, image_aspect_ratio=data.image_aspect_ratio)
        return
    # Grids are bounded by the recipe's rules; each crop of them goes through the image processor.
    px = crop_px(processor)
    check_preparation((px, px), processor, image_aspect_ratio="square")


@functools.lru_cache(maxsize=8)
def any_res_processor(processor: BaseImageProcessor) -> LlavaNextImageProcessorPil:
    """transformers' processor for LLaVA-NeXT with the settings of a tower's own; its grids are not set."""
    settings, px = processor.to_dict(), crop_px(processor)
    square = {"height": px, "width": px}
    crops = bool(settings.get("do_center_crop"))
    made: LlavaNextImageProcessorPil = LlavaNextImageProcessorPil.from_dict(
        {
            **{key: settings[key] for key in _SHARED if key in settings},
            # Without a crop of its own a processor squeezes to a square, and so are the crops cut.
            **{"do_center_crop": crops, "crop_size": square, "size": settings["size"] if crops else square},
        }
    )
    return made


def check_crops(data: DataPlan, processor: BaseImageProcessor, image_px: int) -> None:
    """Raise RecipeError unless grids consist of images of the tower's size, and the processor makes such.

    A plan has seen to the grids where it knew the tower.
    """
    problems = [*pinpoint_problems(data, image_px=image_px, path=("stages",))]
    made = crop_px(processor)
    if made != image_px:
        message = "`anyres` needs an image processor that makes images of the tower's size"
        found = f"it makes {made} × {made} pixels, the tower takes {image_px} × {image_px}"
        problems.append(
            Problem(message, code="image-processor-other-size", path=("model", "vision_tower"), found=found)
        )
    if problems:
        raise RecipeError(*problems)


def crop_px(processor: BaseImageProcessor) -> int:
    """Height and width of what a processor gives, in pixels."""
    settings = processor.to_dict()
    size = cast(dict[str, int], settings["crop_size" if settings.get("do_center_crop") else "size"])
    return size["height"] if "height" in size else size["shortest_edge"]
