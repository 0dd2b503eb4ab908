"""The image processor that belongs to a vision tower."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

from transformers import AutoImageProcessor, CLIPImageProcessorPil, SiglipImageProcessorPil
from transformers.image_processing_utils import BaseImageProcessor

from llava_recipes.model.configs import TOWER_PATH, has_class_token, tower_origin
from llava_recipes.recipe.errors import Problem, RecipeError
from llava_recipes.recipe.schema import VisionTower


def load_image_processor(tower: VisionTower) -> BaseImageProcessor:
    """The tower's image processor on Pillow; for an inline tower, the defaults for its size and kind."""
    origin = tower_origin(tower, weights=tower.source is not None)
    if origin.folder is None:
        return _inline_processor(tower, origin.config.image_size, clip=has_class_token(origin.config))
    return _processor_from(origin.folder)


def _processor_from(folder: pathlib.Path) -> BaseImageProcessor:
    path = (*TOWER_PATH, "source")
    if not (folder / "preprocessor_config.json").is_file():
        raise RecipeError(
            Problem(
                "this folder holds no preprocessor_config.json",
                path=path,
                found=str(folder),
                hint="the tower's pictures are resized and normalised by it; copy it beside the weights",
            )
        )
    try:
        processor: BaseImageProcessor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        first_line = str(error).strip().split("\n")[0]
        raise RecipeError(
            Problem(f"cannot load the image processor: {first_line}", path=path, found=str(folder))
        ) from error
    return processor


def _inline_processor(tower: VisionTower, image_px: int, *, clip: bool) -> BaseImageProcessor:
    square = {"height": image_px, "width": image_px}
    values: dict[str, object] = {"size": square}
    if clip:
        values = {"size": {"shortest_edge": image_px}, "crop_size": square}
    given = dict(tower.image_processor or {})
    kind: Callable[..., BaseImageProcessor] = CLIPImageProcessorPil if clip else SiglipImageProcessorPil
    unknown = [key for key in given if key not in kind().to_dict()]
    if unknown:
        path = (*TOWER_PATH, "image_processor")
        raise RecipeError(
            *(
                Problem("no such image processor setting", path=(*path, key), found=key, on_key=True)
                for key in unknown
            )
        )
    return kind(**{**values, **given})
