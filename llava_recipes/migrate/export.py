"""A recipe's stages as commands of the original LLaVA, where it can say the same."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

from pydantic import JsonValue

from llava_recipes.deepspeed_presets import DEEPSPEED_PRESETS, PRESETS
from llava_recipes.layouts import LAYOUTS, meaning_of
from llava_recipes.migrate.export_parts import Export, model_flags, trained_modules, training_flags
from llava_recipes.plan.batch import derive_batch
from llava_recipes.recipe.errors import KeyPath, Problem, RecipeError
from llava_recipes.recipe.scalars import say_number
from llava_recipes.recipe.schema import Data, Recipe, Stage, Train
from llava_recipes.screen import shown

DEEPSPEED_FILES: Mapping[str, str] = {
    name: f"./scripts/{preset.file}" for name, preset in PRESETS.items() if preset.file and not preset.blocks
}


def export_script(
    recipe: Recipe,
    *,
    file: str,
    stages: Sequence[int],
    world_size: int | None,
    deepspeed_files: Mapping[str, Mapping[str, JsonValue]] = MappingProxyType({}),
) -> str:
    """A shell script with the original's command for each of the stages, by their place in the recipe.

    deepspeed_files  what is in the DeepSpeed files that the recipe names, of those that are here

    Raises RecipeError, with paths of the recipe, for everything that the original cannot say.
    """
    problems: list[Problem] = []
    commands: list[str] = []
    for index in stages:
        export = _export_stage(recipe, index, world_size, deepspeed_files)
        problems += export.problems
        title = shown(f"# Stage {recipe.stages[index].name} of {recipe.name}")
        meant = _processes_meant(recipe.stages[index].train)
        if meant is not None and world_size is None:
            batch = recipe.stages[index].train.global_batch_size
            title += f"; its batch of {batch} needs {meant} GPUs (for others: --world-size)"
        commands.append("\n".join([title, *_command_lines(export.flags)]))
    if problems:
        raise RecipeError(*dict.fromkeys(problems))
    header = [
        "#!/bin/bash",
        f"# Written by `llava-recipe export-script` from {shown(os.path.basename(file))}.",
        "# Run it in a checkout of the original, with one process on each of the GPUs that the recipe means.",
    ]
    # A stage starts from what the one before it leaves.
    return "\n".join([*header, "set -e"]) + "\n\n" + "\n\n".join(commands) + "\n"


def _command_lines(flags: Sequence[tuple[str, str]]) -> Iterator[str]:
    yield "deepspeed llava/train/train_mem.py \\"
    for number, (name, value) in enumerate(flags, 1):
        end = " \\" if number < len(flags) else ""
        yield f"    --{name} {value}{end}"


def _export_stage(
    recipe: Recipe,
    index: int,
    world_size: int | None,
    deepspeed_files: Mapping[str, Mapping[str, JsonValue]],
) -> Export:
    stage, path = recipe.stages[index], ("stages", index)
    export = Export()
    trained = trained_modules(stage, path, export)
    _adapter_flags(stage, path, trained, export)
    _group_flags(stage, path, export)
    _deepspeed_flag(stage, path, export, deepspeed_files)
    model_flags(recipe.model, export)
    _start_flags(recipe, index, export)
    _freezing_flags(stage, path, trained, recipe.model.image_tokens.start_end, export)
    _data_flags(stage, path, export, world_size=world_size)
    if stage.sample_every is not None:
        hint = "remove it from a copy of the recipe; training is the same without"
        export.refuse("the original asks nothing while it trains", (*path, "sample_every"), hint=hint)
    export.add("output_dir", stage.output_dir)
    last_folder = recipe.stages[-1].output_dir.rstrip("/").rpartition("/")[2]
    if recipe.name != last_folder:
        export.add("run_name", recipe.name)
    processes = world_size or _processes_meant(stage.train)
    batch = derive_batch(stage.train, world_size=processes or 1)
    if stage.train.global_batch_size is not None and (processes is None or batch is None):
        export.refuse(
            "the original takes accumulation steps, which follow from the number of processes",
            (*path, "train", "global_batch_size"),
            hint="give --world-size N, with a number that divides the batch",
        )
    training_flags(stage.train, path, export, accumulation=batch.accumulation if batch else 1)
    return export


def _processes_meant(train: Train) -> int | None:
    """The processes that a batch was written for: those that reach it with one pass of what each is given."""
    in_all, per_device = train.global_batch_size, train.per_device_train_batch_size
    is_given = in_all is not None and "per_device_train_batch_size" in train.model_fields_set
    return in_all // per_device if in_all is not None and is_given and in_all % per_device == 0 else None


def _adapter_flags(stage: Stage, path: KeyPath, trained: frozenset[str], export: Export) -> None:
    lora = stage.lora
    if lora is None:
        return
    where = (*path, "lora")
    export.add("lora_enable", True)
    if not float(lora.alpha).is_integer():
        export.refuse("the original takes a whole number here", (*where, "alpha"))
    for name, value in (("lora_r", lora.r), ("lora_alpha", int(lora.alpha)), ("lora_dropout", lora.dropout)):
        export.add(name, value)
    if lora.bias != "none":
        export.add("lora_bias", lora.bias)
    if tuple(lora.modules) != ("language_model",):
        export.refuse("the original's adapters go into the whole language model", (*where, "modules"))
    for key in ("use_dora", "use_rslora"):
        if getattr(lora, key):
            export.refuse(f"the original has no `{key}`", (*where, key))
    if trained - {"projector"}:
        export.refuse("beside adapters, the original trains the projector alone", (*path, "trainable"))


def _group_flags(stage: Stage, path: KeyPath, export: Export) -> None:
    for number, group in enumerate(stage.param_groups):
        where = (*path, "param_groups", number)
        if tuple(group.modules) != ("projector",) or group.learning_rate is None:
            export.refuse("the original gives the projector alone a learning rate of its own", where)
        elif group.weight_decay is not None and group.weight_decay != stage.train.weight_decay:
            export.refuse("the original has one weight decay", (*where, "weight_decay"))
        else:
            export.add("mm_projector_lr", group.learning_rate)


def _deepspeed_flag(
    stage: Stage, path: KeyPath, export: Export, files: Mapping[str, Mapping[str, JsonValue]]
) -> None:
    choice, where = stage.deepspeed, (*path, "deepspeed")
    if isinstance(choice, dict):
        hint = "write it to a JSON file, and name that file"
        export.refuse("the original takes a DeepSpeed file, not a config inline", where, hint=hint)
    elif choice in DEEPSPEED_PRESETS and choice not in DEEPSPEED_FILES:
        message = "the original has no file for this preset"
        if PRESETS[choice].blocks:
            whose = f"the original's {PRESETS[choice].file}"
            message = f"{whose} has a schedule of its own, which replaces `lr_scheduler_type`"
        hint = "write the preset's config to a JSON file, as `llava-recipe plan` shows it, and name that file"
        export.refuse(message, where, hint=hint)
    elif choice != "none":
        export.add("deepspeed", DEEPSPEED_FILES.get(choice, choice))
        norm, key = stage.train.max_grad_norm, "gradient_clipping"
        content = {} if choice in DEEPSPEED_FILES else files.get(choice, {key: "auto"})
        clipping = content.get(key)
        if clipping is None and norm != 0:
            whose = "its files have" if choice in DEEPSPEED_FILES else "the file has"
            export.refuse(
                f"under DeepSpeed 0.12.6 the original doesn't clip: {whose} no `{key}`",
                (*path, "train", "max_grad_norm"),
                hint=f"name a DeepSpeed file with `{key}`, or write `max_grad_norm: 0`, another training",
            )
        elif clipping not in (None, "auto", norm):
            message = (
                f"the DeepSpeed file says `{key}: {clipping}`, the recipe `max_grad_norm: {say_number(norm)}`"
            )
            export.refuse(message, where, hint='write "auto" there, or make the two agree')


def _start_flags(recipe: Recipe, index: int, export: Export) -> None:
    stages = recipe.stages
    start = stages[index].init_from or (stages[index - 1].name if index else "base")
    projector = recipe.model.projector.init_from
    if start == "base":
        if projector is not None:
            export.add("pretrain_mm_mlp_adapter", projector)
        return
    before = next((stage for stage in stages[:index] if stage.name == start), None)
    quiet = Export()
    if before is not None and trained_modules(before, (), quiet) == {"projector"} and before.lora is None:
        export.add("pretrain_mm_mlp_adapter", f"{before.output_dir.rstrip('/')}/mm_projector.bin")
        return
    where: KeyPath = ("stages", index, "init_from" if stages[index].init_from else "name")
    export.refuse(
        "the original can start from a stage that trained the projector alone, not from this one",
        where,
        found=start,
    )


def _freezing_flags(
    stage: Stage, path: KeyPath, trained: frozenset[str], start_end: bool, export: Export
) -> None:
    said: dict[frozenset[str], tuple[str, ...]] = {
        frozenset({"projector", "language_model", "lm_head"}): (),
        frozenset({"language_model", "lm_head"}): ("freeze_mm_mlp_adapter",),
        frozenset({"projector", "lm_head"}): ("freeze_backbone",),
        frozenset({"projector"}): ("tune_mm_mlp_adapter",),
    }
    if stage.lora is not None:
        said = {frozenset({"projector"}): (), frozenset(): ("freeze_mm_mlp_adapter",)}
    elif start_end and trained - {"image_tokens"} == {"projector"}:
        export.refuse(
            "the original stops at the first batch of a stage with start and end tokens that trains the "
            "projector alone",
            (*path, "trainable"),
        )
        return
    if trained in said:
        for name in said[trained]:
            export.add(name, True)
    elif not export.problems:
        export.refuse(
            "the original cannot train just these modules",
            (*path, "trainable" if stage.trainable else "freeze"),
            found=", ".join(sorted(trained)) or "nothing",
            hint="it trains the projector alone, or language model and projector, or adapters",
        )


def _version(data: Data, where: KeyPath, export: Export) -> str:
    """The original's name for a template; `v0` is another there."""
    if data.system_prompt is not None:
        export.refuse("the original's system prompts cannot be changed", (*where, "system_prompt"))
    if data.template is None:
        export.refuse("the original uses no chat templates", (*where, "chat_template"))
        return ""
    template = meaning_of(data.template)
    if not LAYOUTS[template].in_original:
        export.refuse("the original has no template of this name", (*where, "template"))
    return "default" if template == "v0" else template


