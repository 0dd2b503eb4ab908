"""`llava-recipe preview FILE`: show samples as tokens of a stage, and which of them are learned."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from llava_recipes.cli.options import add_recipe
from llava_recipes.errors import KeyPath, Problem, RecipeError
from llava_recipes.screen import say_json

if TYPE_CHECKING:
    from llava_recipes.data.crops import ImageLayout
    from llava_recipes.data.dataset import Preview, Sample
    from llava_recipes.plan.types import DataPlan, ModelPlan, Plan
    from llava_recipes.recipe.load import LoadedRecipe

EPILOG = """\
--format jsonl prints a JSON object for each sample:

  index, id         its position over all sources, and its id
  input_ids         tokens, with -200 for an image; text-only samples are cut at max_length
  labels            the same, with -100 where nothing is learned
  num_image_tokens  tokens of an image of the tower's size
  image_tokens      tokens of each image
  grids             crops across and down of each image, with `anyres`
  length, num_kept  tokens with every image expanded, before and after the cut at max_length"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    add_recipe(parser)
    parser.add_argument("--stage", metavar="NAME", help="stage to show, needed if there are several")
    parser.add_argument(
        "--samples",
        type=_span,
        default=(0, 5),
        metavar="A:B",
        help="samples A to B-1, counted from 0 over all sources, or sample A alone (default: 0:5)",
    )
    parser.add_argument(
        "--validation", action="store_true", help="show validation samples instead of training samples"
    )
    parser.add_argument("--format", choices=("table", "jsonl"), default="table", help="default: %(default)s")


def run(arguments: argparse.Namespace) -> int:
    from llava_recipes.recipe.load import load_recipe
    from llava_recipes.runner.facts import plan_recipe

    loaded = load_recipe(arguments.file, arguments.set)
    number = _stage_number(loaded, arguments.stage)
    plan = plan_recipe(loaded, world_size=1)
    try:
        preview = open_preview(plan, number, validation=arguments.validation)
    except RecipeError as error:
        raise loaded.fail(*error.problems) from None
    problems: list[Problem] = []
    samples = read_samples(preview, *arguments.samples, problems=problems)
    if arguments.format == "jsonl":
        for sample in samples:
            say_json(json_line(preview, sample))
    else:
        from llava_recipes.cli.preview_table import print_table

        print_table(preview, samples)
    if problems:
        raise RecipeError(*problems)
    return 0


def open_preview(plan: Plan, number: int, *, validation: bool = False) -> Preview:
    """The data of a stage, or its validation data, with tokenizer and image processor; raises RecipeError.

    No model weights are loaded.
    """
    from llava_recipes.data.dataset import Preview, StageDataset
    from llava_recipes.data.images import load_image_processor
    from llava_recipes.data.tokenizer import load_tokenizer

    # Tokenizing everything would take as long as the start of a run.
    chosen = _chosen(plan, number, validation=validation)
    data = chosen.model_copy(update={"lazy_preprocess": True})
    tokenizer = load_tokenizer(plan.model.language_model, plan.model.image_tokens)
    image_processor = load_image_processor(plan.model.vision_tower)
    try:
        dataset = StageDataset(data, tokenizer, image_processor, plan.model.image_tokens.start_end)
    except RecipeError as error:
        where: KeyPath = ("stages", number)
        own = (
            replace(problem, path=(*where, *problem.path))
            for problem in error.problems
            if problem.path is not None and problem.path[0] == "data"
        )
        sources = _source_problems(data, _place(plan, number, validation=validation))
        raise RecipeError(*own, *sources) from None
    return Preview(dataset, _layout(plan.model, data), data.max_length)


