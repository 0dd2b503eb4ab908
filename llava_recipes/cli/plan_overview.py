"""A plan as sections of text: rows of a label and a fact."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from llava_recipes.plan.data import describe_sampling
from llava_recipes.plan.deepspeed import zero_block
from llava_recipes.plan.types import DataPlan, ModelPlan, Plan, StagePlan, TrainPlan
from llava_recipes.recipe.globs import fold_layers
from llava_recipes.recipe.scalars import say_number

if TYPE_CHECKING:
    from llava_recipes.recipe.schema import Quantization

_NUM_SHOWN_MODULES = 6

Row = tuple[str, str]
Section = tuple[str, list[Row]]


def headline_of(plan: Plan) -> str:
    """`pretrain: 1 stage on 8 processes`."""
    stages = "1 stage" if len(plan.stages) == 1 else f"{len(plan.stages)} stages"
    processes = "1 process" if plan.world_size == 1 else f"{plan.world_size} processes"
    return f"{plan.recipe}: {stages} on {processes}"


def sections_of(plan: Plan) -> Iterator[Section]:
    """The model, each stage, and the notes."""
    yield "model", _model_rows(plan.model)
    for stage in plan.stages:
        yield f"stage {stage.name}", _stage_rows(stage, plan)
    if plan.notes:
        yield "notes", [("–", note) for note in plan.notes]


def _model_rows(model: ModelPlan) -> list[Row]:
    language, tower = model.language_model, model.vision_tower
    layer = f"layer {tower.select_layer}, {tower.select_feature}"
    sizes = model.sizes
    origin = {
        "vision_tower": f"{tower.source or _random(tower.config, tower.seed)} ({layer})",
        "projector": model.projector.type
        + (f" from {model.projector.init_from}" if model.projector.init_from else ""),
        "language_model": (language.source or _random(language.config, language.seed))
        + _quantized(language.quantization),
        "image_newline": "a learned token at the end of each row, random weights"
        if model.image_newline
        else "",
        "lm_head": "",
    }
    if sizes is None:
        return [(name, text) for name, text in origin.items() if text]
    widest = len(f"{sizes.num_parameters:,}")
    rows: list[Row] = [
        (part.name, f"{part.num_parameters:>{widest},}  {origin[part.name]}".rstrip())
        for part in sizes.modules
    ]
    rows.append(("in all", f"{sizes.num_parameters:>{widest},}  parameters"))
    rows.append(("image", f"{sizes.image_px} × {sizes.image_px} px, {sizes.num_image_tokens} tokens"))
    return rows


def _quantized(quantization: Quantization | None) -> str:
    if quantization is None:
        return ""
    from llava_recipes.plan.trainable import describe_quantization

    return f", linear layers in {describe_quantization(quantization)}"


def _random(config: object, seed: int) -> str:
    kind = config.get("model_type") if isinstance(config, dict) else None
    return f"{kind}, random weights, seed {seed}"


def _stage_rows(stage: StagePlan, plan: Plan) -> list[Row]:
    train, data = stage.train, stage.data
    rows = [
        ("trains", _what_trains(stage, plan.model)),
        ("starts from", ", then ".join(("base", *stage.starts_from))),
    ]
    rows += [("data", source.annotations) for source in data.sources]
    samples = "not counted" if data.num_samples is None else f"{data.num_samples:,}"
    rows.append(("samples", f"{samples}, {data.wording}, at most {data.max_length:,} tokens each"))
    if data.image_aspect_ratio == "anyres":
        from llava_recipes.plan.image_tokens import describe_images

        rows.append(("images", describe_images(data)))
    rows += _validation_rows(stage)
    if stage.sampling is not None:
        rows.append(("asked", describe_sampling(stage.sampling)))
    rows.append(
        (
            "global batch",
            f"{train.global_batch_size:,} = {plan.world_size} × {train.per_device_train_batch_size} samples"
            + f" × {train.gradient_accumulation_steps} accumulation",
        )
    )
    rows.append(("order", _order_words(data, train)))
    rows.append(("steps", ", ".join(_step_words(stage))))
    schedule = train.training_arguments["lr_scheduler_type"]
    rows.append(("learning rate", f"{say_number(train.learning_rate)}, {schedule}"))
    rows.append(("clipping", _clipping_words(stage)))
    rows.append(("precision", ", ".join(_precision_words(stage))))
    rows.append(("deepspeed", _deepspeed_words(stage)))
    rows.append(("writes to", stage.output_dir))
    return rows


def _order_words(data: DataPlan, train: TrainPlan) -> str:
    if data.order == "file":
        return "that of the files"
    grouped = {"none": "", "length": ", grouped by length", "modality_length": ", grouped by kind and length"}
    of_seed = data.order == "seed" or train.num_processes == 1
    drawn = f"from seed {train.seed}" if of_seed else "as by LLaVA's code on several GPUs"
    return f"drawn {drawn}{grouped[data.group_by]}"


def _clipping_words(stage: StagePlan) -> str:
    norm = stage.train.training_arguments["max_grad_norm"]
    return f"gradient norm at most {say_number(norm)}" if isinstance(norm, int | float) and norm else "none"


def _validation_rows(stage: StagePlan) -> list[Row]:
    validation = stage.data.validation
    if validation is None:
        return []
    from llava_recipes.plan.data import when_measured

    counted = "not counted" if validation.num_samples is None else f"{validation.num_samples:,} samples"
    origin = "held out of the data" if validation.split is not None else "of files of their own"
    times = validation.num_evaluations
    how_often = "" if times is None else f", {times} {'time' if times == 1 else 'times'} in all"
    return [("validation", f"{counted} {origin}, measured {when_measured(stage)}{how_often}")]


def _what_trains(stage: StagePlan, model: ModelPlan) -> str:
    if stage.trainable_modules is None or model.sizes is None:
        return f"freeze {_words(stage.freeze)}, trainable {_words(stage.trainable)}; not counted"
    modules = fold_layers(stage.trainable_modules)
    shown = ", ".join(modules[:_NUM_SHOWN_MODULES])
    more = len(modules) - _NUM_SHOWN_MODULES
    shown += f" and {more} more modules" if more > 0 else ""
    return f"{shown}: {stage.num_trainable_parameters:,} of {model.sizes.num_parameters:,} parameters"


def _step_words(stage: StagePlan) -> Iterator[str]:
    train = stage.train
    yield "not counted" if train.max_steps is None else f"{train.max_steps:,}"
    if train.num_train_epochs is not None:
        yield f"{say_number(train.num_train_epochs)} {'epoch' if train.num_train_epochs == 1 else 'epochs'}"
    if train.warmup_steps is not None:
        yield f"warm-up {train.warmup_steps:,}"
    arguments = train.training_arguments
    if arguments["save_strategy"] == "steps":
        yield f"checkpoint every {arguments['save_steps']:,}"
    elif arguments["save_strategy"] == "epoch":
        yield "checkpoint every epoch"


def _precision_words(stage: StagePlan) -> Iterator[str]:
    yield stage.train.precision
    if stage.train.training_arguments.get("tf32"):
        yield "tf32"
    if stage.train.gradient_checkpointing:
        yield "gradient checkpointing"


def _deepspeed_words(stage: StagePlan) -> str:
    level = zero_block(stage.deepspeed).get("stage")
    return stage.deepspeed_source if level is None else f"{stage.deepspeed_source} (ZeRO stage {level})"


def _words(value: str | tuple[str, ...]) -> str:
    return value if isinstance(value, str) else f"[{', '.join(value)}]"
