"""Make batch, warm-up and saving of a drafted recipe suit the number of its records."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from llava_recipes.plan.advice import FEW_STEPS, useful_save_steps
from llava_recipes.plan.batch import count_steps, derive_batch, suitable_share
from llava_recipes.recipe.errors import KeyPath
from llava_recipes.recipe.load import load_source
from llava_recipes.recipe.scalars import Value
from llava_recipes.recipe.schema import Stage
from llava_recipes.recipe.writer import set_value

USUAL_PROCESSES = 8
"""The number of GPUs that the templates' batches of a device are made for."""

_BATCH = ("global_batch_size", "per_device_train_batch_size", "gradient_accumulation_steps")


def fit_batches(text: str, file: str, *, given: Collection[KeyPath]) -> tuple[str, list[str]]:
    """The recipe's text with values that suit its records, and notes on them; keys in `given` stay.

    Raises RecipeError when the text is no recipe.
    """
    notes: list[str] = []
    for index in range(len(load_source(text, file).recipe.stages)):
        for choose in (_batch_values, _step_values):
            # What the steps are follows from the batch that was chosen before.
            stage = load_source(text, file).recipe.stages[index]
            path: KeyPath = ("stages", index, "train")
            for key, value in choose(stage, path, given):
                text = set_value(text, (*path, key), value)
                notes.append(f"stage `{stage.name}`: `{key}: {value}` suits so many records")
    return text, notes


def _num_samples(stage: Stage) -> int | None:
    counts = [source.num_samples for source in stage.data.sources]
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _is_given(path: KeyPath, given: Collection[KeyPath]) -> bool:
    """Whether a key, or what it stands in, was set by the user."""
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