def read_samples(preview: Preview, first: int, end: int, *, problems: list[Problem]) -> Iterator[Sample]:
    """The readable samples from `first` to `end` - 1; problems of the others are added to `problems`."""
    records = preview.dataset.records
    if first >= len(records):
        found = f"samples 0 to {len(records) - 1}"
        problems.append(
            Problem(
                f"sample {first} doesn't exist",
                code="no-sample",
                found=found,
                hint="choose others with --samples",
            )
        )
    for index in range(first, min(end, len(records))):
        try:
            yield preview.dataset.read(index)
        except RecipeError as error:
            problems += error.problems


def json_line(preview: Preview, sample: Sample) -> str:
    """One sample as a line of JSON; EPILOG explains the fields."""
    input_ids, labels = sample.input_ids.tolist(), sample.labels.tolist()
    length = preview.length(sample)
    if not sample.images:
        # The original cuts text-only samples when it tokenizes, others when their images are expanded.
        input_ids, labels = input_ids[: preview.max_length], labels[: preview.max_length]
        length = len(input_ids)
    values = {
        "index": sample.index,
        "id": sample.id,
        "input_ids": input_ids,
        "labels": labels,
        "num_image_tokens": preview.layout.num_crop_tokens,
        "image_tokens": preview.image_tokens(sample),
        "grids": [grid for image in sample.images if (grid := preview.layout.grid(image))],
        "length": length,
        "num_kept": min(length, preview.max_length),
    }
    return json.dumps(values, ensure_ascii=False)


def _stage_number(loaded: LoadedRecipe, name: str | None) -> int:
    from llava_recipes.runner.facts import choose_stages

    first, *others = choose_stages(loaded, names=() if name is None else (name,))
    if others:
        names = ", ".join(stage.name for stage in loaded.recipe.stages)
        message, path = "the recipe has several stages; --stage chooses one", ("stages",)
        raise loaded.fail(
            Problem(message, code="unknown-stage", path=path, on_key=True, hint=f"stages: {names}")
        )
    return first


def _chosen(plan: Plan, number: int, *, validation: bool) -> DataPlan:
    data = plan.stages[number].data
    if not validation:
        return data
    measured = data.for_validation()
    if measured is None:
        where: KeyPath = ("stages", number, "data")
        hint = "write `validation: {split: 0.01}` under `data:`"
        raise RecipeError.of(
            "the stage has no validation data", code="no-validation-data", path=where, hint=hint, on_key=True
        )
    return measured


def _place(plan: Plan, number: int, *, validation: bool) -> KeyPath:
    """Where the recipe names the sources; a split for validation comes from the training sources."""
    data = plan.stages[number].data
    own = validation and data.validation is not None and data.validation.split is None
    return ("stages", number, "data", *(("validation",) if own else ()), "sources")


def _source_problems(data: DataPlan, path: KeyPath) -> Iterator[Problem]:
    """The problems of each source, at its place in the recipe."""
    from llava_recipes.data.records import at_source, open_records

    for position, source in enumerate(data.sources):
        try:
            open_records([source])
        except RecipeError as error:
            yield from at_source(error.problems, (*path, position))


def _layout(model: ModelPlan, data: DataPlan) -> ImageLayout:
    from llava_recipes.data.crops import ImageLayout
    from llava_recipes.plan.image_tokens import any_res

    if model.sizes is not None:
        image_px, num_tokens = model.sizes.image_px, model.sizes.num_image_tokens
    else:
        from llava_recipes.model.configs import count_image_tokens, tower_origin

        config = tower_origin(model.vision_tower, weights=False).config
        image_px, num_tokens = config.image_size, count_image_tokens(model.vision_tower, config)
    return ImageLayout(num_tokens, any_res(data, image_px=image_px, num_image_tokens=num_tokens))


def _span(text: str) -> tuple[int, int]:
    first, colon, end = text.partition(":")
    try:
        start = int(first or 0)
        stop = int(end) if end else start + (5 if colon else 1)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not A:B with whole numbers") from None
    if start < 0 or stop <= start:
        raise argparse.ArgumentTypeError(f"{text!r} is empty or negative; A:B means samples A to B-1")
    return start, stop
