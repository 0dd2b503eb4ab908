"""`export-script`: a recipe's stages as commands of the original LLaVA."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from pydantic import JsonValue

from llava_recipes.deepspeed_presets import DEEPSPEED_PRESETS, PRESETS
from llava_recipes.errors import KeyPath, Problem, RecipeError
from llava_recipes.layouts import LAYOUTS, meaning_of
from llava_recipes.plan.batch import derive_batch
from llava_recipes.projectors import type_named
from llava_recipes.recipe.globs import MODULES
from llava_recipes.recipe.scalars import say_number, spell_number
from llava_recipes.recipe.schema import LanguageModel, Model, Recipe, Stage, Train
from llava_recipes.screen import shown

DEEPSPEED_FILES: Mapping[str, str] = {
    name: f"./scripts/{preset.file}" for name, preset in PRESETS.items() if preset.file and not preset.blocks
}
_SAME_NAME = (
    *("learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "optim"),
    *("warmup_ratio", "warmup_steps", "lr_scheduler_type", "gradient_checkpointing"),
    *("dataloader_num_workers", "logging_steps", "save_strategy", "save_steps", "save_total_limit", "seed"),
)
"""Keys of `train` that are flags of the same name."""


@dataclass
class _Export:
    """The flags of one stage's command so far, and what the original cannot do."""

    path: KeyPath
    flags: list[tuple[str, str]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def add(self, **values: JsonValue) -> None:
        """Flags with their values as Hugging Face's parser reads them; None leaves a flag out."""
        self.flags += [(name, _spell(value)) for name, value in values.items() if value is not None]

    def refuse(
        self, message: str, *keys: str | int, found: str | None = None, hint: str | None = None
    ) -> None:
        """Something that the original cannot do: at keys of the stage, or of `model`."""
        path = keys if keys[0] == "model" else (*self.path, *keys)
        self.problems.append(Problem(message, code="original-cannot-say", path=path, found=found, hint=hint))


def export_script(
    recipe: Recipe,
    *,
    file: str,
    stages: Sequence[int],
    world_size: int | None,
    deepspeed_files: Mapping[str, Mapping[str, JsonValue]] = MappingProxyType({}),
) -> str:
    """A shell script with the original's command for each stage.

    stages           places of the stages in the recipe
    deepspeed_files  the contents of those DeepSpeed files of the recipe that exist

    Raises RecipeError, with paths of the recipe, for everything that the original cannot do.
    """
    problems: list[Problem] = []
    # A stage starts from the result of the stage before it.
    parts = [
        "#!/bin/bash\n"
        f"# Written by `llava-recipe export-script` from {shown(os.path.basename(file))}.\n"
        "# Run it in a checkout of the original, with one process on each GPU that the recipe needs.\n"
        "set -e"
    ]
    for index in stages:
        stage = recipe.stages[index]
        export = _export_stage(recipe, index, world_size, deepspeed_files)
        problems += export.problems
        title = shown(f"# Stage {stage.name} of {recipe.name}")
        meant = _processes_meant(stage.train)
        if meant is not None and world_size is None:
            batch, gpus = stage.train.global_batch_size, "1 GPU" if meant == 1 else f"{meant} GPUs"
            title += f"; its batch of {batch} needs {gpus} (for others: --world-size)"
        flags = [f"    --{name} {value}" for name, value in export.flags]
        parts.append(f"{title}\n" + " \\\n".join(["deepspeed llava/train/train_mem.py", *flags]))
    if problems:
        raise RecipeError(*dict.fromkeys(problems))
    return "\n\n".join(parts) + "\n"


def _spell(value: JsonValue) -> str:
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, list):
        return " ".join(_spell(entry) for entry in value)
    return spell_number(value) if isinstance(value, float) else _quoted(str(value))


def _quoted(text: str) -> str:
    """A word of a shell; in bash's own escapes if a terminal must not print it raw."""
    if shown(text) == text:
        return shlex.quote(text)
    characters = map(chr, text.encode())
    return "$'" + "".join(c if c.isascii() and c.isalnum() else f"\\x{ord(c):02x}" for c in characters) + "'"


