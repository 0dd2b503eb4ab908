"""Warnings about what a stage trains on and what it is measured on."""

from __future__ import annotations

import os
from collections.abc import Iterator

from llava_recipes.layouts import ALIASES
from llava_recipes.plan.types import StagePlan
from llava_recipes.recipe.errors import KeyPath, Problem
from llava_recipes.recipe.schema import Stage


def check_order(stage: Stage, path: KeyPath) -> Iterator[Problem]:
    """An order that is asked for and not drawn."""
    if stage.data.order == "original" and not stage.data.shuffle:
        yield _warning(
            "`order: original` has no effect with `shuffle: false`, which takes the order of the files",
            code="key-has-no-effect",
            path=(*path, "data", "order"),
            hint="write `order: seed`, or `shuffle: true`: the original always shuffles",
        )
    elif stage.data.order == "original" and stage.data.group_by == "length":
        yield _warning(
            "the original has no order for `group_by: length`: there Hugging Face's sampler draws it",
            code="original-has-no-order",
            path=(*path, "data", "order"),
            hint="write `order: seed`, or `group_by: modality_length`",
        )


def check_validation(stage: Stage, planned: StagePlan, path: KeyPath) -> Iterator[Problem]:
    """Evaluations that never come, and validation data that is trained on."""
    train, last = stage.train, planned.train.max_steps
    where: KeyPath = (*path, "train", "eval_steps")
    if "eval_steps" in train.model_fields_set and train.eval_strategy != "steps":
        yield _warning(
            f"`eval_steps` has no effect with `eval_strategy: {train.eval_strategy}`",
            code="key-has-no-effect",
            path=where,
            hint="remove it, or write `eval_strategy: steps`",
        )
    elif train.eval_strategy == "steps" and last is not None and train.eval_steps > last:
        yield _warning(
            f"the validation loss is measured at the end alone: `eval_steps: {train.eval_steps}` is beyond "
            f"the last of {last} steps",
            code="validation-only-at-end",
            path=where if "eval_steps" in train.model_fields_set else (*path, "train", "eval_strategy"),
            hint=f"write `eval_steps: {max(1, last // 4)}` or so",
        )
    validation = stage.data.validation
    trained = {os.path.normpath(source.annotations): source for source in stage.data.sources}
    for number, source in enumerate((validation and validation.sources) or ()):
        other = trained.get(os.path.normpath(source.annotations))
        words = {each.sampling_strategy.partition(":")[0] for each in (source, other) if each is not None}
        if other is not None and words != {"first", "end"}:
            yield _warning(
                "the validation data is trained on too: its loss tells nothing about new data",
                code="validation-data-is-trained-on",
                path=(*path, "data", "validation", "sources", number, "annotations"),
                hint="write `validation: {split: 0.01}`, or use the `first` part of the file for one and the "
                "`end` for the other",
            )


def check_plain(stage: Stage, planned: StagePlan, path: KeyPath) -> Iterator[Problem]:
    """A language model that learns answers without what was asked: `plain` writes image and answer alone."""
    roots = {name.split(".")[0] for name in planned.trainable_modules or ()}
    name = stage.data.template
    if roots & {"language_model", "lm_head"} and name is not None and ALIASES.get(name, name) == "plain":
        yield _warning(
            f"`template: {name}` leaves out what is asked, and the language model trains",
            code="plain-template-in-full-training",
            path=(*path, "data", "template"),
            hint="write `template: v1`, or the language model's own; `plain` is for aligning a projector",
        )


def _warning(message: str, *, code: str, path: KeyPath, hint: str) -> Problem:
    return Problem(message, code=code, path=path, hint=hint, severity="warning")
