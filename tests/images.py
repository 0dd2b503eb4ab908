"""An image of a folder as the data has it."""

from __future__ import annotations

from PIL import Image

from llava_recipes.data.images import read_prepared


def read_image(folder: str, name: str) -> Image.Image:
    """The image in RGB; raises BadImage."""
    return read_prepared(folder, name, lambda image: image)
