"""`llava-recipe plan FILE`: show what a run would do, with nothing loaded and nothing written."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from llava_recipes.cli.fold import fold_layers
from llava_recipes.cli.options import positive
from llava_recipes.plan.sampling import describe_sampling
from llava_recipes.plan.types import ModelPlan, Plan, StagePlan

if TYPE_CHECKING:
    from rich.console import Console

    from llava_recipes.plan.estimate import Estimate, Estimator
    from llava_recipes.plan.hardware import Gpu
    from llava_recipes.plan.sizes import ModelOutline
    from llava_recipes.recipe.model_schema import Quantization

_NUM_SHOWN_MODULES = 6

Row = tuple[str, str]
Section = tuple[str, list[Row]]

USAGE_ERROR = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="the recipe")
    parser.add_argument(
        "--world-size",
        type=positive,
        metavar="N",
        help="processes, one per GPU; default: this machine's GPUs",
    )
    parser.add_argument(
        "--gpu", type=_gpu, metavar="NAME", help="judge memory and hours on this GPU: a100-80g, …"
    )
    parser.add_argument("--fit", action="store_true", help="with --gpu: say what to change so that it fits")
    parser.add_argument(
        "--text-tokens",
        type=positive,
        metavar="N",
        help="text tokens of a usual sample, in place of a guess",
    )
    parser.add_argument(
        "--label-tokens",
        type=positive,
        metavar="N",
        help="how many of them are learned, in place of a guess",
    )
    parser.add_argument(
        "--show-config", action="store_true", help="add what TrainingArguments and DeepSpeed are told"
    )
    parser.add_argument("--json", action="store_true", help="print the whole plan and its estimate as JSON")
    parser.add_argument("--html", metavar="FILE", help="write a page to look at; replaces only its own")
    parser.add_argument("--force", action="store_true", help="let --html replace any file")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override one value of the recipe"
    )


def run(arguments: argparse.Namespace) -> int:
    from llava_recipes.recipe.load import load_recipe
    from llava_recipes.runner.facts import plan_with_outline
    from llava_recipes.runner.launch import count_local_devices

    if arguments.fit and arguments.gpu is None:
        print("llava-recipe plan: --fit needs --gpu", file=sys.stderr)
        return USAGE_ERROR
    loaded = load_recipe(arguments.file, arguments.set)
    world_size = arguments.world_size or count_local_devices()
    plan, outline = plan_with_outline(loaded, world_size=world_size)
    estimator = _estimator(plan, outline, arguments)
    estimate = estimator.estimate() if estimator else None
    overview = list(_sections(plan))
    proposals = list(_proposals(plan, estimator, arguments.gpu)) if estimator and arguments.fit else []
    sections = [*overview, *_estimate_sections(estimate), *proposals]
    if arguments.show_config:
        from llava_recipes.cli.plan_estimate import config_sections

        sections += config_sections(plan)
    if arguments.html is not None:
        from llava_recipes.cli.plan_page import write_page

        write_page(
            arguments.html,
            plan,
            estimate,
            overview=overview,
            proposals=proposals,
            headline=_headline(plan),
            force=arguments.force,
        )
        print(f"written: {arguments.html}", file=sys.stderr)
    if arguments.json:
        from llava_recipes.plan.report import PlanReport

        print(PlanReport(**dict(plan), estimate=estimate).model_dump_json(indent=2))
    elif arguments.html is None:
        print_sections(_headline(plan), sections)
    return 0


def _estimator(plan: Plan, outline: ModelOutline | None, arguments: argparse.Namespace) -> Estimator | None:
    if outline is None:
        return None
    from llava_recipes.plan.estimate import Assumptions, Estimator

    given = Assumptions(arguments.gpu, arguments.text_tokens, arguments.label_tokens)
    return Estimator(plan, outline, given)


def _estimate_sections(estimate: Estimate | None) -> Iterator[Section]:
    if estimate is None:
        yield "estimate", [("–", "none: a config is not at hand, so that nothing can be counted")]
        return
    from llava_recipes.cli.plan_estimate import estimate_sections

    yield from estimate_sections(estimate)


def _proposals(plan: Plan, estimator: Estimator, gpu: Gpu) -> Iterator[Section]:
    from llava_recipes.cli.plan_estimate import proposal_sections
    from llava_recipes.plan.fit import propose

    found = [(stage, propose(estimator, stage, gpu=gpu, world_size=plan.world_size)) for stage in plan.stages]
    yield from proposal_sections(found, gpu.name)


def print_plan(plan: Plan) -> None:
    """Show a plan to a person, without its estimate."""
    print_sections(_headline(plan), list(_sections(plan)))


def print_sections(headline: str, sections: Sequence[Section]) -> None:
    """Show sections: in columns that fit the terminal, or as plain lines elsewhere."""
    if not sys.stdout.isatty():
        print("\n".join(_plain(headline, sections)))
        return
    from rich.console import Console

    _show(headline, sections, Console(highlight=False))


def plain_lines(plan: Plan) -> Iterator[str]:
    """The plan as text: no colour, one line for each fact."""
    yield from _plain(_headline(plan), list(_sections(plan)))


def show(plan: Plan, console: Console) -> None:
    """Print the plan on a terminal, long facts folded inside their column."""
    _show(_headline(plan), list(_sections(plan)), console)


def _plain(headline: str, sections: Sequence[Section]) -> Iterator[str]:
    yield headline
    for title, rows in sections:
        yield f"\n{title}"
        widest = max(len(label) for label, _ in rows)
        yield from (f"  {label:<{widest}}  {text}".rstrip() for label, text in rows)


def _show(headline: str, sections: Sequence[Section], console: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    console.print(Text(headline, style="bold"))
    for title, rows in sections:
        console.print()
        console.print(Text(title, style="bold"))
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for label, text in rows:
            table.add_row(Text(f"  {label}", style="cyan"), Text(text))
        console.print(table)


def _headline(plan: Plan) -> str:
    stages = "1 stage" if len(plan.stages) == 1 else f"{len(plan.stages)} stages"
    processes = "1 process" if plan.world_size == 1 else f"{plan.world_size} processes"
    return f"{plan.recipe}: {stages} on {processes}"


def _sections(plan: Plan) -> Iterator[tuple[str, list[Row]]]:
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
        "image_newline": "a learned end of rows, random weights" if model.image_newline else "",
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
    from llava_recipes.plan.quantization import describe

    return f", linear layers in {describe(quantization)}"


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
        from llava_recipes.plan.pictures import describe_images

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
    rows.append(("steps", ", ".join(_step_words(stage))))
    schedule = train.training_arguments["lr_scheduler_type"]
    rows.append(("learning rate", f"{train.learning_rate:g}, {schedule}"))
    rows.append(("precision", ", ".join(_precision_words(stage))))
    rows.append(("deepspeed", _deepspeed_words(stage)))
    rows.append(("writes to", stage.output_dir))
    return rows


def _validation_rows(stage: StagePlan) -> list[Row]:
    validation = stage.data.validation
    if validation is None:
        return []
    from llava_recipes.plan.evaluation import when_measured

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
        yield f"{train.num_train_epochs:g} {'epoch' if train.num_train_epochs == 1 else 'epochs'}"
    if train.warmup_steps is not None:
        yield f"warm-up {train.warmup_steps:,}"
    arguments = train.training_arguments
    if arguments["save_strategy"] == "steps":
        yield f"checkpoint every {arguments['save_steps']:,}"
    elif arguments["save_strategy"] == "epoch":
        yield "checkpoint every epoch"


def _precision_words(stage: StagePlan) -> Iterator[str]:
    arguments = stage.train.training_arguments
    yield stage.train.precision
    if arguments.get("tf32"):
        yield "tf32"
    if arguments.get("activation_checkpointing"):
        yield "gradient checkpointing"


def _deepspeed_words(stage: StagePlan) -> str:
    zero = (stage.deepspeed or {}).get("zero_optimization")
    level = zero.get("stage") if isinstance(zero, dict) else None
    return stage.deepspeed_source if level is None else f"{stage.deepspeed_source} (ZeRO stage {level})"


def _words(value: str | tuple[str, ...]) -> str:
    return value if isinstance(value, str) else f"[{', '.join(value)}]"


def _gpu(text: str) -> Gpu:
    from llava_recipes.plan.hardware import UnknownGpuError, find_gpu

    try:
        return find_gpu(text)
    except UnknownGpuError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
