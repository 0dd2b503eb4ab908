"""Fill in a template: name, models, data, overrides, and a batch that suits the number of records."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from llava_recipes.authoring.gallery import check_words, readdress, templates_folder
from llava_recipes.authoring.survey import Survey, survey
from llava_recipes.errors import KeyPath, Problem, RecipeError
from llava_recipes.plan.advice import FEW_STEPS, useful_save_steps
from llava_recipes.plan.batch import count_steps, derive_batch, suitable_share
from llava_recipes.recipe.exclusions import displaced
from llava_recipes.recipe.load import load_source
from llava_recipes.recipe.override import read_override
from llava_recipes.recipe.scalars import Value, as_mapping, value_at
from llava_recipes.recipe.schema import Stage
from llava_recipes.recipe.source import parse_source
from llava_recipes.recipe.writer import remove_key, set_value, value_text

TEMPLATES: Mapping[str, str] = MappingProxyType(
    {
        "pretrain": "Stage 1: train the projector on captions, everything else frozen",
        "finetune": "Stage 2: train projector and language model on conversations",
        "lora": "Stage 2 with LoRA: adapters in place of the whole language model",
        "qlora": "the same with the language model in 4 bits, for less memory",
        "task": "continue from a finished run with data of your own",
        "tiny": "random weights and small sizes, for tests on a laptop",
        "custom": "a tower and a language model of your own, both stages",
    }
)

DEFAULT_TEMPLATE = "pretrain"

USUAL_PROCESSES = 8
"""The number of GPUs that the templates' per-device batches are made for."""

_BATCH = ("global_batch_size", "per_device_train_batch_size", "gradient_accumulation_steps")
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")
_TOWER = ("model", "vision_tower")
_LANGUAGE_MODEL = ("model", "language_model")


@dataclass(frozen=True)
class Wishes:
    """What the user asked for; None or empty where nothing was given."""

    template: str
    language_model: str | None = None
    vision_tower: str | None = None
    data: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    output_dir: str | None = None
    overrides: tuple[str, ...] = ()


@dataclass
class NewRecipe:
    """The text of a recipe, notes on how it was filled in, and warnings."""

    text: str
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def template_text(name: str) -> str:
    """The text of a template, which is itself a valid recipe."""
    return (templates_folder() / f"{name}.yaml").read_text(encoding="utf-8")


def draft_recipe(wishes: Wishes, output: Path) -> NewRecipe:
    """The template, filled in.

    Raises RecipeError if a data file can't be read or an override is invalid.
    """
    models = (wishes.language_model or "", wishes.vision_tower or "", wishes.output_dir or "")
    check_words(*models, *wishes.data, *wishes.images, *wishes.overrides)
    draft = NewRecipe(template_text(wishes.template))
    name = recipe_name(output)
    draft.text = set_value(draft.text, ("name",), name)
    draft.text = readdress(draft.text, "FILE", output)
    _set_models(draft, wishes)
    _set_folders(draft, wishes.output_dir or f"./checkpoints/{name}")
    _set_data(draft, wishes)
    _note_chat_template(draft)
    given = _set_overrides(draft, wishes.overrides)
    if wishes.data:
        draft.text, notes = fit_batches(draft.text, str(output), given=given)
        draft.notes += notes
    return draft


def recipe_name(output: Path) -> str:
    """The recipe's name, made from that of its file."""
    return _NOT_IN_NAMES.sub("-", output.stem).strip("-._")[:100] or "my-recipe"


def _check_model(model: str | None, what: str) -> None:
    if model is not None and os.path.isfile(model):
        message = f"a {what} is a hub id or a folder; {model} is a file"
        raise RecipeError.of(message, code="model-source-is-a-file")


def _set_models(draft: NewRecipe, wishes: Wishes) -> None:
    _check_model(wishes.language_model, "language model")
    _check_model(wishes.vision_tower, "vision tower")
    if wishes.language_model is not None:
        by_source = value_text(draft.text, (*_LANGUAGE_MODEL, "source")) is not None
        path = (*_LANGUAGE_MODEL, "source") if by_source else _LANGUAGE_MODEL
        draft.text = set_value(draft.text, path, wishes.language_model)
        draft.text = remove_key(draft.text, (*_LANGUAGE_MODEL, "revision"))
    if wishes.vision_tower is not None:
        draft.text = set_value(draft.text, (*_TOWER, "source"), wishes.vision_tower)
        for key in ("config", "image_processor", "seed", "revision"):
            draft.text = remove_key(draft.text, (*_TOWER, key))


