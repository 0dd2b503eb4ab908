"""Warnings: what a recipe may say and a run can do, but its author has probably not meant."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from llava_recipes.errors import KeyPath, Problem
from llava_recipes.layouts import ALIASES
from llava_recipes.plan.batch import fitting_on_device, suitable_share
from llava_recipes.plan.deepspeed import zero_stage
from llava_recipes.plan.image_tokens import roomy_length
from llava_recipes.plan.trainable import EMBEDDINGS
from llava_recipes.plan.types import ModelPlan, StagePlan
from llava_recipes.projectors import has_weights
from llava_recipes.recipe.scalars import say_number
from llava_recipes.recipe.schema import Recipe, Stage
from llava_recipes.recipe.value_hints import kind_of_stage, usual_batch

LARGE_MODEL: Final = 1_000_000_000
"""Parameters from which float32 is hardly ever intended."""

SMALL_MODEL: Final = 100_000_000
"""Parameters below which a model is a test model."""

FITS_ONE_GPU: Final = 30_000_000_000
"""Frozen parameters that fit on one GPU of 80 GB in 16 bits."""

PROJECTOR_RATES: Final = (1e-4, 1e-2)
"""Learning rates of a projector that trains alone; the published ones are 1e-3 and 2e-3."""

FEW_STEPS: Final = 100
"""A run of fewer steps is repeated as fast as resumed: it needs no checkpoint before its end."""

ADAPTER_RATES: Final = (1e-5, 2e-3)
"""Learning rates of LoRA adapters; the published ones are 2e-5 and 2e-4."""

PRETRAINED_RATE: Final = 2e-4
"""Far above the learning rates of pretrained weights; the published ones are 2e-6 to 5e-5."""


def advise(recipe: Recipe, model: ModelPlan, stages: Sequence[StagePlan]) -> tuple[Problem, ...]:
    """The warnings about a recipe and its plan; their paths are those of the recipe."""
    found: list[Problem] = []
    for index, (stage, planned) in enumerate(zip(recipe.stages, stages, strict=True)):
        path: KeyPath = ("stages", index)
        trains = _trained_roots(planned)
        found += _check_saving(stage, planned, path)
        found += _check_order(stage, path)
        found += _check_validation(stage, planned, path)
        found += _check_warm_up(stage, planned, path)
        found += _check_size(stage, planned, path)
        if _pretrained(recipe) and (model.sizes is None or model.sizes.num_parameters >= SMALL_MODEL):
            # Random weights and tiny models are experiments on one process.
            found += _check_processes(stage, planned, path)
        found += _check_precision(model, planned, path)
        found += _check_length(model, planned, path)
        found += _check_start(recipe, planned, index)
        if "language_model" in _pretrained(recipe):
            found += _check_plain(stage, planned, path)
        if trains is not None:
            found += _check_sharding(model, planned, trains, path)
            found += _check_text_only(planned, trains, path)
            found += _check_rates(recipe, planned, path)
            found += _check_projector(recipe, planned, trains)
            found += _check_newline(stages[: index + 1], path)
    found += _check_image_tokens(model, stages)
    return tuple(found)


def _check_saving(stage: Stage, planned: StagePlan, path: KeyPath) -> Iterator[Problem]:
    train, path = stage.train, (*path, "train", "save_steps")
    if "save_steps" not in train.model_fields_set:
        return
    last = planned.train.max_steps
    if train.save_strategy == "epoch":
        yield _warning(
            "`save_steps` has no effect with `save_strategy: epoch`",
            code="key-has-no-effect",
            path=path,
            hint="remove it, or write `save_strategy: steps`",
            on_key=True,
        )
    elif train.save_strategy == "steps" and last is not None and FEW_STEPS <= last < train.save_steps:
        num_processes = planned.train.num_processes
        may_be_fewer = num_processes == 1 and train.global_batch_size is None and train.max_steps is None
        yield _warning(
            f"no checkpoint is written before the end: `save_steps: {train.save_steps}` is beyond the last "
            f"of {last} steps",
            code="no-checkpoint-before-end",
            path=path,
            found="counted for 1 process; several processes take fewer steps" if may_be_fewer else None,
            hint="a run that is stopped earlier starts again from the beginning; write "
            f"`save_steps: {useful_save_steps(last)}`",
        )


def useful_save_steps(last: int) -> int:
    """Steps between checkpoints that give several of them before the last step."""
    return max(1, min(500, last // 4))


def _check_warm_up(stage: Stage, planned: StagePlan, path: KeyPath) -> Iterator[Problem]:
    """A run that ends during its warm-up, whose first step has a learning rate of 0."""
    warmup, last = planned.train.warmup_steps, planned.train.max_steps
    if not warmup or last is None or warmup < last:
        return
    key = "warmup_steps" if stage.train.warmup_steps is not None else "warmup_ratio"
    steps = "1 step" if warmup == 1 else f"{warmup} steps"
    if last > 1:
        hint = "the learning rate only rises; `warmup_ratio: 0.03` is a share of all steps"
    else:
        hint = f"the learning rate is 0 in the only step; write `{key}: 0`, or train for more steps"
    yield _warning(
        f"warm-up takes {steps}, but training ends after {last}",
        code="warm-up-longer-than-run",
        path=(*path, "train", key),
        hint=hint,
    )


def _check_precision(model: ModelPlan, planned: StagePlan, path: KeyPath) -> Iterator[Problem]:
    if model.sizes is None or planned.train.precision != "fp32" or model.sizes.num_parameters < LARGE_MODEL:
        return
    billions, gigabytes = model.sizes.num_parameters / 1e9, model.sizes.num_parameters * 4 / 1e9
    yield _warning(
        f"{billions:.1f} billion parameters in float32: {gigabytes:.0f} GB of weights alone",
        code="weights-in-float32",
        path=(*path, "train"),
        hint="write `bf16: true` (`fp16: true` on GPUs older than Ampere)",
        on_key=True,
    )


def _check_length(model: ModelPlan, planned: StagePlan, path: KeyPath) -> Iterator[Problem]:
    yield from _check_image_length(planned, path)
    positions = model.sizes.max_position_embeddings if model.sizes is not None else None
    length = planned.data.max_length
    if positions is not None and length > positions:
        yield _warning(
            f"`max_length: {length}` exceeds the {positions} positions of the language model",
            code="max-length-beyond-positions",
            path=(*path, "data", "max_length"),
            hint=f"write `max_length: {positions}`; the model has not learned positions beyond these",
        )


def _check_image_length(planned: StagePlan, path: KeyPath) -> Iterator[Problem]:
    """A `max_length` that cuts off the end of large images, and the question about them."""
    data, image = planned.data, planned.data.image_counts
    has_images = any(source.images is not None for source in data.sources)
    if not has_images or image is None or not image.least_tokens < data.max_length <= image.most_tokens:
        return
    yield _warning(
        "`max_length` cuts the largest images and all text after them",
        code="max-length-cuts-images",
        path=(*path, "data", "max_length"),
        found=f"{data.max_length}, and an image takes up to {image.most_tokens:,} tokens, "
        f"{image.usual_tokens:,} for 640 × 480 pixels",
        hint=f"write `max_length: {roomy_length(image.most_tokens)}`",
    )


def _check_start(recipe: Recipe, planned: StagePlan, index: int) -> Iterator[Problem]:
    """A stage that starts from the base weights, without what the stage before it trained."""
    if index == 0 or recipe.stages[index].init_from != "base" or recipe.model.projector.init_from is not None:
        return
    earlier = recipe.stages[index - 1]
    yield _warning(
        f"stage `{planned.name}` starts from the base weights, without what stage `{earlier.name}` trained",
        code="init-from-leaves-training-aside",
        path=("stages", index, "init_from"),
        hint=f"write `init_from: {earlier.name}`, or write two recipes",
    )


def _check_image_tokens(model: ModelPlan, stages: Sequence[StagePlan]) -> Iterator[Problem]:
    """Start and end tokens that no stage trains: they keep the mean of all embeddings."""
    known = [stage.trainable_modules for stage in stages if stage.trainable_modules is not None]
    own = {stage.output_dir for stage in stages}
    from_elsewhere = any(start not in own for stage in stages for start in stage.starts_from)
    if not model.image_tokens.start_end or from_elsewhere or len(known) < len(stages):
        return
    if model.projector.init_from is not None:
        return
    rows = ("image_tokens", "language_model", "language_model.embed_tokens", EMBEDDINGS)
    if not any(module in rows for modules in known for module in modules):
        yield _warning(
            "no stage trains the embeddings of `<im_start>` and `<im_end>`",
            code="image-tokens-stay-random",
            path=("model", "image_tokens", "start_end"),
            hint="add `image_tokens` to `trainable:` of a stage; otherwise they stay the mean of all others",
        )


def _check_sharding(
    model: ModelPlan, planned: StagePlan, trains: frozenset[str], path: KeyPath
) -> Iterator[Problem]:
    if zero_stage(planned.deepspeed) != 3 or trains & {"language_model", "lm_head"}:
        return
    if model.sizes is None or model.sizes.num_parameters > FITS_ONE_GPU:
        return
    yield _warning(
        "ZeRO stage 3 fetches the frozen language model for every pass and keeps the inputs of its layers",
        code="zero3-fetches-frozen-model",
        path=(*path, "deepspeed"),
        hint="`zero2` is faster and takes less memory where the frozen model fits on one GPU",
    )


def _check_text_only(planned: StagePlan, trains: frozenset[str], path: KeyPath) -> Iterator[Problem]:
    if not planned.data.may_have_images and trains and trains <= {"projector", "vision_tower"}:
        yield _warning(
            "no source has `images`, but what trains in this stage learns only from images",
            code="no-images-to-learn-from",
            path=(*path, "data", "sources"),
            hint="write `images:` with the folder of the images in each source that uses images",
            on_key=True,
        )


def _check_rates(recipe: Recipe, planned: StagePlan, path: KeyPath) -> Iterator[Problem]:
    """Learning rates that belong to another kind of stage."""
    modules = planned.trainable_modules or ()
    adapted = _roots(module for module in modules if ".lora_" in module)
    in_full = _roots(module for module in modules if ".lora_" not in module)
    base: KeyPath = (*path, "train", "learning_rate")
    if modules and _roots(modules) == {"projector"} and not planned.param_groups:
        yield from _check_usual_rate(
            planned.train.learning_rate,
            PROJECTOR_RATES,
            base,
            what="a projector that trains alone",
            codes=("learning-rate-too-low", "learning-rate-too-high"),
            hint="feature alignment uses 1e-3 or 2e-3; 2e-5 is for fine-tuning a language model",
        )
        return
    grouped: set[str] = set()
    for index, group in enumerate(planned.param_groups):
        own: KeyPath = (*path, "param_groups", index, "learning_rate")
        roots = _roots(group.modules)
        grouped |= {glob for glob in group.modules if glob in roots}
        yield from _check_full_rate(recipe, group.learning_rate, roots & in_full, own)
    yield from _check_full_rate(recipe, planned.train.learning_rate, in_full - grouped, base)
    if adapted - grouped:
        yield from _check_usual_rate(
            planned.train.learning_rate,
            ADAPTER_RATES,
            base,
            what="LoRA adapters",
            codes=("learning-rate-unusual-for-lora",) * 2,
            hint="adapters use 1e-4 to 2e-4, ten times the rate of full fine-tuning",
        )


def _check_full_rate(recipe: Recipe, rate: float, roots: frozenset[str], path: KeyPath) -> Iterator[Problem]:
    ruined = [root.replace("_", " ") for root in sorted(_pretrained(recipe) & roots)]
    if rate > PRETRAINED_RATE and ruined:
        yield _warning(
            f"a learning rate of {say_number(rate)} ruins a pretrained {' and '.join(ruined)}",
            code="learning-rate-too-high",
            path=path,
            hint="full fine-tuning uses 2e-5 or less, a vision tower 2e-6; 1e-3 is for a projector that "
            "trains alone",
        )


def _check_usual_rate(
    rate: float, usual: tuple[float, float], path: KeyPath, *, what: str, codes: tuple[str, str], hint: str
) -> Iterator[Problem]:
    """A learning rate outside the usual ones; `codes` are those of a rate too low and too high."""
    low, high = usual
    if not low <= rate <= high:
        word = "hardly moves" if rate < low else "is far above the usual for"
        message = f"a learning rate of {say_number(rate)} {word} {what}"
        code = codes[1] if rate > high else codes[0]
        yield _warning(message, code=code, path=path, hint=hint)


def _check_projector(recipe: Recipe, planned: StagePlan, trains: frozenset[str]) -> Iterator[Problem]:
    """A projector with random weights that does not train: the language model sees noise."""
    projector = recipe.model.projector
    is_random = has_weights(projector.type) and projector.init_from is None and not planned.starts_from
    if planned.data.may_have_images and is_random and trains and "projector" not in trains:
        yield _warning(
            f"the projector keeps its random weights in stage `{planned.name}`",
            code="projector-stays-random",
            path=("model", "projector"),
            hint="set its weights with `init_from:`, or add `projector` to `trainable:` of the stage",
            on_key=True,
        )


def _check_newline(stages: Sequence[StagePlan], path: KeyPath) -> Iterator[Problem]:
    """A language model that trains with an image newline that never trains."""
    planned = stages[-1]
    in_full = {module for module in planned.trainable_modules or () if ".lora_" not in module}
    trained = any("image_newline" in (stage.trainable_modules or ()) for stage in stages)
    if planned.data.mm_patch_merge_type == "spatial_unpad" and "language_model" in in_full and not trained:
        yield _warning(
            "the image newline keeps its random values while the language model trains",
            code="image-newline-stays-random",
            path=(*path, "trainable"),
            hint="add `image_newline`, which LLaVA-NeXT trains with the language model; ignore this where "
            "the language model is a LLaVA-NeXT checkpoint, which contains a trained one",
            on_key=True,
        )


def _check_order(stage: Stage, path: KeyPath) -> Iterator[Problem]:
    """An `order` that has no effect, or that the original does not have."""
    if stage.data.order == "original" and not stage.data.shuffle:
        yield _warning(
            "`order: original` has no effect with `shuffle: false`, which keeps the order of the files",
            code="key-has-no-effect",
            path=(*path, "data", "order"),
            hint="write `order: seed`, or `shuffle: true`: the original always shuffles",
        )
    elif stage.data.order == "original" and stage.data.group_by == "length":
        yield _warning(
            "the original has no order of its own for `group_by: length`: Hugging Face's sampler draws it",
            code="original-has-no-order",
            path=(*path, "data", "order"),
            hint="write `order: seed`, or `group_by: modality_length`",
        )


def _check_validation(stage: Stage, planned: StagePlan, path: KeyPath) -> Iterator[Problem]:
    """Evaluations that never happen, and validation data that is trained on."""
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
            f"the validation loss is measured only at the end: `eval_steps: {train.eval_steps}` is beyond "
            f"the last of {last} steps",
            code="validation-only-at-end",
            path=where if "eval_steps" in train.model_fields_set else (*path, "train", "eval_strategy"),
            hint=f"write `eval_steps: {max(1, last // 4)}`",
        )
    validation = stage.data.validation
    trained = {os.path.normpath(source.annotations): source for source in stage.data.sources}
    for number, source in enumerate((validation and validation.sources) or ()):
        other = trained.get(os.path.normpath(source.annotations))
        words = {each.sampling_strategy.partition(":")[0] for each in (source, other) if each is not None}
        if other is not None and words != {"first", "end"}:
            yield _warning(
                "the validation data is also trained on: its loss says nothing about new data",
                code="validation-data-is-trained-on",
                path=(*path, "data", "validation", "sources", number, "annotations"),
                hint="write `validation: {split: 0.01}`, or train on the `first` part of the file and "
                "validate on its `end`",
            )


def _check_plain(stage: Stage, planned: StagePlan, path: KeyPath) -> Iterator[Problem]:
    """A language model that learns answers without questions: `plain` writes only image and answer."""
    roots, name = _roots(planned.trainable_modules or ()), stage.data.template
    if roots & {"language_model", "lm_head"} and name is not None and ALIASES.get(name, name) == "plain":
        yield _warning(
            f"`template: {name}` leaves out the questions, but the language model trains",
            code="plain-template-in-full-training",
            path=(*path, "data", "template"),
            hint="write `template: v1`, or that of the language model; `plain` is for training a projector",
        )


def _check_processes(stage: Stage, planned: StagePlan, path: KeyPath) -> Iterator[Problem]:
    """A batch that grows with the number of processes at a fixed learning rate."""
    train, config = stage.train, planned.deepspeed or {}
    if train.global_batch_size is not None or isinstance(config.get("train_batch_size"), int):
        return
    per_device, accumulation = train.per_device_train_batch_size, train.gradient_accumulation_steps or 1
    key = "per_device_train_batch_size"
    is_written = key in train.model_fields_set
    batch = per_device * accumulation
    kind = kind_of_stage(stage.freeze, stage.trainable, has_lora=stage.lora is not None)
    usual = usual_batch(kind, train.learning_rate)
    wanted = "`global_batch_size:` with the batch that the learning rate was chosen for"
    if usual is not None and usual % per_device == 0:
        wanted = f"`global_batch_size: {usual}`, LLaVA's batch at this learning rate"
    instead = ", in place of `gradient_accumulation_steps`" if train.gradient_accumulation_steps else ""
    yield _warning(
        "the batch of a step depends on the number of processes, but the learning rate doesn't",
        code="batch-depends-on-processes",
        path=(*path, "train", key) if is_written else (*path, "train"),
        found=f"{batch} samples on 1 process, {8 * batch} on 8, both at {say_number(train.learning_rate)}",
        hint=f"write {wanted}{instead}; the accumulation steps then follow from the number of processes",
        on_key=True,
    )


def _check_size(stage: Stage, planned: StagePlan, path: KeyPath) -> Iterator[Problem]:
    """A batch larger than an epoch: each step takes all samples."""
    train, num_samples, batch = stage.train, planned.data.num_samples, planned.train.global_batch_size
    if not num_samples or batch <= num_samples:
        return
    per_device, accumulation = train.per_device_train_batch_size, planned.train.gradient_accumulation_steps
    num_processes = planned.train.num_processes
    share = suitable_share(max(1, num_samples // num_processes))
    key = "per_device_train_batch_size"
    if num_samples < num_processes:
        hint = f"add samples, or run on at most {num_samples} of the {num_processes} processes"
    elif train.global_batch_size is not None:
        key, size = "global_batch_size", fitting_on_device(share, per_device)
        with_others = "" if size == per_device else f" with `per_device_train_batch_size: {size}`"
        hint = f"write `global_batch_size: {share * num_processes}`{with_others}"
    elif accumulation > 1 and per_device * num_processes <= num_samples:
        key = "gradient_accumulation_steps"
        hint = "write `gradient_accumulation_steps: 1`"
    else:
        with_others = " with `gradient_accumulation_steps: 1`" if accumulation > 1 else ""
        hint = f"write `per_device_train_batch_size: {min(share, per_device)}`{with_others}"
    at = (*path, "train", key) if key in train.model_fields_set else (*path, "train")
    yield _warning(
        "the batch of a step is larger than the data of an epoch",
        code="batch-larger-than-epoch",
        path=at,
        found=f"{batch} samples in a step, {num_samples} in an epoch",
        hint=hint,
        on_key=at[-1] == "train",
    )


def _warning(
    message: str, *, code: str, path: KeyPath, hint: str, found: str | None = None, on_key: bool = False
) -> Problem:
    return Problem(message, code=code, path=path, found=found, hint=hint, on_key=on_key, severity="warning")


def _roots(modules: Iterable[str]) -> frozenset[str]:
    return frozenset(module.split(".", 1)[0] for module in modules)


def _trained_roots(planned: StagePlan) -> frozenset[str] | None:
    """The root modules in which something trains; None where the sizes are not known."""
    return None if planned.trainable_modules is None else _roots(planned.trainable_modules)


def _pretrained(recipe: Recipe) -> frozenset[str]:
    """The root modules that start from trained weights."""
    language, tower = recipe.model.language_model, recipe.model.vision_tower
    roots = set()
    if isinstance(language, str) or language.source is not None:
        roots.add("language_model")
    if tower.source is not None:
        roots.add("vision_tower")
    return frozenset(roots)
