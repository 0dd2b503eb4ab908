"""Rules between keys that the schema cannot express; on plain values, so that they run next to its errors.

The tables of `exclusions.py` say which keys exclude or need each other; the functions here check the rest.
They skip values of the wrong kind, which the schema reports.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

from llava_recipes.deepspeed_presets import DEEPSPEED_PRESETS
from llava_recipes.errors import KeyPath, Problem
from llava_recipes.layouts import ALIASES, LAYOUTS
from llava_recipes.recipe.exclusions import (
    ANY,
    DATA,
    STAGE,
    TRAIN,
    check_exclusions,
    check_idle,
    check_one_given,
    misspelled,
    values_under,
)
from llava_recipes.recipe.foreign import code_problems, kind_of_name, wrong_kind
from llava_recipes.recipe.globs import check_glob
from llava_recipes.recipe.locations import check_hub_id, check_local, check_secret_values, check_secrets
from llava_recipes.recipe.renames import did_you_mean
from llava_recipes.recipe.scalars import (
    Value,
    Values,
    as_list,
    as_mapping,
    given_keys,
    say_number,
    spell_value,
)
from llava_recipes.recipe.schema import Stage, Train

_PARTS: Final[tuple[KeyPath, ...]] = (("model", "language_model"), ("model", "vision_tower"))
_SOURCES: Final[tuple[KeyPath, ...]] = ((*DATA, "sources", ANY), (*DATA, "validation", "sources", ANY))
_LOCAL: Final[tuple[KeyPath, ...]] = (
    ("model", "projector", "init_from"),
    *((*source, key) for source in _SOURCES for key in ("annotations", "images")),
    (*STAGE, "samples", "images", ANY),
    (*STAGE, "output_dir"),
)
"""Values that are paths on this machine."""
_ON_HUB: Final[tuple[KeyPath, ...]] = (
    *_PARTS,
    *((*part, key) for part in _PARTS for key in ("source", "tokenizer")),
)
"""Values that are hub ids or folders."""
_SHARED: Final[tuple[KeyPath, ...]] = (("vars",), (*TRAIN, "extra"), (*STAGE, "deepspeed"))
"""Free mappings, in which a key may name a secret."""
_GLOBS: Final[tuple[KeyPath, ...]] = tuple(
    (*STAGE, *place, ANY)
    for place in (("freeze",), ("trainable",), ("lora", "modules"), ("param_groups", ANY, "modules"))
)
_MOST_GLOBS: Final = 2_000
"""In one recipe: enough to list every adapted layer of a large model in each of three stages."""
_MOST_PIXELS: Final = 2**26
"""Larger images are not opened, so a larger grid would only enlarge them."""


def check_rules(root: Value) -> list[Problem]:
    """The problems of a recipe's values, one for each rule that they break."""
    recipe = as_mapping(root)
    problems = [*_check_version(recipe.get("version"))]
    for path, value in _each(recipe, *_SHARED):
        problems += check_secrets(as_mapping(value), path)
    for check in (check_exclusions, check_one_given, check_idle, check_secret_values):
        problems += check(recipe)
    for path, value in _each(recipe, *_ON_HUB):
        problems += check_hub_id(value, path)
    for path, value in _each(recipe, *_LOCAL):
        problems += check_local(value, path)
    for path, value in _each(recipe, *_GLOBS):
        if isinstance(value, str) and value and (problem := check_glob(value, path)) is not None:
            problems.append(problem)
    problems += _check_number_of_globs(recipe)
    for path, value in _each(recipe, *_PARTS):
        problems += _check_part(as_mapping(value), path)
    for path, value in _each(recipe, *_SOURCES):
        problems += _check_source(as_mapping(value), path)
    stages = [as_mapping(stage) for stage in as_list(recipe.get("stages"))]
    model = as_mapping(recipe.get("model"))
    problems += _check_names(stages)
    for index, stage in enumerate(stages):
        if not stage:
            continue
        path, data = ("stages", index), as_mapping(stage.get("data"))
        problems += _check_trainable(stage, path)
        problems += _check_image_tokens(stage, model, path)
        problems += _check_deepspeed(stage.get("deepspeed"), (*path, "deepspeed"))
        problems += _check_data(data, stage, (*path, "data"))
        problems += _check_grid(data, model, (*path, "data"))
        for number, group in enumerate(as_list(stage.get("param_groups"))):
            problems += _check_group(as_mapping(group), (*path, "param_groups", number))
        problems += _check_samples(stage, (*path, "samples"))
        problems += _check_expect(as_mapping(stage.get("expect")), (*path, "expect", "loss"))
        problems += _check_init_from(stages, index)
        problems += _check_train(as_mapping(stage.get("train")), (*path, "train"))
    return problems


