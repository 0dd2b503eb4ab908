"""The data of a stage: how many records of each source train, validate and are sampled, and in what form.

Shares are rounded up, as LLaVA-NeXT rounds its percentages. `data/records.py` chooses the records.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

from llava_recipes.errors import KeyPath, Problem
from llava_recipes.layouts import meaning_of
from llava_recipes.plan.image_tokens import plan_images
from llava_recipes.plan.trainable import trains_image_tokens
from llava_recipes.plan.types import DataPlan, ModelSizes, SamplingPlan, SourcePlan, StagePlan, ValidationPlan
from llava_recipes.recipe.schema import Samples, Source, Stage

NUM_RECORDS = 4
"""Records sampled during training where a recipe sets no number."""


@dataclass(frozen=True)
class PlannedData:
    """The plan of a stage's data, with its problems and notes."""

    plan: DataPlan
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]


def plan_data(
    stage: Stage, sizes: ModelSizes | None, *, counted: Mapping[str, int], path: KeyPath
) -> PlannedData:
    """The data of the stage at `path`; the number of evaluations is not known yet.

    counted  records of the annotation files whose `num_samples` the recipe leaves out
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
        order=data.order if data.shuffle else "file",
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
    """Counts records, and collects the problems and notes of their files."""

    counted: Mapping[str, int]
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def count(self, sources: Sequence[Source], path: KeyPath) -> list[int | None]:
        """Records in each source's file; notes of missing files, problems of files that are too small."""
        counts = []
        for number, source in enumerate(sources):
            count = source.num_samples or self.counted.get(source.annotations)
            counts.append(count)
            if count is None:
                self.notes.append(
                    f"{source.annotations} does not exist here, so its samples are not counted; "
                    "`num_samples` of the source sets their number"
                )
            elif (problem := overdrawn(source.sampling_strategy, count)) is not None:
                self.problems.append(replace(problem, path=(*path, number, *(problem.path or ()))))
        return counts


def plan_sampling(stage: Stage) -> SamplingPlan | None:
    """The plan of `sample_every`, or None where the model is not sampled."""
    if stage.sample_every is None:
        return None
    samples = stage.samples or Samples()
    return SamplingPlan(
        every=stage.sample_every,
        num_records=None if samples.images else samples.num or NUM_RECORDS,
        images=samples.images or (),
        prompt=samples.prompt,
        max_new_tokens=samples.max_new_tokens,
    )


def describe_sampling(sampling: SamplingPlan) -> str:
    """How many images are sampled, and when: `about 4 images every 500 steps and after the last`."""
    number = len(sampling.images) or sampling.num_records or 0
    images = f"{number} {'image' if number == 1 else 'images'}"
    return f"about {images} every {sampling.every:,} steps and after the last"


def when_measured(stage: StagePlan) -> str:
    """`every 500 steps and at the end`."""
    arguments = stage.train.training_arguments
    every = {"steps": f"every {arguments.get('eval_steps'):,} steps and ", "epoch": "after every epoch and "}
    return f"{every.get(str(arguments['eval_strategy']), '')}at the end"


@dataclass(frozen=True)
class MixedSources:
    """The sources to train on, and what is held out of them; None where nothing is."""

    training: tuple[SourcePlan, ...]
    held_out: tuple[SourcePlan, ...] | None


def mix_sources(
    sources: Sequence[Source], counts: Sequence[int | None], *, seed: str, split: float | None
) -> MixedSources:
    """What is used of each source.

    counts  records in the file of each source; None for a missing file
    seed    start of the string that seeds every random draw
    split   share or number of records to hold out; None to hold out nothing
    """
    drawn = [
        None if count is None else count_drawn(source.sampling_strategy, count)
        for source, count in zip(sources, counts, strict=True)
    ]
    held_out = [0] * len(sources) if split is None else count_held_out(split, drawn)
    training = [
        SourcePlan(
            annotations=source.annotations,
            images=source.images,
            num_samples=count,
            sampling_strategy=source.sampling_strategy,
            weight=source.weight,
            num_held_out=held,
            num_used=None if chosen is None or held is None else count_used(source.weight, chosen - held),
            draw_seed=f"{seed}/{number}" if _by_chance(source, split) else "",
        )
        for number, (source, count, chosen, held) in enumerate(
            zip(sources, counts, drawn, held_out, strict=True)
        )
    ]
    if split is None:
        return MixedSources(tuple(training), None)
    changes = ({"part": "held_out", "weight": 1.0, "num_used": source.num_held_out} for source in training)
    return MixedSources(
        tuple(training),
        tuple(source.model_copy(update=change) for source, change in zip(training, changes, strict=True)),
    )


def _by_chance(source: Source, split: float | None) -> bool:
    return (
        split is not None or source.sampling_strategy.startswith("random") or not source.weight.is_integer()
    )


def every_record(source: SourcePlan) -> SourcePlan:
    """The source with each of its chosen records exactly once, whether held out or not."""
    return source.model_copy(update={"weight": 1.0, "num_held_out": 0, "part": "training"})


def total_used(sources: Sequence[SourcePlan]) -> int | None:
    """Samples of an epoch; None while a file is missing."""
    counts = [source.num_used for source in sources]
    return None if None in counts else sum(count for count in counts if count is not None)


def count_drawn(strategy: str, num_records: int) -> int:
    """How many records of a file a sampling strategy chooses; may exceed `num_records`."""
    word, _, amount = strategy.partition(":")
    if word == "all":
        return num_records
    if amount.endswith("%"):
        return math.ceil(Fraction(amount[:-1]) * num_records / 100)
    return int(amount)


def overdrawn(strategy: str, num_records: int) -> Problem | None:
    """The problem of a strategy that asks for more records than exist; its path is the key alone."""
    if count_drawn(strategy, num_records) <= num_records:
        return None
    return Problem(
        "`sampling_strategy` asks for more records than the file contains",
        code="too-few-records",
        path=("sampling_strategy",),
        found=f"{strategy}, and the file contains {num_records:,}",
        hint="write `all`",
    )


def nothing_left(held_out: Sequence[SourcePlan], path: KeyPath) -> Problem:
    """The problem of the `split` at `path` that holds out every record."""
    return Problem(
        "`split` holds out every record: nothing is left to train on",
        code="too-few-records",
        path=path,
        found=f"{total_used(held_out):,} records, all of them held out",
        hint="write a share such as `0.01`, or a smaller number",
    )


def count_used(weight: float, num_records: int) -> int:
    """How many samples an epoch draws from this number of records."""
    return math.ceil(Fraction(repr(weight)) * num_records)


def count_held_out(split: float, drawn: Sequence[int | None]) -> list[int | None]:
    """How many records of each source are held out: in proportion, by largest remainder."""
    known = [count for count in drawn if count is not None]
    if len(known) < len(drawn):
        return [None] * len(drawn)
    in_all = sum(known)
    wanted = min(in_all, math.ceil(Fraction(repr(split)) * in_all) if split < 1 else int(split))
    exact = [Fraction(wanted * count, in_all) for count in known]
    held_out = [int(share) for share in exact]
    by_remainder = sorted(range(len(known)), key=lambda number: held_out[number] - exact[number])
    for number in by_remainder[: wanted - sum(held_out)]:
        held_out[number] += 1
    return list[int | None](held_out)