def _export_stage(
    recipe: Recipe,
    index: int,
    world_size: int | None,
    deepspeed_files: Mapping[str, Mapping[str, JsonValue]],
) -> _Export:
    stage = recipe.stages[index]
    export = _Export(("stages", index))
    trained = _trained_modules(stage, export)
    _adapter_flags(stage, trained, export)
    _group_flags(stage, export)
    _deepspeed_flag(stage, export, deepspeed_files)
    _model_flags(recipe.model, export)
    _start_flags(recipe, index, export)
    _freezing_flags(stage, trained, recipe.model.image_tokens.start_end, export)
    _data_flags(stage, export, world_size=world_size)
    if stage.sample_every is not None:
        hint = "remove it from a copy of the recipe; the training stays the same"
        export.refuse("the original writes no answers during the training", "sample_every", hint=hint)
    export.add(output_dir=stage.output_dir)
    last_folder = recipe.stages[-1].output_dir.rstrip("/").rpartition("/")[2]
    if recipe.name != last_folder:
        export.add(run_name=recipe.name)
    processes = world_size or _processes_meant(stage.train)
    batch = derive_batch(stage.train, world_size=processes or 1)
    if stage.train.global_batch_size is not None and (processes is None or batch is None):
        message = "the original takes accumulation steps, which depend on the number of processes"
        hint = "add --world-size N, with a number that divides the batch"
        export.refuse(message, "train", "global_batch_size", hint=hint)
    _training_flags(stage.train, export, accumulation=batch.accumulation if batch else 1)
    return export


def _processes_meant(train: Train) -> int | None:
    """The number of processes that reach the batch with one pass each."""
    in_all, per_device = train.global_batch_size, train.per_device_train_batch_size
    is_given = in_all is not None and "per_device_train_batch_size" in train.model_fields_set
    return in_all // per_device if in_all is not None and is_given and in_all % per_device == 0 else None


def _trained_modules(stage: Stage, export: _Export) -> frozenset[str]:
    """The root modules that train; anything finer is refused."""
    frozen = () if isinstance(stage.freeze, str) else stage.freeze
    for glob in (*stage.trainable, *frozen):
        if glob not in (*MODULES, "image_tokens"):
            export.refuse("the original freezes and trains whole modules alone", "trainable", found=glob)
    trained = set() if stage.freeze == "all" else set(MODULES)
    return frozenset(trained - set(frozen) | set(stage.trainable))


def _adapter_flags(stage: Stage, trained: frozenset[str], export: _Export) -> None:
    lora = stage.lora
    if lora is None:
        return
    export.add(lora_enable=True, lora_r=lora.r, lora_alpha=int(lora.alpha), lora_dropout=lora.dropout)
    if lora.bias != "none":
        export.add(lora_bias=lora.bias)
    modules = "the original puts adapters into the whole language model"
    for is_refused, message, *keys in (
        (not float(lora.alpha).is_integer(), "the original takes an integer here", "lora", "alpha"),
        (tuple(lora.modules) != ("language_model",), modules, "lora", "modules"),
        (lora.use_dora, "the original has no `use_dora`", "lora", "use_dora"),
        (lora.use_rslora, "the original has no `use_rslora`", "lora", "use_rslora"),
        (trained - {"projector"}, "with adapters, the original trains the projector alone", "trainable"),
    ):
        if is_refused:
            export.refuse(message, *keys)


def _group_flags(stage: Stage, export: _Export) -> None:
    for number, group in enumerate(stage.param_groups):
        where = ("param_groups", number)
        if tuple(group.modules) != ("projector",) or group.learning_rate is None:
            export.refuse("in the original only the projector can have another learning rate", *where)
        elif group.weight_decay is not None and group.weight_decay != stage.train.weight_decay:
            export.refuse("the original has one weight decay", *where, "weight_decay")
        else:
            export.add(mm_projector_lr=group.learning_rate)


