"""Images of a folder, or as bytes in an annotation file, as the data has them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from PIL import Image

from llava_recipes.data.conversation import Record
from llava_recipes.data.images import open_images, read_prepared


def read_image(folder: str, name: str) -> Image.Image:
    """The image in RGB; raises BadImage."""
    return read_prepared(folder, name, lambda image: image)


def decode_image(data: bytes) -> Image.Image:
    """The image that these bytes of an annotation file are, in RGB; raises BadImage."""
    records: Any = SimpleNamespace(images=lambda index: (data,))
    record = Record(0, "", ("x",), (), None, embedded=True)
    (image,) = open_images(records, record, lambda image: image)
    return image
