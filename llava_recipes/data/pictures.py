"""The pictures of a record, from its image folder or from the annotation file itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from PIL import Image

from llava_recipes.anyres import Size
from llava_recipes.data.conversation import Record
from llava_recipes.data.images import (
    BadImage,
    check_image,
    check_image_bytes,
    decode_prepared,
    read_prepared,
)
from llava_recipes.data.records import Records

Result = TypeVar("Result")


def open_pictures(
    records: Records,
    record: Record,
    prepare: Callable[[Image.Image], Result],
    *,
    numbers: Iterable[int] | None = None,
) -> list[Result]:
    """What `prepare` makes of every picture of a record in RGB, in reading order, or of those with `numbers`.

    The one way from a record to its pictures, for training and for all that looks at data. Raises BadImage.
    """
    return _each(
        records,
        record,
        range(len(record.images)) if numbers is None else numbers,
        from_bytes=lambda data, name: decode_prepared(data, name, prepare),
        from_folder=lambda folder, name: read_prepared(folder, name, prepare),
    )


def check_record_image(records: Records, record: Record, number: int) -> Size:
    """Width and height of a record's picture, from its first bytes: it is not decoded. Raises BadImage."""
    (size,) = _each(records, record, (number,), from_bytes=check_image_bytes, from_folder=check_image)
    return size


def _each(
    records: Records,
    record: Record,
    numbers: Iterable[int],
    *,
    from_bytes: Callable[[bytes, str], Result],
    from_folder: Callable[[str, str], Result],
) -> list[Result]:
    held = records.pictures(record.index) if record.embedded and record.images else ()
    found = []
    for number in numbers:
        name = record.images[number]
        data = held[number] if number < len(held) else None
        if data is not None:
            found.append(from_bytes(data, name))
        elif record.folder is not None:
            found.append(from_folder(record.folder, name))
        else:
            raise BadImage(name, "its bytes are not in the file, and the source has no image folder")
    return found