def _data_flags(stage: Stage, path: KeyPath, export: Export, *, world_size: int | None) -> None:
    data, where = stage.data, (*path, "data")
    source, *more = data.sources
    if more:
        export.refuse("the original takes one annotation file", (*where, "sources", 1))
    version = _version(data, where, export)
    if data.group_by == "length":
        message = "the original's grouping by length is Hugging Face's, which sorts otherwise"
        export.refuse(message, (*where, "group_by"), hint="write `group_by: modality_length`, or `none`")
    if not data.shuffle:
        export.refuse("the original always shuffles", (*where, "shuffle"))
    elif data.order != "original" and world_size != 1:
        export.refuse(
            "with several processes the original draws an order of its own",
            (*where, "order"),
            hint="write `order: original`, or give --world-size 1",
        )
    if data.on_bad_image != "error":
        export.refuse("the original stops at a bad image", (*where, "on_bad_image"))
    if data.image_aspect_ratio not in ("square", "pad"):
        export.refuse("the original knows `square` and `pad`", (*where, "image_aspect_ratio"))
    whole = source.sampling_strategy == "all" and source.weight == 1
    if not whole:
        key = "weight" if source.weight != 1 else "sampling_strategy"
        export.refuse("the original takes the whole file, once", (*where, "sources", 0, key))
    if source.annotations.endswith((".jsonl", ".parquet")):
        export.refuse("the original reads JSON lists", (*where, "sources", 0, "annotations"))
    if data.validation is not None:
        export.refuse("the original measures no loss on other data", (*where, "validation"))
    values: list[tuple[str, JsonValue]] = [("version", version), ("data_path", source.annotations)]
    values += [("image_folder", source.images)] if source.images is not None else []
    values += [("image_aspect_ratio", data.image_aspect_ratio), ("model_max_length", data.max_length)]
    values += [("group_by_modality_length", True)] if data.group_by == "modality_length" else []
    values.append(("lazy_preprocess", data.lazy_preprocess))
    for name, value in values:
        export.add(name, value)