def _stages(text: str) -> list[dict[str, Value]]:
    root = parse_source(text, "").root
    assert isinstance(root, dict) and isinstance(root["stages"], list)
    return [stage for stage in root["stages"] if isinstance(stage, dict)]


def _set_folders(draft: NewRecipe, folder: str) -> None:
    stages = _stages(draft.text)
    for index, stage in enumerate(stages):
        inner = folder if len(stages) == 1 else f"{folder.rstrip('/')}/{stage['name']}"
        draft.text = set_value(draft.text, ("stages", index, "output_dir"), inner)


def _set_data(draft: NewRecipe, wishes: Wishes) -> None:
    """Put each data file into the stage that it fits."""
    if not wishes.data:
        if wishes.images:
            raise RecipeError.of(
                "`--images` needs `--data`",
                code="option-needs-another",
                hint="add `--data` with the annotation file",
            )
        return
    stages = _stages(draft.text)
    shares: list[list[_Source]] = [[] for _ in stages]
    for source in _sources(wishes):
        draft.notes += source.notes
        draft.warnings += source.warnings
        shares[_stage_for(source, stages)].append(source)
    for index, share in enumerate(shares):
        if share:
            _set_stage_data(draft, index, share)
        else:
            name = stages[index]["name"]
            draft.warnings.append(f"no data file fits stage `{name}`: it keeps the template's data")


@dataclass(frozen=True)
class _Source:
    """A data file as it goes into the recipe, and its survey if the file exists."""

    annotations: str
    images: str | None
    seen: Survey | None

    @property
    def template(self) -> str | None:
        return self.seen.template if self.seen is not None else None

    @property
    def notes(self) -> list[str]:
        if self.seen is None:
            return []
        seen = self.seen
        notes = [f"{seen.annotations}: {seen.num_records:,} records; {seen.reason}"]
        if seen.num_images_found:
            found = f"{seen.num_images_found:,} of {seen.num_images_tried:,} images tried"
            notes.append(f"{seen.images}: contains {found}")
        return notes

    @property
    def warnings(self) -> list[str]:
        if self.seen is None:
            return [f"{self.annotations} doesn't exist yet: `num_samples` and template are not checked"]
        return [f"{self.annotations}: {warning}" for warning in self.seen.warnings]

    @property
    def values(self) -> dict[str, Value]:
        values: dict[str, Value] = {"annotations": self.annotations}
        if self.images is not None:
            values["images"] = self.images
        if self.seen is not None:
            values["num_samples"] = self.seen.num_records
        return values


def _sources(wishes: Wishes) -> Iterator[_Source]:
    if len(wishes.images) not in (0, 1, len(wishes.data)):
        given = f"{len(wishes.data)} data files, {len(wishes.images)} image folders"
        hint = "write `--images` once for all, or once for each `--data`, in order"
        raise RecipeError.of(
            "`--data` and `--images` differ in number", code="data-and-images-differ", found=given, hint=hint
        )
    for index, file in enumerate(wishes.data):
        images = wishes.images[min(index, len(wishes.images) - 1)] if wishes.images else None
        if not os.path.exists(file):
            yield _Source(file, images or _likely_folder(file), None)
            continue
        seen = survey(file, images)
        if images is None and seen.num_with_image and not seen.holds_images:
            images = seen.images or _likely_folder(file)
        yield _Source(file, images, seen)


def _likely_folder(file: str) -> str:
    return os.path.join(os.path.dirname(file) or ".", "images")


def _stage_for(source: _Source, stages: Sequence[Mapping[str, Value]]) -> int:
    """The first stage with the template that the data needs; the last stage if either template would do."""
    for index, stage in enumerate(stages):
        data = stage["data"]
        if isinstance(data, dict) and data["template"] == source.template:
            return index
    return len(stages) - 1


def _set_stage_data(draft: NewRecipe, index: int, share: Sequence[_Source]) -> None:
    path: KeyPath = ("stages", index, "data")
    draft.text = set_value(draft.text, (*path, "sources"), [source.values for source in share])
    wanted = {source.template for source in share if source.template is not None}
    template = value_text(draft.text, (*path, "template"))
    if wanted and template not in wanted:
        # Captions can be written as conversations, but not the other way round.
        chosen = "v1" if "v1" in wanted else "plain"
        draft.text = set_value(draft.text, (*path, "template"), chosen)
        draft.warnings.append(f"template is `{chosen}` instead of `{template}`, to suit the data")
    elif len(wanted) > 1:
        draft.text = set_value(draft.text, (*path, "template"), "v1")
        draft.notes.append("template is `v1`: some of the data files contain conversations")


