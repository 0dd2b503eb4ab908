"""The pictures of a record, from its image folder or from the annotation file itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from PIL import Image

from llava_recipes.data.conversation import Record
from llava_recipes.data.images import BadImage, check_image, check_image_bytes, decode_image, read_image
from llava_recipes.data.records import Records

Result = TypeVar("Result")


def open_pictures(records: Records, record: Record) -> list[Image.Image]:
    """Every picture of a record in RGB, in reading order. Raises BadImage."""
    return _each(records, record, from_bytes=decode_image, from_folder=read_image)


def check_picture(records: Records, record: Record, number: int) -> tuple[int, int]:
    """Width and height of a record's picture, from its first bytes: it is not decoded. Raises BadImage."""
    (size,) = _each(records, record, from_bytes=check_image_bytes, from_folder=check_image, only=number)
    return size


def _each(
    records: Records,
    record: Record,
    *,
    from_bytes: Callable[[bytes, str], Result],
    from_folder: Callable[[str, str], Result],
    only: int | None = None,
) -> list[Result]:
    held = records.pictures(record.index) if record.embedded and record.images else ()
    found = []
    for number, name in enumerate(record.images):
        if only is not None and number != only:
            continue
        data = held[number] if number < len(held) else None
        if data is not None:
            found.append(from_bytes(data, name))
        elif record.folder is not None:
            found.append(from_folder(record.folder, name))
        else:
            raise BadImage(name, "its bytes are not in the file, and the source has no image folder")
    return found
