"""`llava-recipe plan FILE`: show what a run would do, with nothing loaded and nothing written."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from llava_recipes.plan.types import ModelPlan, Plan, StagePlan

if TYPE_CHECKING:
    from rich.console import Console

_NUM_SHOWN_MODULES = 6
_LAYER = re.compile(r"(?P<owner>.*\.)(?P<number>0|[1-9][0-9]*)(?P<rest>(\.[^.0-9][^.]*)*)")

Row = tuple[str, str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="the recipe")
    parser.add_argument(
        "--world-size",
        type=_positive,
        metavar="N",
        help="processes, one per GPU; default: this machine's GPUs",
    )
    parser.add_argument("--json", action="store_true", help="print the whole plan as JSON")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override one value of the recipe"
    )


def run(arguments: argparse.Namespace) -> int:
    from llava_recipes.recipe.load import load_recipe
    from llava_recipes.runner.facts import plan_recipe
    from llava_recipes.runner.launch import count_local_devices

    loaded = load_recipe(arguments.file, arguments.set)
    plan = plan_recipe(loaded, world_size=arguments.world_size or count_local_devices())
    if arguments.json:
        print(plan.model_dump_json(indent=2))
    else:
        print_plan(plan)
    return 0


def print_plan(plan: Plan) -> None:
    """Show a plan to a person: in columns that fit the terminal, or as plain lines elsewhere."""
    if not sys.stdout.isatty():
        print("\n".join(plain_lines(plan)))
        return
    from rich.console import Console

    show(plan, Console(highlight=False))


def plain_lines(plan: Plan) -> Iterator[str]:
    """The plan as text: no colour, one line for each fact."""
    yield _headline(plan)
    for title, rows in _sections(plan):
        yield f"\n{title}"
        widest = max(len(label) for label, _ in rows)
        yield from (f"  {label:<{widest}}  {text}".rstrip() for label, text in rows)


def show(plan: Plan, console: Console) -> None:
    """Print the plan on a terminal, long facts folded inside their column."""
    from rich.table import Table
    from rich.text import Text

    console.print(Text(_headline(plan), style="bold"))
    for title, rows in _sections(plan):
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
        "language_model": language.source or _random(language.config, language.seed),
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
    rows.append(("samples", f"{samples}, template {data.template}, at most {data.max_length:,} tokens each"))
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


def _what_trains(stage: StagePlan, model: ModelPlan) -> str:
    if stage.trainable_modules is None or model.sizes is None:
        return f"freeze {_words(stage.freeze)}, trainable {_words(stage.trainable)}; not counted"
    modules = fold_layers(stage.trainable_modules)
    shown = ", ".join(modules[:_NUM_SHOWN_MODULES])
    more = len(modules) - _NUM_SHOWN_MODULES
    shown += f" and {more} more modules" if more > 0 else ""
    return f"{shown}: {stage.num_trainable_parameters:,} of {model.sizes.num_parameters:,} parameters"


def fold_layers(modules: tuple[str, ...]) -> tuple[str, ...]:
    """The same modules with runs of layers written as one glob: `layers.{30..39}`."""
    folded: dict[tuple[str, str, int], list[int]] = {}
    last: dict[tuple[str, str], int] = {}
    for place, name in enumerate(modules):
        found = _LAYER.fullmatch(name)
        if found is None:
            folded[(name, "", place)] = []
            continue
        around, number = (found["owner"], found["rest"]), int(found["number"])
        start = last.get(around)
        run = folded.get((*around, start)) if start is not None else None
        if run is not None and run[-1] + 1 == number:
            run.append(number)
        else:
            last[around] = place
            folded[(*around, place)] = [number]
    return tuple(
        owner + (f"{{{run[0]}..{run[-1]}}}" if len(run) > 1 else "".join(map(str, run))) + rest
        for (owner, rest, _), run in folded.items()
    )


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


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number