def _note_chat_template(draft: NewRecipe) -> None:
    """Note a chat template in the language model's folder if the recipe trains on conversations."""
    source = value_text(draft.text, (*_LANGUAGE_MODEL, "source")) or value_text(draft.text, _LANGUAGE_MODEL)
    converses = any(
        isinstance(stage["data"], dict) and stage["data"].get("template", "plain") != "plain"
        for stage in _stages(draft.text)
    )
    if source is not None and converses and _has_chat_template(Path(source)):
        draft.notes.append(
            f"{source} has a chat template: to use it, write `chat_template: tokenizer` instead of `template`"
        )


def _has_chat_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file():
        return True
    try:
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(settings, dict) and bool(settings.get("chat_template"))


def _set_overrides(draft: NewRecipe, overrides: Sequence[str]) -> list[KeyPath]:
    """Write the user's overrides; returns their paths."""
    problems: list[Problem] = []
    paths: list[KeyPath] = []
    for text in overrides:
        try:
            root = parse_source(draft.text, "").root
            override = read_override(text, root)
        except RecipeError as error:
            problems += error.problems
            continue
        problems += override.problems
        below = as_mapping(value_at(root, override.path[:-1]))
        for other in displaced(override.path, override.value, given=(), below=below):
            if other not in paths:
                draft.text = remove_key(draft.text, other)
        draft.text = set_value(draft.text, override.path, override.value)
        paths.append(override.path)
    if problems:
        raise RecipeError(*problems)
    return paths


def fit_batches(text: str, file: str, *, given: Collection[KeyPath]) -> tuple[str, list[str]]:
    """The recipe's text with batch, warm-up and saving for its number of records, and notes on them.

    Keys in `given` stay. Raises RecipeError if the text isn't a valid recipe.
    """
    notes: list[str] = []
    for index in range(len(load_source(text, file).recipe.stages)):
        for choose in (_batch_values, _step_values):
            # The number of steps depends on the batch chosen before.
            stage = load_source(text, file).recipe.stages[index]
            path: KeyPath = ("stages", index, "train")
            for key, value in choose(stage, path, given):
                text = set_value(text, (*path, key), value)
                notes.append(f"stage `{stage.name}`: `{key}: {value}` for this number of records")
    return text, notes


def _num_samples(stage: Stage) -> int | None:
    counts = [source.num_samples for source in stage.data.sources]
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _is_given(path: KeyPath, given: Collection[KeyPath]) -> bool:
    """Whether the user set a key or a mapping that contains it."""
    return any(path[: len(other)] == other for other in given)


def _batch_values(stage: Stage, path: KeyPath, given: Collection[KeyPath]) -> Iterator[tuple[str, Value]]:
    num_samples, batch = _num_samples(stage), derive_batch(stage.train, world_size=1)
    if num_samples is None or batch is None or any(_is_given((*path, key), given) for key in _BATCH):
        return
    suits = suitable_share(num_samples)
    if suits >= batch.in_all:
        return
    if stage.train.global_batch_size is None:
        yield "per_device_train_batch_size", min(suits, batch.per_device)
        return
    yield "global_batch_size", suits
    per_device = max(1, suits // USUAL_PROCESSES)
    if per_device < batch.per_device:
        yield "per_device_train_batch_size", per_device


def _step_values(stage: Stage, path: KeyPath, given: Collection[KeyPath]) -> Iterator[tuple[str, Value]]:
    train, batch = stage.train, derive_batch(stage.train, world_size=1)
    if batch is None:
        return
    steps = count_steps(train, batch, num_samples=_num_samples(stage), world_size=1)
    if steps.in_all is None:
        return
    key = "warmup_steps" if train.warmup_steps is not None else "warmup_ratio"
    if steps.warmup and steps.warmup >= steps.in_all and not _is_given((*path, key), given):
        yield key, 0
    saves = train.save_strategy == "steps" and "save_steps" in train.model_fields_set
    if saves and FEW_STEPS <= steps.in_all < train.save_steps and not _is_given((*path, "save_steps"), given):
        yield "save_steps", useful_save_steps(steps.in_all)
