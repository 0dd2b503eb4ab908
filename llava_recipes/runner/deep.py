"""`validate --deep`: what only the model's own names, the data and the pictures can tell; without weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from llava_recipes.anyres import AnyRes
from llava_recipes.data.conversation import Record
from llava_recipes.layouts import LAYOUTS, Template
from llava_recipes.plan.pictures import any_res
from llava_recipes.plan.trainable import Trains, tuning_problems, what_trains
from llava_recipes.plan.types import Plan, StagePlan
from llava_recipes.recipe.errors import KeyPath, Problem, RecipeError
from llava_recipes.recipe.load import LoadedRecipe
from llava_recipes.runner.deep_data import DataLook, Spell
from llava_recipes.runner.hand_off import hand_off_problems
from llava_recipes.runner.initial_weights import Shapes, projector_problems
from llava_recipes.runner.preflight import model_problems
from llava_recipes.runner.wording import open_prompts
from llava_recipes.templates import spell

if TYPE_CHECKING:
    from transformers import BaseImageProcessor


@dataclass(frozen=True)
class StageFindings:
    """What was counted in one stage."""

    stage: str
    num_records: int
    """Samples that an epoch draws."""
    num_validation_records: int
    num_images: int
    num_images_opened: int
    num_images_decoded: int
    num_trainable_parameters: int | None
    num_parameters: int | None

    def summary(self) -> str:
        """One line for a person."""
        said = [f"{self.num_records:,} records"]
        if self.num_validation_records:
            said.append(f"{self.num_validation_records:,} to validate on")
        if self.num_images:
            said += self._looked_at()
        if self.num_trainable_parameters is not None:
            said.append(f"{self.num_trainable_parameters:,} of {self.num_parameters:,} parameters train")
        return f"{self.stage}: {', '.join(said)}"

    def _looked_at(self) -> Iterator[str]:
        """What was done to how many pictures: opened, which reads their first bytes, or decoded."""
        if self.num_images_opened > self.num_images_decoded:
            every = self.num_images == self.num_images_opened
            opened = "all" if every else f"{self.num_images_opened:,}"
            yield f"{opened} of {self.num_images:,} pictures opened"
            yield f"{self.num_images_decoded:,} decoded"
        else:
            yield f"all of {self.num_images:,} pictures decoded"


def look_deeply(
    loaded: LoadedRecipe, plan: Plan, *, every_image: bool
) -> tuple[list[Problem], tuple[StageFindings, ...]]:
    """Every problem that a look at the model and the data finds, and what was counted, stage by stage.

    With `every_image` all pictures are decoded. Else a sample of them is opened, and a part of it decoded:
    the same every time.
    """
    problems = [*model_problems(loaded, plan)]
    is_known = not problems
    image_processor = _image_processor(plan, problems) if is_known else None
    shapes = _model_shapes(plan, problems) if is_known else None
    quantized = plan.model.language_model.quantization is not None
    findings = []
    for index, stage in enumerate(plan.stages):
        path: KeyPath = ("stages", index)
        trains = None if shapes is None else what_trains(shapes, stage)
        if trains is not None:
            problems += tuning_problems(trains, stage, quantized=quantized, stage_path=path)
        look = DataLook(
            stage.data, path, _spelling(plan, index, problems), _spread(plan, stage), image_processor
        )
        problems += look.find(every_image=every_image)
        findings.append(_findings(stage, look, shapes, trains))
    if shapes is not None:
        problems += hand_off_problems(plan, range(len(plan.stages)), lambda: shapes, fetch=False)
    return problems, tuple(findings)


def _image_processor(plan: Plan, problems: list[Problem]) -> BaseImageProcessor | None:
    """What prepares pictures for the tower; None where it cannot be loaded."""
    from llava_recipes.data.images import load_image_processor

    try:
        return load_image_processor(plan.model.vision_tower)
    except RecipeError as error:
        problems += error.problems
        return None


def _model_shapes(plan: Plan, problems: list[Problem]) -> Shapes | None:
    """Shapes by canonical name, from the model on the meta device; None where it cannot be built."""
    from llava_recipes.model.assemble import skeleton_shapes

    try:
        shapes = skeleton_shapes(plan.model)
    except RecipeError as error:
        problems += error.problems
        return None
    problems += projector_problems(plan.model, lambda: shapes)
    return shapes


def _findings(
    stage: StagePlan, look: DataLook, shapes: Shapes | None, trains: Trains | None
) -> StageFindings:
    return StageFindings(
        stage=stage.name,
        num_records=look.num_records,
        num_validation_records=look.num_validation_records,
        num_images=look.num_images,
        num_images_opened=look.num_images_opened,
        num_images_decoded=look.num_images_decoded,
        num_trainable_parameters=trains.count_trainable() if trains else None,
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
