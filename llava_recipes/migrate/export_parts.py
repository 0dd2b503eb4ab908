"""Parts of an exported command: flags in their order, and what the original cannot say."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field

from pydantic import JsonValue

from llava_recipes.projectors import type_named
from llava_recipes.recipe.errors import KeyPath, Problem
from llava_recipes.recipe.globs import MODULES
from llava_recipes.recipe.scalars import spell_number
from llava_recipes.recipe.schema import Model, Quantization, Stage, Train
from llava_recipes.screen import shown


@dataclass
class Export:
    """The flags of one command so far."""

    flags: list[tuple[str, str]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def add(self, name: str, value: JsonValue) -> None:
        """A flag with its value as Hugging Face's parser reads it."""
        self.flags.append((name, _spell(value)))

    def refuse(
        self, message: str, path: KeyPath, *, found: str | None = None, hint: str | None = None
    ) -> None:
        """Something that the original cannot say."""
        self.problems.append(Problem(message, code="original-cannot-say", path=path, found=found, hint=hint))


def _spell(value: JsonValue) -> str:
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, list):
        return " ".join(_spell(entry) for entry in value)
    return spell_number(value) if isinstance(value, float) else _quoted(str(value))


def _quoted(text: str) -> str:
    """A word of a shell; one that a terminal should not be shown raw in bash's own escapes."""
    if shown(text) == text:
        return shlex.quote(text)
    letters = map(chr, text.encode())
    spelled = "".join(
        letter if letter.isascii() and letter.isalnum() else f"\\x{ord(letter):02x}" for letter in letters
    )
    return f"$'{spelled}'"


def trained_modules(stage: Stage, path: KeyPath, export: Export) -> frozenset[str]:
    """The root modules that train; anything finer is refused."""
    globs = (*stage.trainable, *(() if isinstance(stage.freeze, str) else stage.freeze))
    for glob in globs:
        if glob not in (*MODULES, "image_tokens"):
            export.refuse(
                "the original freezes and trains whole modules alone", (*path, "trainable"), found=glob
            )
    trained = set() if stage.freeze == "all" else set(MODULES)
    if not isinstance(stage.freeze, str):
        trained -= set(stage.freeze)
    return frozenset(trained | set(stage.trainable))


def model_flags(model: Model, export: Export) -> None:
    """What is assembled."""
    language, tower, projector = model.language_model, model.vision_tower, model.projector
    if isinstance(language, str):
        export.add("model_name_or_path", language)
    elif language.source is None:
        export.refuse("the original cannot make a random model", ("model", "language_model", "config"))
    else:
        export.add("model_name_or_path", language.source)
        for key, value in (("revision", language.revision), ("tokenizer", language.tokenizer)):
            if value is not None and value != language.source:
                export.refuse(f"the original has no `{key}`", ("model", "language_model", key))
        _quantization_flags(language.quantization, export)
    if tower.source is None:
        export.refuse("the original cannot make a random model", ("model", "vision_tower", "config"))
    else:
        export.add("vision_tower", tower.source)
    if tower.revision is not None:
        export.refuse("the original has no `revision`", ("model", "vision_tower", "revision"))
    if projector.seed != 0:
        export.refuse("the original has no seed of the projector's own", ("model", "projector", "seed"))
    if not type_named(projector.type)[0].in_original:
        export.refuse("the original has no projector of this type", ("model", "projector", "type"))
    export.add("mm_vision_select_layer", tower.select_layer)
    export.add("mm_vision_select_feature", tower.select_feature)
    export.add("mm_projector_type", projector.type)
    export.add("mm_use_im_start_end", model.image_tokens.start_end)
    export.add("mm_use_im_patch_token", model.image_tokens.patch)


def _quantization_flags(quantization: Quantization | None, export: Export) -> None:
    if quantization is None:
        return
    export.add("bits", quantization.bits)
    if quantization.bits == 4:
        export.add("quant_type", quantization.type)
        export.add("double_quant", quantization.double_quant)


_SAME_NAME = (
    *("learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "optim"),
    *("warmup_ratio", "warmup_steps", "lr_scheduler_type", "gradient_checkpointing"),
    *("dataloader_num_workers", "logging_steps", "save_strategy", "save_steps", "save_total_limit", "seed"),
)


def training_flags(train: Train, path: KeyPath, export: Export, *, accumulation: int) -> None:
    """How the stage trains, in the names of transformers 4."""
    if train.loss_normalization != "device_batch":
        message = "the original averages the loss over each device batch"
        export.refuse(message, (*path, "train", "loss_normalization"))
    if train.max_steps is not None:
        export.add("max_steps", train.max_steps)
    else:
        epochs = train.num_train_epochs
        export.add("num_train_epochs", int(epochs) if epochs is not None and epochs.is_integer() else epochs)
    export.add("per_device_train_batch_size", train.per_device_train_batch_size)
    export.add("per_device_eval_batch_size", train.per_device_eval_batch_size)
    export.add("gradient_accumulation_steps", accumulation)
    export.add("evaluation_strategy", train.eval_strategy)
    for name in _SAME_NAME:
        value = getattr(train, name)
        if value is not None:
            export.add(name, value)
    for name in ("bf16", "fp16", "tf32"):
        if getattr(train, name):
            export.add(name, True)
    reports = train.report_to
    export.add("report_to", reports if isinstance(reports, str) else list(reports))
    for name, value in train.extra.items():
        if isinstance(value, dict | list):
            export.refuse("a value of this kind has no flag", (*path, "train", "extra", name))
        elif value is not None:
            export.add(name, value)