def _deepspeed_flag(stage: Stage, export: _Export, files: Mapping[str, Mapping[str, JsonValue]]) -> None:
    choice = stage.deepspeed
    if choice == "none":
        return
    if isinstance(choice, dict):
        hint = "write it to a JSON file, and set `deepspeed` to that file"
        export.refuse("the original takes a DeepSpeed file, not an inline config", "deepspeed", hint=hint)
        return
    is_originals = choice in DEEPSPEED_FILES
    if choice in DEEPSPEED_PRESETS and not is_originals:
        message = "the original has no file for this preset"
        if PRESETS[choice].blocks:
            message = (
                f"the original's {PRESETS[choice].file} has a schedule, which replaces `lr_scheduler_type`"
            )
        hint = "write the preset's config, as `llava-recipe plan` shows it, to a JSON file, and set "
        export.refuse(message, "deepspeed", hint=hint + "`deepspeed` to that file")
        return
    export.add(deepspeed=DEEPSPEED_FILES.get(choice, choice))
    norm, key = stage.train.max_grad_norm, "gradient_clipping"
    clipping = ({} if is_originals else files.get(choice, {key: "auto"})).get(key)
    if clipping is None and norm != 0:
        whose = "its files have" if is_originals else "the file has"
        message = f"under DeepSpeed 0.12.6 the original doesn't clip: {whose} no `{key}`"
        hint = f"use a DeepSpeed file with `{key}`, or write `max_grad_norm: 0`, which changes the training"
        export.refuse(message, "train", "max_grad_norm", hint=hint)
    elif clipping not in (None, "auto", norm):
        said = f"`{key}: {clipping}`, the recipe `max_grad_norm: {say_number(norm)}`"
        hint = 'write "auto" in the file, or the same value in both'
        export.refuse(f"the DeepSpeed file has {said}", "deepspeed", hint=hint)


def _model_flags(model: Model, export: _Export) -> None:
    """The flags of the model's parts."""
    given, tower, projector = model.language_model, model.vision_tower, model.projector
    language = LanguageModel(source=given) if isinstance(given, str) else given
    quantization = language.quantization
    own_tokenizer = language.source is not None and language.tokenizer not in (None, language.source)
    is_random = "the original cannot create a random model"
    for is_refused, message, *keys in (
        (language.source is None, is_random, "language_model", "config"),
        (language.revision is not None, "the original has no `revision`", "language_model", "revision"),
        (own_tokenizer, "the original has no `tokenizer`", "language_model", "tokenizer"),
        (tower.source is None, is_random, "vision_tower", "config"),
        (tower.revision is not None, "the original has no `revision`", "vision_tower", "revision"),
        (projector.seed != 0, "the original has no separate seed for the projector", "projector", "seed"),
        (
            not type_named(projector.type)[0].in_original,
            "the original has no projector of this type",
            *("projector", "type"),
        ),
    ):
        if is_refused:
            export.refuse(message, "model", *keys)
    export.add(model_name_or_path=language.source)
    if quantization is not None:
        export.add(bits=quantization.bits)
    if quantization is not None and quantization.bits == 4:
        export.add(quant_type=quantization.type, double_quant=quantization.double_quant)
    export.add(
        vision_tower=tower.source,
        mm_vision_select_layer=tower.select_layer,
        mm_vision_select_feature=tower.select_feature,
        mm_projector_type=projector.type,
        mm_use_im_start_end=model.image_tokens.start_end,
        mm_use_im_patch_token=model.image_tokens.patch,
    )


def _start_flags(recipe: Recipe, index: int, export: _Export) -> None:
    stages = recipe.stages
    start = stages[index].init_from or (stages[index - 1].name if index else "base")
    if start == "base":
        export.add(pretrain_mm_mlp_adapter=recipe.model.projector.init_from)
        return
    before = next((stage for stage in stages[:index] if stage.name == start), None)
    is_alone = before is not None and _trained_modules(before, _Export(())) == {"projector"}
    if before is not None and is_alone and before.lora is None:
        export.add(pretrain_mm_mlp_adapter=f"{before.output_dir.rstrip('/')}/mm_projector.bin")
        return
    message = "the original can only start from a stage that trained the projector alone"
    export.refuse(message, "init_from" if stages[index].init_from else "name", found=start)


