"""What a stage's `data:` comes to: which records are trained and measured on, and how they are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from llava_recipes.layouts import meaning_of
from llava_recipes.plan.mix import mix_sources, nothing_left, overdrawn, total_used
from llava_recipes.plan.pictures import plan_images
from llava_recipes.plan.trainable import trains_image_tokens
from llava_recipes.plan.types import DataPlan, ModelSizes, ValidationPlan
from llava_recipes.recipe.errors import KeyPath, Problem
from llava_recipes.recipe.schema import Source, Stage


@dataclass(frozen=True)
class PlannedData:
    """The plan, with the problems and notes met on the way."""

    plan: DataPlan
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]


def plan_data(
    stage: Stage, sizes: ModelSizes | None, *, counted: Mapping[str, int], world_size: int, path: KeyPath
) -> PlannedData:
    """The data of the stage at `path`; how often it is measured is not known yet.

    counted  records of annotation files whose `num_samples` the recipe does not give
    """
    data, seed, path = stage.data, stage.train.seed, (*path, "data")
    validation, sources = data.validation, _Sources(counted)
    mix = mix_sources(
        data.sources,
        sources.count(data.sources, (*path, "sources")),
        seed=str(seed),
        split=validation.split if validation is not None else None,
    )
    measured = mix.held_out
    if validation is not None and validation.sources is not None:
        counts = sources.count(validation.sources, (*path, "validation", "sources"))
        measured = mix_sources(validation.sources, counts, seed=f"{seed}/validation", split=None).training
    has_images = any(source.images is not None for source in (*mix.training, *(measured or ())))
    images = plan_images(data, sizes, has_images=has_images, path=path)
    num_samples = total_used(mix.training)
    problems = [*sources.problems, *images.problems]
    if num_samples == 0:
        problems.append(nothing_left(measured or (), (*path, "validation", "split")))
    plan = DataPlan(
        template=meaning_of(data.template) if data.template is not None else None,
        chat_template=data.chat_template,
        system_prompt=data.system_prompt,
        tokens_in_plain=data.template == "plain" and trains_image_tokens(stage),
        sources=mix.training,
        num_samples=num_samples,
        image_aspect_ratio=data.image_aspect_ratio,
        image_grid_pinpoints=images.pinpoints,
        mm_patch_merge_type=data.mm_patch_merge_type or "flat",
        image_counts=images.counts,
        max_length=data.max_length,
        shuffle=data.shuffle,
        order="file" if not data.shuffle else data.order if world_size > 1 else "seed",
        group_by=data.group_by,
        on_bad_image=data.on_bad_image,
        lazy_preprocess=data.lazy_preprocess,
        validation=None
        if measured is None
        else ValidationPlan(
            sources=measured,
            split=validation.split if validation is not None else None,
            num_samples=total_used(measured),
            num_evaluations=None,
        ),
    )
    return PlannedData(plan, tuple(problems), (*sources.notes, *images.notes))


@dataclass
class _Sources:
    """Counts records, and gathers what is to be told of their files."""

    counted: Mapping[str, int]
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def count(self, sources: Sequence[Source], path: KeyPath) -> list[int | None]:
        """Records of each source's file; notes of files that are not here, problems of those too small."""
        counts = []
        for number, source in enumerate(sources):
            count = source.num_samples or self.counted.get(source.annotations)
            counts.append(count)
            if count is None:
                self.notes.append(
                    f"{source.annotations} is not here, so its samples are not counted; "
                    "`num_samples` of the source would tell"
                )
            elif (problem := overdrawn(source.sampling_strategy, count)) is not None:
                self.problems.append(replace(problem, path=(*path, number, *(problem.path or ()))))
        return counts
