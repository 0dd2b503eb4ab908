"""Rules between the keys of `data:` and those of `train:` that speak of it."""

from __future__ import annotations

import os
from collections.abc import Iterator

from llava_recipes.recipe.annotation_kinds import kind_of_name, wrong_kind
from llava_recipes.recipe.errors import KeyPath, Problem
from llava_recipes.recipe.locations import check_local
from llava_recipes.recipe.scalars import Value, say_number, spell_value
from llava_recipes.recipe.values import Mapping, as_list, as_mapping


def check_data(stage: Mapping, path: KeyPath) -> Iterator[Problem]:
    """Sources that lie elsewhere or are none, and a validation that cannot be what was meant."""
    data, path = as_mapping(stage.get("data")), (*path, "data")
    yield from _check_sources(data.get("sources"), (*path, "sources"))
    validation = data.get("validation")
    if isinstance(validation, dict):
        yield from _check_sources(validation.get("sources"), (*path, "validation", "sources"))
        yield from _check_validation(data, validation, (*path, "validation"))
    strategy = as_mapping(stage.get("train")).get("eval_strategy")
    if validation is None and data and strategy in ("steps", "epoch"):
        yield Problem(
            "`eval_strategy` has nothing to measure: the stage has no validation data",
            code="no-validation-data",
            path=(*path[:-1], "train", "eval_strategy"),
            found=spell_value(strategy),
            hint="write `validation: {split: 0.01}` under `data:`, or `eval_strategy: no`",
        )


def _check_sources(sources: Value, path: KeyPath) -> Iterator[Problem]:
    for index, source in enumerate(as_list(sources)):
        for key in ("annotations", "images"):
            yield from check_local(as_mapping(source).get(key), (*path, index, key))
        file = as_mapping(source).get("annotations")
        kind = kind_of_name(file) if isinstance(file, str) else None
        if isinstance(file, str) and kind is not None:
            yield wrong_kind(kind, file, path=(*path, index, "annotations"))
        if isinstance(file, str) and file.lower().endswith((".yaml", ".yml")):
            yield Problem(
                "`annotations` is a file of records, not a list of data sets",
                code="annotations-is-a-list-of-files",
                path=(*path, index, "annotations"),
                found=spell_value(file),
                hint="write each of its `datasets` as an entry of `sources:`, with `annotations:` for its "
                "`json_path` and its `sampling_strategy:` as it stands",
            )


def _check_validation(data: Mapping, validation: Mapping, path: KeyPath) -> Iterator[Problem]:
    sources, split = validation.get("sources"), validation.get("split")
    if sources is None and split is None and not set(validation) - {"sources", "split"}:
        hint = "write `split: 0.01`, or `sources:` with files of their own"
        yield Problem(
            "`validation` needs one of `sources` and `split`",
            code="one-of-two-keys-is-needed",
            path=path,
            hint=hint,
            on_key=True,
        )
    elif sources is None and isinstance(split, float) and split >= 1 and not split.is_integer():
        yield Problem(
            "`split` from 1 up is a number of records",
            code="invalid-split",
            path=(*path, "split"),
            found=spell_value(split),
            hint=f"write a whole number, or a share below 1 such as {say_number(split / 100)}",
        )
    if split is not None and sources is None:
        yield from _check_repeated(data, path[:-1])


def _check_repeated(data: Mapping, path: KeyPath) -> Iterator[Problem]:
    """A file that two sources name: what one holds out the other would train on."""
    first: dict[str, int] = {}
    for index, source in enumerate(as_list(data.get("sources"))):
        file = as_mapping(source).get("annotations")
        if not isinstance(file, str) or not file:
            continue
        file = os.path.normpath(file)
        if file in first:
            yield Problem(
                "with `validation.split` a file can be named once: what one source holds out, the other "
                "would train on",
                code="validation-split-twice",
                path=(*path, "sources", index, "annotations"),
                found=f"sources[{first[file]}] names {file} too",
                hint="write `weight:` to use records several times, or give `validation.sources`",
            )
        first.setdefault(file, index)
