"""What a stage's `data:` comes to: how many records train, validate and are asked, and how they are given.

Shares are rounded up, as LLaVA-NeXT rounds its percentages. Which records they are, `data/draw.py` draws.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

from pydantic import JsonValue

from llava_recipes.errors import KeyPath, Problem
from llava_recipes.layouts import meaning_of
from llava_recipes.plan.families import LANGUAGE_FAMILIES
from llava_recipes.plan.image_tokens import plan_images
from llava_recipes.plan.trainable import trains_image_tokens
from llava_recipes.plan.types import DataPlan, ModelSizes, SamplingPlan, SourcePlan, StagePlan, ValidationPlan
from llava_recipes.recipe.schema import Samples, Source, Stage

NUM_RECORDS = 4
"""Asked while the model trains, where a recipe names no number."""


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


def plan_sampling(stage: Stage) -> SamplingPlan | None:
    """The plan of `sample_every`, or None where nothing is asked."""
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
    """How much is asked, and when."""
    number = len(sampling.images) or sampling.num_records or 0
    pictures = f"{number} {'picture' if number == 1 else 'pictures'}"
    return f"about {pictures} every {sampling.every:,} steps and after the last"


def when_measured(stage: StagePlan) -> str:
    """`every 500 steps and at the end`."""
    arguments = stage.train.training_arguments
    every = {"steps": f"every {arguments.get('eval_steps'):,} steps and ", "epoch": "after every epoch and "}
    return f"{every.get(str(arguments['eval_strategy']), '')}at the end"


@dataclass(frozen=True)
class MixedSources:
    """The sources that are trained on, and those that are held out; None where nothing is."""

    training: tuple[SourcePlan, ...]
    held_out: tuple[SourcePlan, ...] | None


def mix_sources(
    sources: Sequence[Source], counts: Sequence[int | None], *, seed: str, split: float | None
) -> MixedSources:
    """What is used of each source that holds so many records; None where a file is not at hand.

    `seed` begins the text that every draw by chance is seeded with.
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
    """The source with each of its chosen records once, to be trained on or held out."""
    return source.model_copy(update={"weight": 1.0, "num_held_out": 0, "part": "training"})


def total_used(sources: Sequence[SourcePlan]) -> int | None:
    """Samples that an epoch draws; None while a file is not at hand."""
    counts = [source.num_used for source in sources]
    return None if None in counts else sum(count for count in counts if count is not None)


def count_drawn(strategy: str, num_records: int) -> int:
    """How many of a file's records a sampling strategy chooses; may be more than there are."""
    word, _, amount = strategy.partition(":")
    if word == "all":
        return num_records
    if amount.endswith("%"):
        return math.ceil(Fraction(amount[:-1]) * num_records / 100)
    return int(amount)


def overdrawn(strategy: str, num_records: int) -> Problem | None:
    """The problem of a strategy that asks for more records than there are; its path is the key's name."""
    if count_drawn(strategy, num_records) <= num_records:
        return None
    return Problem(
        "`sampling_strategy` asks for more records than the file holds",
        code="too-few-records",
        path=("sampling_strategy",),
        found=f"{strategy}, and the file holds {num_records:,}",
        hint="write `all`",
    )


def nothing_left(held_out: Sequence[SourcePlan], path: KeyPath) -> Problem:
    """The problem of a `split` that takes every record; `path` is its own."""
    return Problem(
        "`split` holds out every record: nothing is left to train on",
        code="too-few-records",
        path=path,
        found=f"{total_used(held_out):,} records, all of them held out",
        hint="write a share such as `0.01`, or a smaller number",
    )


def count_used(weight: float, num_records: int) -> int:
    """How many samples an epoch draws from so many records."""
    return math.ceil(Fraction(repr(weight)) * num_records)


def count_held_out(split: float, drawn: Sequence[int | None]) -> list[int | None]:
    """How many records of each source are held out: its share of the whole, by largest remainder."""
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


Config = Mapping[str, JsonValue]

HF_TYPES = ("llava", "llava_next")
"""What transformers calls its own LLaVA models, llava-hf's among them."""

_MARKS = ("mm_projector_type", "mm_vision_tower")

_LANGUAGE_TYPES = {
    family.llava_class: name for name, family in LANGUAGE_FAMILIES.items() if family.llava_class is not None
}


def comes_from_original_llava(language: Config) -> bool:
    """Whether a language model's config is the part of a whole LLaVA model as the original saves it."""
    classes = language.get("architectures")
    named = classes[0] if isinstance(classes, list) and classes else None
    return str(named) in _LANGUAGE_TYPES or any(key in language for key in _MARKS)


def is_original_llava(config: Config) -> bool:
    """Whether a config.json is that of a whole LLaVA model as the original saves it.

    transformers' own LLaVA holds its language model's config in `text_config`.
    """
    return (
        "text_config" not in config
        and any(key in config for key in _MARKS)
        and language_type(config) is not None
    )


def is_hf_llava(config: Config) -> bool:
    """Whether a config.json is that of transformers' own LLaVA or LLaVA-NeXT."""
    return config.get("model_type") in HF_TYPES and isinstance(config.get("text_config"), dict)


def language_type(config: Config) -> str | None:
    """The type of the language model inside, by the name of its class; None for one that is not known."""
    classes = config.get("architectures")
    named = classes[0] if isinstance(classes, list) and classes else None
    if isinstance(named, str) and named in _LANGUAGE_TYPES:
        return _LANGUAGE_TYPES[named]
    given = str(config.get("model_type", ""))
    return given.removeprefix("llava_") if given.startswith("llava_") else None


def language_part(config: Config) -> Config:
    """The config of the language model inside a LLaVA checkpoint; any other config as it is."""
    inner = config.get("text_config")
    if isinstance(inner, dict) and is_hf_llava(config):
        # llava-hf's folders leave the type out where it is Llama's.
        return {"model_type": "llama", **inner}
    if not is_original_llava(config):
        return config
    return {**config, "model_type": language_type(config)}
