"""`validate --deep`: what only the model's own names, the data and the pictures can tell; without weights."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final

from llava_recipes.anyres import AnyRes
from llava_recipes.data.conversation import Record
from llava_recipes.data.faults import SampleError, images_take
from llava_recipes.data.records import Records, at_source, check_records, open_records
from llava_recipes.layouts import LAYOUTS, Template
from llava_recipes.plan.mix import every_record
from llava_recipes.plan.pictures import any_res
from llava_recipes.plan.quantization import quantization_problems
from llava_recipes.plan.tuning import tuning_problems, what_trains
from llava_recipes.plan.types import DataPlan, Plan, SourcePlan, StagePlan
from llava_recipes.recipe.errors import Path as RecipePath
from llava_recipes.recipe.errors import Problem, RecipeError
from llava_recipes.recipe.load import LoadedRecipe
from llava_recipes.runner.hand_off import hand_off_problems
from llava_recipes.runner.initial_weights import Shapes, model_shapes, projector_problems
from llava_recipes.runner.preflight import model_problems
from llava_recipes.runner.wording import open_prompts
from llava_recipes.templates import spell

NUM_SAMPLED: Final = 500
"""Pictures that are opened where not all are asked for."""

Spell = Callable[[Record], object]

_SEED: Final = 0
_NUM_SHOWN: Final = 5
_ROOM_HINT: Final = "raise `max_length`, or give it fewer images"


@dataclass(frozen=True)
class StageFindings:
    """What was counted in one stage."""

    stage: str
    num_records: int
    """Samples that an epoch draws."""
    num_validation_records: int
    num_images: int
    num_images_opened: int
    num_trainable_parameters: int | None
    num_parameters: int | None

    def summary(self) -> str:
        """One line for a person."""
        said = [f"{self.num_records:,} records"]
        if self.num_validation_records:
            said.append(f"{self.num_validation_records:,} to validate on")
        if self.num_images:
            every = self.num_images == self.num_images_opened
            opened = "all" if every else f"{self.num_images_opened:,}"
            said.append(f"{opened} of {self.num_images:,} pictures opened")
        if self.num_trainable_parameters is not None:
            said.append(f"{self.num_trainable_parameters:,} of {self.num_parameters:,} parameters train")
        return f"{self.stage}: {', '.join(said)}"


def look_deeply(
    loaded: LoadedRecipe, plan: Plan, *, every_image: bool
) -> tuple[list[Problem], tuple[StageFindings, ...]]:
    """Every problem that a look at the model and the data finds, and what was counted, stage by stage.

    Pictures are opened, not decoded; without `every_image` a sample of them, the same every time.
    """
    problems = [*model_problems(loaded, plan)]
    shapes = None if problems else _model_shapes(plan, problems)
    findings = []
    for index, stage in enumerate(plan.stages):
        path: RecipePath = ("stages", index)
        if shapes is not None:
            problems += tuning_problems(shapes, stage, stage_path=path)
            if plan.model.language_model.quantization is not None:
                problems += quantization_problems(shapes, stage, stage_path=path)
        look = _DataLook(stage.data, path, _spelling(plan, index, problems), _spread(plan, stage))
        problems += look.find(every_image=every_image)
        findings.append(_findings(stage, look, shapes))
    if shapes is not None:
        problems += hand_off_problems(plan, range(len(plan.stages)), lambda: shapes, fetch=False)
    return problems, tuple(findings)


def _model_shapes(plan: Plan, problems: list[Problem]) -> Shapes | None:
    """Shapes by canonical name, from the model on the meta device; None where it cannot be built."""
    try:
        shapes = model_shapes(plan.model)
    except RecipeError as error:
        problems += error.problems
        return None
    problems += projector_problems(plan.model, lambda: shapes)
    return shapes


def _findings(stage: StagePlan, look: _DataLook, shapes: Shapes | None) -> StageFindings:
    trainable = None
    if shapes is not None:
        trainable = what_trains(shapes, stage).count_trainable()
    return StageFindings(
        stage=stage.name,
        num_records=look.num_records,
        num_validation_records=look.num_validation_records,
        num_images=look.num_images,
        num_images_opened=look.num_images_opened,
        num_trainable_parameters=trainable,
        num_parameters=sum(map(math.prod, shapes.values())) if shapes is not None else None,
    )


def _spread(plan: Plan, stage: StagePlan) -> AnyRes | None:
    sizes = plan.model.sizes
    if sizes is None:
        return None
    return any_res(stage.data, image_px=sizes.image_px, num_image_tokens=sizes.num_image_tokens)


def _spelling(plan: Plan, index: int, problems: list[Problem]) -> Spell | None:
    """What tries a stage's conversations; None where its tokenizer does not write them at all."""
    stage = plan.stages[index]
    template, system_prompt = stage.data.template, stage.data.system_prompt
    if template is None or LAYOUTS[template].tokens:
        try:
            prompts = open_prompts(plan, index)
        except RecipeError as error:
            problems += error.problems
            return None
        if template is None:
            return lambda record: prompts.spell(record.turns, has_image=bool(record.images))
    return partial(_spell_record, template, system_prompt)


def _spell_record(template: Template, system_prompt: str | None, record: Record) -> object:
    has_image = bool(record.images)
    return spell(template, record.turns, has_image=has_image, start_end=False, system_prompt=system_prompt)


class _NoRoom(ValueError):
    """A record whose images fill `max_length`."""


class _DataLook:
    """The records of a stage, read one after another."""

    def __init__(
        self, data: DataPlan, path: RecipePath, spelling: Spell | None, spread: AnyRes | None
    ) -> None:
        self._data, self._path, self._spell, self._spread = data, path, spelling, spread
        self._least_tokens = data.image_counts.least_tokens if data.image_counts else 0
        self.num_records = self.num_validation_records = self.num_images = self.num_images_opened = 0

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

    def _look(self, source: SourcePlan, path: RecipePath, *, every_image: bool) -> Iterator[Problem]:
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
        self, records: Records, images: list[tuple[int, int]], path: RecipePath, *, every_image: bool
    ) -> Iterator[Problem]:
        """Pictures that are missing or no pictures, and those that `anyres` makes too many tokens of."""
        # Here, since a look without --deep must stay free of torch.
        from llava_recipes.data.images import BadImage
        from llava_recipes.data.pictures import check_picture

        chosen = images
        if not every_image and len(images) > NUM_SAMPLED:
            chosen = sorted(random.Random(_SEED).sample(images, NUM_SAMPLED))
        self.num_images += len(images)
        self.num_images_opened += len(chosen)
        num_bad, num_tokens = 0, dict[int, int]()
        for index, number in chosen:
            record = records[index]
            try:
                size = check_picture(records, record, number)
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
                f"{num_bad:,} of the {len(chosen):,} pictures that were opened cannot be used",
                code="pictures-opened-cannot-be-used",
                path=(*path, "images"),
                hint=None if every_image or len(chosen) == len(images) else "`--all` opens every picture",
            )
        yield from self._crowded(records, num_tokens)

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
