"""Rules between keys, which the schema cannot say; on plain values, so that they run beside its errors.

A value of the wrong kind is passed over here: the schema tells it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from llava_recipes.deepspeed_presets import DEEPSPEED_PRESETS
from llava_recipes.projectors import PROJECTOR_TYPES
from llava_recipes.recipe.data_rules import check_data
from llava_recipes.recipe.errors import KeyPath, Problem
from llava_recipes.recipe.exclusions import check_exclusions
from llava_recipes.recipe.foreign_code import code_problems
from llava_recipes.recipe.globs import check_glob, check_number_of_globs
from llava_recipes.recipe.locations import check_hub_id, check_local
from llava_recipes.recipe.misspelt import misspelt
from llava_recipes.recipe.pictures import check_pictures
from llava_recipes.recipe.quantization import check_quantization
from llava_recipes.recipe.samples import check_samples
from llava_recipes.recipe.scalars import Value, spell_value
from llava_recipes.recipe.schema import LanguageModel, Stage, VisionTower
from llava_recipes.recipe.secret import check_secret_values, check_secrets
from llava_recipes.recipe.spelling import did_you_mean
from llava_recipes.recipe.train_rules import check_train
from llava_recipes.recipe.tuning import check_image_tokens, check_tuning
from llava_recipes.recipe.values import Mapping, as_list, as_mapping, given_keys
from llava_recipes.recipe.wording import check_wording


def check_rules(root: Value) -> list[Problem]:
    """Every rule that the values break."""
    problems: list[Problem] = []
    recipe = as_mapping(root)
    problems += _check_version(recipe.get("version"))
    problems += check_secrets(as_mapping(recipe.get("vars")), ("vars",))
    problems += check_exclusions(recipe)
    problems += check_secret_values(recipe)
    problems += _check_model(as_mapping(recipe.get("model")))
    stages = [as_mapping(stage) for stage in as_list(recipe.get("stages"))]
    problems += _check_stage_names(stages)
    problems += _check_output_folders(stages)
    problems += check_image_tokens(recipe)
    problems += check_number_of_globs(recipe)
    for index, stage in enumerate(stages):
        path: KeyPath = ("stages", index)
        if not stage:
            continue
        checks = (
            _check_trainable,
            _check_deepspeed,
            _check_output_dir,
            check_data,
            check_tuning,
            check_wording,
            check_samples,
        )
        for check in checks:
            problems += check(stage, path)
        problems += check_pictures(as_mapping(recipe.get("model")), stage, path)
        problems += _check_init_from(stages, index)
        problems += check_train(stage, path)
    return problems


def _check_version(version: Value) -> Iterator[Problem]:
    # For Python, and so for Pydantic, these equal 1.
    if version == 1 and not (isinstance(version, int) and not isinstance(version, bool)):
        found = spell_value(version)
        yield Problem(
            "`version` must be `1`",
            code="unknown-version",
            path=("version",),
            found=found,
            hint="write `version: 1`",
        )


def _check_model(model: Mapping) -> Iterator[Problem]:
    for part in ("language_model", "vision_tower"):
        chosen = model.get(part)
        if isinstance(chosen, dict):
            yield from _check_origin(chosen, ("model", part))
            yield from check_quantization(chosen, ("model", part))
        elif isinstance(chosen, str):
            yield from check_hub_id(chosen, ("model", part))
    projector, path = as_mapping(model.get("projector")), ("model", "projector", "init_from")
    weightless = [kind.name for kind in PROJECTOR_TYPES if not kind.shapes(1, 1, 1)]
    if projector.get("type") in weightless and given_keys(projector, "init_from"):
        yield Problem(
            f"an `{projector['type']}` projector has no weights to load",
            code="identity-projector-has-no-weights",
            path=path,
            hint="remove `init_from`",
            on_key=True,
        )
    yield from check_local(projector.get("init_from"), path)


def _check_origin(part: Mapping, path: KeyPath) -> Iterator[Problem]:
    name = path[-1]
    given = given_keys(part, "source", "config")
    if not given:
        model = LanguageModel if name == "language_model" else VisionTower
        if not misspelt(part, model, "source", "config"):
            hint = "write `source:` for pretrained weights, or `config:` for random ones"
            yield Problem(
                f"`{name}` needs one of `source` and `config`",
                code="one-of-two-keys-is-needed",
                path=path,
                hint=hint,
                on_key=True,
            )
    elif given == ["config"]:
        yield from _check_config(part, path)
    yield from check_hub_id(part.get("source"), (*path, "source"))
    yield from check_hub_id(part.get("tokenizer"), (*path, "tokenizer"))
    for key in ("config", "image_processor"):
        yield from code_problems(part.get(key), (*path, key))


def _check_config(part: Mapping, path: KeyPath) -> Iterator[Problem]:
    if path[-1] == "language_model" and not given_keys(part, "tokenizer"):
        hint = "write `tokenizer:` with a hub id or a folder"
        yield Problem(
            "`language_model` with `config` needs the key `tokenizer`",
            code="key-is-missing",
            path=path,
            hint=hint,
            on_key=True,
        )
    config = part.get("config")
    if isinstance(config, dict) and not isinstance(config.get("model_type"), str):
        example = "clip_vision_model" if path[-1] == "vision_tower" else "llama"
        yield Problem(
            "`config` needs the key `model_type`",
            code="model-type-missing",
            path=(*path, "config"),
            hint=f"write `model_type: {example}`",
            on_key=True,
        )


def _check_stage_names(stages: list[Mapping]) -> Iterator[Problem]:
    first: dict[str, int] = {}
    for index, stage in enumerate(stages):
        name = stage.get("name")
        if not isinstance(name, str):
            continue
        path: KeyPath = ("stages", index, "name")
        if name in first:
            message = f"two stages have the name `{name}`"
            yield Problem(
                message,
                code="duplicate-stage-name",
                path=path,
                found=f"stages[{first[name]}] has it too",
                hint="rename one of them",
            )
        if name == "base":
            hint = "choose another; `init_from: base` means the base weights"
            yield Problem(
                "a stage cannot have the name `base`", code="invalid-stage-name", path=path, hint=hint
            )
        first.setdefault(name, index)


def _check_output_folders(stages: list[Mapping]) -> Iterator[Problem]:
    first: dict[str, int] = {}
    for index, stage in enumerate(stages):
        folder = stage.get("output_dir")
        if not isinstance(folder, str) or not folder:
            continue
        folder = os.path.normpath(folder)
        if folder in first:
            yield Problem(
                "two stages write to the same folder",
                code="duplicate-output-dir",
                path=("stages", index, "output_dir"),
                found=f"stages[{first[folder]}] writes to {folder} too",
                hint="give each stage a folder of its own",
            )
        first.setdefault(folder, index)


def _check_init_from(stages: list[Mapping], index: int) -> Iterator[Problem]:
    start = stages[index].get("init_from")
    path: KeyPath = ("stages", index, "init_from")
    if not isinstance(start, str) or not start or start == "base":
        return
    names = [name if isinstance(name := stage.get("name"), str) else "" for stage in stages]
    if start in names[:index]:
        return
    found = spell_value(start)
    if start == names[index]:
        yield Problem(
            "a stage cannot start from itself",
            code="init-from-itself",
            path=path,
            found=found,
            hint="name an earlier one, or `base`",
        )
    elif start in names[index:]:
        yield Problem(
            "`init_from` names a later stage",
            code="init-from-later-stage",
            path=path,
            found=found,
            hint="stages run in their order",
        )
    elif "/" not in start and "." not in start:
        earlier = [name for name in names[:index] if name]
        choices = ", ".join(f"`{name}`" for name in ("base", *earlier))
        hint = did_you_mean(start, ["base", *earlier]) or f"{choices}, or a folder, written ./{start}"
        yield Problem(
            "`init_from` names no earlier stage",
            code="init-from-unknown-stage",
            path=path,
            found=found,
            hint=hint,
        )
    else:
        yield from check_hub_id(start, path)


def _check_trainable(stage: Mapping, path: KeyPath) -> Iterator[Problem]:
    freeze = stage.get("freeze", Stage.model_fields["freeze"].default)
    trainable = stage.get("trainable")
    absent = "trainable" not in stage and not misspelt(stage, Stage, "trainable", "freeze")
    if freeze == "all" and (trainable == [] or absent) and stage.get("lora") is None:
        yield Problem(
            "nothing trains in this stage: all is frozen, and `trainable` names nothing",
            code="nothing-trains",
            path=(*path, "trainable")
            if "trainable" in stage
            else (*path, "freeze")
            if "freeze" in stage
            else path,
            hint="write `trainable: [projector]` for feature alignment",
        )
    if freeze == "none" and trainable:
        yield Problem(
            "`trainable` has no effect with `freeze: none`: everything trains already",
            code="key-has-no-effect",
            path=(*path, "trainable"),
            hint="remove it, or write `freeze: all`",
            on_key=True,
        )
    if freeze == []:
        yield Problem(
            "`freeze` is an empty list",
            code="list-is-empty",
            path=(*path, "freeze"),
            hint="write `freeze: none`",
        )
    for key in ("freeze", "trainable"):
        for index, glob in enumerate(as_list(stage.get(key))):
            if isinstance(glob, str) and glob:
                yield from check_glob(glob, (*path, key, index))


def _check_deepspeed(stage: Mapping, path: KeyPath) -> Iterator[Problem]:
    choice = stage.get("deepspeed")
    path = (*path, "deepspeed")
    if isinstance(choice, dict):
        yield from check_secrets(choice, path)
    if not isinstance(choice, str) or choice in ("", "none", *DEEPSPEED_PRESETS):
        return
    if "/" in choice or "." in choice:
        yield from check_local(choice, path)
    else:
        from llava_recipes.recipe.value_hints import deepspeed_hint

        hint = deepspeed_hint(choice)
        yield Problem(
            "`deepspeed` names no preset",
            code="unknown-deepspeed-preset",
            path=path,
            found=spell_value(choice),
            hint=hint,
        )


def _check_output_dir(stage: Mapping, path: KeyPath) -> Iterator[Problem]:
    yield from check_local(stage.get("output_dir"), (*path, "output_dir"))
