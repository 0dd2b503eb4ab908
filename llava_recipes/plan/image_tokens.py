"""The images of a stage: the sizes they may be spread over, their tokens, their crops in the tower."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from llava_recipes.anyres import USUAL_SIZE, AnyRes, Size, usual_pinpoints
from llava_recipes.errors import KeyPath, Problem
from llava_recipes.plan.types import DataPlan, ImageCounts, ModelSizes
from llava_recipes.recipe.schema import Data

_LEAST_TEXT = 256
"""Tokens of question and answer for which a usual length leaves room after an image."""


def any_res(data: Data | DataPlan, *, image_px: int, num_image_tokens: int) -> AnyRes | None:
    """How a stage spreads its images over crops; None where it resizes each image to the tower's size.

    image_px          height and width of the tower's input, pixels
    num_image_tokens  tokens of one image of that size
    """
    if data.image_aspect_ratio != "anyres":
        return None
    side = math.isqrt(num_image_tokens)
    return AnyRes(
        pinpoints=pinpoints_of(data) or usual_pinpoints(image_px),
        image_px=image_px,
        side=side,
        class_token=num_image_tokens > side**2,
        merge=data.mm_patch_merge_type or "flat",
    )


def pinpoints_of(data: Data | DataPlan) -> tuple[Size, ...] | None:
    """The pinpoints of a stage, width before height; None where it sets none."""
    given = data.image_grid_pinpoints
    return None if given is None else tuple((width, height) for width, height in given)


@dataclass(frozen=True)
class ImagesPlan:
    """The sizes and counts of a stage's images, with problems and notes."""

    pinpoints: tuple[Size, ...] | None
    counts: ImageCounts | None
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()


def plan_images(data: Data, sizes: ModelSizes | None, *, has_images: bool, path: KeyPath) -> ImagesPlan:
    """The images of a stage; `path` is that of its data. Without `sizes` nothing is counted."""
    if sizes is None:
        uncounted = "image tokens depend on the tower's size, which is not known, and are not counted"
        notes = (uncounted,) if data.image_aspect_ratio == "anyres" else ()
        return ImagesPlan(pinpoints_of(data), None, notes=notes)
    spread = any_res(data, image_px=sizes.image_px, num_image_tokens=sizes.num_image_tokens)
    problems = list(pinpoint_problems(data, image_px=sizes.image_px, path=path))
    if problems:
        # A grid smaller than the tower's image has no crop to count.
        return ImagesPlan(pinpoints_of(data), None, tuple(problems))
    counts = _count(spread, sizes)
    if has_images and data.max_length <= counts.least_tokens:
        takes = (
            f"{counts.least_tokens}" if spread is None else f"{counts.least_tokens} to {counts.most_tokens}"
        )
        problems.append(
            Problem(
                "`max_length` leaves no room for text after an image",
                code="max-length-leaves-no-room",
                path=(*path, "max_length"),
                found=f"{data.max_length}, but one image takes {takes} tokens",
                hint=f"write `max_length: {roomy_length(counts.most_tokens)}`",
            )
        )
    return ImagesPlan(spread.pinpoints if spread else None, counts, tuple(problems))


def roomy_length(image_tokens: int) -> int:
    """A `max_length` with room for text after an image: 2048, or a greater power of two."""
    return int(max(2048, 1 << (image_tokens + _LEAST_TEXT).bit_length()))


def _count(spread: AnyRes | None, sizes: ModelSizes) -> ImageCounts:
    if spread is None:
        tokens = sizes.num_image_tokens
        return ImageCounts(
            least_tokens=tokens, usual_tokens=tokens, most_tokens=tokens, usual_crops=1, most_crops=1
        )
    most_tokens, most_crops = spread.most()
    return ImageCounts(
        least_tokens=spread.least_tokens(),
        usual_tokens=spread.num_tokens(USUAL_SIZE),
        most_tokens=most_tokens,
        usual_crops=spread.num_crops(USUAL_SIZE),
        most_crops=most_crops,
    )


def pinpoint_problems(data: Data | DataPlan, *, image_px: int, path: KeyPath) -> Iterator[Problem]:
    """Pinpoints that cannot be divided into crops of the tower's size."""
    for index, (width, height) in enumerate(data.image_grid_pinpoints or ()):
        if width % image_px or height % image_px:
            near = [max(1, round(each / image_px)) * image_px for each in (width, height)]
            yield Problem(
                "a grid pinpoint isn't a multiple of the tower's image size",
                code="invalid-grid-pinpoint",
                path=(*path, "image_grid_pinpoints", index),
                found=f"[{width}, {height}], but the tower takes {image_px} × {image_px} pixels",
                hint=f"write [{near[0]}, {near[1]}]",
            )


def describe_images(data: DataPlan) -> str:
    """How a stage spreads its images over grids, with the resulting tokens and crops."""
    counts, pinpoints = data.image_counts, data.image_grid_pinpoints or ()
    over = f" over {', '.join(f'{width} × {height}' for width, height in pinpoints)} px" if pinpoints else ""
    words = f"anyres{over}, {data.mm_patch_merge_type}"
    if counts is None:
        return f"{words}; tokens not counted"
    return (
        f"{words}: {counts.least_tokens:,} to {counts.most_tokens:,} tokens, "
        f"{counts.usual_tokens:,} and {counts.usual_crops} crops for 640 × 480 px; "
        f"at most {counts.most_crops} crops"
    )
