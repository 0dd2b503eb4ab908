"""Rules between the keys that say in what order and at what rates a stage trains; on plain values."""

from __future__ import annotations

from collections.abc import Iterator

from llava_recipes.recipe.errors import KeyPath, Problem
from llava_recipes.recipe.globs import check_glob
from llava_recipes.recipe.values import Mapping, as_list, as_mapping


def check_tuning(stage: Mapping, path: KeyPath) -> Iterator[Problem]:
    """Every such rule that a stage breaks."""
    yield from _check_order(as_mapping(stage.get("data")), (*path, "data"))
    yield from _check_globs(as_mapping(stage.get("lora")), (*path, "lora", "modules"))
    for index, group in enumerate(as_list(stage.get("param_groups"))):
        yield from _check_group(as_mapping(group), (*path, "param_groups", index))


def check_image_tokens(recipe: Mapping) -> Iterator[Problem]:
    """Stages that train image tokens which the model does not have."""
    tokens = as_mapping(as_mapping(recipe.get("model")).get("image_tokens"))
    for index, stage in enumerate(as_mapping(each) for each in as_list(recipe.get("stages"))):
        for number, glob in enumerate(as_list(stage.get("trainable"))):
            path: KeyPath = ("stages", index, "trainable", number)
            if not isinstance(glob, str) or glob.partition(".")[0] != "image_tokens":
                continue
            if tokens.get("start_end") is not True:
                yield Problem(
                    "`image_tokens` trains, and the model has none",
                    code="no-image-tokens",
                    path=path,
                    hint="write `image_tokens: {start_end: true}` in `model:`, or remove it here",
                )


def _check_order(data: Mapping, path: KeyPath) -> Iterator[Problem]:
    if data.get("shuffle") is False and data.get("group_by") in ("length", "modality_length"):
        last = max(("shuffle", "group_by"), key=list(data).index)
        yield Problem(
            "`group_by` draws an order of its own, and `shuffle: false` asks for that of the file",
            code="keys-exclude-each-other",
            path=(*path, last),
            hint="remove one of the two",
            on_key=True,
        )


def _check_group(group: Mapping, path: KeyPath) -> Iterator[Problem]:
    yield from _check_globs(group, (*path, "modules"))
    if "modules" in group and not set(group) - {"modules"}:
        yield Problem(
            "a parameter group says nothing of its modules",
            code="parameter-group-without-settings",
            path=path,
            hint="give it a `learning_rate` or a `weight_decay`, or remove it",
        )


def _check_globs(owner: Mapping, path: KeyPath) -> Iterator[Problem]:
    for index, glob in enumerate(as_list(owner.get("modules"))):
        if isinstance(glob, str) and glob:
            yield from check_glob(glob, (*path, index))
