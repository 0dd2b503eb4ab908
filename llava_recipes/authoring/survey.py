"""Survey a data file: how many records, which template they need, where their images are."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from llava_recipes.data.conversation import Record
from llava_recipes.data.records import OpenedSource, RecordFile, Records, open_file
from llava_recipes.errors import RecipeError, SampleError
from llava_recipes.layouts import IMAGE
from llava_recipes.templates import spoken_turns

NUM_LOOKED_AT = 2000
NUM_IMAGES_TRIED = 200
MAX_MALFORMED = 20
MAX_FOLDERS_TRIED = 100
MANY_INSTRUCTIONS = 30
"""Caption data uses a few instructions; more different ones than this are questions."""

Template = Literal["plain", "v1"]


@dataclass(frozen=True)
class Survey:
    """What a data file contains, judged by records spread evenly over it."""

    annotations: str
    num_records: int
    num_looked_at: int
    num_with_image: int
    holds_images: bool
    """Whether the images are in the file itself."""
    template: Template | None
    """The template that the conversations need; None if either would do."""
    reason: str
    images: str | None
    """The folder in which images of the records were found."""
    num_images_found: int
    num_images_tried: int
    warnings: tuple[str, ...]


def survey(annotations: str, images: str | None) -> Survey:
    """Read a part of a file and search for its images, in the folder `images` if given.

    Raises RecipeError if the file can't be read as records.
    """
    if os.path.exists(annotations) and not (os.path.isfile(annotations) or os.path.isdir(annotations)):
        # Opening a pipe could wait forever.
        raise RecipeError.of(
            f"{annotations} isn't an ordinary file",
            code="no-ordinary-file",
            hint="name a JSON file in `--data`",
        )
    file = open_file(annotations)
    indices = _evenly(len(file), NUM_LOOKED_AT)
    records, malformed = _read(file, indices)
    with_image = [record for record in records if record.images]
    # Images inside the file itself need no folder.
    named = [] if file.has_images else [record.images[0] for record in with_image]
    tried = [named[index] for index in _evenly(len(named), NUM_IMAGES_TRIED)]
    folder, num_found = _find_images(annotations, images, tried)
    template, reason = _template(records)
    return Survey(
        annotations=annotations,
        num_records=len(file),
        num_looked_at=len(indices),
        num_with_image=len(with_image),
        holds_images=file.has_images,
        template=template,
        reason=reason,
        images=folder,
        num_images_found=num_found,
        num_images_tried=len(tried),
        warnings=tuple(_warnings(malformed, tried, images or folder, num_found)),
    )


def _evenly(size: int, most: int) -> list[int]:
    """At most `most` indices, spread evenly over `size` from 0 on."""
    number = min(size, most)
    return [index * size // number for index in range(number)]


def _read(file: RecordFile, indices: Sequence[int]) -> tuple[list[Record], list[str]]:
    """The well-formed records, and the problems of the others."""
    # The folder is not known yet; without one a record with an image counts as malformed.
    records = Records([OpenedSource(file, ".", range(len(file)))])
    good, malformed = [], []
    for index in indices:
        try:
            good.append(records[index])
        except SampleError as error:
            malformed.append("; ".join(problem.message for problem in error.problems))
            # Finding the place of each record in a large file takes time, and one is reported.
            if len(malformed) == MAX_MALFORMED:
                break
    return good, malformed


def _template(records: Sequence[Record]) -> tuple[Template | None, str]:
    if not records:
        return None, "no well-formed record"
    exchanges = [spoken_turns(record.turns) for record in records]
    longest = max(map(len, exchanges))
    if longest > 2:
        return "v1", f"conversations of up to {longest} turns"
    if any(len(turns) < 2 for turns in exchanges):
        return "v1", "some conversations have no answer"
    if not all(record.images for record in records):
        without = sum(not record.images for record in records)
        return "v1", f"{without:,} of {len(records):,} sampled records have no image"
    asked = {turns[0].text.replace(IMAGE, "").strip() for turns in exchanges}
    if asked == {""}:
        return "plain", "an image and a caption each, and no question"
    if len(asked) > MANY_INSTRUCTIONS or len(asked) > max(1, len(records) // 2):
        if len(records) < MANY_INSTRUCTIONS:
            return None, "too few records to distinguish captions from answers"
        return "v1", f"one question each, {len(asked):,} different ones in {len(records):,} sampled records"
    words = "the same instruction" if len(asked) == 1 else f"{len(asked)} instructions"
    return "plain", f"an image and a caption each, asked for with {words}"


def _find_images(annotations: str, images: str | None, tried: Sequence[str]) -> tuple[str | None, int]:
    """The folder that contains most of the images, and how many; None if no folder contains any."""
    best: tuple[str | None, int] = (None, 0)
    if not tried:
        return best
    for folder in (images,) if images is not None else _folders(annotations):
        num_found = sum(_is_file(folder, image) for image in tried)
        if num_found > best[1]:
            best = (folder, num_found)
        if num_found == len(tried):
            break
    return best


def _is_file(folder: str, image: str) -> bool:
    # A run refuses paths that leave the folder.
    path = os.path.normpath(image)
    if os.path.isabs(path) or path.startswith("..") or "\0" in path:
        return False
    return os.path.isfile(os.path.join(folder, path))


def _folders(annotations: str) -> Iterator[str]:
    """Folders where images usually are: next to the file, and one level up."""
    home = os.path.dirname(annotations) or "."
    above = os.path.join(home, "..") if not os.path.isabs(home) else os.path.dirname(home)
    for folder in (home, os.path.normpath(above)):
        yield os.path.join(folder, "images")
        yield folder
        try:
            names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
        except OSError:
            continue
        yield from (os.path.join(folder, name) for name in names[:MAX_FOLDERS_TRIED] if name != "images")


def _warnings(
    malformed: Sequence[str], tried: Sequence[str], folder: str | None, num_found: int
) -> Iterator[str]:
    if malformed:
        more = f" (and at least {len(malformed) - 1} more such records)" if len(malformed) > 1 else ""
        yield f"{malformed[0]}{more}: a run stops at them"
    if tried and folder is None:
        yield f"no image was found near the file, such as {tried[0]}; set `images`"
    elif tried and folder is not None and num_found < len(tried):
        missing = next(image for image in tried if not _is_file(folder, image))
        num_missing = len(tried) - num_found
        yield f"{num_missing:,} of {len(tried):,} images tried are missing in {folder}, such as {missing}"