def _freezing_flags(stage: Stage, trained: frozenset[str], start_end: bool, export: _Export) -> None:
    flags: dict[frozenset[str], str] = {
        frozenset({"projector", "language_model", "lm_head"}): "",
        frozenset({"language_model", "lm_head"}): "freeze_mm_mlp_adapter",
        frozenset({"projector", "lm_head"}): "freeze_backbone",
        frozenset({"projector"}): "tune_mm_mlp_adapter",
    }
    if stage.lora is not None:
        flags = {frozenset({"projector"}): "", frozenset(): "freeze_mm_mlp_adapter"}
    elif start_end and trained - {"image_tokens"} == {"projector"}:
        message = (
            "with start and end tokens, the original stops at the first batch if only the projector trains"
        )
        export.refuse(message, "trainable")
        return
    if flags.get(trained):
        export.add(**{flags[trained]: True})
    elif trained not in flags and not export.problems:
        export.refuse(
            "the original cannot train just these modules",
            "trainable" if stage.trainable else "freeze",
            found=", ".join(sorted(trained)) or "nothing",
            hint="it trains the projector alone, or the language model and the projector, or adapters",
        )


def _data_flags(stage: Stage, export: _Export, *, world_size: int | None) -> None:
    data, source = stage.data, stage.data.sources[0]
    template = "" if data.template is None else meaning_of(data.template)
    is_other = template and not LAYOUTS[template].in_original
    is_list = not source.annotations.endswith((".jsonl", ".parquet"))
    part = ("sources", 0, "weight" if source.weight != 1 else "sampling_strategy")
    for is_refused, message, *keys in (
        (len(data.sources) > 1, "the original takes one annotation file", "sources", 1),
        (data.system_prompt is not None, "the original's system prompts are fixed", "system_prompt"),
        (not template, "the original doesn't use chat templates", "chat_template"),
        (is_other, "the original doesn't have this template", "template"),
        (not data.shuffle, "the original always shuffles", "shuffle"),
        (data.on_bad_image != "error", "the original stops at a bad image", "on_bad_image"),
        (
            data.image_aspect_ratio not in ("square", "pad"),
            "the original has `square` and `pad` alone",
            "image_aspect_ratio",
        ),
        (
            source.sampling_strategy != "all" or source.weight != 1,
            "the original takes the whole file, once",
            *part,
        ),
        (not is_list, "the original reads JSON lists", "sources", 0, "annotations"),
        (data.validation is not None, "the original measures no validation loss", "validation"),
    ):
        if is_refused:
            export.refuse(message, "data", *keys)
    if data.group_by == "length":
        message = "the original groups by length with Hugging Face's sampler, which sorts differently"
        export.refuse(message, "data", "group_by", hint="write `group_by: modality_length`, or `none`")
    if data.shuffle and data.order != "original" and world_size != 1:
        message = "with several processes the original has another order of samples"
        export.refuse(message, "data", "order", hint="write `order: original`, or add --world-size 1")
    export.add(
        # The original uses another template for `v0`.
        version="default" if template == "v0" else template,
        data_path=source.annotations,
        image_folder=source.images,
        image_aspect_ratio=data.image_aspect_ratio,
        model_max_length=data.max_length,
        group_by_modality_length=True if data.group_by == "modality_length" else None,
        lazy_preprocess=data.lazy_preprocess,
    )


def _training_flags(train: Train, export: _Export, *, accumulation: int) -> None:
    """The flags of the training, with the names of transformers 4."""
    if train.loss_normalization != "device_batch":
        message = "the original averages the loss over each device batch"
        export.refuse(message, "train", "loss_normalization")
    epochs = train.num_train_epochs
    if train.max_steps is not None:
        export.add(max_steps=train.max_steps)
    else:
        export.add(num_train_epochs=int(epochs) if epochs is not None and epochs.is_integer() else epochs)
    reports = train.report_to
    export.add(
        per_device_train_batch_size=train.per_device_train_batch_size,
        per_device_eval_batch_size=train.per_device_eval_batch_size,
        gradient_accumulation_steps=accumulation,
        evaluation_strategy=train.eval_strategy,
        **{name: getattr(train, name) for name in _SAME_NAME},
        **{name: getattr(train, name) or None for name in ("bf16", "fp16", "tf32")},
        report_to=reports if isinstance(reports, str) else list(reports),
    )
    for name, value in train.extra.items():
        if isinstance(value, dict | list):
            export.refuse("the original has no flags for lists and mappings", "train", "extra", name)
        else:
            export.add(**{name: value})
