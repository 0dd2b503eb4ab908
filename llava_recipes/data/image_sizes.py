"""How large an image becomes on its way to the tower, computed before it is made.

A file of a hundred bytes may be one pixel wide: an image processor that brings the shorter side to 336 pixels
makes gigabytes of it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from transformers import BaseImageProcessor, CLIPImageProcessorPil

from llava_recipes.anyres import Size

MAX_PIXELS: Final = 2**26
"""Largest image that is decoded or made: 8192 x 8192, 192 MiB as RGB."""

MAX_PADDED_PX: Final = 3 * 2**13
"""Longest side of an image that `pad` centers on a square. The square itself is never made as a whole."""

_THIN: Final = 8
"""From this ratio of the sides on, the shape is reported as the cause, not the size."""


class CannotPrepare(ValueError):
    """An image that cannot be brought to the tower's size within the bounds."""


@dataclass(frozen=True)
class Resizing:
    """What an image processor does to the size of an image.

    resize  the setting `size`, or None where it does not resize
    crop    width and height that are cut out around the center; a smaller image is padded to them
    padded  width and height that it is padded to last
    usual   whether it resizes as Pillow does, in one step
    """

    resize: Mapping[str, int] | None
    resample: int | None
    crop: Size | None
    padded: Size | None
    usual: bool

    def resized(self, size: Size) -> Size:
        """Width and height after the resize, as transformers' PilBackend computes them."""
        width, height = size
        given, short, long = self.resize or {}, min(size), max(size)
        if "shortest_edge" in given:
            edge: float = given["shortest_edge"]
            if "longest_edge" in given and long / short * edge > given["longest_edge"]:
                edge = given["longest_edge"] * short / long
            new_short, new_long = round(edge), int(edge * long / short)
            return (new_short, new_long) if width <= height else (new_long, new_short)
        if "max_height" in given and "max_width" in given:
            scale = min(given["max_width"] / width, given["max_height"] / height)
            return int(width * scale), int(height * scale)
        if "height" in given and "width" in given:
            return given["width"], given["height"]
        return size


@functools.lru_cache(maxsize=8)
def steps_of(processor: BaseImageProcessor) -> Resizing:
    """The steps of an image processor that change sizes."""
    settings = processor.to_dict()
    return Resizing(
        resize=_numbers(settings.get("size")) if settings.get("do_resize") else None,
        resample=settings.get("resample"),
        crop=_size(settings.get("crop_size")) if settings.get("do_center_crop") else None,
        padded=_size(settings.get("pad_size")) if settings.get("do_pad") else None,
        usual=getattr(type(processor), "resize", None) is CLIPImageProcessorPil.resize,
    )


def check_preparation(
    size: Size, processor: BaseImageProcessor, *, image_aspect_ratio: Literal["square", "pad"]
) -> None:
    """Raise CannotPrepare when any step makes an image beyond the bounds from one of that size."""
    steps = steps_of(processor)
    current = size
    if image_aspect_ratio == "pad":
        current = (max(size), max(size))
        most = MAX_PADDED_PX if can_shrink(steps) else int(MAX_PIXELS**0.5)
        if max(size) > most:
            raise _beyond(size, "padded", current, f"{most:,} x {most:,} pixels are")
    for verb, made in _made(current, steps):
        if made[0] * made[1] > MAX_PIXELS:
            raise _beyond(size, verb, made, f"{MAX_PIXELS:,} pixels are")
        if min(made) < 1:
            raise _beyond(size, verb, made, "one pixel is", least=True)


def can_shrink(steps: Resizing) -> bool:
    """Whether a square can be resized without making it, as the image processor would resize it."""
    return steps.usual and steps.resize is not None and steps.resample is not None


def _made(size: Size, steps: Resizing) -> list[tuple[str, Size]]:
    """Each image that is made of one of that size, in turn."""
    resized = steps.resized(size)
    made = [("resized", resized)] if steps.resize is not None else []
    if steps.crop is not None:
        made.append(("padded", (max(resized[0], steps.crop[0]), max(resized[1], steps.crop[1]))))
    if steps.padded is not None:
        made.append(("padded", steps.padded))
    return made


def _beyond(size: Size, verb: str, made: Size, bound: str, *, least: bool = False) -> CannotPrepare:
    thin = max(size) >= _THIN * min(size)
    return CannotPrepare(
        f"it is too {'thin' if thin else 'large'}: {size[0]:,} x {size[1]:,} pixels would be {verb} to "
        f"{made[0]:,} x {made[1]:,}, {bound} the {'least' if least else 'most'} allowed"
    )


def _numbers(values: Any) -> Mapping[str, int]:
    return {key: value for key, value in dict(values or {}).items() if value is not None}


def _size(values: Any) -> Size | None:
    found = _numbers(values)
    return (found["width"], found["height"]) if {"width", "height"} <= set(found) else None
