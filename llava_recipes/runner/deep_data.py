"""What `validate --deep` sees in the data of a stage: its records and their pictures."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from llava_recipes.anyres import AnyRes, Size
from llava_recipes.data.collate import images_take
from llava_recipes.data.conversation import Record
from llava_recipes.data.records import Records, at_source, check_records, open_records
from llava_recipes.data.rendering import TemplateLimit
from llava_recipes.plan.data import every_record
from llava_recipes.plan.types import DataPlan, SourcePlan
from llava_recipes.recipe.errors import KeyPath, Problem, RecipeError, SampleError

if TYPE_CHECKING:
    from transformers import BaseImageProcessor

NUM_OPENED: Final = 500
"""Pictures that are opened where not all are asked for."""
NUM_DECODED: Final = 100
"""Those of them that are also decoded, which takes a hundred times as long."""

Spell = Callable[[Record], object]

_SEED: Final = 0
_NUM_SHOWN: Final = 5
_ROOM_HINT: Final = "raise `max_length`, or give it fewer images"


class _NoRoom(ValueError):
    """A record whose images fill `max_length`."""


class DataLook:
    """The records of a stage, read one after another."""

    def __init__(
        self,
        data: DataPlan,
        path: KeyPath,
        spelling: Spell | None,
        spread: AnyRes | None,
        image_processor: BaseImageProcessor | None,
    ) -> None:
        self._data, self._path, self._spell, self._spread = data, path, spelling, spread
        self._least_tokens = data.image_counts.least_tokens if data.image_counts else 0
        self._image_processor = image_processor
        self.num_records = self.num_validation_records = 0
        self.num_images = self.num_images_opened = self.num_images_decoded = 0

    def find(self, *, every_image: bool) -> Iterator[Problem]:
        data = self._data
        for number, source in enumerate(data.sources):
            path = (*self._path, "data", "sources", number)
            yield from self._look(every_record(source), path, every_image=every_image)
        self.num_records = sum(source.num_used or 0 for source in data.sources)
        validation = data.validation
        if validation is None:
            return
        self.num_validation_records = validation.num_samples or 0
        if validation.split is None:
            for number, source in enumerate(validation.sources):
                path = (*self._path, "data", "validation", "sources", number)
                yield from self._look(every_record(source), path, every_image=every_image)

    def _look(self, source: SourcePlan, path: KeyPath, *, every_image: bool) -> Iterator[Problem]:
        """The chosen records of a source, whether they are trained on or held out."""
        try:
            records = open_records([source])
        except RecipeError as error:
            yield from at_source(error.problems, path)
            return
        yield from at_source(check_records(records), path)
        images: list[tuple[int, int]] = []
        yield from self._read(records, images)
        yield from self._check_images(records, images, path, every_image=every_image)

    def _read(self, records: Records, images: list[tuple[int, int]]) -> Iterator[Problem]:
        """Conversations that the stage's template cannot hold; `images` gets the pictures by record."""
        first: tuple[Record, ValueError] | None = None
        num_bad = 0
        for record in _well_formed(records):
            images += [(record.index, number) for number in range(len(record.images))]
            try:
                if self._spell is not None:
                    self._spell(record)
                self._check_room(record)
            except TemplateLimit as limit:
                # It would take as long for each of the records.
                self._spell = None
                yield from (replace(each, mark=records.mark(record.index)) for each in limit.problems)
            except ValueError as reason:
                num_bad += 1
                first = first or (record, reason)
        if first is not None:
            record, error = first
            hint = "conversations need `template: v1`" if self._data.template == "plain" else None
            if isinstance(error, _NoRoom):
                hint = _ROOM_HINT
            yield Problem(
                f'sample {record.index} (id "{record.id}"): {error}',
                code="sample-cannot-be-used",
                mark=records.mark(record.index),
                found=f"{num_bad:,} of {len(records):,} records; this is the first",
                hint=hint,
            )

    def _check_room(self, record: Record) -> None:
        """Raise ValueError when the images of a record, as small as can be, leave no room for text."""
        num_images, most = len(record.images), self._data.max_length
        num_tokens = num_images * self._least_tokens
        if num_tokens >= most:
            taken = images_take(num_images, num_tokens)
            raise _NoRoom(f"its images leave no room for text: {taken}, max_length is {most}")

    def _check_images(
        self, records: Records, images: list[tuple[int, int]], path: KeyPath, *, every_image: bool
    ) -> Iterator[Problem]:
        """Pictures that training cannot use, and those that `anyres` makes too many tokens of."""
        # Here, since a look without --deep must stay free of torch.
        from llava_recipes.data.images import BadImage

        drawn = images
        if not every_image:
            drawn = random.Random(_SEED).sample(images, min(len(images), NUM_OPENED))
        decoded = set(drawn if every_image else drawn[:NUM_DECODED])
        self.num_images += len(images)
        self.num_images_opened += len(drawn)
        self.num_images_decoded += len(decoded)
        num_bad, num_tokens = 0, dict[int, int]()
        for index, number in sorted(drawn):
            record = records[index]
            try:
                size = self._size(records, record, number, decode=(index, number) in decoded)
                if self._spread is not None:
                    least = len(record.images) * self._least_tokens
                    more = self._spread.num_tokens(size) - self._least_tokens
                    num_tokens[index] = num_tokens.get(index, least) + more
            except BadImage as error:
                num_bad += 1
                if num_bad <= _NUM_SHOWN:
                    message = f'sample {index} (id "{record.id}"): {error.reason}'
                    yield Problem(
                        message, code="sample-cannot-be-used", mark=records.mark(index), found=error.file
                    )
        if num_bad > _NUM_SHOWN:
            yield Problem(
                f"{num_bad:,} of the {len(drawn):,} pictures that were opened cannot be used",
                code="bad-images",
                path=(*path, "images"),
                hint=None if len(decoded) == len(images) else "`--all` decodes every picture",
            )
        yield from self._crowded(records, num_tokens)

    def _size(self, records: Records, record: Record, number: int, *, decode: bool) -> Size:
        """A picture's width and height as stored. Raises BadImage where training would."""
        from llava_recipes.data.crops import check_size
        from llava_recipes.data.image_sizes import CannotPrepare
        from llava_recipes.data.images import BadImage
        from llava_recipes.data.pictures import check_record_image, open_pictures

        if decode:
            (size,) = open_pictures(records, record, lambda image: image.size, numbers=[number])
        else:
            size = check_record_image(records, record, number)
        if self._image_processor is not None:
            try:
                check_size(size, self._image_processor, self._data)
            except CannotPrepare as error:
                raise BadImage(os.path.join(record.folder or "", record.images[number]), str(error)) from None
        return size

    def _crowded(self, records: Records, num_tokens: Mapping[int, int]) -> Iterator[Problem]:
        """The first record whose images leave no room at their sizes; `num_tokens` by index of the record."""
        most = self._data.max_length
        crowded = [
            index
            for index, tokens in num_tokens.items()
            # The others are told without their sizes.
            if tokens >= most > len(records[index].images) * self._least_tokens
        ]
        for index in crowded[:1]:
            record = records[index]
            taken = images_take(len(record.images), num_tokens[index])
            yield Problem(
                f'sample {index} (id "{record.id}"): its images leave no room for text: {taken}, '
                f"max_length is {most}",
                code="sample-cannot-be-used",
                mark=records.mark(index),
                found=f"{len(crowded):,} of {len(num_tokens):,} records whose images were opened; the first",
                hint=_ROOM_HINT,
            )


def _well_formed(records: Records) -> Iterator[Record]:
    for index in range(len(records)):
        # What is wrong with a record is told by `check_records`.
        with suppress(SampleError):
            yield records[index]