def _each(recipe: Values, *places: KeyPath) -> Iterator[tuple[KeyPath, Value]]:
    return (found for place in places for found in values_under(recipe, place))


def _check_number_of_globs(recipe: Values) -> Iterator[Problem]:
    num_globs = 0
    lists = _each(recipe, *(place[:-1] for place in _GLOBS))
    for path, globs in sorted(lists, key=lambda found: found[0][1]):
        num_globs += len(as_list(globs))
        if num_globs > _MOST_GLOBS:
            yield Problem(
                f"the recipe has more than {_MOST_GLOBS:,} globs",
                code="too-many-globs",
                path=path,
                hint="name the modules that contain them, or write ranges: `layers.{0..31}`",
                on_key=True,
            )
            return


def _check_version(version: Value) -> Iterator[Problem]:
    # For Python, and so for Pydantic, True and 1.0 equal 1.
    if version == 1 and not (isinstance(version, int) and not isinstance(version, bool)):
        message, found, hint = "`version` must be `1`", spell_value(version), "write `version: 1`"
        yield Problem(message, code="unknown-version", path=("version",), found=found, hint=hint)


def _check_part(part: Values, path: KeyPath) -> Iterator[Problem]:
    """The config of a model with random weights, and code that any of its settings names."""
    config = part.get("config") if not given_keys(part, "source") else None
    is_language_model = path[-1] == "language_model"
    if config is not None and is_language_model and not given_keys(part, "tokenizer"):
        message = "`language_model` with `config` needs the key `tokenizer`"
        hint = "write `tokenizer:` with a hub id or a folder"
        yield Problem(message, code="key-is-missing", path=path, hint=hint, on_key=True)
    if isinstance(config, dict) and not isinstance(config.get("model_type"), str):
        message = "`config` needs the key `model_type`"
        hint = f"write `model_type: {'llama' if is_language_model else 'clip_vision_model'}`"
        yield Problem(message, code="model-type-missing", path=(*path, "config"), hint=hint, on_key=True)
    for key in ("config", "image_processor"):
        yield from code_problems(part.get(key), (*path, key))


def _check_source(source: Values, path: KeyPath) -> Iterator[Problem]:
    file, path = source.get("annotations"), (*path, "annotations")
    if not isinstance(file, str):
        return
    if (kind := kind_of_name(file)) is not None:
        yield wrong_kind(kind, file, path=path)
    if file.lower().endswith((".yaml", ".yml")):
        yield Problem(
            "`annotations` must be a file of records, not a list of data sets",
            code="annotations-is-a-list-of-files",
            path=path,
            found=spell_value(file),
            hint="write each of its `datasets` as an entry of `sources:`, with its `json_path` as "
            "`annotations:` and its `sampling_strategy:` unchanged",
        )


def _repeated(values: list[Value]) -> Iterator[tuple[int, int, str]]:
    """The strings that occur earlier too: their index, the index of the first one, and the string."""
    first: dict[str, int] = {}
    for index, value in enumerate(values):
        if isinstance(value, str) and first.setdefault(value, index) < index:
            yield index, first[value], value


def _as_folders(values: list[Value]) -> list[Value]:
    return [os.path.normpath(value) if isinstance(value, str) and value else None for value in values]


def _check_names(stages: list[Values]) -> Iterator[Problem]:
    names = [stage.get("name") for stage in stages]
    for index, first, name in _repeated(names):
        message, found = f"two stages have the name `{name}`", f"stages[{first}] has the same name"
        path: KeyPath = ("stages", index, "name")
        yield Problem(message, code="duplicate-stage-name", path=path, found=found, hint="rename one of them")
    for index, given in enumerate(names):
        if given == "base":
            message = "a stage cannot have the name `base`"
            path, hint = ("stages", index, "name"), "choose another; `init_from: base` means the base weights"
            yield Problem(message, code="invalid-stage-name", path=path, hint=hint)
    for index, first, folder in _repeated(_as_folders([stage.get("output_dir") for stage in stages])):
        yield Problem(
            "two stages write to the same folder",
            code="duplicate-output-dir",
            path=("stages", index, "output_dir"),
            found=f"stages[{first}] also writes to {folder}",
            hint="choose a different folder for each stage",
        )


def _check_init_from(stages: list[Values], index: int) -> Iterator[Problem]:
    start = stages[index].get("init_from")
    path: KeyPath = ("stages", index, "init_from")
    names = [name if isinstance(name := stage.get("name"), str) else "" for stage in stages]
    if not isinstance(start, str) or start in ("", "base", *names[:index]):
        return
    if start not in names and ("/" in start or "." in start):
        yield from check_hub_id(start, path)
        return
    if start == names[index]:
        message, code = "a stage cannot start from itself", "init-from-itself"
        hint = "name an earlier one, or `base`"
    elif start in names:
        message, code = "`init_from` names a later stage", "init-from-later-stage"
        hint = "stages run in the order of the file"
    else:
        message, code = "`init_from` doesn't name an earlier stage", "init-from-unknown-stage"
        earlier = ["base", *filter(None, names[:index])]
        choices = ", ".join(f"`{name}`" for name in earlier)
        hint = did_you_mean(start, earlier) or f"{choices}, or a folder, written ./{start}"
    yield Problem(message, code=code, path=path, found=spell_value(start), hint=hint)


