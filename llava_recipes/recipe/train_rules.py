"""Rules between the keys of `train:`; on plain values."""

from __future__ import annotations

from collections.abc import Iterator

from llava_recipes.recipe.errors import KeyPath, Problem
from llava_recipes.recipe.misspelt import misspelt
from llava_recipes.recipe.scalars import spell_value
from llava_recipes.recipe.schema import Stage, Train
from llava_recipes.recipe.secret import check_secrets
from llava_recipes.recipe.values import Mapping, as_list, as_mapping, given_keys


def check_train(stage: Mapping, path: KeyPath) -> Iterator[Problem]:
    """Every such rule that a stage breaks."""
    train, path = as_mapping(stage.get("train")), (*path, "train")
    is_given = isinstance(stage.get("train"), dict)

    length = ("num_train_epochs", "max_steps")
    if is_given and not given_keys(train, *length) and not misspelt(train, Train, *length):
        hint = "write `num_train_epochs: 1`, or `max_steps:` for a number of optimizer steps"
        yield Problem(
            "`train` needs one of `num_train_epochs` and `max_steps`",
            code="one-of-two-keys-is-needed",
            path=path,
            hint=hint,
            on_key=True,
        )
    if train.get("bf16") is True and train.get("fp16") is True:
        last = max(("bf16", "fp16"), key=list(train).index)
        yield Problem(
            "`bf16` and `fp16` are both on",
            code="keys-exclude-each-other",
            path=(*path, last),
            hint="keep one; bf16 where the GPU has it",
        )
    if train.get("lr_scheduler_type") == "constant":
        for key in ("warmup_ratio", "warmup_steps"):
            if train.get(key):
                yield Problem(
                    f"`{key}` has no effect with `lr_scheduler_type: constant`",
                    code="key-has-no-effect",
                    path=(*path, key),
                    hint="write `lr_scheduler_type: constant_with_warmup`, or remove it",
                    on_key=True,
                )
    reports = as_list(train.get("report_to"))
    for index, name in enumerate(reports):
        if name in reports[:index]:
            yield Problem(
                f"`report_to` names {spell_value(name)} twice",
                code="name-given-twice",
                path=(*path, "report_to", index),
            )
    yield from _check_extra(as_mapping(train.get("extra")), (*path, "extra"))


def _check_extra(extra: Mapping, path: KeyPath) -> Iterator[Problem]:
    for key in extra:
        place = (
            "`train:` itself"
            if key in Train.model_fields
            else "the stage"
            if key in Stage.model_fields
            else None
        )
        if place is not None:
            hint = f"move it to {place}"
            yield Problem(
                f"`{key}` has a key of its own",
                code="extra-has-a-key-of-its-own",
                path=(*path, key),
                hint=hint,
                on_key=True,
            )
    yield from check_secrets(extra, path)
