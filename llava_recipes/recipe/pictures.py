"""Rules between the keys that say how pictures are cut and their features put in a row; on plain values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from llava_recipes.recipe.errors import KeyPath, Problem
from llava_recipes.recipe.scalars import spell_value
from llava_recipes.recipe.values import Mapping, as_list, as_mapping

_MOST_PIXELS: Final = 2**26
"""No picture with more is opened; a grid that is larger holds nothing but enlargement."""


def check_pictures(model: Mapping, stage: Mapping, path: KeyPath) -> Iterator[Problem]:
    """Every such rule that a stage breaks."""
    data, path = as_mapping(stage.get("data")), (*path, "data")
    if data.get("image_aspect_ratio", "square") in ("square", "pad"):
        for key in ("image_grid_pinpoints", "mm_patch_merge_type"):
            if data.get(key) is not None:
                yield Problem(
                    f"`{key}` has no effect without `image_aspect_ratio: anyres`",
                    code="key-has-no-effect",
                    path=(*path, key),
                    hint="remove it, or write `image_aspect_ratio: anyres`",
                    on_key=True,
                )
    pinpoints = as_list(data.get("image_grid_pinpoints"))
    for index, pinpoint in enumerate(pinpoints):
        if pinpoint in pinpoints[:index]:
            message = f"`image_grid_pinpoints` names {spell_value(pinpoint)} twice"
            yield Problem(
                message,
                code="name-given-twice",
                path=(*path, "image_grid_pinpoints", index),
                hint="remove one of the two",
            )
        sides = [side for side in as_list(pinpoint) if isinstance(side, int)]
        if len(sides) == 2 and sides[0] * sides[1] > _MOST_PIXELS:
            yield Problem(
                "a grid pinpoint is larger than any picture may be",
                code="invalid-grid-pinpoint",
                path=(*path, "image_grid_pinpoints", index),
                found=f"{sides[0]} × {sides[1]} pixels, and pictures have {_MOST_PIXELS:,} at most",
                hint="a pinpoint is `[width, height]` in pixels, a few times the tower's image size",
            )
    merge = data.get("mm_patch_merge_type")
    keeps_class = as_mapping(model.get("vision_tower")).get("select_feature") == "cls_patch"
    if keeps_class and merge in ("spatial", "spatial_unpad"):
        yield Problem(
            f"`mm_patch_merge_type: {merge}` lays patches out in rows, and a class token is no patch",
            code="class-token-in-image-rows",
            path=(*path, "mm_patch_merge_type"),
            found="`select_feature: cls_patch` of the vision tower",
            hint="write `select_feature: patch` in `vision_tower:` of `model:`",
        )