def _check_trainable(stage: Values, path: KeyPath) -> Iterator[Problem]:
    freeze = stage.get("freeze", Stage.model_fields["freeze"].default)
    absent = "trainable" not in stage and not misspelled(stage, path, "trainable", "freeze")
    if freeze == "all" and (stage.get("trainable") == [] or absent) and stage.get("lora") is None:
        message = "nothing trains in this stage: everything is frozen, and `trainable` lists nothing"
        written = next(((*path, key) for key in ("trainable", "freeze") if key in stage), path)
        hint = "write `trainable: [projector]` for feature alignment"
        yield Problem(message, code="nothing-trains", path=written, hint=hint)
    if freeze == []:
        message, hint = "`freeze` is an empty list", "write `freeze: none`"
        yield Problem(message, code="list-is-empty", path=(*path, "freeze"), hint=hint)


def _check_image_tokens(stage: Values, model: Values, path: KeyPath) -> Iterator[Problem]:
    if as_mapping(model.get("image_tokens")).get("start_end") is True:
        return
    for number, glob in enumerate(as_list(stage.get("trainable"))):
        if isinstance(glob, str) and glob.partition(".")[0] == "image_tokens":
            yield Problem(
                "`image_tokens` trains, but the model has none",
                code="no-image-tokens",
                path=(*path, "trainable", number),
                hint="write `image_tokens: {start_end: true}` in `model:`, or remove it here",
            )


def _check_deepspeed(choice: Value, path: KeyPath) -> Iterator[Problem]:
    if not isinstance(choice, str) or choice in ("", "none", *DEEPSPEED_PRESETS):
        return
    if "/" in choice or "." in choice:
        yield from check_local(choice, path)
        return
    from llava_recipes.recipe.value_hints import deepspeed_hint

    message = f"unknown DeepSpeed preset {spell_value(choice)}"
    yield Problem(message, code="unknown-deepspeed-preset", path=path, hint=deepspeed_hint(choice))


def _check_data(data: Values, stage: Values, path: KeyPath) -> Iterator[Problem]:
    validation = data.get("validation")
    strategy = as_mapping(stage.get("train")).get("eval_strategy")
    if isinstance(validation, dict) and validation.get("sources") is None:
        yield from _check_split(validation.get("split"), as_list(data.get("sources")), path)
    elif validation is None and data and strategy in ("steps", "epoch"):
        yield Problem(
            "`eval_strategy` needs validation data, and the stage has none",
            code="no-validation-data",
            path=(*path[:-1], "train", "eval_strategy"),
            found=spell_value(strategy),
            hint="write `validation: {split: 0.01}` under `data:`, or `eval_strategy: no`",
        )
    if data.get("shuffle") is False and data.get("group_by") in ("length", "modality_length"):
        message = "`group_by` changes the order of the records, and `shuffle: false` keeps that of the file"
        later, hint = (*path, _later(data, "shuffle", "group_by")), "remove one of the two"
        yield Problem(message, code="keys-exclude-each-other", path=later, hint=hint, on_key=True)
    template = data.get("template")
    name = ALIASES.get(template, template) if isinstance(template, str) else None
    without_system = [known for known, layout in LAYOUTS.items() if layout.system is None]
    if name in without_system and given_keys(data, "system_prompt", "chat_template") == ["system_prompt"]:
        message = f"template `{template}` has no place for a system prompt"
        place, hint = (*path, "system_prompt"), "remove it, or choose another template"
        yield Problem(message, code="no-place-for-system-prompt", path=place, hint=hint, on_key=True)


def _later(mapping: Values, *keys: str) -> str:
    return max(keys, key=list(mapping).index)


def _check_split(split: Value, sources: list[Value], path: KeyPath) -> Iterator[Problem]:
    if isinstance(split, float) and split >= 1 and not split.is_integer():
        yield Problem(
            "a `split` of 1 or more is a number of records",
            code="invalid-split",
            path=(*path, "validation", "split"),
            found=spell_value(split),
            hint=f"write a whole number, or a share below 1 such as {say_number(split / 100)}",
        )
    files = [as_mapping(source).get("annotations") for source in sources]
    for index, first, file in _repeated(_as_folders(files)) if split is not None else ():
        yield Problem(
            "`validation.split` needs different files in `sources`: the stage would train on records of one "
            "entry that another holds out",
            code="validation-split-twice",
            path=(*path, "sources", index, "annotations"),
            found=f"sources[{first}] also reads {file}",
            hint="write `weight:` to use records several times, or set `validation.sources`",
        )


