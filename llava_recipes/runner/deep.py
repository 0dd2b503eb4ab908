"""`validate --deep`: check the model's own names, the records and the images; no weights are read."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from transformers import BaseImageProcessor

from llava_recipes.anyres import AnyRes, Size
from llava_recipes.data.chat_template import TemplateLimit
from llava_recipes.data.collate import images_take
from llava_recipes.data.conversation import Record
from llava_recipes.data.crops import check_size
from llava_recipes.data.image_sizes import CannotPrepare
from llava_recipes.data.images import BadImage, check_record_image, load_image_processor, open_images
from llava_recipes.data.records import Records, at_source, check_records, open_records
from llava_recipes.errors import KeyPath, Problem, RecipeError, SampleError
from llava_recipes.layouts import LAYOUTS
from llava_recipes.model.assemble import skeleton_shapes
from llava_recipes.plan.image_tokens import any_res
from llava_recipes.plan.trainable import tuning_problems, what_trains
from llava_recipes.plan.types import Plan, StagePlan
from llava_recipes.recipe.load import LoadedRecipe
from llava_recipes.runner.hand_off import Shapes, hand_off_problems, projector_problems
from llava_recipes.runner.preflight import model_problems, open_prompts, stage_sources
from llava_recipes.templates import spell

NUM_OPENED: Final = 500
"""Images of a source that are opened without `--all`."""
NUM_DECODED: Final = 100
"""Those of them that are also decoded, which takes a hundred times as long."""

Spell = Callable[[Record], object]

_SEED: Final = 0
_NUM_SHOWN: Final = 5
_ROOM_HINT: Final = "raise `max_length`, or use fewer images"


@dataclass(frozen=True)
class StageFindings:
    """The counts of one stage."""

    stage: str
    num_records: int
    """Samples of an epoch."""
    num_validation_records: int
    num_images: int
    num_images_opened: int
    num_images_decoded: int
    num_trainable_parameters: int | None
    num_parameters: int | None

    def summary(self) -> str:
        """The counts in one line. To open an image reads its first bytes, to decode it the whole."""
        parts = [f"{self.num_records:,} records"]
        if self.num_validation_records:
            parts.append(f"{self.num_validation_records:,} to validate on")
        if self.num_images_opened > self.num_images_decoded:
            opened = "all" if self.num_images == self.num_images_opened else f"{self.num_images_opened:,}"
            parts.append(
                f"{opened} of {self.num_images:,} images opened, {self.num_images_decoded:,} decoded"
            )
        elif self.num_images:
            parts.append(f"all of {self.num_images:,} images decoded")
        if self.num_trainable_parameters is not None:
            parts.append(f"{self.num_trainable_parameters:,} of {self.num_parameters:,} parameters train")
        return f"{self.stage}: {', '.join(parts)}"


def look_deeply(
    loaded: LoadedRecipe, plan: Plan, *, every_image: bool
) -> tuple[list[Problem], tuple[StageFindings, ...]]:
    """Every problem of the model and the data, and the counts of each stage.

    With `every_image` all images are decoded. Otherwise a sample of them is opened, and a part of it
    decoded: the same sample every time.
    """
    problems = [*model_problems(loaded, plan)]
    has_files = not problems
    image_processor = _image_processor(plan, problems) if has_files else None
    shapes = _model_shapes(plan, problems) if has_files else None
    quantized = plan.model.language_model.quantization is not None
    findings = []
    for index, stage in enumerate(plan.stages):
        path: KeyPath = ("stages", index)
        trains = None if shapes is None else what_trains(shapes, stage)
        if trains is not None:
            problems += tuning_problems(trains, stage, quantized=quantized, stage_path=path)
        spell_record = _speller(plan, index, problems)
        look = _DataLook(stage, spell_record, _spread(plan, stage), image_processor)
        problems += look.find(path, every_image=every_image)
        validation = stage.data.validation
        findings.append(
            StageFindings(
                stage=stage.name,
                num_records=sum(source.num_used or 0 for source in stage.data.sources),
                num_validation_records=(validation and validation.num_samples) or 0,
                num_images=look.num_images,
                num_images_opened=look.num_images_opened,
                num_images_decoded=look.num_images_decoded,
                num_trainable_parameters=trains.count_trainable() if trains else None,
                num_parameters=sum(map(math.prod, shapes.values())) if shapes is not None else None,
            )
        )
    if shapes is not None:
        problems += hand_off_problems(plan, range(len(plan.stages)), lambda: shapes, fetch=False)
    return problems, tuple(findings)


def _image_processor(plan: Plan, problems: list[Problem]) -> BaseImageProcessor | None:
    """The image processor of the tower; None where it cannot be loaded."""
    try:
        return load_image_processor(plan.model.vision_tower)
    except RecipeError as error:
        problems += error.problems
        return None


def _model_shapes(plan: Plan, problems: list[Problem]) -> Shapes | None:
    """Shapes by canonical name, from the model on the meta device; None where it cannot be built."""
    try:
        shapes = skeleton_shapes(plan.model)
    except RecipeError as error:
        problems += error.problems
        return None
    problems += projector_problems(plan.model, lambda: shapes)
    return shapes


def _spread(plan: Plan, stage: StagePlan) -> AnyRes | None:
    sizes = plan.model.sizes
    if sizes is None:
        return None
    return any_res(stage.data, image_px=sizes.image_px, num_image_tokens=sizes.num_image_tokens)


def _speller(plan: Plan, index: int, problems: list[Problem]) -> Spell | None:
    """A function that writes a record of a stage, or raises; None where the tokenizer can write none."""
    template, system_prompt = plan.stages[index].data.template, plan.stages[index].data.system_prompt
    if template is None or LAYOUTS[template].tokens:
        try:
            prompts = open_prompts(plan, index)
        except RecipeError as error:
            problems += error.problems
            return None
        if template is None:
            return lambda record: prompts.spell(record.turns, has_image=bool(record.images))
    return lambda record: spell(
        template,
        record.turns,
        has_image=bool(record.images),
        start_end=False,
        system_prompt=system_prompt,
    )


class _NoRoom(ValueError):
    """A record whose images fill `max_length`."""


class _DataLook:
    """The records of a stage, read one after another."""

    def __init__(
        self,
        stage: StagePlan,
        spell_record: Spell | None,
        spread: AnyRes | None,
        image_processor: BaseImageProcessor | None,
    ) -> None:
        self._stage, self._data = stage, stage.data
        self._spell, self._spread, self._image_processor = spell_record, spread, image_processor
        self._least_tokens = stage.data.image_counts.least_tokens if stage.data.image_counts else 0
        self.num_images = self.num_images_opened = self.num_images_decoded = 0

    def find(self, stage_path: KeyPath, *, every_image: bool) -> Iterator[Problem]:
        for path, source in stage_sources(self._stage, stage_path):
            try:
                records = open_records([source])
            except RecipeError as error:
                yield from at_source(error.problems, path)
                continue
            yield from at_source(check_records(records), path)
            images: list[tuple[int, int]] = []
            yield from self._read(records, images)
            yield from self._check_images(records, images, path, every_image=every_image)

    def _read(self, records: Records, images: list[tuple[int, int]]) -> Iterator[Problem]:
        """Conversations that the stage's template cannot write; adds (record, image) numbers to `images`."""
        first: tuple[Record, ValueError] | None = None
        num_bad = 0
        for record in _well_formed(records):
            images += [(record.index, number) for number in range(len(record.images))]
            try:
                if self._spell is not None:
                    self._spell(record)
                self._check_room(record)
            except TemplateLimit as limit:
                # Each further record would take as long.
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
        """Raise _NoRoom when the images of a record leave no room for text even at their fewest tokens."""
        num_tokens = len(record.images) * self._least_tokens
        if num_tokens >= self._data.max_length:
            raise self._no_room(record, num_tokens)

    def _no_room(self, record: Record, num_tokens: int) -> _NoRoom:
        taken = images_take(len(record.images), num_tokens)
        return _NoRoom(f"its images leave no room for text: {taken}, max_length is {self._data.max_length}")

    def _check_images(
        self, records: Records, images: list[tuple[int, int]], path: KeyPath, *, every_image: bool
    ) -> Iterator[Problem]:
        """Images that training cannot use, and records whose images are too many tokens under `anyres`."""
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
                f"{num_bad:,} of the {len(drawn):,} images that were opened cannot be used",
                code="bad-images",
                path=(*path, "images"),
                hint=None if len(decoded) == len(images) else "`--all` decodes every image",
            )
        yield from self._crowded(records, num_tokens)

    def _size(self, records: Records, record: Record, number: int, *, decode: bool) -> Size:
        """An image's width and height as stored. Raises BadImage where training would."""
        if decode:
            (size,) = open_images(records, record, lambda image: image.size, numbers=[number])
        else:
            size = check_record_image(records, record, number)
        if self._image_processor is not None:
            try:
                check_size(size, self._image_processor, self._data)
            except CannotPrepare as error:
                raise BadImage(os.path.join(record.folder or "", record.images[number]), str(error)) from None
        return size

    def _crowded(self, records: Records, num_tokens: Mapping[int, int]) -> Iterator[Problem]:
        """The first record whose images leave no room at their own sizes; `num_tokens` by record."""
        most = self._data.max_length
        crowded = [
            index
            for index, tokens in num_tokens.items()
            # The others are reported without their sizes.
            if tokens >= most > len(records[index].images) * self._least_tokens
        ]
        for index in crowded[:1]:
            record = records[index]
            yield Problem(
                f'sample {index} (id "{record.id}"): {self._no_room(record, num_tokens[index])}',
                code="sample-cannot-be-used",
                mark=records.mark(index),
                found=f"{len(crowded):,} of {len(num_tokens):,} records whose images were opened",
                hint=_ROOM_HINT,
            )


def _well_formed(records: Records) -> Iterator[Record]:
    for index in range(len(records)):
        # `check_records` reports the others.
        with suppress(SampleError):
            yield records[index]