def _check_grid(data: Values, model: Values, path: KeyPath) -> Iterator[Problem]:
    """The crops of large images, and the rows in which their features are arranged."""
    pinpoints = as_list(data.get("image_grid_pinpoints"))
    for index, pinpoint in enumerate(pinpoints):
        place: KeyPath = (*path, "image_grid_pinpoints", index)
        if pinpoint in pinpoints[:index]:
            message = f"`image_grid_pinpoints` lists {spell_value(pinpoint)} twice"
            yield Problem(message, code="name-given-twice", path=place, hint="remove one of the two")
        sides = [side for side in as_list(pinpoint) if isinstance(side, int)]
        if len(sides) == 2 and sides[0] * sides[1] > _MOST_PIXELS:
            message = "a grid pinpoint is larger than the largest image that can be read"
            found = f"{sides[0]} × {sides[1]} pixels; an image has at most {_MOST_PIXELS:,}"
            hint = "a pinpoint is `[width, height]` in pixels, a few times the tower's image size"
            yield Problem(message, code="invalid-grid-pinpoint", path=place, found=found, hint=hint)
    merge = data.get("mm_patch_merge_type")
    keeps_class = as_mapping(model.get("vision_tower")).get("select_feature") == "cls_patch"
    if keeps_class and merge in ("spatial", "spatial_unpad"):
        yield Problem(
            f"`mm_patch_merge_type: {merge}` arranges patches in rows, and a class token is not a patch",
            code="class-token-in-image-rows",
            path=(*path, "mm_patch_merge_type"),
            found="`select_feature: cls_patch` of the vision tower",
            hint="write `select_feature: patch` in `vision_tower:` of `model:`",
        )


def _check_group(group: Values, path: KeyPath) -> Iterator[Problem]:
    if set(group) == {"modules"}:
        message = "a parameter group sets nothing for its modules"
        hint = "set its `learning_rate` or `weight_decay`, or remove it"
        yield Problem(message, code="parameter-group-without-settings", path=path, hint=hint)


def _check_expect(expect: Values, path: KeyPath) -> Iterator[Problem]:
    """A band in which no loss can lie."""
    band = as_list(expect.get("loss"))
    numbers = [value for value in band if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(band) == len(numbers) == 2 and not 0 <= numbers[0] < numbers[1]:
        low, high = sorted(numbers)
        given = f"[{say_number(low)}, {say_number(high)}]" if 0 <= low < high else "[0.8, 1.2]"
        yield Problem(
            "no loss lies in this band",
            code="loss-band-is-empty",
            path=path,
            found=spell_value(expect.get("loss")),
            hint=f"write `loss: {given}`: the lowest loss, 0 or more, then the highest",
        )


def _check_samples(stage: Values, path: KeyPath) -> Iterator[Problem]:
    given = given_keys(as_mapping(stage.get("samples")), "images", "prompt")
    is_plain = as_mapping(stage.get("data")).get("template") == "plain"
    code = "key-needs-another"
    if given == ["prompt"]:
        message = "`prompt` needs `images`: records contain their own questions"
        hint = "add `images:`, or remove it"
    elif "prompt" in given and is_plain:
        message = "`prompt` has no effect with `template: plain`, which captions images"
        code, hint = "key-has-no-effect", "remove it"
    elif given == ["images"] and not is_plain:
        message, hint = "`images` needs a `prompt`", "write `prompt:` with the question to ask"
    else:
        return
    yield Problem(message, code=code, path=(*path, given[-1]), hint=hint, on_key=True)


def _check_train(train: Values, path: KeyPath) -> Iterator[Problem]:
    if train.get("bf16") is True and train.get("fp16") is True:
        place, hint = (*path, _later(train, "bf16", "fp16")), "keep one; bf16 if the GPU supports it"
        yield Problem("`bf16` and `fp16` are both on", code="keys-exclude-each-other", path=place, hint=hint)
    reports = as_list(train.get("report_to"))
    for index, name in enumerate(reports):
        if name in reports[:index]:
            message = f"`report_to` lists {spell_value(name)} twice"
            yield Problem(message, code="name-given-twice", path=(*path, "report_to", index))
    homes = {
        **dict.fromkeys(Stage.model_fields, "the stage"),
        **dict.fromkeys(Train.model_fields, "`train:` itself"),
    }
    for key in homes.keys() & as_mapping(train.get("extra")):
        message, place = f"`{key}` has a key of its own outside `extra`", (*path, "extra", key)
        hint = f"move it to {homes[key]}"
        yield Problem(message, code="extra-has-a-key-of-its-own", path=place, hint=hint, on_key=True)
